"""Reinforcement learning towards a reward with a price on KL, by TRL's RLOOTrainer and GRPOTrainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from precede.libraries import datasets, trainer_config, trl
from precede.rewards import Prompt
from precede.stages.trainer import Log, TrainerSettings, train

Rewards = Callable[..., list[float]]
"""As TRL calls it, by name: `prompts` and `completions` (texts or messages), `completion_ids` and more → one reward each."""


def reinforce(
    method: str,
    policy: Any,
    reference: Path,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    settings: TrainerSettings,
    *,
    beta: float,
    epochs: int,
    clip: float,
    group: int,
    max_new_tokens: int,
) -> Log:
    """Train `policy` in place by `rloo` or `grpo`; returns the log, one entry per optimiser step.

    Each of `settings.steps` rounds samples `settings.batch_size` completions at temperature 1, `group` of each of some
    `prompts` (texts or messages; one entry is one prompt of a round), and takes `epochs` steps on them, with the
    probability ratio clipped to 1 ± `clip`. β is the price of KL in reward units per nat of the whole completion, and
    rewards are neither scaled nor normalised, so that β keeps its unit.

    - `rloo` (Ahmadian et al. 2024): sequence-level ratio; the KL stands inside the reward, R − β·log(π/π_ref), and the
      baseline is the mean of the group's other completions. Its optimum is the tilt π_ref·exp(R/β).
    - `grpo` (Shao et al. 2024) without its division by length and by standard deviation (Liu et al. 2025): token-level
      ratio; β times the KL of each token's distribution is added to the loss, its estimate weighted by the probability
      ratio so that the gradient is that of KL(π ‖ π_ref) of the token. A token's KL is not charged to the tokens before
      it, so that its optimum is close to the tilt but not the tilt.

    The trainer loads its reference from the folder `reference`; with an adapter (`settings.peft`) the reference is the
    policy without it.
    """
    data = datasets().Dataset.from_dict({"prompt": list(prompts)})

    def reward(**given: Any) -> list[float]:
        return rewards(**given)

    trainer, own = {
        "rloo": (trl().RLOOTrainer, {}),
        "grpo": (
            trl().GRPOTrainer,
            {"loss_type": "dr_grpo", "scale_rewards": "none", "use_bias_correction_kl": True},
        ),
    }[method]
    name = policy.config._name_or_path
    policy.config._name_or_path = str(reference)  # where the trainer looks for the reference
    try:
        return train(
            lambda args: trainer(
                policy,
                reward,
                args=args,
                train_dataset=data,
                processing_class=tokenizer,
                peft_config=settings.peft,
            ),
            trainer_config(method),
            replace(settings, steps=settings.steps * epochs),
            policy.device,
            beta=beta,
            num_generations=group,
            num_iterations=epochs,
            epsilon=clip,
            max_completion_length=max_new_tokens,
            **own,
        )
    finally:
        policy.config._name_or_path = name
