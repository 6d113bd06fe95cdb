"""What a build is given: models, tokenizers, rows, reward. Read and checked before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from precede.build_recipe import BuildRecipe
from precede.data.preferences import Preference, PreferenceData, read_preferences
from precede.evaluate.measure import longest
from precede.models.fingerprints import fingerprint
from precede.models.load import load_tokenizer, pick_device
from precede.models.tokenizers import same_tokenizer
from precede.rewards import PairReward, load_reward, load_reward_model
from precede.settings.build import Align, Distill
from precede.store import Stage
from precede.worlds.text.world import parameters_of

BYTES_PER_PARAMETER = 4
CHECKPOINT_FACTOR = 7
"""Disk of a training in weights of its model: two checkpoints of weights and Adam's two moments, and the model itself."""


@dataclass
class Inputs:
    """The models, rows and reward of a recipe. Rows are split by prompt: what is held out has no prompt that is trained on."""

    recipe: BuildRecipe
    adapters: Mapping[str, Stage] = field(default_factory=dict)
    """Models of the recipe that are adapters, with the entry of the store in which each is merged."""
    places: Mapping[str, str] = field(default_factory=dict)
    """The folders of those merged models."""
    notes: list[str] = field(default_factory=list)
    _differences: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def place(self, model: str | None) -> str | None:
        return None if model is None else self.places.get(model, model)

    def name(self, model: str) -> str:
        """What the recipe calls a model."""
        return next((name for name, place in self.places.items() if place == model), model)

    def content(self, model: str) -> str:
        """What tells a model's content."""
        adapter = self.adapters.get(self.name(model))
        return fingerprint(model) if adapter is None else adapter.key

    @property
    def teacher(self) -> str | None:
        return self.place(self.recipe.settings.teacher)

    @property
    def start(self) -> str | None:
        """The model that the first stage works on; None where a student learns from completions and nothing else."""
        settings = self.recipe.settings
        if any(isinstance(stage, Distill) for _, stage in self.recipe.sequence()):
            return self.teacher
        return self.student if settings.student is not None else self.teacher

    @property
    def student(self) -> str | None:
        """The student's own model, where it is one that is there."""
        student = self.recipe.settings.student
        return None if student is None else self.place(student.model)

    @cached_property
    def words(self) -> dict[str, Any]:
        """Tokenizers by model."""
        return {model: load_tokenizer(model) for model in self.models}

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(model for model in (self.start, self.teacher, self.student) if model is not None))

    def same_tokenizer(self, one: str, other: str) -> bool:
        return self.difference(one, other) is None

    def difference(self, one: str, other: str) -> str | None:
        """How the tokenizers of two models differ, a clause; None where they do not."""
        if one == other:
            return None
        pair = (min(one, other), max(one, other))
        if pair not in self._differences:
            self._differences[pair] = same_tokenizer(self.words[pair[0]], self.words[pair[1]])
        return self._differences[pair]

    @cached_property
    def reward(self) -> PairReward | None:
        settings = self.recipe.settings
        if settings.reward_model is not None:
            return load_reward_model(settings.reward_model, pick_device(settings.device))
        return None if settings.reward is None else load_reward(settings.reward)

    @cached_property
    def data(self) -> dict[str, PreferenceData]:
        """The pairs as each model's tokenizer writes them, of those rows that every model can use."""
        data = self.recipe.settings.data
        found: dict[str, PreferenceData] = {}
        limits = [value for value in (data.max_length, *map(longest, self.models)) if value is not None]
        for model in self.models:
            same = next((other for other in found if self.same_tokenizer(model, other)), None)
            if same is not None:
                found[model] = found[same]
                continue
            columns: Mapping[str, str] = {str(name): theirs for name, theirs in data.columns.items()}
            found[model] = read_preferences(
                data.source,
                self.words[model],
                columns=columns,
                limit=data.limit,
                split=data.split,
                max_length=min(limits, default=None),
            )
        return found

    @cached_property
    def usable(self) -> list[int]:
        """Numbers of the rows that every model can use."""
        rows = [{row.row for row in data.rows} for data in self.data.values()]
        return sorted(set.intersection(*rows))

    @cached_property
    def _held_out(self) -> set[int]:
        """Row numbers that are kept from training: all rows of a share of the prompts, by a hash of the prompt."""
        first = self.data[self.models[0]]
        usable, share = set(self.usable), self.recipe.settings.data.held_out

        def draw(row: Preference) -> float:
            text = repr(row.turns) if row.turns else row.prompt_text
            return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48

        return {row.row for row in first.rows if row.row in usable and draw(row) < share}

    def training_rows(self, model: str) -> list[Preference]:
        usable = set(self.usable) - self._held_out
        return [row for row in self.data[model].rows if row.row in usable]

    def held_out_rows(self, model: str) -> list[Preference]:
        return [row for row in self.data[model].rows if row.row in self._held_out][
            : self.recipe.settings.evaluation.pairs
        ]

    @cached_property
    def max_new_tokens(self) -> int:
        given = self.recipe.settings.evaluation.max_new_tokens
        lengths = [len(row.chosen) for row in self.training_rows(self.models[0])]
        return given or max(2, int(np.quantile(lengths, 0.95)))

    @cached_property
    def target_reward(self) -> float | None:
        """The reward from which a completion is desirable: given, or the median of the held-out chosen completions."""
        if self.reward is None:
            return None
        given, rows = self.recipe.settings.target_reward, self.held_out_rows(self.models[0])
        if given is not None:
            return given
        return float(np.median(self.reward([r.turns or r.prompt_text for r in rows], [r.chosen_text for r in rows])))

    @cached_property
    def student_parameters(self) -> int:
        student = self.recipe.settings.student
        if student is None:
            return parameters_of(str(self.start), None)
        if student.config is not None:
            return _scratch_parameters(str(self.teacher), student.config)
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


def _scratch_parameters(teacher: str, changes: Mapping[str, Any]) -> int:
    from precede.models.load import from_scratch, parameter_count

    return parameter_count(from_scratch(teacher, changes, empty=True))
