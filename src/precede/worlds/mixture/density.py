"""Batches of two-dimensional Gaussian mixtures: density, sampling, gradients, expectations.

A mixture of K components is a tensor `parameters` (B, K, 6): per component the logit of its weight, the mean (2), and
the Cholesky factor of its covariance as (log l₁₁, l₂₁, log l₂₂). The leading axis B holds rows (settings × seeds) that
never touch one another: every operation here gives a row the same bits whatever other rows stand beside it.

The log-density of a component is linear in φ(x) = (1, x, y, x², xy, y²), an exponential family: log w_k N(x; μ_k, Σ_k)
= ⟨A_k, φ(x)⟩. So a density is one matrix product and a log-sum-exp, and the same moments Σ_i c_i r_ik φ(x_i) serve EM
and every gradient. Points are tensors (B, 2, n), features (B, 6, n). All is float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def features(points: Tensor) -> Tensor:
    """φ(x) = (1, x, y, x², xy, y²): (B, 2, n) → (B, 6, n)."""
    x, y = points[:, 0], points[:, 1]
    return torch.stack((torch.ones_like(x), x, y, x * x, x * y, y * y), dim=1)


def pack(weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """Parameters (B, K, 6) from weights (B, K) > 0, means (B, K, 2), covariances (B, K, 3) as (σ₁₁, σ₁₂, σ₂₂)."""
    s11, s12, s22 = covariances.unbind(-1)
    l11 = s11.sqrt()
    l21 = s12 / l11
    l22 = (s22 - l21 * l21).sqrt()
    return torch.stack((weights.log(), means[..., 0], means[..., 1], l11.log(), l21, l22.log()), dim=-1)


def products(means: Tensor) -> Tensor:
    """(x², xy, y²) of vectors: (..., 2) → (..., 3), what a second moment exceeds its covariance by."""
    x, y = means.unbind(-1)
    return torch.stack((x * x, x * y, y * y), dim=-1)


def log_weights(parameters: Tensor) -> Tensor:
    """Normalised log weights (B, K)."""
    return torch.log_softmax(parameters[..., 0], dim=-1)


def covariances(parameters: Tensor) -> Tensor:
    """Covariances (B, K, 3) as (σ₁₁, σ₁₂, σ₂₂)."""
    l11, l21, l22 = parameters[..., 3].exp(), parameters[..., 4], parameters[..., 5].exp()
    return torch.stack((l11 * l11, l11 * l21, l21 * l21 + l22 * l22), dim=-1)


def least_deviations(parameters: Tensor) -> Tensor:
    """Square roots (B, K) of the smaller eigenvalues of the covariances."""
    s11, s12, s22 = covariances(parameters).unbind(-1)
    middle, half = 0.5 * (s11 + s22), 0.5 * (s11 - s22)
    return (middle - (half * half + s12 * s12).sqrt()).clamp(min=1e-300).sqrt()


def natural(parameters: Tensor) -> Tensor:
    """Coefficients A (B, K, 6) with log w_k N(x; μ_k, Σ_k) = ⟨A_k, φ(x)⟩."""
    _, m1, m2, log_l11, l21, log_l22 = parameters.unbind(-1)
    i11, i22 = (-log_l11).exp(), (-log_l22).exp()  # the inverse factor is (i11, 0; i21, i22)
    i21 = -l21 * i11 * i22
    p11, p12, p22 = i11 * i11 + i21 * i21, i21 * i22, i22 * i22  # precision
    e1, e2 = p11 * m1 + p12 * m2, p12 * m1 + p22 * m2
    constant = log_weights(parameters) - LOG_2PI - log_l11 - log_l22 - 0.5 * (m1 * e1 + m2 * e2)
    return torch.stack((constant, e1, e2, -0.5 * p11, -p12, -0.5 * p22), dim=-1)


def joint(parameters: Tensor, phi: Tensor) -> Tensor:
    """log w_k N(x_i; μ_k, Σ_k): (B, K, n)."""
    return torch.bmm(natural(parameters), phi)


def normalise(joint_logps: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density (B, n) and responsibilities (B, K, n) from `joint`, whose memory is reused."""
    peak = joint_logps.amax(1, keepdim=True)
    shares = joint_logps.sub_(peak).exp_()
    total = shares.sum(1, keepdim=True)
    shares.div_(total)
    return total.log_().add_(peak).squeeze(1), shares


