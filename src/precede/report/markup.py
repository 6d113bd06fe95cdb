"""Pieces of Markdown that no text of a user or of a model can break: tables, numbers, code spans, blocks of code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are Markdown, of which bars and ends of lines cannot end a cell."""
    lines = [heads, ["---"] * len(heads), *rows]
    cells = [[" ".join(cell.split()).replace("|", "&#124;") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def interval(ends: Sequence[float | None] | None) -> str:
    """`0.42 [0.31, 0.53]` of [value, low, high]; – where it is not known."""
    if ends is None or ends[0] is None:
        return "–"
    value, low, high = (None if end is None else number(end) for end in ends)
    return str(value) if low is None or high is None else f"{value} [{low}, {high}]"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def block(text: str, language: str) -> str:
    """A block of code that nothing in it can end."""
    fence = "`" * max(3, _ticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def code(value: Any) -> str:
    """A value as a code span, whatever it holds: within more backticks than it has in a row."""
    if value is None:
        return "none"
    text = " ".join(str(value).split())
    fence = "`" * (_ticks(text) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _ticks(text: str) -> int:
    """The longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def plain(value: str) -> str:
    """A text of which nothing is read as Markdown or HTML; brackets of intervals stay, links do not."""
    escaped = re.sub(r"([\\`*_~|])", r"\\\1", " ".join(value.split()))
    return escaped.replace("](", "]\\(").replace("&", "&amp;").replace("<", "&lt;")
