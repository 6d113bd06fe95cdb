"""The command line. Each verb owns its flags; heavy libraries are imported only by the verb that runs."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer
from rich.table import Table

from precede.cli.audit import audit
from precede.cli.build import build
from precede.cli.compare import compare
from precede.cli.doctor import doctor
from precede.cli.terminal import guarded, show
from precede.machine import wait_asleep

app = typer.Typer(
    name="precede",
    help="Puts the stages of post-training in the right order: align first, then distil (arXiv 2509.23667).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Print this recipe, to copy and change.")] = None,
) -> None:
    """List the recipes that come with the package, or print one."""

    def work() -> None:
        from precede.settings.recipe import load_recipe, shipped_recipes

        shipped = shipped_recipes()
        if name is None:
            table = Table("recipe", "what it shows", "settings × seeds", box=None, pad_edge=False)
            table.columns[0].no_wrap = table.columns[2].no_wrap = True
            for key in shipped:
                recipe = load_recipe(key)
                table.add_row(key, recipe.description, f"{len(recipe.variants)} × {len(recipe.seeds)}")
            show(table)
        elif name in shipped:
            print(shipped[name], end="")
        else:
            raise ValueError(f"there is no recipe '{name}'; the recipes are {', '.join(shipped)}")

    guarded(work)


for verb in (compare, audit, build, doctor, recipes):
    app.command()(verb)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"precede {installed('precede')}")
        raise typer.Exit


def main() -> None:
    wait_asleep()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of latin-1, ascii: what they lack is written as its escape
    app(prog_name="precede")


if __name__ == "__main__":
    main()
