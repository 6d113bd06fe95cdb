"""The tables of a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from precede.analysis.prompts import FIRST
from precede.analysis.results import Comparison, Matched, Results, StageRecord
from precede.metrics import COSTS, describe
from precede.report import view
from precede.report.answer import NEGLIGIBLE, alike
from precede.report.view import Bases, at_base, bases, groups, interval, method_name, number, own_setting

MATCHED_COLUMNS = ["method", "against", "level", "metric", "difference", "95 % interval", "seeds that reach it"]
MATCHED_COLUMNS += ["other settings"]
MODEL_KEYS = ["method", "divergence", "components", "hidden_size", "layers", "keep_layers", "temperature"]
MODEL_KEYS += ["extrapolation", "samples", "samples_per_prompt"]
DECODING = (
    "The final models of both orders sampled at the τ of distillation, which is no control: aligning first, the student is "
    "sharpened twice then, and the gap in log-odds grows by 1/τ. For what sharpening gives see the table of its two parts. "
)
OPTIMUM_METRICS = ["reference_target_mass", "target_mass", "optimal_target_mass", "reward", "optimal_reward", "regret"]
OPTIMUM_METRICS += ["kl_at_start", "kl_to_reference"]
OWN = "own setting"
ARM_METRICS = ("target_recall", "recall", "precision", "target_precision_on_target")


@dataclass(frozen=True)
class Table:
    """A table of the report; cells are text or numbers, and numbers sort as numbers."""

    name: str
    title: str
    caption: str
    columns: list[str]
    rows: list[list[Any]]

    def markdown(self) -> str:
        """The table as GitHub writes it."""
        heads, *rows = ([_escaped(str(cell)) for cell in row] for row in (self.columns, *self.rows))
        lines = [heads, ["---"] * len(heads), *rows]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _escaped(cell: str) -> str:
    """Text that a model may have written, as a cell of a Markdown table."""
    plain = cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return "<br>".join(plain.splitlines())


def tables(results: Results) -> list[Table]:
    """All tables for which there are data."""
    base = bases(results)
    every = [
        _metrics_table(results, "metrics", "Every metric by order"),
        _metrics_table(results, "sampled-at-tau", "Final models sampled at τ", DECODING),
        _metrics_table(results, "details", "Metrics per token, and diversity"),
        _parts_table(results, base),
        _prompts_table(results),
        _support_table(results),
        _examples_table(results),
        _against_table(results),
        _arms_table(results, base),
        _matched_table(results, "target_mass", "matched-mass", "At matched target mass"),
        _matched_table(results, "flops", "matched-compute", "At matched compute"),
        _optimum_table(results, base),
        _costs_table(results, base),
        _models_table(results),
    ]
    return [narrower(table) for table in every if table.rows]


TOLD_ONCE = ["method", "against", "where it departs from the recipe", "other settings", "seeds"]
TOLD_ONCE += ["prompt", "difference in mean reward"]
"""Columns that are left out where all rows say the same, which the caption says then."""


def narrower(table: Table) -> Table:
    """The table without columns that say nothing, or the same in all rows."""
    cells = {n: {str(row[n]) for row in table.rows} for n in range(len(table.columns))}
    once = {n for n, name in enumerate(table.columns) if name in TOLD_ONCE and len(cells[n]) == 1}
    left = [n for n in cells if n not in once and not cells[n] <= {"–", ""}]
    said = "".join(f" {table.columns[n].capitalize()}: {min(cells[n])}." for n in sorted(once) if cells[n] != {""})
    rows = [[row[n] for n in left] for row in table.rows]
    return Table(table.name, table.title, table.caption + said, [table.columns[n] for n in left], rows)


def _metrics_table(results: Results, name: str, title: str, note: str = "") -> Table:
    rows: list[list[Any]] = []
    family = [c for c in own_setting(results) if c["metric"] in view.GROUPS[name] and c["n_seeds"]]
    for c, verdict in zip(family, view.verdicts_of(family, results), strict=True):
        metric = describe(c["metric"])
        named = metric.title if len(results["orders"]) <= 2 else f"{metric.title} (against {c['b']})"
        ends = [number(c["sd_ratio"], 2), verdict, number(c["detectable"]), c["n_seeds"]]
        rows.append([method_name(c["settings"]), named, metric.unit, *_sides(c), *_difference(c), *ends])
    first, other = view.first(results), view.second(results)
    caption = (
        f"{note}Mean ± standard deviation over seeds at the recipe's own setting; the difference is {first} minus {other}, "
        "paired by seed, with its 95 % interval (Student's t). Verdicts are for the first. Sd ratio: its standard deviation "
        "over the other's. Could see: the difference that so many seeds call with 80 % probability."
    )
    columns = ["method", "metric", "unit", first, other, "difference", "95 % interval", "sd ratio", "verdict"]
    columns += ["could see", "seeds"]
    return Table(name, title, caption, columns, rows)


PARTS = ("reward", "ranking_accuracy", "target_mass", "target_log_odds")
PROMPT_KEYS = ("higher", "lower", "equal")


def _parts_table(results: Results, base: Bases) -> Table:
    """The difference in its two parts, over the whole sweep."""
    rows = []
    for d, p_value in zip(results["decomposition"], view.recall_p_values(results), strict=True):
        if d["metric"] not in PARTS or d["total"] is None:
            continue
        sides = [number(d[name]) for name in ("mean_a", "mean_b", "mean_control")]
        parts: list[Any] = []
        for name in ("total", "sharpening", "recall"):
            parts += [number(d[name]), interval(d[f"{name}_ci95"])]  # type: ignore[literal-required]
        sure = "–" if p_value is None else "yes" if p_value < view.SIGNIFICANT else "no"
        where = departure(d["settings"], base)
        bounds = f" ({d['n_censored']} of {d['n_seeds']} seeds are bounds)" if d["n_censored"] else ""
        names = [method_name(d["settings"]), where, d["b"], describe(d["metric"]).title + bounds]
        rows.append([*names, *sides, *parts, sure, d["n_seeds"]])
    first, other = view.first(results), view.second(results)
    return Table(
        "parts",
        "What is sharpening, and what is recall",
        "An order that ends with distillation at τ < 1 ends with a step that sharpens. The control is the other order at the "
        f"smaller price τβ, which sharpens as much. Sharpening = control − {other}: anybody can have it by paying less. "
        f"Recall = {first} − control: what that price does not buy. Sure: the recall part is told apart from 0.",
        ["method", "where it departs from the recipe", "against", "metric", first, other, "control", "total"]
        + ["95 % interval", "sharpening", "95 % interval ", "recall", "95 % interval  ", "sure", "seeds"],
        rows,
    )


def _prompts_table(results: Results) -> Table:
    rows = []
    for p in results["prompts"]:
        if p["settings"] in results["own"]:
            sides = [number(p["mean_a"]), number(p["mean_b"]), number(p["mean_difference"]), interval(p["ci95"])]
            counts = [p[name] for name in PROMPT_KEYS]  # type: ignore[literal-required]
            rows.append([method_name(p["settings"]), p["b"], p["seed"], describe(p["metric"]).title, *sides, *counts])
    first = view.first(results)
    return Table(
        "prompts",
        "These models, prompt by prompt",
        f"The final models of {first} and of the other order that one seed made, on the same held-out prompts; the interval is "
        "over prompts and says nothing of another seed. Higher, lower, equal: at how many prompts.",
        [
            "method",
            "against",
            "seed",
            "metric",
            first,
            view.second(results),
            "difference",
            "95 % interval",
            *PROMPT_KEYS,
        ],
        rows,
    )


def _support_table(results: Results) -> Table:
    groups: dict[tuple[str, str], list[Any]] = {}
    for one in results["support"]:
        groups.setdefault((method_name(one["settings"]), one["model"]), []).append(one)
    ks = sorted({int(k) for one in results["support"] for k in one["pass_at"]})
    rows = []
    for (method, model), ones in groups.items():
        shares = [_mean_of([one["pass_at"].get(str(k)) for one in ones]) for k in ks]
        rows.append([method, model, *shares, *(_mean_of([one[name] for one in ones]) for name in _CHANGES), len(ones)])
    return Table(
        "support",
        "What k samples of a prompt reach",
        "Share of held-out prompts with a desirable completion among k samples, mean over seeds (unbiased estimator). Kept, "
        "lost, gained: shares of the prompts at which the stage's start had one among all samples, and whether its model has.",
        ["method", "model", *(f"k = {k}" for k in ks), *_CHANGES, "seeds"],
        rows,
    )


_CHANGES = ("kept", "lost", "gained")


def _mean_of(values: list[float | None]) -> str:
    defined = [value for value in values if value is not None]
    return number(sum(defined) / len(defined) if defined else None)


def _examples_table(results: Results) -> Table:
    first, rows = view.first(results), []
    for one in results["examples"]:
        sides = [one["completion_a"], number(one["reward_a"]), one["completion_b"], number(one["reward_b"])]
        rows.append([method_name(one["settings"]), one["b"], one["prompt"], *sides, number(one["difference"])])
    one_prompt = len({one["row"] for one in results["examples"]}) == 1
    what = (
        f"The first {FIRST} completions of each final model of the first seed, in the order they were drawn; the two in a row "
        "have only that in common."
        if one_prompt
        else "The first completion of each final model of the first seed at the prompts with the largest, upper quartile, "
        "median, lower quartile and smallest difference in mean reward."
    )
    return Table(
        "examples",
        "What both orders' models write to the same prompt",
        what,
        ["method", "against", "prompt", first, "reward", view.second(results), "reward ", "difference in mean reward"],
        rows,
    )


def _sides(c: Comparison) -> list[str]:
    """The means of both orders, with their deviations over seeds."""
    sides = ((c["mean_a"], c["sd_a"]), (c["mean_b"], c["sd_b"]))
    return [number(mean) if deviation is None else f"{number(mean)} ± {number(deviation)}" for mean, deviation in sides]


def _difference(row: Comparison | Matched) -> list[str]:
    return [number(row["mean_difference"]), interval(row["ci95"])]


def _against_table(results: Results) -> Table:
    """Where align > distill does not win on reward or target precision, over the whole sweep."""
    told = ("reward", "target_precision")
    family = [c for c in results["comparisons"] if c["metric"] in told and c["ci95"][1] is not None]
    rows = []
    for c, kind in zip(family, view.verdicts_of(family, results), strict=True):
        tie = c["metric"] == "reward" and alike(c, results)
        if kind != "wins" or tie:
            row = [method_name(c["settings"]), c["b"], describe(c["metric"]).title]
            row += [number(c["mean_a"]), number(c["mean_b"]), *_difference(c)]
            rows.append([*row, f"{kind}, a tie in size" if tie else kind, _others(c["settings"])])
    first = view.first(results)
    caption = (
        f"Every setting of the sweep at which {first} does not win on reward or target precision, or wins by less than "
        f"{100 * NEGLIGIBLE:.0f} % of what all models of the run differ by. Overall recall and precision are in the first "
        "table: they often go the other way."
    )
    columns = [
        "method",
        "against",
        "metric",
        first,
        view.second(results),
        "difference",
        "95 % interval",
        "verdict",
        "setting",
    ]
    return Table("against", "Where the claim does not hold", caption, columns, rows)


def _arms_table(results: Results, base: Bases) -> Table:
    """Every setting and every pair of orders: target mass, and what it costs in recall."""
    settings: dict[tuple[str, str, str], dict[str, Comparison]] = {}
    for c in results["comparisons"]:
        key = (method_name(c["settings"]), departure(c["settings"], base), c["b"])
        settings.setdefault(key, {})[c["metric"]] = c
    rows: list[list[Any]] = []
    masses = [metrics["target_mass"] for metrics in settings.values() if "target_mass" in metrics]
    said = iter(view.verdicts_of(masses, results))
    for (method, where, other), metrics in settings.items():
        if "target_mass" not in metrics:  # nothing says what is desirable
            continue
        mass = metrics["target_mass"]
        more = [number(metrics[name]["mean_difference"]) if name in metrics else "–" for name in ARM_METRICS]
        row = [method, where, other, *_sides(mass), *_difference(mass), next(said), *more]
        rows.append([*row, mass["n_seeds"]])
    first = view.first(results)
    columns = ["method", "where it departs from the recipe", "against", f"target mass, {first}"]
    columns += [f"target mass, {view.second(results)}", "difference", "95 % interval", "verdict"]
    columns += [*[f"Δ {describe(name).title}" for name in ARM_METRICS], "seeds"]
    caption = (
        f"Target mass of {first} and of the order it stands against, mean ± standard deviation over seeds and the paired "
        "difference; then the mean paired differences of other metrics, in nats."
    )
    return Table("arms", "Target mass at every setting", caption, columns, rows)


def departure(settings: dict[str, Any], base: Bases) -> str:
    """The settings that are not the recipe's own under the same method, as text."""
    recipe = base.get(method_name(settings)) or next(iter(base.values()))
    changed = {k: v for k, v in settings.items() if k not in view.METHOD_KEYS and v != recipe.get(k)}
    return _as_text(changed) or OWN


