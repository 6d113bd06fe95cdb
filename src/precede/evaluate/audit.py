"""The third job: score a reference on preference pairs, sample it if there is a reward, and judge it before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from precede.data.paths import path_of
from precede.data.preferences import Preference, PreferenceData, Refused, read_preferences, row_budget
from precede.data.sentences import bound
from precede.evaluate import signals
from precede.evaluate.blocks import Goal, Measured, Progress, measure
from precede.evaluate.examiner import rewards_of
from precede.evaluate.signals import Pairs
from precede.evaluate.verdict import Verdict, judge, rank
from precede.models.load import load_tokenizer, pick_device, read_config, read_generation_config, unreadable_weights
from precede.rewards import Reward, load_reward, load_reward_model, users_reward
from precede.sampling import eos_ids
from precede.settings.base import LEAST, MOST, MOST_OF_A_KIND
from precede.stats import Estimate
from precede.store import Store

WIDE = 20.0
"""Nats of reach beyond which achievable mass tells nothing."""


@dataclass(frozen=True)
class Candidate:
    """What the audit found of one model; `rows` are the pairs as its own tokenizer writes them."""

    model: str
    numbers: dict[str, Estimate]
    pairs: Pairs
    rows: list[Preference]
    verdict: Verdict


@dataclass(frozen=True)
class Audit:
    """The candidates, best first; the teacher's numbers if there was one; what the data had; the settings, resolved."""

    candidates: list[Candidate]
    teacher: str | None
    teacher_numbers: dict[str, Estimate] | None
    source: str
    refused: list[tuple[str, Refused]]
    """Rows that a model could not use, with the first model that could not."""
    settings: dict[str, Any]
    notes: list[str]


def audit(
    models: str | Sequence[str],
    data: str | PreferenceData,
    *,
    teacher: str | None = None,
    reward: str | Callable[..., Any] | None = None,
    reward_model: str | None = None,
    target_reward: float | None = None,
    beta: float = 0.1,
    samples: int = 4,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    device: str = "auto",
    seed: int = 0,
    progress: Progress = lambda name, done, total: None,
    tell: Callable[[str], None] = lambda message: None,
    store: Store | None = None,
) -> Audit:
    """Say of each reference in `models` whether it can be aligned to the preferences in `data`; the best comes first.

    `models` and `teacher` (the model before distillation) are folders, Hugging Face ids or `bundled:smollm2-135m-instruct`.
    `data`, `columns`, `split` and `limit` are those of `precede.data.preferences.read_preferences`; or give what it returned,
    for models of one tokenizer. `reward` is a function `f(prompts=…, completions=…)` (`rewards.users_reward`) or its name
    (`load_reward`), `reward_model` a sequence classifier. With either, `samples` completions of every prompt are drawn, of at
    most `max_new_tokens` tokens (default: what 95 % of the chosen completions fit in); one is desirable when its reward is at
    least `target_reward` (default: see `default_target`). `beta` is the price of KL that alignment will pay, in
    units of the reward (without one, desirable completions are worth Δ = 1). Everything is in fp32. Pairs that one of the
    models cannot use are left out for all. `progress` hears model, rows done, rows in all, `tell` what becomes of the rows.
    What was scored and sampled is kept in `store`, block by block, and taken from there.

    Raises ValueError, one sentence, for what is wrong with the input, and for a model whose scores are not finite.
    """
    names = _distinct([models] if isinstance(models, str) else models)
    numbers = {
        "beta": (beta, LEAST, MOST),
        "target_reward": (target_reward, -MOST, MOST),
        "samples": (samples, 1, 10_000),
    }
    numbers |= {"max_new_tokens": (max_new_tokens, 1, MOST_OF_A_KIND), "limit": (limit, 1, MOST_OF_A_KIND)}
    _check(names, reward, reward_model, target_reward, max_new_tokens, numbers)
    torch_device = pick_device(device)
    scorer: Reward | None = None
    if reward_model is not None:
        scorer = load_reward_model(reward_model, torch_device)
    elif isinstance(reward, str):
        scorer = load_reward(reward)
    elif reward is not None:
        scorer = users_reward(reward, getattr(reward, "__name__", "f"))
    everyone = _distinct(names if teacher is None else [*names, teacher])
    loaded: dict[str, PreferenceData] = {}
    for name in everyone:  # all inputs are read before the first model is scored
        if isinstance(data, PreferenceData):
            loaded[name] = data
            continue
        tokenizer = load_tokenizer(name)
        unreadable_weights(name)
        eos_ids(read_generation_config(name), tokenizer)
        try:
            loaded[name] = read_preferences(
                data, tokenizer, columns=columns or {}, limit=limit, split=split, max_length=longest(name)
            )
        except ValueError as error:
            raise ValueError(f"{error} (read for {name})" if len(everyone) > 1 else str(error)) from None
    refused = {entry.row: (name, entry) for name in reversed(everyone) for entry in loaded[name].refused}
    rows = {name: [row for row in read.rows if row.row not in refused] for name, read in loaded.items()}
    tell(row_budget(loaded.values(), [f"{len(rows[names[0]])} to audit on"]))
    result = audit_rows(
        names,
        rows,
        loaded[names[0]],
        teacher=teacher,
        reward=scorer,
        target_reward=target_reward,
        beta=beta,
        samples=samples,
        max_new_tokens=max_new_tokens,
        device=torch_device,
        seed=seed,
        progress=progress,
        store=store,
    )
    asked = {"columns": dict(columns or {}), "limit": limit, "split": split, "reward_model": reward_model}
    asked["reward"] = reward if isinstance(reward, str) else getattr(reward, "__name__", None)
    return replace(result, refused=list(refused.values()), settings=result.settings | asked)


