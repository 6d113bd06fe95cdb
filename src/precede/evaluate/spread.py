"""A share of samples whose chance differs from prompt to prompt: its mean, what tilting makes of it, and their intervals.

A prompt's chance m_x is taken to be beta-distributed over prompts with mean m and intra-prompt correlation ρ, so that the
hits of a prompt are beta-binomial. Where prompts have all or nothing instead, few samples a prompt cannot tell so little from
nothing, and the tilted mean is too high (docs/statistics.md has how often the intervals hold the truth, there too).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from precede.stats import Estimate, clopper_pearson

Array = NDArray[np.float64]
CORRELATIONS = np.concatenate([[0.0], np.linspace(0.04, 0.99, 24) ** 2])
"""Values of ρ that are weighed; a square, for small ones make the most difference."""
ALIKE = 0.2
"""Prior weight of ρ = 0, prompts that do not differ, beside a weight of 1 that is even over the others."""
POINTS = 81
"""Values of m that are weighed, even in log-odds, over all that any ρ makes likely."""
WIDEST = 100.0
"""Nats of tilt beyond which more makes no difference."""
STEP, TAIL = 0.125, 16.0
"""Of the quadrature over a prompt's log-odds, and how far it goes beyond where the tilt saturates."""


@dataclass(frozen=True)
class Spread:
    """Posterior of mean and correlation given the hits of prompts (Jeffreys prior of m, even prior of ρ with an atom at 0)."""

    hits: int
    prompts: int
    samples: int
    means: Array
    """m, (points,)."""
    weights: Array
    """Of each m and ρ, (points, correlations); they sum to 1."""

    @property
    def mean(self) -> Estimate:
        """The share of hits, with the posterior's 95 % interval of m."""
        low, high = self._quantiles(np.broadcast_to(self.means[:, None], self.weights.shape), (0.025, 0.975))
        return Estimate(self.hits / self.count, *self._ends(low, high, *self._exact), self.count)

    def tilted(self, nats: float) -> Estimate:
        """Mean over prompts of σ(logit m_x + `nats`): median and 95 % interval of the posterior."""
        values = tilted(self.means[:, None], CORRELATIONS[None], nats).clip(0, 1)
        low, middle, high = self._quantiles(values, (0.025, 0.5, 0.975))
        exact = tilted(np.array(self._exact), np.array(0.0), nats)
        return Estimate(middle, *self._ends(low, high, float(exact[0]), float(exact[1])), self.count)

    @property
    def count(self) -> int:
        """All samples."""
        return self.prompts * self.samples

    @property
    def _exact(self) -> tuple[float, float]:
        return clopper_pearson(self.hits, self.count)

    def _ends(self, low: float, high: float, least: float, most: float) -> tuple[float, float]:
        """No hit leaves 0 possible, nothing but hits 1; the other end is then at least that of independent samples."""
        if self.hits == 0:
            return 0.0, max(high, most)
        return (min(low, least), 1.0) if self.hits == self.count else (low, high)

    def _quantiles(self, values: Array, probabilities: tuple[float, ...]) -> list[float]:
        order = np.argsort(values, axis=None)
        weights = self.weights.ravel()[order]
        middles = weights.cumsum() - weights / 2
        return [float(one) for one in np.interp(probabilities, middles, values.ravel()[order])]


def fit(hits: NDArray[np.int_], samples: int) -> Spread:
    """The posterior given how many of the `samples` of each prompt are hits, (prompts,)."""
    counts, prompts = np.asarray(hits), len(hits)
    log_odds = _log_odds(int(counts.sum()) / samples, prompts)
    means = special.expit(log_odds)
    m, rho = means[:, None], CORRELATIONS[None]
    a, b = _shape(m, rho)
    likelihood = np.zeros((POINTS, len(CORRELATIONS)))
    for k, often in zip(*np.unique(counts, return_counts=True), strict=True):
        alike = k * special.log_expit(log_odds)[:, None] + (samples - k) * special.log_expit(-log_odds)[:, None]
        unlike = special.betaln(a + k, b + samples - k) - special.betaln(a, b)
        likelihood += often * np.where(rho > 0, unlike, alike)
    prior = np.gradient(CORRELATIONS)
    prior[0] = ALIKE
    weights = np.exp(likelihood - likelihood.max()) * np.sqrt(m * (1 - m)) * prior
    return Spread(int(counts.sum()), prompts, samples, means, weights / weights.sum())


def tilted(mass: Array, correlation: Array, nats: float) -> Array:
    """Mean over prompts of σ(logit m_x + `nats`), m_x beta-distributed with mean `mass` and `correlation` ρ; arrays broadcast.

    Alignment tilts each prompt by itself: at ρ = 1, where a prompt has all or nothing, it gains nothing; at ρ = 0 this is
    `theory.achievable_mass`. Quadrature over log-odds x, in two halves so that both converge at any ρ:
    E σ(x + r) = ∫_{x<0} f(x) σ(x + r) dx + P(x > 0) − ∫_{x>0} f(x) σ(−x − r) dx. Oracle: quantiles of SciPy's beta.
    """
    r = min(nats, WIDEST)
    m, rho = np.broadcast_arrays(np.asarray(mass, float), np.asarray(correlation, float))
    a, b = _shape(m, rho)
    below = np.arange(-(max(r, 0.0) + TAIL), 0, STEP) + STEP / 2
    above = np.arange(0, max(-r, 0.0) + TAIL, STEP) + STEP / 2

    def part(x: Array, log_weight: Array) -> Array:
        log_density = a[..., None] * special.log_expit(x) + b[..., None] * special.log_expit(-x)
        inside = np.exp(log_density - special.betaln(a, b)[..., None] + log_weight)
        return np.asarray(STEP * inside.sum(-1))

    spread = part(below, special.log_expit(below + r)) + special.betainc(b, a, 0.5)
    spread -= part(above, special.log_expit(-above - r))
    with np.errstate(divide="ignore"):
        alike = special.expit(special.logit(m) + nats)
    return np.where(rho > 0, np.where(rho < 1, spread, m), alike)


def _shape(mass: Array, correlation: Array) -> tuple[Array, Array]:
    """The parameters of the beta distribution; any for ρ of 0 and 1, which it has none for."""
    inside = (correlation > 0) & (correlation < 1)
    strength = np.where(inside, 1 / np.where(inside, correlation, 0.5) - 1, 1.0)
    return mass * strength, (1 - mass) * strength


def _log_odds(hits: float, prompts: int) -> Array:
    """Log-odds of m that are worth weighing: what `hits` prompts leave possible if the samples of one are all alike."""
    ends = stats.beta.ppf((1e-5, 1 - 1e-5), hits + 0.5, prompts - hits + 0.5)
    low, high = special.logit(np.clip(ends, 1e-7, 1 - 1e-7))
    return np.linspace(low, high, POINTS)
