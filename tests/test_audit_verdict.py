"""The rules, each by a case on either side of its bound; the ranking; what is advised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precede.audit import signals
from precede.audit.signals import Estimate
from precede.audit.verdict import FEW_PAIRS, judge, rank

BETA = 0.2
"""Reach 5 nats at Δ = 1: target mass ½ is achievable from σ(−5) = 0.0067."""


def shares(count: int = 200, unsupported: int = 2, unreachable: int | None = None) -> dict[str, Estimate]:
    def part(hits: int) -> Estimate:
        return signals.share(np.arange(count) < hits)

    numbers = {"unsupported_share": part(unsupported), "chosen_logp_per_token": Estimate(-2.0, -2.1, -1.9, count)}
    if unreachable is not None:
        numbers |= {"unreachable_share": part(unreachable), "recall_gap": Estimate(4.0, 3.0, 5.0, count)}
    return numbers


def sampled(hits: int, count: int = 4000) -> dict[str, Estimate]:
    rewards = (np.arange(count) < hits).astype(float)[None]
    return signals.sampled_summary(signals.Sampled(rewards, rewards + 1, rewards < 2), 0.5, 1.0, BETA)


def level(numbers: dict[str, Estimate], teacher: dict[str, Estimate] | None = None) -> str:
    return judge(numbers, teacher, beta=BETA, advantage=1.0).level


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ready"),
        ({"unsupported": 12}, "ready"),  # 6 % [3.1, 10.2]: chance or 5 % are in the interval
        ({"unsupported": 30}, "risky"),
        ({"unsupported": 108}, "risky"),  # 54 % [46.8, 61.1]
        ({"unsupported": 130}, "trapped"),
        ({"unreachable": 2}, "ready"),
        ({"unreachable": 30}, "risky"),
        ({"unreachable": 130}, "trapped"),
        ({"unsupported": 30, "unreachable": 130}, "trapped"),
        ({"count": FEW_PAIRS, "unsupported": 0}, "ready"),
        ({"count": FEW_PAIRS - 1, "unsupported": 0}, "risky"),
    ],
)
def test_shares(changes: dict[str, Any], expected: str) -> None:
    assert level(shares(**changes)) == expected


@pytest.mark.parametrize(
    ("hits", "expected"),
    [(400, "ready"), (40, "ready"), (29, "risky"), (14, "trapped"), (5, "trapped"), (0, "trapped")],
)
def test_target_mass(hits: int, expected: str) -> None:
    """0.0067 of 4,000 samples are 27 hits: 29 hits [19, 41] leave it open, 14 [7, 23] do not."""
    assert level(shares() | sampled(hits)) == expected


def test_no_hit_in_few_samples_is_a_risk_not_a_trap() -> None:
    numbers = shares() | sampled(0, 100)
    assert numbers["achievable_mass"].high > 0.5
    verdict = judge(numbers, None, beta=BETA, advantage=1.0)
    assert verdict.level == "risky"
    assert any("none of 100 samples is desirable" in reason for reason in verdict.reasons)


def test_half_of_the_teachers() -> None:
    teacher = shares() | sampled(400)  # achievable 0.943
    assert level(shares() | sampled(100), teacher) == "ready"
    assert level(shares() | sampled(29), teacher) == "risky"
    assert level(shares() | sampled(15), teacher) == "trapped"  # 0.358 is below half of 0.943
    verdict = judge(shares() | sampled(15), teacher, beta=BETA, advantage=1.0)
    assert any("the teacher could be brought to 94.3 %" in reason for reason in verdict.reasons)
    assert verdict.advice[0] == "align the teacher and distil it afterwards (align > distill)"


def test_reasons_are_those_of_the_verdict() -> None:
    verdict = judge(shares(unsupported=30, unreachable=130), None, beta=BETA, advantage=1.0)
    assert verdict.level == "trapped"
    (reason,) = verdict.reasons
    assert reason.startswith("65.0 % [58.0, 71.6] of the chosen completions lost more than the 5.0 nats")
    assert any("--teacher" in line for line in verdict.advice)


def test_advice_says_which_beta_and_how_many_samples() -> None:
    verdict = judge(shares() | sampled(4), None, beta=BETA, advantage=1.0)  # m = 0.001: logit −6.907
    assert any("Δ/β ≥ 6.9 nats, that is β ≤ 0.72 times the present one" in line for line in verdict.advice)
    assert any("at least 2,995 samples per step" in line for line in verdict.advice)


def test_rank_is_by_verdict_then_mass_then_reach() -> None:
    several = [
        shares(unsupported=130),
        shares() | sampled(40),
        shares() | sampled(400),
        shares(unreachable=30),
        shares(unreachable=20),
    ]
    verdicts = [judge(numbers, None, beta=BETA, advantage=1.0) for numbers in several]
    assert rank(several, verdicts) == [2, 1, 4, 3, 0]
