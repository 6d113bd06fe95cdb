from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from precede import stats
from precede.report.view import verdicts


def test_interval_is_students_t() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=(3, 7))
    for row, (low, high) in zip(values, stats.summarise(values).ci95, strict=True):
        interval = scipy_stats.ttest_1samp(row, 0.0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_clusters_are_the_replicates() -> None:
    """Three worlds of three seeds: the interval is that of the worlds' means, and the mean counts worlds alike."""
    values = np.random.default_rng(1).normal(size=(1, 9))
    worlds = [0, 1, 2] * 3
    means = np.array([[values[0, [world == w for world in worlds]].mean() for w in range(3)]])
    ours, plain = stats.summarise(values, worlds), stats.summarise(means)
    assert ours.ci95 == pytest.approx(plain.ci95)
    assert (ours.seeds[0], ours.replicates[0]) == (9, 3)
    values[0, 0] = np.nan  # a world with fewer defined seeds still counts as one
    ours = stats.summarise(values, worlds)
    assert ours.mean[0] == pytest.approx((values[0, [3, 6]].mean() + means[0, 1] + means[0, 2]) / 3)


def _verdicts(result: stats.Paired) -> list[str]:
    rows: list[Any] = [
        {"metric": "reward", "mean_a": mean, "mean_b": 0.0, "mean_difference": mean, "ci95": list(ends)}
        | {"p_value": None if math.isnan(p) else p, "n_seeds": int(n), "n_replicates": int(n)}
        for mean, ends, p, n in zip(
            result.a.mean, result.difference.ci95, result.difference.p_values(), result.difference.seeds, strict=True
        )
    ]
    return [verdict for row in rows for verdict in verdicts([row])]


@pytest.mark.parametrize("seeds", [3, 5, 9, 20])
def test_interval_covers_and_verdict_is_seldom_wrong(seeds: int) -> None:
    """4,000 normal nulls: coverage 95 %, false verdicts 5 %; each bound is 4 standard errors off."""
    count = 4000
    values = np.random.default_rng(100 + seeds).normal(size=(count, seeds))
    result = stats.paired(values, np.zeros_like(values))
    ends, margin = result.difference.ci95, 4 * math.sqrt(0.05 * 0.95 / count)
    assert abs(float(((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean()) - 0.95) < margin
    assert abs(sum(verdict != "undecided" for verdict in _verdicts(result)) / count - 0.05) < margin


def test_worlds_that_differ_are_covered_only_by_clusters() -> None:
    """Three seeds in each of three worlds that differ more than seeds do: the interval of nine seeds misses the mean often."""
    generator, count, worlds = np.random.default_rng(8), 2000, [0, 1, 2] * 3
    values = generator.normal(size=(count, 3))[:, worlds] + 0.3 * generator.normal(size=(count, 9))
    covered = {}
    for name, clusters in (("worlds", worlds), ("seeds", None)):
        ends = stats.summarise(values, clusters).ci95
        covered[name] = float(((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean())
    assert abs(covered["worlds"] - 0.95) < 4 * math.sqrt(0.05 * 0.95 / count)
    assert covered["seeds"] < 0.8


def test_fewer_than_three_replicates_give_no_interval_and_no_verdict() -> None:
    values = np.array([[1.0, 1.1, np.nan], [1.0, np.nan, np.nan]])
    result = stats.paired(values, np.zeros_like(values))
    assert np.isnan(result.difference.ci95).all()
    assert np.isnan(result.difference.p_values()).all()
    assert _verdicts(result) == ["too few seeds", "too few seeds"]


def test_replicates_that_agree_tell_nothing_but_that_they_do() -> None:
    result = stats.paired(np.ones((1, 3)), np.zeros((1, 3)))
    assert np.isnan(result.difference.p_values()).all()
    assert np.isnan(result.difference.ci95).all()
    assert result.difference.mean.tolist() == [1.0]
    assert _verdicts(result) == ["undecided"]
    assert stats.summarise(np.zeros((1, 3))).p_values().tolist() == [1.0]


def test_holm_against_scipy_and_by_hand() -> None:
    assert stats.holm([0.01, None, 0.04, 0.03, math.nan]) == [pytest.approx(0.03), None, 0.06, 0.06, None]
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0]


def test_holm_keeps_false_verdicts_of_a_family_below_five_percent() -> None:
    """Twelve true nulls at a time, correlated as metrics of the same seeds are."""
    generator, count, wrong = np.random.default_rng(4), 1000, {"plain": 0, "holm": 0}
    for _ in range(count):
        values = generator.normal(size=(1, 6)) * 0.5 + generator.normal(size=(12, 6))
        p_values = stats.summarise(values).p_values().tolist()
        wrong["plain"] += min(p_values) < 0.05
        wrong["holm"] += min(p for p in stats.holm(p_values) if p is not None) < 0.05
    assert wrong["holm"] / count < 0.05 + 4 * math.sqrt(0.05 * 0.95 / count)
    assert wrong["plain"] / count > 0.15


@pytest.mark.parametrize(("replicates", "power"), [(3, 0.766), (5, 0.791), (20, 0.800)])
def test_detectable_differences_are_detected(replicates: int, power: float) -> None:
    """The power that the noncentral t gives for that difference, and by simulation; 4 standard errors."""
    difference, count = stats.detectable(1.0, replicates), 4000
    quantile = scipy_stats.t.ppf(0.975, replicates - 1)
    shift = difference * math.sqrt(replicates)
    exact = scipy_stats.nct.sf(quantile, replicates - 1, shift) + scipy_stats.nct.cdf(-quantile, replicates - 1, shift)
    assert exact == pytest.approx(power, abs=0.001)
    values = difference + np.random.default_rng(replicates).normal(size=(count, replicates))
    called = float((stats.summarise(values).p_values() < 0.05).mean())
    assert abs(called - power) < 4 * math.sqrt(power * (1 - power) / count)
    assert math.isnan(stats.detectable(1.0, 2))


def test_replicates_needed_is_the_inverse_of_detectable() -> None:
    needed = stats.replicates_needed(-0.5, 1.0)
    assert needed is not None
    assert stats.detectable(1.0, needed) <= 0.5 < stats.detectable(1.0, needed - 1)
    assert stats.replicates_needed(1e-6, 1.0) is None


def test_paired_uses_the_pairing() -> None:
    generator = np.random.default_rng(1)
    shared = generator.normal(size=(1, 50)) * 10
    result = stats.paired(shared + 0.5 + 0.01 * generator.normal(size=(1, 50)), shared)
    low, high = result.difference.ci95[0]
    assert 0.49 < low < 0.5 + 0.01 < high + 0.01
    assert result.sd_ratio[0] == pytest.approx(1.0, abs=0.01)


def test_p_value_against_scipy() -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 4, 7))
    ours = stats.paired(a, b).difference.p_values()
    assert ours == pytest.approx(scipy_stats.ttest_rel(a, b, axis=1).pvalue, rel=1e-9)


def test_undefined_pairs_are_left_out_and_counted() -> None:
    a = np.array([[1.0, 2.0, np.nan, 4.0], [1.0, np.nan, np.nan, np.nan], [np.nan] * 4])
    result = stats.paired(a, np.zeros((3, 4)))
    assert result.difference.seeds.tolist() == [3, 1, 0]
    assert result.difference.mean[0] == pytest.approx(7 / 3)
    assert np.isnan(result.difference.ci95[1]).all()
    assert np.isnan(result.difference.mean[2])


def test_summary_of_a_row_does_not_depend_on_other_rows() -> None:
    values = np.random.default_rng(2).normal(size=(5, 12))
    together = stats.summarise(values)
    alone = stats.summarise(values[3:4])
    assert together.ci95[3].tolist() == pytest.approx(alone.ci95[0].tolist(), rel=1e-12)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        stats.paired(np.zeros((1, 3)), np.zeros((1, 4)))


def test_interpolation_is_exact_on_a_line_and_nan_outside() -> None:
    x = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    result = stats.interpolate(x, 2 * x + 1, np.array([2.5, 9.0]))
    assert result[0] == pytest.approx(6.0)
    assert math.isnan(result[1])


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (3, 20), (20, 20)])
def test_clopper_pearson_against_scipy(hits: int, trials: int) -> None:
    interval = scipy_stats.binomtest(hits, trials).proportion_ci(method="exact")
    assert stats.clopper_pearson(hits, trials) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_clopper_pearson_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="between 0"):
        stats.clopper_pearson(5, 4)
