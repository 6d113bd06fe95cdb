"""The audit's verdict as a figure: where a reference stands between ready and trapped, on which number, and what is next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from precede.evaluate.audit import Candidate
from precede.evaluate.verdict import LEVELS, READY, RISKY, TRAPPED, Gauge
from precede.report.figures import STYLE, WIDTH, Figure

TINTS = {READY: "#cfe6d3", RISKY: "#fbeeb9", TRAPPED: "#f5cdc6"}
SHOWN = 3
"""Candidates in the figure, the best ones."""


def verdict_figure(candidates: Sequence[Candidate]) -> Figure:
    """A scale for each rule that has a number, the rule that decides on top, a column for each of the best candidates."""
    shown = candidates[:SHOWN]
    rows = max(len(candidate.verdict.gauges) for candidate in shown)
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False}):
        figure = Canvas(figsize=(WIDTH, 0.5 + 0.72 * rows), layout="constrained")
        axes = figure.subplots(rows, len(shown), squeeze=False)
        for column, candidate in enumerate(shown):
            gauges = candidate.verdict.gauges
            for axis, gauge in zip(axes[:, column], gauges, strict=False):
                _scale(axis, gauge, decides=LEVELS[gauge.level] == candidate.verdict.level)
            for axis in axes[len(gauges) :, column]:
                axis.set_axis_off()
            if len(shown) > 1:
                name = candidate.model if len(candidate.model) <= 30 else "…" + candidate.model[-29:]
                axes[0, column].text(0, 1.75, name, transform=axes[0, column].transAxes, parse_math=False, fontsize=10)
    caption = (
        "Each rule with a number, the worst on top; the verdict is the worst that any says. Green is ready, yellow risky, red "
        "trapped; a rule says so where the whole 95 % interval (the line) lies there. Bold: the rules that decide."
    )
    return Figure("verdict", "Where the reference stands, and what is next to it", caption, figure)


def _scale(axis: Axes, gauge: Gauge, decides: bool) -> None:
    low, high = _span(gauge)
    trapped = gauge.trapped if gauge.trapped is not None else (-math.inf if gauge.rising else math.inf)
    ends = [min(max(bound, low), high) for bound in (gauge.ready, trapped)]
    zones = [(ends[0], high, READY), (ends[1], ends[0], RISKY), (low, ends[1], TRAPPED)]
    if not gauge.rising:
        zones = [(low, ends[0], READY), (ends[0], ends[1], RISKY), (ends[1], high, TRAPPED)]
    for start, end, level in zones:
        axis.axvspan(start, end, color=TINTS[level], linewidth=0)
    one = gauge.number
    value, *interval = np.clip((one.value, one.low, one.high), low, high)  # NaN stays NaN, and is not drawn
    axis.plot(interval, [0, 0], color="#222222", linewidth=2.5, solid_capstyle="butt")
    axis.plot(value, 0, "o", color="#222222", markersize=6)
    look: Any = {"fontweight": "bold" if decides else "normal"}
    axis.set_title(f"{gauge.what}: {_measured(gauge, one.value)}", loc="left", fontsize=9, pad=3, **look)
    level, distance = gauge.nearest
    if math.isfinite(distance):
        far = f"{100 * distance:.2g} points" if gauge.unit == "share" else _measured(gauge, distance)
        text = f"{LEVELS[gauge.level]}; {LEVELS[level]} is {far} away"
        axis.set_title(text, loc="right", fontsize=8, pad=3, color="#555555")
    axis.set_xlim(low, high)
    axis.set_ylim(-1, 1)
    axis.set_yticks([])
    axis.tick_params(labelsize=8, length=2, pad=1)
    if gauge.unit == "share":
        axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"])


def _span(gauge: Gauge) -> tuple[float, float]:
    """The scale, which holds both bounds."""
    if gauge.unit == "share":
        return 0.0, 1.0
    if gauge.unit == "ratio":
        return 0.0, max(1.5, min(gauge.number.value, 3.0))
    size = max([1.0, *(1.2 * abs(end) for end in (gauge.number.low, gauge.number.high) if math.isfinite(end))])
    return -size, size


def _measured(gauge: Gauge, value: float) -> str:
    if math.isnan(value):
        return "unknown"
    if gauge.unit == "share":
        return f"{100 * value:.0f} %" if value >= 0.1 or not value else f"{100 * value:.2g} %"
    return f"{value:.2f}" if gauge.unit == "ratio" else f"{value:.1f} nats"
