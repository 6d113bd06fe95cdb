"""What a build is given: models, tokenizers, rows, reward. Read and checked before anything is trained."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from precede.audit.measure import longest
from precede.build_packages import check_packages
from precede.build_recipe import BuildRecipe
from precede.build_sizes import Sizes
from precede.lm.arguments import check_arguments
from precede.lm.completions import read_completions
from precede.lm.data import Preference, PreferenceData, read_preferences
from precede.lm.fingerprints import fingerprint
from precede.lm.libraries import transformers
from precede.lm.models import folder, load_tokenizer, pick_device, read_config, unreadable_weights
from precede.lm.preflight import preflight, same_tokenizer
from precede.lm.rewards import PairReward, load_reward, load_reward_model
from precede.lm.training import in_bf16
from precede.schema.build import Align, Distill
from precede.store import Stage
from precede.worlds.text.world import parameters_of

CHECKED_ROWS = 4
"""Rows that the reward is called on before anything is trained."""


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

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.recipe, self.start, self.teacher, self.student)

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
    def _usable(self) -> list[int]:
        rows = [{row.row for row in data.rows} for data in self.data.values()]
        return sorted(set.intersection(*rows))

    @cached_property
    def _held_out(self) -> set[int]:
        """Row numbers that are kept from training: all rows of a share of the prompts, by a hash of the prompt."""
        first = self.data[self.models[0]]
        usable, share = set(self._usable), self.recipe.settings.data.held_out

        def draw(row: Preference) -> float:
            text = repr(row.turns) if row.turns else row.prompt_text
            return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48

        return {row.row for row in first.rows if row.row in usable and draw(row) < share}

    def training_rows(self, model: str) -> list[Preference]:
        usable = set(self._usable) - self._held_out
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

    # ------------------------------------------------------------------------------------------------ checks

    def check(self, disk: Path) -> None:
        """Raise ValueError, in one sentence, for whatever would stop the build later; nothing is trained or written."""
        settings = self.recipe.settings
        device = pick_device(settings.device)
        in_bf16(settings.dtype, device)
        check_packages(self.recipe)
        for name, stage in self.recipe.sequence():
            extra = {**type(stage).defaults, **stage.trainer}
            try:
                check_arguments(stage.trainer_method(), extra, device, settings.dtype)
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None
        for model in self.models:
            unreadable_weights(model)
        self._check_tokenizers()
        self._check_sizes()
        self._check_rows()
        self._preflight()
        for _, stage in self.recipe.sequence():
            if isinstance(stage, Distill) and stage.completions is not None:
                read_completions(stage.completions, self.words[str(self.student)])
        self._check_reward()
        self._check_disk(disk)

    def _check_tokenizers(self) -> None:
        start, student, teacher = self.start, self.student, self.teacher
        for name, stage in self.recipe.sequence():
            if isinstance(stage, Distill) and student is not None and teacher is not None:
                difference = self.difference(teacher, student)
                if difference is None:
                    continue
                both = f"{self.name(student)} and {self.name(teacher)}"
                if stage.method != "sequence":
                    raise ValueError(
                        f"{name}.method {stage.method} needs one tokenizer, and those of {both} differ ({difference}); "
                        "set it to sequence"
                    )
                self.notes.append(
                    f"the tokenizers of {both} differ ({difference}): completions are handed over as texts"
                )
            if isinstance(stage, Align) and (stage.reference == "teacher" or stage.pairs == "seeded"):
                other = start if teacher is None else teacher
                own = student if student is not None else start
                if other is not None and own is not None and not self.same_tokenizer(other, own):
                    raise ValueError(
                        f"{name} takes the teacher as reference or samples it, and the tokenizers of {self.name(own)} and "
                        f"{self.name(other)} differ; use reference: self and pairs: given or on_policy"
                    )

    def _check_sizes(self) -> None:
        """A student is smaller than its teacher."""
        settings = self.recipe.settings
        if self.teacher is None or settings.student is None:
            return
        student, teacher = self.sizes.student_parameters, parameters_of(self.teacher, None)
        if student > teacher:
            raise ValueError(
                f"the student has {student:,} parameters and the teacher {teacher:,}; a student is the smaller one: are they "
                "the wrong way round?"
            )

    def _check_rows(self) -> None:
        first = self.models[0]
        count, held = len(self.training_rows(first)), len(self.held_out_rows(first))
        source = self.recipe.settings.data.source
        if held < 2:
            raise ValueError(
                f"{source} has {len(self._usable)} usable rows, of which {held} are held out; raise data.held_out or give more"
            )
        if count < 1:
            raise ValueError(f"{source} has no row to train on beside those held out; lower data.held_out")
        for model in self.models:
            limit = longest(model)
            width = max(len(row.prompt) for row in self.data[model].rows) + self.max_new_tokens
            if limit is not None and width > limit:
                raise ValueError(
                    f"the longest prompt leaves no room for {self.max_new_tokens} tokens in the {limit} that "
                    f"{self.name(model)} reads; lower evaluation.max_new_tokens, or data.max_length to leave long rows out"
                )

    def _preflight(self) -> None:
        """Notes on pad, BOS, EOS and chat template of every model."""
        chats = any(row.turns is not None for row in self.data[self.models[0]].rows)
        for model in self.models:
            config = read_config(model)
            with suppress(OSError):  # many models come without
                config.generation_config = transformers().GenerationConfig.from_pretrained(folder(model))
            self.notes += [
                note for note in preflight(config, self.words[model], model, chats) if note not in self.notes
            ]

    def _check_reward(self) -> None:
        if self.reward is None:
            return
        rows = self.held_out_rows(self.models[0])[:CHECKED_ROWS]
        self.reward([row.turns or row.prompt_text for row in rows], [row.chosen_text for row in rows])

    def _check_disk(self, disk: Path) -> None:
        need = self.sizes.disk_bytes()
        place = next(path for path in (disk, *disk.resolve().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < need:
            raise ValueError(
                f"{place} has {free / 1e9:.1f} GB free, and the build needs about {need / 1e9:.1f} GB for checkpoints and "
                "models; name another place with --store, or train adapters (lora)"
            )
