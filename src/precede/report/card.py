"""The model card of a built model: what it is, how it was made, and what was measured, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from precede.metrics import COSTS, describe

SHOWN = ["reward", "target_mass", "ranking_accuracy", "ranking_accuracy_per_token", "margin"]
SHOWN += ["chosen_logp", "chosen_logp_per_token", "rejected_logp"]
SHOWN += ["recall", "recall_per_token", "kl_to_truth", "entropy_per_token", "length", "stop_rate"]
"""Numbers that the tables show, in this order."""
COST_FORMS = {"trained_tokens": ",.0f", "flops": ".2g", "wall_seconds": ".0f", "peak_memory_bytes": ".1f"}
"""Costs that the table of training shows, each with the form of its numbers."""


def model_card(report: Mapping[str, Any], adapter: bool) -> str:
    """The card (README.md of a Hugging Face repository) of what `report`, `build.json`'s content, describes."""
    base = report["teacher"] if report["student"] is None else report["student"].get("model") or report["teacher"]
    head: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if isinstance(base, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", base) and not Path(base).exists():
        head["base_model"] = base
    heads, rows = rows_of(report)
    head["tags"] = ["precede", *dict.fromkeys(stage["kind"] for stage in report["stages"])]
    command = report["command"] or "precede build recipe.yaml --out MODEL"
    fence = "`" * max(3, _ticks(command) + 1)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {_text(report['recipe'])}",
        f"Made in the order **{_text(report['order'])}** by [precede](https://arxiv.org/abs/2509.23667) from the teacher "
        f"{_code(report['teacher'])} and the student {_student(report['student'])}.",
        _use(adapter),
        "## What each stage did",
        markdown([_text(head) for head in heads], rows),
        _note(report),
        _retained(report),
        *_tasks(report),
        "## Audits",
        _audits(report),
        "## Training",
        _training(report),
        _data(report),
        "## How to make it again",
        f"{fence}bash\n{command}\n{fence}",
        "The resolved recipe is `recipe.yaml`, every number `build.json`; logs, audits and samples are in `evidence/`.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
        "## Citation",
        "The order is that of Cha & Cho, *Why Alignment Must Precede Distillation*, arXiv 2509.23667.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _data(report: Mapping[str, Any]) -> str:
    data = report["data"]
    if data is None:
        return f"Data: none but completions of one prompt, {_code(report['prompt'])}, sampled from the models."
    return (
        f"Data: {_code(data['source'])}, {data['training_pairs']} pairs to train on, {data['held_out_pairs']} held out by "
        f"question, {len(data['refused'])} rows refused."
    )


def rows_of(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of models: a line for each number, a column for each model."""
    models = report["models"]
    heads = ["", *[f"after {label}" if label != "start" else "at the start" for label in models]]
    rows = [
        [describe(name).label, *[interval(numbers.get(name)) for numbers in models.values()]]
        for name in SHOWN
        if any(name in numbers for numbers in models.values())
    ]
    return heads, rows


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are Markdown, of which bars and ends of lines cannot end a cell."""
    lines = [heads, ["---"] * len(heads), *rows]
    cells = [[" ".join(cell.split()).replace("|", "&#124;") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def interval(ends: Sequence[float | None] | None) -> str:
    """`0.42 [0.31, 0.53]` of [value, low, high]; – where it is not known."""
    if ends is None or ends[0] is None:
        return "–"
    value, low, high = (None if end is None else f"{end:.3g}" if abs(end) < 100 else f"{end:.1f}" for end in ends)
    return str(value) if low is None or high is None else f"{value} [{low}, {high}]"


def _code(value: Any) -> str:
    """A value as a code span, whatever it holds: within more backticks than it has in a row."""
    if value is None:
        return "none"
    text = " ".join(str(value).split())
    fence = "`" * (_ticks(text) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _ticks(text: str) -> int:
    """The longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)


def _text(value: str) -> str:
    """A text of which nothing is read as Markdown or HTML; brackets of intervals stay, links do not."""
    plain = re.sub(r"([\\`*_~|])", r"\\\1", " ".join(value.split()))
    return plain.replace("](", "]\\(").replace("&", "&amp;").replace("<", "&lt;")


def _student(student: Mapping[str, Any] | None) -> str:
    if student is None:
        return "none"
    if "keep_layers" in student:
        return f"the teacher with {student['keep_layers']} of its layers"
    return _code(student["model"]) if "model" in student else f"a new model, {_code(student['config'])}"


def _use(adapter: bool) -> str:
    kind, imports = "AutoModelForCausalLM", "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if adapter:
        kind = "AutoPeftModelForCausalLM"
        imports = f"from peft import {kind}\nfrom transformers import AutoTokenizer"
    return (
        f'```python\n{imports}\n\nmodel = {kind}.from_pretrained("MODEL")\n'
        'tokenizer = AutoTokenizer.from_pretrained("MODEL")\n```'
    )


def _note(report: Mapping[str, Any]) -> str:
    text = (
        f"On held-out prompts and pairs, samples at temperature 1, at most {report['max_new_tokens']} tokens; 95 % intervals "
        "over pairs (they do not cover the noise of another training)."
    )
    if any("recall" in numbers for numbers in report["models"].values()):
        truth = report.get("truth")
        text += f" Recall and KL are against {_code(truth) if truth else 'the model that the build began with'}."
    if report["target_reward"] is not None:
        text += f" Target: a reward of at least {report['target_reward']:g}."
    return text


def _retained(report: Mapping[str, Any]) -> str:
    titles = {"reward": "reward", "preference_margin": "preference margin log π(chosen) − log π(rejected)"}
    lines = [
        f"Of the gain in {titles[name]} that alignment had made, the last stage kept {interval(share)}."
        if share[0] is not None
        else f"Alignment made no gain in {titles[name]} that can be told from none on these rows, so no share of it is given."
        for name, share in report["retained"].items()
    ]
    return " ".join(lines)


def _tasks(report: Mapping[str, Any]) -> list[str]:
    models = report["tasks"]
    names = dict.fromkeys((task, m) for scores in models.values() for task, metrics in scores.items() for m in metrics)
    rows = []
    for task, metric in names:
        values = [scores.get(task, {}).get(metric, float("nan")) for scores in models.values()]
        rows.append([_text(task), _text(metric), *[f"{value:.4g}" for value in values]])
    return ["## Capability (lm-eval)", markdown(["task", "metric", *models], rows)] if models else []


def _audits(report: Mapping[str, Any]) -> str:
    lines = []
    for stage in report["stages"]:
        if (audit := stage["audit"]) is not None:
            reasons = _text("; ".join(audit["reasons"]))
            lines.append(f"- before {_text(stage['name'])}: **{audit['verdict']}**, because {reasons}")
    return "\n".join(lines) or "No audit was made."


def _training(report: Mapping[str, Any]) -> str:
    heads = ["stage", "method", "steps", "loss, first and last", *[COSTS[name].label for name in COST_FORMS]]
    rows = []
    for stage in report["stages"]:
        losses = [f"{stage[end]['loss']:.4g}" if "loss" in stage[end] else "–" for end in ("first", "last")]
        row = [_text(stage["name"]), str(stage["settings"].get("method", stage["kind"])), f"{stage['steps']:.0f}"]
        costs = [format(COSTS[name].scale * stage["cost"][name], form) for name, form in COST_FORMS.items()]
        rows.append([*row, " → ".join(losses), *costs])
    return markdown(heads, rows)
