"""Numbers, verdicts and sentences for people: what report and command line share."""

from __future__ import annotations

from collections.abc import Sequence

from precede.analysis.results import Comparison, Results
from precede.metrics import describe
from precede.report.view import method_name, own_setting

SIGNIFICANT = 0.05
SAME = 1e-6
"""Relative difference of means below which two orders are the same to rounding."""


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: fewer decimals where it is larger, – where undefined."""
    if value is None:
        return "–"
    if value != 0 and (abs(value) < 10**-digits or abs(value) >= 1e5):
        return f"{value:.2e}"
    size = abs(value)
    return f"{value:,.{digits if size < 10 else min(digits, 2) if size < 100 else 1}f}"


def interval(ends: Sequence[float | None]) -> str:
    return "–" if ends[0] is None else f"[{number(ends[0])}, {number(ends[1])}]"


def verdict(comparison: Comparison) -> str:
    """Whether `a` wins: its 95 % bootstrap interval and the paired t-test must both exclude 0.

    `wins` or `loses` by the side that is better (`higher` or `lower` where neither is), else `undecided`; `tie` where the
    means agree to rounding. Both tests are asked because the percentile bootstrap alone is too sure with few seeds.
    """
    low, high = comparison["ci95"]
    if low is None or high is None or comparison["p_value"] is None:
        return "one seed" if comparison["n_seeds"] == 1 else "undecided" if comparison["n_seeds"] else "undefined"
    if max(abs(low), abs(high)) <= SAME * max(abs(comparison["mean_a"] or 0), abs(comparison["mean_b"] or 0)):
        return "tie"
    better = describe(comparison["metric"]).better
    if low <= 0 <= high or comparison["p_value"] >= SIGNIFICANT:
        return "undecided"
    if better == 0:
        return "higher" if low > 0 else "lower"
    return "wins" if low * better > 0 else "loses"


def sentences(results: Results) -> list[str]:
    """The answer first: per method, which order wins on reward and target precision at the recipe's own setting."""
    words = {"wins": "beats", "loses": "loses to", "undecided": "is not told apart from", "tie": "ties with"}
    rows: dict[tuple[str, str], list[Comparison]] = {}
    for c in own_setting(results):
        if c["metric"] in ("reward", "target_precision") and c["mean_difference"] is not None:
            rows.setdefault((method_name(c["settings"]), c["b"]), []).append(c)
    lines = []
    for (method, other), comparisons in rows.items():
        parts = [
            f"{words.get(verdict(c), 'against')} {other} on {describe(c['metric']).title} "
            f"({number(c['mean_a'])} against {number(c['mean_b'])}, difference {number(c['mean_difference'])} "
            f"{interval(c['ci95']) if c['n_seeds'] > 1 else 'without interval'})"
            for c in comparisons
        ]
        seeds = min(c["n_seeds"] for c in comparisons)
        lines.append(f"{method}, {seeds} seed{'s' * (seeds != 1)}: {comparisons[0]['a']} {' and '.join(parts)}.")
    return lines
