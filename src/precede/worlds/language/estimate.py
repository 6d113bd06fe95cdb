"""What stages of a language world cost: the formulas that a run accounts by, and estimates before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from precede.metrics import Cost
from precede.store import Stage

BYTES_PER_TRAINED = 16
"""Weights, gradients and Adam's two moments, fp32."""


def estimate(
    stage: Stage, parameters: Callable[[Stage], int], evaluation_samples: int, row: int, scored_by_truth: int
) -> tuple[Cost, float]:
    """Expected cost of a stage per seed, and the FLOPs of measuring its model, as if every completion ran to its full length.

    `parameters` gives those of the model that a stage leaves, `row` is the tokens of prompt and completion together, and
    `scored_by_truth` the parameters of the truth if that is a model, else 0.
    """
    cost, own = Cost(), parameters(stage)
    memory = 4 * own + 4 * scored_by_truth
    if stage.kind == "distill":
        teacher = parameters(stage.taught_by())
        distillation(cost, stage.config, row, teacher=teacher, student=own)
        memory = 4 * teacher + BYTES_PER_TRAINED * own
    elif stage.kind == "align":
        reference = parameters(stage.reference())
        original = stage.before_distillation()
        pairs = stage.config.get("samples", 0) // 2
        alignment(
            cost, stage.config, row, pairs, policy=own, reference=reference, teacher=parameters(original or stage)
        )
        memory = 4 * reference + BYTES_PER_TRAINED * own
    elif "steps" in stage.config:
        cost.train(own, stage.config["steps"] * rows_per_step(stage.config) * row)
        memory = BYTES_PER_TRAINED * own
    cost.peak_memory_bytes = float(memory if stage.parent is None else memory + 4 * scored_by_truth)
    decodings = 1 if stage.distill_temperature() is None else 2
    measuring = Cost()
    measuring.sample(own, decodings * evaluation_samples * row)
    measuring.score(own, (decodings + 1) * evaluation_samples * row)
    measuring.score(scored_by_truth, decodings * evaluation_samples * row)
    return cost, measuring.flops


def distillation(cost: Cost, config: Mapping[str, Any], row: float, *, teacher: int, student: int) -> None:
    """Add what distillation costs; `row` is the mean tokens of prompt and completion, `teacher` and `student` parameters."""
    if config["method"] == "on_policy":
        tokens = config["steps"] * rows_per_step(config) * row
        cost.sample(student, tokens)
        cost.score(teacher, tokens)
        cost.train(student, tokens)
        return
    cost.sample(teacher, config["samples"] * row)
    tokens = rows_seen(config["samples"], rows_per_step(config), config["steps"]) * row
    if config["method"] == "token":
        cost.score(teacher, tokens)
    cost.train(student, tokens)


def alignment(
    cost: Cost,
    config: Mapping[str, Any],
    row: float,
    pairs: int,
    *,
    policy: int,
    reference: int,
    teacher: int,
) -> None:
    """Add what alignment costs; `pairs` is what DPO trains on, `teacher` the parameters of the model before distillation."""
    if config["method"] == "dpo":
        sampled = config["samples"] // 2 * 2 * row  # pairs drawn from the truth are data that is there
        if config["pairs"] == "on_policy":
            cost.sample(reference, sampled)
        elif config["pairs"] == "seeded":
            cost.sample(reference, sampled / 2)
            cost.sample(teacher, sampled / 2)
        tokens = 2 * rows_seen(pairs, rows_per_step(config), config["steps"]) * row
        cost.score(reference, tokens)
        cost.train(policy, tokens)
        return
    tokens = config["steps"] * rows_per_step(config) * row
    cost.sample(policy, tokens)
    cost.score(policy, tokens)
    cost.score(reference, tokens)
    cost.train(policy, tokens * config["epochs"])


def rows_per_step(config: Mapping[str, Any]) -> int:
    """Rows of an optimiser step: batches are accumulated where the trainer's arguments say so."""
    accumulated: int = config["trainer"].get("gradient_accumulation_steps", 1)
    return int(config["batch_size"]) * accumulated


def rows_seen(rows: int, per_step: int, steps: int) -> int:
    """Rows that pass through a trainer in `steps` steps: every pass over the rows ends with a step that may be smaller."""
    if rows == 0:
        return 0
    passes, rest = divmod(steps, -(-rows // per_step))
    return passes * rows + rest * per_step
