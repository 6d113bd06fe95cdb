"""The third job: make the compact aligned model in one order of a recipe, with evidence, and leave a folder to ship."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet
import yaml

from precede import theory
from precede.engine import Engine, Launched
from precede.engine.local import Local
from precede.evaluate import shipping
from precede.evaluate.examiner import estimates, retained
from precede.evaluate.verdict import LEVELS, percent
from precede.files import cache_folder, scratch, write
from precede.jobs.compare import prepare, room, run
from precede.jobs.folders import check_place
from precede.metrics import METRICS
from precede.models.adapters import set_base
from precede.models.hub import licence
from precede.models.load import BUNDLED, folder, save_as
from precede.plan import STAGES, Node, Plan
from precede.report.answer import advices, mean_flops
from precede.report.card import model_card
from precede.report.view import by_role, number
from precede.settings.recipe import UNNAMED, Recipe
from precede.stages.processes import count, first_does, is_first
from precede.stats import Estimate
from precede.store import Store, library_versions
from precede.worlds.language import LIBRARIES, LanguageWorld
from precede.worlds.world import Progress, World, silent

SAMPLES = 3
"""Completions of each model that the card shows."""
BASE = "base"
"""Folder of an adapter's base in the folder that is left, where nobody else has that base."""


class AuditRefused(Exception):
    """An audit found a reference as bad as `fail_on` says."""


@dataclass(frozen=True)
class Built:
    """Where the model is, what was measured and said (as `build.json` has it), and how many stages were run and reused."""

    folder: Path
    report: dict[str, Any]
    stages_run: int
    stages_reused: int


def build(
    recipe: Recipe,
    out: Path,
    *,
    order: str | None = None,
    seed: int | None = None,
    store: Path | None = None,
    workers: int | None = None,
    trained: bool = False,
    command: str = "",
    started: Callable[[int, int], None] = lambda total, finished: None,
    finished: Callable[[Node], None] = lambda node: None,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda message: None,
) -> Built:
    """Run one order of `recipe` and leave the model in `out`, a Hugging Face folder with its card and evidence.

    `order` and `seed` choose among those of the recipe (`Recipe.narrowed`); what a comparison of it has trained is taken from
    `store` (default `~/.cache/precede/stages`), where with `trained` all of it must be. Everything is checked first; a killed
    stage goes on from its last checkpoint; `out` appears by one rename. The card has `command`, `tell` hears sentences;
    `started`, `finished`, `progress` as `compare`. Under `accelerate launch` every process calls this; the first writes and
    speaks. Raises ValueError for what is wrong with the input, AuditRefused where `fail_on` asks for it, StageFailed for a
    stage that stopped.
    """
    recipe = chosen(recipe, order, seed)
    tell = tell if is_first() else (lambda message: None)
    check_place(out)
    if out.exists():
        raise ValueError(f"{out} is there already; name another folder with --out, or move it away")
    shelf = Store(store or cache_folder() / "stages")
    worlds, plan, notes = planned(recipe, shelf)
    _check_dtype(recipe, plan)
    missing = [node.label() for node in plan.models if trained and node.kind != "given" and not shelf.has(node)]
    if missing:
        raise ValueError(
            f"{shelf.root} lacks {', '.join(missing)}: it was compared with another store (--store), seed or order, or models, "
            "data or reward have changed since; build from the recipe, which trains what is missing"
        )
    first_does(shelf.prepare)
    for note in notes:
        tell(note)

    def passed(node: Node) -> None:
        if node.kind == "audit":
            _judge(recipe, plan, shelf, node, tell)

    engine: Engine = Launched() if count() > 1 else Local(plan, worlds, workers)
    ran, reused = run(plan, worlds, shelf, engine, started, finished, progress, tell, passed)

    def leave() -> dict[str, Any]:
        world = cast("LanguageWorld", worlds[0])
        report = collect(recipe, plan, world, shelf, notes) | {"command": command}
        report["name"] = recipe.name if recipe.name != UNNAMED else out.absolute().name
        _assemble(recipe, plan, world, shelf, out, report)
        return report

    with room(out.parent):
        report = first_does(leave)
    return Built(out, report, ran, reused)


def chosen(recipe: Recipe, order: str | None, seed: int | None) -> Recipe:
    """One order and one seed of a recipe whose models can be shipped (`Recipe.narrowed`). Raises ValueError."""
    recipe = recipe.narrowed(order, seed)
    if recipe.variants[0].world["kind"] == "mixture":
        raise ValueError(f"recipe {recipe.name} is of the mixture world, whose models are no files to ship; compare it")
    return recipe


