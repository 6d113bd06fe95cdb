"""The settings of a recipe, as pydantic models: names, types, ranges and defaults.

One class per world and per kind of stage in that world. `recipe.py` reads YAML into them; nothing here computes.
Every setting states its unit or range; a method that a world does not have is refused here, by name.
"""

from __future__ import annotations

from precede.settings.base import Settings, StageSettings
from precede.settings.language import (
    GrammarAlign,
    GrammarDistill,
    GrammarTeacher,
    GrammarWorld,
    TextAlign,
    TextDistill,
    TextTeacher,
    TextWorld,
)
from precede.settings.mixture import MixtureAlign, MixtureDistill, MixtureTeacher, MixtureWorld


class WorldSchema(Settings):
    """Which settings a world takes, kind by kind."""

    world: type[Settings]
    teacher: type[StageSettings]
    stages: dict[str, type[StageSettings]]


WORLDS: dict[str, WorldSchema] = {
    "mixture": WorldSchema(
        world=MixtureWorld, teacher=MixtureTeacher, stages={"align": MixtureAlign, "distill": MixtureDistill}
    ),
    "grammar": WorldSchema(
        world=GrammarWorld, teacher=GrammarTeacher, stages={"align": GrammarAlign, "distill": GrammarDistill}
    ),
    "text": WorldSchema(world=TextWorld, teacher=TextTeacher, stages={"align": TextAlign, "distill": TextDistill}),
}

KINDS = ("sft", "align", "distill")

HEADLINE: dict[str, tuple[str, ...]] = {
    "sft": ("method",),
    "align": ("method", "pairs", "beta", "reference"),
    "distill": ("method", "divergence", "temperature", "components"),
}
"""Settings that every result names, swept or not; a setting that the method does not read is null."""
