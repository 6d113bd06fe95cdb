"""The bounds within which recipes are read, and what YAML may hide in them."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from conftest import SMALL
from precede.plan import make_plan
from precede.settings.recipe import Recipe, load_recipe, read_recipe
from precede.worlds.world import load_world

LINES = [f"{name}: &{name} [{', '.join(9 * [f'*{above}'])}]" for above, name in zip("abcdef", "bcdefg", strict=True)]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(LINES), r"the settings hold more than 100,000 values"),
        ("# " + "x" * 2**18, r"has more than 262,144 bytes, so it is no recipe"),
        ("".join(f"key{number}: 1\n" for number in range(2000)), r"unknown key 'key0'"),
    ],
    ids=["anchors that expand", "long file", "many keys"],
)
def test_recipes_are_read_within_bounds(text: str, pattern: str, tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=pattern):
        load_recipe(path)


def test_a_recipe_is_a_file(tmp_path: Path) -> None:
    """A pipe that nobody writes to, and a device without an end."""
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(ValueError, match=r"is no regular file; give a YAML file"):
            load_recipe(path)


def test_a_mapping_that_holds_itself(tmp_path: Path) -> None:
    endless: dict[str, Any] = copy.deepcopy(SMALL)
    endless["align"]["align"] = endless
    with pytest.raises(ValueError, match="settings lie more than 20 deep in one another"):
        load_recipe(endless)


def test_long_orders_are_planned_at_once(small: Recipe) -> None:
    """Models of an order are each made once, though an alignment has two ways to the one before."""
    recipe = read_recipe({**SMALL, "orders": [" > ".join(["align", "distill"] * 25)], "sweep": [], "seeds": 1})
    world = load_world(recipe, recipe.variants[0])
    assert len(make_plan(recipe, [world]).models) == 51


def test_stages_that_share_an_anchor_share_no_settings(tmp_path: Path) -> None:
    """What one of them is set to, by the command line or by its kind's defaults, is not set for the other."""
    path = tmp_path / "recipe.yaml"
    text = "teacher: t\nstudent: s\ndata: d.jsonl\nalign: &stage {trainer: {max_steps: 4}}\ndistill: *stage\n"
    path.write_text(text + "orders: [align > distill, distill > align]\n", "utf-8")
    stages = load_recipe(path, ["align.trainer.max_steps=3"]).variants[0].stages
    assert stages["align"]["trainer"]["max_steps"] == 3
    assert stages["distill"]["trainer"]["max_steps"] == 4
    assert stages["distill"]["method"] != stages["align"]["method"]
