"""The one examiner of language models: every number of a model, by sampling it, on prompts and pairs kept from training.

Values are over all samples (reward, target mass, precision, entropy), over samples of the truth (recall) and over given pairs;
their noise is that of those samples. What stands behind them is kept per prompt, so that two models can be compared prompt by
prompt. Definitions and units of all names: `precede.metrics`, docs/theory.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from precede.data.preferences import Preference
from precede.evaluate import signals, spread
from precede.metrics import DECODED
from precede.rewards import Reward
from precede.sampling import batch_size, eos_ids, sample_prompts, texts
from precede.scoring.logprobs import Score, score
from precede.stats import Estimate

Metrics = dict[str, float | None]
Rows = Sequence[Sequence[int]]
"""Completions as token ids, each ending with its EOS or cut at the length that is sampled."""
SHOWN = 100
"""Completions of one prompt that are kept for people to read; of many prompts all are."""
PAIR_COLUMNS = ("tokens", "logp", "entropy", "varentropy")


@dataclass(frozen=True)
class TruthRows:
    """What models are measured against: for each prompt completions drawn from p*, and those drawn from p_T.

    `logps` and `target_logps` give log p*(x) and log p_T(x) of rows that follow prompts (−∞ off the target), or None where they
    are not known.
    """

    truth: Sequence[Rows] = ()
    target: Sequence[Rows] = ()
    logps: Callable[[Rows, Rows], Tensor | None] = lambda prompts, rows: None
    target_logps: Callable[[Rows], Tensor | None] = lambda rows: None


@dataclass(frozen=True)
class Examiner:
    """What a measurement needs beside the model."""

    rows: Sequence[Preference]
    """Prompts, with given pairs where there are any, as the model's tokenizer writes them."""
    tokenizer: Any
    truth: TruthRows
    reward: Reward | None
    target_reward: float | None
    """A completion is target when its reward is at least this."""
    samples: int
    """Completions of each prompt."""
    max_new_tokens: int
    sample_batch: int
    seed: int
    progress: Callable[[int, int], None] = field(default=lambda done, total: None)

    def examine(self, model: Any, reference: Any | None = None, temperature: float | None = None) -> Findings:
        """Everything that is measured of `model`.

        `decoded_…` are the numbers of the model sampled at τ = `temperature`, that is of p_τ with per-token softmax(logits/τ).
        kl_to_reference is KL(p ‖ π_ref). None where there is nothing to average, or the truth has no likelihood.
        """
        firsts: dict[str, int] = {}
        prompts = [firsts.setdefault(row.group, row.row) for row in self.rows]
        findings = Findings({}, {"row": [row.row for row in self.rows], "prompt": prompts}, {})
        decodings = {"": 1.0} | ({DECODED: temperature} if temperature not in (None, 1.0) else {})
        for done, (prefix, tau) in enumerate(decodings.items()):
            self.progress(done, len(decodings) + 1)
            self._samples(findings, model, prefix, tau, reference)
        skipped = ("kl_to_reference", "kl_to_reference_per_token")
        plain = {name: value for name, value in findings.metrics.items() if name not in skipped and DECODED not in name}
        if temperature is None:
            findings.metrics |= dict.fromkeys(DECODED + name for name in plain)
        elif temperature == 1.0:  # the same samples
            findings.metrics |= {DECODED + name: value for name, value in plain.items()}
        self.progress(len(decodings), len(decodings) + 1)
        if all(row.chosen and row.rejected for row in self.rows):
            self._pairs(findings, model)
        return findings

    def _samples(self, findings: Findings, model: Any, prefix: str, tau: float, reference: Any | None) -> None:
        sampled = sample_rows(
            model,
            self.tokenizer,
            self.rows,
            self.samples,
            temperature=tau,
            max_new_tokens=self.max_new_tokens,
            sample_batch=self.sample_batch,
            seed=self.seed,
            reward=self.reward,
        )
        prompts, drawn, rewards = sampled.prompts, sampled.drawn, sampled.rewards
        logps = logps_of(model, prompts, drawn, tau)
        columns = {"length": _column([len(row) for row in drawn]), "entropy": -logps}
        columns["stop_rate"] = _column(sampled.stopped)
        truth, target = self.truth.logps(prompts, drawn), self.truth.target_logps(drawn)
        metrics: Metrics = {}
        if rewards is not None:
            columns["reward"] = _column(rewards)
            metrics["reward"] = sum(rewards) / len(rewards)
        if rewards is not None and self.target_reward is not None:
            hits = columns["reward"] >= self.target_reward
            drawn_truth, drawn_target = (sum(map(len, part)) for part in (self.truth.truth, self.truth.target))
            if target is None and truth is not None and drawn_target:
                # log p_T = log p* − log m* on the target
                target = (truth - math.log(drawn_target / drawn_truth)).masked_fill(~hits, -math.inf)
            columns["target_mass"] = hits.double()
            count, good = len(hits), int(hits.sum())
            metrics |= {"target_mass": good / count, "target_log_odds": math.log((good + 0.5) / (count - good + 0.5))}
            metrics |= _mean("target_precision", target, drawn)
            of_target = [row for row, hit in zip(drawn, hits.tolist(), strict=True) if hit]
            metrics |= _mean("target_precision_on_target", None if target is None else target[hits], of_target)
        metrics |= _mean("precision", truth, drawn)
        metrics |= self._recall(findings, model, prefix, tau)
        metrics |= _mean("entropy", -logps, drawn)
        if truth is not None:
            columns["kl_to_truth"] = logps - truth
        metrics |= _mean("kl_to_truth", columns.get("kl_to_truth"), drawn)
        metrics |= {"distinct_1": distinct(drawn, 1), "distinct_2": distinct(drawn, 2)}
        metrics |= {"length": float(columns["length"].mean()), "stop_rate": float(columns["stop_rate"].mean())}
        if not prefix:
            if reference is not None:
                columns["kl_to_reference"] = logps - logps_of(reference, prompts, drawn, 1.0)
            metrics |= _mean("kl_to_reference", columns.get("kl_to_reference"), drawn)
        for name, values in columns.items():
            findings.per_prompt[prefix + name] = values.reshape(len(self.rows), -1).mean(1).tolist()
        findings.metrics |= {prefix + name: value for name, value in metrics.items()}
        shown = range(len(drawn) if len(self.rows) > 1 else min(SHOWN, len(drawn)))
        findings.completions[prefix + "completions"] = [
            {
                "row": self.rows[n // self.samples].row,
                "prompt": self.rows[n // self.samples].prompt_text,
                "text": sampled.written[n],
                "reward": None if rewards is None else rewards[n],
            }
            for n in shown
        ]

    def _recall(self, findings: Findings, model: Any, prefix: str, tau: float) -> Metrics:
        metrics: Metrics = {}
        for name, part in (("recall", self.truth.truth), ("target_recall", self.truth.target)):
            flat = [row for rows in part for row in rows]
            prompts = [row.prompt for row, rows in zip(self.rows, part, strict=True) for _ in rows] if part else []
            values = logps_of(model, prompts, flat, tau) if flat else None
            metrics |= _mean(name, values, flat)
            if name == "recall" and values is not None:
                sizes = [len(rows) for rows in part]
                for column, each in ((name, values), ("recall_tokens", _column([len(row) for row in flat]))):
                    findings.per_prompt[prefix + column] = [float(one.mean()) for one in torch.split(each, sizes)]
        return metrics

    def _pairs(self, findings: Findings, model: Any) -> None:
        scores = score_pairs(model, self.rows)
        for i, side in enumerate(("chosen", "rejected")):
            for column in PAIR_COLUMNS:
                findings.per_prompt[f"{side}_{column}"] = [float(getattr(both[i], column)) for both in scores]
        for name, number in signals.summary(signals.pairs(scores, None), math.inf).items():
            findings.metrics[name] = number.value if math.isfinite(number.value) else None


@dataclass
class Findings:
    """`metrics` by name; `per_prompt` columns with an entry for each row that is measured on, `prompt` being the number of the
    first row of the same question; completions that people may read, by decoding."""

    metrics: Metrics
    per_prompt: dict[str, list[Any]]
    completions: dict[str, list[dict[str, Any]]]


def estimates(per_prompt: Mapping[str, Sequence[float]], samples: int) -> dict[str, Estimate]:
    """The numbers of a model with 95 % intervals over prompts, from what was kept of each: see `Findings.per_prompt`.

    Target mass and stop rate are shares of `samples` completions of each prompt (`precede.evaluate.spread`).
    """
    columns = {name: np.array(values, float) for name, values in per_prompt.items()}
    numbers: dict[str, Estimate] = {}
    if "chosen_logp" in columns:
        numbers |= signals.summary(signals.pairs(pair_scores(per_prompt), None), math.inf)
    for name in ("reward", "entropy", "length", "recall", "kl_to_truth", "kl_to_reference"):
        if name in columns:
            numbers[name] = signals.mean(columns[name])
    for name in ("target_mass", "stop_rate"):
        if name in columns:
            numbers[name] = spread.fit(np.round(columns[name] * samples).astype(int), samples).mean
    for name, tokens in (("entropy", "length"), ("recall", "recall_tokens"), ("kl_to_truth", "length")):
        if name in columns:
            numbers[f"{name}_per_token"] = signals.ratio(columns[name], columns[tokens])
    return numbers


def pair_scores(per_prompt: Mapping[str, Sequence[float]]) -> list[list[Score]]:
    """The scores of chosen and rejected of every pair, from what was kept per prompt."""
    sides = [[per_prompt[f"{side}_{column}"] for column in PAIR_COLUMNS] for side in ("chosen", "rejected")]
    return [
        [Score(int(columns[0][n]), *(float(column[n]) for column in columns[1:])) for columns in sides]
        for n in range(len(sides[0][0]))
    ]


@dataclass(frozen=True)
class Samples:
    """Completions of rows, `times` of each, one after the other: ids, texts, rewards if there is one, whether each ended."""

    prompts: Rows
    drawn: Rows
    written: list[str]
    rewards: list[float] | None
    stopped: list[bool]


def sample_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Preference],
    times: int,
    *,
    temperature: float = 1.0,
    max_new_tokens: int,
    sample_batch: int,
    seed: int,
    reward: Reward | None,
    progress: Callable[[int], None] = lambda count: None,
) -> Samples:
    """`times` completions of the prompt of each row, at most `sample_batch` at once, and their rewards."""
    asked = [row for row in rows for _ in range(times)]
    prompts = [row.prompt for row in asked]
    drawn = sample_prompts(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size(max(map(len, prompts)) + max_new_tokens, sample_batch),
        progress=progress,
    )
    written = [texts(tokenizer, prompt, [ids])[0] for prompt, ids in zip(prompts, drawn, strict=True)]
    ends = eos_ids(model.generation_config, tokenizer)
    rewards = None if reward is None else rewards_of(reward, asked, written, drawn)
    return Samples(prompts, drawn, written, rewards, [row[-1] in ends for row in drawn])


