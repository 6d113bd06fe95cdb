"""From finished stages to results: every order under every setting and seed, compared pairwise (see `precede.results`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precede import stats, theory
from precede.order import ALIGN_THEN_DISTILL
from precede.plan import Arm, Plan
from precede.recipe import Recipe
from precede.results import SCHEMA_VERSION, Comparison, Matched, OrderGap, Results, Run, StageRecord
from precede.store import Stage, Store, canonical_json, library_versions

Array = NDArray[np.float64]
MASS_LEVELS = (0.25, 0.5, 0.75, 0.9)
MATCHED_METRICS = ("reward", "target_mass", "target_recall", "recall", "precision", "kl_to_truth")


@dataclass
class Outcome:
    """One arm with its numbers over all seeds, in the order of the recipe's seeds."""

    arm: Arm
    metrics: dict[str, Array]
    cost: dict[str, Array]


def collect(recipe: Recipe, plan: Plan, store: Store) -> Results:
    """Read the finished stages of a plan and compute everything that is reported of them."""
    reader = _Reader(store)
    outcomes = [_outcome(arm, reader) for arm in plan.arms]
    names = [str(order) for order in recipe.orders]
    first = ALIGN_THEN_DISTILL if ALIGN_THEN_DISTILL in names else names[0]
    roles = _roles(recipe, first)
    results: Results = {
        "schema_version": SCHEMA_VERSION,
        "versions": library_versions(),
        "recipe": recipe.resolved,
        "note": "",
        "orders": names,
        "roles": roles,
        "own": [dict(variant.settings) for variant in recipe.variants if variant.own],
        "runs": [run for outcome in outcomes for run in _runs(outcome, recipe.seeds)],
        "comparisons": [],
        "matched": [],
        "order_gap": [],
        "stages": [_record(stage, reader) for stage in plan.stages],
    }
    for other in names:
        if other != first:
            pairs = _pairs(outcomes, first, other)
            results["comparisons"] += _comparisons(pairs, first, other)
            if "align" in roles:
                results["matched"] += _matched_mass(pairs, first, other, f"{roles['align']}.beta")
                results["matched"] += _matched_compute(outcomes, first, other, f"{roles['align']}.steps", recipe)
    results["order_gap"] = _order_gaps(outcomes, reader)
    return results


class _Reader:
    """Reads each finished stage once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._metrics: dict[str, dict[str, Array]] = {}
        self._costs: dict[str, dict[str, float]] = {}

    def metrics(self, stage: Stage) -> dict[str, Array]:
        if stage.key not in self._metrics:
            raw = self.store.metrics(stage)
            self._metrics[stage.key] = {name: np.array(values, dtype=float) for name, values in raw.items()}
        return self._metrics[stage.key]

    def cost(self, stage: Stage) -> dict[str, float]:
        if stage.key not in self._costs:
            self._costs[stage.key] = self.store.cost(stage)
        return self._costs[stage.key]


def _outcome(arm: Arm, reader: _Reader) -> Outcome:
    finals = [reader.metrics(chain[-1]) for chain in arm.blocks]
    metrics = {name: np.concatenate([final[name] for final in finals]) for name in finals[0]}
    cost: dict[str, list[float]] = {}
    for chain in arm.blocks:
        parts = [reader.cost(stage) for stage in chain[1:]]  # the teacher is there before any order begins
        for name in parts[0]:
            values = [part[name] for part in parts]
            total = max(values) if name == "peak_memory_bytes" else sum(values)
            cost.setdefault(name, []).extend([total] * len(chain[0].seeds))
    return Outcome(arm, metrics, {name: np.array(values) for name, values in cost.items()})


def _runs(outcome: Outcome, seeds: tuple[int, ...]) -> Iterable[Run]:
    columns = {name: _json_list(values) for name, values in outcome.metrics.items()}
    costs = {name: values.tolist() for name, values in outcome.cost.items()}
    settings, order = dict(outcome.arm.settings), str(outcome.arm.order)
    for i, seed in enumerate(seeds):
        yield {
            "order": order,
            "settings": settings,
            "seed": seed,
            "metrics": {name: column[i] for name, column in columns.items()},
            "cost": {name: column[i] for name, column in costs.items()},
        }


def _record(stage: Stage, reader: _Reader) -> StageRecord:
    means = {name: values[np.isfinite(values)] for name, values in reader.metrics(stage).items()}
    return {
        "key": stage.key,
        "lineage": [ancestor.name for ancestor in stage.lineage()],
        "kind": stage.kind,
        "config": dict(stage.config),
        "seeds": list(stage.seeds),
        "metrics": {name: float(values.mean()) if len(values) else None for name, values in means.items()},
        "cost": reader.cost(stage),
        "folder": str(reader.store.folder(stage)),
    }


def _roles(recipe: Recipe, order: str) -> dict[str, str]:
    """Kind → the first stage of that kind in the order `a`, whatever it is called."""
    names = next(candidate.stages for candidate in recipe.orders if str(candidate) == order)
    roles: dict[str, str] = {}
    for name in names:
        roles.setdefault(recipe.variants[0].stages[name]["kind"], name)
    return roles


Pair = tuple[Outcome, Outcome]


def _pairs(outcomes: list[Outcome], first: str, other: str) -> list[Pair]:
    """Outcomes of the two orders under the same setting."""
    by_setting: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        by_setting.setdefault(canonical_json(outcome.arm.settings), {})[str(outcome.arm.order)] = outcome
    return [(entry[first], entry[other]) for entry in by_setting.values() if first in entry and other in entry]


def _comparisons(pairs: list[Pair], first: str, other: str) -> list[Comparison]:
    labels, left, right = [], [], []
    for a, b in pairs:
        for name in a.metrics:
            if name in b.metrics:
                labels.append((a.arm.settings, name))
                left.append(a.metrics[name])
                right.append(b.metrics[name])
    result = stats.paired(np.array(left), np.array(right))
    return [
        {
            "a": first,
            "b": other,
            "settings": dict(settings),
            "metric": name,
            "mean_difference": _json(result.difference.mean[i]),
            "ci95": _json_list(result.difference.ci95[i]),
            "sd_ratio": _json(result.sd_ratio[i]),
            "p_value": _json(result.p_value[i]),
            "n_seeds": int(result.difference.seeds[i]),
            "mean_a": _json(result.a.mean[i]),
            "mean_b": _json(result.b.mean[i]),
            "sd_a": _json(result.a.sd[i]),
            "sd_b": _json(result.b.sd[i]),
            "ci95_a": _json_list(result.a.ci95[i]),
            "ci95_b": _json_list(result.b.ci95[i]),
        }
        for i, (settings, name) in enumerate(labels)
    ]


def _curves(pairs: list[Pair], swept: str) -> list[tuple[dict[str, Any], list[Pair]]]:
    """Pairs grouped by all settings but `swept`, where it takes at least two values."""
    groups: dict[str, tuple[dict[str, Any], list[Pair]]] = {}
    for pair in pairs:
        rest = {key: value for key, value in pair[0].arm.settings.items() if key != swept}
        if pair[0].arm.settings.get(swept) is not None:
            groups.setdefault(canonical_json(rest), (rest, []))[1].append(pair)
    return [(rest, group) for rest, group in groups.values() if len(group) >= 2]


def _matched_mass(pairs: list[Pair], first: str, other: str, swept: str) -> list[Matched]:
    """Both orders at equal target mass along the β frontier, interpolated in log-odds."""
    rows: list[tuple[dict[str, Any], float, str, Array]] = []
    for rest, group in _curves(pairs, swept):
        sides = [[pair[side] for pair in group] for side in (0, 1)]
        seeds = len(sides[0][0].metrics["target_mass"])
        odds = [np.stack([_log_odds(outcome.metrics) for outcome in side], axis=1) for side in sides]
        for level in MASS_LEVELS:
            at = np.full(seeds, math.log(level / (1 - level)))
            for name in MATCHED_METRICS:
                if name == "target_mass" or name not in sides[0][0].metrics:
                    continue
                a, b = (stats.interpolate(odds[i], _matrix(sides[i], name), at) for i in (0, 1))
                rows.append((rest, level, name, a - b))
    return _matched(rows, first, other, swept, "target_mass")


def _matched_compute(outcomes: list[Outcome], first: str, other: str, swept: str, recipe: Recipe) -> list[Matched]:
    """`other` given more steps until it has spent what `first` spends at the recipe's own setting of the same method."""
    rows: list[tuple[dict[str, Any], float | str, str, Array]] = []
    for own in (variant.settings for variant in recipe.variants if variant.own):
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
                at_cost = stats.interpolate(spent, _matrix(longer, name), spender.cost["flops"])
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
            "mean_difference": _json(summary.mean[i]),
            "ci95": _json_list(summary.ci95[i]),
            "n_seeds": int(summary.seeds[i]),
        }
        for i, (settings, level, name, _) in enumerate(rows)
    ]


