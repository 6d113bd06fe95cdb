"""`precede doctor`: look, print."""

from __future__ import annotations

import dataclasses
import json
import sys

import typer
from rich.console import Console

from precede.doctor import Need, facts, report


def run_doctor(recipe: str | None, overrides: list[str], json_output: bool) -> None:
    """Print what this machine has, and what `recipe` needs of it. Exits with 1 where something is wrong or missing."""
    needs = needs_of(recipe, overrides) if recipe is not None else []
    found = facts()
    if json_output:
        whole = found | {"needs": [dataclasses.asdict(need) for need in needs]}
        sys.stdout.write(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    else:
        Console(highlight=False, markup=False).print(report(found, needs))
    if found["problems"] or not all(need.ok for need in needs):
        raise typer.Exit(1)


def needs_of(recipe: str, overrides: list[str]) -> list[Need]:
    """What the recipe, with its overrides, needs of the machine."""
    raise ValueError(f"what the recipe {recipe} needs cannot be told yet; leave it out")
