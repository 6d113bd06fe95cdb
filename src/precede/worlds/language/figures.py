"""The figure of the language worlds: how often each model does what is wanted."""

from __future__ import annotations

from collections.abc import Mapping

from precede.report.figures import Figure, canvas, colour
from precede.stats import clopper_pearson


def target_masses(hits: Mapping[str, tuple[int, int]]) -> Figure:
    """Target mass of each model, from (hits, samples) by name, with Clopper–Pearson intervals."""
    figure, axes = canvas(1, width=1.2 + 1.1 * len(hits), height=2.7)
    axis = axes[0, 0]
    for position, (name, (count, samples)) in enumerate(hits.items()):
        mass, (low, high) = count / samples, clopper_pearson(count, samples)
        axis.bar(position, mass, width=0.6, color=colour(name, position), alpha=0.85)
        axis.errorbar(position, mass, [[mass - low], [high - mass]], color="#222222", capsize=4, linewidth=1)
    axis.set_xticks(range(len(hits)), list(hits))
    axis.set(ylabel="target mass", ylim=(0, None))
    axis.grid(axis="x", visible=False)
    return Figure(
        "target-masses",
        "Target mass of each model",
        "Share of completions that are target, first seed, recipe's own setting; bars with 95 % Clopper–Pearson intervals.",
        figure,
    )
