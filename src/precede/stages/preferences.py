"""Direct preference optimisation on sampled pairs, by TRL's DPOTrainer (Rafailov et al. 2023, eq. 7)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from precede.libraries import datasets, trainer_config, trl
from precede.stages.trainer import Log, TrainerSettings, train


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, as token ids; `chosen` was preferred."""

    chosen: list[int]
    rejected: list[int]


def make_pairs(
    completions: Sequence[Sequence[int]],
    rewards: Sequence[float],
    *,
    seed: int,
    min_reward_gap: float = 0.0,
    scale: float = 0.0,
    flip_rate: float = 0.0,
) -> list[Pair]:
    """Preference pairs from couples of completions: the first with the second, the third with the fourth, and so on.

    A couple whose rewards differ by `min_reward_gap` or less is a tie and left out. Of n couples with a 0/1 reward of
    mass m, 2m(1 − m)n are left: rare hits make few pairs, and none at all with probability (1 − 2m(1 − m))^n. The first
    is chosen with probability σ((R₁ − R₂)/scale) (Bradley & Terry 1952), or where it has the higher reward if `scale` is
    0; then a share `flip_rate` of labels is turned round.
    """
    generator = random.Random(seed)
    pairs = []
    for place in range(0, len(completions) - 1, 2):
        gap = rewards[place] - rewards[place + 1]
        toss, flip = generator.random(), generator.random()
        if abs(gap) <= min_reward_gap:
            continue
        first_wins = gap > 0 if scale == 0 else toss < 1 / (1 + math.exp(max(-700.0, min(700.0, -gap / scale))))
        if flip < flip_rate:
            first_wins = not first_wins
        both = [list(completions[place]), list(completions[place + 1])]
        pairs.append(Pair(*both) if first_wins else Pair(*reversed(both)))
    return pairs


def dpo(
    policy: Any,
    reference: Any | None,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    pairs: Sequence[Pair],
    settings: TrainerSettings,
    *,
    coefficient: float,
) -> Log:
    """Train `policy` in place towards the chosen completions of `pairs[i]` after `prompts[i]`; returns the log.

    Loss −log σ(c·[log π/π_ref(chosen) − log π/π_ref(rejected)]). With labels of Bradley–Terry scale s the coefficient
    c = β/s makes its optimum the tilt π_ref·exp(R/β), β being the price of KL; see `preference_coefficient`. The log has
    the absolute log-probabilities too (`logps/chosen`, `logps/rejected`): the margin can grow while the chosen one falls.
    `reference` is given as a model, never looked up by the trainer, and must be another object than `policy`; None, which
    needs an adapter (`settings.peft`), takes the policy without its adapter. The trainer is given ids: what was sampled is
    what is compared, a completion cut at its length gets no EOS.
    """
    assert reference is not None or settings.peft is not None
    data = datasets().Dataset.from_dict(
        {
            "prompt_ids": [list(prompt) for prompt in prompts],
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
        }
    )

    class IdsDPOTrainer(trl().DPOTrainer):  # type: ignore[misc]
        """DPOTrainer on the columns that its own preparation (which tokenises text and appends EOS) would make."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    return train(
        lambda args: IdsDPOTrainer(
            policy, reference, args=args, train_dataset=data, processing_class=tokenizer, peft_config=settings.peft
        ),
        trainer_config("dpo"),
        settings,
        policy.device,
        beta=coefficient,
        max_length=None,
    )


def preference_coefficient(beta: float, scale: float) -> float:
    """DPO's coefficient for a price of KL β and labels of Bradley–Terry scale s: β/s, and β itself for labels without noise.

    Without noise no finite policy is optimal (every margin may grow for ever), and the coefficient is what TRL calls beta.
    """
    return beta / scale if scale > 0 else beta
