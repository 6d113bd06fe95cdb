"""Recipes: YAML in, validated settings out. A recipe says what world, which stages, which orders, how many seeds.

Top-level keys are `recipe`, `description`, `world`, `teacher`, `orders`, `seeds`, `sweep`; every other key is a stage
under its own name (`align`, `distill`, or any name with a `kind`). Dotted paths (`align.beta`) name settings on the
command line, in sweeps and in results alike.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from precede.data.sentences import did_you_mean, kind_of
from precede.settings.base import StageSettings
from precede.settings.mixture import MixtureDistill, MixtureTeacher, MixtureWorld, check_enough_samples
from precede.settings.order import Order, parse_order
from precede.settings.reading import parse_yaml, sentence
from precede.settings.worlds import HEADLINE, KINDS, WORLDS

RESERVED = ("recipe", "description", "world", "teacher", "orders", "seeds", "sweep")


@dataclass(frozen=True)
class Variant:
    """One point of the sweep: validated blocks, the settings that name it in results, and the orders that are run there."""

    world: dict[str, Any]
    teacher: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    orders: tuple[Order, ...]
    own: bool
    """Whether this is the recipe's own setting under one of its methods: nothing but methods and pairs of its align stages
    (and what follows from them) differs from the recipe as written."""


@dataclass(frozen=True)
class Recipe:
    """A validated recipe. `variants[0]` is the recipe as written, the others are its sweep."""

    name: str
    description: str
    orders: list[Order]
    seeds: tuple[int, ...]
    variants: list[Variant]
    swept: list[str]
    resolved: dict[str, Any]
    """Every setting, defaults included, as it is written beside the results; it can be read as a recipe again."""


def shipped_recipes() -> dict[str, str]:
    """The recipes that come with the package: name → YAML text."""
    folder = files("precede") / "recipes"
    found = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return {name: found[name].read_text("utf-8") for name in sorted(found)}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe that comes with the package, by name, or a YAML file, with `path.to.key=value` overrides.

    Raises ValueError, in one sentence, for anything that is wrong with it.
    """
    shipped = shipped_recipes()
    if name_or_path in shipped:
        where, text = f"recipe '{name_or_path}'", shipped[name_or_path]
    else:
        where, path = f"recipe {name_or_path}", Path(name_or_path)
        try:
            if path.is_dir():
                raise ValueError(f"{where} is a folder; give a YAML file or one of {', '.join(shipped)}")
            text = path.read_text("utf-8")
        except FileNotFoundError:
            raise ValueError(f"there is no {where}; give a YAML file or one of {', '.join(shipped)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be a mapping of settings, not {kind_of(raw)}")
    raw.setdefault("teacher", {})
    for override in overrides:
        path_text, separator, value = override.partition("=")
        if not separator or not path_text.strip():
            raise ValueError(f"--set takes path.to.key=value, not '{override}'")
        set_path(raw, path_text.strip(), parse_yaml(value, f"--set {override}"), f"--set {override}")
    try:
        return read_recipe(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_recipe(mapping: Mapping[str, Any]) -> Recipe:
    """Validate a recipe that was read already. Raises ValueError."""
    raw = copy.deepcopy(dict(mapping))
    _check_stage_keys(raw)
    raw.setdefault("teacher", {})
    base = _resolve(raw)
    stage_names = list(base.stages)
    own_orders = _orders(raw.get("orders", ["align > distill", "distill > align"]), "orders", stage_names)
    name = raw.get("recipe", "unnamed")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError("recipe must be a name of letters, digits, '.', '_' and '-'")
    seeds = _seeds(raw.get("seeds", 5))
    grids = _grids(raw.get("sweep", []))
    swept = list(dict.fromkeys(key for grid in grids for key in grid if key != "orders"))
    points = [replace(base, orders=own_orders)]
    for point, names in _points(raw, grids):
        named = own_orders if names is None else _orders(names, "sweep.orders", stage_names)
        points.append(replace(_resolve(point), orders=named))
    variants = [_marked(raw, variant) for variant in _unique(points, swept)]
    orders = list(dict.fromkeys(order for variant in variants for order in variant.orders))
    resolved: dict[str, Any] = {"recipe": name}
    if raw.get("description"):
        resolved["description"] = str(raw["description"])
    resolved |= {"world": base.world, "teacher": base.teacher, **_full_stages(raw)}
    resolved |= {"orders": [str(order) for order in own_orders], "seeds": list(seeds), "sweep": grids}
    return Recipe(name, str(raw.get("description", "")).strip(), orders, seeds, variants, swept, resolved)


def _check_stage_keys(raw: dict[str, Any]) -> None:
    for key, value in list(raw.items()):
        if not isinstance(key, str):
            raise ValueError(f"{key!r} is not a setting's name")
        if key in RESERVED:
            continue
        if key in KINDS and value is None:  # `align:` and nothing below it: all defaults
            value = raw[key] = {}
        if not isinstance(value, dict) or (key not in KINDS and "kind" not in value):
            raise ValueError(
                f"unknown key '{key}'{did_you_mean(key, (*RESERVED, *KINDS))}; "
                f"a stage under a name of its own needs a `kind` ({', '.join(KINDS)})"
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", key):
            raise ValueError(f"'{key}' is not a stage's name; use letters, digits, '_' and '-'")
    if not any(key not in RESERVED for key in raw):
        raise ValueError("the recipe has no stages; add `align` and `distill` blocks")


def _validated(raw: Mapping[str, Any]) -> tuple[Any, StageSettings, dict[str, StageSettings]]:
    world_raw = raw.get("world")
    if not isinstance(world_raw, dict) or "kind" not in world_raw:
        raise ValueError(f"world.kind is missing; it is one of {', '.join(WORLDS)}")
    kind = world_raw["kind"]
    if not isinstance(kind, str) or kind not in WORLDS:
        raise ValueError(f"world.kind is '{kind}', but the worlds are {', '.join(WORLDS)}")
    schema = WORLDS[kind]
    world = read_block(schema.world, world_raw, "world")
    teacher = read_block(schema.teacher, raw.get("teacher", {}), "teacher")
    stages = {}
    for name, block in raw.items():
        if name in RESERVED:
            continue
        stage_kind = block.get("kind", name)
        if stage_kind not in schema.stages:
            raise ValueError(
                f"{name}.kind is '{stage_kind}', but stages of the {kind} world are {', '.join(schema.stages)}"
            )
        stage = stages[name] = read_block(schema.stages[stage_kind], {"kind": stage_kind} | block, name)
        if isinstance(stage, MixtureDistill):
            check_enough_samples(name, stage.components, stage.samples)
    if isinstance(world, MixtureWorld) and isinstance(teacher, MixtureTeacher):
        check_enough_samples("teacher", teacher.components or world.modes, teacher.samples)
    return world, teacher, stages


def _resolve(raw: Mapping[str, Any]) -> Variant:
    world, teacher, stages = _validated(raw)
    active = {name: stage.active() for name, stage in stages.items()}
    settings = {
        f"{name}.{key}": active[name].get(key)
        for name, stage in stages.items()
        for key in HEADLINE[active[name]["kind"]]
        if key in type(stage).model_fields
    }
    return Variant(world.model_dump(mode="json"), teacher.active(), active, settings, (), False)


def _marked(raw: dict[str, Any], variant: Variant) -> Variant:
    """The variant, marked as the recipe's own if the recipe with its methods is that variant."""
    point = copy.deepcopy(raw)
    for name, block in variant.stages.items():
        if block["kind"] == "align":
            point[name] |= {key: block[key] for key in ("method", "pairs") if key in block}
    made = _resolve(point)
    return replace(variant, own=_blocks(made) == _blocks(variant))


def _blocks(variant: Variant) -> dict[str, dict[str, Any]]:
    return {"world": variant.world, "teacher": variant.teacher, **variant.stages}


def _full_stages(raw: Mapping[str, Any]) -> dict[str, Any]:
    _, _, stages = _validated(raw)
    return {name: stage.model_dump(mode="json") for name, stage in stages.items()}


def _points(raw: dict[str, Any], grids: list[dict[str, list[Any]]]) -> Iterator[tuple[dict[str, Any], Any]]:
    """The recipe at every point of the grids, and the orders that a grid names for its points, if it does."""
    for grid in grids:
        settings = {key: values for key, values in grid.items() if key != "orders"}
        for values in itertools.product(*settings.values()):
            point = copy.deepcopy(raw)
            for key, value in zip(settings, values, strict=True):
                set_path(point, key, value, "sweep")
            yield point, grid.get("orders")


def _orders(raw: Any, where: str, stage_names: list[str]) -> tuple[Order, ...]:
    if not isinstance(raw, list) or not raw or not all(isinstance(text, str) for text in raw):
        raise ValueError(f"{where} must be a list of orders such as 'align > distill'")
    orders = tuple(parse_order(text, stage_names) for text in raw)
    if len(set(orders)) != len(orders):
        raise ValueError(f"{where} names the same order twice")
    return orders


def _unique(variants: list[Variant], swept: list[str]) -> list[Variant]:
    """Variants that differ in a setting that is read, each with its swept settings added to its name; orders are joined."""
    seen: dict[str, Variant] = {}
    for variant in variants:
        blocks = _blocks(variant)
        settings = dict(variant.settings)
        for key in swept:
            value: Any = blocks
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            settings[key] = value
        same = seen.get(repr(blocks))
        orders = tuple(dict.fromkeys((*(same.orders if same else ()), *variant.orders)))
        seen[repr(blocks)] = replace(same or variant, settings=settings, orders=orders)
    return list(seen.values())


def _grids(raw: Any) -> list[dict[str, list[Any]]]:
    grids = [raw] if isinstance(raw, dict) else raw
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise ValueError("sweep must be a mapping from settings to lists, or a list of such mappings")
    for grid in grids:
        for key, values in grid.items():
            if key == "orders":
                continue
            if (
                not isinstance(key, str)
                or "." not in key
                or key.split(".")[0] in ("recipe", "orders", "seeds", "sweep")
            ):
                raise ValueError(f"sweep names '{key}', which is not the path of a setting such as align.beta")
            if not isinstance(values, list) or not values:
                raise ValueError(f"sweep.{key} must be a list of values, not {kind_of(values)}")
    return [dict(grid) for grid in grids if grid]


def _seeds(raw: Any) -> tuple[int, ...]:
    values = list(range(raw)) if isinstance(raw, int) and not isinstance(raw, bool) and raw > 0 else raw
    if not isinstance(values, list) or not values or not all(type(v) is int and v >= 0 for v in values):
        raise ValueError(f"seeds must be a number of seeds above 0 or a list of whole numbers from 0, not {raw!r}")
    if len(set(values)) != len(values):
        raise ValueError("seeds names a seed twice")
    return tuple(values)


def set_path(raw: dict[str, Any], path: str, value: Any, where: str) -> None:
    parts = path.split(".")
    if parts[0] == "sweep" and len(parts) > 1:
        if not isinstance(raw.setdefault("sweep", {}), dict):
            raise ValueError(
                f"{where}: the recipe sweeps a list of grids; replace it whole, --set 'sweep={{align.beta: [0.1]}}'"
            )
        raw["sweep"][".".join(parts[1:])] = value
        return
    node: Any = raw
    for depth, part in enumerate(parts[:-1]):
        if not isinstance(node.get(part), dict):
            known = [key for key in node if isinstance(node[key], dict)]
            if depth == 0 or part in node:
                raise ValueError(f"{where}: there is no block '{part}' in '{path}'{did_you_mean(part, known)}")
            node[part] = {}
        node = node[part]
    node[parts[-1]] = value


def read_block(model: type[Any], block: Any, where: str) -> Any:
    if not isinstance(block, dict):
        raise ValueError(f"{where} must be a mapping of settings, not {kind_of(block)}")
    try:
        return model.model_validate(block)
    except ValidationError as error:
        raise ValueError(sentence(error.errors(include_url=False)[0], model, where)) from None
