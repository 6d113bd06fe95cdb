"""The exact optimum of alignment, π*(x) ∝ π_ref(x) exp(R(x)/β), by closed form or by quadrature on a grid.

It serves three purposes: the `exact` method; the optimal reward and target mass that each aligned model is held
against; and how far it fell short, J* − J(π) = β KL(π ‖ π*), with J = E_π R − β KL(π ‖ π_ref) and J* = β log Z.
The same grid has the extrapolation π^λ·π_ref^(1−λ) of an alignment, which of a tilt is the tilt at β/λ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from precede.worlds.mixture import density
from precede.worlds.mixture.fit import floor_eigenvalues
from precede.worlds.mixture.quadrature import Columns, component_means, weighted
from precede.worlds.mixture.truth import Truth

MOST_NODES_PER_AXIS = 2401
"""Beyond this the optimum is not resolved and its numbers are NaN."""
WIDER = (1.0, 2.0, 4.0)
"""How much farther than six deviations of its two models an extrapolation is looked for: its components move outwards."""
NEGLIGIBLE = 1e-6
"""Mass on the border of a grid from which it is too small."""
RIDGE_NODES_PER_AXIS = 401
"""Nodes that are spent on the ridges between modes at most."""


@dataclass
class Optimum:
    """π* against one reference per row: log Z (B,), E_π* R (B,), P_π*[target] (B,), and π* as a mixture (B, K, 6).

    `model` is π* itself where that is a Gaussian mixture, else its projection: the mixture whose components have the
    masses, means and covariances that the tilt gives to the reference's components.
    """

    log_z: Tensor
    reward: Tensor
    target_mass: Tensor
    model: Tensor


def optimum(reference: Tensor, truth: Truth, beta: Tensor, variance_floor: float) -> Optimum:
    """The tilt of every row of `reference` (B, K, 6) by the truth's reward at price `beta` (B,).

    In closed form for the log-density of one target, else by the trapezoidal rule on a grid that resolves reference and
    tilt (see `grid`); NaN where it would take more than MOST_NODES_PER_AXIS. `variance_floor` is that of a projection.
    Oracles in the tests: adaptive integration, and closed form against grid.
    """
    if truth.reward_kind == "log_density" and len(truth.target_modes) == 1:
        target = truth.target[0, 0]
        model, log_z = gaussian_tilt(reference, beta, target[1:3], density.covariances(target))

        def of_truth(points: Tensor, rows: Tensor) -> Columns:
            return truth.reward(points), truth.target_share(points)

        reward, mass = component_means(model, truth.ridge_width, of_truth)
        return Optimum(log_z, weighted(model, reward), weighted(model, mass), model)
    # The grid of a row depends on that row alone.
    rows = [_on_grid(reference[i : i + 1], truth, beta[i : i + 1]) for i in range(len(reference))]
    log_z, reward, mass, moments = (torch.cat(part) for part in zip(*rows, strict=True))
    return Optimum(log_z, reward, mass, moment_match(moments, variance_floor))


def _on_grid(reference: Tensor, truth: Truth, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log Z (1,), E R (1,), target mass (1,) and component moments (1, K, 6) of one tilt, by quadrature."""
    nodes = grid(reference, truth, float(beta))
    if nodes is None:
        undefined = torch.full((1,), math.nan, dtype=reference.dtype)
        return undefined, undefined, undefined, torch.full_like(reference, math.nan)
    points, area = nodes
    phi = density.features(points)
    rewards, share = truth.reward(points), truth.target_share(points)
    logps, shares = density.normalise(density.joint(reference, phi))
    tilted = logps + rewards / beta
    peak = tilted.amax(-1, keepdim=True)
    weight = (tilted - peak).exp()
    total = weight.sum(-1, keepdim=True)
    weight = weight / total
    log_z = (peak + total.log()).squeeze(-1) + math.log(area)
    moments = density.moments(shares * weight.unsqueeze(1), phi)
    return log_z, (weight * rewards).sum(-1), (weight * share).sum(-1), moments


