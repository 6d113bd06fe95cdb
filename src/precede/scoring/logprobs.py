"""Log-probabilities of completions. The only place that shifts labels and masks padding.

Ids are scored, never text: the prompt's ids (with BOS where the tokenizer gave one) are joined with the completion's,
so nothing is tokenised twice. Oracle in the tests: a float64 loop over one row at a time without padding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from precede.scoring.heads import (
    Head,
    body_of,
    evaluating,
    head_of,
    moments,
    position_limit,
    tokens_at_once,
    turning_length,
)
from precede.scoring.packing import Segment, packed_attention


@dataclass(frozen=True)
class Score:
    """One completion under one prompt: sums over its tokens, nats. Without tokens all are 0.

    With H_t and V_t the entropy and the varentropy (variance of −log π) of the model's distribution at step t, `entropy` is
    Σ H_t and `varentropy` Σ V_t.
    """

    tokens: int
    logp: float
    entropy: float
    varentropy: float

    @property
    def typicality(self) -> float:
        """z = Σ_t (−log π(y_t) − H_t) / √(Σ_t V_t); NaN where Σ V_t is 0.

        If y was drawn from π at temperature 1, the summands are martingale differences and z is close to N(0, 1): z ≫ 0 says
        that π would hardly write y. The analytic form of Fast-DetectGPT's conditional probability curvature (Bao et al. 2024,
        arXiv 2310.05130), its sign turned.
        """
        return (-self.logp - self.entropy) / math.sqrt(self.varentropy) if self.varentropy > 0 else math.nan


def score(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    temperature: float = 1.0,
    tokens_per_batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Score]]:
    """Log-probability, entropy and varentropy of `completions[i]` (any number) under `prompts[i]`, in the order given.

    They are those of softmax(logits/τ), τ being `temperature`.
    A completion's EOS is scored where it is among its ids. A prompt that several completions share is computed once, and
    many prompts stand in one row without padding; where a model cannot do that (`scoring_path`), rows are padded on the
    right. `tokens_per_batch` bounds the tokens of one forward pass (a longer prompt with its completions is one pass), and
    logits exist for some thousand tokens of the vocabulary at a time. `progress` hears how many prompts are done.

    The model should be fp32. Raises ValueError for a prompt without tokens, and for a row that is longer than a model with
    a table of positions can read. Oracle in the tests: a float64 loop over one row at a time.
    """
    assert len(prompts) == len(completions)
    progress = progress or (lambda count: None)
    _check_rows(model, prompts, completions)
    first = [0, *accumulate(map(len, completions))]
    groups = [
        Group(prompt, [(row, start + index) for index, row in enumerate(rows) if len(row)])
        for start, prompt, rows in zip(first, prompts, completions, strict=False)
    ]
    totals = torch.zeros(3, first[-1], dtype=torch.float64)
    with evaluating(model):
        way = _examine(model)
        budget = tokens_per_batch or tokens_at_once(model, whole=not way.body)
        if idle := sum(not group.rows for group in groups):
            progress(idle)
        used = [group for group in groups if group.rows]
        turn = turning_length(model)
        if any(group.longest > turn for group in used):
            model(input_ids=torch.tensor([[0]], device=model.device))  # forgets the angles of a longer row of before
        for batch, packed in batches(used, way.packed, budget, turn):
            states, labels, owners = _states(model, way, batch, packed)
            head = head_of(model, way.scale) if way.body else Head(None, states.shape[-1])
            values = moments(replace(head, temperature=temperature), states, labels.to(states.device))
            totals.index_add_(1, owners, values.cpu().double())
            progress(sum(group.done for group in batch))
    rows = [row for group in completions for row in group]
    scores = [Score(len(row), *sums) for row, sums in zip(rows, totals.T.tolist(), strict=True)]
    return [scores[begin:end] for begin, end in pairwise(first)]


def scoring_path(model: Any) -> str:
    """How `score` runs this model: `packed`, or `padded` where a self-check found that packing changes its numbers.

    The check runs once per model, on short random rows: the packed path against the model's own forward, a row at a time.
    """
    with evaluating(model):
        return "packed" if _examine(model).packed else "padded"


@dataclass(frozen=True)
class _Way:
    """How a model is run: `body` and head apart, or whole; packed or padded."""

    body: bool = False
    scale: float = 1.0
    packed: bool = False


_ways: WeakKeyDictionary[Any, tuple[Any, _Way]] = WeakKeyDictionary()


def _states(model: Any, way: _Way, groups: list[Group], packed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What predicts each completion token, its id and its result: (n, size), (n,), (n,).

    States of the body, or logits where the model is run whole.
    """
    ids, given, positions, attention = _packed(model, groups) if packed else _padded(model, groups)
    run = body_of(model) if way.body else model
    with attention:
        output = run(input_ids=ids, use_cache=False, **given)
    values = output.last_hidden_state if way.body else output.logits
    assert values.shape[:2] == ids.shape
    labels = [token for group in groups for row, _ in group.rows for token in row]
    owners = [owner for group in groups for row, owner in group.rows for _ in row]
    rows = values.flatten(0, 1).index_select(0, torch.tensor(positions, device=values.device))
    return rows, torch.tensor(labels), torch.tensor(owners)


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


