"""What is measured of a model on prompts and pairs that were kept from training, before and after each stage of a build."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precede.data.preferences import Preference
from precede.evaluate import signals
from precede.evaluate.signals import Estimate
from precede.models.load import load, pick_device
from precede.rewards import PairReward
from precede.sampling import eos_ids, sample_prompts, texts
from precede.scoring.logprobs import Score, score

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """What the models are measured on: how many samples of each prompt, of what length, judged by what."""

    samples: int
    max_new_tokens: int
    seed: int
    reward: PairReward | None
    target_reward: float | None
    device: str


@dataclass(frozen=True)
class Findings:
    """`numbers` by name; by held-out pair the margin log π(chosen) − log π(rejected) and, with a reward, that of its samples;
    the samples as texts and token ids."""

    numbers: dict[str, Estimate]
    margins: list[float]
    rewards: list[float] | None
    samples: list[list[list[int]]]
    written: list[list[str]]


def examine(
    source: str,
    rows: Sequence[Preference],
    held: HeldOut,
    *,
    start: str | None = None,
    start_samples: Sequence[Sequence[Sequence[int]]] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Measure the model at `source` (fp32) on held-out `rows`, as its tokenizer writes them.

    Names are those of `precede.metrics`. Of the pairs: chosen_logp and rejected_logp, per completion and per token, absolute;
    ranking_accuracy, margin. Of the model's own samples, `held.samples` of each prompt at temperature 1: reward and
    target_mass where there is a reward, entropy (−E log π, per completion and per token), length, stop_rate. The truth is
    `start`, the model that the build began with: kl_to_truth = E_π[log π − log π_start] if its tokenizer is the same, and
    recall = E log π over `start_samples[i]`, completions of row i that it sampled: what this model still has of it (per
    completion and per token). Nats; means, and ratios of sums where samples are counted per token, with bootstrap intervals
    over rows, shares with Clopper–Pearson ones.
    """
    device = pick_device(held.device)
    model, tokenizer = load(source, device)
    total = len(rows) * (2 + held.samples)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    prompts = [row.prompt for row in rows]
    others: list[list[Any]] = [list(found) for found in start_samples or [[] for _ in rows]]
    candidates = [[row.chosen, row.rejected, *more] for row, more in zip(rows, others, strict=True)]
    scores = score(model, prompts, candidates, progress=advance)
    pairs = signals.pairs([found[:2] for found in scores], None)
    asked = [row for row in rows for _ in range(held.samples)]
    drawn = sample_prompts(
        model,
        tokenizer,
        [row.prompt for row in asked],
        max_new_tokens=held.max_new_tokens,
        seed=held.seed,
        progress=advance,
    )
    samples = [drawn[place * held.samples : (place + 1) * held.samples] for place in range(len(rows))]
    own = score(model, prompts, samples, progress=advance)
    ends = eos_ids(model, tokenizer)
    written = [texts(tokenizer, row.prompt, found) for row, found in zip(rows, samples, strict=True)]
    numbers = signals.summary(pairs, float("inf"))
    numbers |= {
        "entropy": signals.mean(-_logps(own)),
        "entropy_per_token": signals.ratio(-_logps(own), _tokens(own)),
        "length": signals.mean(_tokens(own)),
        "stop_rate": signals.share(np.array([ids[-1] in ends for row in samples for ids in row])),
    }
    if start_samples is not None:
        recalled = [row[2:] for row in scores]
        numbers["recall"] = signals.mean(_logps(recalled))
        numbers["recall_per_token"] = signals.ratio(_logps(recalled), _tokens(recalled))
    del model
    if start is not None:
        above = score(load(start, device)[0], prompts, samples)
        numbers["kl_to_truth"] = signals.mean(_logps(own) - _logps(above))
        numbers["kl_to_truth_per_token"] = signals.ratio(_logps(own) - _logps(above), _tokens(own))
    rewards: Array | None = None
    if held.reward is not None:
        flat = held.reward([row.turns or row.prompt_text for row in asked], [text for row in written for text in row])
        rewards = np.array(flat).reshape(len(rows), held.samples)
        numbers["reward"] = signals.mean(rewards.mean(1))
        if held.target_reward is not None:
            numbers["target_mass"] = signals.mean((rewards >= held.target_reward).mean(1))
    return Findings(
        numbers,
        pairs.margin.tolist(),
        None if rewards is None else rewards.mean(1).tolist(),
        samples,
        written,
    )


def _logps(scores: Sequence[Sequence[Score]]) -> Array:
    """Mean nats of each row's completions, (rows,)."""
    return np.array([np.mean([one.logp for one in row]) for row in scores])


def _tokens(scores: Sequence[Sequence[Score]]) -> Array:
    """Mean tokens of each row's completions, (rows,)."""
    return np.array([np.mean([one.tokens for one in row]) for row in scores])


def retained(start: Sequence[float], aligned: Sequence[float], final: Sequence[float], seed: int = 0) -> Estimate:
    """Share of alignment's gain that a later stage kept: (final − start)/(aligned − start), of means over held-out rows.

    The three are values of the same rows (n,). Interval: percentile bootstrap over rows, 2,000 resamples, 95 %. NaN where the
    gain is not surely above 0 (bootstrap interval of 99.8 %): a share of nothing means nothing.
    """
    values = np.array([start, aligned, final], float)
    count = values.shape[1]
    places = np.random.default_rng(seed).integers(count, size=(2000, count))
    means = values[:, places].mean(-1)
    gain = means[1] - means[0]
    if count < 2 or np.percentile(gain, 0.1) <= 0:
        return Estimate(np.nan, np.nan, np.nan, count)
    found = (means[2] - means[0]) / gain
    whole = values.mean(1)
    ends = np.percentile(found, (2.5, 97.5))
    return Estimate(float((whole[2] - whole[0]) / (whole[1] - whole[0])), float(ends[0]), float(ends[1]), count)
