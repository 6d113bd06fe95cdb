"""Which settings each world takes. `recipe.py` reads YAML into them; nothing here computes.

Every setting states its unit or range; a method that a world does not have is refused, by name.
"""

from __future__ import annotations

from precede.settings import language, mixture
from precede.settings.base import Settings, StageSettings


class WorldSchema(Settings):
    """The settings of a world, block by block; `blocks` are further blocks of a recipe, by name."""

    world: type[Settings]
    teacher: type[StageSettings]
    stages: dict[str, type[StageSettings]]
    blocks: dict[str, type[Settings]] = {}


WORLDS = {
    "mixture": WorldSchema(
        world=mixture.MixtureWorld,
        teacher=mixture.MixtureTeacher,
        stages={"align": mixture.MixtureAlign, "distill": mixture.MixtureDistill},
    ),
    "grammar": WorldSchema(
        world=language.GrammarWorld,
        teacher=language.GrammarTeacher,
        stages={"align": language.Align, "distill": language.Distill},
        blocks={"student": language.GrammarStudent, "evaluation": language.Evaluation},
    ),
    "text": WorldSchema(
        world=language.TextWorld,
        teacher=language.TextTeacher,
        stages={"sft": language.Sft, "align": language.Align, "distill": language.Distill},
        blocks={"student": language.TextStudent, "data": language.Data, "evaluation": language.Evaluation},
    ),
}
KINDS = ("sft", "align", "distill")

HEADLINE: dict[str, tuple[str, ...]] = {
    "sft": ("method",),
    "align": ("method", "pairs", "beta", "reference"),
    "distill": ("method", "divergence", "temperature", "components"),
}
"""Settings that every result names, swept or not; a setting that the method does not read is null."""
