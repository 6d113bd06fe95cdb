"""Kahneman–Tversky optimisation (Ethayarajh et al. 2024) by TRL's KTOTrainer, on pairs as desirable and undesirable rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from precede.libraries import trainer_config, trl
from precede.stages.context import Amounts, Context, Models, Trained, Work
from precede.stages.method import Config
from precede.stages.preferences import DPO, Pair, run_on_pairs, work_on_pairs
from precede.stages.running import rows_seen
from precede.stages.trainer import Log, TrainerSettings, on_ids, train_on


def kto(
    policy: Any,
    reference: Any | None,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    pairs: Sequence[Pair],
    settings: TrainerSettings,
    *,
    beta: float,
) -> Log:
    """Train `policy` in place: chosen completions of `pairs[i]` after `prompts[i]` are desirable, rejected ones are not.

    Loss 1 − σ(β·[log π/π_ref(y) − z]) for desirable y, 1 − σ(β·[z − log π/π_ref(y)]) for undesirable (eq. 8 there), with z
    the KL of the batch, estimated on completions behind the prompts of other rows. No reward enters it, and its optimum is not
    the tilt. Rows are shuffled by the seed and go through in that order: each prompt lends its KL the completion of the row
    before it in the batch.
    """
    rows = [
        (list(prompt), completion, label)
        for prompt, pair in zip(prompts, pairs, strict=True)
        for completion, label in ((pair.chosen, True), (pair.rejected, False))
    ]
    random.Random(settings.seed).shuffle(rows)
    size = settings.batch_size
    batches = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
    columns = {
        "prompt_ids": [prompt for prompt, _, _ in rows],
        "completion_ids": [completion for _, completion, _ in rows],
        "KL_completion_ids": [batch[index - 1][1] for batch in batches for index in range(len(batch))],
        "label": [label for _, _, label in rows],
    }
    trainer, config, models = on_ids(trl().KTOTrainer), trainer_config("KTO"), (policy, reference)
    return train_on(columns, trainer, config, models, tokenizer, settings, beta=beta, max_length=None)


def run(models: Models, config: Config, context: Context) -> Trained:
    """KTO at coefficient β on the stage's pairs."""
    return run_on_pairs(models, config, context, lambda *given: kto(*given, beta=config["beta"]))


def _work(config: Config, amounts: Amounts) -> Work:
    """Each row is trained on, scored by the reference, and scored by both once more behind another prompt."""
    rows = rows_seen(2 * amounts.examples, config, amounts.steps) * amounts.tokens
    return Work(rows, work_on_pairs(config, amounts).sampled, {"reference": 2 * rows, "policy": rows})


KTO = replace(
    DPO, name="kto", run=run, trainer="KTO", work=_work, tilts=lambda config: False, least_batch=2, rows_per_example=1
)
