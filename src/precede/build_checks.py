"""What would stop a build later, said before anything is trained."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from precede.build_inputs import Inputs
from precede.build_packages import check_packages
from precede.data.completions import read_completions
from precede.evaluate.measure import longest
from precede.libraries import transformers
from precede.models.load import folder, pick_device, read_config, unreadable_weights
from precede.models.tokenizers import preflight
from precede.settings.build import Align, Distill
from precede.stages.arguments import check_arguments
from precede.stages.trainer import in_bf16
from precede.worlds.text.world import parameters_of

CHECKED_ROWS = 4
"""Rows that the reward is called on before anything is trained."""


def check(inputs: Inputs, disk: Path) -> None:
    """Raise ValueError, in one sentence, for whatever would stop the build later; nothing is trained or written."""
    settings = inputs.recipe.settings
    device = pick_device(settings.device)
    in_bf16(settings.dtype, device)
    check_packages(inputs.recipe)
    for name, stage in inputs.recipe.sequence():
        extra = {**type(stage).defaults, **stage.trainer}
        try:
            check_arguments(stage.trainer_method(), extra, device, settings.dtype)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from None
    for model in inputs.models:
        unreadable_weights(model)
    _check_tokenizers(inputs)
    _check_sizes(inputs)
    _check_rows(inputs)
    _preflight(inputs)
    for _, stage in inputs.recipe.sequence():
        if isinstance(stage, Distill) and stage.completions is not None:
            student = str(inputs.student)
            longest_row = max(sum(map(len, row)) for row in read_completions(stage.completions, inputs.words[student]))
            if (limit := longest(student)) is not None and longest_row > limit:
                raise ValueError(
                    f"{stage.completions} has a row of {longest_row} tokens, and {inputs.name(student)} reads {limit}; leave "
                    "long rows out"
                )
    _check_reward(inputs)
    _check_disk(inputs, disk)


def _check_tokenizers(inputs: Inputs) -> None:
    student, teacher, own = inputs.student, inputs.teacher, inputs.start
    for name, stage in inputs.recipe.sequence():
        if isinstance(stage, Distill) and student is not None:
            own = student
        if isinstance(stage, Distill) and student is not None and teacher is not None:
            difference = inputs.difference(teacher, student)
            if difference is None:
                continue
            both = f"{inputs.name(student)} and {inputs.name(teacher)}"
            if stage.method != "sequence":
                raise ValueError(
                    f"{name}.method {stage.method} needs one tokenizer, and those of {both} differ ({difference}); "
                    "set it to sequence"
                )
            inputs.notes.append(f"the tokenizers of {both} differ ({difference}): completions are handed over as texts")
        looks_up = isinstance(stage, Align) and (stage.reference == "teacher" or stage.pairs == "seeded")
        if looks_up and teacher is not None and own is not None and not inputs.same_tokenizer(teacher, own):
            raise ValueError(
                f"{name} takes the teacher as reference or samples it, and the tokenizers of {inputs.name(own)} and "
                f"{inputs.name(teacher)} differ; use reference: self and pairs: given or on_policy"
            )


def _check_sizes(inputs: Inputs) -> None:
    """A student is smaller than its teacher."""
    settings = inputs.recipe.settings
    if inputs.teacher is None or settings.student is None:
        return
    student, teacher = inputs.student_parameters, parameters_of(inputs.teacher, None)
    if student > teacher:
        raise ValueError(
            f"the student has {student:,} parameters and the teacher {teacher:,}; a student is the smaller one: are they "
            "the wrong way round?"
        )


def _check_rows(inputs: Inputs) -> None:
    first = inputs.models[0]
    count, held = len(inputs.training_rows(first)), len(inputs.held_out_rows(first))
    source = inputs.recipe.settings.data.source
    if held < 2:
        raise ValueError(
            f"{source} has {len(inputs.usable)} usable rows, of which {held} are held out; raise data.held_out or give more"
        )
    if count < 1:
        raise ValueError(f"{source} has no row to train on beside those held out; lower data.held_out")
    for model in inputs.models:
        limit = longest(model)
        width = max(len(row.prompt) for row in inputs.data[model].rows) + inputs.max_new_tokens
        if limit is not None and width > limit:
            raise ValueError(
                f"the longest prompt leaves no room for {inputs.max_new_tokens} tokens in the {limit} that "
                f"{inputs.name(model)} reads; lower evaluation.max_new_tokens, or data.max_length to leave long rows out"
            )


def _preflight(inputs: Inputs) -> None:
    """Notes on pad, BOS, EOS and chat template of every model."""
    chats = any(row.turns is not None for row in inputs.data[inputs.models[0]].rows)
    for model in inputs.models:
        config = read_config(model)
        with suppress(OSError):  # many models come without
            config.generation_config = transformers().GenerationConfig.from_pretrained(folder(model))
        inputs.notes += [
            note
            for note in preflight(config, inputs.words[model], inputs.name(model), chats)
            if note not in inputs.notes
        ]


def _check_reward(inputs: Inputs) -> None:
    if inputs.reward is None:
        return
    rows = inputs.held_out_rows(inputs.models[0])[:CHECKED_ROWS]
    inputs.reward([row.turns or row.prompt_text for row in rows], [row.chosen_text for row in rows])


def _check_disk(inputs: Inputs, disk: Path) -> None:
    need = inputs.disk_bytes()
    place = next(path for path in (disk, *disk.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise ValueError(
            f"{place} has {free / 1e9:.1f} GB free, and the build needs about {need / 1e9:.1f} GB for checkpoints and "
            "models; name another place with --store, or train adapters (lora)"
        )