def grid(reference: Tensor, truth: Truth, beta: float) -> tuple[Tensor, float] | None:
    """Nodes (1, 2, N²) of a square grid for the tilt of one reference (1, K, 6), and the area of a cell; None if too many.

    The square reaches six standard deviations beyond the components that matter (weight above 1e-12) and the targets. The
    step is 0.8 of the smallest standard deviation that a tilted component can have, for which the trapezoidal rule of a
    Gaussian is exact to 1e-13, or two ridge widths of the truth, if that is less and affordable.
    """
    matter = density.log_weights(reference) > math.log(1e-12)
    deviations = density.covariances(reference)[..., [0, 2]].sqrt()
    reach = (reference[..., 1:3].abs() + 6 * deviations)[matter].max()
    half = float(torch.maximum(reach, truth.target[..., 1:3].abs().max()))
    narrow = float(density.least_deviations(reference)[matter].min())
    sharp = truth.reward_scale * math.sqrt(beta)
    return _square(half, (narrow**-2 + sharp**-2) ** -0.5, truth.ridge_width)


def _square(half: float, narrow: float, ridge_width: float) -> tuple[Tensor, float] | None:
    """Nodes (1, 2, N²) of [−half, half]² for components of this smallest standard deviation, and the area of a cell."""
    step = min(0.8 * narrow, max(2 * ridge_width, 2 * half / RIDGE_NODES_PER_AXIS))
    nodes = math.ceil(2 * half / step) + 1
    if nodes > MOST_NODES_PER_AXIS:
        return None
    axis = torch.linspace(-half, half, nodes, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis).T.unsqueeze(0), (2 * half / (nodes - 1)) ** 2


def extrapolated(
    aligned: Tensor, reference: Tensor, truth: Truth, extrapolation: Tensor, variance_floor: float
) -> Tensor:
    """π^λ·π_ref^(1−λ), normalised, of every row of `aligned` (B, K, 6) and `reference` (B, J, 6) at λ = `extrapolation` (B,).

    The density is multiplied point by point on a grid. As with `optimum`, the mixture (B, K, 6) that is returned is the density
    itself where that is a mixture of the aligned components, tilted (the exact tilt of one target's log-density), else its
    projection on them. Raises ValueError where the density cannot be normalised: beyond λ = 1 it grows outwards where the
    aligned components are wider than those of the reference. Oracle in the tests: the tilt at β/λ.
    """
    rows = [
        _extrapolated_row(aligned[i : i + 1], reference[i : i + 1], truth, float(extrapolation[i]))
        for i in range(len(aligned))
    ]
    return moment_match(torch.cat(rows), variance_floor)


def _extrapolated_row(aligned: Tensor, reference: Tensor, truth: Truth, extrapolation: float) -> Tensor:
    """Component moments (1, K, 6)."""
    reaches, narrow = [], []
    for model in (aligned, reference):
        matter = density.log_weights(model) > math.log(1e-12)
        deviations = density.covariances(model)[..., [0, 2]].sqrt()
        reaches.append(float((model[..., 1:3].abs() + 6 * deviations)[matter].max()))
        narrow.append(float(density.least_deviations(model)[matter].min()))
    # The precision is λ times the aligned one and 1 − λ times the other's: below 1 between the two, above 1 at most λ times.
    least = narrow[0] / math.sqrt(extrapolation) if extrapolation > 1 else min(narrow)
    for wider in WIDER:
        nodes = _square(wider * max(reaches), least, truth.ridge_width)
        if nodes is None:
            break
        phi = density.features(nodes[0])
        logps, shares = density.normalise(density.joint(aligned, phi))
        reference_logps, _ = density.normalise(density.joint(reference, phi))
        scores = reference_logps + extrapolation * (logps - reference_logps)
        weight = torch.softmax(scores, dim=-1)
        side = math.isqrt(weight.shape[-1])
        inside = weight.reshape(side, side)[1:-1, 1:-1].sum()
        if 1 - float(inside) < NEGLIGIBLE:
            return density.moments(shares * weight.unsqueeze(1), phi)
    raise ValueError(
        f"extrapolation {extrapolation:g} of this alignment is no distribution that can be integrated: its density grows "
        "outwards, or is too narrow; take one nearer to 1"
    )


