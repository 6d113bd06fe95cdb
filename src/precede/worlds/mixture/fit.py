"""Gaussian mixtures by expectation–maximisation, many data sets at once (Dempster, Laird & Rubin 1977).

Rows are data sets; the restarts of a row share its features and sit on a second axis. A row runs until its own restarts
have converged, so that its result does not depend on the rows beside it. Oracle in the tests: scikit-learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from precede.worlds.mixture import density

CHECK_EVERY_STEPS = 8
"""Convergence is looked at on these steps only, whatever rows run side by side."""
EMPTY_POINTS = 0.1
"""A component that explains fewer points than this is empty and is moved to the worst explained point."""


@dataclass
class Fit:
    """Result of EM: parameters (B, K, 6), mean log-likelihood (B,) in nats per point, EM steps taken (B,)."""

    parameters: Tensor
    mean_logp: Tensor
    steps: Tensor


def fit(
    points: Tensor,
    components: int,
    *,
    uniforms: Tensor,
    max_iterations: int = 200,
    tolerance: float = 1e-4,
    variance_floor: float = 1e-3,
) -> Fit:
    """Fit mixtures of `components` to the data sets `points` (B, 2, n); the best of R restarts by likelihood.

    `uniforms` (B, R, K, T) in [0, 1) drives k-means++ with T trials per centre (see `initial_centres`).
    EM on a restart stops when the mean log-likelihood gains less than `tolerance`, or after `max_iterations`.
    Covariances keep every eigenvalue at or above `variance_floor`. Raises ValueError on points that are not finite.
    """
    if not bool(torch.isfinite(points).all()):
        raise ValueError("points to fit are not finite")
    start = nearest_centre_start(points, initial_centres(points, uniforms), variance_floor)
    return em(points, start, max_iterations=max_iterations, tolerance=tolerance, variance_floor=variance_floor)


def initial_centres(points: Tensor, uniforms: Tensor) -> Tensor:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): centres (B, R, K, 2) for data (B, 2, n).

    The first centre is a random point; each next is drawn with probability proportional to the squared distance to the
    nearest centre so far, as the best (lowest remaining squared distance) of T trials. uniforms: (B, R, K, T).
    """
    rows, _, n = points.shape
    restarts, components = uniforms.shape[1:3]
    closest = torch.full((rows, restarts, n), math.inf, dtype=points.dtype)
    x, y = points[:, None, None, 0], points[:, None, None, 1]
    chosen = []
    for k in range(components):
        draw = uniforms[:, :, k]
        if k == 0:
            picks = (draw[..., :1] * n).long().clamp_(max=n - 1)
        else:
            cumulative = closest.cumsum(-1)
            total = cumulative[..., -1:]
            picks = torch.searchsorted(cumulative, (draw * total).contiguous(), right=True).clamp_(max=n - 1)
            spread = (draw * n).long().clamp_(max=n - 1)  # all points coincide with centres: any point will do
            picks = torch.where(total > 0, picks, spread)
        flat = picks.reshape(rows, 1, -1).expand(-1, 2, -1)
        candidates = points.gather(2, flat).reshape(rows, 2, restarts, picks.shape[-1])
        cx, cy = candidates[:, 0, :, :, None], candidates[:, 1, :, :, None]
        distance = torch.minimum((x - cx).square_().add_((y - cy).square_()), closest.unsqueeze(2))
        index = distance.sum(-1).argmin(-1)[:, :, None, None]
        closest = distance.gather(2, index.expand(-1, -1, 1, n)).squeeze(2)
        chosen.append(candidates.permute(0, 2, 3, 1).gather(2, index.expand(-1, -1, 1, 2)).squeeze(2))
    return torch.stack(chosen, dim=2)


def nearest_centre_start(points: Tensor, centres: Tensor, variance_floor: float) -> Tensor:
    """Parameters (B, R, K, 6) from giving each point to its nearest centre (B, R, K, 2)."""
    rows, restarts, components, _ = centres.shape
    cx, cy = centres[..., 0].reshape(rows, -1, 1), centres[..., 1].reshape(rows, -1, 1)
    distance = (points[:, :1] - cx).square_().add_((points[:, 1:] - cy).square_())
    owner = distance.reshape(rows, restarts, components, -1).argmin(2, keepdim=True)
    shares = torch.zeros(rows, restarts, components, points.shape[-1], dtype=points.dtype).scatter_(2, owner, 1.0)
    return _maximise(shares, density.features(points), None, variance_floor)


