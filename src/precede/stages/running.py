"""What the runs of all methods share: the trainer's settings, the model that is trained, and what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from precede.models.adapters import adapter_config, load_quantized
from precede.models.load import load
from precede.rewards import Prompt
from precede.scoring.logprobs import score
from precede.stages.context import Amounts, Context, Models, Source, draw, look_at, mean_tokens
from precede.stages.method import Config
from precede.stages.processes import count
from precede.stages.trainer import Log, TrainerSettings, in_bf16

START_SAMPLES = 256
"""Completions on which the KL to another reference is measured before training."""


def settings_of(config: Config, context: Context) -> TrainerSettings:
    """The trainer's settings, from TRL's arguments under `config["trainer"]`."""
    extra = dict(config["trainer"])
    lora = config["lora"]
    return TrainerSettings(
        learning_rate=extra.pop("learning_rate"),
        batch_size=extra.pop("per_device_train_batch_size"),
        steps=extra.pop("max_steps", -1),
        seed=extra.pop("seed", context.stream("training")),
        dtype=context.dtype,
        extra=extra,
        device=context.device,
        peft=None if lora is None else adapter_config(lora),
        checkpoints=context.checkpoints,
    )


def load_trained(source: Source, config: Config) -> Any:
    """The model that a stage trains: in 4 bits where its adapter says so, else in fp32."""
    lora = config["lora"]
    return load_quantized(source) if lora and lora["quantization"] == "4bit" else load(source)[0]


def checked_start(models: Models, config: Config, settings: TrainerSettings) -> TrainerSettings:
    """Settings under which a training stops where the KL to the reference is not 0 at step 0 though it is the model itself.

    The first step's log has the numbers before it: a model's log-ratio to itself is 0 but for bf16, which rounds each token's.
    """
    if not models.anchored_to_itself:
        return settings
    assert settings.device is not None
    assert settings.checkpoints is not None
    tolerance = 1.0 if in_bf16(settings.dtype, settings.device) else 0.05

    def check(step: int, logs: Mapping[str, float]) -> None:
        nats = _first_kl(logs, config)
        if step == 1 and abs(nats) > tolerance:
            raise ValueError(
                f"KL to the reference at step 0 is {nats:.3g} nats, though the reference is the model itself"
            )

    return replace(settings, checkpoints=replace(settings.checkpoints, logged=check))


def _first_kl(logs: Mapping[str, float], config: Config) -> float:
    return logs.get("kl", logs.get("rewards/chosen", 0.0) / config["beta"])


def kl_at_start(models: Models, config: Config, context: Context, log: Log) -> float:
    """KL(model ‖ reference) before training, nats per completion: by the first step's log where the reference is the model
    itself, else measured on samples of the model."""
    if models.anchored_to_itself:
        return abs(_first_kl(log[0], config)) if log else 0.0
    rows = context.rows
    prompts = [rows[place % len(rows)].prompt for place in range(START_SAMPLES if len(rows) == 1 else len(rows))]
    prompts = prompts[:START_SAMPLES]
    drawn = draw(models.start, prompts, 1.0, "start", context)
    own, other = (
        score(look_at(source).to(context.device), prompts, [[row] for row in drawn])
        for source in (models.start, models.reference)
    )
    return sum(a[0].logp - b[0].logp for a, b in zip(own, other, strict=True)) / len(drawn)


def rounds_of(context: Context, completions: int) -> list[Prompt]:
    """Prompts of a trainer that samples by itself: all of them, or one as often as a step asks for it."""
    return context.prompts * (completions if len(context.rows) == 1 else 1)


def rows_per_step(config: Config) -> int:
    """Rows of an optimiser step, over accumulated batches and processes."""
    trainer = config["trainer"]
    return int(trainer["per_device_train_batch_size"] * trainer.get("gradient_accumulation_steps", 1) * count())


def rows_seen(rows: float, config: Config, steps: int) -> float:
    """Rows that pass through a trainer in `steps` steps: every pass over the rows ends with a step that may be smaller."""
    if not rows or not steps:
        return 0.0
    per_step = rows_per_step(config)
    passes, rest = divmod(steps, -(-int(rows) // per_step))
    return passes * rows + rest * per_step


def planned_steps(config: Config, examples: float) -> int:
    """Optimiser steps that a trainer will take on so many examples."""
    trainer = config["trainer"]
    if trainer.get("max_steps", -1) > 0:
        return int(trainer["max_steps"])
    return int(trainer.get("num_train_epochs", 3) * -(-int(examples) // rows_per_step(config)))


def steps_of(log: Log) -> int:
    return int(log[-1].get("step", len(log))) if log else 0


def amounts_of(log: Log, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], drawn: int) -> Amounts:
    """What a trainer on rows did, of which `drawn` were sampled for it."""
    return Amounts(len(completions), steps_of(log), mean_tokens(prompts, completions), drawn)


def sampled_amounts(log: Log, config: Config) -> Amounts:
    """What a trainer did that samples by itself: it logs the running sum of its tokens."""
    total = max((entry.get("num_tokens", 0.0) for entry in log), default=0.0)  # only the steps that sample have it
    rounds = steps_of(log) / config["trainer"].get("num_iterations", 1)
    return Amounts(0, steps_of(log), total / max(rounds * rows_per_step(config), 1))
