"""Completions sampled from a model's own distribution at a temperature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from precede.libraries import transformers
from precede.seeding import seeded

TOKENS_AT_ONCE = 16_384
"""Tokens, prompts included, that are held at a time while sampling."""


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of the prompt as the tokenizer makes them, with its BOS if it adds one (here and nowhere else)."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    if not ids:
        raise ValueError(f"the prompt {prompt!r} has no tokens; give a prompt with at least one")
    return ids


def eos_ids(generation_config: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a completion: those of the generation configuration, else the tokenizer's."""
    named = generation_config.eos_token_id
    if named is None:
        named = tokenizer.eos_token_id
    ends = named if isinstance(named, list) else [named]
    if not all(isinstance(one, int) for one in ends):
        raise ValueError(
            f"eos_token_id of the model is {named!r}; let generation_config.json have a token's number there"
        )
    return set(ends)


def batch_size(width: int, most: int) -> int:
    """How many completions are sampled at once, `most` at the most, where prompt and completion have `width` tokens."""
    return max(1, min(most, TOKENS_AT_ONCE // width))


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
    """`count` completions of one prompt; see `sample_prompts`."""
    return sample_prompts(
        model,
        tokenizer,
        [prompt] * count,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )


def sample_prompts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda count: None,
) -> list[list[int]]:
    """One completion of each prompt as token ids, each ending with its EOS or cut at `max_new_tokens`, in the order given.

    The distribution is softmax(logits/τ) and nothing else: top-k, top-p, penalties and the like that the model's generation
    configuration may ask for are off. A function of `seed`; outside random states are left as they were. Prompts of like
    length are sampled together, the shorter padded on the left. `progress` hears how many are done.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    rows: list[list[int]] = [[] for _ in prompts]
    with _only_softmax(model, tokenizer, max_new_tokens, temperature) as ends, seeded(seed), torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            drawn = _generate(model, tokenizer, [prompts[index] for index in batch], ends)
            for index, row in zip(batch, drawn, strict=True):
                rows[index] = row
            progress(len(batch))
    return rows


@contextmanager
def _only_softmax(model: Any, tokenizer: Any, max_new_tokens: int, temperature: float) -> Iterator[set[int]]:
    """Let `generate` draw from softmax(logits/τ) and nothing else; yields the tokens that end a completion."""
    ends = eos_ids(model.generation_config, tokenizer)
    before, was_training = model.generation_config, model.training
    model.eval()
    # generate fills what a configuration leaves open from the model's own one: take that away for the moment
    model.generation_config = transformers().GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    try:
        yield ends
    finally:
        model.generation_config = before
        model.train(was_training)


def _generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], ends: set[int]) -> list[list[int]]:
    width = max(map(len, prompts))
    rows = [[tokenizer.pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    ids = torch.tensor(rows, device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    tokens = model.generate(input_ids=ids, attention_mask=mask)
    return [_until_end(row, ends) for row in tokens[:, width:].tolist()]


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
