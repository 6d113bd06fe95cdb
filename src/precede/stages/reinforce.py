"""Reinforcement learning towards a reward with a price on KL, by TRL's RLOOTrainer and GRPOTrainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from precede.libraries import trainer_config, trl
from precede.models.load import folder
from precede.rewards import Ids, Prompt, text_of
from precede.stages.context import Amounts, Context, Models, Source, Trained, Work
from precede.stages.method import Config, Method
from precede.stages.running import checked_start, kl_at_start, load_trained, rows_per_step, sampled_amounts
from precede.stages.trainer import Log, TrainerSettings, train_on

Rewards = Callable[..., list[float]]
"""As TRL calls it, by name: `prompts` and `completions` (texts or messages), `completion_ids` and more → one reward each."""


def reinforce(
    method: str,
    policy: Any,
    reference: Source,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    rewards: Rewards,
    settings: TrainerSettings,
    *,
    beta: float,
    max_new_tokens: int,
) -> Log:
    """Train `policy` in place by `rloo` or `grpo`; returns the log, one entry per optimiser step.

    Each round samples `settings.batch_size` completions at temperature 1, TRL's `num_generations` of each of some `prompts`
    (texts or messages; one entry is one prompt of a round), and takes `num_iterations` steps on them, with the probability
    ratio clipped to 1 ± `epsilon`. β is the price of KL in reward units per nat of the whole completion, and rewards are
    neither scaled nor normalised, so that β keeps its unit. `rewards` hears the number of each prompt as `prompt_number`.

    - `rloo` (Ahmadian et al. 2024): sequence-level ratio; the KL stands inside the reward, R − β·log(π/π_ref), and the
      baseline is the mean of the group's other completions. Its optimum is the tilt π_ref·exp(R/β).
    - `grpo` (Shao et al. 2024) without its division by length and by standard deviation (Liu et al. 2025): token-level
      ratio; β times the KL of each token's distribution is added to the loss, its estimate weighted by the probability
      ratio so that the gradient is that of KL(π ‖ π_ref) of the token. A token's KL is not charged to the tokens before
      it, so that its optimum is close to the tilt but not the tilt.

    The trainer loads its reference from the folder or id `reference`; with an adapter (`settings.peft`) the reference is the
    policy without it.
    """
    columns = {"prompt": list(prompts), "prompt_number": list(range(len(prompts)))}

    def reward(**given: Any) -> list[float]:
        return rewards(**given)

    trainer, config = getattr(trl(), f"{method.upper()}Trainer"), trainer_config(method.upper())
    fixed: dict[str, Any] = {"beta": beta, "max_completion_length": max_new_tokens}
    if method == "grpo":
        fixed |= {"loss_type": "dr_grpo", "scale_rewards": "none", "use_bias_correction_kl": True}
    name = policy.config._name_or_path
    policy.config._name_or_path = str(folder(str(reference)))  # where the trainer looks for the reference
    try:
        return train_on(columns, trainer, config, (policy, reward), tokenizer, settings, **fixed)
    finally:
        policy.config._name_or_path = name


def run(models: Models, config: Config, context: Context) -> Trained:
    """Align a model by one of them towards the stage's reward."""
    judge, rows = context.reward, context.rows
    assert judge is not None

    def rewards(
        prompts: list[Prompt], completions: list[Any], completion_ids: Ids, prompt_number: list[int], **_: Any
    ) -> list[float]:
        columns = [rows[number % len(rows)].columns for number in prompt_number]
        return judge(prompts, [text_of(completion) for completion in completions], completion_ids, columns)

    policy = load_trained(models.start, config)
    prompts = context.rounds(config["trainer"].get("gradient_accumulation_steps", 1))
    given = policy, models.reference, context.tokenizer, prompts, rewards, checked_start(models, config, context)
    log = reinforce(config["method"], *given, beta=config["beta"], max_new_tokens=context.max_new_tokens)
    start = kl_at_start(models, config, context, log)
    return Trained(policy, log, sampled_amounts(log, config), {"kl_at_start": start})


def _work(config: Config, amounts: Amounts) -> Work:
    """Every round is sampled, scored by policy and reference, and gone through `num_iterations` times."""
    trained = amounts.steps * rows_per_step(config) * amounts.tokens
    tokens = trained / config["trainer"].get("num_iterations", 1)
    return Work(trained, {"policy": tokens}, {"policy": tokens, "reference": tokens})


def _tilts(config: Config) -> bool:
    """Where samples are drawn as the model writes them."""
    return not {"temperature", "top_k", "top_p", "min_p"} & set(config["trainer"])


_ROWS = {"learning_rate": 5e-6, "per_device_train_batch_size": 8, "num_train_epochs": 1, "num_generations": 8}
_PROMPT = {"learning_rate": 1e-5, "per_device_train_batch_size": 32, "max_steps": 100}
_SMALL = {"learning_rate": 1e-3, "per_device_train_batch_size": 256, "max_steps": 120, "save_strategy": "no"}

RLOO = Method(
    name="rloo",
    kind="align",
    run=run,
    trainer="RLOO",
    fixed=("beta", "max_completion_length"),
    defaults={"rows": {"trainer": _ROWS}, "prompt": {"trainer": _PROMPT}, "small": {"trainer": _SMALL}},
    work=_work,
    needs_reward=lambda config: True,
    tilts=_tilts,
    compares=True,
    own_reference_only=True,
)
GRPO = replace(
    RLOO,
    name="grpo",
    trainer="GRPO",
    fixed=(*RLOO.fixed, "loss_type", "scale_rewards", "use_bias_correction_kl"),
)
