"""The order of stages: `align > distill`, `distill > align`, or any longer sequence of a recipe's stages."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

ALIGN_THEN_DISTILL = "align > distill"


@dataclass(frozen=True)
class Order:
    """A sequence of stage names; its text is the names joined by ` > `."""

    stages: tuple[str, ...]

    def __str__(self) -> str:
        return " > ".join(self.stages)


def parse_order(text: str, known: Collection[str]) -> Order:
    """Read `a > b > c`. Raises ValueError where a name is missing, or is not one of the stages in `known`."""
    names = tuple(part.strip() for part in text.split(">"))
    if not all(names):
        raise ValueError(f"the order '{text}' has an empty place; write stage names with '>' between them")
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name):
            raise ValueError(f"the order '{text}' is not a sequence of stage names with '>' between them")
        if name not in known:
            raise ValueError(
                f"the order '{text}' names an unknown stage '{name}'; the stages are {', '.join(sorted(known))}"
            )
    return Order(names)
