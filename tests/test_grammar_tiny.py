"""The tests' tiny grammar world: its recipe, and how its stages are run and found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from precede.jobs.compare import prepare
from precede.models.load import load
from precede.settings.recipe import read_recipe
from precede.store import Stage, Store
from precede.worlds.grammar.world import GrammarWorld

TINY: dict[str, Any] = {
    "recipe": "tiny-grammar",
    "world": {
        "kind": "grammar",
        "vocabulary": 12,
        "max_new_tokens": 5,
        "modes": 3,
        "subset": 6,
        "starts": 3,
        "successors": 2,
        "target_modes": [2],
        "target_weight": 0.1,
        "evaluation_samples": 200,
        "worlds": 2,
    },
    "teacher": {"hidden_size": 16, "layers": 1, "steps": 30, "batch_size": 64},
    "distill": {"samples": 200, "steps": 20, "batch_size": 32, "hidden_size": 16, "layers": 1},
    "align": {"method": "rloo", "steps": 4, "batch_size": 16, "samples": 200},
    "orders": ["align > distill", "distill > align"],
    "seeds": 1,
}
PARAMETERS = 2 * 12 * 16 + (4 * 16 * 16 + 3 * 16 * 48 + 2 * 16) + 16
"""Embedding and head, one layer's attention, feed-forward and norms, last norm."""


def changed(**changes: Any) -> dict[str, Any]:
    """TINY with `align__beta=0.3` for the setting `beta` of `align`."""
    recipe: dict[str, Any] = json.loads(json.dumps(TINY))
    for name, value in changes.items():
        block, _, setting = name.partition("__")
        if setting:
            recipe[block][setting] = value
        else:
            recipe[block] = value
    return recipe


def run_all(recipe: dict[str, Any], store: Store) -> list[Stage]:
    world, plan = prepare(read_recipe(recipe))
    for stage in plan.stages:
        if not store.has(stage):
            world.run([stage], store)
    return plan.stages


def names(stage: Stage) -> str:
    return " > ".join(ancestor.name for ancestor in stage.lineage())


@dataclass
class Finished:
    store: Store
    stages: list[Stage]

    def find(self, lineage: str, **config: Any) -> Stage:
        """The one stage of that lineage whose own settings, or else an ancestor's, are these."""

        def fits(stage: Stage) -> bool:
            wanted = {"align": {"method": "rloo", "reference": "self"}, "distill": {"method": "sequence"}}
            for name, value in config.items():
                block, _, setting = name.partition("__")
                wanted[block][setting] = value
            return names(stage) == lineage and all(
                ancestor.config[name] == value
                for ancestor in stage.lineage()[1:]
                for name, value in wanted[ancestor.kind].items()
            )

        (found,) = [stage for stage in self.stages if fits(stage)]
        return found

    def metrics(self, stage: Stage) -> dict[str, Any]:
        return {name: values[0] for name, values in self.store.metrics(stage).items()}

    def model(self, stage: Stage) -> Any:
        return load(self.store.folder(stage) / "model")[0]

    def log(self, stage: Stage) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.store.folder(stage) / "training.json").read_text())
        return found


def test_worlds_go_by_seed() -> None:
    world = GrammarWorld(read_recipe(TINY).variants[0].world)
    first, second, third = (world.chains(seed) for seed in (0, 1, 2))
    assert torch.equal(first.log_transitions, third.log_transitions)
    assert torch.equal(first.log_starts, third.log_starts)
    assert not torch.equal(first.log_transitions, second.log_transitions)


def test_start_parent_needs_a_student() -> None:
    recipe = changed(distill__start="parent")
    with pytest.raises(
        ValueError, match=r"^distill\.start is 'parent', but nothing was distilled before distill; put it"
    ):
        prepare(read_recipe(recipe))


def test_trainer_arguments_are_checked_before_anything_runs() -> None:
    with pytest.raises(
        ValueError, match=r"^align\.trainer\.warmup_stepz is no argument of TRL's RLOOConfig; did you mean"
    ):
        prepare(read_recipe(changed(align__trainer={"warmup_stepz": 1})))
    with pytest.raises(ValueError, match=r"^distill\.trainer\.seed cannot be passed through; it follows"):
        prepare(read_recipe(changed(distill__trainer={"seed": 1})))
