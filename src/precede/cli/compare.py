"""`precede compare`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from precede.cli import terminal
from precede.cli.terminal import guarded, print_json, settings_of, show, table
from precede.progress import Bars

if TYPE_CHECKING:
    from precede.analysis.results import Comparison, Results
    from precede.settings.recipe import Recipe


def compare(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="One that `precede recipes` lists, or a YAML file; without it, the flags say what to compare.",
        ),
    ] = None,
    teacher: terminal.Teacher = None,
    student: terminal.Student = None,
    keep_layers: terminal.KeepLayers = None,
    data: terminal.Pairs = None,
    orders: Annotated[
        str | None,
        typer.Option(metavar="'A, B'", help="Orders, with commas between; default 'align > distill, distill > align'."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, metavar="N", help="Seeds 0 … N − 1; 3 without a recipe.")] = None,
    reward: terminal.RewardFunction = None,
    reward_model: terminal.Classifier = None,
    beta: terminal.Beta = None,
    limit: terminal.Limit = None,
    overrides: terminal.Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report, figures and results; default runs/RECIPE, or runs/my-data, and a number where taken."
        ),
    ] = None,
    store: terminal.StoreFolder = None,
    workers: terminal.Workers = None,
    dry_run: terminal.DryRun = False,
    json_output: terminal.Json = False,
) -> None:
    """Run orders of stages against one another: which wins, by how much, how surely, at what cost.

    On a recipe, or on your own models and data: --teacher, --student or --keep-layers, --data, and --reward if there is one.
    Finished stages are kept in the store: the same command again, after a kill or a change of the sweep, runs only what
    is missing. Writes report.html, figures (SVG and PDF), results.json and the resolved recipe.
    """

    def work() -> None:
        from precede.settings.recipe import load_recipe

        if recipe is None and data is None and not overrides:
            raise ValueError(
                "there is nothing to compare; give a RECIPE (`precede recipes` lists them), or --teacher, --student or "
                "--keep-layers, and --data"
            )
        around: dict[str, Any] = {"recipe": "my-data", "seeds": 3} if recipe is None else {}
        around |= {} if seeds is None else {"seeds": seeds}
        around |= {} if orders is None else {"orders": [one.strip() for one in orders.split(",")]}
        flags = settings_of(teacher, student, keep_layers, data, reward, reward_model, beta, limit, **around)
        read = load_recipe(recipe, overrides or [], flags)
        if dry_run:
            _plan(read, store, json_output)
        else:
            _run(read, out, store, workers, json_output)

    guarded(work)


def _run(recipe: Recipe, out: Path | None, store: Path | None, workers: int | None, json_output: bool) -> None:
    from precede.jobs import compare as job
    from precede.report.answer import answer
    from precede.report.view import by_role

    began = time.perf_counter()
    with Bars(f"{recipe.name}: stages") as bars:
        done = job.compare(recipe, out=out, store=store, workers=workers, **bars.heard)
    if json_output:
        print_json(done.results)
        return
    view = by_role(done.results)
    _print_table(view)
    for advice, *evidence in answer(view):
        show("\n  ".join([advice, *evidence]))
    if done.results["note"]:
        show(done.results["note"])
    seconds = time.perf_counter() - began
    show(f"{done.stages_run} stages run, {done.stages_reused} taken from the store, {seconds:.0f} s")
    if done.ship:
        show(f"to ship it: {done.ship}")
    show(f"report: {done.report}")


def _print_table(results: Results) -> None:
    """The headline metrics at the recipe's own setting, a block per method; fits 80 columns."""
    from precede.report import view

    blocks: dict[str, list[Comparison]] = {}
    two = len(results["orders"]) == 2
    for c in view.own_setting(results):
        if c["metric"] in (*view.HEADLINE_METRICS, *view.PAIR_METRICS) and c["n_seeds"]:
            against = "" if two else f", {c['a']} against {c['b']}"
            blocks.setdefault(view.method_name(c["settings"]) + against, []).append(c)
    if not blocks:
        return
    first = view.first(results)
    heads = ("", first, view.second(results), "difference", "95 % interval", "verdict")
    title = f"{results['recipe']['recipe']}, at the recipe's own setting"
    headline = table([head.replace(" > ", " >\n") for head in heads], title=title)
    said = iter(view.verdicts_of([c for comparisons in blocks.values() for c in comparisons], results))
    for name, comparisons in blocks.items():
        headline.add_row(name, style="bold")
        for c in comparisons:
            means = [view.number(value) for value in (c["mean_a"], c["mean_b"], c["mean_difference"])]
            headline.add_row(c["metric"], *means, view.interval(c["ci95"]), next(said))
    show(headline)


def _plan(recipe: Recipe, folder: Path | None, json_output: bool) -> None:
    from precede.cli.dry import print_plan
    from precede.files import cache_folder
    from precede.jobs.compare import check_orders, prepare
    from precede.store import Store

    check_orders(recipe)
    store = Store(folder or cache_folder() / "stages")
    worlds, plan, notes = prepare(recipe, store.root, dry=True)
    print_plan(recipe, worlds, plan, notes, store, json_output, ships=False)
