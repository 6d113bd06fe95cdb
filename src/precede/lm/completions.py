"""Completions that somebody else wrote, a teacher behind an API for one, as token ids."""

from __future__ import annotations

from typing import Any

from precede.lm.sources import read_table
from precede.reading import first_line


def read_completions(source: str, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of every row of `source` (see `sources.read_table`) as ids.

    The columns are `prompt` and `completion`, both texts, or both lists of messages for the chat template. Texts get
    the tokenizer's EOS. The prompt's ids are those it has alone, as far as the joined text begins with them. Raises ValueError
    with one sentence for a source that cannot be read, a column that it lacks, or a row that cannot be used, by its number.
    """
    table = read_table(source, {"prompt", "completion"})
    missing = [name for name in ("prompt", "completion") if name not in table.columns]
    if missing:
        there = ", ".join(repr(name) for name in table.columns)
        raise ValueError(f"{source} has no column '{missing[0]}'; its columns are {there}")
    rows = []
    for number, fields in table.rows:
        if isinstance(fields, str):
            raise ValueError(f"{source}, row {number}: {fields}")
        prompt, completion = fields.get("prompt"), fields.get("completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            alone, joined = _chat(tokenizer, prompt, completion, f"{source}, row {number}")
        elif isinstance(prompt, str) and isinstance(completion, str) and prompt and completion:
            alone = tokenizer(prompt)["input_ids"]
            joined = tokenizer(prompt + completion)["input_ids"]
            if joined[-1] != tokenizer.eos_token_id:
                joined = [*joined, tokenizer.eos_token_id]
        else:
            raise ValueError(
                f"{source}, row {number}: prompt and completion must both be non-empty texts or both lists of messages"
            )
        end = next(
            (n for n, (a, b) in enumerate(zip(alone, joined, strict=False)) if a != b), min(len(alone), len(joined))
        )
        if end == 0 or end == len(joined):
            raise ValueError(f"{source}, row {number}: prompt and completion must have a token each")
        rows.append((list(joined[:end]), list(joined[end:])))
    if not rows:
        raise ValueError(f"{source} has no rows")
    return rows


def _chat(tokenizer: Any, prompt: list[Any], completion: list[Any], where: str) -> tuple[list[int], list[int]]:
    if tokenizer.chat_template is None:
        raise ValueError(f"{where} is a conversation, but the tokenizer has no chat template")
    try:
        texts = [
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True),
            tokenizer.apply_chat_template([*prompt, *completion], tokenize=False),
        ]
    except Exception as error:  # a template is a program of its own
        raise ValueError(f"{where}: the chat template refuses it: {first_line(error)}") from None
    alone, joined = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return alone, joined
