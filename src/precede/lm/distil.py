"""Sequence distillation: maximum likelihood on samples of the teacher, by TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from precede.lm.libraries import datasets, trl
from precede.lm.training import TrainerSettings, train


def distil(
    student: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    settings: TrainerSettings,
) -> list[dict[str, float]]:
    """Train `student` in place on `completions` of `prompt` (token ids); returns the log, one entry per step.

    The loss is −Σ log p(token)/tokens over the completions of a batch, their EOS included; the prompt is context and
    not learned. The trainer is given ids and labels, so nothing is tokenised again, cut, or taken for padding: a
    tokenizer whose pad is its EOS still teaches the student to stop.
    """
    data = datasets().Dataset.from_dict(
        {
            "input_ids": [[*prompt, *row] for row in completions],
            "labels": [[-100] * len(prompt) + list(row) for row in completions],
        }
    )
    return train(
        lambda args: trl().SFTTrainer(student, args=args, train_dataset=data, processing_class=tokenizer),
        trl().SFTConfig,
        settings,
        student.device,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
