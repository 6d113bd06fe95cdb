"""The evidence of a build: audits of references, measurements of models, and lm-eval's tasks, each an entry of the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precede.build_inputs import Inputs
from precede.build_plan import Plan, Step
from precede.data.preferences import PreferenceData
from precede.evaluate.held_out import HeldOut, examine
from precede.jobs.audit import audit
from precede.report.audit_output import write_audit
from precede.rewards import text_of
from precede.stages.material import translated
from precede.store import Stage, Store, Writer

Progress = Callable[[str, int, int], None]
"""Hears what is done: the step's name, how much of it, how much there is."""


def source(store: Store, stage: Stage) -> str:
    """The model that a stage left, or the one that the build starts with, as what `load` takes."""
    if stage.parent is None and "model" in stage.config:
        return str(stage.config["model"])
    return str(store.folder(stage) / "model")


def tokenizer_model(inputs: Inputs, stage: Stage) -> str:
    """The given model whose tokenizer a stage's model has."""
    if any(one.kind == "distill" for one in stage.lineage()) and inputs.student is not None:
        return inputs.student
    return str(inputs.start)


@dataclass(frozen=True)
class Evidence:
    """Fills entries of the store, each from the models that are finished."""

    plan: Plan
    store: Store
    progress: Progress

    @property
    def inputs(self) -> Inputs:
        return self.plan.inputs

    def audit(self, writer: Writer, step: Step) -> None:
        """The audit of the model that a stage starts from, with the teacher beside it where it is another."""
        parent, inputs, settings = step.stage.source(), self.inputs, self.inputs.recipe.settings
        own, teacher = tokenizer_model(self.inputs, parent), inputs.teacher
        beside = teacher if teacher is not None and inputs.same_tokenizer(own, teacher) else None
        if beside is not None and parent.parent is None and beside == source(self.store, parent):
            beside = None
        data = inputs.data[own]
        config = step.audit.config if step.audit is not None else {}
        found = audit(
            source(self.store, parent),
            PreferenceData(data.source, inputs.held_out_rows(own), data.refused, data.notes),
            teacher=beside,
            reward=None if inputs.reward is None else _as_trl(inputs.reward),
            target_reward=inputs.target_reward,
            beta=config["beta"],
            samples=max(2, settings.evaluation.samples_per_prompt),
            max_new_tokens=inputs.max_new_tokens,
            device=settings.device,
            seed=settings.seed,
            progress=lambda name, done, total: self.progress(f"audit before {step.name}", done, total),
        )
        candidate = replace(found.candidates[0], model=f"the model before {step.name}")
        write_audit(replace(found, candidates=[candidate]), writer.folder)

    def measure(self, writer: Writer, stage: Stage, label: str) -> None:
        """What a stage's model does on held-out rows; `start` is the model that the build begins with."""
        inputs, evaluation = self.inputs, self.inputs.recipe.settings.evaluation
        own, start = tokenizer_model(self.inputs, stage), inputs.start
        held = HeldOut(
            evaluation.samples_per_prompt,
            inputs.max_new_tokens,
            self.inputs.recipe.settings.seed,
            inputs.reward,
            inputs.target_reward,
            self.inputs.recipe.settings.device,
        )
        above, samples = None, None
        if label != "start" and start is not None:
            first = json.loads((self.store.folder(self.plan.measures["start"]) / "samples.json").read_text("utf-8"))
            samples = first["ids"]
            if inputs.same_tokenizer(own, start):
                above = start
            else:
                rows = inputs.held_out_rows(start)
                samples = [
                    translated(inputs.words[start], [row.prompt] * len(ids), ids, inputs.words[own])
                    for row, ids in zip(rows, samples, strict=True)
                ]
        found = examine(
            source(self.store, stage),
            inputs.held_out_rows(own),
            held,
            start=above,
            start_samples=samples,
            progress=lambda done, total: self.progress(f"measure {label}", done, total),
        )
        writer.metrics = {name: [_finite(one.value)] for name, one in found.numbers.items()}
        numbers = {name: [_finite(v) for v in (one.value, one.low, one.high)] for name, one in found.numbers.items()}
        kept = {"numbers": numbers, "margins": found.margins, "rewards": found.rewards}
        write_json(writer.folder / "held_out.json", kept)
        write_json(writer.folder / "samples.json", {"ids": found.samples, "texts": found.written})

    def tasks(self, writer: Writer, stage: Stage) -> None:
        """lm-eval's tasks on a stage's model."""
        from precede.evaluate.tasks import run_tasks

        asked, device = self.inputs.recipe.settings.evaluation, self.inputs.recipe.settings.device
        found = run_tasks(source(self.store, stage), asked.tasks, asked.task_folder, asked.task_limit, device)
        write_json(writer.folder / "tasks.json", found)


def _as_trl(reward: Any) -> Callable[..., list[float]]:
    """A checked reward in the form that `audit` takes."""

    def call(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        values: list[float] = reward(prompts, [text_of(completion) for completion in completions])
        return values

    return call


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), "utf-8")
