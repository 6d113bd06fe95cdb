"""Fair comparisons: orders at matched target mass along the β frontier, and at matched compute."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from precede import stats
from precede.analysis.outcomes import Array, Outcome, Pair, json_list, json_value, log_odds, matrix
from precede.analysis.results import Matched
from precede.settings.recipe import Recipe
from precede.store import canonical_json

MASS_LEVELS = (0.25, 0.5, 0.75, 0.9)
MATCHED_METRICS = ("reward", "target_mass", "target_recall", "recall", "precision", "kl_to_truth")


def _curves(pairs: list[Pair], swept: str) -> list[tuple[dict[str, Any], list[Pair]]]:
    """Pairs grouped by all settings but `swept`, where it takes at least two values."""
    groups: dict[str, tuple[dict[str, Any], list[Pair]]] = {}
    for pair in pairs:
        rest = {key: value for key, value in pair[0].arm.settings.items() if key != swept}
        if pair[0].arm.settings.get(swept) is not None:
            groups.setdefault(canonical_json(rest), (rest, []))[1].append(pair)
    return [(rest, group) for rest, group in groups.values() if len(group) >= 2]


def matched_mass(pairs: list[Pair], first: str, other: str, swept: str) -> list[Matched]:
    """Both orders at equal target mass along the β frontier, interpolated in log-odds."""
    rows: list[tuple[dict[str, Any], float, str, Array]] = []
    for rest, group in _curves(pairs, swept):
        sides = [[pair[side] for pair in group] for side in (0, 1)]
        if "target_mass" not in sides[0][0].metrics:  # nothing says what is desirable
            continue
        seeds = len(sides[0][0].metrics["target_mass"])
        odds = [np.stack([log_odds(outcome.metrics) for outcome in side], axis=1) for side in sides]
        for level in MASS_LEVELS:
            at = np.full(seeds, math.log(level / (1 - level)))
            for name in MATCHED_METRICS:
                if name == "target_mass" or name not in sides[0][0].metrics:
                    continue
                a, b = (stats.interpolate(odds[i], matrix(sides[i], name), at) for i in (0, 1))
                rows.append((rest, level, name, a - b))
    return _matched(rows, first, other, swept, "target_mass")


def matched_compute(outcomes: list[Outcome], first: str, other: str, swept: str, recipe: Recipe) -> list[Matched]:
    """`other` given more steps until it has spent what `first` spends at the recipe's own setting of the same method."""
    rows: list[tuple[dict[str, Any], float | str, str, Array]] = []
    for own in (variant.settings for variant in recipe.variants if variant.own and swept in variant.settings):
        fixed = {key: value for key, value in own.items() if key != swept}
        longer = [
            outcome
            for outcome in outcomes
            if str(outcome.arm.order) == other
            and {key: value for key, value in outcome.arm.settings.items() if key != swept} == fixed
        ]
        spender = next((o for o in outcomes if str(o.arm.order) == first and o.arm.settings == own), None)
        if len(longer) < 2 or spender is None:
            continue
        spent = np.stack([outcome.cost["flops"] for outcome in longer], axis=1)
        for name in MATCHED_METRICS:
            if name in spender.metrics:
                at_cost = stats.interpolate(spent, matrix(longer, name), spender.cost["flops"])
                level = f"{own[swept]} steps of {first}"
                rows.append((fixed, level, name, spender.metrics[name] - at_cost))
    return _matched(rows, first, other, swept, "flops")


def _matched(rows: list[Any], first: str, other: str, swept: str, along: str) -> list[Matched]:
    if not rows:
        return []
    summary = stats.summarise(np.array([row[-1] for row in rows]))
    return [
        {
            "a": first,
            "b": other,
            "settings": settings,
            "swept": swept,
            "along": along,
            "level": level,
            "metric": name,
            "mean_difference": json_value(summary.mean[i]),
            "ci95": json_list(summary.ci95[i]),
            "n_seeds": int(summary.seeds[i]),
        }
        for i, (settings, level, name, _) in enumerate(rows)
    ]