def audit_rows(
    names: Sequence[str],
    rows: Mapping[str, list[Preference]],
    data: PreferenceData,
    *,
    teacher: str | None,
    reward: Reward | None,
    target_reward: float | None,
    beta: float,
    samples: int,
    max_new_tokens: int | None,
    device: torch.device,
    seed: int,
    progress: Progress,
    store: Store | None = None,
) -> Audit:
    """`audit` on rows that were read already, `rows[model]` as its tokenizer writes them, of `names` and the teacher."""
    if not rows[names[0]]:
        raise ValueError(f"{data.source} has no row that every model can use; audit the models one by one to see why")
    goal, advantage = None, 1.0
    if reward is not None:
        target_reward, advantage = threshold_and_advantage(reward, rows[names[0]], target_reward)
        length = max_new_tokens or int(np.quantile([len(row.chosen) for row in rows[names[0]]], 0.95))
        goal = Goal(reward, target_reward, samples, max(length, 2), seed)
        check_room(rows, goal)
    measured = {name: measure(name, rows[name], goal, device, progress, store) for name in _distinct(rows)}
    above = next((name for name in measured if teacher is not None and _same(name, teacher)), None)
    teacher_measured = None if above is None else measured[above]
    teacher_numbers = (
        None
        if teacher_measured is None
        else _numbers(teacher_measured, None, goal, advantage, beta, rows[str(above)])[1]
    )
    candidates = []
    for name in names:
        is_teacher = name == above
        below = None if is_teacher else teacher_measured
        pairs, numbers = _numbers(measured[name], below, goal, advantage, beta, rows[name])
        verdict = judge(numbers, None if is_teacher else teacher_numbers, beta=beta, advantage=advantage)
        candidates.append(Candidate(name, numbers, pairs, rows[name], verdict))
    order = rank([candidate.numbers for candidate in candidates], [candidate.verdict for candidate in candidates])
    settings: dict[str, Any] = {"data": data.source, "teacher": teacher, "beta": beta, "advantage": advantage}
    settings |= {"reach_nats": advantage / beta, "target_reward": goal and goal.target_reward}
    settings |= {"samples_per_prompt": goal and goal.samples, "max_new_tokens": goal and goal.max_new_tokens}
    settings |= {"seed": seed, "device": str(device), "scoring": {name: one.path for name, one in measured.items()}}
    notes = list(data.notes)
    if goal is not None and not any(
        (one >= goal.target_reward).any() for one in data_rewards(goal.reward, rows[names[0]])
    ):
        notes.append(
            f"no completion of the data has a reward of at least {goal.target_reward:g}; Δ is taken as {advantage:g}"
        )
    if advantage / beta > WIDE and goal is not None:
        notes.append(
            f"Δ/β is {advantage / beta:.0f} nats: with so wide a reach the achievable mass is close to 1 for any reference "
            "that meets the target at all; is β in the units of this reward?"
        )
    refused = [(names[0], one) for one in data.refused]
    return Audit([candidates[i] for i in order], teacher, teacher_numbers, data.source, refused, settings, notes)