def planned(recipe: Recipe, store: Store, dry: bool = False) -> tuple[list[World], Plan, list[str]]:
    """Worlds, plan with audits and tasks, and notes of a build of one order and seed; as `prepare`. Raises ValueError."""
    worlds, plan, notes = prepare(recipe, store.root, audits="audit" not in recipe.run.skip, ships=True, dry=dry)
    if recipe.run.fail_on is not None and not plan.audits:
        why = (
            "it is left out (skip: audit)"
            if "audit" in recipe.run.skip
            else "nothing is aligned, or there are no pairs"
        )
        raise ValueError(f"fail_on asks for the verdict of an audit, and there is none: {why}")
    return worlds, plan, notes


def order_ahead(compared: Path) -> tuple[str, str]:
    """The order to ship of the folder `compared` that a comparison left, and why, in one sentence. Raises ValueError.

    It is the one that is ahead at the recipe's own setting in the first of its answers, by the mean over seeds of the reward,
    or of the accuracy on held-out pairs where there is none; the cheaper one where the orders do not differ.
    """
    path = compared / "results.json"
    try:
        results = by_role(json.loads(path.read_text("utf-8")))
        told = advices(results)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{compared} is no folder that `precede compare` left: it has no results.json of this version"
        ) from None
    if not told:
        raise ValueError(f"{compared} does not say which order is ahead; name one with --order")
    c, advice = told[0]
    sides = f"{METRICS[c['metric']].title} {number(c['mean_a'])} of {c['a']}, {number(c['mean_b'])} of {c['b']}"
    if advice.kind == "either":
        cheaper = min((c["a"], c["b"]), key=lambda order: mean_flops(results, order, c))
        return cheaper, f"order {cheaper}: the orders do not differ, and it is the cheaper one ({sides})"
    if not c["mean_difference"]:
        return advice.ahead, f"order {advice.ahead}: neither is ahead, and it is the first one ({sides})"
    doubt = "" if advice.kind == "ship" else "; the comparison is not sure of it"
    return advice.ahead, f"order {advice.ahead}: it is ahead ({sides}){doubt}"


def _check_dtype(recipe: Recipe, plan: Plan) -> None:
    """An adapter is saved in what it was trained in."""
    last, dtype = plan.arms[0].blocks[0][-1], recipe.run.save_dtype
    if _keeps_adapter(last) and dtype not in ("auto", "float32"):
        raise ValueError(
            f"save_dtype is {dtype}, but {last.name} keeps its adapter, which is saved in float32, as it is trained; leave "
            f"save_dtype out, or set {last.name}.lora.adapter to merge"
        )


def _keeps_adapter(stage: Node) -> bool:
    return stage.config["lora"] is not None and bool(stage.config["lora"]["adapter"] == "keep")


def _judge(recipe: Recipe, plan: Plan, store: Store, audit: Node, tell: Callable[[str], None]) -> None:
    """Say what an audit found; raises AuditRefused where that is as bad as `fail_on` says, so that nothing behind it runs."""
    before = next(node for node in plan.nodes if plan.audits.get(node.key) == audit)
    audited = _read(store, audit, "audit.json")
    reference, level = audited["models"][0], recipe.run.fail_on
    verdict, advice = reference["verdict"], "; ".join(reference["advice"])
    tell(f"audit before {before.name}: {verdict.upper()}, because {'; '.join(reference['reasons'])}")
    if before.kind == "distill":
        for line in expected_loss(recipe, before, audited):
            tell(line)
    if level is not None and LEVELS.index(verdict) >= LEVELS.index(level):
        raise AuditRefused(f"the audit before {before.name} says {verdict} and fail_on is {level}; {advice}")


def expected_loss(recipe: Recipe, distill: Node, audited: dict[str, Any]) -> list[str]:
    """What distilling before aligning is expected to lose, in sentences, from the audit of the model before both.

    By the order gap (docs/theory.md): logit m_AK − logit m_KA = (Δ/β)(1/τ − 1) nats; and with a measured target mass m, by
    the share of the distillation's samples that can show the target at all.
    """
    reach, tau, order = audited["settings"]["reach_nats"], distill.config["temperature"], recipe.orders[0]
    gap = float(theory.order_gap(1.0, 1.0 / reach, tau))
    reason = (
        f"by the order gap, align > distill would end {gap:.1f} nats higher in the log-odds of the desirable "
        f"(Δ/β = {reach:.1f}, τ = {tau:g})"
        if gap > 0
        else f"at τ = {tau:g} the order gap is 0, and the order costs what the student is too small, and the samples too "
        "few, to show"
    )
    lines = [f"the order {order} distils before it aligns: {reason}"]
    mass = audited["models"][0]["numbers"].get("target_mass")
    if mass is not None and mass["value"] is not None:
        shown = percent(Estimate(mass["value"], mass["low"], mass["high"], mass["count"]))
        lines.append(
            f"{shown} of {mass['count']} samples that the audit drew of the teacher are desirable: the student is shown "
            "them that often, no more"
        )
    return lines


