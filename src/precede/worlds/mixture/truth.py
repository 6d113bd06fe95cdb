"""The truth of the mixture world: layout, weights, target and reward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precede.worlds.mixture import density


@dataclass
class Truth:
    """p* as one row of parameters (1, K, 6), p_T as the target modes alone (1, T, 6), and the target modes' numbers."""

    parameters: Tensor
    target: Tensor
    target_modes: list[int]
    reward_kind: str
    reward_width: float

    def reward(self, points: Tensor) -> Tensor:
        """R(x), (B, 2, n) → (B, n): the nearest target's bump exp(−‖x−μ_T‖²/2s²), or log p_T(x)."""
        if self.reward_kind == "log_density":
            return self.target_logps(points)
        offsets = points.unsqueeze(1) - self.target[0, :, 1:3, None]  # (B, T, 2, n)
        squared = (offsets * offsets).sum(2).amin(1)
        return (-squared / (2 * self.reward_width**2)).exp()

    @property
    def ridge_width(self) -> float:
        """Width of the ridge where one mode takes over from its neighbour: the posterior is a logistic of that scale there.

        1/|Σ⁻¹(μ_i − μ_j)|, the smallest over the modes and their nearest neighbours; in units of the plane.
        """
        means = self.parameters[0, :, 1:3]
        distance = torch.cdist(means, means).fill_diagonal_(math.inf)
        offsets = means[distance.argmin(1)] - means
        s11, s12, s22 = density.covariances(self.parameters)[0].unbind(-1)
        determinant = s11 * s22 - s12 * s12
        x = (s22 * offsets[:, 0] - s12 * offsets[:, 1]) / determinant
        y = (s11 * offsets[:, 1] - s12 * offsets[:, 0]) / determinant
        return float(1 / (x * x + y * y).sqrt().max())

    @property
    def reward_scale(self) -> float:
        """Standard deviation that exp(R) has around a target: s of the bump, or the least of the target modes'."""
        return self.reward_width if self.reward_kind == "bump" else float(density.least_deviations(self.target).min())

    def describe(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p*(x), the target's posterior (see `target_share`), and log p_T(x): (B, 2, n) → three times (B, n)."""
        logps, shares = density.normalise(self._joint(self.parameters, points))
        return logps, shares[:, self.target_modes].sum(1), self.target_logps(points)

    def target_logps(self, points: Tensor) -> Tensor:
        """log p_T(x): (B, 2, n) → (B, n)."""
        return density.normalise(self._joint(self.target, points))[0]

    def target_share(self, points: Tensor) -> Tensor:
        """P*[the mode that x came from is a target | x], the posterior under the truth: (B, 2, n) → (B, n)."""
        return self.describe(points)[1]

    @staticmethod
    def _joint(parameters: Tensor, points: Tensor) -> Tensor:
        return density.joint(parameters.expand(points.shape[0], -1, -1), density.features(points))


def make_truth(config: Mapping[str, Any]) -> Truth:
    """The truth of a recipe's `world` block (`precede.settings.mixture.MixtureWorld`, as JSON values)."""
    modes, radius, targets = config["modes"], config["radius"], config["target_modes"]
    if config["layout"] == "grid":
        centres = [(i, j) for i in (-1.0, 0.0, 1.0) for j in (-1.0, 0.0, 1.0) if (i, j) != (0, 0)]
    else:
        angles = [2 * math.pi * k / modes for k in range(modes)]
        centres = [(math.cos(angle), math.sin(angle)) for angle in angles]
    means = radius * torch.tensor(centres, dtype=torch.float64)
    others = [k for k in range(modes) if k not in targets]
    weights = torch.zeros(modes, dtype=torch.float64)
    ranks = torch.arange(1, len(others) + 1, dtype=torch.float64) ** -config["zipf_exponent"]
    weights[others] = (1 - config["target_weight"]) * ranks / ranks.sum()
    weights[targets] = config["target_weight"] / len(targets)
    value = config["covariance"]
    full = [value, 0.0, value] if isinstance(value, float | int) else [value[0][0], value[0][1], value[1][1]]
    covariances = torch.tensor(full, dtype=torch.float64).expand(modes, 3)
    parameters, reward = density.pack(weights, means, covariances).unsqueeze(0), config["reward"]
    return Truth(parameters, parameters[:, targets], list(targets), reward["kind"], reward["width"])
