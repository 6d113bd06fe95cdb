"""Preference pairs, and DPO by the real trainer on tiny models."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from precede.stages.preferences import Pair, dpo, make_pairs, preference_coefficient
from test_lm_tiny import (
    PROMPT,
    doubled,
    gradient,
    logps,
    one_sgd_step,
    relative_error,
    row_logps,
    rows_of,
    settings,
    stopping_model,
    tiny_model,
    tiny_tokenizer,
    weights,
)


def pairs_of(model: Any) -> list[Pair]:
    rows = rows_of(model)
    return make_pairs(rows, [float(bool({6, 7, 15} & set(row))) for row in rows], seed=2)


def couples(gap: float, count: int, **changes: Any) -> list[Pair]:
    """Couples of rewards (0, gap) and (gap, 0) in turn; the completion of reward gap is odd."""
    rows = [[index] for index in range(2 * count)]
    rewards = [0.0, gap, gap, 0.0] * (count // 2)
    for row, reward in zip(rows, rewards, strict=True):
        row[0] = 2 * row[0] + (reward > 0)
    return make_pairs(rows, rewards, **({"seed": 0} | changes))


def share_of_better(pairs: list[Pair]) -> float:
    return sum(pair.chosen[0] % 2 for pair in pairs) / len(pairs)


# ------------------------------------------------------------------------------------------------------- pairs


def test_couples_are_consecutive_and_the_better_is_chosen() -> None:
    rows = [[index] for index in range(9)]
    pairs = make_pairs(rows, [0.0, 1.0, 1.0, 0.0, 0.5, 0.5, 1.0, 0.2, 1.0], seed=0)
    assert pairs == [Pair([1], [0]), Pair([2], [3]), Pair([6], [7])]  # the third is a tie, the ninth has no partner
    assert make_pairs(rows, [1.0, 0.0] + [0.0] * 7, seed=5) == [Pair([0], [1])]
    assert make_pairs([[1]], [1.0], seed=0) == make_pairs([], [], seed=0) == []
    assert make_pairs(rows, [0.3] * 9, seed=0) == []


@pytest.mark.parametrize("mass", [0.02, 0.3])
def test_number_of_pairs(mass: float) -> None:
    """2m(1 − m)n of n couples within 4 standard errors of a binomial; a false alarm once in 10⁴."""
    generator, n = random.Random(0), 20_000
    rewards = [float(generator.random() < mass) for _ in range(2 * n)]
    pairs = make_pairs([[0]] * (2 * n), rewards, seed=0)
    share = 2 * mass * (1 - mass)
    assert abs(len(pairs) - share * n) < 4 * math.sqrt(share * (1 - share) * n)


@pytest.mark.parametrize(("scale", "gap"), [(0.5, 0.6), (0.5, 1.0), (2.0, 1.0), (0.1, 0.05)])
def test_labels_are_bradley_terry(scale: float, gap: float) -> None:
    """σ(gap/scale) within 4 standard errors, whichever of the two comes first."""
    pairs = couples(gap, 10_000, scale=scale)
    expected = 1 / (1 + math.exp(-gap / scale))
    assert len(pairs) == 10_000
    for part in (pairs[::2], pairs[1::2]):
        assert abs(share_of_better(part) - expected) < 4 * math.sqrt(expected * (1 - expected) / 5000)


@pytest.mark.parametrize("scale", [0.0, 1e-9])
def test_labels_without_noise_rank(scale: float) -> None:
    assert share_of_better(couples(0.05, 1000, scale=scale)) == 1


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_flip_rate(scale: float) -> None:
    """A share of the labels, drawn apart from them, is turned round."""
    as_they_are, flipped = (couples(1.0, 10_000, scale=scale, flip_rate=rate) for rate in (0.0, 0.2))
    turned = [a.chosen == b.rejected for a, b in zip(as_they_are, flipped, strict=True)]
    assert abs(sum(turned) / 10_000 - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 10_000)
    assert all(pair in flipped or Pair(pair.rejected, pair.chosen) in flipped for pair in as_they_are[:50])


def test_min_reward_gap_leaves_out_ties_and_changes_nothing_else() -> None:
    """The gap itself is a tie. The labels of the others are what they were."""
    generator = random.Random(1)
    rewards = [generator.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(2000)]
    rows = [[index] for index in range(2000)]
    more = {"seed": 3, "scale": 0.5, "flip_rate": 0.1}
    every, far = make_pairs(rows, rewards, **more), make_pairs(rows, rewards, min_reward_gap=0.5, **more)
    gaps = {tuple(pair.chosen): abs(rewards[pair.chosen[0]] - rewards[pair.rejected[0]]) for pair in every}
    assert far == [pair for pair in every if gaps[tuple(pair.chosen)] > 0.5]
    assert {gaps[tuple(pair.chosen)] for pair in far} == {0.75, 1.0}
    assert min(gaps.values()) == 0.25


def test_pairs_are_a_function_of_the_seed() -> None:
    assert couples(1.0, 200, scale=1.0) == couples(1.0, 200, scale=1.0)
    assert couples(1.0, 200, scale=1.0) != couples(1.0, 200, scale=1.0, seed=1)
    assert couples(1.0, 200) == couples(1.0, 200, seed=1)


def test_preference_coefficient() -> None:
    assert preference_coefficient(0.1, 0.5) == 0.2
    assert preference_coefficient(0.1, 0.0) == 0.1


# --------------------------------------------------------------------------------------------------------- DPO


def test_dpo_starts_at_log_2_and_moves_apart() -> None:
    policy, reference = stopping_model(), stopping_model()
    pairs = pairs_of(reference)
    before = weights(reference)
    training = settings(steps=16)
    log = dpo(policy, reference, tiny_tokenizer(), [PROMPT] * len(pairs), pairs, training, coefficient=0.1)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["rewards/margins"] > 0.2
    assert torch.equal(weights(reference), before)
    chosen, rejected = ([getattr(pair, name) for pair in pairs] for name in ("chosen", "rejected"))
    gaps = [(logps(policy, PROMPT, rows) - logps(reference, PROMPT, rows)).mean() for rows in (chosen, rejected)]
    assert gaps[0] - gaps[1] > 2


def test_dpo_is_equation_7_of_our_log_probabilities() -> None:
    """A reference that is another model, one full batch: loss, rewards and log-probabilities by our own scorer."""
    policy, reference = stopping_model(), stopping_model(seed=1)
    pairs = pairs_of(reference)
    assert len({len(row) for pair in pairs for row in (pair.chosen, pair.rejected)}) > 3
    ours = {}
    for name, rows in (("chosen", [pair.chosen for pair in pairs]), ("rejected", [pair.rejected for pair in pairs])):
        ours[name] = (logps(policy, PROMPT, rows), logps(reference, PROMPT, rows))
    ratios = {name: own - anchored for name, (own, anchored) in ours.items()}
    training = settings(batch_size=len(pairs), steps=1)
    log = dpo(policy, reference, tiny_tokenizer(), [PROMPT] * len(pairs), pairs, training, coefficient=0.3)
    assert len(log) == 1
    assert log[0]["loss"] == pytest.approx(-F.logsigmoid(0.3 * (ratios["chosen"] - ratios["rejected"])).mean().item())
    for name, (own, _) in ours.items():
        assert log[0][f"logps/{name}"] == pytest.approx(own.mean().item(), abs=1e-4)
        assert log[0][f"rewards/{name}"] == pytest.approx(0.3 * ratios[name].mean().item(), abs=1e-4)


def test_first_step_is_the_exact_gradient() -> None:
    """SGD: Δθ = −lr·∇ of the mean of −log σ(c·margin), the gradient by autograd in float64, row by row without padding."""
    policy, reference = stopping_model(), stopping_model(seed=1)
    pairs, start = pairs_of(reference), weights(policy)
    own, anchored = doubled(policy), doubled(reference)

    def log_ratios(rows: list[list[int]]) -> torch.Tensor:
        with torch.no_grad():
            anchors = torch.stack([part.sum() for part in row_logps(anchored, rows)])
        return torch.stack([part.sum() for part in row_logps(own, rows)]) - anchors

    margins = log_ratios([pair.chosen for pair in pairs]) - log_ratios([pair.rejected for pair in pairs])
    expected = -1e-2 * gradient(-F.logsigmoid(0.3 * margins).mean(), own)
    training = one_sgd_step(1e-2, batch_size=len(pairs))
    dpo(policy, reference, tiny_tokenizer(), [PROMPT] * len(pairs), pairs, training, coefficient=0.3)
    assert relative_error(weights(policy) - start, expected) < 1e-4


def test_optimum_is_the_tilt() -> None:
    """Bradley–Terry labels of scale s, coefficient β/s, completions of one token: the policy goes to π_ref·exp(R/β)/Z, from
    0.64 nats away to less than 0.1."""
    beta, scale = 0.25, 0.5
    reference, policy = tiny_model(layers=1), tiny_model(layers=1)
    rows = rows_of(reference, count=32_000, length=1)
    reward = torch.randperm(32, generator=torch.Generator().manual_seed(0)).double() / 31
    pairs = make_pairs(rows, [float(reward[row[0]]) for row in rows], seed=4, scale=scale)
    training = settings(batch_size=512, steps=60, learning_rate=1e-2)
    coefficient = preference_coefficient(beta, scale)
    dpo(policy, reference, tiny_tokenizer(), [PROMPT] * len(pairs), pairs, training, coefficient=coefficient)
    with torch.no_grad():
        own, anchored = (
            model(input_ids=torch.tensor([PROMPT])).logits[0, -1].double().log_softmax(-1)
            for model in (policy, reference)
        )
    tilt = (anchored + reward / beta).log_softmax(-1)
    assert (tilt.exp() * (tilt - anchored)).sum() > 0.6
    assert (tilt.exp() * (tilt - own)).sum() < 0.1