def _matched_table(results: Results, along: str, name: str, title: str) -> Table:
    rows = []
    for m in results["matched"]:
        if m["along"] == along and m["n_seeds"] > 0:
            row = [method_name(m["settings"]), m["b"], str(m["level"]), describe(m["metric"]).title]
            rows.append([*row, *_difference(m), f"{m['n_seeds']} of {m['of_seeds']}", _others(m["settings"])])
    caption = {
        "target_mass": "Both orders at one target mass, interpolated per seed along the β frontier; seeds whose frontier does "
        "not reach the level are left out. That is no chance selection: no interval where it is more than one in ten.",
        "flops": "The other order is given as many steps as spend the FLOPs that the first spends at the recipe's own steps.",
    }[along]
    return Table(name, title, caption, MATCHED_COLUMNS, rows)


def _others(settings: dict[str, Any]) -> str:
    hidden = {*view.METHOD_KEYS, "distill.method"}
    return _as_text({key: value for key, value in settings.items() if key not in hidden})


def _as_text(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items() if value is not None)


def _mean(records: list[StageRecord], metric: str) -> float | None:
    """Mean of a metric over stages, those where it is undefined left out."""
    values = [value for record in records if (value := record["metrics"].get(metric)) is not None]
    return sum(values) / len(values) if values else None


