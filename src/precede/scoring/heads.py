"""From hidden states to the log-probability, entropy and varentropy of the next token, a tile of logits at a time."""

from __future__ import annotations

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
        place = labels - low
        inside = (place >= 0) & (place < high - low)
        found = tile.gather(1, place.clamp(0, high - low - 1).unsqueeze(1)).squeeze(1)
        chosen = torch.where(inside, found, chosen)
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
