"""Everything that is measured of a mixture, by quadrature: no sampling noise, the same rule for every arm.

Expectations under a model are sums over whitened nodes of each of its components; expectations under the truth are sums
over nodes of the truth's components. What is integrated has ridges where one mode of the truth takes over from the next;
a component that is wide beside them is given finer nodes. Oracles in the tests: closed forms where they exist, a finer
rule (target mass and rewards to 1e-5, log-densities to 1e-3 nats), and Monte Carlo.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from precede.worlds.mixture import density
from precede.worlds.mixture.oracle import Optimum
from precede.worlds.mixture.quadrature import RULES, Columns, component_means, component_nodes, weighted
from precede.worlds.mixture.truth import Truth


def measure(parameters: Tensor, truth: Truth, temperature: float | None) -> dict[str, Tensor]:
    """Metrics (B,) of the models `parameters` (B, K, 6), in nats; `decoded_…` are those of the model sampled at τ.

    reward E_p R; target_mass P_p[target], the expected posterior of the target modes; target_precision E_p log p_T;
    target_precision_on_target the same given that the point is target; target_recall E_pT log p; precision E_p log p*;
    recall E_p* log p; kl_to_truth KL(p ‖ p*).
    """

    def of_truth(points: Tensor, rows: Tensor) -> Columns:
        truth_logps, share, target_logps = truth.describe(points)
        return truth_logps, truth.reward(points), share, target_logps, share * target_logps

    names = ("precision", "reward", "target_mass", "target_precision", "on_target")
    table = dict(zip(names, component_means(parameters, truth.ridge_width, of_truth), strict=True))
    metrics = _from_table(parameters, table, truth)
    metrics["kl_to_truth"] = expectation(parameters, [parameters], truth.ridge_width)[0] - metrics["precision"]
    if temperature is not None:
        decoded = density.sharpen(parameters, temperature)
        metrics |= {f"decoded_{name}": value for name, value in _from_table(decoded, table, truth).items()}
    return metrics


def measure_alignment(
    parameters: Tensor, reference: Tensor, reward: Tensor, beta: Tensor, optimum: Optimum, ridge_width: float
) -> dict[str, Tensor]:
    """Metrics (B,) of aligned models, of reward E_π R (B,), against their reference and the exact optimum π*.

    kl_to_reference KL(π ‖ π_ref); regret J* − J(π) = β KL(π ‖ π*) ≥ 0, reward units; optimal_reward E_π* R;
    optimal_target_mass P_π*[target]. `ridge_width` is that of the truth (`Truth.ridge_width`).
    """
    divergence = kl_to_reference(parameters, reference, ridge_width)
    return {
        "kl_to_reference": divergence,
        "regret": beta * optimum.log_z - (reward - beta * divergence),
        "optimal_reward": optimum.reward,
        "optimal_target_mass": optimum.target_mass,
    }


def kl_to_reference(parameters: Tensor, reference: Tensor, ridge_width: float) -> Tensor:
    """KL(π ‖ π_ref) (B,) of models `parameters` (B, K, 6) and references (B, K', 6), nats."""
    policy_logp, reference_logp = expectation(parameters, [parameters, reference], ridge_width)
    return policy_logp - reference_logp


def expectation(parameters: Tensor, models: Sequence[Tensor], ridge_width: float) -> list[Tensor]:
    """E_{x~p} log q(x) (B,) for p = `parameters` and each q in `models`, all (B, ·, 6)."""

    def logps(points: Tensor, rows: Tensor) -> Columns:
        phi = density.features(points)
        return [density.normalise(density.joint(model[rows], phi))[0] for model in models]

    return [weighted(parameters, means) for means in component_means(parameters, ridge_width, logps)]


def expectation_of_truth(truth: Tensor, parameters: Tensor) -> Tensor:
    """E_{x~truth} log p(x) (B,) for the one-row mixture `truth` (1, K*, 6) and p = `parameters` (B, K, 6)."""
    spacing = max(RULES)
    phi = density.features(component_nodes(truth[0], spacing)).permute(1, 0, 2).reshape(1, 6, -1)
    weights = (density.log_weights(truth)[0].exp().unsqueeze(-1) * RULES[spacing][1]).reshape(-1)
    rows = (density.normalise(density.joint(parameters[i : i + 1], phi))[0] for i in range(len(parameters)))
    return torch.cat([(logps * weights).sum(-1) for logps in rows])


def _from_table(parameters: Tensor, table: dict[str, Tensor], truth: Truth) -> dict[str, Tensor]:
    metrics = {name: weighted(parameters, values) for name, values in table.items()}
    metrics["target_precision_on_target"] = metrics.pop("on_target") / metrics["target_mass"]
    metrics["recall"] = expectation_of_truth(truth.parameters, parameters)
    metrics["target_recall"] = expectation_of_truth(truth.target, parameters)
    return metrics
