"""The answer first: which order to ship, how sure that is, what a smaller β would do too, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
    verdicts,
)

NEGLIGIBLE = 0.01
"""Two orders are called alike where their difference is surely within this share of the sweep's largest mean."""


def answer(results: Results) -> list[list[str]]:
    """For each method and pair of orders at the recipe's own setting: the advice, and what it rests on, a sentence each.

    `results` are seen by role. Verdicts are Holm-adjusted over all that are said here.
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
    """Whether the orders surely differ by less than `NEGLIGIBLE` of the largest mean of that metric in the sweep."""
    rows = [one for one in results["comparisons"] if one["metric"] == c["metric"]]
    bound = NEGLIGIBLE * max(abs(mean or 0.0) for one in rows for mean in (one["mean_a"], one["mean_b"]))
    return all(end is not None and abs(end) <= bound for end in c["ci95"])


@dataclass(frozen=True)
class Advice:
    """What follows for the orders: `ship` the one that is ahead, `either`, since they do not differ, or not yet sure: `unsure`,
    or, with too few seeds to say anything, `silent`."""

    kind: Literal["ship", "either", "unsure", "silent"]
    ahead: str


def advices(results: Results) -> list[tuple[Comparison, Advice]]:
    """The advice of every comparison that is answered: at the recipe's own setting, by the main metric."""
    name = main_metric(results["comparisons"])
    chosen = [c for c in own_setting(results) if c["metric"] == name and c["mean_difference"] is not None]
    return [(c, _advice(c, verdict, results)) for c, verdict in zip(chosen, verdicts(chosen), strict=True)]


def _advice(c: Comparison, verdict: str, results: Results) -> Advice:
    ahead = c["b"] if verdict == "loses" or (c["mean_difference"] or 0.0) < 0 else c["a"]
    if verdict == "too few seeds":
        return Advice("silent", ahead)
    if verdict == "tie" or alike(c, results):
        return Advice("either", ahead)
    return Advice("ship" if verdict in ("wins", "loses") else "unsure", ahead)


def _ship(c: Comparison, advice: Advice, results: Results) -> str:
    title, count, turned = describe(c["metric"]).title, _count(c, results), advice.ahead == c["b"]
    first, second = (c["mean_b"], c["mean_a"]) if turned else (c["mean_a"], c["mean_b"])
    sides, sign = f"{title} {number(first)} against {number(second)}", -1.0 if turned else 1.0
    difference = f"{_signed(sign * (c['mean_difference'] or 0.0))} {_turned(c['ci95'], sign)}"
    if advice.kind == "silent":
        least = f"{stats.LEAST} are the least that can (seeds: {stats.LEAST})"
        return f"Of the orders themselves, {count} can say nothing: {sides} with {advice.ahead} ahead; {least}."
    if advice.kind == "either":
        return f"Take the cheaper: the orders do not differ on {title} ({sides}, {difference}, {count})."
    if advice.kind == "ship":
        return f"Ship {advice.ahead}: {sides}, {difference} over {count}."
    return f"Not yet sure: {advice.ahead} is ahead, {sides}, {difference} over {count}; {_settle(c, results)}"


def _count(c: Comparison, results: Results) -> str:
    seeds = f"{c['n_seeds']} seed{'s' * (c['n_seeds'] != 1)}"
    return seeds if c["n_replicates"] == c["n_seeds"] else f"{seeds} in {c['n_replicates']} worlds"


def _settle(c: Comparison, results: Results) -> str:
    needed = stats.replicates_needed(c["mean_difference"] or 0.0, c["sd_difference"] or 0.0)
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
    if d["total"] <= 0:
        return f"In parts: {_signed(d['sharpening'] or 0.0)} {interval(d['sharpening_ci95'])} of sharpening, {rest} of recall."
    if _is_recall(d, p_value):
        end = f"the rest, {rest}, is recall, which no price buys back"
    elif p_value is not None and p_value < SIGNIFICANT:
        end = f"the rest is {rest}: {d['b']} at that price is better still"
    else:
        end = (
            f"the rest, {rest}, is not told apart from 0: {d['b']} at that price is as good, as far as these seeds tell"
        )
    return (
        f"Of the {_signed(d['total'])}, {_signed(d['sharpening'] or 0.0)} {interval(d['sharpening_ci95'])} is sharpening, "
        f"which {d['b']} gets too by a smaller price of KL ({path} = {beta:g}); {end}."
    )


def _is_recall(d: Decomposition, p_value: float | None) -> bool:
    """Whether the recall part is surely above 0."""
    return p_value is not None and p_value < SIGNIFICANT and (d["recall"] or 0.0) > 0


def _cost(c: Comparison, results: Results) -> str:
    spent = {order: [r["cost"]["flops"] for r in results["runs"] if _run_of(r, order, c)] for order in (c["a"], c["b"])}
    if not all(sum(values) for values in spent.values()):
        return ""
    a, b = (sum(values) / len(values) for values in spent.values())
    return f"{c['a']} takes {a / b:.2g} times the FLOPs of {c['b']}."


def _run_of(run: Any, order: str, c: Comparison) -> bool:
    return bool(run["order"] == order and run["settings"] == c["settings"])


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + number(value)


def _turned(ends: Interval, sign: float) -> str:
    low, high = ends
    if low is None or high is None:
        return "without interval"
    return interval([low, high] if sign > 0 else [-high, -low])
