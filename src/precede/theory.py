"""What theory says of alignment, distillation and their order. Pure functions of numbers and arrays; all logs natural.

Symbols, where bodies need them: m target mass of the reference, Δ (`advantage`) reward that target samples are worth
more than the rest, β (`beta`) price of KL in reward units per nat, τ (`temperature`) of distillation, σ the logistic
function. Every law has a test that measures it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]


def tilt(reference_logps: ArrayLike, rewards: ArrayLike, beta: ArrayLike) -> Array:
    """Log-probs of π*(x) ∝ π_ref(x) exp(R(x)/β) on a finite set (Rafailov et al. 2023, eq. 4).

    Arrays (…, outcomes) that broadcast; log-probs in nats, rewards in units of β. Raises ValueError where β ≤ 0.
    """
    scores = np.asarray(reference_logps, float) + np.asarray(rewards, float) / _positive(beta, "beta")
    return np.asarray(scores - special.logsumexp(scores, axis=-1, keepdims=True))


def achievable_mass(mass: ArrayLike, advantage: ArrayLike, beta: ArrayLike) -> Array:
    """m* = σ(logit m + Δ/β): target mass of the tilt whose target samples are worth Δ more than all others.

    `mass` in [0, 1]; 0 stays 0 whatever Δ/β. It is the mass of the policy that maximises E R − β KL: training that falls
    short of that usually ends below it, training that overshoots its price of KL may end above.
    """
    log_odds = special.logit(_share(mass, "mass"))
    return np.asarray(special.expit(log_odds + np.asarray(advantage) / _positive(beta, "beta")))


def price_of_recall(mass: ArrayLike, wanted: ArrayLike) -> Array:
    """Δ/β in nats that it takes to move target mass `mass` to `wanted`: logit q − logit m. Infinite at mass 0."""
    return np.asarray(special.logit(_share(wanted, "wanted")) - special.logit(_share(mass, "mass")))


def hit_probability(mass: ArrayLike, samples: ArrayLike) -> Array:
    """Sampling trap: 1 − (1 − m)^n, the chance that n on-policy samples meet the target at all.

    For training that samples a batch per step, n is the batch: what one step misses gives it no gradient.
    """
    with np.errstate(divide="ignore"):  # mass 1: log 0, and certainty
        return np.asarray(-np.expm1(np.asarray(samples, float) * np.log1p(-_share(mass, "mass"))))


def samples_needed(mass: ArrayLike, probability: float = 0.95) -> Array:
    """Samples for one hit with the given probability, log(1 − p)/log(1 − m), rounded up; infinite at mass 0."""
    with np.errstate(divide="ignore"):
        exact = np.log1p(-probability) / np.log1p(-_share(mass, "mass"))
    return np.asarray(np.maximum(np.ceil(exact), 1.0))


def shaped_reward(rewards: ArrayLike, logps: ArrayLike, reference_logps: ArrayLike, beta: ArrayLike) -> Array:
    """R(x) − β log(π(x)/π_ref(x)). Learning trap: π_ref(x) → 0 sends it to −∞ however desirable x is."""
    gain = np.asarray(logps, float) - np.asarray(reference_logps, float)
    return np.asarray(np.asarray(rewards, float) - _positive(beta, "beta") * gain)


def mass_after_gain(mass: ArrayLike, gain: ArrayLike) -> Array:
    """Learning trap of DPO: a gain of g nats over the reference satisfies its margin, yet the mass is at most m·e^g ≤ 1."""
    return np.asarray(np.minimum(_share(mass, "mass") * np.exp(np.asarray(gain, float)), 1.0))


def sharpened(log_weights: ArrayLike, temperature: ArrayLike) -> Array:
    """Log weights (…, modes) raised to 1/τ and renormalised: what distillation at τ does to modes it can represent."""
    scores = np.asarray(log_weights, float) / np.asarray(_positive(temperature, "temperature"))[..., None]
    return np.asarray(scores - special.logsumexp(scores, axis=-1, keepdims=True))


def order_gap(advantage: ArrayLike, beta: ArrayLike, temperature: ArrayLike) -> Array:
    """Order gap in nats: logit m_AK − logit m_KA = (Δ/β)(1/τ − 1). Our law, not the paper's.

    Alignment is the exact tilt with Δ on the target and 0 elsewhere; distillation raises mode weights to 1/τ. Then A→K
    has log-odds (ℓ_T + Δ/β)/τ against ℓ/τ elsewhere, K→A ℓ_T/τ + Δ/β against ℓ/τ, and the difference is the law,
    whatever m and however many modes. Capacity and finite samples add to it (`surviving_probability`).
    """
    reach = np.asarray(advantage, float) / _positive(beta, "beta")
    return np.asarray(reach * (1 / _positive(temperature, "temperature") - 1))


def matched_price(beta: ArrayLike, temperature: ArrayLike) -> Array:
    """τβ, the price of KL at which aligning last ends with the log-odds that aligning first at β ends with (our law).

    With S_τ the log-odds of the target in the student that is only distilled, logit m_AK(β) = S_τ + Δ/(τβ) = logit m_KA(τβ),
    whatever m and however many modes: of the difference between the orders at β, m_KA(τβ) − m_KA(β) is sharpening, and
    m_AK(β) − m_KA(τβ), which is 0 here, recall. Raises ValueError where β or τ is not above 0.
    """
    return _positive(temperature, "the temperature") * _positive(beta, "beta")


def extrapolated(logps: ArrayLike, reference_logps: ArrayLike, extrapolation: ArrayLike) -> Array:
    """log of π^λ·π_ref^(1−λ), renormalised, on a finite set: `extrapolation` λ ≥ 0 of an aligned π from its reference.

    Of the tilt π ∝ π_ref exp(R/β) it is the tilt at β/λ, whatever R (our law): one alignment gives the frontier of all prices.
    Arrays (…, outcomes); λ broadcasts against all but the last axis. An outcome that the reference lacks (log-prob −inf) is
    lacking in the result, since no tilt has it. Raises ValueError where λ < 0, and where nothing is left.
    """
    power = np.asarray(extrapolation, float)
    if not bool(np.all(power >= 0)):
        raise ValueError("the extrapolation must be 0 or more")
    own, reference = np.broadcast_arrays(np.asarray(logps, float), np.asarray(reference_logps, float))
    possible = np.isfinite(own) & np.isfinite(reference)
    if not bool(np.all(possible.any(axis=-1))):
        raise ValueError("the model and its reference have no outcome in common")
    apart = np.where(possible, own, 0.0) - np.where(possible, reference, 0.0)
    scores = np.where(possible, reference + power[..., None] * apart, -np.inf)
    return np.asarray(scores - special.logsumexp(scores, axis=-1, keepdims=True))


def extrapolated_price(beta: ArrayLike, extrapolation: ArrayLike) -> Array:
    """β/λ, the price of KL whose tilt the extrapolation λ of the tilt at β is (`extrapolated`).

    Raises ValueError where either is not above 0.
    """
    return np.asarray(_positive(beta, "beta") / _positive(extrapolation, "the extrapolation"))


def order_masses(
    log_weights: ArrayLike, target: ArrayLike, advantage: ArrayLike, beta: ArrayLike, temperature: ArrayLike
) -> tuple[Array, Array]:
    """Target masses (m_AK, m_KA) that the law's assumptions give for mode log weights (modes,) and a target mask (modes,).

    `advantage`, `beta` and `temperature` broadcast; the results have their shape.
    """
    advantage, beta, temperature = np.broadcast_arrays(
        np.asarray(advantage, float), _positive(beta, "beta"), _positive(temperature, "temperature")
    )
    mask = np.asarray(target, bool)
    gain = (advantage / beta)[..., None] * mask
    weights = np.asarray(log_weights, float)
    align_first = sharpened(tilt(weights + 0 * gain, gain, 1.0), temperature)
    distill_first = tilt(sharpened(weights + 0 * gain, temperature), gain, 1.0)
    return _mass(align_first, mask), _mass(distill_first, mask)


def surviving_probability(mass: ArrayLike, samples: int, needed: int) -> Array:
    """Chance that a mode of mass m gets at least `needed` of the N distillation samples; below it the mode is lost."""
    return np.asarray(special.bdtrc(needed - 1, samples, _share(mass, "mass")))


def _mass(log_weights: Array, mask: NDArray[np.bool_]) -> Array:
    return np.asarray(np.exp(special.logsumexp(log_weights[..., mask], axis=-1)))


def _positive(value: ArrayLike, name: str) -> Array:
    array = np.asarray(value, float)
    if not bool(np.all(array > 0)):
        raise ValueError(f"{name} must be above 0")
    return array


def _share(value: ArrayLike, name: str) -> Array:
    array = np.asarray(value, float)
    if not bool(np.all((array >= 0) & (array <= 1))):
        raise ValueError(f"{name} must lie between 0 and 1")
    return array
