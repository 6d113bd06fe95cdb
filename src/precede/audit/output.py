"""What an audit leaves: `audit.html`, `audit.json`, `pairs.parquet`, `refused.jsonl`, and the figures as files."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from precede.audit.audit import Audit, Candidate
from precede.audit.signals import QUANTILE, Estimate
from precede.lm.libraries import pyarrow
from precede.report.figures import Figure, canvas
from precede.report.html import render
from precede.report.tables import Table
from precede.report.words import number

WORST = 20
"""Pairs that the report shows."""
EXCERPT = 600
"""Characters of a text that the report shows."""
TITLES = {
    "target_mass": "target mass of its samples",
    "achievable_mass": "achievable mass m*",
    "samples_needed": "samples for one hit (95 %)",
    "unreachable_share": "chosen beyond reach Δ/β",
    "recall_gap": "recall gap, nats",
    "recall_gap_per_token": "recall gap, nats per token",
    "unsupported_share": f"chosen beyond the {QUANTILE:.0%} quantile",
    "typicality": "typicality z of chosen",
    "rejected_typicality": "typicality z of rejected",
    "ranking_accuracy": "ranking accuracy",
    "ranking_accuracy_per_token": "ranking accuracy per token",
    "chosen_logp": "log-prob of chosen, nats",
    "chosen_logp_per_token": "the same per token",
    "rejected_logp": "log-prob of rejected, nats",
    "rejected_logp_per_token": "the same per token",
    "chosen_tokens": "tokens of chosen",
    "rejected_tokens": "tokens of rejected",
    "chosen_longer_share": "chosen is the longer",
    "sampled_reward": "reward of its samples",
    "sampled_tokens": "tokens of its samples",
    "stop_rate": "samples that end by themselves",
}


def write_audit(found: Audit, out: Path) -> Path:
    """Write everything into `out`; returns the path of `audit.html`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.json").write_text(json.dumps(as_dict(found), indent=1, ensure_ascii=False), "utf-8")
    with (out / "refused.jsonl").open("w", encoding="utf-8") as file:
        for refused in found.data.refused:
            file.write(json.dumps({"row": refused.row, "reason": refused.reason}) + "\n")
    columns = pair_columns(found)
    pyarrow().parquet.write_table(pyarrow().table(columns), out / "pairs.parquet")
    return render(
        "audit.html",
        out,
        figures(found),
        [numbers_table(found), *[worst_table(found, candidate) for candidate in found.candidates]],
        found=found,
        best=found.candidates[0],
        json=json.dumps(as_dict(found)["versions"]),
    )


