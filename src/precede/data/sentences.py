"""What sentences about wrong input are made of."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown word: the closest known one, or all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""


def kind_of(value: Any) -> str:
    """What a YAML value is, in words."""
    if value is None:
        return "nothing"
    names = {dict: "a mapping", list: "a list", str: "a text", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def bound(value: float) -> str:
    """An end of a range."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, `printable`, with the next where it ends with a colon, or the error's kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return printable(" ".join(lines[: 2 if lines[0].endswith(":") else 1]))


def printable(text: str) -> str:
    """A text whose characters that would move or colour a terminal, or that it could choke on, are replaced; lines stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)
