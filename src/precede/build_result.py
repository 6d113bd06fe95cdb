"""From finished stages to what a build leaves: the numbers of every model, and the folder that is shipped."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from precede.evaluate.held_out import retained
from precede.report.card import model_card
from precede.store import Stage, Store, library_versions

if TYPE_CHECKING:
    from precede.build_plan import Plan

LIBRARIES = ("transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "safetensors")


def collect(plan: Plan, store: Store) -> dict[str, Any]:
    """Everything that was measured and said, as JSON values: `build.json`.

    `models`: of the model that the build began with and of each stage's, its numbers as [value, low, high]. `stages`: settings,
    cost, what the trainer logged first and last, the audit before it. `retained`: the share of alignment's gain on held-out
    rows that the final model has, by reward where there is one and by preference margin (`precede.evaluate.held_out.retained`).
    """
    found = {label: _read(store, stage, "held_out.json") for label, stage in plan.measures.items()}
    models = {label: one["numbers"] for label, one in found.items()}
    rows = []
    for step in plan.steps:
        log = _read(store, step.stage, "training.json")
        facts = _read(store, step.stage, "facts.json")
        rows.append(
            {
                "name": step.name,
                "kind": step.stage.kind,
                "settings": step.settings.active(),
                "steps": facts["steps"],
                "pairs": facts["pairs"],
                "first": log[0] if log else {},
                "last": log[-1] if log else {},
                "cost": store.cost(step.stage),
                "audit": None if step.audit is None else _verdict(_read(store, step.audit, "audit.json")),
                "key": step.stage.key,
            }
        )
    settings = plan.recipe.settings
    return {
        "schema_version": 1,
        "build": settings.build,
        "order": str(plan.recipe.order),
        "teacher": settings.teacher,
        "student": None if settings.student is None else settings.student.model_dump(mode="json", exclude_none=True),
        "data": _data(plan),
        "models": models,
        "stages": rows,
        "retained": _retained(plan, found),
        "tasks": {label: _read(store, stage, "tasks.json") for label, stage in plan.tasks.items()},
        "max_new_tokens": plan.inputs.max_new_tokens,
        "target_reward": plan.inputs.target_reward,
        "notes": plan.inputs.notes,
        "versions": library_versions(*LIBRARIES),
    }


def _data(plan: Plan) -> dict[str, Any]:
    inputs = plan.inputs
    first = inputs.models[0]
    data = inputs.data[first]
    return {
        "source": data.source,
        "training_pairs": len(inputs.training_rows(first)),
        "held_out_pairs": len(inputs.held_out_rows(first)),
        "refused": [{"row": one.row, "reason": one.reason} for one in data.refused],
        "notes": data.notes,
    }


def _verdict(audit: dict[str, Any]) -> dict[str, Any]:
    model = audit["models"][0]
    return {name: model[name] for name in ("verdict", "reasons", "advice", "numbers")} | {"settings": audit["settings"]}


def _retained(plan: Plan, found: dict[str, Any]) -> dict[str, list[float | None]]:
    """By reward and by margin: what the last stage kept of what the last alignment had gained, if it comes after it."""
    names = [step.name for step in plan.steps]
    aligned = next((step.name for step in reversed(plan.steps) if step.stage.kind == "align"), None)
    if aligned is None or names[-1] == aligned or "start" not in found:
        return {}
    shares = {}
    for name, words in (("rewards", "reward"), ("margins", "preference_margin")):
        values = [found[label][name] for label in ("start", aligned, names[-1])]
        if all(value is not None for value in values):
            share = retained(*values)
            shares[words] = [None if v != v else v for v in (share.value, share.low, share.high)]
    return shares


def _read(store: Store, stage: Stage, name: str) -> Any:
    return json.loads((store.folder(stage) / name).read_text("utf-8"))


def assemble(plan: Plan, report: dict[str, Any], store: Store, out: Path, command: str) -> dict[str, Any]:
    """Write the folder `out`, which appears by one rename: model or adapter, card, `build.json`, the recipe, and `evidence/`.

    `evidence/` has each stage's training log, each audit's report, and what each model wrote on the held-out prompts. Returns
    the report.
    """
    report = report | {"command": command}
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.parent / f".{out.name}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    last = plan.steps[-1]
    lora = last.stage.config["lora"]
    kept = "adapter" if lora is not None and lora["adapter"] == "keep" else "model"
    try:
        shutil.copytree(store.folder(last.stage) / kept, scratch)
        evidence = scratch / "evidence"
        for label, stage in plan.measures.items():
            folder = evidence / label
            folder.mkdir(parents=True)
            shutil.copy(store.folder(stage) / "held_out.json", folder)
            texts = _read(store, stage, "samples.json")["texts"]
            (folder / "samples.json").write_text(json.dumps(texts, ensure_ascii=False, indent=1), "utf-8")
        for step in plan.steps:
            shutil.copy(store.folder(step.stage) / "training.json", evidence / step.name)
            if step.audit is not None:
                for name in ("audit.html", "audit.json", "pairs.parquet"):
                    shutil.copy(store.folder(step.audit) / name, evidence / step.name)
        recipe = yaml.safe_dump(plan.recipe.resolved(), sort_keys=False, allow_unicode=True)
        (scratch / "recipe.yaml").write_text(recipe, "utf-8")
        (scratch / "build.json").write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False), "utf-8")
        (scratch / "README.md").write_text(model_card(report, kept == "adapter"), "utf-8")
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report
