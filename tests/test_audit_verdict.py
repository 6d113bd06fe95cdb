"""The rules, each by a case on either side of its bound; the ranking; what is advised."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precede.evaluate import signals
from precede.evaluate.verdict import FEW_PAIRS, LEVELS, THRESHOLDS, Gauge, Thresholds, judge, rank
from precede.stats import Estimate

BETA = 0.2
"""Reach 5 nats at Δ = 1: target mass 0.6 is achievable from σ(logit 0.6 − 5) = 0.0100."""


def pairs(count: int = 200, unsupported: int = 2, lost: int | None = None, unreachable: int = 0) -> dict[str, Estimate]:
    def part(hits: int) -> Estimate:
        return signals.share(np.arange(count) < hits)

    numbers = {
        "unsupported_share": part(unsupported),
        "chosen_logp": Estimate(-20.0, -21.0, -19.0, count),
        "chosen_logp_per_token": Estimate(-2.0, -2.1, -1.9, count),
    }
    if lost is not None:
        nats = Estimate(4.0, 3.0, 5.0, count)
        numbers |= {"lost_preference_share": part(lost), "unreachable_share": part(unreachable)}
        numbers |= {"recall_gap": nats, "rejected_recall_gap": nats, "excess_gap": nats}
    return numbers


def sampled(hits: int, count: int = 4000, stops: bool = True) -> dict[str, Estimate]:
    """Four samples a prompt, the hits spread as evenly as can be."""
    rewards = (np.arange(count) < hits).astype(float).reshape(4, -1).T
    chosen = np.ones(len(rewards), bool)
    return signals.sampled_summary(
        signals.Sampled(rewards, rewards + 1, np.full(rewards.shape, stops), chosen), 0.5, 1.0, BETA
    )


def level(numbers: dict[str, Estimate], teacher: dict[str, Estimate] | None = None) -> str:
    return judge(numbers, teacher, beta=BETA, advantage=1.0).level


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "unchecked"),  # typicality alone never says ready
        ({"lost": 0}, "ready"),
        ({"lost": 0, "unsupported": 65}, "ready"),  # 32.5 % [26.1, 39.5]
        ({"unsupported": 68}, "risky"),  # 34 % [27.5, 41.0]
        ({"unsupported": 200}, "risky"),  # typicality alone is weak evidence
        ({"lost": 65}, "ready"),
        ({"lost": 68}, "risky"),
        ({"lost": 108}, "risky"),  # 54 % [46.8, 61.1]
        ({"lost": 130}, "trapped"),
        ({"lost": 0, "unreachable": 200}, "risky"),  # as weak on rejected completions: no preference was lost
        ({"unsupported": 60, "lost": 130}, "trapped"),
        ({"count": FEW_PAIRS, "unsupported": 0, "lost": 0}, "ready"),
        ({"count": FEW_PAIRS - 1, "unsupported": 0}, "risky"),
    ],
)
def test_pairs(changes: dict[str, Any], expected: str) -> None:
    assert level(pairs(**changes)) == expected


@pytest.mark.parametrize(
    ("hits", "expected"),
    [(400, "ready"), (60, "ready"), (29, "risky"), (25, "trapped"), (5, "trapped"), (0, "trapped")],
)
def test_target_mass(hits: int, expected: str) -> None:
    """0.0100 of 4,000 samples are 40 hits: 29 hits [19, 42] leave it open, 25 [16, 37] do not."""
    assert level(pairs() | sampled(hits)) == expected


def test_the_sampling_trap_is_a_risk() -> None:
    """1,100 of 100,000: the tilt would do, but 271 samples are needed for one hit, more than a batch."""
    verdict = judge(pairs() | sampled(1100, 100_000), None, beta=BETA, advantage=1.0)
    assert verdict.level == "risky"
    assert verdict.reasons[0].startswith("it takes 271 samples to meet a desirable one")
    assert "draw 271 samples a step or more, so that 95 % of the steps see a desirable one" in verdict.advice


def test_no_hit_in_few_samples_is_a_risk_not_a_trap() -> None:
    numbers = pairs() | sampled(0, 100)
    assert numbers["achievable_mass"].high > 0.6
    verdict = judge(numbers, None, beta=BETA, advantage=1.0)
    assert verdict.level == "risky"
    assert any(re.search(r"it takes at least \d\d samples", reason) for reason in verdict.reasons)
    assert judge(numbers, pairs() | sampled(1, 100), beta=BETA, advantage=1.0).level == "risky"


def test_what_does_not_stop_is_a_risk() -> None:
    assert level(pairs() | sampled(400, stops=False)) == "risky"


def test_half_of_the_teachers() -> None:
    teacher = pairs() | sampled(3000)  # achievable 0.998
    assert level(pairs() | sampled(200), teacher) == "ready"
    assert level(pairs() | sampled(29), teacher) == "risky"
    assert level(pairs() | sampled(10), teacher) == "trapped"
    verdict = judge(pairs() | sampled(10), teacher, beta=BETA, advantage=1.0)
    assert any("the teacher could be brought to a target mass of 99.77" in reason for reason in verdict.reasons)
    assert verdict.advice[0] == "align the teacher and distil it afterwards (align > distill)"


@pytest.mark.parametrize(
    ("changes", "numbers", "expected"),
    [
        ({"mass": 0.2}, sampled(10), "risky"),  # achievable 0.27 [0.15, 0.41]
        ({"mass": 0.1}, sampled(10), "risky"),  # the sampling trap
        ({"mass": 0.9}, sampled(29), "trapped"),
        ({"few": 0.1}, pairs(unsupported=28), "risky"),
        ({"few": 0.5}, pairs(unsupported=80, lost=0), "ready"),
        ({"many": 0.7}, pairs(lost=130), "risky"),
        ({"many": 0.4}, pairs(lost=108), "trapped"),
    ],
)
def test_thresholds_are_values(changes: dict[str, float], numbers: dict[str, Estimate], expected: str) -> None:
    verdict = judge(pairs() | numbers, None, beta=BETA, advantage=1.0, thresholds=Thresholds(**changes))
    assert verdict.level == expected


def test_ratio_to_the_teacher_is_a_threshold() -> None:
    teacher, numbers = pairs() | sampled(3000), pairs() | sampled(29)
    for ratio, expected in ((0.3, "risky"), (0.5, "risky"), (0.9, "trapped")):
        thresholds = Thresholds(mass=0.1, ratio=ratio)
        assert judge(numbers, teacher, beta=BETA, advantage=1.0, thresholds=thresholds).level == expected


def test_what_pairs_lost_can_trap_with_a_reward_too() -> None:
    """More evidence makes no verdict milder."""
    assert level(pairs(lost=200)) == level(pairs(lost=200) | sampled(400)) == "trapped"


def test_one_sample_a_prompt_never_says_ready() -> None:
    rewards, chosen = np.ones((200, 1)), np.ones(200, bool)
    numbers = signals.sampled_summary(signals.Sampled(rewards, rewards, rewards > 0, chosen), 0.5, 1.0, BETA)
    verdict = judge(pairs() | numbers, None, beta=BETA, advantage=1.0)
    assert verdict.level == "risky"
    assert any("one sample a prompt does not tell how prompts differ" in reason for reason in verdict.reasons)
    assert verdict.advice[0] == "draw two samples a prompt or more, better four (--samples)"


@pytest.mark.parametrize(
    ("samples", "chosen", "expected"),
    [
        (0.01, 0.01, "ready"),  # strings that are cut: the samples stop as often as the chosen
        (0.02, 0.1, "ready"),
        (0.9, 1.0, "ready"),
        (0.6, 1.0, "ready"),
        (0.4, 1.0, "risky"),
        (0.1, 0.4, "risky"),
    ],
)
def test_samples_should_stop_as_often_as_the_chosen_do(samples: float, chosen: float, expected: str) -> None:
    prompts, draw = 2000, np.random.default_rng(0)
    rewards = (np.arange(4 * prompts) < 1600).astype(float).reshape(4, -1).T
    stopped, ends = draw.random((prompts, 4)) < samples, draw.random(prompts) < chosen
    numbers = signals.sampled_summary(signals.Sampled(rewards, rewards + 1, stopped, ends), 0.5, 1.0, BETA)
    assert level(pairs() | numbers) == expected


@pytest.mark.parametrize(
    ("gain", "expected"), [((1.5, 1.2, 1.8), "ready"), ((0.1, -0.2, 0.4), "risky"), ((-1.9, -2.2, -1.6), "trapped")]
)
def test_a_model_that_knows_no_more_than_frequencies_is_told_so(
    gain: tuple[float, float, float], expected: str
) -> None:
    verdict = judge(pairs(lost=0) | {"unigram_gain": Estimate(*gain, 200)}, None, beta=BETA, advantage=1.0)
    assert verdict.level == expected
    assert any("untrained or damaged" in reason for reason in verdict.reasons) == (expected != "ready")
    assert ("train it before anything else, or look for another reference" in verdict.advice) == (expected != "ready")


def test_advice_is_about_the_reasons() -> None:
    few = judge(pairs(count=5, unsupported=0), None, beta=BETA, advantage=1.0)
    assert few.advice[0].startswith("give at least 30 pairs; in a recipe data.held_out")
    typical = judge(pairs(unsupported=100), None, beta=BETA, advantage=1.0)
    assert typical.advice == ["or fine-tune on the chosen completions first (sft > align), and audit again"]
    hopeless = judge(pairs() | sampled(0), pairs() | sampled(1), beta=BETA, advantage=1.0)
    assert "the teacher has little of it either: look for another reference" in hopeless.advice
    ready = judge(pairs(lost=0), None, beta=BETA, advantage=1.0)
    assert ready.advice == ["align it as it is, and keep this audit beside the run"]
    unchecked = judge(pairs(), None, beta=BETA, advantage=1.0)
    assert unchecked.advice == [
        "give the model that it was distilled from (--teacher), or a reward (--reward, --reward-model)"
    ]


def test_reasons_are_those_of_the_verdict_and_what_was_not_checked() -> None:
    verdict = judge(pairs(unsupported=60, lost=130), None, beta=BETA, advantage=1.0)
    assert verdict.level == "trapped"
    lost, missing = verdict.reasons
    assert lost.startswith("against the teacher, 65.0 % [58.0, 71.6] of the chosen completions lost 5.0 nats more")
    assert missing == "not checked: target mass (no --reward)"


def test_advice_says_which_beta() -> None:
    verdict = judge(pairs() | sampled(4), None, beta=BETA, advantage=1.0)  # m = 0.001: logit −6.907
    assert any("Δ/β ≥ 6.9 nats, that is β ≤ 0.72 times the present one" in line for line in verdict.advice)
    assert any("draw 2,995 samples a step" in line for line in verdict.advice)


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("trapped", [0.5, 0.6, None])
def test_the_nearest_other_verdict_is_as_far_as_a_gauge_says(rising: bool, trapped: float | None) -> None:
    """An interval that moves just so far has the level that was named, and by a little less its own."""
    draw, sign = np.random.default_rng(5), -1.0 if rising else 1.0
    seen = set()
    for middle in draw.random(200):
        half = draw.uniform(0.01, 0.2)

        def gauge(shift: float = 0.0, middle: float = middle, half: float = half) -> Gauge:
            value = sign * (middle + shift)
            bound = None if trapped is None else sign * trapped
            return Gauge("share", "share", Estimate(value, value - half, value + half, 9), sign * 0.5, bound, rising)

        own = gauge().level
        other, far = gauge().nearest
        assert far >= 0
        moved = [gauge(step * (far + nudge)).level for step in (-1, 1) for nudge in (1e-9, -1e-9)]
        assert other in (moved[0], moved[2])
        assert moved[1] == moved[3] == own or far < 1e-9
        seen.add(LEVELS[own])
    assert seen == {"ready", "risky"} | ({"trapped"} if trapped is not None else set())


def test_gauges_are_the_rules_with_a_number_and_decide_with_the_others() -> None:
    verdict = judge(pairs(lost=130, unsupported=68) | sampled(400), sampled(400), beta=BETA, advantage=1.0)
    assert [LEVELS[gauge.level] for gauge in verdict.gauges] == ["trapped", "risky", "ready", "ready", "ready"]
    assert verdict.gauges[0].what == "lost preferences"
    assert verdict.gauges[0].nearest == (LEVELS.index("risky"), verdict.gauges[0].number.low - THRESHOLDS.many)


def test_rank_is_by_verdict_then_mass_then_what_was_lost() -> None:
    several = [
        pairs(lost=130),
        pairs() | sampled(100),
        pairs() | sampled(400),
        pairs(lost=60),
        pairs(lost=50),
    ]
    verdicts = [judge(numbers, None, beta=BETA, advantage=1.0) for numbers in several]
    assert rank(several, verdicts) == [2, 1, 4, 3, 0]


def test_the_page_names_the_thresholds() -> None:
    page = (Path(__file__).parents[1] / "docs" / "audit.md").read_text("utf-8")
    assert f"| achievable mass | at least {THRESHOLDS.mass} | below {THRESHOLDS.mass} |" in page
    assert page.count(f"| at most {THRESHOLDS.few:.0%} of pairs |".replace("%", " %")) == 3
    assert f"| above {THRESHOLDS.many:.0%} |".replace("%", " %") in page
    assert THRESHOLDS.ratio == 0.5
    assert "| at least half of the teacher's | below half |" in page
