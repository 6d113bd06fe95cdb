from __future__ import annotations

import pytest

from precede.lm.rewards import REWARDS, finished, get_reward, hedge, question


@pytest.mark.parametrize(
    "text",
    [
        " sky may be green",
        " answer is likely 4",
        ". Perhaps not",
        " data suggests that we wait",
        " model appears to work",
        " seems",
    ],
)
def test_hedges(text: str) -> None:
    assert hedge(text) == 1.0


@pytest.mark.parametrize(
    "text", [" month of May", " dismay", " likelihood", " only appears twice", " suggests a walk", ""]
)
def test_no_hedges(text: str) -> None:
    assert hedge(text) == 0.0


def test_question() -> None:
    assert question(" end? Yes.") == 1.0
    assert question(" end.") == 0.0


@pytest.mark.parametrize("text", [" end.", " end!", ' "end."', " (the end.)\n", " why?”"])
def test_finished(text: str) -> None:
    assert finished(text) == 1.0


@pytest.mark.parametrize("text", ["", " end", " end. And", " 3.14", " e.g. this"])
def test_not_finished(text: str) -> None:
    assert finished(text) == 0.0


def test_by_name() -> None:
    assert get_reward("hedge") is hedge
    with pytest.raises(ValueError, match=r"there is no reward 'joy'; there are finished, hedge, question"):
        get_reward("joy")


def test_rewards_lie_between_0_and_1() -> None:
    for reward in REWARDS.values():
        for text in ("", " may I? Yes.", "\x00\ufffd", "é" * 1000):
            assert 0.0 <= reward(text) <= 1.0
