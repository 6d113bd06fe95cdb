"""The answer first: which order to ship, how sure that is, what a smaller β would do too, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precede import stats
from precede.analysis.results import Comparison, Decomposition, Interval, PromptComparison, Results
from precede.metrics import describe
from precede.report.view import (
    SIGNIFICANT,
    interval,
    main_metric,
    method_name,
    number,
    own_setting,
    recall_p_values,
    verdicts_of,
)

NEGLIGIBLE = 0.01
"""Two orders are called alike where their difference is surely within this share of what all models of the run differ by."""


def answer(results: Results) -> list[list[str]]:
    """For each method and pair of orders at the recipe's own setting: the advice, and what it rests on, a sentence each.

    `results` are seen by role. Verdicts are those of `verdicts_of`.
    """
    name, told = main_metric(results["comparisons"]), advices(results)
    both = zip(results["decomposition"], recall_p_values(results), strict=True)
    parts = {_key(d): (d, p_value) for d, p_value in both if d["metric"] == name}
    several = len({(method_name(c["settings"]), c["b"]) for c, _ in told}) > 1
    answers = []
    for c, advice in told:
        ship, (part, p_value) = _ship(c, advice, results), parts.get(_key(c), (None, None))
        sharpened = part is not None and (part["total"] or 0.0) > 0 and not _is_recall(part, p_value)
        if advice.kind == "ship" and sharpened:
            ship = f"At this price of KL, ship{ship.removeprefix('Ship')}"
        ship = f"{method_name(c['settings'])}: {ship}" if several else ship
        said = [ship, _these(c, results), "" if part is None else _parts(part, p_value), _cost(c, results)]
        answers.append([sentence for sentence in said if sentence])
    return answers


def _key(row: Comparison | Decomposition) -> str:
    return repr((row["a"], row["b"], sorted(row["settings"].items(), key=str)))


def alike(c: Comparison, results: Results) -> bool:
    """Whether the orders surely differ by less than `NEGLIGIBLE` of what all models of the run differ by."""
    bound = negligible(c["metric"], results)
    return bound > 0 and all(end is not None and abs(end) <= bound for end in c["ci95"])


def negligible(metric: str, results: Results) -> float:
    """A difference too small to matter: `NEGLIGIBLE` of the range of the metric over all models, the teacher among them."""
    means = [stage["metrics"].get(metric) for stage in results["stages"]]
    means += [c[side] for c in results["comparisons"] if c["metric"] == metric for side in ("mean_a", "mean_b")]
    known = [mean for mean in means if mean is not None]
    return NEGLIGIBLE * (max(known) - min(known)) if known else 0.0


@dataclass(frozen=True)
class Advice:
    """What follows for the orders: `ship` the one that is ahead, `either`, since they do not differ, or not yet sure: `unsure`,
    or, with too few seeds to say anything, or where neither order ever shows what is wanted, `silent`."""

    kind: Literal["ship", "either", "unsure", "silent"]
    ahead: str


def advices(results: Results) -> list[tuple[Comparison, Advice]]:
    """The advice of every comparison that is answered: at the recipe's own setting, by the main metric."""
    name = main_metric(results["comparisons"])
    chosen = [c for c in own_setting(results) if c["metric"] == name and c["mean_difference"] is not None]
    return [(c, _advice(c, verdict, results)) for c, verdict in zip(chosen, verdicts_of(chosen, results), strict=True)]


def _advice(c: Comparison, verdict: str, results: Results) -> Advice:
    ahead = c["b"] if verdict == "loses" or (c["mean_difference"] or 0.0) < 0 else c["a"]
    if verdict == "too few seeds" or _unseen(c, results):
        return Advice("silent", ahead)
    if verdict == "tie" or alike(c, results):
        return Advice("either", ahead)
    return Advice("ship" if verdict in ("wins", "loses") else "unsure", ahead)


def _unseen(c: Comparison, results: Results) -> bool:
    """Whether no sample of either order is what is wanted: they may differ as they like below what was sampled."""
    same = [one for one in results["comparisons"] if one["metric"] == "target_mass" and _key(one) == _key(c)]
    return any(one["mean_a"] == one["mean_b"] == 0 for one in same)


def _ship(c: Comparison, advice: Advice, results: Results) -> str:
    title, count, turned = describe(c["metric"]).title, _count(c, results), advice.ahead == c["b"]
    first, second = (c["mean_b"], c["mean_a"]) if turned else (c["mean_a"], c["mean_b"])
    sides, sign = f"{title} {number(first)} against {number(second)}", -1.0 if turned else 1.0
    difference = f"{_signed(sign * (c['mean_difference'] or 0.0))} {_turned(c['ci95'], sign)}"
    if advice.kind == "silent" and _unseen(c, results):
        return (
            f"Nothing can be said: no sample of either order is what is wanted (target mass 0 in {count}); measure more "
            "samples (evaluation.samples_per_prompt), train longer, or audit the models that alignment begins with."
        )
    if advice.kind == "silent":
        what = "seeds" if c["n_replicates"] == c["n_seeds"] else "worlds"
        ahead = f" with {advice.ahead} ahead" if c["mean_difference"] else ""
        least = f"{stats.LEAST} {what} are the least that can"
        return f"Of the orders themselves, {count} can say nothing: {sides}{ahead}; {least}."
    if advice.kind == "either":
        bound = f" by more than {number(negligible(c['metric'], results))}" if alike(c, results) else ""
        return f"Take the cheaper: the orders do not differ on {title}{bound} ({sides}, {difference}, {count})."
    behind = c["a"] if turned else c["b"]
    named = f" rather than {behind}" if len(results["orders"]) > 2 else ""
    if advice.kind == "ship":
        return f"Ship {advice.ahead}{named}: {sides}, {difference} over {count}."
    ahead = "neither order" if not c["mean_difference"] else f"{advice.ahead}"
    ahead += f" is ahead{' of ' + behind if named else ''}"
    return f"Not yet sure: {ahead}, {sides}, {difference} over {count}; {_settle(c, results)}"