def _order_gaps(outcomes: list[Outcome], reader: _Reader) -> list[OrderGap]:
    """The law against measurement wherever an align and a distill stage ran in both orders from one teacher."""
    by_name = {(canonical_json(outcome.arm.settings), outcome.arm.order.stages): outcome for outcome in outcomes}
    labels, predicted, measured = [], [], []
    for (settings_text, names), align_first in by_name.items():
        distill_first = by_name.get((settings_text, names[::-1]))
        if [stage.kind for stage in align_first.arm.blocks[0][1:]] != ["align", "distill"] or distill_first is None:
            continue
        aligned = [reader.metrics(chain[1]) for chain in align_first.arm.blocks]
        if "optimal_target_mass" not in aligned[0]:
            continue
        temperature = align_first.arm.blocks[0][-1].distill_temperature()
        best, reference = (
            np.concatenate([part[name] for part in aligned])
            for name in ("optimal_target_mass", "reference_target_mass")
        )
        assert temperature is not None
        labels.append(align_first.arm.settings)
        # Δ/β is what the exact tilt adds to the log-odds of the target.
        predicted.append(theory.order_gap(_logit(best) - _logit(reference), 1.0, temperature))
        measured.append(_log_odds(align_first.metrics) - _log_odds(distill_first.metrics))
    if not labels:
        return []
    law, seen = stats.summarise(np.array(predicted)), stats.summarise(np.array(measured))
    return [
        {
            "settings": dict(settings),
            "predicted": _json(law.mean[i]),
            "predicted_ci95": _json_list(law.ci95[i]),
            "measured": _json(seen.mean[i]),
            "measured_ci95": _json_list(seen.ci95[i]),
            "n_seeds": int(seen.seeds[i]),
        }
        for i, settings in enumerate(labels)
    ]


def _matrix(outcomes: list[Outcome], name: str) -> Array:
    """(seeds, points)."""
    return np.stack([outcome.metrics[name] for outcome in outcomes], axis=1)


def _log_odds(metrics: dict[str, Array]) -> Array:
    """Log-odds of the target mass: the world's own estimate where it counts hits, else those of the mass."""
    return metrics["target_log_odds"] if "target_log_odds" in metrics else _logit(metrics["target_mass"])


def _logit(mass: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(mass) - np.log1p(-mass)
    return np.where(np.isfinite(odds), odds, np.nan)


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _json_list(values: Array) -> list[float | None]:
    return [_json(value) for value in values.tolist()]