def em(points: Tensor, start: Tensor, *, max_iterations: int, tolerance: float, variance_floor: float) -> Fit:
    """EM from given parameters `start` (B, R, K, 6); the best restart of every row. See `fit`."""
    rows, restarts, components, _ = start.shape
    phi = density.features(points)
    parameters = start.clone()
    level = torch.full((rows, restarts), -math.inf, dtype=points.dtype)
    steps = torch.zeros(rows, dtype=torch.long)
    active = torch.arange(rows)
    here, phi_here, level_here = start, phi, level
    for step in range(1, max_iterations + 1):
        joint = torch.bmm(density.natural(here).reshape(len(active), -1, 6), phi_here)
        logps, shares = density.normalise(joint.reshape(-1, components, joint.shape[-1]))
        logps = logps.reshape(len(active), restarts, -1)
        reached = logps.mean(-1)
        level[active], steps[active] = reached, step
        shares = shares.reshape(len(active), restarts, components, -1)
        # A row is done when none of its restarts gained: its parameters are those whose likelihood was just measured.
        going = ~(reached - level_here < tolerance).all(-1)
        if step % CHECK_EVERY_STEPS == 0 and not bool(going.all()):
            parameters[active] = here
            active = active[going]
            if len(active) == 0:
                break
            here, phi_here, reached = here[going], phi_here[going], reached[going]
            logps, shares = logps[going], shares[going]
        if step < max_iterations:
            here = _maximise(shares, phi_here, logps, variance_floor)
        level_here = reached
    else:
        parameters[active] = here
    best = torch.arange(rows), level.argmax(-1)
    return Fit(parameters[best], level[best], steps)


def _maximise(shares: Tensor, phi: Tensor, logps: Tensor | None, variance_floor: float) -> Tensor:
    """M-step: parameters (B, R, K, 6) from shares (B, R, K, n). Empty components move to the worst explained point."""
    rows, restarts, components, n = shares.shape
    sums = density.moments(shares.reshape(rows, -1, n), phi).reshape(rows, restarts, components, 6)
    mass = sums[..., 0]
    empty = mass < EMPTY_POINTS
    safe = mass.clamp(min=EMPTY_POINTS).unsqueeze(-1)
    means, second = sums[..., 1:3] / safe, sums[..., 3:] / safe
    covariance = second - density.products(means)
    if bool(empty.any()):
        worst = torch.zeros(rows, restarts, dtype=torch.long) if logps is None else logps.argmin(-1)
        point = phi[:, 1:3].gather(2, worst.unsqueeze(1).expand(-1, 2, -1)).transpose(1, 2)
        overall = phi.mean(-1)
        spread = overall[:, 3:] - density.products(overall[:, 1:3])
        means = torch.where(empty.unsqueeze(-1), point.unsqueeze(2), means)
        covariance = torch.where(empty.unsqueeze(-1), spread[:, None, None] / components, covariance)
        mass = torch.where(empty, torch.ones_like(mass), mass)
    return density.pack(mass / n, means, floor_eigenvalues(covariance, variance_floor))


def floor_eigenvalues(covariance: Tensor, floor: float) -> Tensor:
    """Covariances (..., 3) as (σ₁₁, σ₁₂, σ₂₂) with both eigenvalues raised to at least `floor`."""
    s11, s12, s22 = covariance.unbind(-1)
    middle, half = 0.5 * (s11 + s22), 0.5 * (s11 - s22)
    radius = (half * half + s12 * s12).sqrt()
    low, high = (middle - radius).clamp(min=floor), (middle + radius).clamp(min=floor)
    scale = torch.where(radius > 0, 0.5 * (high - low) / radius.clamp(min=1e-300), torch.zeros_like(radius))
    centre = 0.5 * (high + low)
    raised = torch.stack((centre + scale * half, scale * s12, centre - scale * half), dim=-1)
    return torch.where((middle - radius < floor).unsqueeze(-1), raised, covariance)
