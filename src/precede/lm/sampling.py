"""Completions of one prompt, sampled from a model's own distribution at a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from precede.lm.libraries import transformers
from precede.lm.seeding import seeded


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of the prompt as the tokenizer makes them, with its BOS if it adds one (here and nowhere else)."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    if not ids:
        raise ValueError(f"the prompt {prompt!r} has no tokens; give a prompt with at least one")
    return ids


def eos_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion: those of the generation configuration, else the tokenizer's."""
    named = model.generation_config.eos_token_id
    if named is None:
        named = tokenizer.eos_token_id
    return set(named) if isinstance(named, list) else {named}


def sample(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    count: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int,
    batch_size: int = 128,
) -> list[list[int]]:
    """`count` completions as token ids, each ending with its EOS or cut at `max_new_tokens` (1 … max_new_tokens ids).

    The distribution is softmax(logits/τ) and nothing else: top-k, top-p, penalties and the like that the model's
    generation configuration may ask for are off. A function of `seed`; outside random states are left as they were.
    """
    ends = eos_ids(model, tokenizer)
    own = model.generation_config
    settings = transformers().GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    was_training = model.training
    model.eval()
    # generate fills what a configuration leaves open from the model's own one: take that away for the moment
    model.generation_config = settings
    rows: list[list[int]] = []
    try:
        with seeded(seed), torch.inference_mode():
            for begin in range(0, count, batch_size):
                size = min(batch_size, count - begin)
                ids = torch.tensor([list(prompt)], device=model.device).repeat(size, 1)
                tokens = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
                rows += [_until_end(row, ends) for row in tokens[:, len(prompt) :].tolist()]
    finally:
        model.generation_config = own
        model.train(was_training)
    return rows


def texts(tokenizer: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[str]:
    """Text of each completion as it follows the prompt (special tokens left out)."""

    def decode(ids: list[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    start = len(decode(list(prompt)))
    return [decode([*prompt, *completion])[start:] for completion in completions]


def _until_end(row: list[int], ends: set[int]) -> list[int]:
    """The row up to and with its first end token; what stands behind it is padding, whatever its id."""
    for position, token in enumerate(row):
        if token in ends:
            return row[: position + 1]
    return row
