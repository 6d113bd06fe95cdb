"""Completions that somebody else wrote, a teacher behind an API or of another tokenizer, as token ids."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from precede.data import shapes
from precede.data.shapes import ANSWER, Refusal
from precede.data.sources import Fields, read_table
from precede.libraries import quiet
from precede.sampling import texts

Ids = Sequence[Sequence[int]]
Turns = list[dict[str, Any]] | None


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


def translated(
    tokenizer_from: Any,
    prompts: Ids,
    completions: Ids,
    ends: Collection[int],
    tokenizer_to: Any,
    turns: Sequence[Turns],
) -> list[list[int]]:
    """Completions of one tokenizer as the ids that another gives their texts; none is empty.

    `prompts` and `completions` are ids of `tokenizer_from`, `ends` those at which the model that wrote them stops
    (`sampling.eos_ids`), special tokens or not. What stands before the first end is the text. A completion that has an
    end gets the one of `tokenizer_to`: of a conversation, whose prompt's messages are in `turns`, what the chat template
    writes behind an assistant's words up to its first special token, of a text (None in `turns`) EOS. One that was cut
    gets none, unless it has no token at all, which is EOS then. Raises ValueError for a chat template that is missing,
    fails, or leaves out what the assistant says.
    """
    rows = []
    for prompt, ids, asked in zip(prompts, completions, turns, strict=True):
        end = next((index for index, token in enumerate(ids) if token in ends), None)
        text = texts(tokenizer_from, prompt, [ids[:end]])[0]
        if end is not None and asked is not None:
            row = _closed(text, asked, tokenizer_to)
        else:
            eos = [] if end is None else [tokenizer_to.eos_token_id]
            row = [*tokenizer_to(text, add_special_tokens=False)["input_ids"], *eos]
        rows.append(row or [tokenizer_to.eos_token_id])
    return rows


def _closed(text: str, turns: list[dict[str, Any]], tokenizer: Any) -> list[int]:
    """The ids of an assistant's words and of what the chat template ends them with; EOS where that is no special token."""
    if tokenizer.chat_template is None:
        raise ValueError("a row is a conversation, but the tokenizer has no chat template")
    try:
        whole = shapes.templated(tokenizer, [*turns, {"role": "assistant", "content": ANSWER}])
    except Refusal as refusal:
        raise ValueError(f"a conversation cannot be handed over: {refusal}") from None
    if ANSWER not in whole:
        raise ValueError("the chat template leaves out what the assistant says; mend it")
    behind = whole.rpartition(ANSWER)[2]
    alone = tokenizer(behind, add_special_tokens=False)["input_ids"]
    added, eos = tokenizer.added_tokens_decoder, tokenizer.eos_token_id
    for index, token in enumerate(alone):
        if token == eos or (token in added and added[token].special):
            # a special token stands for itself: what is behind it has the same ids whatever is before it
            ids: list[int] = tokenizer(text + behind, add_special_tokens=False)["input_ids"]
            return ids[: len(ids) - (len(alone) - index - 1)]
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]


def _ids(fields: Fields | str, tokenizer: Any) -> tuple[list[int], list[int]]:
    if isinstance(fields, str):
        raise Refusal(fields)
    values: dict[str, Any] = {name: fields.get(name) for name in ("prompt", "completion")}
    kinds = {shapes.checked_kind(name, value) for name, value in values.items()}
    if len(kinds) > 1:
        raise Refusal("prompt and completion must both be texts or both lists of messages")
    shapes.refuse_empty(**values)
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        shapes.refuse_half_characters(prompt, prompt + completion)
        alone, joined = shapes.text_ids([prompt, prompt + completion], tokenizer)
        joined = joined if joined[-1:] == [tokenizer.eos_token_id] else [*joined, tokenizer.eos_token_id]
    elif tokenizer.chat_template is None:
        raise Refusal("it is a conversation, but the tokenizer has no chat template")
    else:
        whole = shapes.rendered(tokenizer, prompt, completion)
        shapes.refuse_half_characters(*whole)
        alone, joined = tokenizer(whole, add_special_tokens=False)["input_ids"]
    end = shapes.common(alone, joined)
    if end in (0, len(joined)):
        raise Refusal("prompt and completion must have a token each")
    return list(joined[:end]), list(joined[end:])
