"""The exact optimum of alignment, π*(x) ∝ π_ref(x) exp(R(x)/β), by closed form or by quadrature on a grid.

It serves three purposes: the `exact` method; the optimal reward and target mass that each aligned model is held
against; and how far it fell short, J* − J(π) = β KL(π ‖ π*), with J = E_π R − β KL(π ‖ π_ref) and J* = β log Z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from precede.worlds.mixture import density
from precede.worlds.mixture.align import Reward
from precede.worlds.mixture.fit import floor_eigenvalues

NODES_PER_AXIS = 201
CHUNK_ROWS = 8


@dataclass
class Optimum:
    """π* against one reference per row: log Z (B,), E_π* R (B,), P_π*[target] (B,), moments per component (B, K, 6)."""

    log_z: Tensor
    reward: Tensor
    target_mass: Tensor
    component_moments: Tensor


def grid(reference: Tensor, extra: Tensor) -> tuple[Tensor, float]:
    """Nodes (1, 2, N²) of a square grid around the components of `reference` (B, K, 6) and the points (m, 2); their area.

    The square reaches six standard deviations beyond the components that matter (weight above 1e-12).
    """
    matter = density.log_weights(reference) > math.log(1e-12)
    deviations = density.covariances(reference)[..., [0, 2]].sqrt()
    reach = (reference[..., 1:3].abs() + 6 * deviations)[matter].max()
    half = float(torch.maximum(reach, extra.abs().max()))
    axis = torch.linspace(-half, half, NODES_PER_AXIS, dtype=reference.dtype)
    return torch.cartesian_prod(axis, axis).T.unsqueeze(0), (2 * half / (NODES_PER_AXIS - 1)) ** 2


def optimum(reference: Tensor, reward: Reward, target_share: Reward, beta: Tensor, extra: Tensor) -> Optimum:
    """The tilt of every row of `reference` (B, K, 6) at price `beta` (B,), by the trapezoidal rule.

    `target_share` gives P(target | x); `extra` (m, 2) are points that the grid must cover (the targets).
    Oracle in the tests: adaptive integration, and `gaussian_tilt` where it applies.
    """
    parts = []
    for row in range(reference.shape[0]):
        # The grid of a row depends on that row alone.
        one = reference[row : row + 1]
        points, area = grid(one, extra)
        phi = density.features(points)
        rewards, share = reward(points), target_share(points)
        logps, shares = density.normalise(density.joint(one, phi))
        tilted = logps + rewards / beta[row]
        peak = tilted.amax(-1, keepdim=True)
        weight = (tilted - peak).exp()
        total = weight.sum(-1, keepdim=True)
        weight = weight / total
        log_z = (peak + total.log()).squeeze(-1) + math.log(area)
        per_component = density.moments(shares * weight.unsqueeze(1), phi)
        parts.append(((log_z), (weight * rewards).sum(-1), (weight * share).sum(-1), per_component))
    log_z, mean_reward, mass, per_component = (torch.cat(part) for part in zip(*parts, strict=True))
    return Optimum(log_z, mean_reward, mass, per_component)


def moment_match(component_moments: Tensor, variance_floor: float) -> Tensor:
    """The mixture (B, K, 6) whose components have the given masses, means and covariances (an M-step on π*)."""
    mass = component_moments[..., 0].clamp(min=1e-300)
    mean = component_moments[..., 1:3] / mass.unsqueeze(-1)
    m1, m2 = mean.unbind(-1)
    second = component_moments[..., 3:] / mass.unsqueeze(-1)
    covariance = second - torch.stack((m1 * m1, m1 * m2, m2 * m2), dim=-1)
    return density.pack(mass, mean, floor_eigenvalues(covariance, variance_floor))


def gaussian_tilt(reference: Tensor, beta: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The tilt by R(x) = log N(x; μ_T, Σ_T), again a Gaussian mixture, in closed form.

    C_k = (Σ_k⁻¹ + (βΣ_T)⁻¹)⁻¹, m_k = C_k(Σ_k⁻¹μ_k + (βΣ_T)⁻¹μ_T), weights ∝ w_k N(μ_k; μ_T, Σ_k + βΣ_T).
    reference (B, K, 6), beta (B,), mean (2,), covariance (3,) as (σ₁₁, σ₁₂, σ₂₂). Returns parameters (B, K, 6) and
    log Z (B,), where Z = ∫ π_ref exp(R/β).
    """
    price = beta.reshape(-1, 1)
    scaled = [price * part for part in covariance]  # βΣ_T
    own = density.covariances(reference).unbind(-1)
    own_precision, target_precision = _inverse(*own), _inverse(*scaled)
    tilted = _inverse(*(a + b for a, b in zip(own_precision, target_precision, strict=True)))
    m1, m2 = reference[..., 1], reference[..., 2]
    p11, p12, p22 = own_precision
    q11, q12, q22 = target_precision
    e1 = p11 * m1 + p12 * m2 + q11 * mean[0] + q12 * mean[1]
    e2 = p12 * m1 + p22 * m2 + q12 * mean[0] + q22 * mean[1]
    c11, c12, c22 = tilted
    means = torch.stack((c11 * e1 + c12 * e2, c12 * e1 + c22 * e2), dim=-1)
    s11, s12, s22 = (a + b for a, b in zip(own, scaled, strict=True))
    i11, i12, i22 = _inverse(s11, s12, s22)
    d1, d2 = m1 - mean[0], m2 - mean[1]
    overlap = (
        -density.LOG_2PI
        - 0.5 * (s11 * s22 - s12 * s12).log()
        - 0.5 * (i11 * d1 * d1 + 2 * i12 * d1 * d2 + i22 * d2 * d2)
    )
    log_mass = density.log_weights(reference) + overlap
    # exp(log N(x; μ_T, Σ_T)/β) = N(x; μ_T, βΣ_T) · 2πβ|Σ_T|^½ · (2π|Σ_T|^½)^(−1/β)
    log_root = 0.5 * (covariance[0] * covariance[2] - covariance[1] ** 2).log()
    constant = density.LOG_2PI + beta.log() + log_root - (density.LOG_2PI + log_root) / beta
    log_z = torch.logsumexp(log_mass, dim=-1) + constant
    return density.pack(torch.softmax(log_mass, -1), means, torch.stack((c11, c12, c22), dim=-1)), log_z


def _inverse(s11: Tensor, s12: Tensor, s22: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    determinant = s11 * s22 - s12 * s12
    return s22 / determinant, -s12 / determinant, s11 / determinant
