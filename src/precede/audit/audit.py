"""The third job: score a reference on preference pairs, sample it if there is a reward, and judge it before any training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from precede.audit import signals
from precede.audit.signals import Estimate, Pairs
from precede.audit.verdict import Verdict, judge, rank
from precede.lm.data import Preference, PreferenceData, read_preferences
from precede.lm.logprobs import Score, score
from precede.lm.models import load, load_tokenizer, pick_device, read_config
from precede.lm.rewards import PairReward, checked, load_reward, load_reward_model
from precede.lm.sampling import eos_ids, sample_prompts, texts

Progress = Callable[[str, int, int], None]
"""Hears what is done: the model's name, rows finished of it, rows in all."""


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
    """The candidates, best first; the teacher's numbers if there was one; the data as it was read."""

    candidates: list[Candidate]
    teacher: str | None
    teacher_numbers: dict[str, Estimate] | None
    data: PreferenceData
    settings: dict[str, Any]
    notes: list[str]


@dataclass(frozen=True)
class _Goal:
    """The reward, what counts as desirable, and how the models are sampled for it."""

    reward: PairReward
    target_reward: float
    samples: int
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class _Measured:
    name: str
    rows: list[Preference]
    scores: list[list[Score]]
    sampled: signals.Sampled | None


def audit(
    models: str | Sequence[str],
    data: str | PreferenceData,
    *,
    teacher: str | None = None,
    reward: str | Callable[[Sequence[str], Sequence[str]], Any] | None = None,
    reward_model: str | None = None,
    target_reward: float | None = None,
    beta: float = 0.1,
    samples: int = 4,
    max_new_tokens: int = 128,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    device: str = "auto",
    seed: int = 0,
    progress: Progress = lambda name, done, total: None,
) -> Audit:
    """Say of each reference in `models` whether it can be aligned to the preferences in `data`; the best comes first.

    `models` and `teacher` (the model before distillation) are folders, Hugging Face ids or `bundled:smollm2-135m-instruct`;
    `data`, `columns`, `split` and `limit` as in `precede.lm.data.read_preferences` (or what it returned, for models of one
    tokenizer). `reward` is a function of prompts and
    completions (texts) that returns numbers, or its name (`precede.lm.rewards.load_reward`); `reward_model` a sequence
    classifier. With either, `samples` completions of at most `max_new_tokens` tokens are drawn from every prompt; one is
    desirable when its reward is at least `target_reward`, by default the median reward of the chosen completions. `beta` is
    the price of KL that alignment will pay, in units of the reward (without a reward: desirable completions are worth Δ = 1).
    Everything is in fp32. Pairs that one of the models cannot use are left out for all. `progress` hears model, rows, total.

    Raises ValueError, one sentence, for what is wrong with the input.
    """
    names = [models] if isinstance(models, str) else list(dict.fromkeys(models))
    _check(names, reward, reward_model, beta, samples, max_new_tokens)
    place = pick_device(device)
    judge_by = None
    if reward_model is not None:
        judge_by = load_reward_model(reward_model, place)
    elif reward is not None:
        judge_by = (
            load_reward(reward) if isinstance(reward, str) else checked(reward, getattr(reward, "__name__", "reward"))
        )
    everyone = [*names, *([teacher] if teacher is not None and teacher not in names else [])]
    loaded: dict[str, PreferenceData] = {}
    for name in everyone:  # all inputs are read before the first model is scored
        if isinstance(data, PreferenceData):
            loaded[name] = data
            continue
        longest = getattr(read_config(name), "max_position_embeddings", None)
        loaded[name] = read_preferences(
            data, load_tokenizer(name), columns=columns or {}, limit=limit, split=split, max_length=longest
        )
    usable = set.intersection(*({row.row for row in read.rows} for read in loaded.values()))
    first = loaded[names[0]]
    if not usable:
        raise ValueError(
            f"{loaded[names[0]].source} has no row that every model can use; audit the models one by one to see why"
        )
    notes = [*first.notes]
    for name in everyone[1:]:
        if missing := {row.row for row in first.rows} - {row.row for row in loaded[name].rows}:
            notes.append(f"{len(missing)} rows are left out because {name} cannot use them, row {min(missing)} first")
    goal = None
    if judge_by is not None:
        target_reward, advantage = _worth(judge_by, [row for row in first.rows if row.row in usable], target_reward)
        goal = _Goal(judge_by, target_reward, samples, max_new_tokens, seed)
    else:
        advantage = 1.0
    measured = {
        name: _measure(name, [row for row in loaded[name].rows if row.row in usable], goal, place, progress)
        for name in everyone
    }
    above = measured[teacher] if teacher is not None else None
    teacher_numbers = None if above is None else _numbers(above, None, goal, advantage, beta)[1]
    found = []
    for name in names:
        other = above if name != teacher else None
        pairs, numbers = _numbers(measured[name], other, goal, advantage, beta)
        verdict = judge(numbers, teacher_numbers if other is not None else None, beta=beta, advantage=advantage)
        found.append(Candidate(name, numbers, pairs, measured[name].rows, verdict))
    order = rank([candidate.numbers for candidate in found], [candidate.verdict for candidate in found])
    settings = {
        "data": first.source,
        "teacher": teacher,
        "beta": beta,
        "advantage": advantage,
        "reach_nats": advantage / beta,
        "target_reward": target_reward if goal is not None else None,
        "samples_per_prompt": samples if goal is not None else None,
        "max_new_tokens": max_new_tokens if goal is not None else None,
        "limit": limit,
        "split": split,
        "seed": seed,
        "device": str(place),
    }
    return Audit([found[place] for place in order], teacher, teacher_numbers, first, settings, notes)


