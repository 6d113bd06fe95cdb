"""The text world: real causal language models in Hugging Face form, distilled and aligned with TRL.

The truth is the recipe's teacher. A finished stage holds its model as a Hugging Face folder `model/`, its measured
completions as `completions.json`, what the trainer logged as `training.json`, and the teacher's the truth's samples as
`truth.json`.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precede.lm.align import align, gap_at_start, make_pairs
from precede.lm.distil import distil
from precede.lm.libraries import quiet
from precede.lm.models import load, parameter_count, pick_device, remove_layers, save
from precede.lm.rewards import get_reward
from precede.lm.sampling import prompt_ids, sample, texts
from precede.lm.seeding import stream
from precede.lm.training import TrainerSettings
from precede.store import Stage, Store
from precede.worlds.text.estimate import alignment_cost, distillation_cost, estimate, parameters_of
from precede.worlds.text.measure import Examiner, TruthSample
from precede.worlds.world import Cost, peak_memory_bytes

if TYPE_CHECKING:
    from precede.report.figures import Figure
    from precede.results import Results

VERSIONS = {"teacher": 1, "distill": 1, "align": 1}
Log = dict[str, Any]

LIBRARIES = ("transformers", "trl", "accelerate", "datasets", "tokenizers", "safetensors")
SAME_MODEL_NATS = 1e-3
"""Largest difference of log-probabilities, nats per completion, of one model loaded twice."""


class TextWorld:
    seeds_per_stage = 1
    rows_per_call = 1
    varying: Mapping[str, frozenset[str]] = {}
    threads: int | None = None
    note = (
        "This recipe proves the wiring, not the claim: one small teacher, one prompt, short completions, few training "
        "and evaluation samples, and no sweep of β; what the orders differ by here may well be noise."
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def version(self, kind: str) -> int:
        return VERSIONS[kind]

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise ValueError where a package, the device, the reward or the teacher is missing, or a layer count is wrong."""
        for package in ("transformers", "trl", "accelerate", "datasets"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"the text world needs the package '{package}'; run `pip install {package}`")
        for stage in stages:
            pick_device(stage.world["device"])
            get_reward(stage.world["reward"])
            parameters_of(stage.root().config["model"], stage.config.get("keep_layers"))

    def estimate(self, stage: Stage) -> Cost:
        """Expected cost per seed. Raises ValueError for a teacher that is missing or has too few layers."""
        return estimate(stage, self.config)

    def run(self, stages: Sequence[Stage], store: Store) -> None:
        """Run each stage and write it to the store, measured as it is loaded from its own folder."""
        for stage in stages:
            with quiet():
                self._run(stage, store)

    def figures(self, results: Results, examples: Mapping[str, Stage], store: Store) -> list[Figure]:
        """Target mass of each model, with its Clopper–Pearson interval."""
        from precede.worlds.text.figures import target_masses

        samples = self.config["evaluation_samples"]
        masses = {name: store.metrics(stage)["target_mass"][0] or 0.0 for name, stage in examples.items()}
        hits = {name: (round(mass * samples), samples) for name, mass in masses.items()}
        return [target_masses(hits, self.config["reward"])]

    def _run(self, stage: Stage, store: Store) -> None:
        began = time.perf_counter()
        device = pick_device(self.config["device"])
        root, cost = stage.root(), Cost()
        reference: Any = None
        with store.writing(stage, LIBRARIES) as writer:
            path = writer.folder / "model"
            if stage.kind == "teacher":
                model, tokenizer = load(stage.config["model"], device)
                truth, truth_sample = model, self._truth_sample(model, tokenizer, stage)
                _write(writer.folder / "truth.json", asdict(truth_sample))
                save(model, tokenizer, path)
            else:
                truth, tokenizer = load(_model(store, root), device)
                truth_sample = TruthSample(**json.loads((store.folder(root) / "truth.json").read_text("utf-8")))
                train = self._distil if stage.kind == "distill" else self._align
                trained, log = train(stage, store, truth_sample.prompt, cost)
                save(trained, tokenizer, path)
                del trained
                _write(writer.folder / "training.json", log)
                model, _ = load(path, device)  # measured as it was written: fp32, no trainer around it
                if stage.kind == "align":
                    anchor = _reference(stage)
                    reference = truth if anchor == root else load(_model(store, anchor), device)[0]
            examiner = Examiner(
                truth=truth,
                truth_sample=truth_sample,
                tokenizer=tokenizer,
                reward=get_reward(self.config["reward"]),
                target_reward=self.config["target_reward"],
                max_new_tokens=self.config["max_new_tokens"],
                samples=self.config["evaluation_samples"],
                seed=_stream(stage, "evaluation"),
            )
            metrics, completions = examiner.examine(model, reference, stage.distill_temperature())
            _write(writer.folder / "completions.json", completions)
            writer.metrics = {name: [value] for name, value in metrics.items()}
            cost.wall_seconds = time.perf_counter() - began
            cost.peak_memory_bytes = peak_memory_bytes()
            writer.cost = cost.as_dict()

    def _truth_sample(self, model: Any, tokenizer: Any, stage: Stage) -> TruthSample:
        prompt = prompt_ids(tokenizer, self.config["prompt"])
        rows = self._sample(model, tokenizer, prompt, self.config["evaluation_samples"], 1.0, _stream(stage, "truth"))
        return TruthSample(prompt, rows, self._rewards(tokenizer, prompt, rows))

    def _distil(self, stage: Stage, store: Store, prompt: list[int], cost: Cost) -> tuple[Any, Log]:
        """The root teacher without some layers, fitted to samples of the parent at τ."""
        config, device = stage.config, pick_device(self.config["device"])
        parent, tokenizer = load(_model(store, _parent(stage)), device)
        rows = self._sample(
            parent, tokenizer, prompt, config["samples"], config["temperature"], _stream(stage, "samples")
        )
        student = remove_layers(load(_model(store, stage.root()), device)[0], config["keep_layers"])
        distillation_cost(
            cost, config, _tokens(prompt, rows), teacher=parameter_count(parent), student=parameter_count(student)
        )
        del parent
        steps = distil(student, tokenizer, prompt, rows, _trainer_settings(stage))
        return student, {"samples": len(rows), "steps": steps}

    def _align(self, stage: Stage, store: Store, prompt: list[int], cost: Cost) -> tuple[Any, Log]:
        """The parent, trained on pairs of the reference's own completions that the reward ranks."""
        config, device = stage.config, pick_device(self.config["device"])
        reference, tokenizer = load(_model(store, _reference(stage)), device)
        policy, _ = load(_model(store, _parent(stage)), device)
        rows = self._sample(reference, tokenizer, prompt, config["samples"], 1.0, _stream(stage, "samples"))
        rewards = self._rewards(tokenizer, prompt, rows)
        pairs = make_pairs(rows, rewards, config["pair_count"], _stream(stage, "pairs"))
        gap = gap_at_start(policy, reference, prompt, pairs[: config["batch_size"]])
        assert gap < SAME_MODEL_NATS or _reference(stage) != _parent(stage), f"KL to itself is not 0 at step 0: {gap}"
        compared = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
        alignment_cost(
            cost,
            config,
            _tokens(prompt, rows),
            _tokens(prompt, compared),
            reference=parameter_count(reference),
            policy=parameter_count(policy),
        )
        steps = align(policy, reference, tokenizer, prompt, pairs, _trainer_settings(stage), beta=config["beta"])
        return policy, {
            "samples": len(rows),
            "pairs": len(pairs),
            "chosen_completions": len({tuple(pair.chosen) for pair in pairs}),
            "gap_at_start": gap,
            "steps": steps,
        }

    def _sample(
        self, model: Any, tokenizer: Any, prompt: list[int], count: int, temperature: float, seed: int
    ) -> list[list[int]]:
        length = self.config["max_new_tokens"]
        return sample(model, tokenizer, prompt, count, max_new_tokens=length, temperature=temperature, seed=seed)

    def _rewards(self, tokenizer: Any, prompt: list[int], rows: list[list[int]]) -> list[float]:
        reward = get_reward(self.config["reward"])
        return [reward(text) for text in texts(tokenizer, prompt, rows)]


def make(config: Mapping[str, Any]) -> TextWorld:
    return TextWorld(config)


def _stream(stage: Stage, purpose: str) -> int:
    (seed,) = stage.seeds
    return stream(seed, stage.name, purpose)


def _trainer_settings(stage: Stage) -> TrainerSettings:
    config = stage.config
    return TrainerSettings(
        learning_rate=config["learning_rate"],
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        seed=_stream(stage, "training"),
        extra=config["trainer"],
    )


def _parent(stage: Stage) -> Stage:
    assert stage.parent is not None
    return stage.parent


def _reference(stage: Stage) -> Stage:
    """What alignment is anchored to: the model being aligned, or the one before distillation if there was one."""
    original = stage.before_distillation() if stage.config["reference"] == "teacher" else None
    return original or _parent(stage)


def _model(store: Store, stage: Stage) -> Path:
    return store.folder(stage) / "model"


def _tokens(prompt: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    """Tokens that pass through a model: the prompt's and the completion's of each row, padding not counted."""
    return sum(len(prompt) + len(row) for row in rows)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False), "utf-8")
