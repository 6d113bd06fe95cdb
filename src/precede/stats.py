"""Statistics over seeds: means with bootstrap intervals, paired differences, matched comparisons, proportions.

Values are arrays (settings, seeds) with NaN where undefined; a pair with a NaN on either side is left out and the number
of seeds says so. Intervals are 95 % percentile bootstrap over seeds (Efron & Tibshirani 1993, ch. 13) with one fixed
set of resamples, so that the same values always give the same interval. One seed gives no interval (NaN).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 10_000
LEVEL = 0.95
CHUNK_ROWS = 256
"""Rows resampled at once, to bound memory."""


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n − 1), interval of the mean, and the number of seeds behind them; arrays (settings,)."""

    mean: Array
    sd: Array
    ci95: Array
    """(settings, 2): lower and upper end."""
    seeds: NDArray[np.int64]


def summarise(values: Array) -> Summary:
    """Summary over seeds of `values` (settings, seeds)."""
    values = np.asarray(values, float)
    seeds = np.isfinite(values).sum(1)
    ci95 = np.full((len(values), 2), np.nan)
    mean, sd = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for count in np.unique(seeds[seeds > 0]):
        rows = np.flatnonzero(seeds == count)
        block = np.stack([values[row][np.isfinite(values[row])] for row in rows])
        mean[rows] = block.mean(1)
        if count > 1:
            sd[rows] = block.std(1, ddof=1)
            weights, edges = _resample_weights(int(count)), (50 * (1 - LEVEL), 50 * (1 + LEVEL))
            for begin in range(0, len(rows), CHUNK_ROWS):
                part = slice(begin, begin + CHUNK_ROWS)
                ci95[rows[part]] = np.percentile(block[part] @ weights, edges, axis=1).T
    return Summary(mean, sd, ci95, seeds)


@dataclass(frozen=True)
class Paired:
    """A against B, seed by seed: `difference` summarises a − b; `sd_ratio` is sd(a)/sd(b) over the same seeds.

    `p_value` is that of the paired t-test, two-sided; NaN for one seed. With few seeds the percentile bootstrap is too
    narrow (5 seeds: it misses a true 0 in 16 % of cases), so a verdict should ask for both.
    """

    difference: Summary
    a: Summary
    b: Summary
    sd_ratio: Array
    p_value: Array


def paired(a: Array, b: Array) -> Paired:
    """Compare `a` and `b`, both (settings, seeds), paired by seed. Raises ValueError where shapes differ."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(f"paired values need one shape, not {a.shape} and {b.shape}")
    defined = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(defined, a, np.nan), np.where(defined, b, np.nan)
    first, second, difference = summarise(a), summarise(b), summarise(a - b)
    ratio, p_value = np.full(len(a), np.nan), np.full(len(a), np.nan)
    np.divide(first.sd, second.sd, out=ratio, where=second.sd > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference.mean / (difference.sd / np.sqrt(difference.seeds))
    enough = difference.seeds > 1
    p_value[enough] = 2 * stats.t.sf(np.abs(t[enough]), difference.seeds[enough] - 1)
    return Paired(difference, first, second, ratio, p_value)


def interpolate(x: Array, y: Array, at: Array) -> Array:
    """y at x = `at`, per seed, on the piecewise linear curve through (x, y), (seeds, points); NaN outside the curve.

    This is how orders are compared at matched target mass (x = logit mass) or matched compute (x = FLOPs).
    """
    result = np.full(len(x), np.nan)
    for seed, defined in enumerate(np.isfinite(x) & np.isfinite(y)):
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


def resampled_means(values: Array) -> Array:
    """(rows, RESAMPLES): means of `values` (rows, n), n ≥ 1, over the fixed resamples that all intervals use."""
    return np.asarray(values @ _resample_weights(values.shape[1]))


@lru_cache(maxsize=8)
def _resample_weights(count: int) -> Array:
    """(count, RESAMPLES): share of each seed in each resample."""
    generator = np.random.Generator(np.random.Philox(20250923))
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).T / count
