"""What a language world measures against: the truth p*, the target in it, and the reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Rows = Sequence[Sequence[int]]
"""Completions as token ids, each ending with its EOS or cut at the world's length."""


class Truth(Protocol):
    """The truth of one pipeline. Completions follow one prompt."""

    prompt: list[int]
    """Token ids of the prompt, BOS included."""
    target_reward: float
    """A completion is target when its reward is at least this."""

    def sample(self, count: int, seed: int) -> list[list[int]]:
        """`count` completions drawn from p*; a function of `seed`."""
        ...

    def training_sample(self, count: int, seed: int) -> list[list[int]]:
        """`count` completions of p* to train on: where p* is a file, of texts that `sample` never draws."""
        ...

    def target_sample(self, count: int, seed: int) -> list[list[int]] | None:
        """`count` completions drawn from p_T; None where only the target part of `sample` is to be had."""
        ...

    def logps(self, rows: Rows) -> Tensor | None:
        """log p*(x), nats, (n,); None where the truth is data and has no likelihood."""
        ...

    def target_logps(self, rows: Rows) -> Tensor | None:
        """log p_T(x), nats, (n,), −∞ off the target; None where it is not known."""
        ...

    def rewards(self, rows: Rows) -> list[float]:
        """The reward of each completion, in [0, 1]."""
        ...