def _optimum_table(results: Results, base: Bases) -> Table:
    """Every alignment: what it started from, what it did, and how far it fell short of the exact optimum."""
    rows = []
    for records in groups(results):
        config = records[0]["config"]
        method = method_name({f"align.{key}": value for key, value in config.items()})
        recipe = base.get(method)
        if records[0]["kind"] == "align" and recipe and config.get("beta") == recipe.get("align.beta"):
            steps = config.get("steps") or config.get("trainer", {}).get("max_steps", "–")
            row = [" > ".join(records[0]["lineage"]), method, str(steps), config["reference"]]
            row += [number(_mean(records, "pairs"), 1)]
            for name in OPTIMUM_METRICS:
                known = name != "optimal_target_mass" or records[0]["tilts"]
                row += [number(_mean(records, name) if known else None)]
            rows.append(row)
    caption = (
        "Aligned models at the recipe's own β, means over seeds, against the exact tilt of their own reference where one is "
        "optimal. Regret is β·KL(π ‖ π*), in reward units, where it is known; several rows of one lineage start from students "
        "of different τ, size or method, or differ in noise."
    )
    columns = ["stages", "method", "steps", "reference", "pairs", "mass of reference", "target mass", "optimal mass"]
    columns += ["reward", "optimal reward", "regret", "KL at step 0", "KL to reference"]
    return Table("optimum", "Alignment, and how far from optimal", caption, columns, rows)


