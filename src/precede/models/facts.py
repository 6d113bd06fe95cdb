"""What is known of models that are not loaded: how many parameters they have, and what tells their content apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from precede.data.sentences import first_line
from precede.libraries import quiet, transformers
from precede.models import load
from precede.models.load import BUNDLED

_SMOLLM2 = {"135M": 134_515_008, "360M": 361_821_120, "1.7B": 1_711_376_384}
KNOWN_PARAMETERS = {BUNDLED: _SMOLLM2["135M"]} | {
    f"HuggingFaceTB/SmolLM2-{size}{kind}": count for size, count in _SMOLLM2.items() for kind in ("", "-Instruct")
}
"""Parameters by name, so that a run can be planned where the hub is out of reach."""
BUNDLED_LAYERS, BUNDLED_PER_LAYER = 30, 3_540_096
"""SmolLM2-135M: layers, and parameters in each."""


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
    with quiet(), torch.device("meta"):
        try:
            return load.parameter_count(transformers().AutoModelForCausalLM.from_config(config))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{model} is no causal language model: {first_line(error)}") from None


def parameters_from_scratch(model: str, changes: Mapping[str, Any]) -> int:
    """Parameters of a new model with the configuration of `model` under `changes`."""
    return load.parameter_count(load.from_scratch(model, changes, empty=True))


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
