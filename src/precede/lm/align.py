"""Direct preference optimisation on on-policy pairs, by TRL's DPOTrainer (Rafailov et al. 2023, eq. 7)."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from precede.lm.libraries import datasets, trl
from precede.lm.logprobs import completion_logps
from precede.lm.training import TrainerSettings, train


@dataclass(frozen=True)
class Pair:
    """Two completions of the prompt, as token ids; `chosen` earned strictly more reward."""

    chosen: list[int]
    rejected: list[int]


def make_pairs(completions: Sequence[list[int]], rewards: Sequence[float], count: int, seed: int) -> list[Pair]:
    """At most `count` pairs from a pool of completions of one prompt.

    Every completion that something in the pool beats is rejected once, against one drawn evenly from those that earned
    strictly more; the pairs are then shuffled and the first `count` kept. With a 0/1 reward and k hits among n this
    gives n − k pairs, so that rare hits are used often and no comparison is a tie. Raises ValueError where all rewards
    are equal: no pair can be made. That is the sampling trap (`theory.hit_probability`).
    """
    order = sorted(range(len(completions)), key=lambda index: rewards[index])
    ranked = [rewards[index] for index in order]
    if not ranked or ranked[0] == ranked[-1]:
        raise ValueError(
            f"no preference pairs: all {len(ranked)} completions sampled from the reference earned the same reward"
            f"{f' ({ranked[0]:g})' if ranked else ''}; raise align.samples, or choose a reward that the reference meets"
        )
    generator = random.Random(seed)
    pairs = []
    for index in order:
        better = bisect_right(ranked, rewards[index])
        if better < len(order):
            winner = order[generator.randrange(better, len(order))]
            pairs.append(Pair(list(completions[winner]), list(completions[index])))
    generator.shuffle(pairs)
    return pairs[:count]


def gap_at_start(policy: Any, reference: Any, prompt: Sequence[int], pairs: Sequence[Pair]) -> float:
    """Largest |log π − log π_ref| over the completions of `pairs`, nats; 0 where the reference is the model itself."""
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    gaps = completion_logps(policy, prompt, rows) - completion_logps(reference, prompt, rows)
    return float(gaps.abs().max())


def align(
    policy: Any,
    reference: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    pairs: Sequence[Pair],
    settings: TrainerSettings,
    *,
    beta: float,
) -> list[dict[str, float]]:
    """Train `policy` in place towards the chosen completions; returns the log, one entry per step.

    Loss −log σ(β·[log π/π_ref(chosen) − log π/π_ref(rejected)]), β (price of KL, reward units per nat). The log has the
    absolute log-probabilities too (`logps/chosen`, `logps/rejected`): the margin can grow while the chosen one falls.
    `reference` is given as a model, never looked up by the trainer, and must be another object than `policy`. The
    trainer is given ids: what was sampled is what is compared, a completion cut at its length gets no EOS.
    """
    data = datasets().Dataset.from_dict(
        {
            "prompt_ids": [list(prompt)] * len(pairs),
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
        }
    )

    class IdsDPOTrainer(trl().DPOTrainer):  # type: ignore[misc]
        """DPOTrainer on the columns that its own preparation (which tokenises text and appends EOS) would make."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    return train(
        lambda args: IdsDPOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer),
        trl().DPOConfig,
        settings,
        policy.device,
        beta=beta,
    )