def log_density(parameters: Tensor, points: Tensor) -> Tensor:
    """log p(x_i): (B, K, 6), (B, 2, n) → (B, n), in nats. Oracle in the tests: SciPy."""
    return normalise(joint(parameters, features(points)))[0]


def moments(shares: Tensor, phi: Tensor) -> Tensor:
    """Σ_i shares_ik φ(x_i): (B, K, n), (B, 6, n) → (B, K, 6).

    Rows are filled up with zeros to whole cache lines: where a row begins elsewhere in memory a matrix product may add in
    another order, and then a row's bits would depend on its place in the batch.
    """
    if missing := -shares.shape[-1] % 8:
        shares, phi = (torch.nn.functional.pad(rows, (0, missing)) for rows in (shares, phi))
    return torch.bmm(shares, phi.transpose(1, 2))


def gradient(parameters: Tensor, weighted: Tensor) -> Tensor:
    """∂/∂parameters of Σ_i c_i log p(x_i), given the moments Σ_i c_i r_ik φ(x_i) (B, K, 6). Oracle: finite differences."""
    _, m1, m2, log_l11, l21, log_l22 = parameters.unbind(-1)
    i11, i22 = (-log_l11).exp(), (-log_l22).exp()
    s0 = weighted[..., 0]
    d1, d2 = weighted[..., 1] - s0 * m1, weighted[..., 2] - s0 * m2  # Σ c r (x − μ)
    d11 = weighted[..., 3] - 2 * m1 * weighted[..., 1] + s0 * m1 * m1
    d12 = weighted[..., 4] - m1 * weighted[..., 2] - m2 * weighted[..., 1] + s0 * m1 * m2
    d22 = weighted[..., 5] - 2 * m2 * weighted[..., 2] + s0 * m2 * m2
    ratio = l21 * i11
    z1, z2 = d1 * i11, (d2 - ratio * d1) * i22  # z = L⁻¹(x − μ)
    z11 = d11 * i11 * i11
    z12 = (d12 - ratio * d11) * i11 * i22
    z22 = (d22 - 2 * ratio * d12 + ratio * ratio * d11) * i22 * i22
    return torch.stack(
        (
            s0 - log_weights(parameters).exp() * s0.sum(-1, keepdim=True),
            i11 * (z1 - l21 * i22 * z2),
            i22 * z2,
            z11 - s0 - l21 * i22 * z12,
            z12 * i22,
            z22 - s0,
        ),
        dim=-1,
    )


def sharpen(parameters: Tensor, temperature: Tensor | float) -> Tensor:
    """The mixture sampled at τ: weights raised to 1/τ and renormalised, components as they are. τ is (B,) or a number."""
    power = 1 / torch.as_tensor(temperature, dtype=parameters.dtype).reshape(-1, 1)
    result = parameters.clone()
    result[..., 0] = torch.log_softmax(log_weights(parameters) * power, dim=-1)
    return result


def sample(parameters: Tensor, noise: Tensor) -> Tensor:
    """Points (B, 2, n) from noise (B, 3, n): one uniform [0, 1) that picks the component, two standard normals."""
    cumulative = log_weights(parameters).exp().cumsum(-1)
    picks = torch.searchsorted(cumulative[..., :-1].contiguous(), noise[:, 0].contiguous(), right=True)
    _, m1, m2, log_l11, l21, log_l22 = parameters.unbind(-1)
    table = torch.stack((m1, m2, log_l11.exp(), l21, log_l22.exp()), dim=1)
    m1, m2, l11, l21, l22 = table.gather(2, picks.unsqueeze(1).expand(-1, 5, -1)).unbind(1)
    z1, z2 = noise[:, 1], noise[:, 2]
    return torch.stack((m1 + l11 * z1, m2 + l21 * z1 + l22 * z2), dim=1)


def draw_noise(generators: list[torch.Generator], count: int, repeat: int = 1) -> Tensor:
    """Noise (repeat·S, 3, count) for `sample`: one generator per seed; each block of S rows gets the same draws."""
    rows = []
    for generator in generators:
        uniform = torch.rand(1, count, generator=generator, dtype=torch.float64)
        normal = torch.randn(2, count, generator=generator, dtype=torch.float64)
        rows.append(torch.cat((uniform, normal)))
    return torch.stack(rows).repeat(repeat, 1, 1)
