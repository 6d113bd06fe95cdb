"""Everything that is measured of a mixture, by quadrature: no sampling noise, the same for every arm.

Expectations under a model are sums over whitened nodes of each of its components; expectations under the truth are sums
over nodes of the truth's components. Oracle in the tests: closed forms where they exist, else Monte Carlo.
"""

from __future__ import annotations

import torch
from torch import Tensor

from precede.worlds.mixture import density
from precede.worlds.mixture.oracle import Optimum
from precede.worlds.mixture.truth import Truth

CHUNK_ROWS = 16
"""Component rows evaluated at once, so that a chunk stays in cache."""


def measure(parameters: Tensor, truth: Truth, temperature: float | None) -> dict[str, Tensor]:
    """Metrics (B,) of the models `parameters` (B, K, 6), in nats; `decoded_…` are those of the model sampled at τ.

    reward E_p R; target_mass P_p[target], the expected posterior of the target modes; target_precision E_p log p_T;
    target_precision_on_target the same given that the point is target; target_recall E_pT log p; precision E_p log p*;
    recall E_p* log p; kl_to_truth KL(p ‖ p*).
    """
    table = _component_table(parameters, truth)
    metrics = _from_table(parameters, table, truth)
    own = expectation(parameters, [parameters])[0]
    metrics["kl_to_truth"] = own - metrics["precision"]
    if temperature is not None:
        decoded = density.sharpen(parameters, temperature)
        metrics |= {f"decoded_{name}": value for name, value in _from_table(decoded, table, truth).items()}
    return metrics


def measure_alignment(
    parameters: Tensor, reference: Tensor, reward: Tensor, beta: Tensor, optimum: Optimum
) -> dict[str, Tensor]:
    """Metrics (B,) of aligned models, of reward E_π R (B,), against their reference and the exact optimum π*.

    kl_to_reference KL(π ‖ π_ref); regret J* − J(π) = β KL(π ‖ π*) ≥ 0, reward units; optimal_reward E_π* R;
    optimal_target_mass P_π*[target].
    """
    own, anchored = expectation(parameters, [parameters, reference])
    divergence = own - anchored
    return {
        "kl_to_reference": divergence,
        "regret": beta * optimum.log_z - (reward - beta * divergence),
        "optimal_reward": optimum.reward,
        "optimal_target_mass": optimum.target_mass,
    }


def expectation(parameters: Tensor, models: list[Tensor]) -> list[Tensor]:
    """E_{x~p} log q(x) (B,) for p = `parameters` and each q in `models`, all (B, ·, 6)."""
    rows, components, _ = parameters.shape
    nodes = density.component_nodes(parameters)
    sums = [torch.empty(rows * components, dtype=parameters.dtype) for _ in models]
    owners = torch.arange(rows).repeat_interleave(components)
    for begin in range(0, len(nodes), CHUNK_ROWS):
        part = slice(begin, begin + CHUNK_ROWS)
        phi = density.features(nodes[part])
        for total, model in zip(sums, models, strict=True):
            logps, _ = density.normalise(density.joint(model[owners[part]], phi))
            total[part] = (logps * density.NODE_WEIGHTS).sum(-1)
    return [_weighted(parameters, total.reshape(rows, components)) for total in sums]


def _weighted(parameters: Tensor, per_component: Tensor) -> Tensor:
    return (density.log_weights(parameters).exp() * per_component).sum(-1)


def _component_table(parameters: Tensor, truth: Truth) -> dict[str, Tensor]:
    """E under each component (B, K) of log p*, R, the target's posterior, log p_T, and posterior × log p_T."""
    rows, components, _ = parameters.shape
    nodes = density.component_nodes(parameters)
    columns: dict[str, list[Tensor]] = {}
    for begin in range(0, len(nodes), CHUNK_ROWS):
        points = nodes[begin : begin + CHUNK_ROWS]
        truth_logps, share, target_logps = truth.describe(points)
        values = {
            "precision": truth_logps,
            "reward": truth.reward(points),
            "target_mass": share,
            "target_precision": target_logps,
            "on_target": share * target_logps,
        }
        for name, value in values.items():
            columns.setdefault(name, []).append((value * density.NODE_WEIGHTS).sum(-1))
    return {name: torch.cat(parts).reshape(rows, components) for name, parts in columns.items()}


def _from_table(parameters: Tensor, table: dict[str, Tensor], truth: Truth) -> dict[str, Tensor]:
    metrics = {name: _weighted(parameters, values) for name, values in table.items()}
    mass = metrics["target_mass"]
    metrics["target_precision_on_target"] = metrics.pop("on_target") / mass
    metrics["recall"] = expectation_of_truth(truth.parameters, parameters)
    metrics["target_recall"] = expectation_of_truth(truth.target, parameters)
    return metrics


def expectation_of_truth(truth: Tensor, parameters: Tensor) -> Tensor:
    """E_{x~truth} log p(x) (B,) for the one-row mixture `truth` (1, K*, 6) and p = `parameters` (B, K, 6)."""
    nodes = density.component_nodes(truth)  # (K*, 2, q)
    phi = density.features(nodes).permute(1, 0, 2).reshape(1, 6, -1)
    weights = (density.log_weights(truth)[0].exp().unsqueeze(-1) * density.NODE_WEIGHTS).reshape(-1)
    parts = []
    for row in range(parameters.shape[0]):
        logps, _ = density.normalise(density.joint(parameters[row : row + 1], phi))
        parts.append((logps * weights).sum(-1))
    return torch.cat(parts)
