"""The benchmark of coverage at small size, and that its page has a row for each of its cases."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precede import stats
from precede.evaluate import signals

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def coverage() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules["coverage_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    yield made
    del sys.modules["coverage_benchmark"]


def test_page_has_a_row_for_each_case(coverage: Any) -> None:
    text = (ROOT / "docs" / "statistics.md").read_text("utf-8")
    written = text.split("<!-- coverage: begin -->")[1].split("<!-- coverage: end -->")[0].strip().splitlines()
    names = [case.name for case in coverage.cases()]
    assert len(names) == len(set(names))
    assert [" | ".join(line.strip("| ").split(" | ")[:3]) for line in written[2:]] == names
    for case, line in zip(coverage.cases(), written[2:], strict=True):
        cells = [cell.strip() for cell in line.split("|")[4:-1]]
        assert [bool(cell) for cell in cells] == [size in case.sizes for size in coverage.PROMPTS], case.name


def test_every_case_prints_intervals_of_its_truth(coverage: Any) -> None:
    """At its largest size every case has ends in order, with the truth between most of them or beside some of them."""
    for case in coverage.cases():
        ends, truth = case.simulate(np.random.default_rng(0), case.sizes[-1], 12)
        assert ends.shape == (12, 2), case.name
        printed = ends[np.isfinite(ends).all(1)]
        assert (printed[:, 0] <= printed[:, 1]).all(), case.name
        assert math.isfinite(truth)
        found = coverage.measure(case, case.sizes[-1], 1)
        assert math.isnan(found.covered) or found.covered in (0.0, 1.0)


def test_normal_differences_are_covered_and_worlds_only_by_clusters(coverage: Any) -> None:
    """4,000 repetitions; 4 standard errors."""
    cases = {case.name: case for case in coverage.cases()}
    worlds = "9 seeds in 3 worlds | worlds differ as much as seeds"
    for name, size in (("Student's t | seeds | normal differences", 3), (f"Student's t, clusters | {worlds}", 9)):
        found = coverage.measure(cases[name], size, 4000)
        assert abs(found.covered - 0.95) < 4 * math.sqrt(0.05 * 0.95 / 4000)
        assert found.printed == 1
    assert coverage.measure(cases[f"Student's t, without clusters | {worlds}"], 9, 4000).covered < 0.86


@pytest.mark.parametrize("draw", ["masses", "jump", "jumps", "skewed", "counted", "compared"])
def test_truths_are_the_means_of_what_is_drawn(coverage: Any, draw: str) -> None:
    """200,000 values; 5 standard errors."""
    more = {"masses": (coverage.HIGH, coverage.LOW), "jump": (0.2,), "jumps": (0.2,)}.get(draw, ())
    values, truth = getattr(coverage, draw)(*more, np.random.default_rng(1), 200, 1000)
    assert abs(values.mean() - truth) < 5 * values.std() / math.sqrt(values.size)


def test_truth_of_a_ratio(coverage: Any) -> None:
    ends, truth = coverage.ratio(0.5, np.random.default_rng(2), 100_000, 1)
    assert truth == pytest.approx(ends.mean(), abs=1.0 * (ends[0, 1] - ends[0, 0]))
    assert ends[0, 1] - ends[0, 0] < 0.02


def test_rows_that_are_not_printed_are_told(coverage: Any) -> None:
    def simulate(generator: Any, size: int, count: int) -> Any:
        ends = np.tile([-1.0, 1.0], (count, 1))
        ends[::4] = np.nan
        ends[1::4] += 5
        return ends, 0.0

    case = coverage.Case("made up", "seeds", "none", (3,), simulate)
    found = coverage.measure(case, 3, 400)
    assert (found.covered, found.printed) == (pytest.approx(2 / 3), 0.75)
    assert str(found) == "66.7 ± 2.7 (75)"
    assert str(coverage.Coverage(math.nan, math.nan, 0.02)) == "– (2)"


def test_matched_rows_without_missing_seeds_are_plain_intervals(coverage: Any) -> None:
    ends, truth = coverage.matched(1e-9, np.random.default_rng(3), 5, 50)
    assert np.isfinite(ends).all()
    assert truth == 0.0
    few, _ = coverage.matched(0.5, np.random.default_rng(3), 20, 50)
    assert np.isnan(few).all()


def test_mean_over_prompts_is_students_t() -> None:
    values = np.random.default_rng(4).gamma(1.0, size=(3, 20))
    for row, ends in zip(values, stats.summarise(values).ci95, strict=True):
        one = signals.mean(row)
        assert (one.low, one.high) == pytest.approx(tuple(ends), rel=1e-12)
