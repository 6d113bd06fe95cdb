"""Whether a built model can be shipped, by numbers on held-out rows and the rules below (docs/build.md lists them).

It is `broken` where it surely writes what the model that the build began with would not, or surely stops less than half as
often; else `better` or `worse` than that model, where the interval of the paired difference says so, or `unsure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from precede.evaluate import signals, spread
from precede.evaluate.signals import Array
from precede.evaluate.verdict import FEW_PAIRS
from precede.stats import Estimate, summarise

SURPRISE = 1.0
"""Nats per token by which a model's samples may be less likely under the first model than that model's own."""
LESS = 0.5
"""Share of the first model's stop rate below which a stop rate is that of another kind of text."""

Columns = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Stopping:
    """Of `count` samples so many `stopped` by themselves; the share with its 95 % interval (`precede.evaluate.spread`)."""

    stopped: int
    count: int
    rate: Estimate


@dataclass(frozen=True)
class Shipping:
    """The verdict and the numbers that it rests on; None where they are not known.

    `first`, `last` and `difference` (last − first, [value, low, high]) are means of `metric` over `count` questions, each the
    mean over its rows; `surprise` is nats per token, [value, low, high]; `stops` are samples that stopped, and all samples.
    """

    level: Literal["broken", "better", "worse", "unsure"]
    broken: list[Literal["surprise", "stops"]]
    metric: str | None
    first: float | None
    last: float | None
    difference: list[float | None]
    count: int
    surprise: list[float | None]
    kl: float | None
    stops: list[int]
    stops_first: list[int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(first: Columns, last: Columns, samples: int, reach: float) -> Shipping:
    """The verdict on the last model of a build from what was kept of it and of the first one per row (`Findings.per_prompt`).

    `samples` are completions of each row; `reach` is Δ/β in nats, summed over the alignments: what these may spend.
    """
    surprise = surprise_of(first, last, reach)
    stops = [stopping(columns["stop_rate"], samples) for columns in (first, last)]
    broken: list[Literal["surprise", "stops"]] = ["surprise"] if surprise.low > SURPRISE else []
    rarer = stops[1].rate.value < LESS * stops[0].rate.value
    broken += ["stops"] if rarer and stops[1].rate.high < stops[0].rate.low else []
    metric, before, after = _compared(first, last)
    summary = summarise(np.stack([before, after, after - before]), last["prompt"])
    count, (low, high) = int(summary.replicates[2]), summary.ci95[2]
    level: Literal["broken", "better", "worse", "unsure"] = "broken" if broken else "unsure"
    if not broken and count >= FEW_PAIRS and (low > 0 or high < 0):
        level = "better" if low > 0 else "worse"
    return Shipping(
        level=level,
        broken=broken,
        metric=metric,
        first=_known(summary.mean[0]),
        last=_known(summary.mean[1]),
        difference=[_known(end) for end in (summary.mean[2], low, high)],
        count=count,
        surprise=[_known(end) for end in (surprise.value, surprise.low, surprise.high)],
        kl=_known(float(np.mean(last["kl_to_truth"])) if "kl_to_truth" in last else np.nan),
        stops=[stops[1].stopped, stops[1].count],
        stops_first=[stops[0].stopped, stops[0].count],
    )


def surprise_of(first: Columns, last: Columns, reach: float) -> Estimate:
    """How much less likely, nats per token, a model's samples are under the truth than the first model's, above `reach`.

    Σ(−log p*(x) − reach) / Σ|x| over the last model's samples, less Σ −log p*(x) / Σ|x| over the first one's, p* being the
    truth, which is the first model itself where no other is named. Sharpening lowers it; an alignment at β raises −log p*(x) by
    no more than about Δ/β. NaN where a model has no likelihood under p*.
    """
    if any("kl_to_truth" not in columns for columns in (first, last)):
        return Estimate(np.nan, np.nan, np.nan, 0)
    nats = [np.asarray(columns["entropy"]) + np.asarray(columns["kl_to_truth"]) for columns in (first, last)]
    own = signals.ratio(nats[0], np.asarray(first["length"])).value
    return signals.ratio(nats[1] - reach, np.asarray(last["length"])).map(lambda value: value - own)


def stopping(rates: Sequence[float], samples: int) -> Stopping:
    """How often a model's samples stop, from the share of each row's."""
    posterior = spread.fit(np.round(np.asarray(rates) * samples).astype(int), samples)
    return Stopping(posterior.hits, samples * posterior.prompts, posterior.mean)


def _compared(first: Columns, last: Columns) -> tuple[str | None, Array, Array]:
    """What two models are compared by, of every row: the reward, or whether the chosen completion is the likelier one."""
    if "reward" in first:
        return "reward", np.asarray(first["reward"], float), np.asarray(last["reward"], float)
    if "chosen_logp" not in first:
        return None, np.full(len(first["row"]), np.nan), np.full(len(first["row"]), np.nan)
    right = [np.asarray(columns["chosen_logp"]) > np.asarray(columns["rejected_logp"]) for columns in (first, last)]
    return "ranking_accuracy", right[0].astype(float), right[1].astype(float)


def _known(value: float) -> float | None:
    return float(value) + 0.0 if np.isfinite(value) else None  # −0 is 0
