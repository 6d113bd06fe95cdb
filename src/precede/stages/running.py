"""What the runs of all methods share: the trainer's settings and the check of its arguments, the model, and what was done."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import typing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from precede.data.sentences import first_line
from precede.libraries import quiet, trainer_config, transformers
from precede.models.adapters import adapter_config, load_quantized
from precede.models.load import load
from precede.scoring.logprobs import score
from precede.stages.context import Amounts, Context, Models, Source, draw, look_at, mean_tokens
from precede.stages.method import Config, Method
from precede.stages.processes import count
from precede.stages.trainer import Log, TrainerSettings, check_extra, in_bf16

ABOVE_0 = ("learning_rate", "num_train_epochs", "temperature")
PACKAGES = {"use_vllm": "vllm", "use_liger_kernel": "liger_kernel"}
"""Arguments that need a package, and its name."""

COMPILERS = (*filter(None, [os.environ.get("CXX")]), "g++", "clang++", "c++")

START_SAMPLES = 256
"""Completions on which the KL to another reference is measured before training."""


def settings_of(config: Config, context: Context) -> TrainerSettings:
    """The trainer's settings, from TRL's arguments under `config["trainer"]`."""
    extra, lora = dict(config["trainer"]), config["lora"]
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


def checked_start(models: Models, config: Config, context: Context) -> TrainerSettings:
    """`settings_of`, by which a training stops where the KL to the reference is not 0 at step 0 though it is the model itself.

    The first step's log has the numbers before it: a model's log-ratio to itself is 0 but for bf16, which rounds each token's.
    """
    settings = settings_of(config, context)
    if not models.anchored_to_itself:
        return settings
    tolerance = 1.0 if in_bf16(context.dtype, context.device) else 0.05

    def check(step: int, logs: Mapping[str, float]) -> None:
        nats = _first_kl(logs, config)
        if step == 1 and abs(nats) > tolerance:
            raise ValueError(
                f"KL to the reference at step 0 is {nats:.3g} nats, though the reference is the model itself"
            )

    return replace(settings, checkpoints=replace(context.checkpoints, logged=check))


def _first_kl(logs: Mapping[str, float], config: Config) -> float:
    return logs.get("kl", logs.get("rewards/chosen", 0.0) / config["beta"])


def kl_at_start(models: Models, config: Config, context: Context, log: Log) -> float:
    """KL(model ‖ reference) before training, nats per completion: by the first step's log where the reference is the model
    itself, else measured on samples of the model."""
    if models.anchored_to_itself:
        return abs(_first_kl(log[0], config)) if log else 0.0
    prompts = [row.prompt for row in context.rows[:START_SAMPLES]]
    prompts *= START_SAMPLES if len(prompts) == 1 else 1
    drawn = draw(models.start, prompts, 1.0, "start", context)
    own_scores, reference_scores = (
        score(look_at(source).to(context.device), prompts, [[row] for row in drawn])
        for source in (models.start, models.reference)
    )
    pairs = zip(own_scores, reference_scores, strict=True)
    return sum(own[0].logp - reference[0].logp for own, reference in pairs) / len(drawn)


def rows_per_step(config: Config) -> int:
    """Rows of an optimiser step, over accumulated batches and processes."""
    trainer = config["trainer"]
    return int(trainer["per_device_train_batch_size"] * trainer.get("gradient_accumulation_steps", 1) * count())


def rows_seen(rows: float, config: Config, steps: int) -> float:
    """Rows that pass through a trainer in `steps` steps: every pass over the rows ends with a step that may be smaller."""
    if not rows or not steps:
        return 0.0
    passes, rest = divmod(steps, -(-int(rows) // rows_per_step(config)))
    return passes * rows + rest * rows_per_step(config)


def planned_steps(config: Config, examples: float) -> int:
    """Optimiser steps that a trainer will take on so many examples."""
    trainer = config["trainer"]
    if (steps := trainer.get("max_steps", -1)) > 0:
        return int(steps)
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


def check_arguments(method: Method, extra: Mapping[str, Any], device: torch.device, dtype: str) -> None:
    """Raise ValueError for an argument that TRL does not know, that is ours, or whose value it does not take.

    Values are checked by the types of TRL's own class, by making one with the optimiser and the schedule that it names, and
    that those of `ABOVE_0` are. Where several processes are at work none is made.
    """
    config = trainer_config(method.trainer)
    check_extra(config, extra, method.fixed)
    types = typing.get_type_hints(config)
    for name, value in extra.items():
        try:
            TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise ValueError(f"trainer.{name} is {value!r}: {reason[:1].lower()}{reason[1:]}") from None
        if name in ABOVE_0 and not float(value) > 0:
            raise ValueError(f"trainer.{name} must be above 0, not {value}")
        if value and name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(f"trainer.{name} needs the package '{PACKAGES[name]}'; run `pip install {PACKAGES[name]}`")
    if extra.get("torch_compile") and device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise ValueError(f"trainer.torch_compile needs a compiler, one of {', '.join(COMPILERS)}; leave it out")
    if count() > 1:
        return
    with tempfile.TemporaryDirectory(prefix="precede-") as folder, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = {"output_dir": folder, "report_to": "none", "use_cpu": device.type == "cpu"}
        ours["bf16"] = in_bf16(dtype, device)
        if method.compares:
            ours["num_generations"] = extra.get("per_device_train_batch_size", 8)
        try:
            _make_optimiser(config(**{**ours, **extra}))
        except Exception as error:  # of any kind: it checks itself in many ways
            raise ValueError(f"trainer: {first_line(error)}") from None


def _make_optimiser(args: Any) -> None:
    """The optimiser and the schedule of a trainer, as it makes them, of one layer."""
    layer = torch.nn.Linear(1, 1)
    kind, options = transformers().Trainer.get_optimizer_cls_and_kwargs(args, layer)
    if not {"params", "model", "optimizer_dict"} & options.keys():  # of kinds that want a whole model
        optimiser = kind(layer.parameters(), **options)
        steps = args.get_warmup_steps(1), 1
        transformers().get_scheduler(args.lr_scheduler_type, optimiser, *steps, args.lr_scheduler_kwargs)
