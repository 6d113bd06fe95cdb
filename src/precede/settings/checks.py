"""Where settings of language models do not fit one another: one sentence each, before anything is read or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from precede.settings.order import Order
from precede.stages.method import Method
from precede.stages.registry import METHODS

Block = Mapping[str, Any]


def check_variant(
    world: Block, teacher: Block, student: Block | None, stages: Mapping[str, Block], orders: Sequence[Order]
) -> None:
    """Raise ValueError where the blocks of a recipe of language models contradict one another under one of its orders."""
    if world["kind"] == "mixture":
        return
    text = world["kind"] == "text"
    if text and (world.get("data") is None) == (world["prompt"] is None):
        raise ValueError(
            "give either data or world.prompt, not both"
            if world["prompt"] is not None
            else "there are no prompts: name preference pairs with --data, or one prompt (world.prompt)"
        )
    if text and world["prompt"] is None and str(world["truth"]).endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(
            "world.truth is a file of texts, which stands for one prompt alone; name a model, or leave it out"
        )
    for order in orders:
        names = order.stages
        if len(set(names)) != len(names):
            raise ValueError(f"the order '{order}' names a stage twice; give the second one a name of its own")
        if text:
            _check_models(order, teacher, student, stages)
        for place, name in enumerate(names):
            _check_stage(name, stages[name], METHODS[stages[name]["method"]], world, teacher, place, order)
            _check_adapter(name, stages[name], METHODS[stages[name]["method"]], student, place, order)


def _check_models(order: Order, teacher: Block, student: Block | None, stages: Mapping[str, Block]) -> None:
    named = None if student is None else student["model"]
    new = [name for name in order.stages if stages[name]["kind"] == "distill" and stages[name]["start"] == "new"]
    if not any(stages[name]["kind"] == "distill" for name in order.stages):
        if teacher["model"] is None and named is None:
            raise ValueError("there is no model to train; give --teacher or --student")
        if student is not None and named is None:
            raise ValueError(f"the order '{order}' does not distil, so the student must be a model that is there")
        return
    if new and student is None:
        raise ValueError(f"{new[0]} needs a student; give --student, or --keep-layers to take layers of the teacher")
    given = [name for name in new if stages[name].get("completions") is not None]
    if teacher["model"] is None and (not given or named is None):
        raise ValueError("there is no teacher; name one with --teacher, or `teacher:` in the recipe")


def _check_stage(
    name: str, stage: Block, method: Method, world: Block, teacher: Block, place: int, order: Order
) -> None:
    text = world["kind"] == "text"
    if stage.get("completions") is not None and place > 0:
        raise ValueError(
            f"{name}.completions holds what a teacher wrote already, so no stage can come before {name} in the order; "
            "put it first"
        )
    if stage["kind"] == "sft" and world.get("data") is None:
        raise ValueError(f"{name} learns the chosen completions of the data, and there are none; name them with --data")
    if method.compares:
        batch, group = (stage["trainer"][key] for key in ("per_device_train_batch_size", "num_generations"))
        if group < 2:
            what = "num_generations" if world.get("data") is not None else "per_device_train_batch_size"
            raise ValueError(
                f"{name}: {method.name} compares a completion with the others of its prompt; {name}.trainer.{what} must be 2 "
                f"or more, not {min(batch, group)}"
            )
    if stage["kind"] != "align":
        return
    pairs = stage.get("pairs")
    if pairs == "given" and world.get("data") is None:
        raise ValueError(f"{name}.pairs is 'given', and there are no data; use on_policy, or name pairs with --data")
    if pairs == "off_policy" and world.get("data") is not None:
        raise ValueError(
            f"{name}.pairs is 'off_policy', but pairs of many prompts cannot be drawn from a truth; use given"
        )
    if text and method.needs_reward(stage) and world["reward"] is None and world["reward_model"] is None:
        what = f"method {method.name}" if pairs is None else f"pairs: {pairs}"
        raise ValueError(f"{name} with {what} ranks samples by a reward; give --reward or --reward-model")
    if text and teacher["model"] is None and (stage["reference"] == "teacher" or pairs == "seeded"):
        what = "reference is 'teacher'" if stage["reference"] == "teacher" else "pairs is 'seeded'"
        raise ValueError(f"{name}.{what}, but there is no teacher; name one with --teacher")


def _check_adapter(name: str, stage: Block, method: Method, student: Block | None, place: int, order: Order) -> None:
    lora = stage["lora"]
    if lora is None:
        return
    if method.own_reference_only and stage.get("reference") == "teacher":
        raise ValueError(
            f"{name} with an adapter and method {method.name} can only be anchored to the model itself; set "
            f"{name}.reference to self, or another {name}.method"
        )
    if lora["adapter"] != "keep":
        return
    if place < len(order.stages) - 1:
        raise ValueError(f"{name}.lora.adapter is 'keep', but only the last stage of an order can keep its adapter")
    distils = stage["kind"] == "distill"
    named = distils and student is not None and student.get("model") is not None
    if not named and (place > 0 or distils):
        raise ValueError(
            f"{name}.lora.adapter is 'keep', but the base that {name} trains is made on the way, and nobody else has it; "
            "set it to merge"
        )