def _check(
    names: Sequence[str], reward: object, reward_model: object, beta: float, samples: int, max_new_tokens: int
) -> None:
    if not names:
        raise ValueError("no model was given to audit; name at least one")
    if reward is not None and reward_model is not None:
        raise ValueError("give a reward or a reward model, not both")
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta is {beta}, but it must be above 0 and finite")
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} is {value}, but it must be at least 1")


def _worth(reward: PairReward, rows: Sequence[Preference], target_reward: float | None) -> tuple[float, float]:
    """The reward from which a completion is desirable, and Δ: what the desirable of the data are worth more than the rest."""
    prompts = [row.prompt_text for row in rows]
    chosen, rejected = (
        np.array(reward(prompts, side)) for side in ([r.chosen_text for r in rows], [r.rejected_text for r in rows])
    )
    every = np.concatenate([chosen, rejected])
    threshold = float(np.median(chosen)) if target_reward is None else target_reward
    good = every >= threshold
    if good.all() or not good.any():
        many = "every" if good.all() else "no"
        raise ValueError(
            f"{many} completion of the data has a reward of at least {threshold:g}, so nothing tells the desirable from the "
            f"rest (rewards from {every.min():g} to {every.max():g}); give --target-reward"
        )
    return threshold, float(every[good].mean() - every[~good].mean())


def _measure(name: str, rows: list[Preference], goal: _Goal | None, device: Any, progress: Progress) -> _Measured:
    model, tokenizer = load(name, device)
    total, done = len(rows) * (1 if goal is None else 1 + goal.samples), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(name, done, total)

    advance(0)
    pairs = [[row.chosen, row.rejected] for row in rows]
    scores = score(model, [row.prompt for row in rows], pairs, progress=advance)
    sampled = None if goal is None else _sample(model, tokenizer, rows, goal, advance)
    return _Measured(name, rows, scores, sampled)


def _sample(
    model: Any, tokenizer: Any, rows: Sequence[Preference], goal: _Goal, advance: Callable[[int], None]
) -> signals.Sampled:
    asked = [row for row in rows for _ in range(goal.samples)]
    drawn = sample_prompts(
        model,
        tokenizer,
        [row.prompt for row in asked],
        max_new_tokens=goal.max_new_tokens,
        seed=goal.seed,
        progress=advance,
    )
    written = [texts(tokenizer, row.prompt, [ids])[0] for row, ids in zip(asked, drawn, strict=True)]
    rewards = goal.reward([row.prompt_text for row in asked], written)
    ends, shape = eos_ids(model, tokenizer), (len(rows), goal.samples)
    return signals.Sampled(
        np.array(rewards).reshape(shape),
        np.array([len(ids) for ids in drawn], float).reshape(shape),
        np.array([ids[-1] in ends for ids in drawn]).reshape(shape),
    )


def _numbers(
    own: _Measured, teacher: _Measured | None, goal: _Goal | None, advantage: float, beta: float
) -> tuple[Pairs, dict[str, Estimate]]:
    pairs = signals.pairs(own.scores, None if teacher is None else teacher.scores)
    numbers = signals.summary(pairs, advantage / beta)
    if own.sampled is not None and goal is not None:
        numbers |= signals.sampled_summary(own.sampled, goal.target_reward, advantage, beta)
    return pairs, numbers
