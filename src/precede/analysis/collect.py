"""From finished stages to results: orders compared pairwise under every setting, also at matched mass and compute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from precede import stats, theory
from precede.analysis import prompts
from precede.analysis.outcomes import Array, Outcome, Pair, Reader, json_list, json_value, log_odds, logit, matrix
from precede.analysis.results import (
    SCHEMA_VERSION,
    Comparison,
    Decomposition,
    Matched,
    OrderGap,
    Results,
    Run,
    StageRecord,
)
from precede.metrics import DECODED
from precede.plan import Node, Plan
from precede.settings.order import ALIGN_THEN_DISTILL
from precede.settings.recipe import Recipe
from precede.settings.sweep import sharpening_control
from precede.store import Store, canonical_json, library_versions

Clusters = tuple[int, ...]
"""For each seed, what it shares with others."""
Tilts = Callable[[Mapping[str, Any]], bool]
STEPS = ("steps", "trainer.max_steps")
"""What worlds call the length of an alignment."""
MASS_LEVELS = (0.25, 0.5, 0.75, 0.9)
REACHED = 0.9
"""Share of the seeds that must reach a level, or have hits to count, for an interval: which do not is no chance selection."""
DECOMPOSED = (
    "reward",
    "ranking_accuracy",
    "target_mass",
    "target_log_odds",
    "target_precision",
    "target_recall",
    "recall",
    "precision",
)
OF_TRUTH = ("recall", "target_recall", "precision", "target_precision", "target_precision_on_target", "kl_to_truth")
MATCHED_METRICS = ("reward", "target_mass", "target_recall", "recall", "precision", "kl_to_truth")


def collect(recipe: Recipe, plan: Plan, store: Store, tilts: Tilts, cluster: Callable[[int], int]) -> Results:
    """Read the finished nodes of a plan and compute everything that is reported of them.

    `tilts` says of an alignment's settings whether its optimum is the tilt, so that the order-gap law speaks of it; `cluster`
    names what a seed shares with others (`World.cluster`).
    """
    clusters = tuple(cluster(seed) for seed in recipe.seeds)
    reader = Reader(plan, store)
    outcomes = [reader.outcome(arm) for arm in plan.arms]
    names = [str(order) for order in recipe.orders]
    first = _first(recipe)
    roles = _roles(recipe, first)
    results: Results = {
        "schema_version": SCHEMA_VERSION,
        "versions": library_versions(),
        "recipe": recipe.resolved,
        "note": "",
        "orders": names,
        "clusters": list(clusters),
        "roles": roles,
        "own": [dict(variant.settings) for variant in recipe.variants if variant.own],
        "runs": [run for outcome in outcomes for run in _runs(outcome, recipe.seeds)],
        "comparisons": [],
        "matched": [],
        "decomposition": [],
        "prompts": [],
        "support": [],
        "examples": [],
        "order_gap": [],
        "stages": [_record(node, reader, tilts) for node in plan.models],
    }
    for own in results["own"]:
        arms = [outcome for outcome in outcomes if outcome.arm.settings == own]
        results["support"] += prompts.support(reader, arms, recipe.seeds)
    for other in names:
        if other != first:
            pairs = _pairs(outcomes, first, other)
            results["comparisons"] += _comparisons(pairs, first, other, clusters, reader)
            results["decomposition"] += _decompositions(outcomes, pairs, first, other, clusters)
            for pair in pairs:
                results["prompts"] += prompts.prompt_comparisons(reader, pair, recipe.seeds)
                if pair[0].arm.settings in results["own"]:
                    results["examples"] += prompts.examples(reader, pair)
            if "align" in roles:
                results["matched"] += _matched_mass(pairs, first, other, f"{roles['align']}.beta", clusters)
                for steps in STEPS:
                    swept = f"{roles['align']}.{steps}"
                    results["matched"] += _matched_compute(outcomes, first, other, swept, recipe, clusters)
    results["order_gap"] = _order_gaps(outcomes, reader, tilts, clusters)
    return results


def _first(recipe: Recipe) -> str:
    """The order that others are compared with: align > distill, else one with a sharpening-matched control, else the first."""
    if ALIGN_THEN_DISTILL in map(str, recipe.orders):
        return ALIGN_THEN_DISTILL
    stages = recipe.variants[0].stages
    pairs = itertools.permutations(recipe.orders, 2)
    return str(next((a for a, b in pairs if sharpening_control(stages, a, b)), recipe.orders[0]))


def _runs(outcome: Outcome, seeds: tuple[int, ...]) -> Iterable[Run]:
    columns = {name: json_list(values) for name, values in outcome.metrics.items()}
    costs = {name: json_list(values) for name, values in outcome.cost.items()}
    settings, order = dict(outcome.arm.settings), str(outcome.arm.order)
    for i, seed in enumerate(seeds):
        yield {
            "order": order,
            "settings": settings,
            "seed": seed,
            "metrics": {name: column[i] for name, column in columns.items()},
            "cost": {name: column[i] for name, column in costs.items()},
        }


def _record(node: Node, reader: Reader, tilts: Tilts) -> StageRecord:
    means = {name: values[np.isfinite(values)] for name, values in reader.metrics(node).items()}
    return {
        "key": node.key,
        "parent": node.parent.key if node.parent else None,
        "lineage": [ancestor.name for ancestor in node.lineage()],
        "world": dict(node.world),
        "variant": node.variant,
        "kind": node.kind,
        "config": dict(node.config),
        "student": dict(node.edges["student"].config) if "student" in node.edges else None,
        "tilts": node.kind == "align" and tilts(node.config),
        "seeds": list(node.seeds),
        "metrics": {name: float(values.mean()) if len(values) else None for name, values in means.items()},
        "cost": {name: json_value(value) for name, value in reader.cost(node).items()},
        "folder": None if node.kind == "given" else str(reader.store.folder(node)),
    }


def _roles(recipe: Recipe, order: str) -> dict[str, str]:
    """Kind → the first stage of that kind in the order `a`, whatever it is called."""
    names = next(candidate.stages for candidate in recipe.orders if str(candidate) == order)
    roles: dict[str, str] = {}
    for name in names:
        roles.setdefault(recipe.variants[0].stages[name]["kind"], name)
    return roles


def _pairs(outcomes: list[Outcome], first: str, other: str) -> list[Pair]:
    """Outcomes of the two orders under the same setting."""
    by_setting: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        by_setting.setdefault(canonical_json(outcome.arm.settings), {})[str(outcome.arm.order)] = outcome
    return [(entry[first], entry[other]) for entry in by_setting.values() if first in entry and other in entry]


def _truth(outcome: Outcome, reader: Reader) -> str | None:
    """What the final models of an arm are measured against: orders with other roots may have other truths."""
    measure = reader.plan.measures.get(outcome.arm.blocks[0][-1].key)
    truth = None if measure is None else measure.edges.get("truth")
    return None if truth is None else truth.key


def _comparisons(pairs: list[Pair], first: str, other: str, clusters: Clusters, reader: Reader) -> list[Comparison]:
    labels, left, right = [], [], []
    censored: list[int] = []
    for a, b in pairs:
        one_temperature = len({outcome.arm.blocks[0][-1].distill_temperature() for outcome in (a, b)}) == 1
        one_truth = len({_truth(outcome, reader) for outcome in (a, b)}) == 1
        for name in a.metrics:
            if name.removeprefix(DECODED).removesuffix("_per_token") in OF_TRUTH and not one_truth:
                continue
            if name in b.metrics and (one_temperature or not name.startswith(DECODED)):
                labels.append((a.arm.settings, name))
                left.append(a.metrics[name])
                right.append(b.metrics[name])
                counted = name.endswith("target_log_odds")
                censored.append(_censored(name.removesuffix("log_odds") + "mass", a, b) if counted else 0)
    if not labels:
        return []
    result = stats.paired(np.array(left), np.array(right), clusters)
    difference, p_values = result.difference, result.difference.p_values()
    spread = difference.error * np.sqrt(difference.replicates)
    return [
        {
            "a": first,
            "b": other,
            "settings": dict(settings),
            "metric": name,
            "mean_difference": json_value(difference.mean[i]),
            "ci95": _interval(difference.ci95[i], censored[i], len(clusters)),
            "sd_difference": json_value(spread[i]),
            "sd_ratio": json_value(result.sd_ratio[i]),
            "p_value": None if _bounds(censored[i], len(clusters)) else json_value(p_values[i]),
            "detectable": json_value(stats.detectable(float(spread[i]), int(difference.replicates[i]))),
            "n_seeds": int(difference.seeds[i]),
            "n_replicates": int(difference.replicates[i]),
            "n_censored": censored[i],
            "mean_a": json_value(result.a.mean[i]),
            "mean_b": json_value(result.b.mean[i]),
            "sd_a": json_value(result.a.sd[i]),
            "sd_b": json_value(result.b.sd[i]),
            "ci95_a": json_list(result.a.ci95[i]),
            "ci95_b": json_list(result.b.ci95[i]),
        }
        for i, (settings, name) in enumerate(labels)
    ]


def _bounds(censored: int, seeds: int) -> bool:
    """Whether so many of the seeds have log-odds that are bounds that their mean says little."""
    return censored > round((1 - REACHED) * seeds, 9)


def _interval(ends: Array, censored: int, seeds: int) -> list[float | None]:
    return [None, None] if _bounds(censored, seeds) else json_list(ends)


def _censored(mass: str, *outcomes: Outcome) -> int:
    """Seeds of which one of the outcomes has a counted share of 0 or 1."""
    bounds = [np.isin(outcome.metrics[mass], (0.0, 1.0)) for outcome in outcomes]
    return int(np.logical_or.reduce(bounds).sum())


def _decompositions(
    outcomes: list[Outcome], pairs: list[Pair], first: str, other: str, clusters: Clusters
) -> list[Decomposition]:
    """What distilling last gives by sharpening and what by recall, wherever the sharpening-matched control was run."""
    controls = {canonical_json(o.arm.settings): o for o in outcomes if str(o.arm.order) == other}
    labels: list[tuple[Outcome, dict[str, float], str, int]] = []
    rows: list[tuple[Array, Array, Array]] = []
    for a, b in pairs:
        control = sharpening_control(a.arm.stages, a.arm.order, b.arm.order)
        smaller = None if control is None else controls.get(canonical_json({**a.arm.settings, **control}))
        if control is None or smaller is None:
            continue
        for name in DECOMPOSED:
            if all(name in outcome.metrics for outcome in (a, smaller, b)):
                counted = name == "target_log_odds"
                labels.append((a, control, name, _censored("target_mass", a, smaller, b) if counted else 0))
                rows.append((a.metrics[name], smaller.metrics[name], b.metrics[name]))
    if not rows:
        return []
    values = np.array(rows)
    values = np.where(np.isfinite(values).all(1, keepdims=True), values, np.nan)
    top, middle, bottom = (values[:, side] for side in range(3))
    parts = {"total": top - bottom, "sharpening": middle - bottom, "recall": top - middle}
    means = [stats.summarise(part, clusters).mean for part in (top, bottom, middle)]
    summaries = {name: stats.summarise(part, clusters) for name, part in parts.items()}
    p_values = summaries["recall"].p_values()
    made = []
    for i, (a, control, name, censored) in enumerate(labels):
        sides = dict(zip(("mean_a", "mean_b", "mean_control"), (json_value(mean[i]) for mean in means), strict=True))
        row: Any = {
            "a": first,
            "b": other,
            "settings": dict(a.arm.settings),
            "control": control,
            "metric": name,
            **sides,
        }
        for part, summary in summaries.items():
            row |= {
                part: json_value(summary.mean[i]),
                f"{part}_ci95": _interval(summary.ci95[i], censored, len(clusters)),
            }
        row |= {
            "p_value": None if _bounds(censored, len(clusters)) else json_value(p_values[i]),
            "n_censored": censored,
        }
        total = summaries["total"]
        made.append(row | {"n_seeds": int(total.seeds[i]), "n_replicates": int(total.replicates[i])})
    return made


def _without(settings: Mapping[str, Any], swept: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != swept}


def _curves(pairs: list[Pair], swept: str) -> list[tuple[dict[str, Any], list[Pair]]]:
    """Pairs grouped by all settings but `swept`, where it takes at least two values."""
    groups: dict[str, tuple[dict[str, Any], list[Pair]]] = {}
    for pair in pairs:
        rest = _without(pair[0].arm.settings, swept)
        if pair[0].arm.settings.get(swept) is not None:
            groups.setdefault(canonical_json(rest), (rest, []))[1].append(pair)
    return [(rest, group) for rest, group in groups.values() if len(group) >= 2]


def _matched_mass(pairs: list[Pair], first: str, other: str, swept: str, clusters: Clusters) -> list[Matched]:
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
                if name != "target_mass" and name in sides[0][0].metrics:
                    a, b = (stats.interpolate(odds[i], matrix(sides[i], name), at) for i in (0, 1))
                    rows.append((rest, level, name, a - b))
    return _matched_rows(rows, first, other, swept, "target_mass", clusters)


def _matched_compute(
    outcomes: list[Outcome], first: str, other: str, swept: str, recipe: Recipe, clusters: Clusters
) -> list[Matched]:
    """`other` given more steps until it has spent what `first` spends at the recipe's own setting of the same method."""
    rows: list[tuple[dict[str, Any], float | str, str, Array]] = []
    for own in (variant.settings for variant in recipe.variants if variant.own and swept in variant.settings):
        fixed = _without(own, swept)
        of_other = [outcome for outcome in outcomes if str(outcome.arm.order) == other]
        longer = [outcome for outcome in of_other if _without(outcome.arm.settings, swept) == fixed]
        spender = next((o for o in outcomes if str(o.arm.order) == first and o.arm.settings == own), None)
        if len(longer) < 2 or spender is None:
            continue
        spent = np.stack([outcome.cost["flops"] for outcome in longer], axis=1)
        for name in MATCHED_METRICS:
            if name in spender.metrics:
                at_cost = stats.interpolate(spent, matrix(longer, name), spender.cost["flops"])
                rows.append((fixed, f"{own[swept]} steps of {first}", name, spender.metrics[name] - at_cost))
    return _matched_rows(rows, first, other, swept, "flops", clusters)


