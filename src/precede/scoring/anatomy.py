"""What the scorer has to know of a model: body and head, a soft cap, limits that come with its positions, its size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from precede.scoring.heads import Head


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off and no gradients; every module is as it was at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def body_of(model: Any) -> Any:
    """The model without its head, adapters included. Raises NotImplementedError where it is not apart."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner.base_model is inner:
        raise NotImplementedError(f"{type(inner).__name__} has no body apart from its head")
    return inner.base_model


def head_of(model: Any, scale: float = 1.0) -> Head:
    """The model's output layer, with the soft cap that its configuration names."""
    config, module = model.config.get_text_config(), model.get_output_embeddings()
    caps = (getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap"))
    return Head(module, len(module.weight), scale, next((float(cap) for cap in caps if cap), None))


def tokens_at_once(model: Any, whole: bool) -> int:
    """Tokens of one pass: a layer's widest values fit a CPU's caches (8 MiB), or a part of another device's free memory."""
    vocabulary = len(model.get_input_embeddings().weight)
    if whole:
        return max(2**26 // vocabulary, 1)
    shapes = [parameter.shape[-2:] for parameter in model.parameters() if parameter.ndim > 1]
    widest = max((max(shape) for shape in shapes if vocabulary not in shape), default=vocabulary)
    if model.device.type == "cuda":
        return min(max(torch.cuda.mem_get_info(model.device)[0] // (128 * widest), 512), 2**15)
    return min(max(2**21 // widest, 512), 8192)


def turning_length(model: Any) -> float:
    """The length from which on a row's own length changes how its positions are turned; most models have none."""
    config = model.config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or {}
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    own = getattr(config, "original_max_position_embeddings", None) or getattr(config, "max_position_embeddings", None)
    lengths = [
        part.get("original_max_position_embeddings") or own or math.inf
        for part in parts
        if part.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(lengths, default=math.inf)


def position_limit(model: Any) -> float:
    """How many positions the model has where it looks them up in a table; other models compute them."""
    tables = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings()
    ]
    leaves = [name.rpartition(".")[2] for name in [*tables, *dict(model.named_buffers())]]
    learned = any(leaf == "wpe" or ("pos" in leaf and "emb" in leaf) for leaf in leaves)
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if learned and found else math.inf
