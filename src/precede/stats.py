"""Statistics over replicates: means with Student's t intervals, paired differences, matched comparisons, proportions.

Values are arrays (settings, seeds) with NaN where undefined; a pair with a NaN on either side is left out and the number
of seeds says so. Intervals are 95 %, Student's t over independent replicates: seeds, or clusters of seeds that share a
world, whose means are then the replicates. Fewer than three replicates give no interval (NaN). Measured coverage:
benchmarks/coverage.py, docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.95
POWER = 0.8
"""Of the differences that a comparison is said to be able to call."""
LEAST = 3
"""Replicates below which there is no interval."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where undefined. `count` observations stand behind it."""

    value: float
    low: float
    high: float
    count: int

    def map(self, increasing: Callable[[float], float]) -> Estimate:
        """The estimate of an increasing function of the number."""
        return Estimate(increasing(self.value), increasing(self.low), increasing(self.high), self.count)


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation over seeds (n − 1), interval of the mean, seeds behind them and replicates; (settings,)."""

    mean: Array
    sd: Array
    ci95: Array
    """(settings, 2): lower and upper end."""
    seeds: NDArray[np.int64]
    replicates: NDArray[np.int64]
    """Independent replicates that the interval rests on: clusters, or seeds where each is a cluster of its own."""
    error: Array
    """Standard error of the mean, over replicates; NaN for fewer than two."""

    def p_values(self) -> Array:
        """(settings,): two-sided p-values of a mean of 0, by the t-test over replicates; NaN for fewer than three.

        NaN too where replicates all agree on another mean than 0: in what is counted on a few rows that says that seeds changed
        nothing, not that it is sure.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(self.mean == 0, 0.0, np.where(self.error > 0, np.abs(self.mean) / self.error, np.nan))
        values: Array = np.where(
            self.replicates >= LEAST, 2 * stats.t.sf(t, np.maximum(self.replicates - 1, 1)), np.nan
        )
        return values


def summarise(values: Array, clusters: Sequence[Hashable] | None = None) -> Summary:
    """Summary of `values` (settings, seeds). `clusters` (seeds,) names what seeds share, such as a world.

    The mean is that of the clusters' means, so that worlds count alike, and its interval mean ± t_{0.975, G−1} · s/√G with s
    their standard deviation and G their number; without `clusters`, every seed is one.
    """
    values = np.asarray(values, float)
    names = list(dict.fromkeys(range(values.shape[1]) if clusters is None else clusters))
    if clusters is None or len(names) == values.shape[1]:
        means = values
    else:
        means = np.stack([_mean(values[:, [name == cluster for cluster in clusters]]) for name in names], axis=1)
    replicates, mean = np.isfinite(means).sum(1), _mean(means)
    error = _sd(means) / np.sqrt(np.maximum(replicates, 1))
    half = np.where(replicates >= LEAST, error * stats.t.ppf(0.5 + LEVEL / 2, np.maximum(replicates - 1, 1)), np.nan)
    ci95 = np.stack([mean - half, mean + half], axis=1)
    return Summary(mean, _sd(values), ci95, np.isfinite(values).sum(1), replicates, error)


def _mean(values: Array) -> Array:
    """(rows,): mean of what is defined in each row, NaN where nothing is."""
    defined = np.isfinite(values)
    count = defined.sum(1)
    total = np.where(defined, values, 0.0).sum(1)
    means: Array = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return means


def _sd(values: Array) -> Array:
    """(rows,): standard deviation (n − 1) of what is defined in each row, NaN for fewer than two."""
    defined = np.isfinite(values)
    count = defined.sum(1)
    squares = np.where(defined, values - _mean(values)[:, None], 0.0) ** 2
    deviations: Array = np.sqrt(np.divide(squares.sum(1), count - 1, out=np.full(len(values), np.nan), where=count > 1))
    return deviations


@dataclass(frozen=True)
class Paired:
    """A against B, seed by seed: `difference` summarises a − b; `sd_ratio` is sd(a)/sd(b) over the same seeds."""

    difference: Summary
    a: Summary
    b: Summary
    sd_ratio: Array


def paired(a: Array, b: Array, clusters: Sequence[Hashable] | None = None) -> Paired:
    """Compare `a` and `b`, both (settings, seeds), paired by seed. Raises ValueError where shapes differ.

    Of differences that all replicates agree on there is no interval, unless it is 0; see `Summary.p_values`.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(f"paired values need one shape, not {a.shape} and {b.shape}")
    defined = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(defined, a, np.nan), np.where(defined, b, np.nan)
    first, second = summarise(a, clusters), summarise(b, clusters)
    ratio = np.full(len(a), np.nan)
    np.divide(first.sd, second.sd, out=ratio, where=second.sd > 0)
    difference = summarise(a - b, clusters)
    agreed = (difference.error == 0) & (difference.mean != 0)
    ends = np.where(agreed[:, None], np.nan, difference.ci95)
    return Paired(replace(difference, ci95=ends), first, second, ratio)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjusted p-values of one family: the chance of any false verdict stays below the level, whatever depends
    on what. Undefined ones stay undefined and count for nothing."""
    defined = sorted((value, index) for index, value in enumerate(p_values) if value is not None and value == value)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, index) in enumerate(defined):
        highest = max(highest, min(1.0, (len(defined) - rank) * value))
        adjusted[index] = highest
    return adjusted


def detectable(sd: float, replicates: int, level: float = 1 - LEVEL) -> float:
    """The smallest true difference that a paired t-test (two-sided, `level`) of so many replicates calls with 80 % probability.

    `sd` is the standard deviation of the paired differences between replicates. (t_{1−level/2} + t_{0.8}) · sd/√n with n − 1
    degrees of freedom: by the noncentral t the power is 0.77 at three replicates, 0.79 at five, 0.80 beyond. NaN below three.
    """
    if replicates < LEAST:
        return float("nan")
    quantiles = stats.t.ppf([1 - level / 2, POWER], replicates - 1)
    return float(quantiles.sum() * sd / np.sqrt(replicates))


def replicates_needed(difference: float, sd: float, most: int = 1000, level: float = 1 - LEVEL) -> int | None:
    """The least number of replicates of which `detectable` is at most `difference` (in size); None if it is above `most`."""
    return next((n for n in range(LEAST, most + 1) if detectable(sd, n, level) <= abs(difference)), None)


def interpolate(x: Array, y: Array, at: Array) -> Array:
    """y at x = `at`, per seed, on the piecewise linear curve through (x, y), (seeds, points); NaN outside the curve.

    This is how orders are compared at matched target mass (x = logit mass) or matched compute (x = FLOPs).
    """
    result = np.full(len(x), np.nan)
    for seed in range(len(x)):
        defined = np.isfinite(x[seed]) & np.isfinite(y[seed])
        xs, ys = x[seed][defined], y[seed][defined]
        if len(xs) and np.isfinite(at[seed]) and xs.min() <= at[seed] <= xs.max():
            order = np.argsort(xs, kind="stable")
            result[seed] = np.interp(at[seed], xs[order], ys[order])
    return result


def clopper_pearson(hits: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper & Pearson 1934); zero hits give an upper bound, not zero.

    Numbers that are not whole are effective ones, of observations that depend on one another.
    """
    if not 0 <= hits <= trials or trials < 1:
        raise ValueError(
            f"hits must lie between 0 and the number of trials, which is at least 1; got {hits} of {trials}"
        )
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.ppf(1 - tail, hits + 1, trials - hits))
    return low, high
