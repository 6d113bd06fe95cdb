"""A model under the audit: its scores of the pairs, and what it samples for a reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from precede.data.preferences import Preference
from precede.evaluate.examiner import rewards_of, sample_rows, score_pairs
from precede.evaluate.signals import Sampled
from precede.models.load import load, read_config
from precede.rewards import Reward
from precede.scoring.logprobs import Score, scoring_path

Progress = Callable[[str, int, int], None]
"""Hears what is done: the model's name, rows finished of it, rows in all."""
SAMPLED_AT_ONCE = 64


@dataclass(frozen=True)
class Goal:
    """The reward, what counts as desirable, and how the models are sampled for it."""

    reward: Reward
    target_reward: float
    samples: int
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Measured:
    rows: list[Preference]
    scores: list[list[Score]]
    sampled: Sampled | None
    path: str
    """How it was scored: `packed` or `padded` (`precede.scoring.logprobs.scoring_path`)."""


def check_room(rows: Mapping[str, Sequence[Preference]], goal: Goal) -> None:
    """Raise ValueError where a model's context does not hold a prompt and the completion that is to be sampled."""
    for name, own in rows.items():
        limit = longest(name)
        row = max(own, key=lambda row: len(row.prompt))
        if limit is not None and len(row.prompt) + goal.max_new_tokens > limit:
            raise ValueError(
                f"the prompt of row {row.row} has {len(row.prompt)} tokens, which leaves no room for {goal.max_new_tokens} "
                f"more in the {limit} that {name} reads; lower --max-new-tokens, or leave the row out"
            )


def threshold_and_advantage(
    reward: Reward, rows: Sequence[Preference], target_reward: float | None
) -> tuple[float, float]:
    """The reward from which a completion is desirable, and Δ: what the desirable of the data are worth more than the rest."""
    chosen, rejected = (
        np.array(rewards_of(reward, rows, side))
        for side in ([row.chosen_text for row in rows], [row.rejected_text for row in rows])
    )
    every = np.concatenate([chosen, rejected])
    threshold = float(np.median(chosen)) if target_reward is None else target_reward
    good = every >= threshold
    if good.all() or not good.any():
        many = "every" if good.all() else "no"
        raise ValueError(
            f"{many} completion of the data has a reward of at least {threshold:g}, so nothing tells the desirable from the "
            f"rest (rewards from {every.min():g} to {every.max():g}); give --target-reward, or in a recipe world.target_reward"
        )
    return threshold, float(every[good].mean() - every[~good].mean())


def measure(name: str, rows: list[Preference], goal: Goal | None, device: Any, progress: Progress) -> Measured:
    """Load the model, score the pairs, sample for the goal. Raises ValueError where its scores are not finite."""
    model, tokenizer = load(name, device)
    largest = max(max(ids) for row in rows for ids in (row.prompt, row.chosen, row.rejected))
    if largest >= len(model.get_input_embeddings().weight):
        raise ValueError(f"the tokenizer of {name} has the token {largest}, for which its model has no embedding")
    total, done = len(rows) * (1 if goal is None else 1 + goal.samples), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(name, done, total)

    advance(0)
    scores = score_pairs(model, rows, advance)
    for row, both in zip(rows, scores, strict=True):
        if not all(math.isfinite(one.logp + one.entropy + one.varentropy) for one in both):
            raise ValueError(
                f"{name} gives scores that are not finite, first for row {row.row}; are its weights damaged?"
            )
    sampled = None
    if goal is not None:
        found = sample_rows(
            model,
            tokenizer,
            rows,
            goal.samples,
            max_new_tokens=goal.max_new_tokens,
            sample_batch=SAMPLED_AT_ONCE,
            seed=goal.seed,
            reward=goal.reward,
            progress=advance,
        )
        shape, lengths = (len(rows), goal.samples), [float(len(ids)) for ids in found.drawn]
        sampled = Sampled(*(np.array(one).reshape(shape) for one in (found.rewards, lengths, found.stopped)))
    return Measured(rows, scores, sampled, scoring_path(model))


def longest(model: str) -> int | None:
    """Tokens that the model reads at most, by its configuration; None where it does not say."""
    found: int | None = getattr(read_config(model), "max_position_embeddings", None)
    return found