def rewards_of(
    reward: Reward, rows: Sequence[Preference], written: Sequence[str], ids: Rows | None = None
) -> list[float]:
    """The reward of one completion of each row, with what the data say about the row."""
    return reward([row.turns or row.prompt_text for row in rows], written, ids, [row.columns for row in rows])


def score_pairs(
    model: Any, rows: Sequence[Preference], progress: Callable[[int], None] | None = None
) -> list[list[Score]]:
    """Scores of the chosen and of the rejected completion of each row."""
    return score(model, [row.prompt for row in rows], [[row.chosen, row.rejected] for row in rows], progress=progress)


def logps_of(model: Any, prompts: Rows, rows: Rows, temperature: float = 1.0) -> Tensor:
    """log p(x) of each row behind its prompt, nats, float64, at a temperature."""
    scores = score(model, prompts, [[row] for row in rows], temperature=temperature)
    return _column([one.logp for (one,) in scores])


def distinct(rows: Rows, n: int) -> float | None:
    """Distinct n-grams over all n-grams of the rows (Li et al. 2016); None where no row is long enough."""
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _mean(name: str, values: Tensor | None, rows: Rows) -> Metrics:
    """Mean of the rows' nats per completion and per token; None where there are none, or one is infinite."""
    total = float(values.double().sum()) if values is not None and len(rows) else math.nan
    if not math.isfinite(total):
        return {name: None, f"{name}_per_token": None}
    return {name: total / len(rows), f"{name}_per_token": total / sum(map(len, rows))}


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def retained(start: Sequence[float], aligned: Sequence[float], final: Sequence[float], seed: int = 0) -> Estimate:
    """Share of alignment's gain that a later stage kept: (final − start)/(aligned − start), of means over held-out rows.

    The three are values of the same rows (n,). Interval: percentile bootstrap over rows, 2,000 resamples, 95 %. NaN where the
    gain is not surely above 0 (bootstrap interval of 99.8 %): a share of nothing means nothing.
    """
    values = np.array([start, aligned, final], float)
    count = values.shape[1]
    means = values[:, np.random.default_rng(seed).integers(count, size=(2000, count))].mean(-1)
    gain = means[1] - means[0]
    if count < 2 or np.percentile(gain, 0.1) <= 0:
        return Estimate(np.nan, np.nan, np.nan, count)
    low, high = np.percentile((means[2] - means[0]) / gain, (2.5, 97.5))
    whole = values.mean(1)
    return Estimate(float((whole[2] - whole[0]) / (whole[1] - whole[0])), float(low), float(high), count)
