"""What the TRL trainers share: their arguments, silence, seeds, and the stop when training diverges."""

from __future__ import annotations

import difflib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from precede.files import is_sealed, seal
from precede.libraries import datasets, environment, quiet, renamed, tiles, transformers
from precede.seeding import seeded
from precede.stages.processes import PATIENCE_SECONDS, wait

OURS = {
    **dict.fromkeys(("output_dir", "resume_from_checkpoint", "push_to_hub"), "its folder is the store's"),
    **dict.fromkeys(("logging_steps", "logging_strategy"), "every step is logged, as costs are counted by it"),
    **dict.fromkeys(
        ("eval_strategy", "eval_on_start", "load_best_model_at_end"),
        "a stage has no rows to evaluate on; what it leaves is measured",
    ),
    **dict.fromkeys(("eos_token", "pad_token", "chat_template_path"), "a model keeps the tokenizer that it has"),
    **dict.fromkeys(("report_to", "run_name"), "report_to of the recipe names trackers"),
    "reward_weights": "there is one reward",
}
"""Arguments that no stage may be given, and why."""
UNREPEATABLE = {"step_time"}
"""What trainers log that differs from run to run."""

SECONDS = "seconds.json"
"""In what is kept between kills: the time that the stage had taken when it was kept."""

Log = list[dict[str, float]]
"""What a trainer logged, one entry per step."""


@dataclass(frozen=True)
class Checkpoints:
    """What a training leaves on the disk, so that it goes on after a kill: everything is in `folder`.

    A checkpoint every `save_steps` steps (the two last are kept; sealed, as all that is kept between kills), `metrics.jsonl`
    with what was logged so far under TRL's names, and at the end the adapter, or what several processes trained, in
    `folder/model`. `report_to` names trackers as transformers does, tensorboard's files go to `logs`; `progress` hears steps
    done and steps in all.
    """

    folder: Path
    logs: Path
    report_to: tuple[str, ...] = ()
    run_name: str = "precede"
    progress: Callable[[int, int], None] = lambda done, total: None
    logged: Callable[[int, Mapping[str, float]], None] = lambda step, logs: None
    """Hears every step that is logged, in each process; may raise ValueError to stop the training."""
    spent: Callable[[], Mapping[str, float]] = dict
    """Seconds that the stage has taken so far, as `Cost` names them."""

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def keep(self, folder: Path) -> None:
        """Seal a folder that the stage may go on from after a kill, with the time that it took so far."""
        (folder / SECONDS).write_text(json.dumps(dict(self.spent())), "ascii")
        seal(folder)


@dataclass(frozen=True)
class TrainerSettings:
    """What a stage says about training: peak learning rate, rows per step, optimiser steps, and more arguments.

    `dtype` is `auto`, `float32` or `bfloat16`: the precision of the trainer's arithmetic; weights are fp32. With `steps` at −1
    the trainer counts epochs (`num_train_epochs` in `extra`). `peft` is a PEFT configuration: an adapter is trained in place of
    the weights. `device` is where the trainer takes the model to, by default where it is. With `checkpoints`, the training
    survives its process.
    """

    learning_rate: float
    batch_size: int
    steps: int
    seed: int
    dtype: str = "auto"
    extra: Mapping[str, Any] | None = None
    device: torch.device | None = None
    peft: Any | None = None
    checkpoints: Checkpoints | None = None


def train(
    make: Callable[..., Any], config: type, settings: TrainerSettings, device: torch.device, **arguments: Any
) -> Log:
    """Build a trainer with `make(args)` and train it; returns what it logged, one entry per logged step.

    Dropout is off. With dtype `auto`, fp32 on the CPU and bf16 autocast over fp32 weights on CUDA cards that have it. Without
    `settings.checkpoints` nothing is written outside a temporary folder and nothing is reported anywhere; with it, the training
    goes on from the last whole checkpoint of its folder. The same settings and seed give the same weights on the same machine.
    Raises ValueError for arguments that the trainer does not know, and when a logged number is not finite.
    """
    extra, checkpoints, device = dict(settings.extra or {}), settings.checkpoints, settings.device or device
    check_extra(config, extra, arguments)
    # transformers 5 renamed it and warns of the old name, which TRL sets to True
    old, new = "gradient_checkpointing", "activation_checkpointing"
    checkpointing = new if hasattr(config, new) else old
    if old in extra:
        extra[checkpointing] = extra.pop(old)
    with (
        nullcontext(checkpoints.folder) if checkpoints else tempfile.TemporaryDirectory(prefix="precede-") as folder,
        environment(TENSORBOARD_LOGGING_DIR=str(checkpoints.logs)) if checkpoints else nullcontext(),
        quiet(),
        renamed(),
        seeded(settings.seed),
    ):
        defaults = {"output_dir": str(folder), "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
        defaults |= {"logging_steps": 1, "logging_nan_inf_filter": False, checkpointing: False}
        defaults |= {"learning_rate": settings.learning_rate, "per_device_train_batch_size": settings.batch_size}
        defaults |= {"max_steps": settings.steps, "seed": settings.seed, "bf16": in_bf16(settings.dtype, device)}
        defaults |= {"use_cpu": device.type == "cpu", "dataloader_pin_memory": device.type == "cuda"}
        if checkpoints:
            defaults |= {"save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 2}
            defaults |= {
                "report_to": list(checkpoints.report_to),
                "run_name": checkpoints.run_name,
                "ddp_timeout": PATIENCE_SECONDS,
            }
        try:
            args = config(**{**defaults, **arguments, **extra})
        except TypeError as error:
            raise ValueError(f"trainer: {error}") from None
        if args.n_gpu > 1:
            args._n_gpu = 1  # one process trains on one GPU: TRL refuses to spread a model over several
        trainer = make(args)
        _without_dropout(trainer.model)
        trainer.remove_callback(transformers().PrinterCallback)
        trainer.add_callback(_watch(trainer, checkpoints))
        with tiles(trainer.model.get_output_embeddings().weight.shape[0]):
            trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints.folder) if checkpoints else None)
        if checkpoints and (settings.peft is not None or args.world_size > 1):
            trainer.save_model(str(checkpoints.model))  # of several processes none has the whole model
        return [
            {name: float(entry[name]) for name in sorted(entry) if name not in UNREPEATABLE}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]


