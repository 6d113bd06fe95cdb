"""What a build takes of memory and disk, from configurations alone."""

from __future__ import annotations

from dataclasses import dataclass

from precede.build_recipe import BuildRecipe
from precede.lm.models import from_scratch, parameter_count
from precede.schema.build import Align, Distill
from precede.worlds.text.world import parameters_of

BYTES_PER_PARAMETER = 4
CHECKPOINT_FACTOR = 7
"""Disk of a training in weights of its model: two checkpoints of weights and Adam's two moments, and the model itself."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a recipe's models, by the places where they are."""

    recipe: BuildRecipe
    start: str | None
    teacher: str | None
    student: str | None

    @property
    def student_parameters(self) -> int:
        """Parameters of the student, or of the model that is trained in its place."""
        student = self.recipe.settings.student
        if student is None:
            return parameters_of(str(self.start), None)
        if student.config is not None:
            return parameter_count(from_scratch(str(self.teacher), student.config, empty=True))
        return parameters_of(self.student or str(self.teacher), student.keep_layers)

    def parameters(self, name: str) -> int:
        """Parameters of the model that a stage trains."""
        kinds = [stage for other, stage in self.recipe.sequence()[: self.recipe.order.stages.index(name) + 1]]
        is_student = any(isinstance(stage, Distill) for stage in kinds)
        return self.student_parameters if is_student else parameters_of(str(self.start), None)

    def disk_bytes(self) -> int:
        """Room for the checkpoints and the models of all stages, about."""
        return sum(
            BYTES_PER_PARAMETER * self.parameters(name) * (3 if stage.lora is not None else CHECKPOINT_FACTOR + 1)
            for name, stage in self.recipe.sequence()
        )

    def memory_bytes(self, name: str) -> int:
        """Memory that a stage's weights take in one process, about: fp32 weights, gradients and Adam's two moments of what is
        trained, and the weights of the reference or the teacher; activations come on top."""
        stage, own = self.recipe.stages[name], self.parameters(name)
        trained = BYTES_PER_PARAMETER * own * (4 if stage.lora is None else 1)
        beside = 0 if self.start is None else parameters_of(self.start, None)
        if isinstance(stage, Align):
            beside = own if stage.lora is None else 0
        elif not isinstance(stage, Distill):
            beside = 0
        return trained + BYTES_PER_PARAMETER * beside
