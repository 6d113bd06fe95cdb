"""The tests' tiny grammar world: its recipe, and how its models are made and found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from precede.jobs.compare import prepare
from precede.models.load import load
from precede.plan import Node, Plan
from precede.settings.recipe import read_recipe
from precede.store import Store
from precede.worlds.grammar.chains import Chains
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
        "worlds": 2,
    },
    "evaluation": {"samples_per_prompt": 200},
    "teacher": {"hidden_size": 16, "layers": 1, "trainer": {"max_steps": 30, "per_device_train_batch_size": 64}},
    "student": {"hidden_size": 16, "layers": 1},
    "distill": {
        "samples_per_prompt": 200,
        "temperature": 0.7,
        "trainer": {"max_steps": 20, "per_device_train_batch_size": 32},
    },
    "align": {
        "method": "rloo",
        "samples_per_prompt": 200,
        "min_reward_gap": 0.5,
        "trainer": {"max_steps": 4, "per_device_train_batch_size": 16},
    },
    "orders": ["align > distill", "distill > align"],
    "seeds": 1,
}
PARAMETERS = 2 * 12 * 16 + (4 * 16 * 16 + 3 * 16 * 48 + 2 * 16) + 16
"""Embedding and head, one layer's attention, feed-forward and norms, last norm."""


def changed(**changes: Any) -> dict[str, Any]:
    """TINY with `align__beta=0.3` for the setting `beta` of `align`, `align__trainer__max_steps=3` for one of TRL's."""
    recipe: dict[str, Any] = json.loads(json.dumps(TINY))
    for name, value in changes.items():
        *blocks, setting = name.split("__")
        place = recipe
        for block in blocks:
            place = place.setdefault(block, {})
        place[setting] = value
    return recipe


def names(model: Node) -> str:
    return " > ".join(ancestor.name for ancestor in model.lineage())


@dataclass
class Finished:
    """A plan that was run. `stages` are the models of its orders, the teacher first, without those of the controls."""

    store: Store
    plan: Plan
    worlds: list[GrammarWorld]

    @property
    def stages(self) -> list[Node]:
        models = [model for model in self.plan.models if model.kind != "student"]
        return [model for model in models if model.variant == 0 or len(self.worlds[model.variant].variant.orders) > 1]

    def find(self, lineage: str, **config: Any) -> Node:
        """The one model of that lineage whose own settings, or else an ancestor's, are these."""

        def fits(model: Node) -> bool:
            wanted = {"align": {"method": "rloo", "reference": "self"}, "distill": {"method": "sequence"}}
            for name, value in config.items():
                block, _, setting = name.partition("__")
                wanted[block][setting] = value
            return names(model) == lineage and all(
                ancestor.config[name] == value
                for ancestor in model.lineage()[1:]
                for name, value in wanted[ancestor.kind].items()
            )

        (found,) = [model for model in self.stages if fits(model)]
        return found

    def world(self, node: Node) -> GrammarWorld:
        return self.worlds[node.variant]

    def chains(self, node: Node) -> Chains:
        return self.world(node).chains(node.seeds[0])

    def metrics(self, model: Node) -> dict[str, Any]:
        """What training says of a model, and what was measured of it."""
        both = self.store.metrics(model) | self.store.metrics(self.plan.measures[model.key])
        return {name: values[0] for name, values in both.items()}

    def truth(self, model: Node) -> dict[str, list[list[int]]]:
        """The truth's samples that a model is measured on: those of the one prompt."""
        node = self.plan.measures[model.key].edges["truth"]
        kept = json.loads((self.store.folder(node) / "truth.json").read_text())
        assert {len(part) for part in kept.values()} == {1}
        return {name: part[0] for name, part in kept.items()}

    def model(self, model: Node) -> Any:
        return load(self.store.folder(model) / "model")[0]

    def log(self, model: Node) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.store.folder(model) / "training.json").read_text())
        return found


def run_all(recipe: dict[str, Any], store: Store) -> Finished:
    worlds, plan, _ = prepare(read_recipe(recipe), store.root)
    for node in plan.nodes:
        if not store.has(node):
            worlds[node.variant].run([node], store)
    return Finished(store, plan, cast("list[GrammarWorld]", worlds))


def test_worlds_go_by_seed() -> None:
    recipe = read_recipe(TINY)
    world = GrammarWorld(recipe, recipe.variants[0])
    first, second, third = (world.chains(seed) for seed in (0, 1, 2))
    assert torch.equal(first.log_transitions, third.log_transitions)
    assert torch.equal(first.log_starts, third.log_starts)
    assert not torch.equal(first.log_transitions, second.log_transitions)


def test_start_parent_needs_a_student(tmp_path: Path) -> None:
    recipe = changed(distill__start="parent")
    with pytest.raises(
        ValueError, match=r"^distill\.start is 'parent', but nothing was distilled before distill; put it"
    ):
        prepare(read_recipe(recipe), tmp_path)


def test_trainer_arguments_are_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^align\.trainer\.warmup_stepz is no argument of TRL's RLOOConfig; did you mean"
    ):
        prepare(read_recipe(changed(align__trainer={"warmup_stepz": 1})), tmp_path)
    with pytest.raises(ValueError, match=r"^distill\.trainer\.max_length cannot be passed through; it follows"):
        prepare(read_recipe(changed(distill__trainer={"max_length": 1})), tmp_path)
    with pytest.raises(ValueError, match=r"^align\.trainer\.learning_rate must be above 0, not 0"):
        prepare(read_recipe(changed(align__trainer={"learning_rate": 0.0})), tmp_path)


def test_a_teachers_arguments_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^teacher\.trainer\.warmup_stepz is no argument of TRL's SFTConfig"):
        prepare(read_recipe(changed(teacher__trainer__warmup_stepz=1)), tmp_path)
