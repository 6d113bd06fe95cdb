"""The first job: run the orders of a recipe against one another and say which wins, by how much, and where not."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from precede.analysis.collect import collect
from precede.analysis.results import Results
from precede.engine.local import default_workers, run_plan
from precede.plan import Plan, make_plan
from precede.report.figures import standard_figures
from precede.report.html import write_report
from precede.report.view import by_role
from precede.settings.recipe import Recipe
from precede.store import Stage, Store
from precede.worlds.world import World, load_world


@dataclass(frozen=True)
class Comparison:
    """What `compare` leaves: the results, the report's path, and how many stages were run and how many reused."""

    results: Results
    report: Path
    stages_run: int
    stages_reused: int


def compare(
    recipe: Recipe,
    *,
    out: Path | None = None,
    store: Path | None = None,
    workers: int | None = None,
    started: Callable[[int, int], None] = lambda total, finished: None,
    progress: Callable[[int], None] = lambda stages: None,
    tell: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Run every order of `recipe` under every setting and seed, compare them, and write the report.

    Into `out` (default `runs/NAME`) go report.html, figures/, results.json and recipe.yaml. Finished stages are kept in
    `store` (default `~/.cache/precede/stages`): what is there already is checked against its checksums and not run again;
    a damaged stage is named through `tell` and made again. `started` hears the number of stages and how many are there,
    `progress` of every few that finish. Raises ValueError for what is wrong with the input, StageFailed for a stage that
    stopped.
    """
    world, plan = prepare(recipe)
    target = out or Path("runs") / recipe.name
    shelf = Store(store or cache_folder() / "stages")
    shelf.prepare()
    _check_writable(target)
    finished = drop_damaged(plan, shelf, tell)
    started(len(plan.stages), finished)
    run_plan(plan, world, shelf, workers or default_workers(world), lambda call: progress(len(call)))
    results = collect(recipe, plan, shelf)
    results["note"] = world.note
    report = _write(results, world, examples(plan), shelf, target)
    return Comparison(results, report, len(plan.stages) - finished, finished)


def prepare(recipe: Recipe) -> tuple[World, Plan]:
    """The world and the plan of a recipe. Raises ValueError where the world lacks something that the stages need."""
    if len(recipe.orders) < 2:
        raise ValueError(
            f"recipe {recipe.name} has one order; a comparison needs two or more, such as 'distill > align'"
        )
    if all(len(variant.orders) < 2 for variant in recipe.variants):
        raise ValueError(f"recipe {recipe.name} has no setting under which two orders run; name two in `orders`")
    world = load_world(recipe.variants[0].world)
    plan = make_plan(recipe, world)
    world.check(plan.stages)
    return world, plan


def cache_folder() -> Path:
    """Where stages and models are kept: $PRECEDE_CACHE, or ~/.cache/precede."""
    return Path(os.environ.get("PRECEDE_CACHE") or Path.home() / ".cache" / "precede")


def drop_damaged(plan: Plan, store: Store, tell: Callable[[str], None]) -> int:
    """Check the checksums of every finished stage of the plan; discard and name the damaged. Returns how many are sound."""
    sound = 0
    for stage in plan.stages:
        if not store.folder(stage).exists():
            continue
        damage = store.damage(stage)
        if damage is None:
            sound += 1
        else:
            tell(f"stage {stage.label()}: {damage}; it is made again")
            store.discard(stage)
    return sound


def examples(plan: Plan) -> Mapping[str, Stage]:
    """Models to show, of the recipe as written and its first seeds: the teacher, one stage on, and each order's end."""
    shown: dict[str, Stage] = {}
    base = plan.arms[0].settings
    for arm in plan.arms:
        if arm.settings != base:
            continue
        chain = arm.blocks[0]
        shown.setdefault("teacher p′", chain[0])
        if chain[1].kind == "distill":
            shown.setdefault("student p″", chain[1])
        shown[str(arm.order)] = chain[-1]
    return dict(
        sorted(shown.items(), key=lambda item: list(_SHOWN_FIRST).index(item[0]) if item[0] in _SHOWN_FIRST else 9)
    )


_SHOWN_FIRST = ("teacher p′", "student p″", "distill > align", "align > distill")


def _write(results: Results, world: World, shown: Mapping[str, Stage], store: Store, out: Path) -> Path:
    """Everything that a comparison leaves in its output folder. Returns the report's path."""
    (out / "results.json").write_text(json.dumps(results, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")
    with (out / "recipe.yaml").open("w", encoding="utf-8") as handle:
        yaml.safe_dump(results["recipe"], handle, sort_keys=False, allow_unicode=True)
    view = by_role(results)
    return write_report(view, [*world.figures(view, shown, store), *standard_figures(view)], results["recipe"], out)


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(
            f"the output folder {out} cannot be written ({error.strerror}); name another with --out"
        ) from None