def _count(c: Comparison, results: Results) -> str:
    seeds = f"{c['n_seeds']} seed{'s' * (c['n_seeds'] != 1)}"
    return seeds if c["n_replicates"] == c["n_seeds"] else f"{seeds} in {c['n_replicates']} worlds"


def _settle(c: Comparison, results: Results) -> str:
    if not c["sd_difference"]:
        return "every seed gives that very difference: measure on more prompts or samples."
    level = SIGNIFICANT / max(1, len(advices(results)))  # what a p-value has to pass at the worst, by Holm
    needed = stats.replicates_needed(c["mean_difference"] or 0.0, c["sd_difference"] or 0.0, level=level)
    what = "seeds" if c["n_replicates"] == c["n_seeds"] else "worlds"
    if needed is None:
        return f"a difference of this size would take more than 1,000 {what} to settle."
    more = max(1, needed - c["n_replicates"])
    return (
        f"{more} more {what if more > 1 else what[:-1]} would settle a difference of this size (with 80 % probability)."
    )


def _these(c: Comparison, results: Results) -> str:
    """The two models of the first seed, compared over prompts: that level is told apart from the seeds'."""
    rows = [p for p in results["prompts"] if _same(p, c)]
    if not rows:
        return ""
    p = rows[0]
    title = describe(p["metric"]).title
    counts = f"higher at {p['higher']} prompts, lower at {p['lower']}, equal at {p['equal']}"
    return (
        f"These two models (seed {p['seed']}): {title} {number(p['mean_a'])} of {p['a']} against {number(p['mean_b'])} of "
        f"{p['b']} on {p['n_prompts']} held-out prompts, {_signed(p['mean_difference'] or 0.0)} {interval(p['ci95'])}; "
        f"{counts}."
    )


def _same(p: PromptComparison, c: Comparison) -> bool:
    metric = "margin" if c["metric"] == "ranking_accuracy" else c["metric"]
    return p["settings"] == c["settings"] and (p["a"], p["b"], p["metric"]) == (c["a"], c["b"], metric)


def _parts(d: Decomposition, p_value: float | None) -> str:
    """What of the difference is sharpening, and what recall."""
    if d["total"] is None:
        return ""
    ((path, beta),) = d["control"].items()
    rest = f"{_signed(d['recall'] or 0.0)} {interval(d['recall_ci95'])}"
    sharpened = f"{_signed(d['sharpening'] or 0.0)} {interval(d['sharpening_ci95'])}"
    if p_value is None:
        parts = f"{number(d['sharpening'])} of sharpening, {number(d['recall'])} of recall"
        return f"In parts: {parts} ({d['b']} at {path} = {beta:g} tells them apart); so few seeds tell neither from 0."
    if d["total"] <= 0:
        return f"In parts: {sharpened} of sharpening, {rest} of recall."
    if _is_recall(d, p_value):
        end = f"the rest, {rest}, is recall, which that price does not buy"
    elif p_value < SIGNIFICANT:
        end = f"the rest is {rest}: {d['b']} at that price is better still"
    else:
        among = "beside the other verdicts here " if (d["recall_ci95"][0] or 0.0) > 0 else ""
        end = f"the rest, {rest}, is recall if it is not chance: {among}these seeds do not tell it from 0"
    return (
        f"Of the {_signed(d['total'])}, {sharpened} is sharpening, which {d['b']} gets too by a smaller price of KL "
        f"({path} = {beta:g}); {end}."
    )


def _is_recall(d: Decomposition, p_value: float | None) -> bool:
    """Whether the recall part is surely above 0."""
    return p_value is not None and p_value < SIGNIFICANT and (d["recall"] or 0.0) > 0


def _cost(c: Comparison, results: Results) -> str:
    a, b = (mean_flops(results, order, c) for order in (c["a"], c["b"]))
    return f"{c['a']} takes {a / b:.2g} times the FLOPs of {c['b']}." if a and b else ""


def mean_flops(results: Results, order: str, c: Comparison) -> float:
    """FLOPs of an order at the setting of a comparison, mean over seeds."""
    spent = [
        r["cost"]["flops"] or 0.0 for r in results["runs"] if r["order"] == order and r["settings"] == c["settings"]
    ]
    return sum(spent) / len(spent) if spent else 0.0


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + number(value)


def _turned(ends: Interval, sign: float) -> str:
    low, high = ends
    if low is None or high is None:
        return "without interval"
    return interval([low, high] if sign > 0 else [-high, -low])