def collect(recipe: Recipe, plan: Plan, world: LanguageWorld, store: Store, notes: list[str]) -> dict[str, Any]:
    """Everything that was measured and said, as JSON values: `build.json`.

    `models`: of the model that the build began with and of each stage's, its numbers as [value, low, high]. `stages`: settings,
    cost, what the trainer logged first and last, the audit before it. `retained`: the share of alignment's gain on held-out
    rows that the final model has, by reward where there is one and by preference margin (`evaluate.examiner.retained`).
    `shipping`: the verdict (`evaluate.shipping`). `samples`: for each of the first `SAMPLES` questions that are held out, its
    prompt and each model's first completion. `weights`: what the last model is saved as; `base` is what an adapter stands on.
    """
    labels, stages, measured = _labelled(plan), plan.arms[0].blocks[0][1:], {}
    for label, node in labels.items():
        path = store.folder(plan.measures[node.key]) / "measures.parquet"
        measured[label] = pyarrow.parquet.read_table(path).to_pydict()
    tasks = {label: plan.tasks[node.key] for label, node in labels.items() if node.key in plan.tasks}
    variant, last = recipe.variants[0], stages[-1]
    spent = sum(_reach(plan, store, node) for node in stages if node.kind == "align")
    verdict = shipping.judge(measured["start"], measured[last.name], world.samples(variant), spent)
    adapter = _keeps_adapter(last)
    dtype, base = world.save_dtype(last), _base(world, store, last)[0] if adapter else None
    named = {"teacher": variant.teacher.get("model"), "student": (variant.student or {}).get("model")}
    data = world.data_report(variant)
    licences = {role: licence(name, "model") for role, name in named.items() if name is not None}
    licences |= {"data": licence(data["source"], "dataset")} if data is not None else {}
    return {
        "schema_version": 2,
        "recipe": recipe.name,
        "order": str(recipe.orders[0]),
        "seed": recipe.seeds[0],
        "teacher": variant.teacher.get("model"),
        "student": variant.student and {name: value for name, value in variant.student.items() if value is not None},
        "prompt": variant.world.get("prompt"),
        "truth": variant.world.get("truth"),
        "data": data,
        "licences": licences,
        "shipping": verdict.as_dict(),
        "samples": _samples(plan, store, labels),
        "turns": world.evaluation_rows(last, 1)[0].turns,
        "weights": {"dtype": dtype, "parameters": world.parameters(last), "adapter": adapter, "base": base},
        "models": {label: _numbers(store, plan, labels[label], columns) for label, columns in measured.items()},
        "stages": [_stage(plan, store, node) for node in stages],
        "retained": _retained(stages, measured),
        "tasks": {label: _read(store, task, "tasks.json") for label, task in tasks.items()},
        "max_new_tokens": world.max_new_tokens,
        "target_reward": world.target_reward,
        "notes": notes,
        "versions": library_versions(*LIBRARIES),
    }


def _reach(plan: Plan, store: Store, stage: Node) -> float:
    """Δ/β of an alignment, nats: Δ as its audit measured it, else 1."""
    if stage.key not in plan.audits:
        return 1.0 / float(stage.config["beta"])
    return float(_read(store, plan.audits[stage.key], "audit.json")["settings"]["reach_nats"])


def _base(world: LanguageWorld, store: Store, stage: Node) -> tuple[str, Path | None]:
    """What an adapter stands on: an id or the user's own folder, or `BASE` and the folder that it is a copy of."""
    base = stage.edges.get("student", stage.edges["parent"])
    name = world.folder(base, store)
    source = folder(name)
    if isinstance(source, Path) and (base.kind != "given" or name == BUNDLED):
        return BASE, source
    return str(source.absolute() if isinstance(source, Path) else source), None


def _samples(plan: Plan, store: Store, labels: dict[str, Node]) -> list[dict[str, Any]]:
    """What each model wrote first on the first held-out questions; of one prompt its first completions."""
    written = {label: _read(store, plan.measures[node.key], "completions.json") for label, node in labels.items()}
    rows = written["start"]["completions"]
    several = len({row["row"] for row in rows}) > 1
    places = {row["prompt"] if several else place: place for place, row in reversed([*enumerate(rows)])}
    return [
        {
            "prompt": rows[place]["prompt"],
            "written": {label: one["completions"][place]["text"] for label, one in written.items()},
        }
        for place in sorted(places.values())[:SAMPLES]
    ]


