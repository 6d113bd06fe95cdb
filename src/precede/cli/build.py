"""`precede build`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from precede.cli import terminal
from precede.cli.terminal import guarded, print_json, settings_of, show, table
from precede.progress import Bars

if TYPE_CHECKING:
    from precede.jobs.build import Built

KEPT = "finished stages and checkpoints are kept, run the same command again to go on"


def build(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="A recipe, also one that was compared; without it, the flags say what to build."
        ),
    ] = None,
    teacher: terminal.Teacher = None,
    student: terminal.Student = None,
    keep_layers: terminal.KeepLayers = None,
    data: terminal.Pairs = None,
    order: Annotated[str | None, typer.Option(help="Stages in order; default 'align > distill'.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed; default the first of the recipe.")] = None,
    compared: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="RUN", help="Ship from this folder that `precede compare` left, training nothing."
        ),
    ] = None,
    reward: terminal.RewardFunction = None,
    reward_model: terminal.Classifier = None,
    beta: terminal.Beta = None,
    limit: terminal.Limit = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="audit", help="Leave out the audit before alignment.")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="unchecked|risky|trapped", help="Stop before an alignment whose reference is this or worse."
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the result; a new repository is private.")
    ] = None,
    overrides: terminal.Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the model; must not be there yet.")] = Path("model"),
    store: terminal.StoreFolder = None,
    workers: terminal.Workers = None,
    dry_run: terminal.DryRun = False,
    json_output: terminal.Json = False,
) -> None:
    """Make the compact aligned model from your models and data: audit, stages in order, evidence, model card.

    Leaves a Hugging Face folder. The same command again, after a kill, goes on from the last checkpoint. With several GPUs
    start it by `accelerate launch --config_file CONFIG -m precede build`.
    """
    around = {"skip": skip, "fail_on": fail_on, "push_to_hub": push_to_hub}
    if recipe is None and compared is None:
        around["orders"], order = None if order is None else [order], None
    flags = settings_of(teacher, student, keep_layers, data, reward, reward_model, beta, limit, **around)

    def work() -> None:
        from precede.stages.processes import leave, wait

        try:
            chosen: dict[str, Any] = {"order": order, "seed": seed, "store": store, "workers": workers}
            if dry_run:
                _plan(recipe, overrides or [], flags, compared, json_output, order, seed, store)
            elif compared is None:
                _run(recipe, overrides or [], flags, out, json_output, **chosen)
            else:
                _ship(compared, recipe, overrides or [], flags, out, json_output, **chosen)
            wait()
        finally:
            leave()

    guarded(work, KEPT)


def _plan(
    recipe: str | None,
    overrides: list[str],
    flags: dict[str, Any],
    compared: Path | None,
    json_output: bool,
    order: str | None,
    seed: int | None,
    folder: Path | None,
) -> None:
    from precede.cli.dry import print_plan
    from precede.files import cache_folder
    from precede.jobs.build import chosen, planned
    from precede.settings.recipe import load_recipe
    from precede.store import Store

    if compared is not None:
        raise ValueError("--from trains nothing, so there is nothing to plan; leave out --dry-run")
    store = Store(folder or cache_folder() / "stages")
    read = chosen(load_recipe(recipe, overrides, flags), order, seed)
    worlds, plan, notes = planned(read, store, dry=True)
    print_plan(read, worlds, plan, notes, store, json_output, ships=True)


def _ship(
    compared: Path,
    recipe: str | None,
    overrides: list[str],
    flags: dict[str, Any],
    out: Path,
    json_output: bool,
    **chosen: Any,
) -> None:
    """Build what a comparison has trained."""
    from precede.jobs.build import order_ahead

    trained = set(flags) - {"skip", "fail_on", "push_to_hub"}
    if recipe is not None or overrides or trained:
        raise ValueError("--from ships what was compared: leave out the recipe and all that would change it")
    if chosen["order"] is None:
        chosen["order"], why = order_ahead(compared)
        show(why) if not json_output else None
    _run(str(compared / "recipe.yaml"), overrides, flags, out, json_output, trained=True, **chosen)


def _run(
    recipe: str | None, overrides: list[str], flags: dict[str, Any], out: Path, json_output: bool, **options: Any
) -> None:
    from precede.jobs import build as job
    from precede.models.hub import push
    from precede.settings.recipe import load_recipe
    from precede.stages.processes import is_first

    read = load_recipe(recipe, overrides, flags)
    options["command"] = shlex.join(["precede", *sys.argv[1:]])
    with Bars(f"{read.name}: stages") as bars:
        try:
            built = job.build(read, out, **options, **bars.heard)
        except job.AuditRefused as refusal:
            bars.tell(f"precede: {refusal}")
            raise typer.Exit(1) from None
    if not is_first():
        return
    if json_output:
        print_json(built.report)
    else:
        _print(built)
    if read.run.push_to_hub is not None:
        bars.tell(f"uploaded to {push(built.folder, read.run.push_to_hub)}")


def _print(built: Built) -> None:
    from precede.report.card import rows_of, verdict
    from precede.report.markup import interval

    show(": ".join(verdict(built.report)), table(*rows_of(built.report)))
    for name, share in built.report["retained"].items():
        show(f"alignment retained, by {name.replace('_', ' ')}: {interval(share)}")
    show(f"{built.stages_run} stages run, {built.stages_reused} taken from the store")
    show(f"model: {built.folder}")
