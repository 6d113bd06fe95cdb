"""What an audit leaves: `audit.html`, `audit.json`, `pairs.parquet`, `refused.jsonl`, and the figures as files."""

from __future__ import annotations

import json
import math
import unicodedata
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from precede.evaluate.audit import Audit, Candidate
from precede.evaluate.signals import QUANTILE, Estimate
from precede.libraries import pyarrow
from precede.metrics import describe
from precede.report.figures import Figure, canvas
from precede.report.html import render
from precede.report.tables import Table
from precede.report.view import number

WORST = 20
"""Pairs that the report shows."""
EXCERPT = 600
"""Characters of a text that the report shows."""
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
PANELS = 3
"""Panels of a figure in one row."""
SHOWN = ["target_mass", "achievable_mass", "samples_needed", "prompts_without_hit"]
SHOWN += ["lost_preference_share", "excess_gap", "unreachable_share", "recall_gap", "recall_gap_per_token"]
SHOWN += ["rejected_recall_gap", "unsupported_share", "typicality", "rejected_typicality"]
SHOWN += ["ranking_accuracy", "ranking_accuracy_per_token", "margin"]
SHOWN += ["chosen_logp", "chosen_logp_per_token", "rejected_logp", "rejected_logp_per_token"]
SHOWN += ["chosen_tokens", "rejected_tokens", "chosen_longer_share", "reward", "length", "stop_rate"]
"""Numbers that report and terminal show, in this order."""


def write_audit(found: Audit, out: Path) -> Path:
    """Write everything into `out`; returns the path of `audit.html`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.json").write_text(json.dumps(as_dict(found), indent=1, ensure_ascii=False), "utf-8")
    with (out / "refused.jsonl").open("w", encoding="utf-8") as file:
        for model, refused in found.refused:
            file.write(json.dumps({"row": refused.row, "reason": refused.reason, "model": model}) + "\n")
    pyarrow().parquet.write_table(pyarrow().table(pair_columns(found)), out / "pairs.parquet")
    tables = [overview(found)] * (len(found.candidates) > 1) + [numbers_table(found)]
    tables += [worst_table(found, candidate) for candidate in found.candidates]
    values = {"found": found, "best": found.candidates[0], "versions": json.dumps(as_dict(found)["versions"])}
    return render("audit.html", out, _figures(found), tables, **values)


def as_dict(found: Audit) -> dict[str, Any]:
    """The audit as JSON has it: candidates from best to worst, numbers as {value, low, high, count}, undefined as null."""
    return {
        "schema_version": 1,
        "versions": {name: version(name) for name in ("precede", "torch", "transformers")},
        "settings": found.settings,
        "data": {
            "source": found.source,
            "pairs": len(found.candidates[0].rows),
            "refused": len(found.refused),
            "notes": found.notes,
        },
        "teacher": None if found.teacher_numbers is None else _numbers(found.teacher_numbers),
        "models": [
            {"model": one.model, "verdict": one.verdict.level}
            | {"reasons": one.verdict.reasons, "advice": one.verdict.advice, "numbers": _numbers(one.numbers)}
            for one in found.candidates
        ],
    }


def _numbers(numbers: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        name: {"value": finite(e.value), "low": finite(e.low), "high": finite(e.high), "count": e.count}
        for name, e in numbers.items()
    }


def pair_columns(found: Audit) -> dict[str, list[Any]]:
    """`pairs.parquet`: one row per model and pair, with the pair's row in the data, its texts and all its numbers."""
    columns: dict[str, list[Any]] = {}
    for candidate in found.candidates:
        chosen, rejected = candidate.pairs.chosen, candidate.pairs.rejected
        gap = np.isfinite(candidate.pairs.gap).any()
        lost = candidate.pairs.unreachable(found.settings["reach_nats"]) if gap else [None] * len(chosen.logps)
        part: dict[str, Any] = {
            "model": [candidate.model] * len(candidate.rows),
            "row": [row.row for row in candidate.rows],
            "typicality": chosen.typicality,
            "unsupported": candidate.pairs.unsupported,
            "recall_gap": candidate.pairs.gap,
            "rejected_recall_gap": candidate.pairs.rejected_gap,
            "excess_gap": candidate.pairs.excess_gap,
            "unreachable": lost,
            "chosen_logp": chosen.logps,
            "chosen_tokens": chosen.tokens,
            "rejected_typicality": rejected.typicality,
            "rejected_logp": rejected.logps,
            "rejected_tokens": rejected.tokens,
            "prompt": [row.prompt_text for row in candidate.rows],
            "chosen": [row.chosen_text for row in candidate.rows],
            "rejected": [row.rejected_text for row in candidate.rows],
        }
        for name, values in part.items():
            plain = values if isinstance(values, list) else values.tolist()
            columns.setdefault(name, []).extend(None if value != value else value for value in plain)
    return columns


