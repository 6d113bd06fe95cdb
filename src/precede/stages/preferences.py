"""Preference pairs, given or sampled, and DPO on them, by TRL's trainer (Rafailov et al. 2023)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from precede.libraries import trainer_config, trl
from precede.sampling import texts
from precede.stages.context import Amounts, Context, Models, Trained, Work, draw, look_at, mean_tokens
from precede.stages.method import Config, Method
from precede.stages.running import checked_start, kl_at_start, load_trained, rows_seen, steps_of
from precede.stages.trainer import Log, TrainerSettings, on_ids, train_on


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, as token ids; `chosen` was preferred."""

    chosen: list[int]
    rejected: list[int]
    couple: int = field(default=0, compare=False)
    """Which couple of the completions it was made of."""


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
    for index in range(0, len(completions) - 1, 2):
        gap = rewards[index] - rewards[index + 1]
        toss, flip = generator.random(), generator.random()
        if abs(gap) <= min_reward_gap:
            continue
        first_wins = gap > 0 if scale == 0 else toss < 1 / (1 + math.exp(max(-700.0, min(700.0, -gap / scale))))
        couple = [list(completions[index]), list(completions[index + 1])]
        chosen, rejected = couple if first_wins != (flip < flip_rate) else reversed(couple)
        pairs.append(Pair(chosen, rejected, index // 2))
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
    columns = {
        "prompt_ids": [list(prompt) for prompt in prompts],
        "chosen_ids": [pair.chosen for pair in pairs],
        "rejected_ids": [pair.rejected for pair in pairs],
    }
    trainer, config, models = on_ids(trl().DPOTrainer), trainer_config("DPO"), (policy, reference)
    return train_on(columns, trainer, config, models, tokenizer, settings, beta=coefficient, max_length=None)


def preference_coefficient(beta: float, scale: float) -> float:
    """DPO's coefficient for a price of KL β and labels of Bradley–Terry scale s: β/s, and β itself for labels without noise.

    Without noise no finite policy is optimal (every margin may grow for ever), and the coefficient is what TRL calls beta.
    """
    return beta / scale if scale > 0 else beta


@dataclass(frozen=True)
class Sampled:
    """Pairs and the prompts that they belong to; `drawn` completions were sampled or taken for them."""

    prompts: list[list[int]]
    pairs: list[Pair]
    drawn: int = 0
    tokens: float = 0.0
    """Mean tokens of what was drawn, prompts included."""


def pairs_of(models: Models, config: Config, context: Context) -> Sampled:
    """The pairs that a stage trains on, by its setting `pairs`.

    `given`: those of the data. `on_policy`: couples of completions of the reference; `seeded`: one of the reference and one of
    the model before distillation; `off_policy`: of the truth. Couples are ranked by the reward (`make_pairs`).
    """
    rows, kind = context.rows, config["pairs"]
    if kind == "given":
        return Sampled([row.prompt for row in rows], [Pair(row.chosen, row.rejected) for row in rows])
    assert context.reward is not None
    couples = config["samples_per_prompt"] // 2
    asked = [row for row in rows for _ in range(2 * couples)]
    prompts = [row.prompt for row in asked]
    if kind == "off_policy":
        assert context.draw_truth is not None
        drawn = context.draw_truth(len(asked), context.stream("samples"))
    elif kind == "seeded" and models.original is not None:
        sampled = draw(models.reference, prompts[::2], 1.0, "samples", context)
        seeds = draw(models.original, prompts[::2], 1.0, "seeds", context)
        drawn = [row for couple in zip(sampled, seeds, strict=True) for row in couple]
    else:
        drawn = draw(models.reference, prompts, 1.0, "samples", context)
    rewards = context.reward(
        [row.turns or row.prompt_text for row in asked],
        [texts(context.tokenizer, row.prompt, [ids])[0] for row, ids in zip(asked, drawn, strict=True)],
        drawn,
        [row.columns for row in asked],
    )
    noise = {name: config["preference"][name] for name in ("scale", "flip_rate")}
    gap, seed = config["min_reward_gap"], context.stream("labels")
    pairs = make_pairs(drawn, rewards, seed=seed, min_reward_gap=gap, **noise)
    return Sampled([prompts[2 * pair.couple] for pair in pairs], pairs, len(drawn), mean_tokens(prompts, drawn))


def run_on_pairs(
    models: Models,
    config: Config,
    context: Context,
    fit: Callable[[Any, Any | None, Any, Sequence[Sequence[int]], Sequence[Pair], TrainerSettings], Log],
) -> Trained:
    """Align a model by `fit` (policy, reference or None, tokenizer, prompts, pairs, settings) on the stage's pairs.

    Where no couple differs in reward there is nothing to learn (the sampling trap): the model stays as it is, or with
    `no_pairs: stop` a ValueError says so.
    """
    sampled = pairs_of(models, config, context)
    policy, pairs = load_trained(models.start, config), sampled.pairs
    if not pairs:
        if config["no_pairs"] == "stop":
            raise ValueError(
                f"none of the {sampled.drawn // 2} couples of samples differs in reward, so there is nothing to learn from "
                "(the sampling trap): align the model before distillation, or take pairs: given"
            )
        return Trained(policy, [], Amounts(0, 0, sampled.tokens, sampled.drawn), {"pairs": 0, "kl_at_start": 0.0})
    settings = checked_start(models, config, context)
    without_adapter = settings.peft is not None and models.anchored_to_itself
    reference = None if without_adapter else look_at(models.reference)
    log = fit(policy, reference, context.tokenizer, sampled.prompts, pairs, settings)
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    tokens = sampled.tokens or mean_tokens([prompt for prompt in sampled.prompts for _ in (0, 1)], sides)
    amounts = Amounts(len(pairs), steps_of(log), tokens, sampled.drawn)
    start = kl_at_start(models, config, context, log)
    return Trained(policy, log, amounts, {"pairs": len(pairs), "kl_at_start": start})


def run_dpo(models: Models, config: Config, context: Context) -> Trained:
    """DPO at price β; labels that were drawn by Bradley–Terry give its coefficient their scale."""
    scale = 0.0 if config["pairs"] == "given" else config["preference"]["scale"]
    coefficient = preference_coefficient(config["beta"], scale)
    return run_on_pairs(models, config, context, lambda *given: dpo(*given, coefficient=coefficient))


def work_on_pairs(config: Config, amounts: Amounts) -> Work:
    """Tokens of sampling and of training on pairs; completions of the truth are data that is there."""
    tokens = 2 * rows_seen(amounts.examples, config, amounts.steps) * amounts.tokens
    drawn = amounts.drawn * amounts.tokens
    sampled = {"on_policy": {"reference": drawn}, "seeded": {"reference": drawn / 2, "original": drawn / 2}}
    return Work(tokens, sampled.get(config["pairs"], {}), {"reference": tokens})


def ranks_samples(config: Config) -> bool:
    """Whether pairs are made by a reward."""
    return bool(config["pairs"] != "given")


def _tilts(config: Config) -> bool:
    """Where labels are drawn by Bradley–Terry and the loss is DPO's own."""
    changed = {"loss_type", "label_smoothing", "f_divergence_type"} & set(config["trainer"])
    return bool(ranks_samples(config) and config["preference"]["scale"] > 0 and not changed)


_ROWS = {"learning_rate": 5e-6, "per_device_train_batch_size": 8, "num_train_epochs": 1}
_PROMPT = {"learning_rate": 5e-5, "per_device_train_batch_size": 8, "max_steps": 16}
_SMALL = {"learning_rate": 3e-4, "per_device_train_batch_size": 128, "max_steps": 100, "save_strategy": "no"}

DPO = Method(
    name="dpo",
    kind="align",
    run=run_dpo,
    trainer="DPO",
    fixed=("beta", "max_length"),
    defaults={
        "rows": {"samples_per_prompt": 2, "trainer": _ROWS},
        "prompt": {"samples_per_prompt": 512, "trainer": _PROMPT},
        "small": {"samples_per_prompt": 8000, "trainer": _SMALL},
    },
    work=work_on_pairs,
    reads=frozenset({"pairs", "samples_per_prompt", "min_reward_gap", "preference", "no_pairs"}),
    needs_reward=ranks_samples,
    tilts=_tilts,
    rows_per_example=2,
)
