"""The calibration's tables and figure, from its cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np

from calibration import (
    BY_REASON,
    EITHER,
    FEW_GRID,
    MANY_GRID,
    MASS_GRID,
    RATIO_GRID,
    SCORES,
    TRAPPED,
    TRAPPED_BY_PAIRS,
    UNREADY,
    UNREADY_BUT_FOR_STOPPING,
    UNREADY_BY_PAIRS,
    Array,
    Call,
    Case,
    Statistic,
    area,
    balanced,
    choose_all,
    correlation,
    curve,
    interval,
    without_each,
)
from precede.evaluate.signals import share
from precede.evaluate.verdict import LEVELS, STOPPING, THRESHOLDS, Thresholds
from precede.report.figures import STYLE, canvas

AIM = 0.9
"""What rank correlation and area under ROC were meant to reach."""
TINTS = {"ready": "#2c7d4f", "unchecked": "#3d6fa5", "risky": "#d9930d", "trapped": "#b3261e"}
CURVES = {
    "verdict": "#b3261e",
    "achievable mass m*": "#1f6fb4",
    "lost preferences": "#3b8f5a",
    "unsupported share": "#6b6b6b",
}
Half = Sequence[Case]


def page(found: Sequence[Case]) -> list[str]:
    """The generated part of the page, in Markdown."""
    halves: list[Half] = [[case for case in found if case.world % 2 == odd] for odd in (0, 1)]
    chosen = choose_all(halves[0])
    return [
        "![Predicted and reached target mass, and ROC curves](figures/calibration.svg)",
        "",
        *outcome_table(halves),
        "",
        "How well numbers rank the references, and how well they tell those that failed from the others:",
        "",
        *worth_table(halves),
        "",
        *aims(halves[1]),
        "",
        "Thresholds:",
        "",
        *threshold_table(chosen),
        "",
        "What the verdicts find, by the thresholds of reason and by those chosen:",
        "",
        *call_table(halves, chosen),
        "",
        stopping(found),
        "",
        *level_table(halves[1]),
        "",
        "All worlds, by the settings of the reference:",
        "",
        *settings_table(halves),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def outcome_table(halves: Sequence[Half]) -> list[str]:
    rows = [
        ["worlds", *(", ".join(str(world) for world in sorted({c.world for c in half})) for half in halves)],
        ["references", *(str(len(half)) for half in halves)],
        ["of which ended below half of align > distill", *(str(sum(c.failed for c in half)) for half in halves)],
    ]
    return table(["", "to choose on", "held back"], rows)


def worth_table(halves: Sequence[Half]) -> list[str]:
    """Rank correlation and areas on both halves; of the half that was held back also without each of its worlds."""

    def row(
        name: str, statistic: Statistic, pick: Callable[[Half], tuple[Array, Array]], own: Sequence[Half]
    ) -> list[str]:
        columns = [pick(half) for half in own]
        cells = [f"{statistic(*pair):.3f} {brackets(interval(statistic, *pair))}" for pair in columns]
        low, high = without_each(statistic, np.array([case.world for case in own[1]]), *columns[1])
        return [name, *cells, f"{low:.3f} to {high:.3f}"]

    def areas(names: Iterable[str], own: Sequence[Half], where: str = "") -> list[list[str]]:
        return [row(f"area under ROC: {name}{where}", area, partial(scored, name=name), own) for name in names]

    rows = [row("rank correlation of m* with the mass reached", correlation, masses, halves), *areas(SCORES, halves)]
    for weight in sorted({case.settings["weight"] for half in halves for case in half}):
        own = [[case for case in half if case.settings["weight"] == weight] for half in halves]
        where = f"; target weight {weight:g} alone"
        rows.append(row(f"rank correlation{where}", correlation, masses, own))
        if all(len({case.failed for case in half}) == 2 for half in own):
            rows += areas(("verdict", "achievable mass m*", "lost preferences"), own, where)
    return table(["", "worlds to choose on", "worlds held back", "held back, without one world"], rows)


def masses(half: Half) -> tuple[Array, Array]:
    """Predicted and reached target mass."""
    return np.array([c.numbers["achievable_mass"].value for c in half]), np.array([c.realised for c in half])


def scored(half: Half, name: str) -> tuple[Array, Array]:
    return np.array([SCORES[name](case) for case in half]), np.array([case.failed for case in half])


def brackets(ends: tuple[float, float]) -> str:
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def aims(held: Half) -> list[str]:
    """Whether the aims are met on the worlds that were held back."""
    lines = []
    for name, value in (
        ("rank correlation of m* with the mass reached", correlation(*masses(held))),
        ("area under ROC of the verdict", area(*scored(held, "verdict"))),
    ):
        verb = "reaches" if value >= AIM else "does not reach"
        lines.append(f"- The {name} is {value:.3f} on the worlds held back: it {verb} the aim of {AIM:.1f}.")
    return lines


def threshold_table(chosen: Thresholds) -> list[str]:
    rows = []
    for name, text, grid in (
        ("mass", "trapped: achievable mass below", MASS_GRID),
        ("ratio", "trapped: share of the teacher's achievable mass below", RATIO_GRID),
        ("many", "trapped, without a reward: share of lost preferences above", MANY_GRID),
        ("few", "ready: share of pairs, in each rule on pairs, at most", FEW_GRID),
    ):
        values = [f"{getattr(thresholds, name):g}" for thresholds in (BY_REASON, chosen, THRESHOLDS)]
        rows.append([text, ", ".join(f"{value:g}" for value in grid), *values])
    return table(["threshold", "grid", "by reason", "chosen", "in verdict.py"], rows)


def call_table(halves: Sequence[Half], chosen: Thresholds) -> list[str]:
    """Balanced accuracy, sensitivity and specificity of verdicts, by the thresholds of reason and by those chosen."""
    rows = []
    for call in (TRAPPED, TRAPPED_BY_PAIRS, UNREADY_BY_PAIRS, UNREADY):
        for name, thresholds in (("by reason", BY_REASON), ("chosen", chosen)):
            rows.append([call.name, name, *rates(call, halves, thresholds)])
    for call in (EITHER, UNREADY_BUT_FOR_STOPPING):
        rows.append([f"{call.name} (not the audit's)", "chosen", *rates(call, halves, chosen)])
    head = [
        "verdict",
        "thresholds",
        "balanced accuracy to choose on",
        "balanced accuracy held back",
        "without one world",
    ]
    return table([*head, "sensitivity held back", "specificity held back"], rows)


def rates(call: Call, halves: Sequence[Half], thresholds: Thresholds) -> list[str]:
    even, odd = (call.columns(half, thresholds) for half in halves)
    low, high = without_each(balanced, np.array([case.world for case in halves[1]]), *odd)
    called, failed = odd
    found, kept = share(called[failed]), share(~called[~failed])
    return [
        f"{balanced(*even):.3f}",
        f"{balanced(*odd):.3f} {brackets(interval(balanced, *odd))}",
        f"{low:.3f} to {high:.3f}",
        *(f"{part.value:.3f} {brackets((part.low, part.high))}" for part in (found, kept)),
    ]


def stopping(found: Half) -> str:
    alarms = sum(case.numbers["stop_rate"].low < STOPPING for case in found)
    return f"The rule on stopping says risky of {alarms} of the {len(found)} references."


def level_table(held: Half) -> list[str]:
    rows = []
    for level in range(len(LEVELS)):
        own = [case for case in held if case.level(THRESHOLDS) == level]
        if own:
            rows.append([LEVELS[level], str(len(own)), str(sum(case.failed for case in own)), *means(own)])
    head = ["verdict, worlds held back", "references", "ended below half", "mean m*", "mean mass reached"]
    return table([*head, "mean m* of the teacher", "align > distill"], rows)


def settings_table(halves: Sequence[Half]) -> list[str]:
    """What became of the references by their settings, over all worlds."""
    groups: dict[tuple[float, float, int], list[Case]] = {}
    for case in [*halves[0], *halves[1]]:
        settings = case.settings
        groups.setdefault((settings["weight"], settings["temperature"], settings["hidden_size"]), []).append(case)
    rows = [
        [f"{weight:g}", f"{temperature:g}", str(size), str(len(own)), str(sum(c.failed for c in own)), *means(own)]
        for (weight, temperature, size), own in sorted(groups.items())
    ]
    head = ["target weight", "τ", "hidden size", "references", "ended below half", "mean m*", "mean mass reached"]
    return table([*head, "mean m* of the teacher", "align > distill"], rows)


def means(own: Half) -> list[str]:
    teacher = np.array([case.teacher["achievable_mass"].value for case in own])
    picked = [*masses(own), teacher, np.array([case.other for case in own])]
    return [f"{values.mean():.3f}" for values in picked]


def draw(found: Sequence[Case], path: Path) -> None:
    """Predicted against reached mass, in worlds to choose on and in those held back, and ROC curves of the latter."""
    figure, axes = canvas(3, height=3.2)
    levels = [LEVELS[case.level(THRESHOLDS)] for case in found]
    for odd, axis in enumerate(axes[0, :2]):
        axis.plot([0, 1], [0, 1], "k--", linewidth=1)
        for level, tint in ((level, tint) for level, tint in TINTS.items() if level in levels):
            own = [case for case, said in zip(found, levels, strict=True) if said == level and case.world % 2 == odd]
            axis.plot(*masses(own), "o", color=tint, markersize=4, alpha=0.8, label=level)
        title = "worlds held back" if odd else "worlds to choose rules on"
        axis.set(title=title, xlabel="achievable mass m*, predicted", ylabel="target mass that alignment reached")
    axes[0, 0].legend(frameon=False)
    held, axis = [case for case in found if case.world % 2], axes[0, 2]
    axis.plot([0, 1], [0, 1], "k--", linewidth=1)
    for name, tint in CURVES.items():
        columns = scored(held, name)
        axis.plot(*curve(*columns), "-", color=tint, label=f"{name}: {area(*columns):.3f}")
    axis.set(
        title="ROC, worlds held back",
        xlabel="share of the others that is called",
        ylabel="share of the failed that is called",
    )
    axis.legend(loc="lower right", frameon=False)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None})
