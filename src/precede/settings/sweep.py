"""A sweep: settings by their dotted paths, the grids of a recipe, their points, and the sharpening-matched control of each."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from precede.data.sentences import did_you_mean, kind_of
from precede.settings.order import Order
from precede.theory import matched_price

KINDS = ("sft", "align", "distill")
BLOCKS = ("student", "data", "evaluation")
"""Blocks that only worlds of language models have."""
SHORT = {"teacher": "model", "student": "model", "data": "source"}
"""Blocks that may be a text, and the setting that it is."""


@dataclass(frozen=True)
class Variant:
    """One point of the sweep: validated blocks, the settings that name it in results, and the orders that are run there."""

    world: dict[str, Any]
    """The world's block, with that of its data where it has any."""
    teacher: dict[str, Any]
    student: dict[str, Any] | None
    evaluation: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    orders: tuple[Order, ...]
    own: bool
    """Whether this is the recipe's own setting under one of its methods: nothing but methods and pairs of its align stages
    (and what follows from them) differs from the recipe as written."""


def set_path(raw: dict[str, Any], path: str, value: Any, where: str) -> None:
    parts = path.split(".")
    block, nested = parts[0], len(parts) > 1
    if block == "sweep" and nested:
        if not isinstance(raw.setdefault("sweep", {}), dict):
            raise ValueError(
                f"{where}: the recipe sweeps a list of grids; replace it whole, --set 'sweep={{align.beta: [0.1]}}'"
            )
        raw["sweep"][".".join(parts[1:])] = value
        return
    if nested and block in SHORT and isinstance(raw.get(block), str):
        raw[block] = {SHORT[block]: raw[block]}
    if nested and block in (*KINDS, *BLOCKS, "world", "teacher") and raw.get(block) is None:
        raw[block] = {}
    node: Any = raw
    for depth, part in enumerate(parts[:-1]):
        if not isinstance(node.get(part), dict):
            known = [key for key in node if isinstance(node[key], dict)]
            if depth == 0 or part in node:
                raise ValueError(f"{where}: there is no block '{part}' in '{path}'{did_you_mean(part, known)}")
            node[part] = {}
        node = node[part]
    node[parts[-1]] = value


def read_grids(raw: Any) -> list[dict[str, list[Any]]]:
    grids = [raw] if isinstance(raw, dict) else raw
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise ValueError("sweep must be a mapping from settings to lists, or a list of such mappings")
    for grid in grids:
        for key, values in grid.items():
            if key == "orders":
                continue
            block, dot, _ = str(key).partition(".")
            if not isinstance(key, str) or not dot or block in ("recipe", "orders", "seeds", "sweep"):
                raise ValueError(f"sweep names '{key}', which is not the path of a setting such as align.beta")
            if not isinstance(values, list) or not values:
                raise ValueError(f"sweep.{key} must be a list of values, not {kind_of(values)}")
    try:  # numbers of NumPy and the like become plain ones
        return [json.loads(json.dumps(grid, default=lambda value: value.item())) for grid in grids if grid]
    except (TypeError, ValueError, AttributeError):
        raise ValueError("sweep holds a value that is no number, text, list or mapping") from None


def sweep_points(raw: dict[str, Any], grids: list[dict[str, list[Any]]]) -> Iterator[tuple[dict[str, Any], Any]]:
    """The recipe at every point of the grids, and the orders that a grid names for its points, if it does."""
    for grid in grids:
        settings = {key: values for key, values in grid.items() if key != "orders"}
        for values in itertools.product(*settings.values()):
            point = copy.deepcopy(raw)
            for key, value in zip(settings, values, strict=True):
                set_path(point, key, value, "sweep")
            yield point, grid.get("orders")


def blocks_of(variant: Variant) -> dict[str, Any]:
    more = {"student": variant.student, "evaluation": variant.evaluation}
    return {"world": variant.world, "teacher": variant.teacher, **more, **variant.stages}


def unique_variants(variants: list[Variant], swept: list[str]) -> list[Variant]:
    """Variants that differ in a setting that is read, each with its swept settings added to its name; orders are joined."""
    seen: dict[str, Variant] = {}
    for variant in variants:
        blocks = blocks_of(variant)
        settings = dict(variant.settings)
        for key in swept:
            value: Any = {"data": variant.world.get("data"), **blocks}
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            settings[key] = value
        same = seen.get(repr(blocks))
        orders = tuple(dict.fromkeys((*(same.orders if same else ()), *variant.orders)))
        seen[repr(blocks)] = replace(same or variant, settings=settings, orders=orders)
    return list(seen.values())


def sharpening_control(stages: Mapping[str, Mapping[str, Any]], first: Order, other: Order) -> dict[str, Any] | None:
    """The setting at which `other` gets by a smaller price of KL what distillation at τ < 1 gives `first` by sharpening.

    By the equivalence law (docs/theory.md) aligning before a distillation at τ is aligning after it at the price τβ: where
    `first` ends with distillations of new students, at temperatures whose product τ is below 1, behind its one alignment, which
    is anchored to the model itself, and `other` ends with that alignment behind them, this is `{"STAGE.beta": τβ}`, else None.
    """
    aligned = [name for name in first.stages if stages[name]["kind"] == "align"]
    if len(aligned) != 1:
        return None
    (name,) = aligned
    behind = [stages[later] for later in first.stages[first.stages.index(name) + 1 :]]
    if any(stage["kind"] != "distill" or stage.get("start") == "parent" for stage in behind):
        return None
    tau = math.prod(stage["temperature"] for stage in behind)
    if tau >= 1 or stages[name]["reference"] != "self" or sorted(other.stages) != sorted(first.stages):
        return None
    if other.stages[-1] != name or stages[name].get("beta") is None:
        return None
    return {f"{name}.beta": float(f"{float(matched_price(stages[name]['beta'], tau)):.12g}")}


def controls(points: Sequence[Variant]) -> Iterator[Variant]:
    """The sharpening-matched control of every pair of orders that has one: the later order alone, at its own price of KL."""
    for point in points:
        for first, other in itertools.permutations(point.orders, 2):
            control = sharpening_control(point.stages, first, other)
            for path, beta in (control or {}).items():
                name = path.partition(".")[0]
                stages = {**point.stages, name: {**point.stages[name], "beta": beta}}
                yield replace(point, stages=stages, settings=point.settings | {path: beta}, orders=(other,))
