"""Shares that differ between prompts: quadrature and posterior against SciPy, limits, and how often the intervals are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from precede import theory
from precede.evaluate import spread
from precede.evaluate.spread import CORRELATIONS, fit, tilted


def by_quantiles(mass: float, correlation: float, nats: float) -> float:
    """E σ(logit m_x + nats) over evenly spaced quantiles of SciPy's beta distribution."""
    strength = 1 / correlation - 1
    levels = (np.arange(20_000) + 0.5) / 20_000
    own = stats.beta.ppf(levels, mass * strength, (1 - mass) * strength)
    return float(special.expit(special.logit(own.clip(1e-300, 1 - 1e-16)) + nats).mean())


@pytest.mark.parametrize("mass", [0.003, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("correlation", [0.0016, 0.05, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("nats", [0.0, 0.5, 3.0, 10.0])
def test_the_quadrature_is_that_of_quantiles(mass: float, correlation: float, nats: float) -> None:
    found = float(tilted(np.array(mass), np.array(correlation), nats))
    assert found == pytest.approx(by_quantiles(mass, correlation, nats), rel=2e-3, abs=2e-5)


def test_the_tilt_has_its_limits() -> None:
    """ρ = 0: one prompt's tilt. ρ = 1: all or nothing, no gain. A tilt of 0 changes nothing, a wide one costs no memory."""
    mass = np.array([0.01, 0.3])
    np.testing.assert_allclose(tilted(mass, np.array(0.0), 2.0), theory.achievable_mass(mass, 2.0, 1.0))
    np.testing.assert_allclose(tilted(mass, np.array(1.0), 2.0), mass)
    np.testing.assert_allclose(tilted(mass, np.array(0.3), 0.0), mass, rtol=1e-3)
    assert tilted(np.array(0.3), np.array(0.2), 1e6) == pytest.approx(1.0, abs=1e-3)


def test_the_posterior_is_that_of_weighted_draws() -> None:
    """Draws from the prior, weighted by SciPy's beta-binomial: 20 prompts, 3 samples; medians and ends within 0.02."""
    hits, samples, nats = np.array([0] * 13 + [1] * 4 + [2] * 2 + [3]), 3, 2.0
    draw = np.random.default_rng(3)
    masses, rest = draw.beta(0.5, 0.5, 40_000), draw.choice(len(CORRELATIONS), 40_000, p=prior())
    rho = CORRELATIONS[rest]
    strength = 1 / np.where(rho > 0, rho, 0.5) - 1
    log_weights = np.zeros(len(masses))
    for k in hits:
        unlike = stats.betabinom.logpmf(k, samples, masses * strength, (1 - masses) * strength)
        log_weights += np.where(rho > 0, unlike, stats.binom.logpmf(k, samples, masses))
    weights = np.exp(log_weights - log_weights.max())
    posterior = fit(hits, samples)
    for estimate, values in ((posterior.mean, masses), (posterior.tilted(nats), tilted(masses, rho, nats))):
        order = np.argsort(values)
        places = weights[order].cumsum() / weights.sum()
        low, high = (float(values[order][np.searchsorted(places, at)]) for at in (0.025, 0.975))
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.02)


def prior() -> np.ndarray:
    weights = np.gradient(CORRELATIONS)
    weights[0] = spread.ALIKE
    return np.asarray(weights / weights.sum())


def test_prompts_that_have_all_or_nothing_gain_nothing() -> None:
    """Half of the prompts always hit and half never: no tilt adds much to ½; the interval is that of prompts."""
    posterior = fit(np.array([4] * 100 + [0] * 100), 4)
    assert posterior.mean.value == 0.5
    assert posterior.tilted(10.0).high < 0.75
    ends = stats.beta.ppf((0.025, 0.975), 100.5, 100.5)
    assert (posterior.mean.low, posterior.mean.high) == pytest.approx(ends, abs=0.005)


def test_prompts_that_are_alike_gain_all() -> None:
    hits = np.random.default_rng(0).binomial(16, 0.05, 400)
    posterior = fit(hits, 16)
    whole = theory.achievable_mass(hits.mean() / 16, 3.0, 1.0)
    assert posterior.tilted(3.0).value == pytest.approx(float(whole), abs=0.02)
    ends = stats.beta.ppf((0.025, 0.975), hits.sum() + 0.5, 6400 - hits.sum() + 0.5)
    assert (posterior.mean.low, posterior.mean.high) == pytest.approx(ends, abs=0.004)


def test_no_hit_gives_an_upper_bound_and_nothing_but_hits_a_lower_one() -> None:
    """Of 25 prompts with four samples: at least what 100 independent samples leave possible (Clopper–Pearson), 0 to 3.6 %."""
    none, every = fit(np.zeros(25, int), 4), fit(np.full(25, 4), 4)
    bound = 1 - 0.025 ** (1 / 100)
    assert (none.mean.value, none.mean.low) == (0.0, 0.0)
    assert bound <= none.mean.high < 2 * bound
    assert (every.mean.value, every.mean.high) == (1.0, 1.0)
    assert 1 - 2 * bound < every.mean.low <= 1 - bound
    assert none.tilted(5.0).low == 0.0
    assert none.tilted(5.0).high == pytest.approx(float(theory.achievable_mass(bound, 5.0, 1.0)), abs=0.05)
    assert every.tilted(5.0).high == 1.0


@pytest.mark.parametrize("samples", [2, 4, 16])
def test_intervals_of_achievable_mass_cover(samples: int) -> None:
    """128 prompts, m = 0.03, ρ = 0.3, ten nats: true m* 0.459. 95 % of 300 intervals are 285 ± 3.8; fewer than 270 come by
    chance once in 10,000. With ρ taken as known 50 to 80 % held the truth, and at 2 samples 32 % said ready."""
    mass, rho, nats = 0.03, 0.3, 10.0
    truth, draw = by_quantiles(mass, rho, nats), np.random.default_rng(samples)
    strength = 1 / rho - 1
    assert truth == pytest.approx(0.459, abs=0.001)
    found = [
        fit(draw.binomial(samples, draw.beta(mass * strength, (1 - mass) * strength, 128)), samples).tilted(nats)
        for _ in range(300)
    ]
    assert sum(one.low <= truth <= one.high for one in found) >= 270
    assert sum(one.low >= 0.6 for one in found) <= 15  # ready, of a reference that is not
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found)


def test_one_sample_a_prompt_tells_nothing_of_how_prompts_differ() -> None:
    found = fit(np.array([1] * 4 + [0] * 124), 1).tilted(10.0)
    assert found.low < 0.1
    assert found.high > 0.9
    assert not math.isnan(found.value)
