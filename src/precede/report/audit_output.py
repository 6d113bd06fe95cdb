"""What an audit leaves: `audit.html`, `audit.json`, `pairs.parquet`, `refused.jsonl`, and the figures as files."""

from __future__ import annotations

import io
import json
import math
import unicodedata
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from precede.evaluate.audit import Audit, Candidate
from precede.evaluate.signals import QUANTILE
from precede.files import write
from precede.libraries import pyarrow
from precede.metrics import describe
from precede.report.figures import Figure, canvas
from precede.report.html import render
from precede.report.tables import Table, narrower
from precede.report.verdict_figure import verdict_figure
from precede.report.view import number
from precede.stats import Estimate

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
SHOWN += ["unigram_gain", "ranking_accuracy", "ranking_accuracy_per_token", "margin"]
SHOWN += ["chosen_logp", "chosen_logp_per_token", "rejected_logp", "rejected_logp_per_token"]
SHOWN += [
    "chosen_tokens",
    "rejected_tokens",
    "chosen_longer_share",
    "reward",
    "length",
    "stop_rate",
    "chosen_stop_rate",
]
"""Numbers that report and terminal show, in this order."""
SETTINGS = {
    "data": "data",
    "split": "split of the data",
    "columns": "columns of the data",
    "limit": "rows read, at most",
    "teacher": "teacher, the model before distillation",
    "reward": "reward",
    "reward_model": "reward model",
    "target_reward": "reward from which a completion is desirable",
    "beta": "β, price of KL: reward units per nat",
    "advantage": "Δ, what a desirable completion is worth more than the rest: reward units",
    "reach_nats": "Δ/β, what alignment can add: nats",
    "samples_per_prompt": "completions sampled of each prompt",
    "max_new_tokens": "tokens of a sampled completion, at most",
    "seed": "seed of the samples",
    "device": "device",
    "scoring": "how pairs were scored",
}
"""What the report says of each setting."""


def write_audit(audit: Audit, out: Path) -> Path:
    """Write everything into `out`; returns the path of `audit.html`."""
    out.mkdir(parents=True, exist_ok=True)
    report = as_dict(audit)
    write(out / "audit.json", json.dumps(report, indent=1, ensure_ascii=False))
    refused = [{"row": one.row, "reason": one.reason, "model": model} for model, one in audit.refused]
    write(out / "refused.jsonl", "".join(json.dumps(row) + "\n" for row in refused))
    with io.BytesIO() as file:
        pyarrow().parquet.write_table(pyarrow().table(pair_columns(audit)), file)
        write(out / "pairs.parquet", file.getvalue())
    tables = [overview(audit)] * (len(audit.candidates) > 1) + [numbers_table(audit)]
    tables += [worst_table(audit, candidate) for candidate in audit.candidates] + [settings_table(audit)]
    values = {"audit": audit, "best": audit.candidates[0], "versions": report["versions"]}
    return render("audit.html", out, _figures(audit), [narrower(table) for table in tables], **values)


def as_dict(audit: Audit) -> dict[str, Any]:
    """The audit as JSON has it: candidates from best to worst, numbers as {value, low, high, count}, undefined as null."""
    data = {"source": audit.source, "pairs": len(audit.candidates[0].rows)}
    return {
        "schema_version": 1,
        "versions": {name: version(name) for name in ("precede", "torch", "transformers")},
        "settings": audit.settings,
        "data": data | {"refused": len(audit.refused), "notes": audit.notes},
        "teacher": None if audit.teacher_numbers is None else _numbers(audit.teacher_numbers),
        "models": [
            {"model": one.model, "verdict": one.verdict.level}
            | {"reasons": one.verdict.reasons, "advice": one.verdict.advice, "numbers": _numbers(one.numbers)}
            for one in audit.candidates
        ],
    }


def _numbers(numbers: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        name: {"value": finite(e.value), "low": finite(e.low), "high": finite(e.high), "count": e.count}
        for name, e in numbers.items()
    }


