"""The figures that any world's comparison has: β sweep, frontier, τ sweep with the order-gap law, differences, costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from precede.analysis.outcomes import Array
from precede.analysis.results import Comparison, Interval, Results
from precede.metrics import describe
from precede.report.seeds import Seeds, points
from precede.report.view import Bases, bases, line, main_metric, method_name, own_setting

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "precede",
    "font.family": "DejaVu Sans",
}
COLOURS = {"align > distill": "#1f6fb4", "distill > align": "#d4692a"}
OTHERS = ("#3b8f5a", "#8a5fb0", "#b0497a", "#6b6b6b")

WIDTH = 10.8
"""Inches of every figure: a page scales it to its column, and text of 9 points is 13 px in one of 1120."""
NATS_TICKS = [sign * size * 10**power for sign in (-1, 1) for power in range(5) for size in (1, 2, 5)] + [0]


@dataclass(frozen=True)
class Figure:
    """A figure of the report; `name` is its file name, `caption` one or two sentences that say how to read it."""

    name: str
    title: str
    caption: str
    canvas: Canvas


def canvas(columns: int, rows: int = 1, height: float = 2.7) -> tuple[Canvas, Any]:
    """A canvas as wide as a page and its axes (rows, columns), `height` inches a row, in the house style and without pyplot's
    global state."""
    with matplotlib.rc_context(STYLE):
        figure = Canvas(figsize=(WIDTH, height * rows), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def measured_in(metric: str) -> str:
    """What an axis says of a metric: its title and unit."""
    return f"{describe(metric).title} ({describe(metric).unit})"


def colour(order: str, position: int = 0) -> str:
    return COLOURS.get(order, OTHERS[position % len(OTHERS)])


def standard_figures(results: Results) -> list[Figure]:
    """All figures for which the recipe's sweep has the data."""
    base, seeds = bases(results), Seeds(results)
    sweeps = (beta_sweep, frontier, temperature_sweep)
    figures = [headline(results, seeds), *[sweep(results, base, seeds) for sweep in sweeps]]
    return [figure for figure in figures if figure is not None]


