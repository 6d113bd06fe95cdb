"""The tables of a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from precede.analysis.results import Comparison, Matched, Results, StageRecord
from precede.metrics import COSTS, DECODED, METRICS, describe
from precede.report import view
from precede.report.view import Bases, at_base, bases, groups, interval, method_name, number, own_setting, verdict

NEGLIGIBLE = 0.01
"""A difference in reward within this share of the sweep's largest mean reward is called a tie."""
MATCHED_COLUMNS = ["method", "against", "level", "metric", "difference", "95 % interval", "seeds", "other settings"]
MODEL_KEYS = ["method", "divergence", "components", "hidden_size", "layers", "keep_layers", "temperature"]
MODEL_KEYS += ["samples", "samples_per_prompt"]
WANTED = [*view.HEADLINE_METRICS, "target_precision_on_target", *view.PAIR_METRICS, "kl_to_truth"]
SHAPE = ["entropy", "length", "stop_rate"]
DETAILS = [name for name in METRICS if name.endswith("_per_token")]
DETAILS += ["distinct_1", "distinct_2", "kl_at_start", "pairs"]
DECODING = (
    "An order that ends with distillation ends with a step that sharpens. Here the final models of both orders are sampled at "
    "the τ of distillation. The strictest control compares the first order in the table above with the other's column here: "
    "the other order given one more sharpening. "
)
OPTIMUM_METRICS = ["reference_target_mass", "target_mass", "optimal_target_mass", "reward", "optimal_reward", "regret"]
OPTIMUM_METRICS += ["kl_at_start", "kl_to_reference"]
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
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def tables(results: Results) -> list[Table]:
    """All tables for which there are data."""
    base = bases(results)
    every = [
        _metrics_table(results, "metrics", "Every metric by order", WANTED + SHAPE),
        _metrics_table(results, "matched-decoding", "Matched decoding", [DECODED + name for name in WANTED], DECODING),
        _metrics_table(results, "details", "Per token, and diversity", DETAILS),
        _against_table(results),
        _arms_table(results, base),
        _matched_table(results, "target_mass", "matched-mass", "At matched target mass"),
        _matched_table(results, "flops", "matched-compute", "At matched compute"),
        _optimum_table(results, base),
        _costs_table(results, base),
        _models_table(results),
    ]
    return [table for table in every if table.rows]


def _metrics_table(results: Results, name: str, title: str, wanted: list[str], note: str = "") -> Table:
    rows: list[list[Any]] = []
    for c in own_setting(results):
        if c["metric"] in wanted and c["n_seeds"]:
            metric = describe(c["metric"])
            label = metric.title if len(results["orders"]) <= 2 else f"{metric.title} (against {c['b']})"
            row = [method_name(c["settings"]), label, metric.unit, *_sides(c), *_difference(c)]
            rows.append([*row, number(c["sd_ratio"], 2), verdict(c), c["n_seeds"]])
    first = view.first(results)
    other = results["comparisons"][0]["b"] if len(results["orders"]) == 2 and results["comparisons"] else "the other"
    caption = (
        f"{note}Mean ± standard deviation over seeds at the recipe's own setting; the difference is {first} minus {other}, "
        "paired by seed, with its 95 % bootstrap interval. Verdicts are for the first and ask the t-test too; sd ratio: a to b."
    )
    columns = ["method", "metric", "unit", first, other, "difference", "95 % interval", "sd ratio", "verdict", "seeds"]
    return Table(name, title, caption, columns, rows)


def _sides(c: Comparison) -> list[str]:
    """The means of both orders, with their deviations over seeds."""
    sides = ((c["mean_a"], c["sd_a"]), (c["mean_b"], c["sd_b"]))
    return [number(mean) if deviation is None else f"{number(mean)} ± {number(deviation)}" for mean, deviation in sides]


def _difference(row: Comparison | Matched) -> list[str]:
    return [number(row["mean_difference"]), interval(row["ci95"])]


