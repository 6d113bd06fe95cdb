"""The order of stages: `align > distill`, `distill > align`, or any longer sequence of a recipe's stages.

`check_variant` says where settings of language models do not fit one another, or the order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precede.stages.registry import METHODS

Block = Mapping[str, Any]
MOST_STAGES = 100
STAGE_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,99}"
"""A folder is called by it."""
ALIGN_THEN_DISTILL = "align > distill"


@dataclass(frozen=True)
class Order:
    """A sequence of stage names; its text is the names joined by ` > `."""

    stages: tuple[str, ...]

    def __str__(self) -> str:
        return " > ".join(self.stages)


def parse_order(text: str, known: Collection[str]) -> Order:
    """Read `a > b > c`. Raises ValueError where a name is missing, or is not one of the stages in `known`."""
    names = tuple(part.strip() for part in text.split(">"))
    if len(names) > MOST_STAGES:
        raise ValueError(f"the order '{text[:30]}…' has {len(names):,} stages, and {MOST_STAGES} are the most")
    if not all(names):
        raise ValueError(f"the order '{text}' has an empty place; write stage names with '>' between them")
    for name in names:
        if not re.fullmatch(STAGE_NAME, name):
            raise ValueError(f"the order '{text}' is not a sequence of stage names with '>' between them")
        if name not in known:
            raise ValueError(
                f"the order '{text}' names an unknown stage '{name}'; the stages are {', '.join(sorted(known))}"
            )
    return Order(names)


def check_variant(
    world: Block, teacher: Block, student: Block | None, stages: Mapping[str, Block], orders: Sequence[Order]
) -> None:
    """Raise ValueError where the blocks of a recipe of language models contradict one another under one of its orders.

    One sentence each, before anything is read or run.
    """
    if world["kind"] == "mixture":
        return
    text = world["kind"] == "text"
    if text and world["prompt"] is None:
        if world.get("data") is None:
            raise ValueError("there are no prompts: name preference pairs with --data, or one prompt (world.prompt)")
        if str(world["truth"]).endswith((".jsonl", ".jsonl.gz")):
            raise ValueError(
                "world.truth is a file of texts, which stands for one prompt alone; name a model, or leave it out"
            )
    elif text and world.get("data") is not None:
        raise ValueError("give either data or world.prompt, not both")
    for order in orders:
        if len(set(order.stages)) != len(order.stages):
            raise ValueError(f"the order '{order}' names a stage twice; give the second one a name of its own")
        if text:
            _check_models(order, teacher, student, stages)
        for position, name in enumerate(order.stages):
            _check_stage(name, stages[name], world, teacher, position)
            _check_adapter(name, stages[name], last=position == len(order.stages) - 1)


def _check_models(order: Order, teacher: Block, student: Block | None, stages: Mapping[str, Block]) -> None:
    student_model = None if student is None else student["model"]
    distillations = [name for name in order.stages if stages[name]["kind"] == "distill"]
    if not distillations:
        if teacher["model"] is None and student_model is None:
            raise ValueError("there is no model to train; give --teacher or --student")
        if student is not None and student_model is None:
            raise ValueError(f"the order '{order}' does not distil, so the student must be a model that is there")
        return
    new = [name for name in distillations if stages[name]["start"] == "new"]
    if new and student is None:
        raise ValueError(f"{new[0]} needs a student; give --student, or --keep-layers to take layers of the teacher")
    given = any(stages[name].get("completions") is not None for name in new)
    if teacher["model"] is None and (not given or student_model is None):
        raise ValueError("there is no teacher; name one with --teacher, or `teacher:` in the recipe")


def _check_stage(name: str, stage: Block, world: Block, teacher: Block, position: int) -> None:
    method, text, has_data = METHODS[stage["method"]], world["kind"] == "text", world.get("data") is not None
    if stage.get("completions") is not None and position > 0:
        raise ValueError(
            f"{name}.completions holds what a teacher wrote already, so no stage can come before {name} in the order; "
            "put it first"
        )
    if stage["kind"] == "sft" and not has_data:
        raise ValueError(f"{name} learns the chosen completions of the data, and there are none; name them with --data")
    if method.compares:
        batch, group = (stage["trainer"][key] for key in ("per_device_train_batch_size", "num_generations"))
        if group < 2:
            what = "num_generations" if has_data else "per_device_train_batch_size"
            raise ValueError(
                f"{name}: {method.name} compares a completion with the others of its prompt; {name}.trainer.{what} must be 2 "
                f"or more, not {min(batch, group)}"
            )
        step = batch * stage["trainer"].get("gradient_accumulation_steps", 1)
        if step % group:
            raise ValueError(
                f"{name}: a step of {step} completions ({name}.trainer.per_device_train_batch_size) is no multiple of the "
                f"{group} of each prompt ({name}.trainer.num_generations)"
            )
    if stage["trainer"]["per_device_train_batch_size"] < method.least_batch:
        raise ValueError(
            f"{name}: {method.name} needs {method.least_batch} rows at once; raise {name}.trainer.per_device_train_batch_size"
        )
    if stage["kind"] != "align":
        return
    pairs = stage.get("pairs")
    if pairs == "given" and not has_data:
        raise ValueError(f"{name}.pairs is 'given', and there are no data; use on_policy, or name pairs with --data")
    if pairs == "off_policy" and has_data:
        raise ValueError(
            f"{name}.pairs is 'off_policy', but pairs of many prompts cannot be drawn from a truth; use given"
        )
    if text and method.needs_reward(stage) and world["reward"] is None and world["reward_model"] is None:
        what = f"method {method.name}" if pairs is None else f"pairs: {pairs}"
        raise ValueError(f"{name} with {what} ranks samples by a reward; give --reward or --reward-model")
    if text and teacher["model"] is None and (stage["reference"] == "teacher" or pairs == "seeded"):
        what = "reference is 'teacher'" if stage["reference"] == "teacher" else "pairs is 'seeded'"
        raise ValueError(f"{name}.{what}, but there is no teacher; name one with --teacher")


def _check_adapter(name: str, stage: Block, *, last: bool) -> None:
    if stage["lora"] is None:
        return
    if METHODS[stage["method"]].own_reference_only and stage.get("reference") == "teacher":
        raise ValueError(
            f"{name} with an adapter and method {stage['method']} can only be anchored to the model itself; set "
            f"{name}.reference to self, or another {name}.method"
        )
    if stage["lora"]["adapter"] == "keep" and not last:
        raise ValueError(f"{name}.lora.adapter is 'keep', but only the last stage of an order can keep its adapter")
