"""What the scorer has to know of a model: body and head, a soft cap, limits that come with its positions, its size; and from
hidden states to the log-probability, entropy and varentropy of the next token, a tile of logits at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TILE = {"cpu": 2**21}
"""Logits at a time: 8 MiB on a CPU, which its caches hold; elsewhere 64 MiB, so that kernels are long."""

COLUMNS = 4096
"""Width of a tile where the head can be cut; its rows are as many as fit."""


@dataclass(frozen=True)
class Head:
    """logits = cap·tanh(scale·module(states)/cap)/τ; without `cap` scale·module(states)/τ; without `module` the states/τ."""

    module: Any
    width: int
    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    @property
    def columns(self) -> int:
        """How many columns may be computed at a time: those of a plain fp32 linear layer can be, not those of another."""
        return min(COLUMNS, self.width) if self.module is None or _is_plain(self.module) else self.width

    def logits(self, states: Tensor, low: int, high: int, out: Tensor) -> Tensor:
        """fp32 logits low…high of (n, size) states, to be overwritten at will; in `out`, (n, high − low), where they can be."""
        if self.module is None:
            logits = out.copy_(states[:, low:high]).clamp_(min=-1e9)  # 0 · −∞ would be NaN
        elif not _is_plain(self.module):
            logits = self.module(states)[:, low:high].float()
        elif self.module.bias is None:
            logits = torch.mm(states, self.module.weight[low:high].t(), out=out)
        else:
            weight, bias = self.module.weight[low:high], self.module.bias[low:high]
            logits = torch.addmm(bias, states, weight.t(), out=out)
        if self.scale != 1.0:
            logits *= self.scale
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)


def _is_plain(module: Any) -> bool:
    hooked = hasattr(module, "_hf_hook") or bool(module._forward_hooks) or bool(module._forward_pre_hooks)
    return type(module) is nn.Linear and module.weight.dtype == torch.float32 and not hooked


def moments(head: Head, states: Tensor, labels: Tensor) -> Tensor:
    """log p of each label, entropy and varentropy of its distribution, nats: (3, n), fp32, on the states' device.

    H = −Σ p log p and V = Σ p (log p)² − H², in one pass over the vocabulary: with x the logits less the largest so far, the
    sums of eˣ, x·eˣ and x²·eˣ are kept, and moved whenever a larger logit comes. Oracle: a float64 softmax written out.
    """
    width = head.columns
    size = max(TILE.get(states.device.type, 2**24), width)
    rows = min(max(size // width, 1), max(len(states), 1))
    buffers = torch.empty(2, rows * width, device=states.device)
    parts = [
        _moments(head, states[begin : begin + rows], labels[begin : begin + rows], width, buffers)
        for begin in range(0, len(states), rows)
    ]
    return torch.cat(parts, dim=1) if parts else torch.zeros(3, 0, device=states.device)


def _moments(head: Head, states: Tensor, labels: Tensor, width: int, buffers: Tensor) -> Tensor:
    top = mass = first = second = torch.zeros(())
    chosen = torch.zeros_like(labels, dtype=torch.float32)
    for low in range(0, head.width, width):
        high = min(low + width, head.width)
        tile, power = (buffer[: len(states) * (high - low)].view(len(states), -1) for buffer in buffers)
        tile = head.logits(states, low, high, tile)
        column = labels - low
        inside = (column >= 0) & (column < high - low)
        logits = tile.gather(1, column.clamp(0, high - low - 1).unsqueeze(1)).squeeze(1)
        chosen = torch.where(inside, logits, chosen)
        largest = tile.amax(1)
        if low == 0:
            top, mass, first, second = largest, *(torch.zeros_like(largest) for _ in range(3))
        new = torch.maximum(top, largest)
        step, fade = new - top, (top - new).exp()
        second = (second - 2 * step * first + step.square() * mass) * fade
        first = (first - step * mass) * fade
        mass, top = mass * fade, new
        torch.exp(tile.sub_(top.unsqueeze(1)), out=power)
        mass += power.sum(1)
        first += power.mul_(tile).sum(1)
        second += power.mul_(tile).sum(1)
    mean = first / mass
    return torch.stack([chosen - top - mass.log(), mass.log() - mean, (second / mass - mean.square()).clamp_(min=0)])


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
    names = ("original_max_position_embeddings", "max_position_embeddings")
    trained = next((length for name in names if (length := getattr(config, name, None))), math.inf)
    turning = [part for part in parts if part.get("rope_type") in ("dynamic", "longrope")]
    return min((part.get(names[0]) or trained for part in turning), default=math.inf)


def position_limit(model: Any) -> float:
    """How many positions the model has where it looks them up in a table; other models compute them."""
    embedding = model.get_input_embeddings()
    tables = [name for name, part in model.named_modules() if isinstance(part, nn.Embedding) and part is not embedding]
    leaves = [name.rpartition(".")[2] for name in [*tables, *dict(model.named_buffers())]]
    learned = any(leaf == "wpe" or ("pos" in leaf and "emb" in leaf) for leaf in leaves)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if learned and limit else math.inf
