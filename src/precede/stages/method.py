"""A method of a stage as a record: what it reads, needs, fixes, costs, and how it is run. Registered in `registry.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from precede.stages.context import Amounts, Context, Models, Trained, Work

Config = Mapping[str, Any]
"""A stage's settings, resolved: those that its method reads, with every default filled in."""


@dataclass(frozen=True)
class Method:
    """One method. Nothing outside its file asks for it by name."""

    name: str
    kind: str
    """`sft`, `align` or `distill`."""
    run: Callable[[Models, Config, Context], Trained]
    trainer: str
    """TRL's trainer, as `precede.libraries.trainer_config` finds its class of arguments: `DPO`."""
    fixed: tuple[str, ...]
    """Its arguments that follow from the method or from the stage's own settings, and may not be passed through."""
    defaults: Mapping[str, Mapping[str, Any]]
    """What settings are where they are not given, by the shape of a world: `rows` (many prompts), `prompt` (one prompt) and
    `small` (models that are trained from scratch in seconds), each over `rows`. The key `trainer` holds TRL's arguments."""
    work: Callable[[Config, Amounts], Work]
    """Tokens by role, from the amounts that were measured or are expected."""
    reads: frozenset[str] = frozenset()
    """Settings of the stage that not every method of its kind reads."""
    needs_reward: Callable[[Config], bool] = lambda config: False
    needs_one_tokenizer: bool = False
    """Whether the teacher's tokenizer has to be the student's."""
    tilts: Callable[[Config], bool] = lambda config: False
    """Whether its optimum is the tilt π_ref·exp(R/β), so that the laws of `precede.theory` speak of it."""
    compares: bool = False
    """Whether it compares several completions of one prompt (TRL's `num_generations`)."""
    least_batch: int = 1
    """Rows that its trainer needs at once."""
    rows_per_example: int = 1
    """Sequences of a micro-batch for each of `per_device_train_batch_size`."""
    whole_logits: bool = False
    """Whether its trainer keeps logits of all tokens, in place of a tile at a time."""
    own_reference_only: bool = False
    """Whether an adapter can only be anchored to the model without it."""
