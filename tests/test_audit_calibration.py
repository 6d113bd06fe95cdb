"""The calibration's analysis on made-up cases; nothing is trained here."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from precede.evaluate import signals
from precede.evaluate.verdict import LEVELS, THRESHOLDS, Thresholds
from precede.stats import Estimate

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def calibration() -> Iterator[Any]:
    yield module("calibration")
    del sys.modules["calibration"]


@pytest.fixture(scope="module")
def pages(calibration: Any) -> Iterator[Any]:
    yield module("calibration_page")
    del sys.modules["calibration_page"]


def exact(value: float) -> Estimate:
    return Estimate(value, value, value, 4000)


def made_up(calibration: Any, mass: float, realised: float, world: int = 0, lost: float = 0.0, **more: Any) -> Any:
    """A case whose numbers are certain; the teacher's achievable mass is 1 and align > distill reaches 1."""
    numbers = {
        name: exact(0.0) for name in ("chosen_logp", "chosen_logp_per_token", "recall_gap", "rejected_recall_gap")
    }
    numbers |= {
        "unsupported_share": exact(more.get("unsupported", 0.0)),
        "unreachable_share": exact(0.0),
        "excess_gap": exact(0.0),
        "lost_preference_share": exact(lost),
        "typicality": exact(0.0),
        "ranking_accuracy": exact(0.5),
        "target_mass": exact(0.05),
        "achievable_mass": exact(mass),
        "samples_needed": exact(59.0),
        "stop_rate": exact(1.0),
    }
    return calibration.Case(
        seed=world,
        world=world,
        settings={"weight": 0.01, "temperature": 0.7, "hidden_size": 32},
        beta=0.2,
        advantage=1.0,
        numbers=numbers,
        teacher=numbers | {"achievable_mass": exact(more.get("teacher", 1.0))},
        verdict="ready",
        realised=realised,
        other=1.0,
    )


@pytest.mark.parametrize("seed", range(5))
def test_area_is_that_of_scikit_learn(calibration: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    failed = generator.random(60) < 0.4
    scores = np.round(generator.normal(size=60) + failed, 1)  # with ties
    assert calibration.area(scores, failed) == pytest.approx(metrics.roc_auc_score(failed, scores), abs=1e-12)
    shares = calibration.curve(scores, failed)
    expected = metrics.roc_curve(failed, scores, drop_intermediate=False)
    np.testing.assert_allclose(shares[0], expected[0])
    np.testing.assert_allclose(shares[1], expected[1])


def test_area_by_hand(calibration: Any) -> None:
    failed = np.array([True, True, False, False])
    assert calibration.area(np.array([3.0, 1.0, 1.0, 0.0]), failed) == (1 + 1 + 0.5 + 1) / 4
    assert math.isnan(calibration.area(np.arange(4.0), np.ones(4, bool)))


def test_correlation_is_spearmans(calibration: Any) -> None:
    assert calibration.correlation(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3])) == pytest.approx(1)
    assert calibration.correlation(np.array([1.0, 2.0, 2.0, 3.0]), np.array([4.0, 3.0, 2.0, 1.0])) == pytest.approx(
        -4.5 / math.sqrt(4.5 * 5)
    )
    assert math.isnan(calibration.correlation(np.ones(3), np.arange(3.0)))


def test_rates_by_hand(calibration: Any) -> None:
    called = np.array([True, False, False, False, True])
    failed = np.array([True, True, False, False, False])
    assert calibration.sensitivity(called, failed) == 1 / 2
    assert calibration.specificity(called, failed) == pytest.approx(2 / 3)
    assert calibration.balanced(called, failed) == pytest.approx(7 / 12)
    assert calibration.balanced(called, failed) == pytest.approx(metrics.balanced_accuracy_score(failed, called))
    assert math.isnan(calibration.balanced(called, np.ones(5, bool)))


def test_without_each_world(calibration: Any) -> None:
    worlds = np.array([1, 1, 3, 3, 5, 5])
    values = np.array([0.0, 0.0, 6.0, 6.0, 12.0, 12.0])
    assert calibration.without_each(lambda column: column.mean(), worlds, values) == (3.0, 9.0)


def test_interval_covers_and_leaves_out_what_is_undefined(calibration: Any) -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = calibration.interval(lambda column: float(column.mean()), values)
    assert low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.01)
    assert high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.01)
    one = np.array([True, False])
    assert calibration.interval(calibration.area, np.array([1.0, 0.0]), one) == (1.0, 1.0)
    assert all(math.isnan(end) for end in calibration.interval(calibration.area, np.ones(2), ~one & one))


def test_mass_and_ratio_are_chosen_by_what_is_called_trapped(calibration: Any) -> None:
    """Failed below 0.25, and of the rest only one below 0.35: of the bounds between, the one nearest to 0.5 is 0.3."""
    cases = [made_up(calibration, mass, 0.0) for mass in (0.05, 0.15, 0.22)]
    cases += [made_up(calibration, mass, 1.0) for mass in (0.35, 0.45, 0.95)]
    chosen = calibration.choose_all(cases)
    assert (chosen.mass, chosen.ratio) == (0.3, 0.3)
    assert calibration.balanced(*calibration.TRAPPED.columns(cases, chosen)) == 1
    assert calibration.balanced(*calibration.TRAPPED.columns(cases, calibration.BY_REASON)) == pytest.approx(2 / 3)


