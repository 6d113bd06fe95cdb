"""The metrics by name: whatever is reported is one of them, and no two read alike."""

from __future__ import annotations

from precede.evaluate import signals
from precede.metrics import COSTS, METRICS, Cost, describe
from precede.report import audit_output, card
from test_audit_signals import SCORES, TEACHER, samples_of


def test_every_number_is_a_metric() -> None:
    """Whatever pairs and samples give has a title, one that no other number has, and tables show nothing else."""
    numbers = signals.summary(signals.pairs(SCORES, TEACHER), reach=5.0)
    numbers |= signals.sampled_summary(samples_of([[1, 0, 0, 0.4], [0.5, 0, 0, 0]]), 0.5, 1.0, 1.0)
    numbers["unigram_gain"] = signals.unigram_gain([[[1, 2], [3]]] * 3, signals.pairs(SCORES, TEACHER))
    assert set(numbers) <= set(METRICS)
    assert set(numbers) == set(audit_output.SHOWN)
    assert set(card.SHOWN) <= set(METRICS)
    for texts in ([one.title for one in METRICS.values()], [one.label for one in METRICS.values()]):
        assert len(set(texts)) == len(METRICS)
    assert f"{signals.QUANTILE:.0%}".replace("%", " %") in describe("unsupported_share").title
    assert f"({signals.QUANTILE})" in describe("unsupported_share").definition


def test_every_cost_has_a_title() -> None:
    assert list(COSTS) == list(Cost().as_dict())
    assert [one.label for one in COSTS.values()] == [
        "FLOPs",
        "sampled tokens",
        "scored tokens",
        "trained tokens",
        "wall seconds",
        "CPU seconds",
        "peak memory, GB",
    ]
