"""The audit's numbers: of each pair, and over all pairs with intervals. Pure functions of scores; nats throughout.

Symbols: π the candidate reference, y_w chosen and y_l rejected completion of prompt x, Δ what a desirable completion is worth
more than the rest (reward units), β the price of KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from precede import theory
from precede.evaluate import spread
from precede.scoring.logprobs import Score
from precede.stats import Estimate, clopper_pearson, summarise

Array = NDArray[np.float64]
QUANTILE = 0.99
"""A completion is unsupported where its typicality lies beyond this quantile of N(0, 1)."""


def mean(values: Array) -> Estimate:
    """Mean of the finite `values` (n,) with its 95 % interval, Student's t; NaN ends for fewer than three."""
    summary = summarise(np.asarray(values, float)[None])
    low, high = summary.ci95[0]
    return Estimate(float(summary.mean[0]), float(low), float(high), int(summary.seeds[0]))


def ratio(numerators: Array, denominators: Array) -> Estimate:
    """Ratio of sums Σ numerators / Σ denominators, both (n,), over rows with both finite, with its 95 % interval.

    The interval is Student's t of the linearised ratio r + (a − r·b)/mean(b) (the delta method). Denominators are
    counts, at least 0; NaN where they sum to 0.
    """
    given = np.asarray(numerators, float), np.asarray(denominators, float)
    defined = np.isfinite(given[0]) & np.isfinite(given[1])
    above, below = (column[defined] for column in given)
    if not below.sum() > 0:
        return Estimate(np.nan, np.nan, np.nan, len(below))
    whole = float(above.sum() / below.sum())
    linear = mean(whole + (above - whole * below) / below.mean())
    return Estimate(whole, linear.low, linear.high, len(below))


def share(hits: NDArray[np.bool_]) -> Estimate:
    """Share of true values with its 95 % Clopper–Pearson interval, exact where the values are independent."""
    if len(hits) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    return Estimate(float(hits.mean()), *clopper_pearson(int(hits.sum()), len(hits)), len(hits))


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
    """Scores as arrays. Where the model was certain throughout (ΣV = 0), z is 0 for what it writes and ∞ for anything else."""
    columns = [[getattr(score, name) for score in scores] for name in ("tokens", "logp", "entropy", "typicality")]
    tokens, logps, entropies, z = np.asarray(columns, float)
    certain = np.where(-logps > entropies + 1e-6, np.inf, 0.0)
    return Side(tokens, logps, np.where(np.isnan(z), certain, z))


@dataclass(frozen=True)
class Pairs:
    """Every pair's numbers under one model; `gap` is NaN without a teacher."""

    chosen: Side
    rejected: Side
    gap: Array
    """Recall gap log π_teacher(y_w|x) − log π(y_w|x), (pairs,): what distillation lost of the chosen completion."""
    rejected_gap: Array
    """The same of the rejected completion y_l."""

    @property
    def margin(self) -> Array:
        """log π(y_w|x) − log π(y_l|x), (pairs,)."""
        return self.chosen.logps - self.rejected.logps

    @property
    def excess_gap(self) -> Array:
        """What was lost of the chosen beyond what was lost of the rejected at equal length, (pairs,) nats: of the preference.

        g_w − g_l − c·(|y_w| − |y_l|) with c = Σ g_l / Σ |y_l|, the nats per token by which the model is weaker on what is not
        preferred: a model that is weaker by the same nats on every token has lost no preference, whatever the lengths are.
        """
        rate = self.rejected_gap.sum() / self.rejected.tokens.sum()
        return np.asarray(self.gap - self.rejected_gap - rate * (self.chosen.tokens - self.rejected.tokens))

    @property
    def unsupported(self) -> NDArray[np.bool_]:
        """Chosen completions whose typicality lies beyond `QUANTILE` of N(0, 1)."""
        return np.asarray(self.chosen.typicality > stats.norm.ppf(QUANTILE))

    def unreachable(self, reach: float) -> NDArray[np.bool_]:
        """Chosen completions whose recall gap is larger than all that alignment can add."""
        return np.asarray(self.gap > reach)


def pairs(scores: Sequence[Sequence[Score]], teacher: Sequence[Sequence[Score]] | None) -> Pairs:
    """Numbers of pairs from the scores [chosen, rejected] of each, and those of the teacher if there is one."""
    chosen, rejected = (side([row[i] for row in scores]) for i in (0, 1))
    if teacher is None:
        return Pairs(chosen, rejected, np.full(len(scores), np.nan), np.full(len(scores), np.nan))
    logps = np.array([[score.logp for score in row] for row in teacher]).T
    return Pairs(chosen, rejected, logps[0] - chosen.logps, logps[1] - rejected.logps)