def moment_match(component_moments: Tensor, variance_floor: float) -> Tensor:
    """The mixture (B, K, 6) whose components have the given masses, means and covariances (an M-step on π*)."""
    mass = component_moments[..., 0].clamp(min=1e-300)
    mean = component_moments[..., 1:3] / mass.unsqueeze(-1)
    covariance = component_moments[..., 3:] / mass.unsqueeze(-1) - density.products(mean)
    return density.pack(mass, mean, floor_eigenvalues(covariance, variance_floor))


def gaussian_tilt(reference: Tensor, beta: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The tilt by R(x) = log N(x; μ_T, Σ_T), again a Gaussian mixture, in closed form.

    C_k = (Σ_k⁻¹ + (βΣ_T)⁻¹)⁻¹, m_k = C_k(Σ_k⁻¹μ_k + (βΣ_T)⁻¹μ_T), weights ∝ w_k N(μ_k; μ_T, Σ_k + βΣ_T).
    reference (B, K, 6), beta (B,), mean (2,), covariance (3,) as (σ₁₁, σ₁₂, σ₂₂). Returns parameters (B, K, 6) and
    log Z (B,), where Z = ∫ π_ref exp(R/β).
    """
    price = beta.reshape(-1, 1)
    scaled = [price * part for part in covariance]  # βΣ_T
    covariances = density.covariances(reference).unbind(-1)
    p11, p12, p22 = _inverse(*covariances)
    q11, q12, q22 = _inverse(*scaled)
    c11, c12, c22 = _inverse(p11 + q11, p12 + q12, p22 + q22)
    m1, m2 = reference[..., 1], reference[..., 2]
    e1 = p11 * m1 + p12 * m2 + q11 * mean[0] + q12 * mean[1]
    e2 = p12 * m1 + p22 * m2 + q12 * mean[0] + q22 * mean[1]
    means = torch.stack((c11 * e1 + c12 * e2, c12 * e1 + c22 * e2), dim=-1)
    s11, s12, s22 = (a + b for a, b in zip(covariances, scaled, strict=True))
    i11, i12, i22 = _inverse(s11, s12, s22)
    d1, d2 = m1 - mean[0], m2 - mean[1]
    distance = i11 * d1 * d1 + 2 * i12 * d1 * d2 + i22 * d2 * d2
    overlap = -density.LOG_2PI - 0.5 * (s11 * s22 - s12 * s12).log() - 0.5 * distance
    log_mass = density.log_weights(reference) + overlap
    # exp(log N(x; μ_T, Σ_T)/β) = N(x; μ_T, βΣ_T) · 2πβ|Σ_T|^½ · (2π|Σ_T|^½)^(−1/β)
    log_root = 0.5 * (covariance[0] * covariance[2] - covariance[1] ** 2).log()
    constant = density.LOG_2PI + beta.log() + log_root - (density.LOG_2PI + log_root) / beta
    log_z = torch.logsumexp(log_mass, dim=-1) + constant
    model = density.pack(torch.ones_like(log_mass), means, torch.stack((c11, c12, c22), dim=-1))
    model[..., 0] = torch.log_softmax(log_mass, dim=-1)  # from logs: a weight may be too small for a float
    return model, log_z


def _inverse(s11: Tensor, s12: Tensor, s22: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    determinant = s11 * s22 - s12 * s12
    return s22 / determinant, -s12 / determinant, s11 / determinant