def pair_columns(audit: Audit) -> dict[str, list[Any]]:
    """`pairs.parquet`: one row per model and pair, with the pair's row in the data, its texts and all its numbers."""
    columns: dict[str, list[Any]] = {}
    for candidate in audit.candidates:
        rows, pairs = candidate.rows, candidate.pairs
        chosen, rejected = pairs.chosen, pairs.rejected
        lost = pairs.unreachable(audit.settings["reach_nats"]) if _has_gap(candidate) else [None] * len(chosen.logps)
        part: dict[str, Any] = {"model": [candidate.model] * len(rows), "row": [row.row for row in rows]}
        part |= {"typicality": chosen.typicality, "unsupported": pairs.unsupported, "recall_gap": pairs.gap}
        part |= {"rejected_recall_gap": pairs.rejected_gap, "excess_gap": pairs.excess_gap, "unreachable": lost}
        part |= {"chosen_logp": chosen.logps, "chosen_tokens": chosen.tokens}
        part |= {"rejected_typicality": rejected.typicality, "rejected_logp": rejected.logps}
        part |= {"rejected_tokens": rejected.tokens, "prompt": [row.prompt_text for row in rows]}
        part |= {"chosen": [row.chosen_text for row in rows], "rejected": [row.rejected_text for row in rows]}
        for name, values in part.items():
            plain = values if isinstance(values, list) else values.tolist()
            columns.setdefault(name, []).extend(None if value != value else value for value in plain)
    return columns


def _has_gap(candidate: Candidate) -> bool:
    """Whether there was a teacher to measure recall gaps against."""
    return bool(np.isfinite(candidate.pairs.gap).any())


def overview(audit: Audit) -> Table:
    """A line for each candidate, best first."""
    names = ("achievable_mass", "lost_preference_share", "recall_gap", "unsupported_share", "ranking_accuracy")
    shown = [name for name in names if name in audit.candidates[0].numbers]
    heads = ["model", "verdict", *[describe(name).label for name in shown]]
    rows = [[c.model, c.verdict.level, *[estimate(c.numbers.get(name)) for name in shown]] for c in audit.candidates]
    return Table("overview", "The candidates, best first", "", heads, rows)


def numbers_table(audit: Audit) -> Table:
    """Every number of every candidate, and of the teacher, with its interval."""
    sides = [(candidate.model, candidate.numbers) for candidate in audit.candidates]
    if audit.teacher_numbers is not None:
        sides.append((f"{audit.teacher} (teacher)", audit.teacher_numbers))
    rows = [
        [describe(name).label, *[estimate(numbers.get(name)) for _, numbers in sides]]
        for name in SHOWN
        if any(name in numbers for _, numbers in sides)
    ]
    caption = "With 95 % intervals: Clopper–Pearson for shares, Student's t over pairs for means."
    return Table("numbers", "Every number", caption, ["", *[short(name) for name, _ in sides]], rows)


def worst_table(audit: Audit, candidate: Candidate) -> Table:
    """The pairs whose chosen completion is farthest out of reach: by recall gap with a teacher, else by typicality."""
    pairs, gap = candidate.pairs, _has_gap(candidate)
    keys = pairs.gap if gap else pairs.chosen.typicality
    order = np.argsort(-np.nan_to_num(keys, nan=-np.inf), kind="stable")[:WORST]
    rows = []
    for index in order.tolist():
        pair = candidate.rows[index]
        numbers = [number(float(pairs.gap[index]), 1)] if gap else []
        numbers += [number(float(pairs.chosen.typicality[index]), 2)]
        numbers += [number(float(side.logps[index]), 1) for side in (pairs.chosen, pairs.rejected)]
        texts = [_excerpt(pair.prompt_text, from_end=True), _excerpt(pair.chosen_text), _excerpt(pair.rejected_text)]
        rows.append([pair.row, *numbers, *texts])
    heads = ["row", *["recall gap"] * gap, "z", "log-prob chosen", "rejected", "prompt", "chosen", "rejected"]
    title = f"The {len(rows)} pairs farthest from {short(candidate.model)}"
    caption = (
        f"Ordered by {'recall gap' if gap else 'typicality z of the chosen completion'}; all pairs are in pairs.parquet. "
        f"Texts are cut at {EXCERPT} characters, prompts keep their end."
    )
    return Table(f"worst-{audit.candidates.index(candidate)}", title, caption, heads, rows)