def _costs_table(results: Results, base: Bases) -> Table:
    sums: dict[tuple[str, str], list[dict[str, float | None]]] = {}
    for run in results["runs"]:
        if at_base(run["settings"], base):
            sums.setdefault((method_name(run["settings"]), run["order"]), []).append(run["cost"])
    rows = []
    for (method, order), costs in sorted(sums.items()):
        known = {one: [value for cost in costs if (value := cost[one.name]) is not None] for one in COSTS.values()}
        means = [f"{one.scale * sum(values) / len(values):.3g}" if values else "–" for one, values in known.items()]
        rows.append([method, order, *means])
    caption = (
        "Mean per seed over the stages of the order, without the teacher that both share: 6·N FLOPs per trained and 2·N per "
        "sampled or scored token (a point, in the mixture world). CPU seconds are those of all threads: on a busy machine wall "
        "seconds are waiting too. Peak memory is that of the process while a stage ran."
    )
    return Table("costs", "Cost per order", caption, ["method", "order", *[one.label for one in COSTS.values()]], rows)


def _models_table(results: Results) -> Table:
    """The models before any order: teacher, and the teacher distilled alone."""
    rows = []
    for records in groups(results):
        record = records[0]
        if record["lineage"] == ["teacher"] or (record["kind"] == "distill" and len(record["lineage"]) == 2):
            config = {**(record["student"] or {}), **record["config"]}
            setting = ", ".join(f"{k} = {config[k]}" for k in MODEL_KEYS if config.get(k) is not None)
            values = [number(_mean(records, name)) for name in view.HEADLINE_METRICS]
            rows.append([" > ".join(record["lineage"]), setting, *values])
    columns = ["model", "settings", *(describe(name).title for name in view.HEADLINE_METRICS)]
    caption = "Means over seeds. What distillation prunes shows here, before any alignment."
    return Table("models", "Before alignment: the teacher and its students", caption, columns, rows)