def train_on(
    columns: Mapping[str, Any],
    trainer: Callable[..., Any],
    config: type,
    models: tuple[Any, ...],
    tokenizer: Any,
    settings: TrainerSettings,
    **arguments: Any,
) -> Log:
    """`train` the first of `models` by TRL's `trainer`, which takes them all, on data with these columns."""
    data = datasets().Dataset.from_dict(columns)
    given = {"train_dataset": data, "processing_class": tokenizer, "peft_config": settings.peft}
    return train(lambda args: trainer(*models, args=args, **given), config, settings, models[0].device, **arguments)


def on_ids(trainer: Any) -> Any:
    """The trainer, on the columns that its own preparation (which tokenises text and appends EOS) would make."""

    class OnIds(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    return OnIds


def last_checkpoint(folder: Path) -> str | None:
    """The latest checkpoint in `folder` that is sealed: others were cut short, and damaged ones are gone (`Store.mend`)."""
    whole = [str(path) for path in folder.glob("checkpoint-*") if is_sealed(path)]
    return max(whole, key=lambda path: int(path.rpartition("-")[2]), default=None)


def seconds_kept(folders: Iterable[Path]) -> dict[str, float]:
    """Seconds that a stage had taken, in processes that were killed, when it last kept one of these (`Checkpoints.keep`)."""
    kept = [json.loads((folder / SECONDS).read_text("ascii")) for folder in folders]
    return max(kept, key=lambda seconds: seconds["wall_seconds"], default={})


def check_extra(config: Any, extra: Mapping[str, Any], arguments: Iterable[str] = ()) -> None:
    """Raise ValueError for an argument that the trainer's config does not know, or that the stage gives (`arguments`)."""
    for name in sorted(extra):
        if name in OURS or name in arguments:
            why = OURS.get(name, "it follows from the stage's own settings")
            raise ValueError(f"trainer.{name} cannot be passed through; {why}")
        known = [field.name for field in fields(config) if field.init]
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"trainer.{name} is no argument of TRL's {config.__name__}{hint}")


def _without_dropout(model: nn.Module) -> None:
    """Turn dropout off: alignment compares log-probabilities of one model at two times, and noise is no difference.

    TRL's own switch knows modules only; Llama and its like keep a rate for their attention as a number.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010


def in_bf16(dtype: str, device: torch.device) -> bool:
    """Whether a stage trains in bf16. Raises ValueError where it is asked for and the device lacks it."""
    supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if dtype == "bfloat16" and not (supported or device.type == "cpu"):
        raise ValueError(f"dtype bfloat16 is not supported on the device '{device.type}'; use 'auto' or 'float32'")
    return supported if dtype == "auto" else dtype == "bfloat16"


def _watch(trainer: Any, checkpoints: Checkpoints | None) -> Any:
    class Watch(transformers().TrainerCallback):  # type: ignore[misc]
        """Stops a training that diverges. Where something is kept, seals the checkpoints and writes `metrics.jsonl`: what was
        logged, a line per step, begun anew from the checkpoint where a training goes on."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for tokens in (entry["num_tokens"] for entry in reversed(state.log_history) if "num_tokens" in entry):
                trainer._total_train_tokens = int(tokens)  # TRL's running sum, which its checkpoints do not hold
                break
            if checkpoints and state.is_world_process_zero:
                lines = "".join(json.dumps(entry) + "\n" for entry in state.log_history)
                (checkpoints.folder / "metrics.jsonl").write_text(lines, "utf-8")
                checkpoints.progress(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            for name, value in (logs or {}).items():
                if isinstance(value, float) and not math.isfinite(value):
                    steps = f"step {state.global_step} of {state.max_steps}"
                    raise ValueError(f"training diverged: {name} is {value} at {steps}; lower learning_rate")
            if checkpoints:
                checkpoints.logged(state.global_step, logs or {})
            if checkpoints and state.is_world_process_zero:
                with (checkpoints.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if checkpoints:
                wait()  # each process writes its part
            # a trainer that begins at its last step takes one more, so that one is not gone on from
            if checkpoints and state.is_world_process_zero and state.global_step < state.max_steps:
                checkpoints.keep(checkpoints.folder / f"checkpoint-{state.global_step}")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if checkpoints and state.is_world_process_zero:
                checkpoints.progress(state.global_step, state.max_steps)

    return Watch()
