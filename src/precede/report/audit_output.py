"""What an audit leaves: `audit.html`, `audit.json`, `pairs.parquet`, `refused.jsonl`, and the figures as files."""

from __future__ import annotations

import json
import math
import unicodedata
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from precede.evaluate.audit import Audit, Candidate
from precede.evaluate.signals import Estimate
from precede.libraries import pyarrow
from precede.metrics import describe
from precede.report.audit_figures import figures, short
from precede.report.html import render
from precede.report.tables import Table
from precede.report.view import number

WORST = 20
"""Pairs that the report shows."""
EXCERPT = 600
"""Characters of a text that the report shows."""
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
SHOWN = (
    "target_mass",
    "achievable_mass",
    "samples_needed",
    "prompts_without_hit",
    "lost_preference_share",
    "excess_gap",
    "unreachable_share",
    "recall_gap",
    "recall_gap_per_token",
    "rejected_recall_gap",
    "unsupported_share",
    "typicality",
    "rejected_typicality",
    "ranking_accuracy",
    "ranking_accuracy_per_token",
    "margin",
    "chosen_logp",
    "chosen_logp_per_token",
    "rejected_logp",
    "rejected_logp_per_token",
    "chosen_tokens",
    "rejected_tokens",
    "chosen_longer_share",
    "reward",
    "length",
    "stop_rate",
)
"""Numbers that report and terminal show, in this order."""


def write_audit(found: Audit, out: Path) -> Path:
    """Write everything into `out`; returns the path of `audit.html`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.json").write_text(json.dumps(as_dict(found), indent=1, ensure_ascii=False), "utf-8")
    with (out / "refused.jsonl").open("w", encoding="utf-8") as file:
        for model, refused in found.refused:
            file.write(json.dumps({"row": refused.row, "reason": refused.reason, "model": model}) + "\n")
    columns = pair_columns(found)
    pyarrow().parquet.write_table(pyarrow().table(columns), out / "pairs.parquet")
    return render(
        "audit.html",
        out,
        figures(found),
        [overview(found)] * (len(found.candidates) > 1)
        + [numbers_table(found), *[worst_table(found, candidate) for candidate in found.candidates]],
        found=found,
        best=found.candidates[0],
        versions=json.dumps(as_dict(found)["versions"]),
    )


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
        gap = np.isfinite(candidate.pairs.gap).any()
        part: dict[str, Any] = {
            "model": [candidate.model] * len(candidate.rows),
            "row": [row.row for row in candidate.rows],
            "typicality": chosen.typicality,
            "unsupported": candidate.pairs.unsupported,
            "recall_gap": candidate.pairs.gap,
            "rejected_recall_gap": candidate.pairs.rejected_gap,
            "excess_gap": candidate.pairs.excess_gap,
            "unreachable": candidate.pairs.unreachable(found.settings["reach_nats"])
            if gap
            else [None] * len(chosen.logps),
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
    rows = [
        [candidate.model, candidate.verdict.level, *[estimate(candidate.numbers.get(name)) for name in shown]]
        for candidate in found.candidates
    ]
    return Table(
        "overview",
        "The candidates, best first",
        "",
        ["model", "verdict", *[describe(name).label for name in shown]],
        rows,
    )


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
    return Table(
        "numbers",
        "Every number",
        "With 95 % intervals: Clopper–Pearson for shares, bootstrap over pairs for means.",
        ["", *[short(name) for name, _ in sides]],
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
