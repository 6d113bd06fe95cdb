"""How report and command line look at results: stages by role, the recipe's own setting; numbers, verdicts, sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from precede.analysis.results import Comparison, Results, StageRecord
from precede.metrics import DECODED, METRICS, describe
from precede.store import canonical_json

HEADLINE_METRICS = ("reward", "target_mass", "target_precision", "target_recall", "precision", "recall")
PAIR_METRICS = ("ranking_accuracy", "margin", "chosen_logp")
"""What is told of held-out pairs, where there are any."""
SIGNIFICANT = 0.05
SAME = 1e-6
"""Relative difference of means below which two orders are the same to rounding."""


def by_role(results: Results) -> Results:
    """The results with the stages of `roles` called `align` and `distill` in all settings, whatever the recipe calls them."""
    names = {name: kind for kind, name in results["roles"].items()}
    if all(name == kind for name, kind in names.items()):
        return results
    dropped = set(results["roles"]) - set(names)  # a stage called align that is not the one in the orders

    def rename(settings: dict[str, Any]) -> dict[str, Any]:
        renamed = {}
        for key, value in settings.items():
            stage, dot, rest = key.partition(".")
            if stage not in dropped:
                renamed[names.get(stage, stage) + dot + rest] = value
        return renamed

    own = [rename(settings) for settings in results["own"]]
    view: Any = {**results, "recipe": rename(results["recipe"]), "own": own}
    for section in ("runs", "comparisons", "matched", "order_gap"):
        view[section] = [{**row, "settings": rename(row["settings"])} for row in view[section]]
    return cast("Results", view)


def method_name(settings: Mapping[str, Any]) -> str:
    """`dpo on-policy`: the method and pairs of the align stage; `all` where the orders have none."""
    method, pairs = settings.get("align.method"), settings.get("align.pairs")
    return f"{method or 'all'} {pairs.replace('_', '-')}" if pairs else str(method or "all")


METHOD_KEYS = ("align.method", "align.pairs")
Bases = Mapping[str, Mapping[str, Any]]
"""Method → the recipe's own setting under that method."""


def bases(results: Results) -> dict[str, dict[str, Any]]:
    """The recipe's own setting under each of its methods; settings that a method does not read have the recipe's values."""
    recipe = results["recipe"]
    return {method_name(base): {key: _filled(key, base, recipe) for key in base} for base in results["own"]}


def _filled(key: str, settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> Any:
    if settings[key] is not None:
        return settings[key]
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def line(rows: Sequence[Any], base: Bases, free: Sequence[str] = ()) -> list[Any]:
    """Rows (anything with settings) that are at their method's own setting but for the settings in `free`."""
    return [row for row in rows if at_base(row["settings"], base, free)]


def at_base(settings: Mapping[str, Any], base: Bases, free: Sequence[str] = ()) -> bool:
    """Whether settings are their method's own but for `free`; one that the method does not read is null and says nothing."""
    fixed, ignored = base.get(method_name(settings)), (*METHOD_KEYS, *free)
    return fixed is not None and all(key in ignored or settings.get(key) in (fixed[key], None) for key in fixed)


def own_setting(results: Results) -> list[Comparison]:
    """Comparisons at the recipe's own setting, every method of the sweep, in the order of method, metric."""
    base = bases(results)
    methods, metrics = list(base), list(METRICS)

    def rank(c: Comparison) -> tuple[int, str, int]:
        return methods.index(method_name(c["settings"])), c["b"], metrics.index(c["metric"].removeprefix(DECODED))

    return sorted(line(results["comparisons"], base), key=rank)


def first(results: Results) -> str:
    """The order that all comparisons name first."""
    return results["comparisons"][0]["a"] if results["comparisons"] else "a"


def groups(results: Results) -> list[list[StageRecord]]:
    """Stages in the recipe's own world that differ in their seeds alone."""
    by_key = {record["key"]: record for record in results["stages"]}
    world = next((record["world"] for record in results["stages"] if record["kind"] != "given"), {})
    groups: dict[str, list[StageRecord]] = {}
    for record in results["stages"]:
        chain: list[Any] = [record["config"], record["student"]]
        ancestor = record
        while ancestor["parent"] is not None:
            ancestor = by_key[ancestor["parent"]]
            chain += [ancestor["config"], ancestor["student"]]
        if record["world"] == world or record["kind"] == "given":
            groups.setdefault(canonical_json([record["lineage"], chain]), []).append(record)
    return list(groups.values())


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: fewer decimals where it is larger, – where undefined."""
    if value is None:
        return "–"
    size = abs(value)
    if value != 0 and (size < 10**-digits or size >= 1e5):
        return f"{value:.2e}"
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
    verbs = {"wins": "beats", "loses": "loses to", "undecided": "is not told apart from", "tie": "ties with"}
    rows: dict[tuple[str, str], list[Comparison]] = {}
    for c in own_setting(results):
        if c["metric"] in ("reward", "target_precision") and c["mean_difference"] is not None:
            rows.setdefault((method_name(c["settings"]), c["b"]), []).append(c)
    lines = []
    for (method, other), comparisons in rows.items():
        parts = [
            f"{verbs.get(verdict(c), 'against')} {other} on {describe(c['metric']).title} "
            f"({number(c['mean_a'])} against {number(c['mean_b'])}, difference {number(c['mean_difference'])} "
            f"{interval(c['ci95']) if c['n_seeds'] > 1 else 'without interval'})"
            for c in comparisons
        ]
        seeds = min(c["n_seeds"] for c in comparisons)
        lines.append(f"{method}, {seeds} seed{'s' * (seeds != 1)}: {comparisons[0]['a']} {' and '.join(parts)}.")
    return lines
