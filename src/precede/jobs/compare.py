"""The first job: run the orders of a recipe against one another and say which wins, by how much, and where not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from precede.analysis.collect import collect
from precede.analysis.results import Results
from precede.data.paths import path_of
from precede.engine import Engine, Listener
from precede.engine.local import Local
from precede.files import cache_folder, write
from precede.jobs.folders import choose, claim
from precede.machine import memory_of
from precede.plan import STAGES, Node, Plan, make_plan
from precede.report.answer import advices
from precede.report.extrapolation import extrapolation_figure
from precede.report.figures import standard_figures
from precede.report.html import write_report
from precede.report.view import by_role
from precede.settings.recipe import Recipe
from precede.stages.distil import caution
from precede.stages.processes import count, first_does
from precede.store import Store, full_disk
from precede.worlds.world import Progress, World, load_world, silent

PATHS = ("model", "source", "held_out_source", "reward", "reward_model", "truth", "completions", "task_folder")
"""Settings that may be the path of a file or folder; a reward is one with a function's name behind a colon."""

BEYOND = 2
"""Times the memory that is here: what needs as much is refused before it runs."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` leaves: the results, the report's path, the command that ships the better order's model (empty where no
    model can be shipped), and how many stages were run and how many reused."""

    results: Results
    report: Path
    ship: str
    stages_run: int
    stages_reused: int