def _by_method(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(method_name(comparison["settings"]), []).append(comparison)
    return groups


BETA = "β (reward units per nat)"
APART = 0.11
"""Share of a panel's height between ticks, at least."""
BELOW = 0.28
"""Rows that seeds are drawn below their interval."""
PARTS = {"total": "#222222", "sharpening": "#999999", "recall": "#1f6fb4"}


def headline(results: Results, seeds: Seeds) -> Figure | None:
    """The difference between the orders at the recipe's own setting, per method, in its two parts where the control was run."""
    chosen = own_setting(results)
    name = main_metric(chosen)
    rows: list[tuple[str, str, float, Interval, Array]] = []
    for c in (c for c in chosen if c["metric"] == name and c["mean_difference"] is not None):
        label = method_name(c["settings"]) + (f" ({c['b']})" if len(results["orders"]) > 2 else "")
        rows.append((label, "total", c["mean_difference"] or 0.0, c["ci95"], seeds.differences(c)))
        for d in results["decomposition"]:
            if (d["a"], d["b"], d["settings"], d["metric"]) == (c["a"], c["b"], c["settings"], name):
                for part, each in seeds.parts(d).items():
                    rows.append((part, part, d[part] or 0.0, d[f"{part}_ci95"], each))  # type: ignore[literal-required]
    if not rows:
        return None
    figure, axes = canvas(1, height=0.7 + 0.26 * len(rows))
    axis: Axes = axes[0, 0]
    for index, (_, part, value, (low, high), each) in enumerate(rows):
        points(axis, each, np.full(len(each), -index - BELOW), PARTS[part])
        axis.plot([value], [-index], "o", color=PARTS[part], markersize=5)
        if low is not None and high is not None:
            axis.plot([low, high], [-index, -index], color=PARTS[part], linewidth=1.4)
    axis.set_yticks([-index for index in range(len(rows))], [label for label, *_ in rows])
    for tick, (_, part, *_rest) in zip(axis.get_yticklabels(), rows, strict=True):
        tick.set_color(PARTS[part])
        tick.set_fontweight("bold" if part == "total" else "normal")
    axis.set_ylim(0.6 - len(rows), 0.6)
    axis.axvline(0, color="#999999", linewidth=1)
    first, minus = chosen[0]["a"], chosen[0]["b"] if len(results["orders"]) == 2 else "the other"
    axis.set_xlabel(f"difference in {measured_in(str(name))}, {first} minus {minus}")
    return Figure(
        "headline",
        "Which order wins, and how much of that a smaller price of KL would buy",
        f"Mean difference over seeds at the recipe's own setting with its 95 % interval; right of the line {first} is better. "
        "Where it ends with distillation at τ < 1, the difference has two parts: sharpening, which the other order gets too at "
        f"the price τβ, and recall, which it does not. {seeds.note}",
        figure,
    )


def _columns(axis: Axes, xs: Sequence[float], columns: Sequence[Array], tint: str) -> None:
    """The seeds of each point of a curve, above one another at its x."""
    for x, each in zip(xs, columns, strict=True):
        points(axis, np.full(len(each), x), each, tint)


def _curve(axis: Axes, xs: Sequence[float], rows: Sequence[Any], side: str, tint: str, label: str | None) -> None:
    means = np.array([row[f"mean_{side}"] for row in rows], dtype=float)
    ends = np.array([row[f"ci95_{side}"] for row in rows], dtype=float)
    axis.plot(xs, means, "o-", color=tint, markersize=3, linewidth=1.3, label=label)
    axis.fill_between(xs, ends[:, 0], ends[:, 1], color=tint, alpha=0.18, linewidth=0)


def _swept(rows: Sequence[Comparison], key: str, metric: str, other: str) -> list[Comparison]:
    swept = [c for c in rows if c["metric"] == metric and c["b"] == other and c["settings"].get(key) is not None]
    return sorted(swept, key=lambda c: float(c["settings"][key]))


def _beta_groups(results: Results, base: Bases, other: str) -> dict[str, list[Comparison]]:
    """The comparisons over β of each method that has more than one."""
    groups = _by_method(line(results["comparisons"], base, ("align.beta",)))
    return {name: rows for name, rows in groups.items() if len(_swept(rows, "align.beta", "reward", other)) > 1}


def beta_sweep(results: Results, base: Bases, seeds: Seeds) -> Figure | None:
    """Reward and target mass of both orders over β, one column per method."""
    other = _first_other(results)
    groups = _beta_groups(results, base, other)
    if not groups:
        return None
    figure, axes = canvas(len(groups), 2, height=2.3)
    for column, (name, rows) in enumerate(groups.items()):
        for row, metric in enumerate(("reward", "target_mass")):
            axis: Axes = axes[row, column]
            swept: list[Any] = _swept(rows, "align.beta", metric, other)
            xs = [float(c["settings"]["align.beta"]) for c in swept]
            for side in ("a", "b"):
                order = swept[0][side]
                _columns(axis, xs, [seeds.values(order, c["settings"], metric) for c in swept], colour(order))
                _curve(axis, xs, swept, side, colour(order), order if row == column == 0 else None)
            axis.set_xscale("log")
            shown = xs[:: -(-len(xs) // 5)]
            axis.set_xticks(shown, [f"{x:g}" for x in shown])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_title(name if row == 0 else "")
            if column == 0:
                axis.set_ylabel(measured_in(metric))
            if row == 1:
                axis.set_xlabel(BETA)
    figure.legend(loc="outside upper center", ncols=2)
    caption = (
        "Left, β is tiny: both orders saturate. Right, β is huge: neither moves. The order matters between. "
        f"Bands are 95 % intervals over seeds. {seeds.note}"
    )
    return Figure("beta", "Reward and target mass over β, the price of KL", caption, figure)


def frontier(results: Results, base: Bases, seeds: Seeds) -> Figure | None:
    """Target mass against target recall, recall and KL to the truth along β, one column per method."""
    other = _first_other(results)
    groups = _beta_groups(results, base, other)
    measured = {c["metric"] for c in results["comparisons"]}
    metrics = [metric for metric in ("target_recall", "recall", "kl_to_truth") if metric in measured]
    if not groups or not metrics:
        return None
    figure, axes = canvas(len(groups), len(metrics), height=2.1)
    for column, (name, rows) in enumerate(groups.items()):
        mass: list[Any] = _swept(rows, "align.beta", "target_mass", other)
        for row, metric in enumerate(metrics):
            axis: Axes = axes[row, column]
            swept: list[Any] = _swept(rows, "align.beta", metric, other)
            for side in ("a", "b"):
                order = swept[0][side]
                xs, ys = [c[f"mean_{side}"] for c in mass], [c[f"mean_{side}"] for c in swept]
                for c in swept:
                    masses, each = (seeds.values(order, c["settings"], name) for name in ("target_mass", metric))
                    points(axis, masses, each, colour(order))
                axis.plot(xs, ys, "o-", color=colour(order), markersize=3, label=order if row == column == 0 else None)
            axis.set_yscale("asinh", linear_width=5)
            ticks = _apart(axis, [tick for tick in NATS_TICKS if axis.get_ylim()[0] <= tick <= axis.get_ylim()[1]])
            axis.yaxis.set_major_locator(FixedLocator(ticks) if len(ticks) > 1 else MaxNLocator(4))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set_title(name if row == 0 else "")
            if column == 0:
                axis.set_ylabel(measured_in(metric))
            if row == len(metrics) - 1:
                axis.set_xlabel(measured_in("target_mass"))
    figure.legend(loc="outside upper center", ncols=2)
    caption = (
        "What each order pays for its target mass: a point is a β (means over seeds). Compare the curves at one target "
        f"mass, not at one β. Vertical axes are linear near 0 and logarithmic beyond ±5 nats (asinh). {seeds.note}"
    )
    return Figure("frontier", "What each order pays for its target mass: the β frontier", caption, figure)


def _apart(axis: Axes, ticks: Sequence[float]) -> list[float]:
    """Those of the ticks whose labels do not touch, the lowest first."""
    low, high = axis.yaxis.get_transform().transform(np.array(axis.get_ylim()))
    kept: list[tuple[float, float]] = []
    for tick in sorted(ticks):
        (place,) = axis.yaxis.get_transform().transform(np.array([tick], dtype=float))
        if not kept or place - kept[-1][0] >= APART * (high - low):
            kept.append((place, tick))
    return [tick for _, tick in kept]


def temperature_sweep(results: Results, base: Bases, seeds: Seeds) -> Figure | None:
    """The order gap in log-odds over τ with the law drawn on it, and the difference in reward; one column per student."""
    key = "distill.temperature"
    gaps = [g for g in results["order_gap"] if g["settings"].get(key) is not None]
    sizes = sorted({g["settings"].get("distill.components") or 0 for g in gaps})
    other = _first_other(results)
    students = []
    for size in sizes:
        sized = {method: {**s, "distill.components": size or s.get("distill.components")} for method, s in base.items()}
        at = line(gaps, sized, (key,))
        if len({g["settings"][key] for g in at}) > 1:
            students.append((size, at, line(results["comparisons"], sized, (key,))))
    if not students:
        return None
    figure, axes = canvas(len(students), 2, height=3.0)
    for column, (size, at, rows) in enumerate(students):
        top: Axes = axes[0, column]
        methods: dict[str, list[Any]] = {}
        for gap in sorted(at, key=lambda g: float(g["settings"][key])):
            methods.setdefault(method_name(gap["settings"]), []).append(gap)
        law = max(methods.values(), key=len)
        taus, predicted = [g["settings"][key] for g in law], [g["predicted"] for g in law]
        label = "law (Δ/β)(1/τ − 1)" if column == 0 else None
        top.plot(taus, predicted, "k--", linewidth=1.4, label=label)
        for number, (name, measured) in enumerate(methods.items()):
            tint = f"C{number}"
            xs = [float(g["settings"][key]) + 0.004 * (number - 1) for g in measured]
            _columns(top, xs, [seeds.gaps(g["settings"]) for g in measured], tint)
            _with_errors(top, xs, measured, "measured", "measured_ci95", tint, name if column == 0 else None)
            differences = _swept([c for c in rows if method_name(c["settings"]) == name], key, "reward", other)
            xs = [float(c["settings"][key]) + 0.004 * (number - 1) for c in differences]
            _columns(axes[1, column], xs, [seeds.differences(c) for c in differences], tint)
            _with_errors(axes[1, column], xs, differences, "mean_difference", "ci95", tint, None)
        top.set_title(f"student of {size} components" if size else "")
        axes[1, column].axhline(0, color="#999999", linewidth=1)
        axes[1, column].set_xlabel("τ, temperature of distillation")
    axes[0, 0].set_ylabel("gap in log-odds (nats)")
    axes[1, 0].set_ylabel("difference in reward (reward units)")
    figure.legend(loc="outside upper center", ncols=5)
    caption = (
        "Above, logit m(A→K) − logit m(K→A), m the target mass; below, align first minus align last. "
        "The law assumes an exact tilt and a student that loses nothing but mode weight. Measurements above it show "
        "pruning by few samples or few components on top; below it, alignment that stopped short of the tilt, or masses so "
        f"close to 1 that log-odds saturate. At τ = 1 the law gives 0. Bars are 95 % intervals over seeds. {seeds.note}"
    )
    return Figure(
        "temperature",
        "Difference between the orders over τ, the temperature of distillation, with the order-gap law",
        caption,
        figure,
    )


def _with_errors(axis: Axes, xs: Any, rows: Any, value: str, interval: str, tint: str, label: str | None) -> None:
    ys = np.array([row[value] for row in rows], dtype=float)
    ends = np.array([row[interval] for row in rows], dtype=float).reshape(-1, 2)
    errors = np.abs(ends.T - ys)
    axis.errorbar(xs, ys, yerr=np.nan_to_num(errors), fmt="o-", color=tint, markersize=3, linewidth=1, label=label)


def _first_other(results: Results) -> str:
    return results["comparisons"][0]["b"] if results["comparisons"] else ""
