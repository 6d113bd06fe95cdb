"""What is known of models that are not loaded: how many parameters they have, and what tells their content apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from precede.models import load
from precede.models.load import BUNDLED
from precede.models.memory import Shape

_SMOLLM2 = {"135M": 134_515_008, "360M": 361_821_120, "1.7B": 1_711_376_384}
KNOWN_PARAMETERS = {BUNDLED: _SMOLLM2["135M"]} | {
    f"HuggingFaceTB/SmolLM2-{size}{kind}": count for size, count in _SMOLLM2.items() for kind in ("", "-Instruct")
}
"""Parameters by name, so that a run can be planned where the hub is out of reach."""
BUNDLED_LAYERS, BUNDLED_PER_LAYER = 30, 3_540_096
"""SmolLM2-135M: layers, and parameters in each."""


SHAPES = {
    "135M": (30, 576, 1536, 576, 192, 49_152),
    "360M": (32, 960, 2560, 960, 320, 49_152),
    "1.7B": (24, 2048, 8192, 2048, 2048, 49_152),
}
"""The rest of their `Shape`s, by size."""


@cache
def parameters_of(model: str, keep: int | None = None) -> int:
    """Parameters of a model, or of a student with `keep` of its layers. ValueError where either cannot be."""
    if model == BUNDLED:
        load.bundled_file()
        removed = 0 if keep is None else BUNDLED_LAYERS - len(load.kept_layers(BUNDLED_LAYERS, keep))
        return KNOWN_PARAMETERS[BUNDLED] - removed * BUNDLED_PER_LAYER
    if keep is None and model in KNOWN_PARAMETERS:
        return KNOWN_PARAMETERS[model]
    config = load.read_config(model)
    if keep is not None:
        config = load.shorter(config, load.kept_layers(config.num_hidden_layers, keep))
    with torch.device("meta"):
        return load.parameter_count(load.make("AutoModelForCausalLM", model, config))


@cache
def shape_of(model: str, keep: int | None = None) -> Shape:
    """The sizes of a model, or of a student with `keep` of its layers, from its configuration."""
    known = KNOWN_PARAMETERS.get(model)
    size = next((size for size, count in _SMOLLM2.items() if count == known), None)
    parameters = parameters_of(model, keep)
    shape = shape_by(load.read_config(model), parameters) if size is None else Shape(*SHAPES[size], parameters)
    return shape if keep is None else replace(shape, layers=len(load.kept_layers(shape.layers, keep)))


def shape_by(config: Any, parameters: int) -> Shape:
    """The sizes that a configuration speaks of; where it names no width of the MLP, four times the model's, as GPT-2 has it."""
    text = config.get_text_config()
    heads, width = getattr(text, "num_attention_heads", None) or 1, text.hidden_size
    size = getattr(text, "head_dim", None) or width // heads
    keys = size * (getattr(text, "num_key_value_heads", None) or heads)
    mlp = getattr(text, "intermediate_size", None) or 4 * width
    return Shape(text.num_hidden_layers, width, mlp, size * heads, keys, text.vocab_size, parameters)


def shape_from_scratch(model: str, changes: Mapping[str, Any]) -> Shape:
    """The sizes of a new model with the configuration of `model` under `changes`."""
    made = load.from_scratch(model, changes, empty=True)
    return shape_by(made.config, load.parameter_count(made))


def classifier_parameters(model: str) -> int:
    """Parameters of a reward model. ValueError where it is no sequence classifier."""
    with torch.device("meta"):
        return load.parameter_count(load.make("AutoModelForSequenceClassification", model, load.read_config(model)))


def fingerprint(model: str) -> str:
    """What tells a model's content: a hash of a folder's files, the commit of a Hugging Face id."""
    folder = load.folder(model)
    if not isinstance(folder, Path):
        return str(getattr(load.read_config(model), "_commit_hash", None) or model)
    return file_hash([path for path in sorted(folder.rglob("*")) if path.is_file()], folder)


def file_hash(paths: Sequence[Path], root: Path) -> str:
    """SHA-256 over names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