def test_the_teacher_tells_apart_what_mass_does_not(calibration: Any) -> None:
    """Both have the mass 0.45; the one that failed has a teacher of 1, the other a teacher of 0.5."""
    cases = [made_up(calibration, 0.45, 0.0), made_up(calibration, 0.45, 1.0, teacher=0.5)]
    chosen = calibration.choose_all(cases)
    assert (chosen.mass, chosen.ratio) == (0.4, 0.5)


def test_few_and_many_are_chosen_without_the_reward(calibration: Any) -> None:
    """All lost 55 % or more are failures, of which one lost 55 %; a good one lost 28 %. The mass says nothing here."""
    cases = [made_up(calibration, 0.9, 0.0, lost=lost) for lost in (0.55, 0.8)]
    cases += [made_up(calibration, 0.9, 1.0, lost=lost) for lost in (0.1, 0.28)]
    chosen = calibration.choose_all(cases)
    assert chosen == Thresholds(mass=0.5, ratio=0.5, few=0.3, many=0.5)
    worse = [*cases, *[made_up(calibration, 0.9, 1.0, lost=0.52), made_up(calibration, 0.9, 1.0, lost=0.58)]]
    worse += [made_up(calibration, 0.9, 0.0, lost=0.95)]
    assert calibration.choose_all(worse).many == 0.6


def test_ties_keep_the_thresholds_of_reason(calibration: Any) -> None:
    cases = [made_up(calibration, 0.01, 0.0, lost=0.99), made_up(calibration, 0.99, 1.0)]
    assert calibration.choose_all(cases) == calibration.BY_REASON
    assert calibration.choose_all([case for case in cases for _ in range(3)]) == calibration.BY_REASON


def test_worlds_held_back_do_not_choose(calibration: Any, pages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "RESAMPLES", 10)
    even = [made_up(calibration, mass, float(mass > 0.25)) for mass in (0.1, 0.2, 0.35, 0.9)]
    for odd in ([0.65, 0.9], [0.05, 0.9]):
        held = [made_up(calibration, mass, float(mass > 0.7), world=world) for mass in odd for world in (1, 3)]
        lines = pages.page([*even, *held])
        (row,) = [line for line in lines if line.startswith("| trapped: achievable mass below")]
        assert row.split(" | ")[2:4] == ["0.5", "0.3"]


def test_cases_come_back_from_their_file(calibration: Any, tmp_path: Path) -> None:
    case = made_up(calibration, 0.3, 0.123456789012345678)
    case.numbers["samples_needed"] = Estimate(math.inf, 82.1, math.inf, 100)
    case.numbers["recall_gap"] = signals.mean(np.array([0.1, 0.2, 0.7]))
    calibration.save([case, made_up(calibration, 0.4, 1.0, world=3)], tmp_path / "deep" / "cases.json")
    read = calibration.read(tmp_path / "deep" / "cases.json")
    assert read == [case, made_up(calibration, 0.4, 1.0, world=3)]
    assert '"inf"' in (tmp_path / "deep" / "cases.json").read_text("utf-8")


def test_older_files_have_older_names(calibration: Any, tmp_path: Path) -> None:
    case = made_up(calibration, 0.3, 1.0)
    case.numbers["sampled_reward"], case.teacher["sampled_tokens"] = exact(0.7), exact(9.0)
    calibration.save([case], tmp_path / "cases.json")
    (read,) = calibration.read(tmp_path / "cases.json")
    assert (read.numbers["reward"], read.teacher["length"]) == (exact(0.7), exact(9.0))
    assert not {"sampled_reward", "sampled_tokens"} & {*read.numbers, *read.teacher}


def test_without_a_reward_lost_preferences_decide(calibration: Any) -> None:
    case = made_up(calibration, 0.1, 0.0, lost=0.0)
    assert LEVELS[case.level(THRESHOLDS)] == "trapped"
    assert LEVELS[case.level(THRESHOLDS, rewarded=False)] == "ready"
    assert LEVELS[made_up(calibration, 0.9, 0.0, lost=0.99).level(THRESHOLDS, rewarded=False)] == "trapped"


def test_page_and_figure(calibration: Any, pages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "RESAMPLES", 50)
    generator = np.random.default_rng(0)
    cases = [
        made_up(calibration, mass, float(np.clip(mass + 0.1 * generator.normal(), 0, 1)), world=world, lost=1 - mass)
        for world in range(6)
        for mass in generator.random(12)
    ]
    text = "\n".join(pages.page(cases))
    assert "| worlds | 0, 2, 4 | 1, 3, 5 |" in text
    assert "| references | 36 | 36 |" in text
    assert "on the worlds held back: it reaches the aim of 0.9" in text
    assert "nan" not in text
    pages.draw(cases, tmp_path / "figure.svg")
    assert "ROC, worlds held back" in (tmp_path / "figure.svg").read_text("utf-8")
