"""The third job: score a reference on preference pairs, sample it if there is a reward, and judge it before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from precede.data.preferences import Preference, PreferenceData, Refused, read_preferences
from precede.evaluate import signals
from precede.evaluate.measure import Goal, Measured, Progress, check_room, longest, measure, threshold_and_advantage
from precede.evaluate.signals import Estimate, Pairs
from precede.evaluate.verdict import Verdict, judge, rank
from precede.models.load import load_tokenizer, pick_device
from precede.rewards import Reward, load_reward, load_reward_model, users_reward

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
) -> Audit:
    """Say of each reference in `models` whether it can be aligned to the preferences in `data`; the best comes first.

    `models` and `teacher` (the model before distillation) are folders, Hugging Face ids or `bundled:smollm2-135m-instruct`.
    `data`, `columns`, `split` and `limit` are those of `precede.data.preferences.read_preferences`; or give what it returned,
    for models of one tokenizer. `reward` is a function `f(prompts=…, completions=…)` (`rewards.users_reward`) or its name
    (`load_reward`), `reward_model` a sequence classifier. With either, `samples` completions of every prompt are drawn, of at
    most `max_new_tokens` tokens (default: what 95 % of the chosen completions fit in); one is desirable when its reward is at
    least `target_reward`, by default the median reward of the chosen. `beta` is the price of KL that alignment will pay, in
    units of the reward (without one, desirable completions are worth Δ = 1). Everything is in fp32. Pairs that one of the
    models cannot use are left out for all. `progress` hears model, rows done, rows in all.

    Raises ValueError, one sentence, for what is wrong with the input, and for a model whose scores are not finite.
    """
    names = _distinct([models] if isinstance(models, str) else models)
    _check(names, reward, reward_model, beta, samples, max_new_tokens)
    torch_device = pick_device(device)
    judge_by: Reward | None = None
    if reward_model is not None:
        judge_by = load_reward_model(reward_model, torch_device)
    elif reward is not None:
        judge_by = (
            load_reward(reward) if isinstance(reward, str) else users_reward(reward, getattr(reward, "__name__", "f"))
        )
    everyone = _distinct([*names, *([teacher] if teacher is not None else [])])
    loaded: dict[str, PreferenceData] = {}
    for name in everyone:  # all inputs are read before the first model is scored
        if isinstance(data, PreferenceData):
            loaded[name] = data
            continue
        tokenizer = load_tokenizer(name)
        try:
            loaded[name] = read_preferences(
                data, tokenizer, columns=columns or {}, limit=limit, split=split, max_length=longest(name)
            )
        except ValueError as error:
            raise ValueError(f"{error} (read for {name})" if len(everyone) > 1 else str(error)) from None
    refused = {entry.row: (name, entry) for name in reversed(everyone) for entry in loaded[name].refused}
    rows = {name: [row for row in read.rows if row.row not in refused] for name, read in loaded.items()}
    found = audit_rows(
        names,
        rows,
        loaded[names[0]],
        teacher=teacher,
        reward=judge_by,
        target_reward=target_reward,
        beta=beta,
        samples=samples,
        max_new_tokens=max_new_tokens,
        device=torch_device,
        seed=seed,
        progress=progress,
    )
    asked = {"columns": dict(columns or {}), "limit": limit, "split": split, "reward_model": reward_model}
    asked["reward"] = reward if isinstance(reward, str) else getattr(reward, "__name__", None)
    return replace(found, refused=list(refused.values()), settings=found.settings | asked)


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
) -> Audit:
    """`audit` on rows that were read already, `rows[model]` as its tokenizer writes them, of `names` and the teacher."""
    everyone = _distinct([*names, *([teacher] if teacher is not None else [])])
    if not rows[names[0]]:
        raise ValueError(f"{data.source} has no row that every model can use; audit the models one by one to see why")
    goal, advantage = None, 1.0
    if reward is not None:
        target_reward, advantage = threshold_and_advantage(reward, rows[names[0]], target_reward)
        length = max_new_tokens or int(np.quantile([len(row.chosen) for row in rows[names[0]]], 0.95))
        goal = Goal(reward, target_reward, samples, max(length, 2), seed)
        check_room(rows, goal)
    measured = {name: measure(name, rows[name], goal, device, progress) for name in everyone}
    above = next((name for name in everyone if teacher is not None and _same(name, teacher)), None)
    teacher_measured = None if above is None else measured[above]
    teacher_numbers = None if teacher_measured is None else _numbers(teacher_measured, None, goal, advantage, beta)[1]
    found = []
    for name in names:
        is_teacher = name == above
        pairs, numbers = _numbers(measured[name], None if is_teacher else teacher_measured, goal, advantage, beta)
        verdict = judge(numbers, None if is_teacher else teacher_numbers, beta=beta, advantage=advantage)
        found.append(Candidate(name, numbers, pairs, measured[name].rows, verdict))
    order = rank([candidate.numbers for candidate in found], [candidate.verdict for candidate in found])
    settings = {
        "data": data.source,
        "teacher": teacher,
        "beta": beta,
        "advantage": advantage,
        "reach_nats": advantage / beta,
        "target_reward": target_reward if goal is not None else None,
        "samples_per_prompt": samples if goal is not None else None,
        "max_new_tokens": goal.max_new_tokens if goal is not None else None,
        "seed": seed,
        "device": str(device),
        "scoring": {name: one.path for name, one in measured.items()},
    }
    notes = list(data.notes)
    if advantage / beta > WIDE and goal is not None:
        notes.append(
            f"Δ/β is {advantage / beta:.0f} nats: with so wide a reach the achievable mass is close to 1 for any reference "
            "that meets the target at all; is β in the units of this reward?"
        )
    refused = [(names[0], one) for one in data.refused]
    return Audit([found[place] for place in order], teacher, teacher_numbers, data.source, refused, settings, notes)


def _distinct(models: Sequence[str]) -> list[str]:
    """The models, each once, however its folder is written."""
    found: list[str] = []
    for model in models:
        if not any(_same(model, other) for other in found):
            found.append(model)
    return found


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    paths = [Path(name).expanduser() for name in (one, other)]
    return all(path.is_dir() for path in paths) and paths[0].resolve() == paths[1].resolve()


def _check(
    names: Sequence[str], reward: object, reward_model: object, beta: float, samples: int, max_new_tokens: int | None
) -> None:
    if not names:
        raise ValueError("no model was given to audit; name at least one")
    if reward is not None and reward_model is not None:
        raise ValueError("give a reward or a reward model, not both")
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta is {beta}, but it must be above 0 and finite")
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but it must be at least 1")


def _numbers(
    own: Measured, teacher: Measured | None, goal: Goal | None, advantage: float, beta: float
) -> tuple[Pairs, dict[str, Estimate]]:
    pairs = signals.pairs(own.scores, None if teacher is None else teacher.scores)
    numbers = signals.summary(pairs, advantage / beta)
    if own.sampled is not None and goal is not None:
        numbers |= signals.sampled_summary(own.sampled, goal.target_reward, advantage, beta)
    return pairs, numbers
