"""The extrapolation of a model from the model that its alignment was anchored to: logits λ·l + (1−λ)·l_ref, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from precede.libraries import transformers

PROBE = 4
"""Tokens on which an extrapolated model is held against what it has to be."""


def extrapolate(model: Any, reference: Any, extrapolation: float) -> None:
    """Let `model`, in place, have the logits λ·l + (1−λ)·l_ref at every position: π^λ·π_ref^(1−λ), renormalised per token.

    Both models run side by side: the network below the head gives the states of both, (…, width + reference width), and the
    head is [λ·W, (1−λ)·W_ref]. So whatever samples the model, scores it, or takes its states and its head apart, as trainers
    do, finds the extrapolation. `model` and `reference` need one vocabulary and plain linear heads.

    Raises ValueError for models that cap their logits (Gemma 2 and its like) or have no linear head, and where the numbers are
    not finite.
    """
    heads = [one.get_output_embeddings() for one in (model, reference)]
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if capped or not all(isinstance(head, nn.Linear) for head in heads):
        raise ValueError(f"an extrapolation needs a plain linear head, which {type(model).__name__} lacks")
    if heads[0].weight.shape[0] != heads[1].weight.shape[0]:
        raise ValueError(
            f"the aligned model has {heads[0].weight.shape[0]} tokens and the reference {heads[1].weight.shape[0]}; an "
            "extrapolation needs one vocabulary"
        )
    probe = torch.arange(PROBE, device=model.device)[None] % heads[0].weight.shape[0]
    powers = extrapolation, 1 - extrapolation
    with torch.no_grad(), _calls(model.base_model) as calls:
        wanted = sum(power * one(probe).logits.float() for power, one in zip(powers, (model, reference), strict=True))
    if model.base_model is model or not calls:
        raise ValueError(
            f"{type(model).__name__} does not run the network below its head as one, and cannot be extrapolated"
        )
    width = sum(head.weight.shape[1] for head in heads)
    biased = any(head.bias is not None for head in heads)
    wide = nn.Linear(width, heads[0].weight.shape[0], bias=biased, device=model.device, dtype=heads[0].weight.dtype)
    with torch.no_grad():
        wide.weight.copy_(torch.cat([p * head.weight for p, head in zip(powers, heads, strict=True)], dim=1))
        if biased:
            wide.bias.copy_(sum(p * head.bias for p, head in zip(powers, heads, strict=True) if head.bias is not None))
    wide.requires_grad_(False)
    model.set_output_embeddings(wide)
    model.config.tie_word_embeddings = False
    model.base_model.add_module("extrapolated_from", reference.base_model)
    model.base_model.register_forward_hook(_beside, with_kwargs=True)
    with torch.no_grad():
        found = model(probe).logits.float()
    if not bool(torch.isfinite(wanted).all()):
        raise ValueError(f"the extrapolation {extrapolation:g} has logits that are not finite; take one nearer to 1")
    if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
        raise ValueError(f"{type(model).__name__} changes its logits behind its head, and cannot be extrapolated")


@contextmanager
def _calls(network: Any) -> Iterator[list[None]]:
    """One entry for each time that a network is run."""
    calls: list[None] = []
    hook = network.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        hook.remove()


def _beside(network: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
    """The states of a network and, behind them, those of the reference on the same tokens, which keeps a cache of its own."""
    cache = given.get("past_key_values")
    if cache is not None:
        if not hasattr(cache, "extrapolated_from"):
            cache.extrapolated_from = transformers().DynamicCache(config=network.extrapolated_from.config)
        given = given | {"past_key_values": cache.extrapolated_from}
    beside = network.extrapolated_from(*args, **given)
    output.last_hidden_state = torch.cat((output.last_hidden_state, beside.last_hidden_state), dim=-1)
    return output