def compare(
    recipe: Recipe,
    *,
    out: Path | None = None,
    store: Path | None = None,
    workers: int | None = None,
    started: Callable[[int, int], None] = lambda total, finished: None,
    finished: Callable[[Node], None] = lambda node: None,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Run every order of `recipe` under every setting and seed, compare them, and write the report.

    Into `out` (default `runs/NAME`, or the next number where another run has that) go report.html, figures/, results.json and
    recipe.yaml. Finished nodes are kept in `store` (default `~/.cache/precede/stages`): what is there already is checked
    against its checksums and not run again; a damaged one is named through `tell` and made again. `started` hears the number
    of nodes and how many are there, `finished` of each that is new, `progress` of what is done of one. Raises ValueError for
    wrong input, StageFailed for a stage that stopped.
    """
    check_orders(recipe)
    shelf = Store(store or cache_folder() / "stages")
    worlds, plan, notes = prepare(recipe, shelf.root)
    shelf.prepare()
    asked = _rooted(recipe.resolved)
    target, elsewhere = choose("recipe.yaml", asked, out, Path("runs") / recipe.name)
    claim(target, "recipe.yaml", asked)
    for note in [*notes, *elsewhere]:
        tell(note)
    made = run(plan, worlds, shelf, Local(plan, worlds, workers), started, finished, progress, tell)
    results = collect(recipe, plan, shelf, worlds[0].tilts, worlds[0].cluster)
    results["note"] = worlds[0].note
    ship = f"precede build --from {shlex.quote(str(target))} --out model" if worlds[0].ships else ""
    if ship and not advices(by_role(results)):
        ship += f" --order {shlex.quote(results['orders'][0])}"
    if ship and store is not None:
        ship += f" --store {shlex.quote(str(store))}"
    return Comparison(results, _write(results, worlds[0], plan, shelf, target, ship), ship, *made)


def run(
    plan: Plan,
    worlds: Sequence[World],
    store: Store,
    engine: Engine,
    started: Callable[[int, int], None],
    finished: Callable[[Node], None],
    progress: Progress,
    tell: Callable[[str], None],
    passed: Callable[[Node], None] = lambda node: None,
) -> tuple[int, int]:
    """Have an engine run what the store lacks of a plan; returns how many stages were run and how many were there.

    `finished` hears of each node that is new; `passed` of every one, and may raise to stop the run.
    """
    work = [node for node in plan.nodes if node.kind != "given"]
    there = first_does(lambda: sound(work, store, tell))
    started(len(work), len(there))

    def heard(node: Node) -> None:
        passed(node)
        if node.kind != "given" and node.key not in there:
            finished(node)
            if (sentence := caution(node.label(), store.metrics(node))) is not None:
                tell(sentence)

    with room(store.root):
        engine.run(plan, worlds, store, Listener(heard, progress, tell))
    reused = [node.key in there for node in work if node.kind in (*STAGES, "teacher")]
    return len(reused) - sum(reused), sum(reused)


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Say in one sentence that a disk was full, whatever the error says: writers of weights have their own kinds."""
    try:
        yield
    except Exception as error:
        if (reason := full_disk(error)) is None:
            raise
        message = f"a file could not be written to {folder} ({reason}); make room and run the same command again"
        raise ValueError(f"{message}: finished stages are kept") from None


def prepare(
    recipe: Recipe, disk: Path, *, audits: bool = False, ships: bool = False, dry: bool = False
) -> tuple[list[World], Plan, list[str]]:
    """The worlds and the plan of a recipe, and notes on them. ValueError where something that the plan needs is missing.

    A `dry` run may be planned for models that cannot be had here.
    """
    shared: dict[str, Any] = {}
    worlds = [load_world(recipe, variant, shared) for variant in recipe.variants]
    plan = make_plan(recipe, worlds, audits=audits, ships=ships)
    notes: list[str] = []
    for number, world in enumerate(worlds):
        if not (dry and world.offline):
            nodes = [node for node in plan.nodes if node.variant == number]
            notes += [note for note in world.check(nodes, disk) if note not in notes]
            if not dry and count() == 1:
                _check_memory(world, [node for node in nodes if not Store(disk).has(node)])
    return worlds, plan, notes


def _check_memory(world: World, nodes: Sequence[Node]) -> None:
    """Raise ValueError where a node needs memory far beyond what there is: estimates are no finer than that."""
    there = memory_of(world.device.type)
    for node in nodes:
        need = world.peak_bytes(node)
        if need > BEYOND * there:
            raise ValueError(
                f"{node.label()} needs about {need / 2**30:,.0f} GiB of memory, and {there / 2**30:,.0f} GiB are here; lower "
                "its sizes (samples, rows at once, width, layers), or see --dry-run"
            )


def check_orders(recipe: Recipe) -> None:
    """Raise ValueError where there is nothing to compare."""
    if len(recipe.orders) < 2:
        needed = "a comparison needs two or more, such as 'distill > align'"
        raise ValueError(f"recipe {recipe.name} has one order; {needed}")
    if all(len(variant.orders) < 2 for variant in recipe.variants):
        raise ValueError(f"recipe {recipe.name} has no setting under which two orders run; name two in `orders`")


def sound(nodes: Sequence[Node], store: Store, tell: Callable[[str], None]) -> set[str]:
    """Keys of the finished nodes whose checksums hold; damaged ones are named and thrown away."""
    keys = set()
    for node in {node.key: node for node in nodes if store.folder(node).exists()}.values():
        if (damage := store.damage(node)) is None:
            keys.add(node.key)
        else:
            tell(f"stage {node.label()}: {damage}; it is made again")
            store.discard(node)
    return keys


def examples(plan: Plan) -> Mapping[str, Node]:
    """Models to show, of the recipe as written and its first seeds: the teacher, one stage on, and each order's end."""
    shown: dict[str, Node] = {}
    for arm in plan.arms:
        if arm.settings == plan.arms[0].settings:
            chain = arm.blocks[0]
            shown.setdefault("teacher p′", chain[0])
            if chain[1].kind == "distill":
                shown.setdefault("student p″", chain[1])
            shown[str(arm.order)] = chain[-1]
    first = [name for name in ("teacher p′", "student p″", "distill > align", "align > distill") if name in shown]
    return {name: shown[name] for name in dict.fromkeys([*first, *shown])}


def _write(results: Results, world: World, plan: Plan, store: Store, out: Path, ship: str) -> Path:
    """Everything that a comparison leaves in its output folder. Returns the report's path."""
    write(out / "results.json", json.dumps(results, allow_nan=False, ensure_ascii=False) + "\n")
    recipe = yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True)
    view = by_role(results)
    standard = standard_figures(view)
    figures = [*standard[:1], *world.figures(view, examples(plan), plan, store), *standard[1:]]
    figures += [figure for figure in (extrapolation_figure(view),) if figure is not None]
    return write_report(view, figures, recipe, out, ship)


def _rooted(value: Any, name: str = "") -> Any:
    """Settings with paths that are there as absolute ones, so that they can be read from any folder."""
    if isinstance(value, dict):
        return {key: _rooted(part, str(key).rpartition(".")[2]) for key, part in value.items()}
    if isinstance(value, list):
        return [_rooted(part, name) for part in value]
    if name not in PATHS or not isinstance(value, str):
        return value
    path, colon, function = value.rpartition(":") if name == "reward" else (value, "", "")
    here = [path_of(one) for one in (path, f"{path}.py" * (name == "reward")) if path and one]
    return next((f"{one.absolute()}{colon}{function}" for one in here if one.exists()), value)