_Input = tuple[Tensor, dict[str, Tensor], list[int], Any]
"""Ids, what goes with them, indices of what predicts the completions' tokens, and a context to run in."""


def _packed(model: Any, groups: list[Group]) -> _Input:
    """One row: prompt and first completion as they follow each other, then the further completions.

    A completion's last token is not fed: nothing that follows it is scored.
    """
    ids: list[int] = []
    positions: list[int] = []
    predicting: list[int] = []
    segments: list[Segment] = []
    for group in groups:
        start, before = len(ids), len(group.prompt)
        ids += group.prompt
        positions += range(before)
        for index, (row, _) in enumerate(group.rows):
            begin = len(ids)
            ids += row[:-1]
            positions += range(before, before + len(row) - 1)
            predicting += [start + before - 1, *range(begin, len(ids))]
            segments.append(Segment(begin, len(ids), start, before) if index else Segment(start, len(ids)))
    row_ids = torch.tensor([ids], device=model.device)
    given = {"attention_mask": torch.ones_like(row_ids), "position_ids": torch.tensor([positions], device=model.device)}
    return row_ids, given, predicting, packed_attention(model, segments)


def _padded(model: Any, groups: list[Group]) -> _Input:
    """A row for each completion, padded on the right, behind every token that is scored."""
    rows = [[*group.prompt, *row] for group in groups for row, _ in group.rows]
    starts = [len(group.prompt) - 1 for group in groups for _ in group.rows]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    predicting = [
        index * width + position
        for index, (row, start) in enumerate(zip(rows, starts, strict=True))
        for position in range(start, len(row) - 1)
    ]
    return ids, {"attention_mask": mask}, predicting, nullcontext()


def _examine(model: Any) -> _Way:
    """How this model is run, found once: the fastest way that agrees with its own forward on short random rows."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    state = (model.device, None if weight is None else weight.shape)
    if model not in _ways or _ways[model][0] != state:
        _ways[model] = (state, _find_way(model))
    return _ways[model][1]


def _find_way(model: Any) -> _Way:
    draw = torch.Generator().manual_seed(0)
    count = (len(model.get_input_embeddings().weight) + 1) // 2  # tokens that stand for images and the like come last

    def tokens(length: int) -> list[int]:
        return torch.randint(count, (length,), generator=draw).tolist()

    shapes = ((5, (7, 4, 9)), (1, (6, 1)), (8, (3,)))
    groups = [Group(tokens(before), [(tokens(length), 0) for length in after]) for before, after in shapes]
    alone = [Group(group.prompt, [row]) for group in groups for row in group.rows]
    truth = torch.cat([_states(model, _Way(), [row], False)[0] for row in alone])
    way = _Way()
    try:
        raw = _logits(model, _Way(body=True), groups, False)
        scale = 1.0 if head_of(model).cap else float((raw * truth).sum() / raw.square().sum())
        scale = 1.0 if abs(scale - 1) < 1e-5 else scale
        if _agree(scale * raw, truth):
            way = _Way(True, scale)
            if _agree(_logits(model, packed := _Way(True, scale, True), groups, True), truth):
                way = packed
    except Exception:  # whatever a model of another kind raises, it can be run in the way found so far
        pass
    return way


def _logits(model: Any, way: _Way, groups: list[Group], packed: bool) -> Tensor:
    states = _states(model, way, groups, packed)[0]
    head = head_of(model, way.scale)
    return head.logits(states, 0, head.width, torch.empty(len(states), head.width, device=states.device))


def _agree(logits: Tensor, truth: Tensor) -> bool:
    """Whether log-probabilities, (n, vocabulary), agree to 1e-4 nats and to 3e-4 of their own spread."""
    if logits.shape != truth.shape:
        return False
    logps, truth = (values.cpu().double().log_softmax(-1) for values in (logits, truth))
    gap = (logps - truth).abs()
    return bool((gap.mean(-1) <= 1e-4).all() and (gap.amax(-1) <= 3e-4 * truth.std(-1)).all())


def _check_rows(model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> None:
    limit = position_limit(model)
    for index, (prompt, rows) in enumerate(zip(prompts, completions, strict=True)):
        if not len(prompt):
            raise ValueError(f"row {index}: its prompt has no tokens; give it one at least, such as the BOS")
        length = len(prompt) + max(map(len, rows), default=0)
        if length > limit:
            raise ValueError(
                f"row {index}: it has {length} tokens, and the model has positions for {limit}; shorten it"
            )
