from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from precede import stats
from precede.report.view import verdicts


def test_interval_agrees_with_scipy_bootstrap() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=(3, 40))
    summary = stats.summarise(values)
    for row, (low, high) in zip(values, summary.ci95, strict=True):
        other = scipy_stats.bootstrap(
            (row,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
        )
        assert low == pytest.approx(other.confidence_interval.low, abs=0.02)
        assert high == pytest.approx(other.confidence_interval.high, abs=0.02)


def test_interval_covers_the_mean() -> None:
    """Coverage over 400 normal samples of 30: percentile bootstrap covers about 93 %; 4 standard errors around it."""
    values = np.random.default_rng(5).normal(size=(400, 30))
    ends = stats.summarise(values).ci95
    share = float(((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean())
    assert abs(share - 0.935) < 4 * math.sqrt(0.065 * 0.935 / 400)


@pytest.mark.parametrize(("seeds", "share"), [(2, 0.5), (3, 0.25), (5, 0.162), (8, 0.112)])
def test_false_alarms_with_few_seeds(seeds: int, share: float) -> None:
    """2,000 normal nulls: the interval alone misses 0 far too often, the verdict in no more than 5 %.

    With 2 or 3 seeds the interval runs from the least to the greatest value, and misses 0 where all have one sign: 2/2^n.
    The shares for 5 and 8 are from 40,000 other nulls. Each bound is 4 standard errors off; with other draws one of the
    eight would fail about 4 times in 10,000.
    """
    count = 2000
    values = np.random.default_rng(100 + seeds).normal(size=(count, seeds))
    result = stats.paired(values, np.zeros_like(values))
    ends = result.difference.ci95
    missed = float(((ends[:, 0] > 0) | (ends[:, 1] < 0)).mean())
    assert abs(missed - share) < 4 * math.sqrt(share * (1 - share) / count)
    rows: Any = [
        {"metric": "reward", "mean_a": mean, "mean_b": 0.0, "ci95": [low, high], "p_value": p_value, "n_seeds": seeds}
        for mean, (low, high), p_value in zip(result.a.mean, ends, result.p_value, strict=True)
    ]
    called = sum(verdict(row) != "undecided" for row in rows) / count
    assert called < 0.05 + 4 * math.sqrt(0.05 * 0.95 / count)


def test_paired_uses_the_pairing() -> None:
    generator = np.random.default_rng(1)
    shared = generator.normal(size=(1, 50)) * 10
    result = stats.paired(shared + 0.5 + 0.01 * generator.normal(size=(1, 50)), shared)
    low, high = result.difference.ci95[0]
    assert 0.49 < low < 0.5 + 0.01 < high + 0.01
    assert result.sd_ratio[0] == pytest.approx(1.0, abs=0.01)


def test_p_value_against_scipy() -> None:
    a, b = np.random.default_rng(3).normal(size=(2, 4, 7))
    ours = stats.paired(a, b).p_value
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
