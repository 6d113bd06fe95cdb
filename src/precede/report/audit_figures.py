"""The figures of an audit."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from precede.evaluate.audit import Audit
from precede.evaluate.signals import QUANTILE
from precede.report.figures import Figure, canvas

PANELS = 3
"""Panels of a figure in one row."""


def short(model: str) -> str:
    """The end of a long name."""
    return model if len(model) <= 40 else "…" + model[-39:]


def figures(found: Audit) -> list[Figure]:
    """Typicality of the chosen against N(0, 1), and the recall gaps against the reach if there is a teacher."""
    made = [_typicality(found)]
    if any(np.isfinite(candidate.pairs.gap).any() for candidate in found.candidates):
        made.append(_gaps(found))
    return made


def _panels(count: int) -> tuple[Any, list[Any]]:
    """A figure of `count` panels, a few in a row."""
    columns = min(count, PANELS)
    figure, axes = canvas(columns, -(-count // columns), width=6.2 if count == 1 else 3.8, height=2.9)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def _typicality(found: Audit) -> Figure:
    figure, panels = _panels(len(found.candidates))
    grid = np.linspace(-5, 12, 400)
    for axis, candidate in zip(panels, found.candidates, strict=True):
        for side, tint, words in (("rejected", "#d4692a", "rejected"), ("chosen", "#1f6fb4", "chosen")):
            z = np.clip(getattr(candidate.pairs, side).typicality, grid[0], grid[-1])
            axis.hist(
                z,
                bins=np.arange(-5, 12.5, 0.5),
                density=True,
                color=tint,
                histtype="stepfilled",
                alpha=0.35,
                label=words,
            )
        axis.plot(grid, stats.norm.pdf(grid), "k--", linewidth=1.2, label="N(0, 1): its own samples")
        axis.axvline(stats.norm.ppf(QUANTILE), color="#999999", linewidth=1)
        axis.set_xlabel("typicality z")
        axis.set_title(short(candidate.model), parse_math=False)
    panels[0].set_ylabel("density")
    panels[0].legend(fontsize=7)
    return Figure(
        "typicality",
        "How typical the completions are of the reference",
        "What the reference writes itself lies along the dashed curve. Right of the grey line a completion is less likely than "
        f"{QUANTILE:.0%} of those; values beyond the frame stand at its edge.",
        figure,
    )


def _gaps(found: Audit) -> Figure:
    reach = found.settings["reach_nats"]
    shown = [candidate for candidate in found.candidates if np.isfinite(candidate.pairs.gap).any()]
    figure, panels = _panels(len(shown))
    for axis, candidate in zip(panels, shown, strict=True):
        axis.hist(candidate.pairs.gap, bins=40, color="#1f6fb4", alpha=0.7)
        axis.axvline(reach, color="#c2251d", linewidth=1.4, label=f"reach Δ/β = {reach:.1f} nats")
        axis.axvline(0, color="#999999", linewidth=1)
        axis.set_xlabel("recall gap of the chosen, nats")
        axis.set_title(short(candidate.model), parse_math=False)
        axis.legend(fontsize=7)
    panels[0].set_ylabel("pairs")
    return Figure(
        "recall-gap",
        "What distillation lost of the chosen completions",
        "log π_teacher(chosen) − log π(chosen). Right of the red line is more than alignment anchored to this reference can "
        "win back.",
        figure,
    )
