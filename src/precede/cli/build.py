"""`precede build`: parse, run, print."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from precede.build_recipe import BuildRecipe, load_build
from precede.cli.bars import bars, by_name
from precede.jobs.build import AuditRefused, Built, build
from precede.report.card import interval, rows_of
from precede.stages.processes import is_first, leave, wait


def run_build(
    recipe: str | None,
    overrides: list[str],
    flags: dict[str, Any],
    out: Path,
    store: Path | None,
    json_output: bool,
) -> None:
    """Run `precede build`. Raises ValueError for what is wrong with the input; exits with 1 where an audit stops it."""
    try:
        _build(load_build(recipe, overrides, flags), out, store, json_output)
        wait()
    finally:
        leave()


def _build(read: BuildRecipe, out: Path, store: Path | None, json_output: bool) -> None:
    messages = Console(stderr=True, highlight=False, markup=False, quiet=not is_first())
    command = shlex.join(["precede", *sys.argv[1:]])
    with bars(messages) as bar:

        def tell(line: str) -> None:
            messages.print(line, soft_wrap=True)

        try:
            made = build(read, out, store=store, command=command, tell=tell, progress=by_name(bar))
        except AuditRefused as refusal:
            messages.print(f"precede: {refusal}", soft_wrap=True)
            raise typer.Exit(1) from None
    if not is_first():
        return
    if json_output:
        sys.stdout.write(json.dumps(made.report, indent=1, ensure_ascii=False) + "\n")
    else:
        _print(made)
    repository = read.settings.push_to_hub
    if repository is not None:
        from precede.models.hub import push

        messages.print(f"uploaded to {push(made.folder, repository)}", soft_wrap=True)


def _print(made: Built) -> None:
    console = Console(highlight=False, markup=False)
    heads, rows = rows_of(made.report)
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for name, share in made.report["retained"].items():
        console.print(f"alignment retained, by {name.replace('_', ' ')}: {interval(share)}", soft_wrap=True)
    console.print(f"{made.stages_run} stages run, {made.stages_reused} taken from the store", soft_wrap=True)
    console.print(f"model: {made.folder}", soft_wrap=True)
