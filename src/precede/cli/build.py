"""`precede build`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from precede.cli.terminal import Bars, Classifier, Json, Limit, Overrides, StoreFolder, Workers, console, guarded, table

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
    teacher: Annotated[
        str | None, typer.Option(help="Folder, Hugging Face id, or bundled:smollm2-135m-instruct.")
    ] = None,
    student: Annotated[str | None, typer.Option(help="Folder or Hugging Face id of the small model.")] = None,
    keep_layers: Annotated[
        int | None, typer.Option(metavar="N", help="In place of --student: the teacher with N of its layers.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Preferences: a .jsonl, .jsonl.gz or .parquet file, a folder, or a `datasets` name."),
    ] = None,
    order: Annotated[str | None, typer.Option(help="Stages in order; default 'align > distill'.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed; default the first of the recipe.")] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="f(prompts, completions) → numbers, as TRL calls it.")
    ] = None,
    reward_model: Classifier = None,
    beta: Annotated[float | None, typer.Option(help="Price of KL; default 0.1.")] = None,
    limit: Limit = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="audit", help="Leave out the audit before alignment.")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="risky|trapped", help="Stop before an alignment whose reference is this or worse."),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the result; a new repository is private.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the model; must not be there yet.")] = Path("model"),
    store: StoreFolder = None,
    workers: Workers = None,
    json_output: Json = False,
) -> None:
    """Make the compact aligned model from your models and data: audit, stages in order, evidence, model card.

    Leaves a Hugging Face folder. The same command again, after a kill, goes on from the last checkpoint. With several GPUs
    start it by `accelerate launch --config_file CONFIG -m precede build`.
    """
    flags: dict[str, Any] = {"teacher.model": teacher, "student.model": student, "student.keep_layers": keep_layers}
    flags |= {"data.source": data, "data.limit": limit, "world.reward": reward, "world.reward_model": reward_model}
    flags |= {"align.beta": beta, "skip": skip, "fail_on": fail_on, "push_to_hub": push_to_hub}
    if recipe is None:
        flags |= {"orders": None if order is None else [order]}
        order = None
    flags = {key: value for key, value in flags.items() if value is not None}

    def work() -> None:
        from precede.stages.processes import leave, wait

        try:
            _run(recipe, overrides or [], flags, out, json_output, order=order, seed=seed, store=store, workers=workers)
            wait()
        finally:
            leave()

    guarded(work, KEPT)


def _run(
    recipe: str | None, overrides: list[str], flags: dict[str, Any], out: Path, json_output: bool, **options: Any
) -> None:
    from precede.jobs import build as job
    from precede.models.hub import push
    from precede.settings.recipe import load_recipe
    from precede.stages.processes import is_first

    read = load_recipe(recipe, overrides, flags)
    options["command"] = shlex.join(["precede", *sys.argv[1:]])
    with Bars(f"{read.name}: stages", quiet=not is_first()) as bars:
        options |= {"started": bars.started, "finished": bars.finished, "progress": bars.progress, "tell": bars.tell}
        try:
            built = job.build(read, out, **options)
        except job.AuditRefused as refusal:
            bars.tell(f"precede: {refusal}")
            raise typer.Exit(1) from None
    if not is_first():
        return
    if json_output:
        sys.stdout.write(json.dumps(built.report, indent=1, ensure_ascii=False) + "\n")
    else:
        _print(built)
    if read.run.push_to_hub is not None:
        bars.tell(f"uploaded to {push(built.folder, read.run.push_to_hub)}")


def _print(built: Built) -> None:
    from precede.report.card import interval, rows_of

    screen = console()
    screen.print(table(*rows_of(built.report)), soft_wrap=False)
    for name, share in built.report["retained"].items():
        screen.print(f"alignment retained, by {name.replace('_', ' ')}: {interval(share)}")
    screen.print(f"{built.stages_run} stages run, {built.stages_reused} taken from the store")
    screen.print(f"model: {built.folder}")
