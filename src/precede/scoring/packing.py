"""Many prompts with their completions in one row of tokens: attention inside each of them, no padding, no mask over the row.

transformers lets a model run with attention and mask functions from outside: the mask function here keeps the *rule* of a
layer (causal, sliding window, chunks) in place of a matrix, and the attention function applies it segment by segment, by the
tokens' positions in their own text. Whatever a model asks for beyond that raises, and the caller scores in another way.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from precede.libraries import transformers

NAME = "precede_packed"

HARMLESS = {"cache_position", "is_causal", "position_ids", "sliding_window", "use_cache"}
"""Arguments that say nothing which the positions and the mask's rule do not say (`is_causal` is checked)."""

ROWS = {"cpu": 64}
"""Queries at a time. Few on a CPU, whose kernel computes every key that it is given, masked or not; elsewhere 1024."""


@dataclass(frozen=True)
class Segment:
    """Rows start…stop of the pack, a text from its beginning, or behind the `before` rows from `prompt` on."""

    start: int
    stop: int
    prompt: int = 0
    before: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens before it that it sees, its own tokens); segments of one shape are computed together."""
        return self.before, self.stop - self.start

    def keys(self, values: Tensor) -> Tensor:
        """What its tokens may see of (1, heads, rows, size): (1, heads, before + own, size)."""
        own_values = values[:, :, self.start : self.stop]
        if not self.before:
            return own_values
        return torch.cat([values[:, :, self.prompt : self.prompt + self.before], own_values], dim=2)


Block = tuple[slice, slice, Tensor | None]
"""Queries, the keys that any of them sees, and what is added to the scores; None: causal from the first token on."""


@dataclass
class Rule:
    """Which keys a query sees, by positions in the text: `allowed(batch, head, query, key)`; None is causal."""

    segments: list[Segment]
    allowed: Callable[..., Tensor] | None
    made: dict[tuple[int, int], list[Block]] = field(default_factory=dict)

    def shapes(self) -> dict[tuple[int, int], list[Segment]]:
        shapes: dict[tuple[int, int], list[Segment]] = {}
        for segment in self.segments:
            shapes.setdefault(segment.shape, []).append(segment)
        return shapes

    def blocks(self, shape: tuple[int, int], like: Tensor) -> list[Block]:
        """The blocks of a segment of this shape, biases of dtype and device of `like`; made once for all layers."""
        if shape not in self.made:
            rows = ROWS.get(like.device.type, 1024)
            self.made[shape] = [
                self._block(shape, first, min(first + rows, shape[1]), like) for first in range(0, shape[1], rows)
            ]
        return self.made[shape]

    def _block(self, shape: tuple[int, int], first: int, last: int, like: Tensor) -> Block:
        before, length = shape
        if self.allowed is None:
            if like.device.type != "cpu" and before == 0 and (first, last) == (0, length):
                return slice(first, last), slice(0, last), None
            seen = torch.ones(last - first, before + last, dtype=torch.bool, device=like.device).tril(before + first)
            low, high = 0, before + last
        else:
            at, zero = torch.arange(before + length, device=like.device), torch.tensor(0, device=like.device)
            seen = self.allowed(zero, zero, at[before + first : before + last, None], at[None, :])
            columns = seen.any(0).nonzero()
            low, high = int(columns[0]), int(columns[-1]) + 1
        hidden = ~seen[:, low:high]
        bias = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -torch.inf)
        return slice(first, last), slice(low, high), bias


_segments: ContextVar[list[Segment]] = ContextVar("segments")


def _mask(*, mask_function: Callable[..., Tensor], **_: Any) -> Rule:
    causal = importlib.import_module("transformers.masking_utils").causal_mask_function
    return Rule(_segments.get(), None if mask_function is causal else mask_function)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (1, heads, rows, size) → (1, rows, heads, size)."""
    odd = sorted(name for name, given in more.items() if given is not None and name not in HARMLESS)
    causal = more.get("is_causal") in (None, True) and getattr(module, "is_causal", True)
    if odd or dropout or not causal or not isinstance(attention_mask, Rule) or len(query) != 1:
        raise NotImplementedError(f"{type(module).__name__} needs more than packed attention can do: {odd}")
    result = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for shape, segments in attention_mask.shapes().items():
        queries = _together([query[:, :, segment.start : segment.stop] for segment in segments])
        keys, values = (_together([segment.keys(part) for segment in segments]) for part in (key, value))
        for rows, columns, bias in attention_mask.blocks(shape, query):
            given = queries[:, :, rows], keys[:, :, columns], values[:, :, columns], bias, scaling
            output = _plain(*given) if softcap is None and s_aux is None else _capped(*given, softcap, s_aux)
            for segment, part in zip(segments, output.transpose(1, 2), strict=True):
                result[0, segment.start + rows.start : segment.start + rows.stop] = part
    return result, None


def _together(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float | None) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.device.type != "cpu":  # in fp32 CUDA's fast kernel wants as many key heads as query heads
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=bias,
        is_causal=bias is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with soft-capped scores and with sinks, one logit per head that takes weight and gives no value."""
    batch, heads, rows, size = query.shape
    folded = query.reshape(batch, key.shape[1], -1, size)  # query heads that share a key head, one after the other
    scores = torch.matmul(folded, key.transpose(2, 3)).mul_(size**-0.5 if scaling is None else scaling)
    scores = scores.view(batch, heads, rows, -1)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if bias is None:
        bias = torch.full((rows, rows), -torch.inf, dtype=scores.dtype, device=scores.device).triu_(1)
    scores += bias
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand(batch, -1, rows, 1)], dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]]
    return torch.matmul(weights.reshape(batch, key.shape[1], -1, key.shape[2]), value).view(batch, heads, rows, -1)


@contextmanager
def packed_attention(model: Any, segments: list[Segment]) -> Iterator[None]:
    """Let `model` attend inside the segments of the one row that it is given; its own attention is back at the end."""
    transformers().AttentionInterface.register(NAME, _attention)
    transformers().AttentionMaskInterface.register(NAME, _mask)
    configs: dict[int, Any] = {}
    for module in model.modules():
        _collect(getattr(module, "config", None), configs)
    before = [(config, config._attn_implementation) for config in configs.values()]
    token = _segments.set(segments)
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in before:  # setting a configuration sets its parts, which come after it
            config._attn_implementation = name
        _segments.reset(token)


def _collect(config: Any, configs: dict[int, Any]) -> None:
    if isinstance(config, transformers().PreTrainedConfig) and id(config) not in configs:
        configs[id(config)] = config
        for part in config.sub_configs:
            _collect(getattr(config, part, None), configs)