def _matched_rows(rows: list[Any], first: str, other: str, swept: str, along: str, clusters: Clusters) -> list[Matched]:
    if not rows:
        return []
    summary = stats.summarise(np.array([row[-1] for row in rows]), clusters)
    few = summary.seeds < REACHED * len(clusters)
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
            "ci95": [None, None] if few[i] else json_list(summary.ci95[i]),
            "n_seeds": int(summary.seeds[i]),
            "of_seeds": len(clusters),
        }
        for i, (settings, level, name, _) in enumerate(rows)
    ]


def _order_gaps(outcomes: list[Outcome], reader: Reader, tilts: Tilts, clusters: Clusters) -> list[OrderGap]:
    """The law against measurement wherever an align and a distill stage ran in both orders from one teacher."""
    by_name = {(canonical_json(outcome.arm.settings), outcome.arm.order.stages): outcome for outcome in outcomes}
    labels, predicted, measured = [], [], []
    censored: list[int] = []
    for (settings_text, names), align_first in by_name.items():
        distill_first = by_name.get((settings_text, names[::-1]))
        if [node.kind for node in align_first.arm.blocks[0][1:]] != ["align", "distill"] or distill_first is None:
            continue
        late = distill_first.arm.blocks[0][-1]
        if not tilts(align_first.arm.blocks[0][1].config) or late.edges["reference"] != late.parent:
            continue  # the law is of the tilt of the model being aligned
        aligned = [reader.metrics(chain[1]) for chain in align_first.arm.blocks]
        if any("optimal_target_mass" not in part for part in aligned):
            continue
        temperature = align_first.arm.blocks[0][-1].distill_temperature()
        best, reference = (
            np.concatenate([part[f"{of}_target_mass"] for part in aligned]) for of in ("optimal", "reference")
        )
        assert temperature is not None
        labels.append(align_first.arm.settings)
        # Δ/β is what the exact tilt adds to the log-odds of the target.
        predicted.append(theory.order_gap(logit(best) - logit(reference), 1.0, temperature))
        measured.append(log_odds(align_first.metrics) - log_odds(distill_first.metrics))
        counted = "target_log_odds" in align_first.metrics
        censored.append(_censored("target_mass", align_first, distill_first) if counted else 0)
    if not labels:
        return []
    law, seen = (stats.summarise(np.array(values), clusters) for values in (predicted, measured))
    return [
        {
            "settings": dict(settings),
            "predicted": json_value(law.mean[i]),
            "predicted_ci95": json_list(law.ci95[i]),
            "measured": json_value(seen.mean[i]),
            "measured_ci95": _interval(seen.ci95[i], censored[i], len(clusters)),
            "n_seeds": int(seen.seeds[i]),
            "n_censored": censored[i],
        }
        for i, settings in enumerate(labels)
    ]
