"""Which prompts and completions are computed together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    prompt: Sequence[int]
    rows: list[tuple[Sequence[int], int]]
    """Completions, none empty, and which result each of them is."""
    done: int = 1
    """How many prompts are finished with it."""

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(len(row) for row, _ in self.rows)

    @property
    def size(self) -> int:
        return len(self.prompt) + sum(len(row) - 1 for row, _ in self.rows)


def batches(groups: list[Group], packed: bool, budget: int, turn: float) -> Iterator[tuple[list[Group], bool]]:
    """Groups by falling length, as many at a time as the budget holds, and whether they are to be packed.

    A row longer than `turn` is alone: its length chooses the angles of every position that is computed with it. The longer
    come later, because some models keep the angles of the longest that they have seen.
    """
    alone = [(group, row) for group in groups if group.longest > turn for row in group.rows]
    left = Counter(id(group) for group, _ in alone)
    for group, row in sorted(alone, key=lambda pair: len(pair[0].prompt) + len(pair[1][0])):
        left[id(group)] -= 1
        yield [Group(group.prompt, [row], group.done if left[id(group)] == 0 else 0)], False
    batch: list[Group] = []
    tokens = rows = 0
    short = [group for group in groups if group.longest <= turn]
    for group in sorted(short, key=lambda group: (group.longest, len(group.prompt)), reverse=True):
        rows += len(group.rows)
        tokens = tokens + group.size if packed else rows * (batch or [group])[0].longest
        if batch and tokens > budget:
            yield batch, packed
            batch, rows, tokens = [], len(group.rows), group.size if packed else len(group.rows) * group.longest
        batch.append(group)
    if batch:
        yield batch, packed
