"""What the worlds of language models share: every stage, from sampling over TRL's trainers to measuring.

A finished stage holds its model as a Hugging Face folder `model/`, some of its measured completions as
`completions.json`, what the trainer logged as `training.json`, and the teacher's also the truth's samples as `truth.json`.
A world supplies the truth, the teacher, and how a new student begins.
"""

from __future__ import annotations

import importlib.util
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from precede import theory
from precede.libraries import quiet, trainer_config
from precede.metrics import Cost
from precede.models.load import load, pick_device, save
from precede.stages.trainer import check_extra, in_bf16
from precede.store import Stage, Store
from precede.worlds.language import estimate, stages
from precede.worlds.language.measure import Examiner, on_target
from precede.worlds.language.stages import Log, model_folder, stream_of
from precede.worlds.language.truth import Truth
from precede.worlds.world import peak_memory_bytes, reset_peak_memory

if TYPE_CHECKING:
    from precede.analysis.results import Results
    from precede.report.figures import Figure

LIBRARIES = ("transformers", "trl", "accelerate", "datasets", "tokenizers", "safetensors")


class LanguageWorld(ABC):
    seeds_per_stage = 1
    rows_per_call = 1
    varying: Mapping[str, frozenset[str]] = {}
    versions: ClassVar[Mapping[str, int]]
    threads: int | None
    sampling_batch: int
    """Completions sampled at once."""
    seconds_per_stage: float
    """Loading, saving and other fixed costs, for estimates only."""
    gpu_flops_per_second: float | None
    note: str

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    # ------------------------------------------------------------------------------ what a world supplies

    @property
    @abstractmethod
    def prompt(self) -> str:
        """The prompt as text; the tokenizer adds BOS if it does."""

    @abstractmethod
    def truth(self, stage: Stage, store: Store, root: Any, tokenizer: Any) -> Truth:
        """The truth of a stage's pipeline; `root` is the teacher's model if it has been loaded already."""

    @abstractmethod
    def teacher(self, stage: Stage, cost: Cost) -> tuple[Any, Any, Log]:
        """Make or load the teacher: model, tokenizer, log."""

    @abstractmethod
    def student(self, stage: Stage, store: Store) -> Any:
        """A new student, before it has learned anything."""

    @abstractmethod
    def parameters(self, stage: Stage) -> int:
        """Parameters of the model that a stage leaves, from configurations alone. ValueError where it cannot be."""

    @abstractmethod
    def truth_parameters(self, stage: Stage) -> int:
        """Parameters of the truth if it is a model, else 0."""

    @property
    @abstractmethod
    def flops_per_second(self) -> float:
        """Rate in the FLOPs of `Cost`, for estimates only."""

    # ------------------------------------------------------------------------------------- the interface

    def version(self, kind: str) -> int:
        return self.versions[kind]

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise ValueError where a package or the device is missing, or a model cannot be."""
        for package in ("transformers", "trl", "accelerate", "datasets"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"language worlds need the package '{package}'; run `pip install {package}`")
        in_bf16(self.config["dtype"], pick_device(self.config["device"]))
        for stage in stages:
            if stage.config.get("start") == "parent" and stage.taught_by() == stage.source():
                raise ValueError(
                    f"{stage.name}.start is 'parent', but nothing was distilled before {stage.name}; "
                    "put it behind a stage that makes a student"
                )
            self.parameters(stage)
            if extra := stage.config.get("trainer"):
                try:
                    check_extra(trainer_config(stage.config.get("method", "sequence")), extra)
                except ValueError as error:
                    raise ValueError(f"{stage.name}.{error}") from None

    def estimate(self, stage: Stage) -> Cost:
        """Expected cost per seed, its wall time with measuring. Raises ValueError for a model that cannot be."""
        row = self.config["max_new_tokens"] + 1 + len(self.prompt) // 4
        samples = self.config["evaluation_samples"]
        cost, measuring = estimate.estimate(stage, self.parameters, samples, row, self.truth_parameters(stage))
        cost.wall_seconds = self.seconds_per_stage + (cost.flops + measuring) / self.flops_per_second
        return cost

    def run(self, stages: Sequence[Stage], store: Store) -> None:
        """Run each stage and write it to the store, measured as it is loaded from its own folder."""
        for stage in stages:
            with quiet():
                self._run(stage, store)

    def figures(self, results: Results, examples: Mapping[str, Stage], store: Store) -> list[Figure]:
        """Target mass of each model with its Clopper–Pearson interval, and the laws if τ was swept."""
        from precede.worlds.language import figures

        samples = self.config["evaluation_samples"]
        masses = {name: store.metrics(stage)["target_mass"][0] or 0.0 for name, stage in examples.items()}
        hits = {name: (round(mass * samples), samples) for name, mass in masses.items()}
        laws = figures.laws(results)
        return [figures.target_masses(hits), *([laws] if laws else [])]

    # --------------------------------------------------------------------------------------- the stages

    @property
    def device(self) -> Any:
        return pick_device(self.config["device"])

    def _run(self, stage: Stage, store: Store) -> None:
        began = time.perf_counter()
        reset_peak_memory()
        cost, anchor = Cost(), stage.reference() if stage.kind == "align" else None
        with store.writing(stage, LIBRARIES) as writer:
            path = writer.folder / "model"
            if stage.parent is None:
                made, tokenizer, log = self.teacher(stage, cost)
                save(made, tokenizer, path)
                model, _ = load(path, self.device)
                truth = self.truth(stage, store, model, tokenizer)
                drawn = self._truth_sample(stage, truth)
                _write(writer.folder / "truth.json", drawn)
                examiner = self._examiner(stage, truth, drawn, tokenizer)
            else:
                root = stage.root()
                _, tokenizer = load(model_folder(store, root), self.device)
                truth = self.truth(stage, store, None, tokenizer)
                drawn = json.loads((store.folder(root) / "truth.json").read_text("utf-8"))
                examiner = self._examiner(stage, truth, drawn, tokenizer)
                train = stages.distil if stage.kind == "distill" else stages.align
                made, log = train(self, stage, store, examiner, cost)
                save(made, tokenizer, path)
                del made
                model, _ = load(path, self.device)  # measured as it was written: fp32, no trainer around it
            reference = None
            if anchor is not None:
                reference = load(model_folder(store, anchor), self.device)[0]
            metrics, completions = examiner.examine(model, reference, stage.distill_temperature())
            if anchor is not None:
                metrics |= self._optimum(stage, store, anchor)
            for name in ("kl_at_start", "pairs"):
                metrics[name] = log.get(name)
            _write(writer.folder / "training.json", log)
            _write(writer.folder / "completions.json", completions)
            writer.metrics = {name: [value] for name, value in metrics.items()}
            cost.wall_seconds = time.perf_counter() - began
            cost.peak_memory_bytes = peak_memory_bytes()
            writer.cost = cost.as_dict()

    def _truth_sample(self, stage: Stage, truth: Truth) -> dict[str, list[list[int]]]:
        """Completions of the truth and of its target, which every model of the pipeline is measured on."""
        count, seed = self.config["evaluation_samples"], stream_of(stage, "truth")
        rows = truth.sample(count, seed)
        target = truth.target_sample(count // 4, seed)
        if target is None:
            target = [row for row, hit in zip(rows, on_target(truth.rewards(rows), truth).tolist(), strict=True) if hit]
        return {"truth": rows, "target": target}

    def _examiner(self, stage: Stage, truth: Truth, drawn: dict[str, list[list[int]]], tokenizer: Any) -> Examiner:
        return Examiner(
            truth=truth,
            truth_rows=drawn["truth"],
            target_rows=drawn["target"],
            tokenizer=tokenizer,
            max_new_tokens=self.config["max_new_tokens"],
            samples=self.config["evaluation_samples"],
            batch_size=self.sampling_batch,
            seed=stream_of(stage, "evaluation"),
        )

    def _optimum(self, stage: Stage, store: Store, anchor: Stage) -> dict[str, float | None]:
        """Target mass of the reference, and what the exact tilt makes of it if the reward is 1 on the target and else 0."""
        mass = store.metrics(anchor)["target_mass"][0]
        best = None
        if mass is not None and 0 < mass < 1:
            best = float(theory.achievable_mass(mass, 1.0, stage.config["beta"]))
        return {"reference_target_mass": mass, "optimal_target_mass": best}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=None, allow_nan=False), "utf-8")
