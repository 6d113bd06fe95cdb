"""Numbers of parameters, from configurations alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from precede.libraries import quiet, transformers
from precede.models.load import BUNDLED, bundled_file, from_scratch, kept_layers, parameter_count, read_config, shorter

KNOWN_PARAMETERS = {
    BUNDLED: 134_515_008,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
}
"""So that a run can be planned where the hub is out of reach."""
BUNDLED_LAYERS, BUNDLED_PER_LAYER = 30, 3_540_096
"""SmolLM2-135M: layers, and parameters in each."""


@cache
def parameters_of(model: str, keep: int | None = None) -> int:
    """Parameters of a model, or of a student with `keep` of its layers. ValueError where either cannot be."""
    if model == BUNDLED:
        bundled_file()
        removed = 0 if keep is None else BUNDLED_LAYERS - len(kept_layers(BUNDLED_LAYERS, keep))
        return KNOWN_PARAMETERS[BUNDLED] - removed * BUNDLED_PER_LAYER
    if keep is None and model in KNOWN_PARAMETERS:
        return KNOWN_PARAMETERS[model]
    config = read_config(model)
    if keep is not None:
        config = shorter(config, kept_layers(config.num_hidden_layers, keep))
    with quiet(), torch.device("meta"):
        return parameter_count(transformers().AutoModelForCausalLM.from_config(config))


def parameters_from_scratch(model: str, changes: Mapping[str, Any]) -> int:
    """Parameters of a new model with the configuration of `model` under `changes`."""
    return parameter_count(from_scratch(model, changes, empty=True))