def summary(pairs: Pairs, reach: float) -> dict[str, Estimate]:
    """Over all pairs, by the names of `precede.metrics`: means with Student's t, shares with Clopper–Pearson intervals.

    typicality of the chosen and of the rejected; unsupported_share of the chosen, 1 − `QUANTILE` of which is chance;
    ranking_accuracy, the share with log π(y_w|x) > log π(y_l|x), and the same of nats per token; margin, the mean of that
    difference; chosen_logp and rejected_logp per completion and per token (the mean over pairs of each one's); tokens of both;
    chosen_longer_share. With a teacher: recall_gap, per completion and per token, rejected_recall_gap, unreachable_share of
    the chosen whose gap exceeds `reach` = Δ/β nats; and excess_gap (`Pairs.excess_gap`), with lost_preference_share, where that
    exceeds the reach. A raw gap grows with length and with any weakness of the model; the excess is what is lost of the
    preference itself.
    """
    chosen, rejected = pairs.chosen, pairs.rejected
    numbers = {
        "unsupported_share": share(pairs.unsupported),
        "typicality": mean(chosen.typicality),
        "rejected_typicality": mean(rejected.typicality),
        "ranking_accuracy": share(chosen.logps > rejected.logps),
        "ranking_accuracy_per_token": share(chosen.per_token > rejected.per_token),
        "margin": mean(pairs.margin),
        "chosen_logp": mean(chosen.logps),
        "chosen_logp_per_token": mean(chosen.per_token),
        "rejected_logp": mean(rejected.logps),
        "rejected_logp_per_token": mean(rejected.per_token),
        "chosen_tokens": mean(chosen.tokens),
        "rejected_tokens": mean(rejected.tokens),
        "chosen_longer_share": share(chosen.tokens > rejected.tokens),
    }
    if np.isfinite(pairs.gap).any():
        numbers["recall_gap"] = mean(pairs.gap)
        numbers["recall_gap_per_token"] = mean(pairs.gap / chosen.tokens)
        numbers["rejected_recall_gap"] = mean(pairs.rejected_gap)
        numbers["unreachable_share"] = share(pairs.unreachable(reach))
        numbers["excess_gap"] = mean(pairs.excess_gap)
        numbers["lost_preference_share"] = share(pairs.excess_gap > reach)
    return numbers


def unigram_gain(rows: Sequence[Sequence[Sequence[int]]], pairs: Pairs) -> Estimate:
    """What the model knows of the data's completions beyond the frequencies of their own tokens, nats per token.

    `rows` are the token ids [chosen, rejected] of each pair. Mean over pairs of log π less the log-prob by the frequencies in
    all other pairs, over the tokens of both sides; frequencies are interpolated with an even distribution over the ids up to
    the largest one, by as much as tokens are new there (Witten & Bell 1991). At most 0 for a model that writes no such text.
    """
    ids = [np.concatenate([np.asarray(one, int) for one in row]) for row in rows]
    size = 1 + max(int(one.max()) for one in ids)
    counts = np.bincount(np.concatenate(ids), minlength=size).astype(float)
    logps = pairs.chosen.logps + pairs.rejected.logps
    gains = []
    for own, logp in zip(ids, logps, strict=True):
        others = counts - np.bincount(own, minlength=size)
        total, kinds = others.sum(), np.count_nonzero(others)
        frequencies = (others[own] + kinds / size) / (total + kinds) if total else np.full(len(own), 1 / size)
        gains.append((logp - np.log(frequencies).sum()) / len(own))
    return mean(np.array(gains))


@dataclass(frozen=True)
class Sampled:
    """What samples of the model say, `rewards`, `tokens` and `stopped` (prompts, samples); and whether the chosen completion of
    each prompt ends within the length that was sampled, `chosen_stop` (prompts,)."""

    rewards: Array
    tokens: Array
    stopped: NDArray[np.bool_]
    chosen_stop: NDArray[np.bool_]


def sampled_summary(samples: Sampled, target_reward: float, advantage: float, beta: float) -> dict[str, Estimate]:
    """Of the model's own samples, by the names of `precede.metrics`.

    target_mass m, the share with reward ≥ `target_reward`; achievable_mass, the mean over prompts of σ(logit m_x + Δ/β);
    samples_needed for one hit with 95 % probability at the mean m; reward, length, stop_rate;
    prompts_without_hit. Prompts differ in their m_x, by a correlation that is not known and estimated with it
    (`precede.evaluate.spread`); so they do in how often they stop. Zero hits give an upper bound. Δ is one number: for a graded
    reward the tilt is richer than this.
    """
    hits = samples.rewards >= target_reward
    posterior = spread.fit(hits.sum(1), hits.shape[1])
    mass = posterior.mean
    value, low, high = (float(theory.samples_needed(end)) for end in (mass.value, mass.high, mass.low))
    return {
        "target_mass": mass,
        "achievable_mass": posterior.tilted(advantage / beta),
        "samples_needed": Estimate(value, low, high, mass.count),
        "prompts_without_hit": share(np.asarray(~hits.any(1))),
        "reward": mean(samples.rewards.mean(1)),
        "length": mean(samples.tokens.mean(1)),
        "stop_rate": spread.fit(samples.stopped.sum(1), hits.shape[1]).mean,
        "chosen_stop_rate": share(samples.chosen_stop),
    }
