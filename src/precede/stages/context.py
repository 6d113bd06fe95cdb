"""What a stage of a language model works with, what it leaves, and the completions that it samples on the way."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from precede.data.preferences import Preference
from precede.metrics import Cost
from precede.models.load import load
from precede.rewards import Prompt, Reward
from precede.sampling import batch_size, sample_prompts
from precede.seeding import stream
from precede.stages.processes import count, index, wait, whole_weights
from precede.stages.trainer import Checkpoints, Log

BATCHES_PER_PART = 16
"""Batches of completions that are sampled under one seed and kept together."""
ROWS = "rows.json"

Source = str | Path
"""A model: a folder, or a Hugging Face id."""


@dataclass(frozen=True)
class Context:
    """What a stage works with beside its settings and its models."""

    name: str
    """The stage's name; random streams carry it, so that two stages of one order share no draws."""
    seed: int
    tokenizer: Any
    """Of the model that is trained; `rows` are as it writes them."""
    rows: Sequence[Preference]
    """Prompts to train on, with given pairs where there are any; one prompt in a world that has one."""
    reward: Reward | None
    max_new_tokens: int
    sample_batch: int
    """Completions sampled at once, at most."""
    device: torch.device
    dtype: str
    checkpoints: Checkpoints
    teacher_rows: Sequence[Preference] = ()
    """`rows` as the tokenizer of a distillation's teacher writes them."""
    completions: Sequence[tuple[list[int], list[int]]] | None = None
    """Prompts and completions that somebody else sampled, in place of the teacher's."""
    draw_truth: Callable[[int, int], list[list[int]]] | None = None
    """`count` completions of the truth to train on, a function of a seed; None where there are none to be had."""

    def stream(self, purpose: str) -> int:
        """The seed of a random stream of this stage."""
        return stream(self.seed, self.name, purpose)

    def rounds(self, completions: int) -> list[Prompt]:
        """Prompts of a trainer that samples by itself: all of them, or one as often as a step asks for it."""
        prompts = [row.turns or row.prompt_text for row in self.rows]
        return prompts * (completions if len(prompts) == 1 else 1)


@dataclass(frozen=True)
class Models:
    """The models of a stage, each a folder or an id: what is trained, what it (or its teacher) is anchored to, what it learns
    from."""

    start: Source
    reference: Source
    teacher: Source | None = None
    """What a distillation learns from."""
    original: Source | None = None
    """The model before distillation, for pairs that are seeded by it."""

    @property
    def anchored_to_itself(self) -> bool:
        return str(self.start) == str(self.reference)


@dataclass(frozen=True)
class Work:
    """Tokens, prompts included, by the role of the model that they went through: policy, reference, teacher, original."""

    trained: float = 0.0
    sampled: Mapping[str, float] = field(default_factory=dict)
    scored: Mapping[str, float] = field(default_factory=dict)

    def cost(self, parameters: Mapping[str, int]) -> Cost:
        """What this costs where the models have these numbers of parameters."""
        cost = Cost()
        for role, tokens in self.sampled.items():
            cost.sample(parameters[role], tokens)
        for role, tokens in self.scored.items():
            cost.score(parameters[role], tokens)
        cost.train(parameters["policy"], self.trained)
        return cost


@dataclass(frozen=True)
class Amounts:
    """What decides the work of a method: examples that the trainer goes through, optimiser steps, mean tokens of an example
    with its prompt, and completions that were sampled beforehand."""

    examples: float
    steps: int
    tokens: float
    drawn: float = 0.0


@dataclass
class Trained:
    """What a stage leaves: the model (None where it is an adapter, or cut over processes, and lies in the checkpoints), the
    trainer's log, what the method did, and facts about it, which are metrics
    (`pairs`, `kl_at_start`)."""

    model: Any
    log: Log
    amounts: Amounts
    facts: dict[str, float] = field(default_factory=dict)


def mean_tokens(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> float:
    """Mean tokens of prompt and completion, padding not counted."""
    return (sum(map(len, prompts)) + sum(map(len, completions))) / max(len(completions), 1)


def draw(
    source: Source,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    purpose: str,
    context: Context,
    change: Callable[[Any], None] = lambda model: None,
) -> list[list[int]]:
    """One completion of each prompt (token ids) by the model at `source`, kept in the stage's folder, a part at a time.

    `change` is done to the model first. What is there already is not sampled again. Each process samples its share of the
    parts; the seed of a part is its own, so that completions depend neither on the number of processes nor on a kill between
    parts.
    """
    folder = context.checkpoints.folder / f"samples-{purpose}"
    folder.mkdir(parents=True, exist_ok=True)
    length = context.max_new_tokens
    batch = batch_size(max(map(len, prompts)) + length, context.sample_batch)
    size = BATCHES_PER_PART * batch
    starts = range(0, len(prompts), size)
    parts = [folder / f"{number:06d}" for number in range(len(starts))]
    if missing := [n for n, part in enumerate(parts) if n % count() == index() and not part.exists()]:
        with whole_weights():
            model, tokenizer = load(source, context.device)
            change(model)
        for number in missing:
            seed = context.stream(purpose if number == 0 else f"{purpose}/{number}")
            asked = prompts[starts[number] : starts[number] + size]
            rows = sample_prompts(
                model, tokenizer, asked, max_new_tokens=length, temperature=temperature, seed=seed, batch_size=batch
            )
            scratch = Path(tempfile.mkdtemp(dir=context.checkpoints.folder))
            (scratch / ROWS).write_text(json.dumps(rows), "utf-8")
            context.checkpoints.keep(scratch)
            scratch.rename(parts[number])
            context.checkpoints.progress(number + 1, len(parts))
    wait()
    return [row for part in parts for row in json.loads((part / ROWS).read_text("utf-8"))]


def look_at(source: Source) -> Any:
    """A reference or a teacher: a model that is looked at and not trained, whole in every process."""
    with whole_weights():
        return load(source)[0]
