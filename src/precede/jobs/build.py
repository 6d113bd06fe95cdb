"""The third job: make the compact aligned model from the user's models and data, stage by stage, with evidence."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precede.build_adapters import given_adapters, places
from precede.build_checks import check
from precede.build_evidence import Evidence, Progress, source, tokenizer_model, write_json
from precede.build_inputs import Inputs
from precede.build_plan import Plan, Step, expected_loss, make_plan
from precede.build_recipe import BuildRecipe
from precede.build_result import assemble, collect
from precede.data.completions import read_completions
from precede.evaluate.verdict import LEVELS
from precede.jobs.compare import cache_folder
from precede.metrics import Cost
from precede.models.adapters import merged
from precede.models.load import from_scratch, load, remove_layers, save
from precede.seeding import seeded, stream
from precede.settings.build import Align, Distill
from precede.stages import post_training as stages
from precede.stages.material import Material
from precede.stages.post_training import Done
from precede.stages.processes import first_does, is_first, wait
from precede.stages.trainer import Keep
from precede.store import Stage, Store, Writer, full_disk
from precede.worlds.text.world import parameters_of
from precede.worlds.world import peak_memory_bytes, reset_peak_memory

LIBRARIES = ("transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "safetensors")


class AuditRefused(Exception):
    """An audit found a reference as bad as `fail_on` says."""


@dataclass(frozen=True)
class Built:
    """Where the model is, what was measured and said (as `build.json` has it), and how many stages were run and reused."""

    folder: Path
    report: dict[str, Any]
    stages_run: int
    stages_reused: int


def build(
    recipe: BuildRecipe,
    out: Path,
    *,
    store: Path | None = None,
    command: str = "",
    tell: Callable[[str], None] = lambda message: None,
    progress: Progress = lambda name, done, total: None,
) -> Built:
    """Run the stages of `recipe` and leave the model in `out`, a Hugging Face folder with its card and evidence.

    Everything is checked first. Finished stages, audits and measurements are kept in `store` (default
    `~/.cache/precede/stages`) by content: the same command again goes on from the last finished stage, and within a stage from
    the trainer's last checkpoint. `out` appears by one rename. `command` is written into the card, `tell` hears sentences,
    `progress` what is done of a step. Under `accelerate launch` every process calls this; the first one writes and speaks.

    Raises ValueError for what is wrong with the input, AuditRefused where `fail_on` asks for it.
    """
    job = _Job(
        recipe, Store(store or cache_folder() / "stages"), tell if is_first() else lambda message: None, progress
    )
    if out.exists():
        raise ValueError(f"{out} is there already; name another folder with --out, or move it away")
    above = next(path for path in out.absolute().parents if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"{out} cannot be written: {above} is no folder that can; name another with --out")
    first_does(job.store.prepare)
    try:
        job.merge_adapters()
        check(job.inputs, job.store.root)
        for note in job.inputs.notes:
            job.tell(note)
        job.run()
        report = first_does(lambda: assemble(job.plan(), collect(job.plan(), job.store), job.store, out, command))
    except Exception as error:  # writers of weights have their own kinds
        if (reason := full_disk(error)) is None:
            raise
        raise ValueError(
            f"a file could not be written to {job.store.root} or {out.parent} ({reason}); make room and run the same command "
            "again: finished stages are kept"
        ) from None
    return Built(out, report, job.run_count, job.reused_count)


class _Job:
    def __init__(self, recipe: BuildRecipe, store: Store, tell: Callable[[str], None], progress: Progress) -> None:
        self.recipe, self.store, self.tell, self.progress = recipe, store, tell, progress
        self.inputs = Inputs(recipe)
        self.settings = recipe.settings
        self.run_count = self.reused_count = 0
        self._plan: Plan | None = None

    def plan(self) -> Plan:
        """Made once the inputs are checked."""
        if self._plan is None:
            self._plan = make_plan(self.recipe, self.inputs)
        return self._plan

    def evidence(self) -> Evidence:
        return Evidence(self.plan(), self.store, self.progress)

    def merge_adapters(self) -> None:
        """Put whole models in the place of adapters that were given as models."""
        adapters = first_does(lambda: given_adapters(self.recipe))
        if adapters:
            self.inputs = Inputs(self.recipe, adapters, places(adapters, self.store, self._once))

    # --------------------------------------------------------------------------------------------- running

    def run(self) -> None:
        plan = self.plan()
        if "start" in plan.measures:
            self._once(plan.measures["start"], lambda writer: self.evidence().measure(writer, plan.root, "start"))
        for label, stage in plan.tasks.items():
            if label == "start":
                self._once(stage, lambda writer: self.evidence().tasks(writer, plan.root))
        for step in plan.steps:
            if step.audit is not None:
                asked = step.audit
                self._once(asked, lambda writer, step=step: self.evidence().audit(writer, step))  # type: ignore[misc]
                self._say(step)
            self._train(step)
            self._once(
                plan.measures[step.name],
                lambda writer, step=step: self.evidence().measure(writer, step.stage, step.name),  # type: ignore[misc]
            )
        if "final" in plan.tasks:
            self._once(plan.tasks["final"], lambda writer: self.evidence().tasks(writer, plan.steps[-1].stage))

    def _sound(self, stage: Stage) -> bool:
        """Whether the stage is finished and whole; a damaged one is named and thrown away."""
        if not self.store.folder(stage).exists():
            return False
        damage = self.store.damage(stage)
        if damage is not None:
            self.tell(f"{stage.label()}: {damage}; it is made again")
            self.store.discard(stage)
        return damage is None

    def _once(self, stage: Stage, make: Callable[[Writer], None]) -> None:
        """Have the first process make an entry of the store, if it is not there."""

        def work() -> None:
            if not self._sound(stage):
                with self.store.writing(stage, LIBRARIES) as writer:
                    writer.metrics, writer.cost = {}, Cost().as_dict()
                    make(writer)

        first_does(work)

    def _say(self, step: Step) -> None:
        assert step.audit is not None
        found = json.loads((self.store.folder(step.audit) / "audit.json").read_text("utf-8"))
        verdict = found["models"][0]
        self.tell(f"audit before {step.name}: {verdict['verdict'].upper()}, because {'; '.join(verdict['reasons'])}")
        if step.settings.model_dump()["kind"] == "distill":
            for line in expected_loss(self.recipe, found):
                self.tell(line)
        level = self.settings.fail_on
        if level is not None and LEVELS.index(verdict["verdict"]) >= LEVELS.index(level):
            raise AuditRefused(
                f"the audit before {step.name} says {verdict['verdict']} and fail_on is {level}; "
                f"{'; '.join(verdict['advice'])}"
            )

    # -------------------------------------------------------------------------------------------- training

    def _train(self, step: Step) -> None:
        if first_does(lambda: self._sound(step.stage)):
            self.reused_count += 1
            return
        self.run_count += 1
        began = time.perf_counter()
        reset_peak_memory()
        keep = Keep(
            self.store.root / "checkpoints" / step.stage.key,
            Path("runs") / self.settings.build / step.name,
            tuple(self.settings.report_to),
            f"{self.settings.build}-{step.name}",
            lambda done, total: self.progress(step.name, done, total),
        )
        first_does(lambda: keep.folder.mkdir(parents=True, exist_ok=True))
        base = first_does(lambda: self._base(step, keep))
        done = self._stage(step, base, keep)
        wait()
        first_does(lambda: self._write_stage(step, base, keep, done, time.perf_counter() - began))

    def _base(self, step: Step, keep: Keep) -> str:
        """What the stage trains, as a folder or id: the model of the stage before, or a student, made here if it is new."""
        if not isinstance(step.settings, Distill):
            return source(self.store, step.stage.source())
        student = self.settings.student
        assert student is not None
        if self.inputs.student is not None:
            return self.inputs.student
        path = keep.folder / "student"
        if not (path / "config.json").is_file():
            teacher, words = load(str(self.inputs.teacher))
            with seeded(stream(self.settings.seed, step.name, "student")):
                made = (
                    remove_layers(teacher, student.keep_layers)
                    if student.keep_layers is not None
                    else from_scratch(str(self.inputs.teacher), student.config or {})
                )
            save(made, words, keep.folder / "student.part")
            (keep.folder / "student.part").rename(path)
        return str(path)

    def _stage(self, step: Step, base: str, keep: Keep) -> Done:
        inputs, parent = self.inputs, step.stage.source()
        own = tokenizer_model(self.inputs, step.stage)
        material = Material(
            inputs.words[own],
            inputs.training_rows(own),
            inputs.reward,
            inputs.max_new_tokens,
            self.settings.seed,
            self.settings.device,
            self.settings.dtype,
            keep,
        )
        config, defaults = step.stage.config, type(step.settings).defaults
        if isinstance(step.settings, Align):
            original = step.stage.before_distillation()
            above = inputs.teacher if original is None else source(self.store, original)
            reference = above if config["reference"] == "teacher" and above is not None else base
            return stages.align(base, reference, above, config, defaults, material)
        if isinstance(step.settings, Distill):
            if step.settings.completions is not None:
                given = read_completions(step.settings.completions, inputs.words[own])
                return stages.distill_completions(base, config, defaults, material, given)
            rows = inputs.training_rows(tokenizer_model(self.inputs, parent))
            return stages.distill(source(self.store, parent), base, config, defaults, material, rows)
        return stages.sft(base, config, defaults, material)

    def _write_stage(self, step: Step, base: str, keep: Keep, done: Done, seconds: float) -> None:
        lora, words = step.stage.config["lora"], self.inputs.words[tokenizer_model(self.inputs, step.stage)]
        with self.store.writing(step.stage, LIBRARIES) as writer:
            if lora is not None:
                save(merged(base, keep.model), words, writer.folder / "model")
                shutil.copytree(keep.model, writer.folder / "adapter", ignore=shutil.ignore_patterns("*.bin"))
            else:
                save(load(keep.model)[0], words, writer.folder / "model")
            cost = self._cost(step, done)
            cost.wall_seconds, cost.peak_memory_bytes = seconds, peak_memory_bytes()
            writer.metrics, writer.cost = {}, cost.as_dict()
            write_json(writer.folder / "training.json", done.log)
            write_json(
                writer.folder / "facts.json", {"pairs": done.pairs, "steps": done.log[-1]["step"] if done.log else 0}
            )
        shutil.rmtree(keep.folder, ignore_errors=True)

    def _cost(self, step: Step, done: Done) -> Cost:
        parent = step.stage.source()
        is_new = isinstance(step.settings, Distill)
        own = self.inputs.student_parameters if is_new else parameters_of(source(self.store, parent), None)
        cost = Cost()
        cost.train(own, done.trained)
        above = own if self.inputs.start is None else parameters_of(self.inputs.start, None)
        sizes = {"policy": own, "reference": own, "teacher": above, "original": above}
        for name, tokens in (done.sampled or {}).items():
            cost.sample(sizes[name], tokens)
        for name, tokens in (done.scored or {}).items():
            cost.score(sizes[name], tokens)
        return cost
