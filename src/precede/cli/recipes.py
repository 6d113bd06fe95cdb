"""`precede recipes`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from precede.settings.recipe import load_recipe, shipped_recipes


def run_recipes(name: str | None) -> None:
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