def _labelled(plan: Plan) -> dict[str, Node]:
    """The models of a build: the one that it began with as `start`, and each stage's by the stage's name."""
    ((first, *stages),) = plan.arms[0].blocks
    return {"start": first, **{node.name: node for node in stages}}


def _numbers(store: Store, plan: Plan, node: Node, columns: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """Every number of a model that is defined, with its interval over prompts where there are several."""
    measure = plan.measures[node.key]
    metrics, samples = store.metrics(measure), int(measure.config["samples_per_prompt"])
    numbers: dict[str, list[float | None]] = {name: [values[0], None, None] for name, values in metrics.items()}
    for name, one in estimates(columns, samples).items() if len(columns["row"]) > 1 else ():
        numbers[name] = [value if abs(value) < float("inf") else None for value in (one.value, one.low, one.high)]
    return {name: values for name, values in numbers.items() if values[0] is not None}


def _stage(plan: Plan, store: Store, node: Node) -> dict[str, Any]:
    training = _read(store, node, "training.json")
    log, audit = training["log"] or [{}], None
    if node.key in plan.audits:
        audited = _read(store, plan.audits[node.key], "audit.json")
        audit = {name: audited["models"][0][name] for name in ("verdict", "reasons", "advice", "numbers")}
        audit |= {"settings": audited["settings"]}
    stage = {"name": node.name, "kind": node.kind, "settings": dict(node.config)}
    stage |= {"steps": training["steps"], "pairs": training["pairs"], "first": log[0], "last": log[-1]}
    return stage | {"cost": store.cost(node), "audit": audit, "key": node.key}


def _retained(stages: list[Node], measured: dict[str, dict[str, list[float]]]) -> dict[str, list[float | None]]:
    """By reward and by margin: what the last stage kept of what the last alignment had gained, if it comes after it."""
    aligned = next((node.name for node in reversed(stages) if node.kind == "align"), None)
    last = stages[-1].name
    if aligned is None or last == aligned or len(measured[last]["row"]) < 2:
        return {}
    shares = {}
    for name in ("reward", "preference_margin"):
        start, middle, end = (_column(measured[label], name) for label in ("start", aligned, last))
        if start and middle and end:
            share = retained(start, middle, end)
            shares[name] = [None if v != v else v for v in (share.value, share.low, share.high)]
    return shares


def _column(columns: dict[str, list[float]], name: str) -> list[float]:
    """The numbers per row; none where they were not measured."""
    if name == "preference_margin" and "chosen_logp" in columns:
        return [a - b for a, b in zip(columns["chosen_logp"], columns["rejected_logp"], strict=True)]
    return columns.get(name, [])


def _read(store: Store, node: Node, name: str) -> Any:
    return json.loads((store.folder(node) / name).read_text("utf-8"))


def _assemble(
    recipe: Recipe, plan: Plan, world: LanguageWorld, store: Store, out: Path, report: dict[str, Any]
) -> None:
    """Write the folder `out`, which appears by one rename: model or adapter, card, `build.json`, the recipe, and `evidence/`:
    each stage's training log, each audit's report, and what each model wrote on the held-out prompts. All may read it."""
    out, last = out.absolute(), plan.arms[0].blocks[0][-1]
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch(out) as made:
        if _keeps_adapter(last):
            shutil.copytree(store.folder(last) / "adapter", made)
            base, source = _base(world, store, last)
            if source is not None:
                shutil.copytree(source, made / BASE)
            set_base(made, base if source is None else str(out / BASE))
        else:
            save_as(store.folder(last) / "model", made, report["weights"]["dtype"])
        for label, node in _labelled(plan).items():
            beside = made / "evidence" / label
            beside.mkdir(parents=True)
            evidence = [(plan.measures[node.key], name) for name in ("measures.parquet", "completions.json")]
            if node.kind in STAGES:
                evidence += [(node, "training.json")]
            if node.key in plan.audits:
                evidence += [(plan.audits[node.key], name) for name in ("audit.html", "audit.json", "pairs.parquet")]
            for entry, name in evidence:
                shutil.copy(store.folder(entry) / name, beside)
        write(made / "recipe.yaml", yaml.safe_dump(recipe.resolved, sort_keys=False, allow_unicode=True))
        write(made / "build.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
        write(made / "README.md", model_card(report))
        for path in (made, *made.rglob("*")):  # writers of safetensors let nobody else read them
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            made.rename(out)
        except OSError:
            if not out.exists():
                raise
            raise ValueError(f"{out} was made by another run meanwhile; name another folder with --out") from None
