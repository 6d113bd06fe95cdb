"""What the TRL trainers share: their arguments, silence, seeds, and the stop when training diverges."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from precede.lm.libraries import quiet, transformers
from precede.lm.seeding import seeded

OURS = {"output_dir", "learning_rate", "per_device_train_batch_size", "num_train_epochs", "seed", "beta", "report_to"}
"""Trainer arguments that are set from a stage's own settings, so they may not be passed through."""


@dataclass(frozen=True)
class TrainerSettings:
    """What a stage says about training: peak learning rate, rows per step, passes over the data, and more arguments."""

    learning_rate: float
    batch_size: int
    epochs: int
    seed: int
    extra: Mapping[str, Any]


def train(
    make: Callable[..., Any], config: type, settings: TrainerSettings, device: torch.device, **arguments: Any
) -> list[dict[str, float]]:
    """Build a trainer with `make(args)` and train it; returns what it logged, one entry per step.

    fp32 on the CPU; on CUDA cards that have it, bf16 autocast over fp32 weights. Nothing is written outside a temporary
    folder, nothing is reported anywhere. The same settings and seed give the same weights on the same machine. Raises
    ValueError for arguments that the trainer does not know, and when a logged number is not finite.
    """
    clash = sorted(OURS & set(settings.extra))
    if clash:
        raise ValueError(f"trainer.{clash[0]} cannot be passed through; it follows from the stage's own settings")
    # transformers 5 renamed it and warns of the old name, which TRL sets to True
    old, new = "gradient_checkpointing", "activation_checkpointing"
    checkpointing = new if hasattr(config, new) else old
    with (
        tempfile.TemporaryDirectory(prefix="precede-") as folder,
        quiet(),
        warnings.catch_warnings(),
        seeded(settings.seed),
    ):
        # TRL 1.16 still reads the model's old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        defaults = {
            "output_dir": folder,
            "learning_rate": settings.learning_rate,
            "per_device_train_batch_size": settings.batch_size,
            "num_train_epochs": settings.epochs,
            "seed": settings.seed,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "disable_tqdm": True,
            checkpointing: False,
            "max_length": None,
            "use_cpu": device.type == "cpu",
            "bf16": device.type == "cuda" and torch.cuda.is_bf16_supported(),
            "dataloader_pin_memory": device.type == "cuda",
        }
        try:
            args = config(**{**defaults, **arguments, **settings.extra})
        except TypeError as error:
            raise ValueError(f"trainer: {error}") from None
        trainer = make(args)
        trainer.remove_callback(transformers().PrinterCallback)
        trainer.add_callback(_stop_when_diverged())
        trainer.train()
        return [
            {name: float(value) for name, value in entry.items()}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]


def _stop_when_diverged() -> Any:
    class StopWhenDiverged(transformers().TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            for name, value in (logs or {}).items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(
                        f"training diverged: {name} is {value} at step {state.global_step} of {state.max_steps}; "
                        "lower learning_rate"
                    )

    return StopWhenDiverged()
