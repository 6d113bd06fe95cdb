"""Expectations under Gaussian mixtures by the trapezoidal rule, component by component, in whitened coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from precede.worlds.mixture import density

CHUNK_POINTS = 45_000
"""Points evaluated at once, so that a chunk stays in cache."""

Columns = Sequence[Tensor]


def _whitened_rule(spacing: float, radius: float = 6.0) -> tuple[Tensor, Tensor]:
    """Nodes z (2, q) and weights (q,) that sum to 1: the trapezoidal rule for a standard normal in the plane.

    For smooth integrands the rule converges faster than any power of the spacing (Trefethen & Weideman 2014).
    """
    axis = torch.arange(-radius, radius + spacing / 2, spacing, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis).T.contiguous()
    z = z[:, (z * z).sum(0) <= radius * radius]
    weights = (-0.5 * (z * z).sum(0)).exp()
    return z, weights / weights.sum()


RULES = {spacing: _whitened_rule(spacing) for spacing in (0.2, 0.1, 0.05)}
"""Quadrature rules for one component, by spacing in its standard deviations: (nodes z (2, q), weights (q,))."""


def component_nodes(components: Tensor, spacing: float) -> Tensor:
    """Quadrature nodes μ + L z_j of components (C, 6): (C, 2, q), to be weighted by RULES[spacing][1]."""
    _, m1, m2, log_l11, l21, log_l22 = (part.unsqueeze(1) for part in components.unbind(-1))
    z1, z2 = RULES[spacing][0]
    return torch.stack((m1 + log_l11.exp() * z1, m2 + l21 * z1 + log_l22.exp() * z2), dim=1)


def component_means(
    parameters: Tensor, ridge_width: float, function: Callable[[Tensor, Tensor], Columns]
) -> list[Tensor]:
    """E under each component, (B, K) each, of what `function` gives at points (C, 2, q) of rows (C,): some (C, q)."""
    rows, components, _ = parameters.shape
    flat, owners = parameters.reshape(-1, 6), torch.arange(rows).repeat_interleave(components)
    widest = density.covariances(flat)[:, [0, 2]].amax(-1).sqrt()
    totals: list[Tensor] = []
    spacings = sorted(RULES, reverse=True)
    for level, spacing in enumerate(spacings):
        # Nodes at most two ridge widths apart resolve a ridge (e^−π² of its height); the last rule takes all that is left.
        fits = widest * spacing <= 2 * ridge_width
        taken = widest * spacings[level - 1] <= 2 * ridge_width if level else torch.zeros_like(fits)
        chosen = (~taken & (fits | (level == len(spacings) - 1))).nonzero().squeeze(-1)
        nodes, weights = RULES[spacing]
        size = max(1, CHUNK_POINTS // nodes.shape[1])
        for begin in range(0, len(chosen), size):
            part = chosen[begin : begin + size]
            values = function(component_nodes(flat[part], spacing), owners[part])
            totals = totals or [torch.empty(rows * components, dtype=parameters.dtype) for _ in values]
            for total, value in zip(totals, values, strict=True):
                total[part] = (value * weights).sum(-1)
    return [total.reshape(rows, components) for total in totals]


def weighted(parameters: Tensor, per_component: Tensor) -> Tensor:
    """Σ_k w_k v_k: mixtures (B, K, 6), values (B, K) → (B,)."""
    return (density.log_weights(parameters).exp() * per_component).sum(-1)