def as_dict(found: Audit) -> dict[str, Any]:
    """The audit as JSON has it: candidates from best to worst, numbers as {value, low, high, count}, undefined as null."""
    return {
        "schema_version": 1,
        "versions": {name: version(name) for name in ("precede", "torch", "transformers")},
        "settings": found.settings,
        "data": {
            "source": found.data.source,
            "pairs": len(found.candidates[0].rows),
            "refused": len(found.data.refused),
            "notes": found.notes,
        },
        "teacher": None if found.teacher_numbers is None else _numbers(found.teacher_numbers),
        "models": [
            {
                "model": candidate.model,
                "verdict": candidate.verdict.level,
                "reasons": candidate.verdict.reasons,
                "advice": candidate.verdict.advice,
                "numbers": _numbers(candidate.numbers),
            }
            for candidate in found.candidates
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
        part: dict[str, Any] = {
            "model": [candidate.model] * len(candidate.rows),
            "row": [row.row for row in candidate.rows],
            "typicality": chosen.typicality,
            "unsupported": candidate.pairs.unsupported,
            "recall_gap": candidate.pairs.gap,
            "unreachable": candidate.pairs.unreachable(found.settings["reach_nats"]),
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


def numbers_table(found: Audit) -> Table:
    """Every number of every candidate, and of the teacher, with its interval."""
    sides = [(candidate.model, candidate.numbers) for candidate in found.candidates]
    if found.teacher_numbers is not None:
        sides.append((f"{found.teacher} (teacher)", found.teacher_numbers))
    rows = [
        [title, *[estimate(numbers.get(name)) for _, numbers in sides]]
        for name, title in TITLES.items()
        if any(name in numbers for _, numbers in sides)
    ]
    return Table(
        "numbers",
        "Every number",
        "With 95 % intervals: Clopper–Pearson for shares, bootstrap over pairs for means.",
        ["", *[_short(name) for name, _ in sides]],
        rows,
    )


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
            number(float(pairs.chosen.logps[place]), 1),
            number(float(pairs.rejected.logps[place]), 1),
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
        f"The {len(rows)} pairs farthest from {_short(candidate.model)}",
        f"Ordered by {'recall gap' if gap else 'typicality z of the chosen completion'}; all pairs are in pairs.parquet. "
        f"Texts are cut at {EXCERPT} characters, prompts keep their end.",
        heads,
        rows,
    )


def _excerpt(text: str, from_end: bool = False) -> str:
    visible = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    if len(visible) <= EXCERPT:
        return visible
    return "… " + visible[-EXCERPT:] if from_end else visible[:EXCERPT] + " …"


def estimate(found: Estimate | None) -> str:
    """`0.042 [0.033, 0.051]`; – where it is not known."""
    if found is None or math.isnan(found.value):
        return "–"
    ends = (found.value, found.low, found.high)
    value, low, high = ("∞" if math.isinf(end) else number(end) for end in ends)
    return value if math.isnan(found.low) else f"{value} [{low}, {high}]"


def _short(model: str) -> str:
    return model if len(model) <= 40 else "…" + model[-39:]


def figures(found: Audit) -> list[Figure]:
    """Typicality of the chosen against N(0, 1), and the recall gaps against the reach if there is a teacher."""
    made = [_typicality(found)]
    if any(np.isfinite(candidate.pairs.gap).any() for candidate in found.candidates):
        made.append(_gaps(found))
    return made


def _typicality(found: Audit) -> Figure:
    figure, axes = canvas(len(found.candidates), width=4.2 if len(found.candidates) > 1 else 6.2, height=2.9)
    grid = np.linspace(-5, 12, 400)
    for axis, candidate in zip(axes[0], found.candidates, strict=True):
        for side, tint, words in (("rejected", "#d4692a", "rejected"), ("chosen", "#1f6fb4", "chosen")):
            z = np.clip(getattr(candidate.pairs, side).typicality, grid[0], grid[-1])
            axis.hist(z, bins=np.arange(-5, 12.25, 0.25), density=True, color=tint, alpha=0.45, label=words)
        axis.plot(grid, stats.norm.pdf(grid), "k--", linewidth=1.2, label="N(0, 1): its own samples")
        axis.axvline(stats.norm.ppf(QUANTILE), color="#999999", linewidth=1)
        axis.set(xlabel="typicality z", title=_short(candidate.model))
    axes[0, 0].set_ylabel("density")
    axes[0, 0].legend(fontsize=7)
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
    figure, axes = canvas(len(shown), width=4.2 if len(shown) > 1 else 6.2, height=2.9)
    for axis, candidate in zip(axes[0], shown, strict=True):
        axis.hist(candidate.pairs.gap, bins=40, color="#1f6fb4", alpha=0.7)
        axis.axvline(reach, color="#c2251d", linewidth=1.4, label=f"reach Δ/β = {reach:.1f} nats")
        axis.axvline(0, color="#999999", linewidth=1)
        axis.set(xlabel="recall gap of the chosen, nats", title=_short(candidate.model))
        axis.legend(fontsize=7)
    axes[0, 0].set_ylabel("pairs")
    return Figure(
        "recall-gap",
        "What distillation lost of the chosen completions",
        "log π_teacher(chosen) − log π(chosen). Right of the red line is more than alignment anchored to this reference can "
        "win back.",
        figure,
    )
