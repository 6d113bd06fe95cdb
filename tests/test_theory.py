"""The laws of `theory`, by closed forms and by measurement."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precede import theory

masses = st.floats(1e-6, 1 - 1e-6)
positive = st.floats(0.05, 5.0)


def test_tilt_is_the_maximiser() -> None:
    """No other distribution has a higher E R − β KL (random search around the tilt)."""
    generator = np.random.default_rng(1)
    reference = np.log(generator.dirichlet(np.ones(6)))
    rewards, beta = generator.normal(size=6), 0.3

    def objective(logps: np.ndarray) -> float:
        p = np.exp(logps)
        return float((p * rewards).sum() - beta * (p * (logps - reference)).sum())

    best = theory.tilt(reference, rewards, beta)
    assert math.isclose(np.exp(best).sum(), 1.0)
    for _ in range(200):
        other = best + 0.1 * generator.normal(size=6)
        other -= np.log(np.exp(other).sum())
        assert objective(other) < objective(best)


@given(masses, positive, positive)
def test_achievable_mass_is_the_tilt_of_two_outcomes(mass: float, advantage: float, beta: float) -> None:
    tilted = theory.tilt(np.log([mass, 1 - mass]), [advantage, 0.0], beta)
    assert math.isclose(theory.achievable_mass(mass, advantage, beta), math.exp(tilted[0]), rel_tol=1e-9)


@given(masses, masses)
def test_price_of_recall_inverts_achievable_mass(mass: float, wanted: float) -> None:
    price = theory.price_of_recall(mass, wanted)
    assert math.isclose(theory.achievable_mass(mass, price, 1.0), wanted, rel_tol=1e-6)


def test_achievable_mass_by_rejection_sampling() -> None:
    """Accept reference samples with probability exp((R − Δ)/β): the target's share of the accepted is m*.

    400 000 proposals; 4 standard errors, a false alarm in 16 000 runs.
    """
    generator = np.random.default_rng(2)
    mass, advantage, beta = 0.03, 0.8, 0.4
    target = generator.random(400_000) < mass
    accepted = target[generator.random(len(target)) < np.exp((np.where(target, advantage, 0.0) - advantage) / beta)]
    expected = float(theory.achievable_mass(mass, advantage, beta))
    error = math.sqrt(expected * (1 - expected) / len(accepted))
    assert abs(accepted.mean() - expected) < 4 * error
    assert expected > 2 * mass


def test_hit_probability_by_simulation() -> None:
    """20 000 batches of 50 samples; 4 standard errors."""
    generator = np.random.default_rng(3)
    mass, samples, batches = 0.02, 50, 20_000
    hit = (generator.random((batches, samples)) < mass).any(1)
    expected = float(theory.hit_probability(mass, samples))
    assert abs(hit.mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / batches)


@given(st.floats(1e-7, 0.5))
def test_samples_needed_is_the_least_number(mass: float) -> None:
    needed = float(theory.samples_needed(mass))
    assert theory.hit_probability(mass, needed) >= 0.95 - 1e-9
    if needed > 1:
        assert theory.hit_probability(mass, needed - 1) < 0.95 + 1e-9


def test_limits_at_no_mass() -> None:
    assert theory.samples_needed(0.0) == math.inf
    assert theory.achievable_mass(0.0, 1.0, 0.1) == 0.0
    assert theory.price_of_recall(0.0, 0.5) == math.inf
    assert theory.hit_probability(0.0, 10) == 0.0
    assert theory.hit_probability(1.0, 10) == 1.0


def test_learning_trap() -> None:
    rewards = theory.shaped_reward(1.0, np.log(0.5), np.log([1e-2, 1e-8, 1e-300]), 0.1)
    assert np.all(np.diff(rewards) < -1)
    assert math.isclose(rewards[0], 1 - 0.1 * math.log(50))
    assert math.isclose(theory.mass_after_gain(1e-6, 5.0), 1e-6 * math.exp(5))
    assert theory.mass_after_gain(0.5, 5.0) == 1.0


@given(st.lists(st.floats(-6, 0), min_size=2, max_size=9), positive, positive, st.floats(0.2, 1.0))
def test_order_gap_holds_for_any_modes(weights: list[float], advantage: float, beta: float, tau: float) -> None:
    """The law, from the two chains of operations on mode weights: whatever the weights and however many modes."""
    mask = np.zeros(len(weights), dtype=bool)
    mask[-1] = True
    log_weights = theory.sharpened(weights, 1.0)
    align_first = theory.sharpened(theory.tilt(log_weights, advantage * mask, beta), tau)
    distill_first = theory.tilt(theory.sharpened(log_weights, tau), advantage * mask, beta)

    def log_odds(logps: np.ndarray) -> float:
        return float(logps[-1] - np.log(np.exp(logps[:-1]).sum()))

    gap = float(theory.order_gap(advantage, beta, tau))
    # Log-odds differ by more than the law only through the sum over the other modes, which the order does not change.
    assert math.isclose(log_odds(align_first) - log_odds(distill_first), gap, rel_tol=1e-6, abs_tol=1e-6)
    first, second = theory.order_masses(log_weights, mask, advantage, beta, tau)
    assert math.isclose(first, math.exp(align_first[-1]), rel_tol=1e-9)
    assert math.isclose(second, math.exp(distill_first[-1]), rel_tol=1e-9)


@given(st.lists(st.floats(-6, 0), min_size=2, max_size=9), positive, positive, st.floats(0.2, 1.0))
def test_aligning_last_at_the_matched_price_is_aligning_first(
    weights: list[float], advantage: float, beta: float, tau: float
) -> None:
    mask = np.zeros(len(weights), dtype=bool)
    mask[-1] = True
    log_weights = theory.sharpened(weights, 1.0)
    align_first = theory.sharpened(theory.tilt(log_weights, advantage * mask, beta), tau)
    control = theory.tilt(theory.sharpened(log_weights, tau), advantage * mask, theory.matched_price(beta, tau))
    assert align_first == pytest.approx(control, rel=1e-6, abs=1e-6)


def test_order_gap_ties_at_temperature_one() -> None:
    assert theory.order_gap(0.8, 0.1, 1.0) == 0.0
    assert theory.order_gap(0.8, 0.1, 0.5) == pytest.approx(8.0)


def test_surviving_probability_by_simulation() -> None:
    generator = np.random.default_rng(4)
    counts = generator.binomial(1000, 0.004, size=40_000)
    expected = float(theory.surviving_probability(0.004, 1000, 3))
    assert abs((counts >= 3).mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / 40_000)


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.tilt([0.0], [1.0], 0.0),
        lambda: theory.achievable_mass(1.5, 1.0, 0.1),
        lambda: theory.order_gap(1.0, -1.0, 0.5),
        lambda: theory.sharpened([0.0], 0.0),
        lambda: theory.matched_price(0.0, 0.5),
        lambda: theory.matched_price(0.1, -1.0),
    ],
)
def test_refuses_what_has_no_meaning(call: object) -> None:
    with pytest.raises(ValueError, match="must"):
        call()  # type: ignore[operator]
