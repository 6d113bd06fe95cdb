"""Arguments that a recipe passes through to TRL, checked before anything is trained."""

from __future__ import annotations

import tempfile
import typing
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from precede.data.sentences import first_line
from precede.libraries import quiet, trainer_config
from precede.stages.method import Method
from precede.stages.processes import count
from precede.stages.trainer import check_extra, in_bf16

ABOVE_0 = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")


def check_arguments(method: Method, extra: Mapping[str, Any], device: torch.device, dtype: str) -> None:
    """Raise ValueError for an argument that TRL does not know, that is ours, or whose value it does not take.

    Values are checked by the types of TRL's own class, by making one, and that those of `ABOVE_0` are. Where several
    completions of a prompt are compared, arguments hang together with the stage's and are not tried as a whole; nor is anything
    where several processes are at work.
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
    if method.compares or count() > 1:
        return
    with tempfile.TemporaryDirectory(prefix="precede-") as folder, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = {
            "output_dir": folder,
            "report_to": "none",
            "use_cpu": device.type == "cpu",
            "bf16": in_bf16(dtype, device),
        }
        try:
            config(**{**ours, **extra})
        except Exception as error:  # of any kind: it checks itself in many ways
            raise ValueError(f"trainer: {first_line(error)}") from None
