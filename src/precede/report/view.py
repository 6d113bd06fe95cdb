"""How report and command line look at results: stages by role, the recipe's own setting; numbers, verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from precede import stats
from precede.analysis.results import Comparison, Results, StageRecord
from precede.metrics import DECODED, METRICS, describe
from precede.store import canonical_json

HEADLINE_METRICS = ("reward", "target_mass", "target_precision", "target_recall", "precision", "recall")
PAIR_METRICS = ("ranking_accuracy", "margin", "chosen_logp")
"""What is told of held-out pairs, where there are any."""
WANTED = [*HEADLINE_METRICS, "target_precision_on_target", *PAIR_METRICS, "kl_to_truth"]
DETAILS = [name for name in METRICS if name.endswith("_per_token")] + [
    "distinct_1",
    "distinct_2",
    "kl_at_start",
    "kl_to_teacher_at_start",
    "overlap_at_start",
    "pairs",
]
GROUPS = {
    "metrics": [*WANTED, "entropy", "length", "stop_rate"],
    "sampled-at-tau": [DECODED + name for name in WANTED],
    "details": DETAILS,
}
"""The tables of metrics at the recipe's own setting, and what each tells."""
MAIN = ("reward", "ranking_accuracy")
"""What the answer is about: the reward, or the accuracy on held-out pairs where there is none."""
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
    for section in ("runs", "comparisons", "matched", "decomposition", "prompts", "support", "examples", "order_gap"):
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

    return sorted((c for c in results["comparisons"] if c["settings"] in results["own"]), key=rank)


def first(results: Results) -> str:
    """The order that all comparisons name first."""
    return results["comparisons"][0]["a"] if results["comparisons"] else "a"


def second(results: Results) -> str:
    """The order that it is compared with, where there is one."""
    return results["comparisons"][0]["b"] if results["comparisons"] and len(results["orders"]) == 2 else "the other"


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
        alike = all(record["world"].get(name, value) == value for name, value in world.items() if name != "rows")
        if alike or record["kind"] == "given":
            groups.setdefault(canonical_json([record["lineage"], chain]), []).append(record)
    return list(groups.values())


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: fewer decimals where it is larger, – where undefined."""
    if value is None or math.isnan(value):
        return "–"
    size = abs(value)
    if value != 0 and (size < 10**-digits or size >= 1e5):
        return f"{value:.2e}"
    return f"{value:,.{digits if size < 10 else min(digits, 2) if size < 100 else 1}f}"


def interval(ends: Sequence[float | None]) -> str:
    return "–" if ends[0] is None else f"[{number(ends[0])}, {number(ends[1])}]"


def main_metric(comparisons: Sequence[Comparison]) -> str | None:
    """The metric that the answer speaks of; None where there is neither."""
    return next((name for name in MAIN if any(c["metric"] == name for c in comparisons)), None)


def verdicts(family: Sequence[Comparison]) -> list[str]:
    """Whether `a` wins, for each comparison of a family: the paired t-test at 5 %, Holm-adjusted.

    `wins` or `loses` by the side that is better (`higher` or `lower` where neither is), else `undecided`; `tie` where the
    means agree to rounding, `too few seeds` below three replicates. By the adjustment, the chance that any verdict of a family
    is false is at most 5 %; an interval is of one number alone, and may exclude 0 where the verdict is undecided.
    """
    adjusted = stats.holm([None if _tie(c) else c["p_value"] for c in family])
    return [_verdict(c, p_value) for c, p_value in zip(family, adjusted, strict=True)]


def verdicts_of(rows: Sequence[Comparison], results: Results) -> list[str]:
    """Verdicts of comparisons that are in `results`: each has one, wherever it is said.

    At the recipe's own setting what the answer is about (`main_metric`) is a family, so that more numbers do not weaken it, and
    so is each of `GROUPS` without it; over the rest of the sweep every metric is one.
    """
    main = main_metric(results["comparisons"])
    families: dict[tuple[bool, str], list[Comparison]] = {}
    for c in results["comparisons"]:
        own = c["settings"] in results["own"]
        group = next((name for name, metrics in GROUPS.items() if c["metric"] in metrics and c["metric"] != main), None)
        families.setdefault((own, group if own and group else c["metric"]), []).append(c)
    said: dict[int, str] = {}
    for family in families.values():
        said |= {id(c): verdict for c, verdict in zip(family, verdicts(family), strict=True)}
    return [said[id(c)] for c in rows]


def recall_p_values(results: Results) -> list[float | None]:
    """Of each row of the decomposition the p-value of its recall part, Holm-adjusted.

    The recipe's own setting is one family for each metric, and the rest of the sweep another.
    """
    rows = results["decomposition"]
    families: dict[tuple[str, bool], list[int]] = {}
    for n, d in enumerate(rows):
        families.setdefault((d["metric"], d["settings"] in results["own"]), []).append(n)
    adjusted: list[float | None] = [None] * len(rows)
    for family in families.values():
        for n, p_value in zip(family, stats.holm([rows[n]["p_value"] for n in family]), strict=True):
            adjusted[n] = p_value
    return adjusted


def _tie(c: Comparison) -> bool:
    sides = max(abs(c["mean_a"] or 0), abs(c["mean_b"] or 0))
    return all(end is not None and abs(end) <= SAME * sides for end in c["ci95"])


def _verdict(c: Comparison, p_value: float | None) -> str:
    if c["p_value"] is None:
        return "undefined" if not c["n_seeds"] else "too few seeds" if c["n_replicates"] < stats.LEAST else "undecided"
    if _tie(c):
        return "tie"
    if p_value is None or p_value >= SIGNIFICANT:
        return "undecided"
    difference, better = c["mean_difference"] or 0.0, describe(c["metric"]).better
    if better == 0:
        return "higher" if difference > 0 else "lower"
    return "wins" if difference * better > 0 else "loses"
