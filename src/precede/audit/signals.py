"""The audit's numbers: of each pair, and over all pairs with intervals. Pure functions of scores; nats throughout.

Symbols: π the candidate reference, y_w chosen and y_l rejected completion of prompt x, Δ what a desirable completion is worth
more than the rest (reward units), β the price of KL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from precede import theory
from precede.lm.logprobs import Score
from precede.stats import clopper_pearson, summarise

Array = NDArray[np.float64]
QUANTILE = 0.99
"""A completion is unsupported where its typicality lies beyond this quantile of N(0, 1)."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where undefined. `count` observations stand behind it."""

    value: float
    low: float
    high: float
    count: int

    def map(self, increasing: Callable[[float], Any]) -> Estimate:
        """The estimate of an increasing function of the number."""
        return Estimate(
            float(increasing(self.value)), float(increasing(self.low)), float(increasing(self.high)), self.count
        )


def mean(values: Array) -> Estimate:
    """Mean of the finite `values` (n,) with its 95 % bootstrap interval."""
    found = summarise(np.asarray(values, float)[None])
    low, high = found.ci95[0]
    return Estimate(float(found.mean[0]), float(low), float(high), int(found.seeds[0]))


def share(hits: NDArray[np.bool_]) -> Estimate:
    """Share of true values with its 95 % Clopper–Pearson interval, exact where the values are independent."""
    count = len(hits)
    if count == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    return Estimate(float(hits.mean()), *clopper_pearson(int(hits.sum()), count), count)


@dataclass(frozen=True)
class Side:
    """Scores of one side of the pairs, chosen or rejected; arrays (pairs,): tokens, nats, and z (`Score.typicality`)."""

    tokens: Array
    logps: Array
    typicality: Array

    @property
    def per_token(self) -> Array:
        return self.logps / self.tokens


def side(scores: Sequence[Score]) -> Side:
    columns = [[getattr(score, name) for score in scores] for name in ("tokens", "logp", "typicality")]
    return Side(*np.asarray(columns, float))


@dataclass(frozen=True)
class Pairs:
    """Every pair's numbers under one model; `gap` is NaN without a teacher."""

    chosen: Side
    rejected: Side
    gap: Array
    """Recall gap log π_teacher(y_w|x) − log π(y_w|x), (pairs,): what distillation lost of the chosen completion."""

    @property
    def unsupported(self) -> NDArray[np.bool_]:
        """Chosen completions whose typicality lies beyond `QUANTILE` of N(0, 1)."""
        found: NDArray[np.bool_] = self.chosen.typicality > stats.norm.ppf(QUANTILE)
        return found

    def unreachable(self, reach: float) -> NDArray[np.bool_]:
        """Chosen completions whose recall gap is larger than all that alignment can add."""
        found: NDArray[np.bool_] = self.gap > reach
        return found


def pairs(scores: Sequence[Sequence[Score]], teacher: Sequence[Sequence[Score]] | None) -> Pairs:
    """Numbers of pairs from the scores [chosen, rejected] of each, and those of the teacher if there is one."""
    chosen, rejected = (side([row[place] for row in scores]) for place in (0, 1))
    gap = np.full(len(scores), np.nan)
    if teacher is not None:
        gap = np.array([row[0].logp for row in teacher]) - chosen.logps
    return Pairs(chosen, rejected, gap)


def summary(found: Pairs, reach: float) -> dict[str, Estimate]:
    """Over all pairs, by name: means with bootstrap, shares with Clopper–Pearson intervals.

    typicality of the chosen and of the rejected; unsupported_share of the chosen, 1 − `QUANTILE` of which is chance;
    ranking_accuracy, the share with log π(y_w|x) > log π(y_l|x), and the same of nats per token; chosen_logp and
    rejected_logp per completion and per token; tokens of both; chosen_longer_share. With a teacher: recall_gap, per
    completion and per token, and unreachable_share of the chosen whose gap exceeds `reach` = Δ/β nats.
    """
    chosen, rejected = found.chosen, found.rejected
    numbers = {
        "unsupported_share": share(found.unsupported),
        "typicality": mean(chosen.typicality),
        "rejected_typicality": mean(rejected.typicality),
        "ranking_accuracy": share(chosen.logps > rejected.logps),
        "ranking_accuracy_per_token": share(chosen.per_token > rejected.per_token),
        "chosen_logp": mean(chosen.logps),
        "chosen_logp_per_token": mean(chosen.per_token),
        "rejected_logp": mean(rejected.logps),
        "rejected_logp_per_token": mean(rejected.per_token),
        "chosen_tokens": mean(chosen.tokens),
        "rejected_tokens": mean(rejected.tokens),
        "chosen_longer_share": share(chosen.tokens > rejected.tokens),
    }
    if np.isfinite(found.gap).any():
        numbers["recall_gap"] = mean(found.gap)
        numbers["recall_gap_per_token"] = mean(found.gap / chosen.tokens)
        numbers["unreachable_share"] = share(found.unreachable(reach))
    return numbers


@dataclass(frozen=True)
class Sampled:
    """What samples of the model say, `rewards`, `tokens` and `stopped` (prompts, samples)."""

    rewards: Array
    tokens: Array
    stopped: NDArray[np.bool_]


def sampled_summary(found: Sampled, target_reward: float, advantage: float, beta: float) -> dict[str, Estimate]:
    """Of the model's own samples, by name.

    target_mass m, the share with reward ≥ `target_reward` (Clopper–Pearson: zero hits give an upper bound); achievable_mass
    σ(logit m + Δ/β); samples_needed for one hit with 95 % probability; sampled_reward, sampled_tokens, stop_rate. Samples of
    one prompt are taken as independent of one another: where prompts differ much in their own target mass, intervals are
    those of the mean over these prompts.
    """
    mass = share((found.rewards >= target_reward).ravel())
    value, low, high = (float(theory.samples_needed(end)) for end in (mass.value, mass.high, mass.low))
    return {
        "target_mass": mass,
        "achievable_mass": mass.map(lambda m: theory.achievable_mass(m, advantage, beta)),
        "samples_needed": Estimate(value, low, high, mass.count),
        "sampled_reward": mean(found.rewards.ravel()),
        "sampled_tokens": mean(found.tokens.ravel()),
        "stop_rate": share(found.stopped.ravel()),
    }
