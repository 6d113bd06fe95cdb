"""The recipe of a build: YAML or flags in, validated settings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precede.data.sentences import did_you_mean, kind_of
from precede.settings.build import BUILD_STAGES, Align, Build, BuildStage, Distill
from precede.settings.order import Order, parse_order
from precede.settings.reading import parse_yaml
from precede.settings.recipe import read_block, set_path

SHORT = {"data": "source", "student": "model"}
"""Blocks that can be a text, and the setting that it is."""


@dataclass(frozen=True)
class BuildRecipe:
    """What to build: the settings, the stages of the order by name, and the order."""

    settings: Build
    stages: dict[str, BuildStage]
    order: Order

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included; it can be read as a recipe again."""
        blocks = {name: stage.model_dump(mode="json") for name, stage in self.stages.items()}
        return {**self.settings.model_dump(mode="json"), **blocks}

    def sequence(self) -> list[tuple[str, BuildStage]]:
        """The stages with their names, in order."""
        return [(name, self.stages[name]) for name in self.order.stages]


def load_build(path: str | None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> BuildRecipe:
    """The recipe of a YAML file, or an empty one, with `flags` (setting → value) and `path.to.key=value` overrides on top.

    Raises ValueError, in one sentence, for anything that is wrong with it.
    """
    where, raw = "build", {}
    if path is not None:
        where = f"recipe {path}"
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        raw = parse_yaml(text, where)
        if not isinstance(raw, dict):
            raise ValueError(f"{where} must be a mapping of settings, not {kind_of(raw)}")
    for key, value in (flags or {}).items():
        _open(raw, key)
        set_path(raw, key, value, f"--{key}")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"--set takes path.to.key=value, not '{override}'")
        _open(raw, key.strip())
        set_path(raw, key.strip(), parse_yaml(value, f"--set {override}"), f"--set {override}")
    try:
        return read_build(raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _open(raw: dict[str, Any], key: str) -> None:
    """Make room for `align.beta` where the recipe leaves `align` or `data` out, or writes it short."""
    block = key.partition(".")[0]
    if "." in key and isinstance(raw.get(block), str) and block in SHORT:
        raw[block] = {SHORT[block]: raw[block]}
    if "." in key and block in (*BUILD_STAGES, "data", "student", "evaluation") and raw.get(block) is None:
        raw[block] = {}


def read_build(mapping: Mapping[str, Any]) -> BuildRecipe:
    """Validate a recipe that was read already. Raises ValueError."""
    raw = dict(mapping)
    for block, name in SHORT.items():
        if isinstance(raw.get(block), str):
            raw[block] = {name: raw[block]}
    own = {key: value for key, value in raw.items() if key in Build.model_fields}
    blocks = {key: value if value is not None else {} for key, value in raw.items() if key not in Build.model_fields}
    for key, block in blocks.items():
        if not isinstance(key, str) or not isinstance(block, dict) or (key not in BUILD_STAGES and "kind" not in block):
            hint = did_you_mean(str(key), (*Build.model_fields, *BUILD_STAGES))
            raise ValueError(
                f"unknown key '{key}'{hint}; a stage under a name of its own needs a `kind` ({', '.join(BUILD_STAGES)})"
            )
    if "data" not in own:
        raise ValueError("there is no data; name preference pairs with --data, or `data:` in the recipe")
    settings: Build = read_block(Build, own, "")
    order = parse_order(settings.order, {*blocks, *BUILD_STAGES})
    stages: dict[str, BuildStage] = {}
    for name in dict.fromkeys((*order.stages, *blocks)):
        block = blocks.get(name, {})
        kind = block.get("kind", name)
        if kind not in BUILD_STAGES:
            raise ValueError(f"{name}.kind is '{kind}', but the stages of a build are {', '.join(BUILD_STAGES)}")
        stages[name] = read_block(BUILD_STAGES[kind], {"kind": kind} | block, name)
    recipe = BuildRecipe(settings, stages, order)
    _check(recipe)
    return recipe


def _check(recipe: BuildRecipe) -> None:
    """Raise ValueError where settings do not fit one another."""
    settings, sequence = recipe.settings, recipe.sequence()
    unused = [name for name in recipe.stages if name not in recipe.order.stages]
    if unused:
        raise ValueError(f"the stage '{unused[0]}' is not in the order '{recipe.order}'; put it there or take it out")
    if len(set(recipe.order.stages)) != len(recipe.order.stages):
        raise ValueError(f"the order '{recipe.order}' names a stage twice; give the second one a name of its own")
    distillations = [(name, stage) for name, stage in sequence if isinstance(stage, Distill)]
    if len(distillations) > 1:
        raise ValueError(
            f"the order '{recipe.order}' distils twice; build the middle model first and give it as teacher"
        )
    if distillations:
        (name, distill) = distillations[0]
        if settings.student is None:
            raise ValueError(f"{name} needs a student; give --student, or --keep-layers to take layers of the teacher")
        if distill.completions is not None and recipe.order.stages[0] != name:
            raise ValueError(
                f"{name}.completions holds what a teacher wrote already, so no stage can come before {name} in the order; "
                "put it first"
            )
        if settings.teacher is None and (distill.completions is None or settings.student.model is None):
            raise ValueError("there is no teacher; name one with --teacher, or `teacher:` in the recipe")
        if distill.completions is not None and distill.method != "sequence":
            raise ValueError(f"{name}.completions are texts, which only {name}.method sequence learns from")
    elif settings.teacher is None and (settings.student is None or settings.student.model is None):
        raise ValueError("there is no model to train; give --teacher or --student")
    elif settings.student is not None and settings.student.model is None:
        raise ValueError(f"the order '{recipe.order}' does not distil, so the student must be a model that is there")
    for place, (name, stage) in enumerate(sequence):
        if isinstance(stage, Align):
            sampled = stage.method != "dpo" or stage.pairs != "given"
            if sampled and settings.reward is None and settings.reward_model is None:
                what = f"method {stage.method}" if stage.method != "dpo" else f"pairs: {stage.pairs}"
                raise ValueError(f"{name} with {what} ranks samples by a reward; give --reward or --reward-model")
            if settings.teacher is None and (stage.reference == "teacher" or stage.pairs == "seeded"):
                what = "reference is 'teacher'" if stage.reference == "teacher" else "pairs is 'seeded'"
                raise ValueError(f"{name}.{what}, but there is no teacher; name one with --teacher")
            if stage.lora is not None and stage.reference == "teacher" and stage.method != "dpo":
                raise ValueError(
                    f"{name} with an adapter and method {stage.method} can only be anchored to the model itself; set "
                    f"{name}.reference to self, or {name}.method to dpo"
                )
        if stage.lora is not None and stage.lora.adapter == "keep":
            if place < len(sequence) - 1:
                raise ValueError(
                    f"{name}.lora.adapter is 'keep', but only the last stage of an order can keep its adapter"
                )
            named = isinstance(stage, Distill) and settings.student is not None and settings.student.model is not None
            if not named and (place > 0 or isinstance(stage, Distill)):
                raise ValueError(
                    f"{name}.lora.adapter is 'keep', but the base that {name} trains is made by this build, and nobody "
                    "else has it; set it to merge"
                )
