"""What one alignment gives over λ, beside an alignment of its own at each price β/λ: a figure and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from precede import stats
from precede.analysis.outcomes import Array, log_odds
from precede.analysis.results import Results, Run
from precede.metrics import describe
from precede.report.figures import Figure, canvas, measured_in
from precede.report.tables import OWN, Table, departure, narrower
from precede.report.view import bases, interval, method_name, number
from precede.settings.order import ALIGN_THEN_DISTILL
from precede.store import canonical_json

LAMBDA, BETA = "distill.extrapolation", "align.beta"
EQUAL = 1e-6
"""Relative difference of two prices that are one."""
SHOWN = ("target_mass", "target_log_odds", "reward", "recall", "kl_to_truth")
ONE, ANEW = "from one alignment", "aligned anew at β/λ"
LOOKS: dict[str, dict[str, Any]] = {
    ONE: {"color": "#1f6fb4", "marker": "o", "markersize": 3},
    ANEW: {"color": "#3b8f5a", "marker": "s", "markersize": 6, "markerfacecolor": "none"},
}

Seeds = Mapping[int, Run]


@dataclass(frozen=True)
class Pair:
    """What is distilled at λ from the alignment at β, and, where it was run, what is distilled from the one at β/λ."""

    extrapolation: float
    beta: float
    one: Seeds
    anew: Seeds

    def values(self, which: str, metric: str) -> Array:
        """A metric of each seed, (seeds,)."""
        seeds = self.one if which == ONE else self.anew
        rows = [seeds[seed]["metrics"] for seed in sorted(seeds)]
        columns = {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]}
        return log_odds(columns) if metric == "target_log_odds" else columns[metric]


@dataclass(frozen=True)
class Line:
    """One setting: its λ in rising order, those aside at which nothing can be compared."""

    settings: dict[str, Any]
    pairs: list[Pair]

    def flops(self, results: Results) -> tuple[float, float]:
        """Of all λ with the one alignment, counted once, and of all alignments anew with what is distilled from each; means."""
        both = [
            sum(float(np.mean([run["cost"]["flops"] or 0.0 for run in seeds.values()])) for seeds in sides if seeds)
            for sides in ([p.one for p in self.pairs if p.anew], [p.anew for p in self.pairs if p.anew])
        ]
        shared = sum(1 for pair in self.pairs if pair.anew) - 1
        return both[0] - shared * _alignment(results, self.settings), both[1]


def lines(results: Results) -> list[Line]:
    """The settings under which λ was swept, seen by role."""
    cells: dict[str, dict[tuple[float, float], dict[int, Run]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in results["runs"]:
        own = run["settings"]
        if run["order"] == ALIGN_THEN_DISTILL and own.get(LAMBDA) is not None and own.get(BETA) is not None:
            rest = {key: value for key, value in own.items() if key not in (LAMBDA, BETA)}
            key = canonical_json(rest)
            settings.setdefault(key, rest)
            cells.setdefault(key, {}).setdefault((own[LAMBDA], own[BETA]), {})[run["seed"]] = run
    found = []
    for key, table in cells.items():
        for beta in sorted({price for power, price in table if power != 1}):
            powers = sorted(power for power, price in table if price == beta)
            pairs = [Pair(power, beta / power, table[power, beta], _at(table, beta / power)) for power in powers]
            found.append(Line(settings[key] | {LAMBDA: 1.0, BETA: beta}, pairs))
    return found


def _at(table: Mapping[tuple[float, float], dict[int, Run]], beta: float) -> dict[int, Run]:
    return next((runs for (power, b), runs in table.items() if power == 1 and abs(b - beta) <= EQUAL * beta), {})


def _alignment(results: Results, settings: Mapping[str, Any]) -> float:
    """FLOPs of the alignment itself, mean over seeds."""
    wanted = {key.removeprefix("align."): value for key, value in settings.items() if key.startswith("align.")}
    spent = [
        record["cost"]["flops"] or 0.0
        for record in results["stages"]
        if record["kind"] == "align"
        and len(record["lineage"]) == 2
        and all(record["config"].get(name) in (value, None) for name, value in wanted.items() if "." not in name)
        and record["config"]["beta"] == settings[BETA]
    ]
    return float(np.mean(spent)) if spent else 0.0


def extrapolation_tables(results: Results) -> list[Table]:
    """Each λ beside the alignment at its price, where λ was swept."""
    base = bases(results)
    rows: list[list[Any]] = []
    for one in lines(results):
        name, where = method_name(one.settings), departure(one.settings, base)
        measured = {"target_log_odds", *next(iter(one.pairs[0].one.values()))["metrics"]}
        metrics = [metric for metric in SHOWN if metric in measured and "target_mass" in measured]
        for metric in metrics:
            for pair in one.pairs:
                own = pair.values(ONE, metric)
                cells = [f"{pair.extrapolation:g}", f"{pair.beta:g}", number(float(np.mean(own)))]
                if pair.anew and pair.one is not pair.anew:
                    other = pair.values(ANEW, metric)
                    found = stats.paired(own[None], other[None], _clusters(results)).difference
                    cells += [
                        number(float(np.mean(other))),
                        number(float(found.mean[0])),
                        interval(list(found.ci95[0])),
                    ]
                else:
                    cells += ["–", "–", "–"]
                rows.append([name, where, describe(metric).title, *cells])
    spent = [
        f"{a / b:.2g} times for {method_name(one.settings)}"
        for one in lines(results)
        for a, b in [one.flops(results)]
        if b
    ]
    cost = f" FLOPs of all λ together, of those of all alignments: {'; '.join(dict.fromkeys(spent))}." if spent else ""
    made = Table(
        "extrapolation",
        "One alignment over λ, and an alignment for each price",
        "What is distilled from π^λ·π_ref^(1−λ) of the alignment at β, and from the alignment at β/λ, which by the law of the "
        f"tilt is the same; means over seeds, difference of the two with its 95 % interval.{cost}",
        ["method", "where it departs from the recipe", "metric", "λ", "β/λ", ONE, ANEW, "difference", "95 % interval"],
        rows,
    )
    return [narrower(made)] if rows else []


def extrapolation_figure(results: Results) -> Figure | None:
    """Log-odds of the target over λ with the law, and the frontiers of both; a column for each setting."""
    found = [one for one in lines(results) if "target_mass" in next(iter(one.pairs[0].one.values()))["metrics"]]
    if not found:
        return None
    figure, axes = canvas(len(found), 2, height=3.0)
    for column, one in enumerate(found):
        top: Axes = axes[0, column]
        for which, look in LOOKS.items():
            xs, means, errors = _curve(one, which, "target_log_odds", results)
            top.errorbar(xs, means, errors, linewidth=1.2, label=which if column == 0 else None, **look)
            masses, kls = (_curve(one, which, metric, results)[1] for metric in ("target_mass", "kl_to_truth"))
            axes[1, column].plot(masses, kls, linewidth=1.2, **look)
        law = list(_law(one, results))
        if law:
            top.plot(*zip(*law, strict=True), "k--", linewidth=1.2, label="law, from λ = 1" if column == 0 else None)
        where = departure(one.settings, bases(results)).split(", ")
        top.set_title("\n".join([method_name(one.settings), *(part for part in where if part != OWN)]))
        top.set_xlabel("λ, extrapolation")
        axes[1, column].set_xlabel(measured_in("target_mass"))
    axes[0, 0].set_ylabel("log-odds of target mass (nats)")
    axes[1, 0].set_ylabel(measured_in("kl_to_truth"))
    figure.legend(loc="outside upper center", ncols=3)
    return Figure(
        "extrapolation",
        "One alignment over λ, beside an alignment for each price",
        "Above, the target over λ: distilled from one alignment, extrapolated from its reference, and from an alignment at "
        "β/λ. The law adds (λ − 1)Δ/(τβ) to the log-odds at λ = 1. Below, what each pays for its target mass. Both leave the "
        "law where a student prunes, samples are few, masses saturate, rewards differ within the target or alignment stops "
        "short of the tilt. Bars are 95 % intervals over seeds.",
        figure,
    )


def _curve(one: Line, which: str, metric: str, results: Results) -> tuple[list[float], Array, Array]:
    """λ, means and half widths of the intervals."""
    pairs = [pair for pair in one.pairs if which == ONE or pair.anew]
    values = np.array([pair.values(which, metric) for pair in pairs])
    summary = stats.summarise(values, _clusters(results))
    return [pair.extrapolation for pair in pairs], summary.mean, np.nan_to_num(np.abs(summary.ci95.T - summary.mean))


def _law(one: Line, results: Results) -> Iterator[tuple[float, float]]:
    """λ and the log-odds that the law gives, from those measured at λ = 1; nothing where no order gap says what Δ/β is."""
    tau = one.settings.get("distill.temperature")
    gap = next((g for g in results["order_gap"] if g["settings"] == one.settings), None)
    start = next((pair for pair in one.pairs if pair.extrapolation == 1), None)
    if gap is None or start is None or tau is None or tau == 1 or gap["predicted"] is None:
        return
    reach = gap["predicted"] / (1 / tau - 1)  # Δ/β
    middle = float(np.mean(start.values(ONE, "target_log_odds")))
    for pair in one.pairs:
        yield pair.extrapolation, middle + (pair.extrapolation - 1) * reach / tau


def _clusters(results: Results) -> list[int]:
    """What each seed shares with others, in the order of the seeds."""
    return [cluster for _, cluster in sorted(zip(results["recipe"]["seeds"], results["clusters"], strict=True))]