def _against_table(results: Results) -> Table:
    """Where align > distill does not win on reward or target precision, over the whole sweep."""
    scale = max((abs(c["mean_a"] or 0) for c in results["comparisons"] if c["metric"] == "reward"), default=0.0)
    rows = []
    for c in results["comparisons"]:
        if c["metric"] not in ("reward", "target_precision") or c["ci95"][1] is None:
            continue
        kind = verdict(c)
        tie = c["metric"] == "reward" and max(abs(end or 0.0) for end in c["ci95"]) <= NEGLIGIBLE * scale
        if kind != "wins" or tie:
            row = [method_name(c["settings"]), c["b"], describe(c["metric"]).title]
            row += [number(c["mean_a"]), number(c["mean_b"]), *_difference(c)]
            rows.append([*row, f"{kind}, a tie in size" if tie else kind, _others(c["settings"])])
    first = view.first(results)
    caption = (
        f"Every setting of the sweep at which {first} does not win on reward or target precision, or wins by less than "
        f"{100 * NEGLIGIBLE:.0f} % of the largest mean reward. Overall recall and precision are in the first table: they often "
        "go the other way."
    )
    columns = ["method", "against", "metric", first, "the other", "difference", "95 % interval", "verdict", "setting"]
    return Table("against", "Where the claim does not hold", caption, columns, rows)


def _arms_table(results: Results, base: Bases) -> Table:
    """Every setting and every pair of orders: target mass, and what it costs in recall."""
    settings: dict[tuple[str, str, str], dict[str, Comparison]] = {}
    for c in results["comparisons"]:
        key = (method_name(c["settings"]), _departure(c["settings"], base), c["b"])
        settings.setdefault(key, {})[c["metric"]] = c
    rows: list[list[Any]] = []
    for (method, departure, other), metrics in settings.items():
        if "target_mass" not in metrics:  # nothing says what is desirable
            continue
        mass = metrics["target_mass"]
        more = [number(metrics[name]["mean_difference"]) if name in metrics else "–" for name in ARM_METRICS]
        row = [method, departure, other, *_sides(mass), *_difference(mass), verdict(mass), *more]
        rows.append([*row, mass["n_seeds"]])
    first = view.first(results)
    columns = ["method", "where it departs from the recipe", "against", f"target mass, {first}"]
    columns += ["target mass, the other", "difference", "95 % interval", "verdict"]
    columns += [*[f"Δ {describe(name).title}" for name in ARM_METRICS], "seeds"]
    caption = (
        f"Target mass of {first} and of the order it stands against, mean ± standard deviation over seeds and the paired "
        "difference; then the mean paired differences of other metrics, in nats."
    )
    return Table("arms", "Every setting", caption, columns, rows)


def _departure(settings: dict[str, Any], base: Bases) -> str:
    """The settings that are not the recipe's own under the same method, as text."""
    recipe = base.get(method_name(settings)) or next(iter(base.values()))
    changed = {k: v for k, v in settings.items() if k not in view.METHOD_KEYS and v != recipe.get(k)}
    return _as_text(changed) or "own setting"


def _matched_table(results: Results, along: str, name: str, title: str) -> Table:
    rows = []
    for m in results["matched"]:
        if m["along"] == along and m["n_seeds"] > 0:
            row = [method_name(m["settings"]), m["b"], str(m["level"]), describe(m["metric"]).title]
            rows.append([*row, *_difference(m), m["n_seeds"], _others(m["settings"])])
    caption = {
        "target_mass": "Both orders at one target mass, interpolated per seed along the β frontier; seeds whose frontier does "
        "not reach the level are left out.",
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
    sums: dict[tuple[str, str], list[dict[str, float]]] = {}
    for run in results["runs"]:
        if at_base(run["settings"], base):
            sums.setdefault((method_name(run["settings"]), run["order"]), []).append(run["cost"])
    rows = []
    for (method, order), costs in sorted(sums.items()):
        means = [one.scale * sum(cost[one.name] for cost in costs) / len(costs) for one in COSTS.values()]
        rows.append([method, order, *[f"{value:.3g}" for value in means]])
    caption = (
        "Mean per seed over the stages of the order, without the teacher that both share: 6·N FLOPs per trained and 2·N per "
        "sampled or scored token (a point, in the mixture world). Peak memory is that of the process while a stage ran."
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
