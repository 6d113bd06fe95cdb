"""`precede recipes`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from precede.cli.terminal import guarded


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Print this recipe, to copy and change.")] = None,
) -> None:
    """List the recipes that come with the package, or print one."""
    guarded(lambda: _run(name))


def _run(name: str | None) -> None:
    from precede.settings.recipe import load_recipe, shipped_recipes

    shipped = shipped_recipes()
    if name is not None:
        if name not in shipped:
            raise ValueError(f"there is no recipe '{name}'; the recipes are {', '.join(shipped)}")
        print(shipped[name], end="")
        return
    table = Table("recipe", "what it shows", "settings × seeds", box=None, pad_edge=False)
    for key in shipped:
        recipe = load_recipe(key)
        table.add_row(key, recipe.description, f"{len(recipe.variants)} × {len(recipe.seeds)}")
    Console().print(table)
