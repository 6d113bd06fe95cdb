"""Before any training: whether two models share a tokenizer, and whether a tokenizer and its model fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from precede.data.shapes import ANSWER, Refusal, templated
from precede.libraries import quiet
from precede.sampling import eos_ids

PROBES = (
    "The answer  is 42,\n\tnot 1,234.5; it's “so” — don't ask…",
    "naïve café: e\u0301 = é, ﬁ = fi, ＡＢ = AB, straße, İstanbul",
    "Ответ: нет. 答案是四十二。答えは何ですか？ 정답은 무엇입니까",
    "الجواب هو ٤٢ · תשובה · उत्तर ४२ है · คำตอบคือ",
    "def f(x):\n    return x ** 2  # 🙂👩‍👩‍👧 \u200b\ufeff end  \n\n",
    "a",
    "",
)
"""Texts that tokenizers are known to treat each in its own way: spaces, digits, scripts, composed letters, emoji."""

NO_MATTER = ("version", "truncation", "padding", "added_tokens", "decoder", "post_processor")
"""Parts of a backend that do not touch a text's ids, and two that are compared otherwise: added tokens, and what is put
around a text, which does not depend on the text and so shows in the probes."""


def same_tokenizer(one: Any, other: Any) -> str | None:
    """None where both tokenizers give every text the same ids and have the same BOS and EOS, else how they differ.

    Compared are vocabularies, added tokens, merges, normalizer, pre-tokenizer, BOS and EOS, and the ids of `PROBES`.
    Tokenizers without a backend of `tokenizers` have only vocabulary, BOS, EOS and probes to show. How wide the models'
    embeddings are plays no part, nor do padding, truncation and the way back from ids to text.
    """
    return (
        _vocabularies(one.get_vocab(), other.get_vocab())
        or _added(one, other)
        or _backends(one, other)
        or _ends(one, other)
        or _probes(one, other)
    )


def preflight(model: Any, tokenizer: Any, name: str, conversations: bool) -> list[str]:
    """What should be known before `tokenizer` and `model` (a model, or its configuration) are trained, a sentence each.

    `name` is what users call the model; `conversations` says that the data are messages for the chat template. Raises
    ValueError for a tokenizer without EOS or with ids that the model has no embedding for, and for conversations with a
    chat template that is missing, fails, or leaves out what the assistant says.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no end-of-sequence token; set eos_token in its folder")
    largest, size = max(tokenizer.get_vocab().values()), _embeddings(model)
    if largest >= size:
        raise ValueError(
            f"the tokenizer of {name} has ids up to {largest}, but the model has embeddings for {size} tokens only; "
            "take the tokenizer that belongs to the model, or resize the model's embeddings"
        )
    notes = _padding(tokenizer, name)
    if not conversations:
        return notes + _stop(model, tokenizer, name, int(tokenizer.eos_token_id), "a text")
    text = _conversation(tokenizer, name)
    if _puts_bos(tokenizer) and text.startswith(tokenizer.bos_token):
        notes.append(
            f"the tokenizer of {name} puts {tokenizer.bos_token!r} before every text, and its chat template writes it "
            "too: tokenise rendered conversations with add_special_tokens=False, else it stands twice"
        )
    end = _turn_end(tokenizer, text)
    if end is None:
        return [
            *notes,
            f"the chat template of {name} ends what the assistant says with no special token, so that nothing teaches the "
            f"model to stop; let it write {tokenizer.eos_token!r} there",
        ]
    return notes + _stop(model, tokenizer, name, end, "an assistant's turn")


def _vocabularies(one: Mapping[str, int], other: Mapping[str, int]) -> str | None:
    if len(one) != len(other):
        return f"their vocabularies differ: {len(one)} and {len(other)} tokens"
    for token, index in one.items():
        if token not in other:
            return f"their vocabularies differ: only the first has {token!r}"
        if other[token] != index:
            return f"their vocabularies differ: {token!r} is {index} and {other[token]}"
    return None


def _added(one: Any, other: Any) -> str | None:
    """Added tokens are found in a text before anything else; how each is found is part of it."""
    first, second = _found(one), _found(other)
    for index in sorted({*first, *second}):
        if first.get(index) != second.get(index):
            token = one.convert_ids_to_tokens(index)
            return f"their added tokens differ: {token!r} ({index}) is not found in a text in the same way"
    if one.split_special_tokens != other.split_special_tokens:
        return "only one of them splits special tokens that stand in a text"
    return None


def _found(tokenizer: Any) -> dict[int, tuple[Any, ...]]:
    return {
        index: (token.content, token.single_word, token.lstrip, token.rstrip, token.normalized)
        for index, token in tokenizer.added_tokens_decoder.items()
    }


