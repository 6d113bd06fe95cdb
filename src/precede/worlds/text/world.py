"""The text world: real causal language models in Hugging Face form, distilled and aligned with TRL.

The truth is the recipe's teacher. A finished stage holds its model as a Hugging Face folder `model/`, its measured
completions as `completions.json`, what the trainer logged as `training.json`, and the teacher's the truth's samples as
`truth.json`.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from precede.lm.align import align, gap_at_start, make_pairs
from precede.lm.distil import distil
from precede.lm.libraries import quiet
from precede.lm.models import load, parameter_count, pick_device, remove_layers, save
from precede.lm.rewards import get_reward
from precede.lm.sampling import prompt_ids, sample, texts
from precede.lm.seeding import stream
from precede.lm.training import TrainerSettings
from precede.store import Stage, Store
from precede.worlds.text.estimate import alignment_cost, distillation_cost, estimate
from precede.worlds.text.measure import Examiner, TruthSample
from precede.worlds.world import Cost

VERSIONS = {"teacher": 1, "distill": 1, "align": 1}
LIBRARIES = ("transformers", "trl", "accelerate", "datasets", "tokenizers", "safetensors")
SAME_MODEL_NATS = 1e-3
"""Largest difference of log-probabilities, nats per completion, of one model loaded twice."""


class TextWorld:
    seeds_per_stage = 1
    rows_per_call = 1
    varying: Mapping[str, frozenset[str]] = {}
    note = (
        "This recipe proves the wiring, not the claim: one small teacher, one prompt, short completions, few training "
        "and evaluation samples, and no β sweep; differences between the orders are within its noise."
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def version(self, kind: str) -> int:
        return VERSIONS[kind]

    def check(self) -> None:
        """Raise ValueError where a package, the device or the reward is missing; the teacher is `estimate`'s to check."""
        for package in ("transformers", "trl", "accelerate", "datasets"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"the text world needs the package '{package}'; run `pip install {package}`")
        pick_device(self.config["device"])
        get_reward(self.config["reward"])

    def estimate(self, stage: Stage) -> Cost:
        """Expected cost per seed. Raises ValueError for a teacher that is missing or has too few layers."""
        return estimate(stage, self.config)

    def run(self, stages: Sequence[Stage], store: Store) -> None:
        """Run each stage and write it to the store, measured as it is loaded from its own folder."""
        for stage in stages:
            with quiet():
                self._run(stage, store)

    def figures(self, examples: Mapping[str, Stage], store: Store) -> list[Any]:
        """Target mass of each model, with its Clopper–Pearson interval."""
        from precede.worlds.text.figures import target_masses

        masses = {name: store.metrics(stage)["target_mass"][0] for name, stage in examples.items()}
        return [target_masses(masses, self.config)]

    def _run(self, stage: Stage, store: Store) -> None:
        began = time.perf_counter()
        device = pick_device(self.config["device"])
        cost = Cost()
        with store.writing(stage, LIBRARIES) as writer:
            path = writer.folder / "model"
            truth_file = _folder(store, stage.root()) / "truth.json"
            reference: Any = None
            if stage.kind == "teacher":
                model, tokenizer = load(stage.config["model"], device)
                save(model, tokenizer, path)
                truth_file = writer.folder / "truth.json"
                self._sample_truth(model, tokenizer, stage).write(truth_file)
                truth = model
            else:
                truth, tokenizer = load(_model(store, stage.root()), device)
                if stage.kind == "distill":
                    trained, log = self._distil(stage, store, truth, tokenizer, device, cost)
                else:
                    trained, log, reference = self._align(stage, store, truth, tokenizer, device, cost)
                save(trained, tokenizer, path)
                del trained
                _write(writer.folder / "training.json", log)
                model, _ = load(path, device)
            examiner = Examiner(
                truth=truth,
                truth_sample=TruthSample.read(truth_file),
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
            unit = 1.0 if sys.platform == "darwin" else 1024.0
            cost.peak_memory_bytes = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            writer.cost = cost.as_dict()
