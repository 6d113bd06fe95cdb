"""Completions that somebody else wrote, a teacher behind an API for one, as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from precede.data.preferences import own_ends
from precede.data.sentences import first_line
from precede.data.shapes import Refusal, checked_kind, common, refuse_empty, refuse_half_characters
from precede.data.sources import Fields, read_table
from precede.libraries import quiet


@dataclass(frozen=True)
class Completions:
    """Prompt and completion of each row as ids, and the SHA-256 of the data that were read (`sources.Table`)."""

    rows: list[tuple[list[int], list[int]]]
    content: str


def read_completions(source: str, tokenizer: Any) -> Completions:
    """Prompt and completion of every row of `source` (see `sources.read_table`) as ids.

    The columns are `prompt` and `completion`, both texts, or both lists of messages for the chat template. Texts get
    the tokenizer's EOS; no BOS or EOS is doubled. The prompt's ids are those it has alone, as far as the joined text begins
    with them. Raises ValueError with one sentence for a source that cannot be read, a column that it lacks, or a row that
    cannot be used, by its number.
    """
    table = read_table(source, {"prompt", "completion"})
    missing = [name for name in ("prompt", "completion") if name not in table.columns]
    if missing and table.columns:
        there = ", ".join(repr(name) for name in table.columns)
        raise ValueError(f"{source} has no column '{missing[0]}'; its columns are {there}")
    rows = []
    with quiet():
        for number, fields in table.rows:
            try:
                rows.append(_ids(fields, tokenizer))
            except Refusal as refusal:
                raise ValueError(f"{source}, row {number}: {refusal}") from None
    return Completions(rows, table.content)


def _ids(fields: Fields | str, tokenizer: Any) -> tuple[list[int], list[int]]:
    if isinstance(fields, str):
        raise Refusal(fields)
    values = {name: fields.get(name) for name in ("prompt", "completion")}
    kinds = {checked_kind(name, value) for name, value in values.items()}
    if len(kinds) > 1:
        raise Refusal("prompt and completion must both be texts or both lists of messages")
    refuse_empty(**values)
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        alone, joined = (_text_ids(text, tokenizer) for text in (prompt, prompt + completion))
        joined = joined if joined[-1:] == [tokenizer.eos_token_id] else [*joined, tokenizer.eos_token_id]
    else:
        alone, joined = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in _rendered(values, tokenizer)
        )
    end = common(alone, joined)
    if end in (0, len(joined)):
        raise Refusal("prompt and completion must have a token each")
    return list(joined[:end]), list(joined[end:])


def _text_ids(text: str, tokenizer: Any) -> list[int]:
    """The ids of a text, with the BOS of a tokenizer that puts one there, and without its EOS."""
    refuse_half_characters(text)
    bos, eos = own_ends(tokenizer)
    found: list[int] = tokenizer(text)["input_ids"]
    return found[bool(bos and text.startswith(tokenizer.bos_token)) : len(found) - eos]


def _rendered(values: dict[str, Any], tokenizer: Any) -> list[str]:
    """The prompt as the chat template writes it, and the whole conversation."""
    if tokenizer.chat_template is None:
        raise Refusal("it is a conversation, but the tokenizer has no chat template")
    prompt, completion = values["prompt"], values["completion"]
    try:
        found = [
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True),
            tokenizer.apply_chat_template([*prompt, *completion], tokenize=False),
        ]
    except Exception as error:  # of any kind: a template is a program of its own
        raise Refusal(f"the chat template refuses it: {first_line(error)}") from None
    refuse_half_characters(*found)
    return found