def overview(found: Audit) -> Table:
    """A line for each candidate, best first."""
    names = ("achievable_mass", "lost_preference_share", "recall_gap", "unsupported_share", "ranking_accuracy")
    shown = [name for name in names if name in found.candidates[0].numbers]
    heads = ["model", "verdict", *[describe(name).label for name in shown]]
    rows = [[c.model, c.verdict.level, *[estimate(c.numbers.get(name)) for name in shown]] for c in found.candidates]
    return Table("overview", "The candidates, best first", "", heads, rows)


def numbers_table(found: Audit) -> Table:
    """Every number of every candidate, and of the teacher, with its interval."""
    sides = [(candidate.model, candidate.numbers) for candidate in found.candidates]
    if found.teacher_numbers is not None:
        sides.append((f"{found.teacher} (teacher)", found.teacher_numbers))
    rows = [
        [describe(name).label, *[estimate(numbers.get(name)) for _, numbers in sides]]
        for name in SHOWN
        if any(name in numbers for _, numbers in sides)
    ]
    caption = "With 95 % intervals: Clopper–Pearson for shares, bootstrap over pairs for means."
    return Table("numbers", "Every number", caption, ["", *[short(name) for name, _ in sides]], rows)


def worst_table(found: Audit, candidate: Candidate) -> Table:
    """The pairs whose chosen completion is farthest out of reach: by recall gap with a teacher, else by typicality."""
    pairs = candidate.pairs
    gap = np.isfinite(pairs.gap).any()
    keys = pairs.gap if gap else pairs.chosen.typicality
    order = np.argsort(-np.nan_to_num(keys, nan=-np.inf), kind="stable")[:WORST]
    rows = [
        [
            candidate.rows[place].row,
            *([number(float(pairs.gap[place]), 1)] if gap else []),
            number(float(pairs.chosen.typicality[place]), 2),
            *[number(float(side.logps[place]), 1) for side in (pairs.chosen, pairs.rejected)],
            _excerpt(candidate.rows[place].prompt_text, from_end=True),
            _excerpt(candidate.rows[place].chosen_text),
            _excerpt(candidate.rows[place].rejected_text),
        ]
        for place in order.tolist()
    ]
    heads = [
        "row",
        *(["recall gap"] if gap else []),
        "z",
        "log-prob chosen",
        "rejected",
        "prompt",
        "chosen",
        "rejected",
    ]
    return Table(
        f"worst-{found.candidates.index(candidate)}",
        f"The {len(rows)} pairs farthest from {short(candidate.model)}",
        f"Ordered by {'recall gap' if gap else 'typicality z of the chosen completion'}; all pairs are in pairs.parquet. "
        f"Texts are cut at {EXCERPT} characters, prompts keep their end.",
        heads,
        rows,
    )


def _excerpt(text: str, from_end: bool = False) -> str:
    visible = "".join("\N{REPLACEMENT CHARACTER}" if _invisible(letter) else letter for letter in text).strip()
    if len(visible) <= EXCERPT:
        return visible
    return "… " + visible[-EXCERPT:] if from_end else visible[:EXCERPT] + " …"


def _invisible(letter: str) -> bool:
    """Control characters and what turns the direction of text; blanks and line ends of all kinds are none."""
    return (unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Co") and letter not in "\n\r\t") or letter in BIDI


def estimate(found: Estimate | None) -> str:
    """`0.042 [0.033, 0.051]`; – where it is not known."""
    if found is None or math.isnan(found.value):
        return "–"
    ends = (found.value, found.low, found.high)
    value, low, high = ("∞" if math.isinf(end) else number(end, 0 if end >= 1000 else 3) for end in ends)
    return value if math.isnan(found.low) else f"{value} [{low}, {high}]"


def short(model: str) -> str:
    """The end of a long name."""
    return model if len(model) <= 40 else "…" + model[-39:]


def _figures(found: Audit) -> list[Figure]:
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
        for side, tint in (("rejected", "#d4692a"), ("chosen", "#1f6fb4")):
            z = np.clip(getattr(candidate.pairs, side).typicality, grid[0], grid[-1])
            look: Any = {"color": tint, "alpha": 0.35, "histtype": "stepfilled", "label": side}
            axis.hist(z, bins=np.arange(-5, 12.5, 0.5), density=True, **look)
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
