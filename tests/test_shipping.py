"""The verdict on a built model: each rule on rows that are known, and how often it is false where nothing differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precede.evaluate.shipping import judge, stopping, surprise_of
from precede.evaluate.verdict import FEW_PAIRS

ROWS = 60


def columns(rows: int = ROWS, seed: int = 0, **changes: Any) -> dict[str, list[float]]:
    """What is kept of a sound model: 20 tokens of about 2 nats, four of five samples stop, half of the pairs are right."""
    draw = np.random.default_rng(seed)
    length = draw.integers(16, 25, rows).astype(float)
    values: dict[str, Any] = {
        "row": np.arange(rows),
        "prompt": np.arange(rows),
        "length": length,
        "entropy": length * draw.normal(2.0, 0.2, rows),
        "kl_to_truth": np.zeros(rows),
        "stop_rate": (np.arange(rows) % 5 > 0).astype(float),
        "chosen_logp": np.where(np.arange(rows) % 2, -1.0, -3.0),
        "rejected_logp": np.full(rows, -2.0),
    }
    return {name: np.asarray(value, float).tolist() for name, value in (values | changes).items()}


def level(first: dict[str, list[float]], last: dict[str, list[float]], reach: float = 10.0) -> tuple[str, list[str]]:
    found = judge(first, last, 1, reach)
    return found.level, list(found.broken)


def test_a_model_is_not_told_from_itself() -> None:
    found = judge(columns(), columns(), 1, 10.0)
    assert (found.level, found.broken, found.difference) == ("unsure", [], [0.0, 0.0, 0.0])
    assert (found.metric, found.first, found.last) == ("ranking_accuracy", 0.5, 0.5)
    assert found.stops == found.stops_first == [48, 60]


def test_better_and_worse_are_by_the_paired_interval() -> None:
    draw = np.random.default_rng(1)
    base, noise = draw.normal(0, 5, ROWS), draw.normal(0, 0.1, ROWS)
    first, last = columns(reward=base), columns(reward=base + noise + 0.2)
    assert level(first, last) == ("better", [])
    assert level(last, first) == ("worse", [])
    found = judge(first, last, 1, 10.0)
    assert found.metric == "reward"
    assert found.difference[0] == pytest.approx(found.last - found.first)
    assert level(first, columns(reward=draw.normal(0.2, 5, ROWS)))[0] == "unsure"  # unpaired it cannot be seen


def test_few_questions_cannot_tell() -> None:
    """Rows of one question count once."""
    for rows, prompts, told in ((29, 29, "unsure"), (30, 30, "better"), (60, 29, "unsure"), (60, 30, "better")):
        gain = np.random.default_rng(2).normal(1.0, 0.1, rows)
        first = columns(rows, reward=np.zeros(rows), prompt=np.arange(rows) % prompts)
        last = columns(rows, reward=gain, prompt=np.arange(rows) % prompts)
        assert level(first, last)[0] == told, (rows, prompts)
    assert FEW_PAIRS == 30


def test_nonsense_is_called_so_beyond_what_alignment_may_spend() -> None:
    """A KL of 39 nats in 20 tokens; the same KL is right for an alignment that may spend it, and where it is sharpening's."""
    first = columns()
    last = columns(kl_to_truth=np.full(ROWS, 39.0))
    assert level(first, last) == ("broken", ["surprise"])
    assert judge(first, last, 1, 10.0).kl == pytest.approx(39.0)
    assert level(first, last, reach=30.0)[0] == "unsure"
    sharp = columns(entropy=np.full(ROWS, 1.0), kl_to_truth=np.full(ROWS, 39.0))
    assert level(first, sharp)[0] == "unsure"
    assert judge(first, columns(kl_to_truth=np.full(ROWS, 28.0)), 1, 10.0).level == "unsure"  # 0.9 nats per token


def test_surprise_is_nats_per_token() -> None:
    """By hand: (40 + 30 − 10)/20 − 40/20 = 1 nat per token."""
    even = {"length": np.full(ROWS, 20.0), "entropy": np.full(ROWS, 40.0)}
    found = surprise_of(columns(**even), columns(**even, kl_to_truth=np.full(ROWS, 30.0)), 10.0)
    assert [found.value, found.low, found.high] == pytest.approx([1.0, 1.0, 1.0])


def test_without_a_likelihood_nothing_is_said_of_it() -> None:
    last = columns(kl_to_truth=np.full(ROWS, 99.0))
    del last["kl_to_truth"]
    found = judge(columns(), last, 1, 10.0)
    assert (found.level, found.surprise, found.kl) == ("unsure", [None, None, None], None)


@pytest.mark.parametrize(
    ("before", "after", "broken"), [(12, 0, True), (12, 5, False), (3, 0, False), (15, 6, True), (15, 8, False)]
)
def test_a_model_that_no_longer_stops(before: int, after: int, broken: bool) -> None:
    """Of 15 samples: by intervals that lie apart, and a rate below half of what it was."""
    first, last = (columns(15, stop_rate=np.arange(15) < stops) for stops in (before, after))
    found = judge(first, last, 1, 10.0)
    assert (found.level == "broken") is broken
    assert found.stops == [after, 15]


def test_samples_of_one_prompt_that_are_alike_count_as_one() -> None:
    """All or nothing at each of 10 prompts is 10 samples, whatever their number; no pattern is 80."""
    alike = stopping([1.0, 0.0] * 5, 8)
    assert (alike.stopped, alike.count) == (40, 80)
    assert (alike.rate.low, alike.rate.high) == pytest.approx((0.224, 0.776), abs=0.015)
    even = stopping([0.5] * 10, 8)
    assert even.rate.high - even.rate.low < 0.25


def test_one_prompt_says_nothing_surely() -> None:
    one = {name: values[:1] for name, values in columns(reward=np.zeros(ROWS)).items()}
    other = one | {"reward": [9.0], "kl_to_truth": [99.0]}
    assert judge(one, other, 128, 10.0).level == "unsure"


def test_neither_reward_nor_pairs() -> None:
    bare = {name: values for name, values in columns().items() if "logp" not in name}
    found = judge(bare, bare, 1, 10.0)
    assert (found.level, found.metric, found.difference) == ("unsure", None, [None, None, None])


def test_false_verdicts_are_as_rare_as_stated() -> None:
    """2,000 pairs of models that do not differ in a number: 5 % are called better or worse, give or take four standard errors,
    and at 1 nat per token, where the rule begins, 2.5 % broken."""
    draw, told, broken = np.random.default_rng(3), 0, 0
    own = np.full(ROWS, 40.0)
    for _ in range(2000):
        even = {"length": np.full(ROWS, 20.0), "reward": draw.normal(0, 1, ROWS)}
        last = even | {"reward": draw.normal(0, 1, ROWS), "kl_to_truth": draw.normal(30.0, 10.0, ROWS)}
        found = judge(columns(**even, entropy=own), columns(**last, entropy=own), 1, 10.0)
        broken += found.level == "broken"
        told += abs(found.difference[0] or 0) > 0 and (found.difference[1] > 0 or found.difference[2] < 0)
    assert abs(told / 2000 - 0.05) < 4 * (0.05 * 0.95 / 2000) ** 0.5
    assert abs(broken / 2000 - 0.025) < 4 * (0.025 * 0.975 / 2000) ** 0.5
