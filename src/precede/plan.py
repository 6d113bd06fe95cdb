"""The plan: the unique stages over orders × sweep × seeds, and which of them may run in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from precede.settings.order import Order
from precede.settings.recipe import Recipe, Variant
from precede.store import Stage, canonical_json
from precede.worlds.world import World


@dataclass(frozen=True)
class Arm:
    """One order under one setting: its chain of stages, once per block of seeds."""

    order: Order
    settings: Mapping[str, Any]
    blocks: list[list[Stage]]
    """Per block of seeds the chain from the teacher to the final stage."""


@dataclass(frozen=True)
class Plan:
    """All arms, and their unique stages so that every stage comes after its parent."""

    arms: list[Arm]
    stages: list[Stage]

    def calls(self, world: World, needed: Callable[[Stage], bool]) -> list[list[Stage]]:
        """The stages for which `needed` holds, grouped into calls that the world can run as one batch."""
        calls: dict[tuple[Any, ...], list[list[Stage]]] = {}
        for stage in self.stages:
            if not needed(stage):
                continue
            groups = calls.setdefault(_call_key(stage, world), [[]])
            if (len(groups[-1]) + 1) * len(stage.seeds) > max(world.rows_per_call, len(stage.seeds)):
                groups.append([])
            groups[-1].append(stage)
        return [group for groups in calls.values() for group in groups if group]


def make_plan(recipe: Recipe, world: World) -> Plan:
    """Lay out every order under every variant for every block of seeds; equal stages are one stage."""
    size = world.seeds_per_stage
    blocks = [recipe.seeds[i : i + size] for i in range(0, len(recipe.seeds), size)]
    unique: dict[str, Stage] = {}

    def stage(name: str, kind: str, variant: Variant, parent: Stage | None, seeds: tuple[int, ...]) -> Stage:
        config = variant.teacher if parent is None else variant.stages[name]
        made = Stage(name, kind, variant.world, config, parent, seeds, world.version(kind))
        if made.before_distillation() is None and parent is not None:
            # Nothing was distilled before this stage: the model itself is the model before distillation.
            same = {
                key: value for key, value in (("reference", "self"), ("pairs", "on_policy")) if _asks_back(config, key)
            }
            made = Stage(name, kind, variant.world, {**config, **same}, parent, seeds, made.version)
        return unique.setdefault(made.key, made)

    arms = []
    for variant in recipe.variants:
        for order in variant.orders:
            chains = []
            for seeds in blocks:
                chain = [stage("teacher", "teacher", variant, None, seeds)]
                for name in order.stages:
                    chain.append(stage(name, variant.stages[name]["kind"], variant, chain[-1], seeds))
                chains.append(chain)
            arms.append(Arm(order, variant.settings, chains))
    return Plan(arms, list(unique.values()))


def _asks_back(config: Mapping[str, Any], key: str) -> bool:
    """Whether a setting of a stage asks for the model before distillation."""
    return (key, config.get(key)) in (("reference", "teacher"), ("pairs", "seeded"))


def _call_key(stage: Stage, world: World) -> tuple[Any, ...]:
    free = world.varying.get(stage.kind, frozenset())
    fixed = {key: value for key, value in stage.config.items() if key not in free}
    shapes = [
        (ancestor.kind, ancestor.config.get("components"), ancestor.config.get("reference"))
        for ancestor in stage.lineage()[:-1]
    ]  # parents and references of one call must stack
    return (
        len(shapes),
        canonical_json([stage.name, stage.kind, stage.world, fixed, stage.seeds, shapes]),
    )
