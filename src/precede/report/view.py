"""How report and command line look at results: the stages by their role, and the recipe's own setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from precede.metrics import DECODED, METRICS
from precede.results import Comparison, Results

HEADLINE_METRICS = ("reward", "target_mass", "target_precision", "target_recall", "precision", "recall")


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

    view: Any = dict(results)
    view["recipe"] = rename(results["recipe"])
    for section in ("runs", "comparisons", "matched", "order_gap"):
        rows: Any = view[section]
        view[section] = [{**row, "settings": rename(row["settings"])} for row in rows]
    found: Results = view
    return found


def method_name(settings: Mapping[str, Any]) -> str:
    """`dpo on-policy`: the method and pairs of the align stage; `all` where the orders have none."""
    method, pairs = settings.get("align.method"), settings.get("align.pairs")
    return f"{method or 'all'} {pairs.replace('_', '-')}" if pairs else str(method or "all")


METHOD_KEYS = ("align.method", "align.pairs")


def line(comparisons: Sequence[Comparison], base: Mapping[str, Any], free: Sequence[str]) -> list[Comparison]:
    """Comparisons at the base setting but for the settings in `free` (a missing setting is equal to a null one)."""
    fixed = [key for key in base if key not in free]
    return [c for c in comparisons if all(same(key, c["settings"], base) for key in fixed)]


def own_setting(results: Results) -> list[Comparison]:
    """Comparisons at the recipe's own setting, every method of the sweep, in the order of method, metric."""
    rank = list(METRICS)
    chosen = line(results["comparisons"], base_settings(results), METHOD_KEYS)
    methods = list(dict.fromkeys(method_name(c["settings"]) for c in chosen))
    return sorted(
        chosen,
        key=lambda c: (
            methods.index(method_name(c["settings"])),
            c["b"],
            rank.index(c["metric"].removeprefix(DECODED)),
        ),
    )


def same(key: str, settings: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether a setting is the base's; one that a method does not read is null there and says nothing against it."""
    return settings.get(key) == base.get(key) or settings.get(key) is None


def base_settings(results: Results) -> dict[str, Any]:
    """The settings of the recipe as written; those that its method does not read have the recipe's values too."""
    settings = dict(results["runs"][0]["settings"])
    for key in settings:
        value: Any = results["recipe"]
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        settings[key] = value
    return settings