def check_room(rows: Mapping[str, Sequence[Preference]], goal: Goal) -> None:
    """Raise ValueError where a model's context does not hold a prompt and the completion that is to be sampled."""
    for name, prompts in rows.items():
        limit, row = longest(name), max(prompts, key=lambda row: len(row.prompt))
        if limit is not None and len(row.prompt) + goal.max_new_tokens > limit:
            raise ValueError(
                f"the prompt of row {row.row} has {len(row.prompt)} tokens, which leaves no room for {goal.max_new_tokens} "
                f"more in the {limit} that {name} reads; lower --max-new-tokens, or leave the row out"
            )


def data_rewards(reward: Reward, rows: Sequence[Preference]) -> tuple[signals.Array, signals.Array]:
    """Rewards of the chosen and of the rejected completions, (rows,) each."""
    chosen = rewards_of(reward, rows, [row.chosen_text for row in rows], [row.chosen for row in rows])
    rejected = rewards_of(reward, rows, [row.rejected_text for row in rows], [row.rejected for row in rows])
    return np.array(chosen), np.array(rejected)


def default_target(chosen: signals.Array, rejected: signals.Array) -> float:
    """The reward from which a completion is desirable where nobody says: the median of the chosen.

    Where every completion of the data reaches that (of rewards 0 and 1 with few chosen at 1) it is the lowest reward above the
    least.
    """
    every, median = np.concatenate([chosen, rejected]), float(np.median(chosen))
    higher = every[every > every.min()]
    return median if median > every.min() or not len(higher) else float(higher.min())


def threshold_and_advantage(
    reward: Reward, rows: Sequence[Preference], target_reward: float | None
) -> tuple[float, float]:
    """The reward from which a completion is desirable, and Δ: what the desirable of the data are worth more than the rest.

    Where no completion of the data reaches a `target_reward` that is given, Δ is what separates it from their mean. Raises
    ValueError where the data do not tell the desirable from the rest.
    """
    chosen, rejected = data_rewards(reward, rows)
    every = np.concatenate([chosen, rejected])
    threshold = default_target(chosen, rejected) if target_reward is None else target_reward
    good = every >= threshold
    if not good.any():
        return threshold, threshold - float(every.mean())
    if good.all():
        raise ValueError(
            f"every completion of the data has a reward of at least {threshold:g}, so nothing tells the desirable from the "
            f"rest (rewards from {every.min():g} to {every.max():g}); give --target-reward, or in a recipe world.target_reward"
        )
    return threshold, float(every[good].mean() - every[~good].mean())


def longest(model: str) -> int | None:
    """Tokens that the model reads at most, by its configuration; None where it does not say."""
    limit: int | None = getattr(read_config(model), "max_position_embeddings", None)
    return limit


def _distinct(models: Iterable[str]) -> list[str]:
    """The models, each once, however its folder is written."""
    distinct: list[str] = []
    for model in models:
        if not any(_same(model, other) for other in distinct):
            distinct.append(model)
    return distinct


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    paths = [path_of(name) for name in (one, other)]
    return all(path.is_dir() for path in paths) and paths[0].resolve() == paths[1].resolve()


def _check(
    names: Sequence[str],
    reward: object,
    reward_model: object,
    target_reward: float | None,
    max_new_tokens: int | None,
    numbers: Mapping[str, tuple[float | None, float, float]],
) -> None:
    if not names:
        raise ValueError("no model was given to audit; name at least one")
    if reward is not None and reward_model is not None:
        raise ValueError("give a reward or a reward model, not both")
    if reward is None and reward_model is None and (target_reward is not None or max_new_tokens is not None):
        what = "target_reward" if target_reward is not None else "max_new_tokens"
        raise ValueError(f"{what} is of samples, which are drawn for a reward only; give a reward or a reward model")
    for name, (value, least, most) in numbers.items():
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} is {value}, but it must be from {bound(least)} to {bound(most)}")


def _numbers(
    measured: Measured,
    teacher: Measured | None,
    goal: Goal | None,
    advantage: float,
    beta: float,
    rows: Sequence[Preference],
) -> tuple[Pairs, dict[str, Estimate]]:
    pairs = signals.pairs(measured.scores, None if teacher is None else teacher.scores)
    numbers = signals.summary(pairs, advantage / beta)
    numbers["unigram_gain"] = signals.unigram_gain([[row.chosen, row.rejected] for row in rows], pairs)
    if measured.sampled is not None and goal is not None:
        numbers |= signals.sampled_summary(measured.sampled, goal.target_reward, advantage, beta)
    return pairs, numbers
