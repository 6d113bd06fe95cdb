"""The audit's numbers by hand, by brute force over a model's own distribution, and by the law that z ~ N(0, 1)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from precede.evaluate import signals
from precede.sampling import sample
from precede.scoring.logprobs import Score, score
from test_lm_tiny import PROMPT, stopping_model, tiny_tokenizer


def scored(tokens: int, logp: float, entropy: float = 1.0, varentropy: float = 1.0) -> Score:
    return Score(tokens, logp, entropy, varentropy)


def test_typicality_by_hand() -> None:
    """One step of a distribution (½, ¼, ¼): H = 1.5 log 2, V = (log 2)²/4, so z is −1, +1 and +1."""
    unit = math.log(2)
    scores = [scored(1, math.log(p), 1.5 * unit, unit**2 / 4) for p in (0.5, 0.25, 0.25)]
    assert signals.side(scores).typicality == pytest.approx([-1, 1, 1])


def test_typicality_where_the_model_is_certain() -> None:
    """What it writes is typical, anything else is not at all."""
    assert signals.side([scored(1, 0.0, 0.0, 0.0), scored(1, -1.0, 0.0, 0.0)]).typicality.tolist() == [0.0, math.inf]
    assert signals.pairs([[scored(1, -1.0, 0.0, 0.0), scored(1, -1.0)]], None).unsupported.all()


def test_typicality_of_own_samples_is_standard_normal() -> None:
    """Mean 0 and variance 1 exactly, whatever the length: |mean| and |variance − 1| within 4 standard errors."""
    model, tokenizer = stopping_model(seed=4), tiny_tokenizer()
    rows = sample(model, tokenizer, PROMPT, 3000, max_new_tokens=12, seed=3)
    z = signals.side([found[0] for found in score(model, [PROMPT] * 3000, [[row] for row in rows])]).typicality
    z = z[np.isfinite(z)]
    assert len(z) > 2900
    assert abs(z.mean()) < 4 / math.sqrt(len(z))
    assert abs(z.var() - 1) < 4 * (z**2).std() / math.sqrt(len(z)) + 0.05


def test_typicality_of_another_models_samples_is_not() -> None:
    one, other, tokenizer = stopping_model(seed=4), stopping_model(seed=5), tiny_tokenizer()
    rows = sample(other, tokenizer, PROMPT, 500, max_new_tokens=12, seed=3)
    z = signals.side([found[0] for found in score(one, [PROMPT] * 500, [[row] for row in rows])]).typicality
    assert np.nanmean(z) > 1
    assert stats.kstest(z[np.isfinite(z)], "norm").pvalue < 1e-6


SCORES = [
    [scored(2, -4.0, 2.0, 4.0), scored(4, -6.0)],
    [scored(5, -30.0, 10.0, 4.0), scored(3, -6.0)],
    [scored(4, -8.0, 8.0, 1.0), scored(4, -8.0)],
]
TEACHER = [[scored(2, -3.0), scored(4, -6.0)], [scored(5, -10.0), scored(3, -5.0)], [scored(4, -9.0), scored(4, -7.0)]]


def test_summary_by_hand() -> None:
    pairs = signals.pairs(SCORES, TEACHER)
    numbers = signals.summary(pairs, reach=5.0)
    assert pairs.chosen.typicality.tolist() == [1.0, 10.0, 0.0]
    assert pairs.unsupported.tolist() == [False, True, False]
    assert pairs.gap.tolist() == [1.0, 20.0, -1.0]
    assert pairs.unreachable(5.0).tolist() == [False, True, False]
    assert pairs.margin.tolist() == [2.0, -24.0, 0.0]
    assert pairs.rejected_gap.tolist() == [0.0, 1.0, 1.0]
    rate = 2 / 11  # nats lost per rejected token
    assert pairs.excess_gap.tolist() == pytest.approx([1.0 + 2 * rate, 19.0 - 2 * rate, -2.0])
    expected = {
        "unsupported_share": 1 / 3,
        "typicality": 11 / 3,
        "rejected_typicality": (5 + 5 + 7) / 3,
        "ranking_accuracy": 1 / 3,  # −4 > −6; equal is not ranked
        "ranking_accuracy_per_token": 0.0,  # −2 against −1.5, −6 against −2, −2 against −2
        "margin": (2 - 24 + 0) / 3,
        "chosen_logp": -14.0,
        "chosen_logp_per_token": (-2 - 6 - 2) / 3,
        "rejected_logp": -20 / 3,
        "rejected_logp_per_token": (-1.5 - 2 - 2) / 3,
        "chosen_tokens": 11 / 3,
        "rejected_tokens": 11 / 3,
        "chosen_longer_share": 1 / 3,
        "recall_gap": 20 / 3,
        "recall_gap_per_token": (0.5 + 4 - 0.25) / 3,
        "rejected_recall_gap": 2 / 3,
        "unreachable_share": 1 / 3,
        "excess_gap": 6.0,
        "lost_preference_share": 1 / 3,
    }
    assert {name: number.value for name, number in numbers.items()} == pytest.approx(expected)
    for name, number in numbers.items():
        assert number.low <= number.value <= number.high, name
        assert number.count == 3, name


def test_without_a_teacher_there_is_no_gap() -> None:
    numbers = signals.summary(signals.pairs(SCORES, None), reach=5.0)
    assert not [name for name in numbers if "gap" in name or name in ("unreachable_share", "lost_preference_share")]


def test_share_is_clopper_pearson() -> None:
    found = signals.share(np.array([True] * 3 + [False] * 17))
    exact = stats.binomtest(3, 20).proportion_ci(0.95, "exact")
    assert (found.value, found.low, found.high) == pytest.approx((0.15, exact.low, exact.high))
    nothing = signals.share(np.zeros(50, bool))
    assert (nothing.value, nothing.low) == (0, 0)
    assert nothing.high == pytest.approx(1 - 0.025 ** (1 / 50))


def samples_of(rewards: list[list[float]]) -> signals.Sampled:
    shape = np.array(rewards)
    return signals.Sampled(shape, np.full(shape.shape, 7.0), np.ones(shape.shape, bool), np.ones(len(shape), bool))


def test_sampled_summary_by_hand() -> None:
    """Two hits of eight: m = ¼, and 11 samples meet the target with 95 %."""
    numbers = signals.sampled_summary(samples_of([[1, 0, 0, 0.4], [0.5, 0, 0, 0]]), 0.5, math.log(3), 1.0)
    assert numbers["target_mass"].value == 0.25
    assert numbers["target_mass"].low < 0.25 < numbers["achievable_mass"].value < numbers["achievable_mass"].high
    assert numbers["samples_needed"].value == math.ceil(math.log(0.05) / math.log(0.75)) == 11
    assert numbers["samples_needed"].low < 11 < numbers["samples_needed"].high
    assert numbers["reward"].value == pytest.approx(1.9 / 8)
    assert (numbers["length"].value, numbers["stop_rate"].value) == (7.0, 1.0)
    assert numbers["prompts_without_hit"].value == 0
    assert numbers["chosen_stop_rate"].value == 1.0


VALUES = st.integers(0, 40).flatmap(lambda n: arrays(float, n, elements=st.floats(-1e6, 1e6)))


@settings(deadline=None)
@given(VALUES)
def test_ratio_to_ones_is_the_mean(values: np.ndarray) -> None:
    one, other = signals.ratio(values, np.ones(len(values))), signals.mean(values)
    assert one.count == other.count == len(values)
    np.testing.assert_equal(one.value, other.value)
    scale = np.abs(values).max(initial=1.0)
    np.testing.assert_allclose([one.low, one.high], [other.low, other.high], rtol=0, atol=1e-12 * scale)


@settings(deadline=None)
@given(arrays(float, 12, elements=st.floats(0.5, 50)), st.floats(-9, 9), st.floats(0.25, 4))
def test_a_ratio_that_is_the_same_in_every_row_is_certain(tokens: np.ndarray, rate: float, scale: float) -> None:
    """Rows of any length; and the unit of the denominators only divides."""
    found = signals.ratio(rate * tokens, tokens)
    assert (found.value, found.low, found.high) == pytest.approx((rate, rate, rate))
    assert signals.ratio(rate * tokens, scale * tokens).value == pytest.approx(rate / scale)


def test_ratio_is_of_sums() -> None:
    """1 of 1 and 1 of 9: 2/10, not the mean 5/9; a row that is not finite counts on neither side."""
    found = signals.ratio(np.array([1.0, 1.0, np.nan, 5.0]), np.array([1.0, 9.0, 7.0, np.inf]))
    assert (found.value, found.count) == (0.2, 2)
    assert math.isnan(found.low)  # two rows give no interval


def test_ratio_of_too_little_is_unknown() -> None:
    one = signals.ratio(np.array([3.0]), np.array([2.0]))
    assert (one.value, one.count) == (1.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    for rows in (0, 3):
        none = signals.ratio(np.ones(rows), np.zeros(rows))
        assert np.isnan([none.value, none.low, none.high]).all()


@pytest.mark.parametrize("count", [60, 1001])
def test_the_ratios_interval_covers_as_often_as_it_says(count: int) -> None:
    """60 draws of rows whose nats come with their tokens: at 95 %, fewer than 51 covered have a chance of 1 in 1,000."""
    draw, covered = np.random.default_rng(4), 0
    for _ in range(60):
        tokens = draw.integers(1, 30, count).astype(float)
        found = signals.ratio(2 * tokens + draw.normal(size=count) * tokens, tokens)
        covered += found.low <= 2 <= found.high
    assert covered >= 51


def test_scores_are_the_models() -> None:
    """Entropy and varentropy of one step against the softmax itself."""
    model = stopping_model(seed=1)
    (found,) = score(model, [PROMPT], [[[5], [6]]])
    logps = model(torch.tensor([PROMPT])).logits[0, -1].double().log_softmax(-1).detach().numpy()
    probabilities = np.exp(logps)
    entropy = -(probabilities * logps).sum()
    for token, one in zip((5, 6), found, strict=True):
        assert one.logp == pytest.approx(logps[token], abs=1e-5)
        assert one.entropy == pytest.approx(entropy, abs=1e-5)
        assert one.varentropy == pytest.approx((probabilities * logps**2).sum() - entropy**2, abs=1e-4)
