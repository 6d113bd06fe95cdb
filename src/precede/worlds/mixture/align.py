"""Alignment of Gaussian mixtures: PPO, DPO, and the exact tilt. Batched over settings × seeds.

Every method maximises E_π R − β KL(π ‖ π_ref), whose optimum is the tilt π*(x) ∝ π_ref(x) exp(R(x)/β) (Rafailov et al.
2023, eq. 4). β is the price of KL, reward units per nat. Gradients are in closed form (`density.gradient`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from precede.worlds.mixture import density

Reward = Callable[[Tensor], Tensor]
"""Points (B, 2, n) → rewards (B, n)."""


class Diverged(RuntimeError):
    """Training left the finite numbers; the message names method, step and row."""


class _Ascent:
    """Adam on mixture parameters (B, K, 6), with the learning rate falling linearly to 0 over the run."""

    def __init__(self, start: Tensor, learning_rate: float, steps: int, variance_floor: float) -> None:
        self.parameters = start.clone()
        self._optimizer = torch.optim.Adam([self.parameters], lr=learning_rate, maximize=True, foreach=False)
        self._schedule = torch.optim.lr_scheduler.LinearLR(self._optimizer, 1.0, 0.0, total_iters=steps)
        self._floor = 0.5 * torch.tensor(variance_floor, dtype=start.dtype).log()

    def step(self, shares: Tensor, phi: Tensor, method: str, number: int) -> None:
        """Ascend Σ_i c_i log π(x_i), from the weighted responsibilities c_i r_ik (B, K, n) of points φ(x_i) (B, 6, n)."""
        gradient = density.gradient(self.parameters, density.moments(shares, phi))
        finite = torch.isfinite(gradient).flatten(1).all(-1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise Diverged(f"{method} diverged: the gradient of row {row} is not finite at step {number}")
        self.parameters.grad = gradient
        self._optimizer.step()
        self._schedule.step()
        self.parameters[..., 3].clamp_(min=self._floor)
        self.parameters[..., 5].clamp_(min=self._floor)


def ppo(
    start: Tensor,
    reference: Tensor,
    reward: Reward,
    beta: Tensor,
    noise: Iterator[Tensor],
    *,
    steps: int,
    epochs: int,
    clip: float,
    learning_rate: float,
    variance_floor: float,
) -> Tensor:
    """Proximal policy optimisation with the KL price inside the reward (Schulman et al. 2017, eq. 7; Ziegler et al. 2019).

    Each of `steps` rounds samples points from the policy with the next `noise` (B, 3, n), shapes their reward as
    R(x) − β log(π(x)/π_ref(x)), takes off the mean of the round as a baseline, and makes `epochs` ascent steps on
    E min(ρA, clip(ρ, 1 ± clip)A) with ρ = π/π_old. Returns the aligned parameters (B, K, 6); `beta` is (B,).
    Raises Diverged.
    """
    ascent = _Ascent(start, learning_rate, steps * epochs, variance_floor)
    price = beta.unsqueeze(-1)
    for number in range(steps):
        points = density.sample(ascent.parameters, next(noise))
        phi = density.features(points)
        old_logps, shares = density.normalise(density.joint(ascent.parameters, phi))
        reference_logps, _ = density.normalise(density.joint(reference, phi))
        shaped = reward(points) - price * (old_logps - reference_logps)
        advantage = (shaped - shaped.mean(-1, keepdim=True)) / points.shape[-1]
        for epoch in range(epochs):
            coefficient = advantage
            if epoch > 0:
                logps, shares = density.normalise(density.joint(ascent.parameters, phi))
                coefficient = clipped_coefficient((logps - old_logps).exp(), advantage, clip)
            ascent.step(shares.mul_(coefficient.unsqueeze(1)), phi, "ppo", number)
    return ascent.parameters


def clipped_coefficient(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """∂/∂log π of min(ρA, clip(ρ, 1 ± clip)A): ρA where the minimum is not clipped, else 0 (Schulman et al. 2017, eq. 7)."""
    inside = torch.where(advantage > 0, ratio < 1 + clip, ratio > 1 - clip)
    return torch.where(inside, ratio * advantage, torch.zeros_like(advantage))


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, coefficient: Tensor | float
) -> tuple[Tensor, Tensor]:
    """DPO's loss per pair −log σ(h), and ∂loss/∂log π(chosen) = −coefficient·σ(−h) (Rafailov et al. 2023, eq. 7).

    h = coefficient·[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]; the derivative with respect to the
    rejected log-prob is the negative. The log-probs log π of `chosen` and `rejected`, and those of the reference, are in
    nats and of one shape. Oracle in the tests: TRL.
    """
    margin = coefficient * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -torch.nn.functional.logsigmoid(margin), -coefficient * logistic(-margin)


def dpo(
    start: Tensor,
    reference: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    coefficient: Tensor,
    *,
    steps: int,
    learning_rate: float,
    variance_floor: float,
) -> Tensor:
    """Direct preference optimisation on pairs (B, 2, n), full batch, `coefficient` (B,). Returns (B, K, 6). Raises Diverged.

    If labels follow Bradley–Terry with scale s, P(1 ≻ 2) = σ((R₁ − R₂)/s), then coefficient β/s makes the tilt
    π_ref exp(R/β) the optimum, so that β keeps its unit, reward per nat (`dpo_coefficient`).
    """
    ascent = _Ascent(start, learning_rate, steps, variance_floor)
    phi = density.features(torch.cat((chosen, rejected), dim=-1))
    reference_chosen, reference_rejected = density.normalise(density.joint(reference, phi))[0].chunk(2, -1)
    scale = coefficient.unsqueeze(-1)
    for number in range(steps):
        logps, shares = density.normalise(density.joint(ascent.parameters, phi))
        chosen_logps, rejected_logps = logps.chunk(2, -1)
        _, slope = dpo_loss(chosen_logps, rejected_logps, reference_chosen, reference_rejected, scale)
        per_point = torch.cat((-slope, slope), dim=-1).div_(chosen.shape[-1])
        ascent.step(shares.mul_(per_point.unsqueeze(1)), phi, "dpo", number)
    return ascent.parameters


def logistic(x: Tensor) -> Tensor:
    """σ(x), elementwise. torch.sigmoid gives the last few elements of a tensor other bits than the rest; exp does not."""
    return 1 / (1 + (-x).exp())


def dpo_coefficient(beta: Tensor, scale: float) -> Tensor:
    """β/s for Bradley–Terry labels of scale s; β itself where labels carry no noise (s = 0), which have no finite scale."""
    return beta / scale if scale > 0 else beta


def label(
    first: Tensor, second: Tensor, reward: Reward, uniforms: Tensor, *, scale: float, flip_rate: float
) -> tuple[Tensor, Tensor]:
    """Chosen and rejected points (B, 2, n) of pairs: Bradley–Terry with `scale`, then a share `flip_rate` turned round.

    P(first ≻ second) = σ((R₁ − R₂)/scale), or the higher reward where scale is 0. uniforms: (B, 2, n) in [0, 1).
    """
    gap = reward(first) - reward(second)
    prefer = logistic(gap / scale) if scale > 0 else (gap > 0).to(gap.dtype)
    first_wins = ((uniforms[:, 0] < prefer) ^ (uniforms[:, 1] < flip_rate)).unsqueeze(1)
    return torch.where(first_wins, first, second), torch.where(first_wins, second, first)
