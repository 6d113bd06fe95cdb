"""Figures of the language worlds: how often each model does what is wanted, and the laws against measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from precede import theory
from precede.analysis.results import Results
from precede.report.figures import Figure, canvas, colour, measured_in
from precede.report.seeds import MOST, Seeds, points
from precede.report.view import at_base, bases, method_name
from precede.settings.order import ALIGN_THEN_DISTILL
from precede.stats import clopper_pearson, summarise

TEMPERATURE = "distill.temperature"
DISTILL_THEN_ALIGN = "distill > align"


def target_masses(masses: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Target mass of each model by name, with the ends of its interval."""
    figure, axes = canvas(1, height=2.7)
    axis = axes[0, 0]
    for position, (name, (mass, low, high)) in enumerate(masses.items()):
        axis.bar(position, mass, width=0.6, color=colour(name, position), alpha=0.85)
        axis.errorbar(position, mass, [[mass - low], [high - mass]], color="#222222", capsize=4, linewidth=1)
    axis.set_xticks(range(len(masses)), [name.replace(" > ", "\n> ") for name in masses])
    axis.set(ylabel=measured_in("target_mass"), ylim=(0, None))
    axis.grid(axis="x", visible=False)
    caption = (
        "Share of completions that are target, first seed, recipe's own setting, with 95 % intervals: of one prompt by "
        "Clopper and Pearson, of many by Student's t over prompts."
    )
    return Figure("target-masses", "Target mass of each model", caption, figure)


def laws(results: Results) -> Figure | None:
    """The order gap over τ beyond its value at τ = 1 against the law, and target mass against achievable mass."""
    base = bases(results)
    table: dict[tuple[str, str, float], dict[int, Mapping[str, Any]]] = {}
    for run in results["runs"]:
        if run["settings"].get(TEMPERATURE) is not None and at_base(run["settings"], base, (TEMPERATURE,)):
            key = (method_name(run["settings"]), run["order"], float(run["settings"][TEMPERATURE]))
            table.setdefault(key, {})[run["seed"]] = run["metrics"]
    taus = sorted({tau for _, _, tau in table})
    orders = (ALIGN_THEN_DISTILL, DISTILL_THEN_ALIGN)
    methods = [m for m in base if all((m, order, tau) in table for order in orders for tau in taus)]
    counted = all("target_log_odds" in metrics for seeds in table.values() for metrics in seeds.values())
    if 1.0 not in taus or len(taus) < 3 or not methods or not counted:
        return None
    aligned = [record for record in results["stages"] if record["tilts"]]
    tilted = {method_name({f"align.{key}": value for key, value in one["config"].items()}) for one in aligned}
    figure, axes = canvas(2, height=3.4)
    gap_axis, mass_axis = axes[0]
    beta = float(base[methods[0]]["align.beta"])
    clusters = [cluster for _, cluster in sorted(zip(results["recipe"]["seeds"], results["clusters"], strict=True))]
    law = [float(theory.order_gap(1.0, beta, tau)) for tau in taus]
    gap_axis.plot(taus, law, "k--", linewidth=1.4, label="law (Δ/β)(1/τ − 1)")
    for number, method in enumerate(methods):
        gaps = np.array([_odds(table[method, orders[0], tau]) - _odds(table[method, orders[1], tau]) for tau in taus])
        _points(gap_axis, clusters, taus, gaps - gaps[taus.index(1.0)], f"C{number}", method, number)
        last = [table[method, orders[1], tau] for tau in taus]
        shown = [("target_mass", "o-", "reached"), ("optimal_target_mass", ":", "achievable m*")]
        for name, style, legend in shown[: 2 if method in tilted else 1]:  # what does not tilt has no m*
            values = np.array([[seeds[seed][name] for seed in sorted(seeds)] for seeds in last], dtype=float)
            label = f"{method}, {legend}" if number == 0 else method if legend == "reached" else None
            _points(mass_axis, clusters, taus, values, f"C{number}", label, number, style)
    for axis in (gap_axis, mass_axis):
        axis.set_xlabel("τ, temperature of distillation")
        axis.legend()
    gap_axis.set_ylabel("order gap less that at τ = 1 (nats)")
    mass_axis.set_ylabel(f"target mass of {DISTILL_THEN_ALIGN} (probability)")
    caption = (
        f"At β = {beta:g}, means over seeds with 95 % intervals. Left: logit m(A→K) − logit m(K→A), less its value at τ = 1, "
        "which capacity causes; the law assumes that distillation raises mode weights to 1/τ, while a language model sharpens "
        "token by token. Counted masses bound log-odds at ±log(2n + 1). Right: what alignment after distillation reached, "
        f"against what the exact tilt of the same student could have. {Seeds(results).note}"
    )
    return Figure(
        "laws",
        "The order gap over τ, and target mass against what is achievable: two laws in language models",
        caption,
        figure,
    )


def _odds(seeds: Mapping[int, Mapping[str, Any]]) -> Any:
    return np.array([seeds[seed]["target_log_odds"] for seed in sorted(seeds)], dtype=float)


def _points(
    axis: Any,
    clusters: Sequence[int],
    xs: Sequence[float],
    values: Any,
    tint: str,
    label: str | None,
    number: int,
    style: str = "o-",
) -> None:
    """Means over seeds of `values` (points, seeds) with their intervals, moved aside a little for each method."""
    summary = summarise(values, clusters)
    errors = np.nan_to_num(np.abs(summary.ci95.T - summary.mean))
    aside = [x + 0.004 * number for x in xs]
    if values.shape[1] <= MOST and style == "o-":  # what was measured, not what theory makes of it
        points(axis, np.repeat(aside, values.shape[1]), values.reshape(-1), tint)
    axis.errorbar(
        aside,
        summary.mean,
        errors,
        fmt=style,
        color=tint,
        markersize=3,
        linewidth=1.2,
        label=label,
    )


def target_mass(columns: Mapping[str, list[Any]], samples: int) -> tuple[float, float, float] | None:
    """Target mass of a model with the ends of its 95 % interval, from what was measured of each prompt, `samples` times.

    Clopper–Pearson of one prompt's samples, Student's t over prompts where there are several. None where it was not measured.
    """
    if "target_mass" not in columns:
        return None
    masses = np.array(columns["target_mass"], float)
    if len(masses) == 1:
        return float(masses[0]), *clopper_pearson(round(masses[0] * samples), samples)
    summary = summarise(masses[None], columns["prompt"])
    low, high = np.nan_to_num(summary.ci95[0], nan=float(summary.mean[0]))
    return float(summary.mean[0]), float(low), float(high)