def settings_table(audit: Audit) -> Table:
    """The settings of the audit that were given or resolved, a row each; audit.json has them as data."""
    rows = [
        [SETTINGS.get(name, name), _said(value)] for name, value in audit.settings.items() if value not in (None, {})
    ]
    return Table("settings", "Settings of this audit", "As they were resolved.", ["setting", "value"], rows)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {part}" for name, part in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _excerpt(text: str, from_end: bool = False) -> str:
    visible = "".join("\N{REPLACEMENT CHARACTER}" if _invisible(letter) else letter for letter in text).strip()
    if len(visible) <= EXCERPT:
        return visible
    return "… " + visible[-EXCERPT:] if from_end else visible[:EXCERPT] + " …"


def _invisible(letter: str) -> bool:
    """Control characters and what turns the direction of text; blanks and line ends of all kinds are none."""
    return (unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Co") and letter not in "\n\r\t") or letter in BIDI


def estimate(measured: Estimate | None) -> str:
    """`0.042 [0.033, 0.051]`; – where it is not known."""
    if measured is None or math.isnan(measured.value):
        return "–"
    ends = (measured.value, measured.low, measured.high)
    value, low, high = ("∞" if math.isinf(end) else number(end, 0 if end >= 1000 else 3) for end in ends)
    return value if math.isnan(measured.low) else f"{value} [{low}, {high}]"


def short(model: str) -> str:
    """The end of a long name."""
    return model if len(model) <= 40 else "…" + model[-39:]


def _figures(audit: Audit) -> list[Figure]:
    """The verdict, typicality of the chosen against N(0, 1), and the recall gaps against the reach if there is a teacher."""
    with_teacher = any(_has_gap(candidate) for candidate in audit.candidates)
    return [verdict_figure(audit.candidates), _typicality(audit), *([_gaps(audit)] if with_teacher else [])]


def _panels(count: int) -> tuple[Any, list[Any]]:
    """A figure of `count` panels, a few in a row."""
    columns = min(count, PANELS)
    figure, axes = canvas(columns, -(-count // columns), height=2.9)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def _typicality(audit: Audit) -> Figure:
    figure, panels = _panels(len(audit.candidates))
    grid = np.linspace(-5, 12, 400)
    for axis, candidate in zip(panels, audit.candidates, strict=True):
        for side, tint in (("rejected", "#d4692a"), ("chosen", "#1f6fb4")):
            z = np.clip(getattr(candidate.pairs, side).typicality, grid[0], grid[-1])
            look: Any = {"color": tint, "alpha": 0.35, "histtype": "stepfilled", "label": side}
            axis.hist(z, bins=np.arange(-5, 12.5, 0.5), density=True, **look)
        axis.plot(grid, stats.norm.pdf(grid), "k--", linewidth=1.2, label="N(0, 1): its own samples")
        axis.axvline(stats.norm.ppf(QUANTILE), color="#999999", linewidth=1)
        axis.set_xlabel("typicality z (standard deviations)")
        axis.set_title(short(candidate.model), parse_math=False)
    panels[0].set_ylabel("density")
    panels[0].legend()
    caption = (
        "What the reference writes itself lies along the dashed curve. Right of the grey line a completion is less likely than "
        f"{QUANTILE:.0%} of those; values beyond the frame stand at its edge."
    )
    return Figure("typicality", "How typical the completions are of the reference", caption, figure)


def _gaps(audit: Audit) -> Figure:
    reach = audit.settings["reach_nats"]
    shown = [candidate for candidate in audit.candidates if _has_gap(candidate)]
    figure, panels = _panels(len(shown))
    for axis, candidate in zip(panels, shown, strict=True):
        axis.hist(candidate.pairs.gap, bins=40, color="#1f6fb4", alpha=0.7)
        axis.axvline(reach, color="#c2251d", linewidth=1.4, label=f"reach Δ/β = {reach:.1f} nats")
        axis.axvline(0, color="#999999", linewidth=1)
        axis.set_xlabel("recall gap of the chosen (nats)")
        axis.set_title(short(candidate.model), parse_math=False)
        axis.legend()
    panels[0].set_ylabel("pairs")
    caption = (
        "log π_teacher(chosen) − log π(chosen). Right of the red line is more than alignment anchored to this reference can "
        "win back."
    )
    return Figure("recall-gap", "What distillation lost of the chosen completions", caption, figure)