def _backends(one: Any, other: Any) -> str | None:
    if not (one.is_fast and other.is_fast):
        return None
    texts = one.backend_tokenizer.to_str(), other.backend_tokenizer.to_str()
    if texts[0] == texts[1]:
        return None
    first, second = (_plain(json.loads(text)) for text in texts)
    for part in sorted({*first, *second} - {*NO_MATTER}):
        if first.get(part) != second.get(part):
            return _part(part, first.get(part), second.get(part))
    return None


def _plain(value: Any) -> Any:
    """A backend without what says only where in the text a token stood."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if key != "trim_offsets"}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_plain(inner) for inner in value]
    return value


def _part(part: str, first: Any, second: Any) -> str:
    if part != "model":
        kinds = [value["type"] if value else "none" for value in (first, second)]
        named = f": {kinds[0]} and {kinds[1]}" if kinds[0] != kinds[1] else f" in their settings ({kinds[0]})"
        return f"their {part.replace('_', '-')}s differ{named}"
    if first["type"] != second["type"]:
        return f"their models differ: {first['type']} and {second['type']}"
    names = [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]
    if "merges" in names:
        counts = [len(value["merges"]) for value in (first, second)]
        return "their merges differ" + (f": {counts[0]} and {counts[1]}" if counts[0] != counts[1] else "")
    return f"their {first['type']} models differ in {', '.join(names)}"


def _ends(one: Any, other: Any) -> str | None:
    for name in ("BOS", "EOS"):
        ids = [getattr(tokenizer, f"{name.lower()}_token_id") for tokenizer in (one, other)]
        if ids[0] != ids[1]:
            first, second = ("none" if index is None else index for index in ids)
            return f"{name} is {first} and {second}"
    return None


def _probes(one: Any, other: Any) -> str | None:
    with quiet():
        for special in (False, True):
            ids = [tokenizer(list(PROBES), add_special_tokens=special)["input_ids"] for tokenizer in (one, other)]
            for text, first, second in zip(PROBES, *ids, strict=True):
                if first != second:
                    what = "what they put around a text differs, and so do" if special else "they differ in"
                    return f"{what} the ids of {text!r}: {_some(first)} and {_some(second)}"
    return None


def _some(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 8 else f"[{', '.join(map(str, ids[:8]))}, …]"


def _embeddings(model: Any) -> int:
    """Number of tokens that the model, or a model of this configuration, has embeddings for."""
    if hasattr(model, "get_input_embeddings"):
        return int(model.get_input_embeddings().num_embeddings)
    return int(model.get_text_config().vocab_size)


def _padding(tokenizer: Any, name: str) -> list[str]:
    """`models.load_tokenizer` lets EOS pad where nothing does; what the folder says is in `init_kwargs`."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is not None and pad != eos:
        return []
    there = pad is not None and tokenizer.init_kwargs.get("pad_token") is not None
    pads = "pads with its EOS" if there else "has no padding token, so its EOS pads:"
    return [f"the tokenizer of {name} {pads} {tokenizer.eos_token!r}, which is harmless here: padding is never scored"]


def _puts_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and len(ids) > 1 and ids[0] == tokenizer.bos_token_id


def _conversation(tokenizer: Any, name: str) -> str:
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the rows are conversations, but the tokenizer of {name} has no chat template; "
            "take the tokenizer of an instruct model, set its chat_template, or give the rows as texts"
        )
    turns = [{"role": "user", "content": "What is the answer?"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = templated(tokenizer, turns)
    except Refusal as refusal:
        raise ValueError(
            f"the chat template of {name} fails for a user's and an assistant's turn: {refusal}; mend it"
        ) from None
    if ANSWER not in text:
        raise ValueError(f"the chat template of {name} leaves out what the assistant says; mend it")
    return text


def _turn_end(tokenizer: Any, text: str) -> int | None:
    """The first special token behind the assistant's words."""
    added = tokenizer.added_tokens_decoder
    for index in tokenizer(text.rpartition(ANSWER)[2], add_special_tokens=False)["input_ids"]:
        if index in added and added[index].special:
            return int(index)
    return None


def _stop(model: Any, tokenizer: Any, name: str, end: int, what: str) -> list[str]:
    """A note where generation would not stop at the token that ends `what`."""
    ends = sorted(eos_ids(getattr(model, "generation_config", model), tokenizer))
    if end in ends:
        return []
    tokens = ", ".join(f"{tokenizer.convert_ids_to_tokens(index)!r} ({index})" for index in ends)
    return [
        f"{name} stops at {tokens}, but {what} ends with {tokenizer.convert_ids_to_tokens(end)!r} ({end}): it would not "
        f"stop there; add {end} to eos_token_id in its generation_config.json"
    ]
