"""Which settings each world takes. `recipe.py` reads YAML into them; nothing here computes.

Every setting states its unit or range; a method that a world does not have is refused, by name.
"""

from __future__ import annotations

from precede.settings.base import Settings, StageSettings
from precede.settings.language import (
    Data,
    Evaluation,
    GrammarStudent,
    GrammarTeacher,
    GrammarWorld,
    TextStudent,
    TextTeacher,
    TextWorld,
)
from precede.settings.mixture import MixtureAlign, MixtureDistill, MixtureTeacher, MixtureWorld
from precede.settings.stages import STAGES


class WorldSchema(Settings):
    """The settings of a world, block by block; `blocks` are further blocks of a recipe, by name."""

    world: type[Settings]
    teacher: type[StageSettings]
    stages: dict[str, type[StageSettings]]
    blocks: dict[str, type[Settings]] = {}


WORLDS: dict[str, WorldSchema] = {
    "mixture": WorldSchema(
        world=MixtureWorld, teacher=MixtureTeacher, stages={"align": MixtureAlign, "distill": MixtureDistill}
    ),
    "grammar": WorldSchema(
        world=GrammarWorld,
        teacher=GrammarTeacher,
        stages={kind: stage for kind, stage in STAGES.items() if kind != "sft"},
        blocks={"student": GrammarStudent, "evaluation": Evaluation},
    ),
    "text": WorldSchema(
        world=TextWorld,
        teacher=TextTeacher,
        stages=dict(STAGES),
        blocks={"student": TextStudent, "data": Data, "evaluation": Evaluation},
    ),
}
KINDS = ("sft", "align", "distill")

HEADLINE: dict[str, tuple[str, ...]] = {
    "sft": ("method",),
    "align": ("method", "pairs", "beta", "reference"),
    "distill": ("method", "divergence", "temperature", "components"),
}
"""Settings that every result names, swept or not; a setting that the method does not read is null."""
