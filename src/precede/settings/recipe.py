"""Recipes: YAML in, validated settings out. A recipe says what world, which stages, which orders, how many seeds.

Top-level keys are `recipe`, `description`, `world`, `teacher`, `orders`, `seeds`, `sweep`, for language models also `student`,
`data`, `evaluation` and what is done around the stages (`skip`, `fail_on`, `report_to`, `push_to_hub`); every other key is a
stage under its own name (`align`, `distill`, or any name with a `kind`). Dotted paths (`align.beta`) name settings on the
command line, in sweeps and in results alike. `compare` runs all orders of a recipe, `build` one of them.

`WORLDS` is which settings each world takes. Every setting states its unit or range; a method that a world does not have is
refused, by name.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from os import PathLike
from typing import Any

from pydantic import ValidationError

from precede.data.paths import path_of
from precede.data.sentences import did_you_mean, kind_of
from precede.settings import language, mixture
from precede.settings.base import Settings, StageSettings
from precede.settings.order import ALIGN_THEN_DISTILL, STAGE_NAME, Order, check_variant, parse_order
from precede.settings.reading import parse_yaml, read_text, sentence, unshared
from precede.settings.sweep import (
    BLOCKS,
    KINDS,
    SHORT,
    Variant,
    blocks_of,
    controls,
    read_grids,
    set_path,
    sweep_points,
    unique_variants,
)


class WorldSchema(Settings):
    """The settings of a world, block by block; `blocks` are further blocks of a recipe, by name."""

    world: type[Settings]
    teacher: type[StageSettings]
    stages: dict[str, type[StageSettings]]
    blocks: dict[str, type[Settings]] = {}


WORLDS = {
    "mixture": WorldSchema(
        world=mixture.MixtureWorld,
        teacher=mixture.MixtureTeacher,
        stages={"align": mixture.MixtureAlign, "distill": mixture.MixtureDistill},
    ),
    "grammar": WorldSchema(
        world=language.GrammarWorld,
        teacher=language.GrammarTeacher,
        stages={"align": language.Align, "distill": language.Distill},
        blocks={"student": language.GrammarStudent, "evaluation": language.Evaluation},
    ),
    "text": WorldSchema(
        world=language.TextWorld,
        teacher=language.TextTeacher,
        stages={"sft": language.Sft, "align": language.Align, "distill": language.Distill},
        blocks={"student": language.TextStudent, "data": language.Data, "evaluation": language.Evaluation},
    ),
}

HEADLINE: dict[str, tuple[str, ...]] = {
    "sft": ("method",),
    "align": ("method", "pairs", "beta", "reference"),
    "distill": ("method", "divergence", "temperature", "components"),
}
"""Settings that every result names, swept or not; a setting that the method does not read is null."""
MOST_POINTS, MOST_RUNS = 10_000, 100_000
"""Settings of a sweep, and settings × orders × seeds, that a recipe may ask for."""
UNNAMED = "unnamed"
"""A recipe that has no name."""
RUN = tuple(language.Run.model_fields)
RESERVED = ("recipe", "description", "world", "teacher", "orders", "seeds", "sweep")
IN_WORLD = ("reward", "reward_model", "target_reward", "max_new_tokens", "prompt", "truth", "device", "dtype")
"""Settings of a world of language models that a recipe may have at its top by mistake."""
ORDERS = [ALIGN_THEN_DISTILL, "distill > align"]
"""The orders of a recipe that names none; the second one where the settings allow it."""


@dataclass(frozen=True)
class Recipe:
    """A validated recipe. `variants[0]` is the recipe as written, the others are its sweep."""

    name: str
    description: str
    orders: list[Order]
    seeds: tuple[int, ...]
    variants: list[Variant]
    swept: list[str]
    run: language.Run
    resolved: dict[str, Any]
    """Every setting, defaults included, as it is written beside the results; it can be read as a recipe again."""

    def narrowed(self, order: str | None = None, seed: int | None = None) -> Recipe:
        """The recipe as written with one order and one seed and no sweep, as a build takes it.

        Where none is named: the only order, or align > distill if it is among several; the first seed. Raises ValueError.
        """
        orders = [str(one) for one in self.variants[0].orders]
        if order is not None:
            chosen = str(parse_order(order, self.variants[0].stages))
        elif len(orders) > 1 and ALIGN_THEN_DISTILL not in orders:
            several = ", ".join(f"'{one}'" for one in orders)
            raise ValueError(f"recipe {self.name} has several orders ({several}); name one with --order")
        else:
            chosen = orders[0] if len(orders) == 1 else ALIGN_THEN_DISTILL
        kept = self.seeds[0] if seed is None else seed
        return read_recipe({**self.resolved, "orders": [chosen], "seeds": [kept], "sweep": []})


def shipped_recipes() -> dict[str, str]:
    """The recipes that come with the package: name → YAML text."""
    folder = files("precede") / "recipes"
    entries = {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return {name: entries[name].read_text("utf-8") for name in sorted(entries)}


def load_recipe(
    recipe: str | PathLike[str] | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe that comes with the package, by name, a YAML file, settings as a mapping, or nothing but flags and overrides.

    `flags` (path of a setting → value) and then `path.to.key=value` overrides are laid over it. Raises ValueError, in one
    sentence, for anything that is wrong with it.
    """
    where, raw = _raw(recipe)
    for path, value in (flags or {}).items():
        set_path(raw, _stage_path(raw, path), value, f"--{path}")
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path.strip():
            raise ValueError(f"--set takes path.to.key=value, not '{override}'")
        set_path(raw, path.strip(), parse_yaml(text, f"--set {override}"), f"--set {override}")
    try:
        return read_recipe(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def _stage_path(raw: Mapping[str, Any], path: str) -> str:
    """The path of a flag's setting; `align` is the one stage of that kind, whatever the recipe calls it."""
    block, _, name = path.partition(".")
    called = [key for key, value in raw.items() if isinstance(value, dict) and value.get("kind") == block]
    if block not in KINDS or block in raw or not called:
        return path
    if len(called) > 1:
        raise ValueError(
            f"the recipe has several stages of kind {block} ({', '.join(called)}); use --set STAGE.{name}=…"
        )
    return f"{called[0]}.{name}"


def _raw(recipe: str | PathLike[str] | Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """What errors call a recipe, and its settings as they stand there."""
    if recipe is None:
        return "", {}
    if isinstance(recipe, Mapping):
        return "", unshared(recipe)
    shipped, name = shipped_recipes(), str(recipe)
    if name in shipped:
        where, text = f"recipe '{name}'", shipped[name]
    else:
        where, path = f"recipe {name}", path_of(name)
        try:
            text = read_text(path, where)
        except FileNotFoundError:
            raise ValueError(f"there is no {where}; give a YAML file or one of {', '.join(shipped)}") from None
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be a mapping of settings, not {kind_of(raw)}")
    return where, unshared(raw)


def read_recipe(mapping: Mapping[str, Any]) -> Recipe:
    """Validate a recipe that was read already. Raises ValueError."""
    raw = unshared(mapping)
    _spell_out(raw)
    _check_keys(raw)
    run = read_block(language.Run, {key: raw.pop(key) for key in RUN if key in raw}, "")
    base = _resolve(raw)
    stage_names = list(base.stages)
    own_orders = _orders(raw.get("orders", ORDERS), "orders", stage_names)
    if "orders" not in raw:
        own_orders = own_orders[:1] + tuple(order for order in own_orders[1:] if _possible(base, order))
    name = raw.get("recipe", UNNAMED)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            "recipe must be a name of at most 100 letters, digits, '.', '_' and '-' that begins with a letter or a digit"
        )
    if not isinstance(raw.get("description", ""), str):
        raise ValueError(f"description must be a text, not {kind_of(raw['description'])}")
    seeds = _seeds(raw.get("seeds", 5 if base.world["kind"] != "text" else 1))
    grids = read_grids(raw.pop("sweep", []))
    swept = list(dict.fromkeys(key for grid in grids for key in grid if key != "orders"))
    _check_runs(grids, len(own_orders), len(seeds))
    points = [replace(base, orders=own_orders)]
    for point, names in sweep_points(raw, grids):
        named = own_orders if names is None else _orders(names, "sweep.orders", stage_names)
        points.append(replace(_resolve(point), orders=named))
    variants = [_marked(raw, variant) for variant in unique_variants([*points, *controls(points)], swept)]
    for variant in variants:
        check_variant(variant.world, variant.teacher, variant.student, variant.stages, variant.orders)
    orders = list(dict.fromkeys(order for variant in variants for order in variant.orders))
    resolved: dict[str, Any] = {"recipe": name}
    if raw.get("description"):
        resolved["description"] = raw["description"]
    resolved |= {block: settings.model_dump(mode="json") for block, settings in _validated(raw).items()}
    if base.world["kind"] != "mixture":
        resolved |= run.model_dump(mode="json")
    resolved |= {"orders": [str(order) for order in own_orders], "seeds": list(seeds), "sweep": grids}
    return Recipe(name, raw.get("description", "").strip(), orders, seeds, variants, swept, run, resolved)


def _check_runs(grids: Sequence[Mapping[str, Any]], orders: int, seeds: int) -> None:
    """Raise ValueError where a recipe asks for more settings or runs than a plan can hold, before any is written out."""
    sizes = [math.prod(len(values) for key, values in grid.items() if key != "orders") for grid in grids]
    points, runs = 1 + sum(sizes), (1 + sum(sizes)) * orders * seeds
    if points > MOST_POINTS or runs > MOST_RUNS:
        raise ValueError(
            f"the recipe asks for {points:,} settings and {runs:,} runs (settings × orders × seeds), and {MOST_POINTS:,} and "
            f"{MOST_RUNS:,} are the most; sweep fewer values, or take fewer seeds"
        )


def _possible(variant: Variant, order: Order) -> bool:
    """Whether settings fit an order that nobody named."""
    with suppress(ValueError):
        check_variant(variant.world, variant.teacher, variant.student, variant.stages, [order])
        return True
    return False


def _spell_out(raw: dict[str, Any]) -> None:
    """Write out what a recipe may leave short: blocks that are a text, one order, and the world where there are data."""
    for block, name in SHORT.items():
        if isinstance(raw.get(block), str):
            raw[block] = {name: raw[block]}
    if isinstance(raw.get("orders"), str):
        raw["orders"] = [raw["orders"]]
    if isinstance(raw.get("world"), str):
        raw["world"] = {"kind": raw["world"]}
    if raw.get("data") is not None and isinstance(raw.get("world") or {}, dict):
        raw["world"] = {"kind": "text", **(raw.get("world") or {})}
    if raw.get("teacher") is None:
        raw["teacher"] = {}
    for block in BLOCKS:
        if block in raw and raw[block] is None:
            del raw[block]
    grids = read_grids(raw.get("sweep") or [])
    texts = [raw.get("orders", ORDERS), *[grid.get("orders", []) for grid in grids]]
    named = {part.strip() for text in texts if isinstance(text, list) for one in text for part in str(one).split(">")}
    for kind in KINDS:
        if kind in named:
            raw.setdefault(kind, {})


def _check_keys(raw: dict[str, Any]) -> None:
    known = (*RESERVED, *BLOCKS, *RUN)
    for key, value in list(raw.items()):
        if not isinstance(key, str):
            raise ValueError(f"{key!r} is not a setting's name")
        if key in known:
            continue
        if key in KINDS and value is None:  # `align:` and nothing below it: all defaults
            value = raw[key] = {}
        if key in KINDS and not isinstance(value, dict):
            raise ValueError(f"{key} must be a mapping of settings, not {kind_of(value)}")
        if not isinstance(value, dict) or (key not in KINDS and "kind" not in value):
            where = "; it stands under `world`" if key in IN_WORLD else did_you_mean(key, (*known, *KINDS))
            raise ValueError(
                f"unknown key '{key}'{where}; a stage under a name of its own needs a `kind` ({', '.join(KINDS)})"
            )
        if not re.fullmatch(STAGE_NAME, key):
            raise ValueError(f"'{key[:100]}' is not a stage's name; use at most 100 letters, digits, '_' and '-'")
    if not _stage_names(raw):
        raise ValueError("the recipe has no stages; add `align` and `distill` blocks")


def _stage_names(raw: Mapping[str, Any]) -> list[str]:
    return [key for key in raw if key not in (*RESERVED, *BLOCKS, *RUN)]


def _validated(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The blocks of a recipe as settings, by name."""
    world_raw = raw.get("world")
    if not isinstance(world_raw, dict) or "kind" not in world_raw:
        raise ValueError(
            f"world.kind is missing; it is one of {', '.join(WORLDS)}, or `text` where there are data (--data)"
        )
    kind = world_raw["kind"]
    if not isinstance(kind, str) or kind not in WORLDS:
        raise ValueError(f"world.kind is '{kind}', but the worlds are {', '.join(WORLDS)}")
    schema = WORLDS[kind]
    world = read_block(schema.world, world_raw, "world")
    teacher = read_block(schema.teacher, raw.get("teacher", {}), "teacher")
    blocks: dict[str, Any] = {"world": world, "teacher": teacher}
    for name in BLOCKS:
        if name in raw and name not in schema.blocks:
            raise ValueError(f"the {kind} world has no block '{name}'")
        if name in raw or (kind, name) in DEFAULT_BLOCKS:
            blocks[name] = read_block(schema.blocks[name], raw.get(name, {}), name)
    for name in _stage_names(raw):
        stage_kind = raw[name].get("kind", name)
        if not isinstance(stage_kind, str) or stage_kind not in schema.stages:
            raise ValueError(
                f"{name}.kind is '{stage_kind}', but stages of the {kind} world are {', '.join(schema.stages)}"
            )
        stage = blocks[name] = read_block(schema.stages[stage_kind], {"kind": stage_kind} | raw[name], name)
        if isinstance(stage, mixture.MixtureDistill):
            mixture.check_enough_samples(name, stage.components, stage.samples)
    if isinstance(world, mixture.MixtureWorld) and isinstance(teacher, mixture.MixtureTeacher):
        mixture.check_enough_samples("teacher", teacher.components or world.modes, teacher.samples)
    return blocks


DEFAULT_BLOCKS = (("grammar", "student"), ("grammar", "evaluation"), ("text", "evaluation"))
"""Blocks that are there with their defaults where a recipe leaves them out."""


def shape_of(world: Mapping[str, Any]) -> str:
    """What the defaults of a world's stages follow from: `small` models, one `prompt`, or `rows`."""
    return "small" if world["kind"] == "grammar" else "prompt" if world.get("prompt") is not None else "rows"


def _resolve(raw: Mapping[str, Any]) -> Variant:
    blocks = _validated(raw)
    world = blocks["world"].model_dump(mode="json")
    if "data" in blocks:
        world["data"] = blocks["data"].model_dump(mode="json")
    shape = shape_of(world)
    stages = {name: blocks[name].active(shape) for name in _stage_names(raw)}
    settings = {
        f"{name}.{key}": stage.get(key)
        for name, stage in stages.items()
        for key in HEADLINE[stage["kind"]]
        if key in type(blocks[name]).model_fields
    }
    student = blocks["student"].active(shape) if "student" in blocks else None
    evaluation = blocks["evaluation"].model_dump(mode="json") if "evaluation" in blocks else {}
    return Variant(world, blocks["teacher"].active(shape), student, evaluation, stages, settings, (), False)


def _marked(raw: dict[str, Any], variant: Variant) -> Variant:
    """The variant, marked as the recipe's own if the recipe with its methods is that variant."""
    point = copy.deepcopy(raw)
    for name, block in variant.stages.items():
        if block["kind"] == "align":
            point[name] |= {key: block[key] for key in ("method", "pairs") if key in block}
    return replace(variant, own=blocks_of(_resolve(point)) == blocks_of(variant))


def _orders(raw: Any, where: str, stage_names: list[str]) -> tuple[Order, ...]:
    if not isinstance(raw, list) or not raw or not all(isinstance(text, str) for text in raw):
        raise ValueError(f"{where} must be a list of orders such as 'align > distill'")
    orders = tuple(parse_order(text, stage_names) for text in raw)
    if len(set(orders)) != len(orders):
        raise ValueError(f"{where} names the same order twice")
    return orders


def _seeds(raw: Any) -> tuple[int, ...]:
    values = list(range(raw)) if type(raw) is int and 0 < raw <= MOST_RUNS else raw
    if not isinstance(values, list) or not values or not all(type(v) is int and 0 <= v < 2**63 for v in values):
        raise ValueError(
            f"seeds must be a number of seeds above 0 and up to {MOST_RUNS:,}, or a list of whole numbers from 0 and below "
            f"2**63, not {raw!r}"
        )
    if len(set(values)) != len(values):
        raise ValueError("seeds names a seed twice")
    return tuple(values)


def read_block(model: type[Any], block: Any, where: str) -> Any:
    if not isinstance(block, dict):
        raise ValueError(f"{where} must be a mapping of settings, not {kind_of(block)}")
    try:
        return model.model_validate(block)
    except ValidationError as error:
        raise ValueError(sentence(error.errors(include_url=False)[0], model, where)) from None
