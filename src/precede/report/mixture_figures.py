"""Figures of the mixture world: densities with samples, and the phase diagram with the boundary that theory predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.colors import CenteredNorm
from torch import Tensor

from precede import theory
from precede.analysis.results import Results
from precede.report.figures import BETA, WIDTH, Figure, canvas
from precede.report.view import bases, line
from precede.worlds.mixture import density, measure, oracle
from precede.worlds.mixture.truth import Truth, make_truth

SHOWN_SAMPLES = 400
PHASE_KEYS = ("align.beta", "distill.temperature", "world.target_weight")


def densities(models: Mapping[str, Tensor], truth: Truth) -> Figure:
    """Contours of log-density with samples, one panel per model (1, K, 6)."""
    reach = float(truth.parameters[0, :, 1:3].abs().max()) + 0.75
    axis_points = torch.linspace(-reach, reach, 100, dtype=torch.float64)
    x, y = torch.meshgrid(axis_points, axis_points, indexing="xy")
    points = torch.stack((x.reshape(-1), y.reshape(-1))).unsqueeze(0)
    noise = density.draw_noise([torch.Generator().manual_seed(0)], SHOWN_SAMPLES)
    figure, axes = canvas(len(models), height=min(WIDTH / len(models), 3.6) + 0.3)
    centres = truth.target[0, :, 1:3]
    for axis, (name, parameters) in zip(axes[0], models.items(), strict=True):
        shades = torch.clamp(density.log_density(parameters, points).reshape(x.shape), min=-8).numpy()
        axis.contourf(x.numpy(), y.numpy(), shades, levels=np.linspace(-8, 2, 11), cmap="Blues", extend="both")
        drawn = density.sample(parameters, noise)[0]
        axis.plot(drawn[0], drawn[1], ".", color="#16324f", markersize=1.6, alpha=0.5)
        axis.plot(centres[:, 0], centres[:, 1], "o", markersize=17, markerfacecolor="none", markeredgecolor="#c2251d")
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        axis.grid(visible=False)
        mass = float(measure.measure(parameters, truth, None)["target_mass"])
        axis.set_title(f"{name}\ntarget mass {mass:.3f}" if mass >= 5e-4 else f"{name}\ntarget mass {mass:.0e}")
    caption = (
        f"Log-density and {SHOWN_SAMPLES} samples of the first seed's models at the recipe's own setting; the circle is the "
        "rare but desirable target. Axes are the two coordinates of a sample."
    )
    return Figure("densities", "Densities and samples", caption, figure)


def phase(results: Results) -> Figure | None:
    """Paired difference in target mass over β × τ, a panel per target weight, with the law's boundaries drawn on it.

    A boundary that lies outside the panel, or for which the tilt cannot be resolved, is not drawn; the caption speaks of
    those that are.
    """
    rows = line(results["comparisons"], bases(results), PHASE_KEYS)
    rows = [c for c in rows if c["metric"] == "target_mass" and c["b"] == results["comparisons"][0]["b"]]
    rows = [c for c in rows if all(c["settings"].get(key) is not None for key in PHASE_KEYS)]
    betas, temperatures, weights = (sorted({float(c["settings"][key]) for c in rows}) for key in PHASE_KEYS)
    if min(len(betas), len(temperatures), len(weights)) < 2:
        return None
    table = {tuple(float(c["settings"][key]) for key in PHASE_KEYS): c["mean_difference"] for c in rows}
    columns = min(3, len(weights))
    figure, axes = canvas(columns, -(-len(weights) // columns), height=2.8)
    mesh, drawn = None, set()
    for axis, weight in zip(axes.reshape(-1), weights, strict=False):
        values = np.array([[table.get((b, t, weight), np.nan) for b in betas] for t in temperatures], dtype=float)
        edges = _edges(np.log10(betas)), _edges(np.array(temperatures))
        mesh = axis.pcolormesh(*edges, values, cmap="RdBu", norm=CenteredNorm(0, 1))
        world = results["recipe"]["world"] | {"target_weight": weight}
        predicted = predicted_masses(world, betas, temperatures)
        if predicted is not None:
            log_betas, taus, align_first, distill_first = predicted
            for masses, style in ((align_first, "dashed"), (distill_first, "solid")):
                if masses.min() < 0.5 < masses.max():
                    look: Any = {"colors": "black", "linestyles": style, "linewidths": 1.4}
                    axis.contour(log_betas, taus, masses, levels=[0.5], **look)
                    drawn.add(style)
        ticks = [b for b in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0) if betas[0] <= b <= betas[-1]]
        axis.set_xticks(np.log10(ticks), [f"{b:g}" for b in ticks])
        axis.set_title(f"target weight {weight:g}")
        axis.grid(visible=False)
        axis.set(xlabel=BETA, ylabel="τ, temperature")
    for axis in axes.reshape(-1)[len(weights) :]:
        axis.set_visible(False)
    if mesh is not None:
        figure.colorbar(mesh, ax=axes, label="target mass (probability), A→K minus K→A", shrink=0.8)
    runs = sum(c["n_seeds"] for c in rows)
    caption = f"{runs:,} pairs of pipelines. Blue: align > distill ends with more target mass.{_of_boundaries(drawn)}"
    return Figure("phase", "Phase diagram: where the order matters", caption, figure)


def _of_boundaries(drawn: set[str]) -> str:
    """What a caption says of the boundaries that were drawn, `solid` or `dashed` or both."""
    styles = {"solid": "distill > align", "dashed": "align > distill"}
    orders = [f"{style} for {order}" for style, order in styles.items() if style in drawn]
    if not orders:
        return ""
    text = f" Lines are where theory has the target hold half of the mass: {', '.join(orders)}"
    if len(orders) == 2:
        text += "; between them the order decides"
    if "solid" in drawn:
        text += ". Blue to the left of the solid line is what pruning by few samples and few components adds"
    return text + "."


def predicted_masses(
    world: Mapping[str, Any], betas: list[float], temperatures: list[float]
) -> tuple[Any, Any, Any, Any] | None:
    """log₁₀ β, τ, and the masses m_AK and m_KA (τ, β) that the order-gap law gives the truth's own mode weights.

    None where the tilt at the least β takes more nodes than `oracle.grid` allows.
    """
    truth = make_truth(world)
    fine = torch.logspace(np.log10(min(betas)), np.log10(max(betas)), 80, dtype=torch.float64)
    taus = np.linspace(min(temperatures), max(temperatures), 80)
    grid = oracle.grid(truth.parameters, truth, min(betas))
    if grid is None:
        return None
    points, _ = grid
    logps, share, _ = truth.describe(points)
    tilted = torch.softmax(logps + truth.reward(points) / fine.unsqueeze(1), dim=-1)
    best = (tilted * share).sum(-1)
    mass = torch.tensor(float(world["target_weight"]), dtype=torch.float64)
    gain = (torch.logit(best) - torch.logit(mass)).numpy()  # Δ/β, exactly
    mask = np.zeros(truth.parameters.shape[1], dtype=bool)
    mask[truth.target_modes] = True
    log_weights = density.log_weights(truth.parameters)[0].numpy()
    align_first, distill_first = theory.order_masses(log_weights, mask, gain[None, :], 1.0, taus[:, None])
    return np.log10(fine.numpy()), taus, align_first, distill_first


def _edges(centres: Any) -> Any:
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate(([2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]))
