"""The shapes that a preference pair comes in, made one: texts or messages, the prompt given or implicit (TRL's shapes)."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

from precede.data.sentences import first_line, kind_of

ASSISTANT, HUMAN = "\n\nAssistant:", "\n\nHuman:"
"""What begins a turn in a transcript of the kind of hh-rlhf (Bai et al. 2022)."""

Asked = str | tuple[str, ...]
"""A prompt that can be compared: a text, or the messages of a conversation."""
Row = TypeVar("Row")
"""What tells a row: its number, or its source and number."""

ANSWER = "Forty-two"
"""What the assistant says in the conversation that shows how a chat template ends a turn."""

TEMPLATE_STEPS = 1_000_000
"""Lines that a chat template runs for one conversation at most; one of 100 messages takes some thousands."""

USER_TURNS = "an answer goes on with turns of the user, which count as part of it"
TWICE = "both answers begin with the prompt itself, which so stands twice"


@dataclass(frozen=True)
class Shaped:
    """A pair as the tokenizer takes it, (prompt, prompt + chosen, prompt + rejected), and as people read it.

    `is_chat` says that a chat template made the texts, special tokens and all. `remarks` are things to know about the row.
    """

    joined: Sequence[str]
    plain: tuple[str, str, str]
    is_chat: bool
    remarks: tuple[str, ...]
    turns: list[dict[str, Any]] | None = None
    """The prompt's messages, of a conversation."""
    implicit: bool = False
    """Whether the prompt is what both answers begin with."""

    @property
    def asked(self) -> Asked:
        return self.plain[0] if self.turns is None else tuple(map(_message, self.turns))


class Refusal(Exception):
    """Why a row cannot be used: a general reason, and after a colon its detail."""


def shape(values: Mapping[str, Any], tokenizer: Any) -> Shaped:
    """One shape for the values `chosen`, `rejected` and, unless it is implicit, `prompt`.

    Answers that are texts end with the tokenizer's EOS, conversations with what the chat template ends them. Raises
    Refusal for values that are missing, empty, identical, of another type, or that the template refuses, and ValueError
    for conversations where the tokenizer has no chat template.
    """
    kinds = {name: checked_kind(name, value) for name, value in values.items()}
    if kinds["chosen"] != kinds["rejected"]:
        raise Refusal(f"chosen is {kinds['chosen']}, but rejected is {kinds['rejected']}")
    if values["chosen"] == values["rejected"]:
        raise Refusal("chosen and rejected are identical")
    refuse_empty(chosen=values["chosen"], rejected=values["rejected"])
    shaped = (_of_texts if kinds["chosen"] == "a text" else _of_messages)(values, kinds, tokenizer)
    refuse_half_characters(*shaped.joined, *shaped.plain)
    return shaped


def refuse_half_characters(*texts: str) -> None:
    """Raise Refusal for texts that are not Unicode."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        raise Refusal("it holds half of a surrogate pair, which is no character") from None


def common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The number of items that both sequences begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


def groups(prompts: Mapping[Row, Asked], implicit: Collection[Row]) -> dict[Row, str]:
    """For each row, by its number, the key of its question, by which rows are split; `implicit` are those with no given prompt.

    A given prompt is its own key. An implicit one is the question and whatever both answers go on with, so that rows of
    one question can have several: the key is the shortest prompt of all rows that it begins with, in whole words or
    whole messages. Rows whose prompts begin one another so share a key, and with them rows that share an answer, and
    all rows of a question of which one has the very question for its prompt. What rows themselves do not show stays
    unknown: "The sky is" and "The sky has" are two questions unless some row has the prompt "The sky".
    """
    keys: dict[Row, str] = {}
    for kind in (str, tuple):  # a text is no conversation, whatever it says
        rows = {row: prompt for row, prompt in prompts.items() if isinstance(prompt, kind)}
        firsts = _firsts(rows.values()) if any(row in implicit for row in rows) else {}
        for row, prompt in rows.items():
            first = firsts.get(prompt, prompt)
            keys[row] = f"text: {first}" if isinstance(first, str) else f"messages: {' '.join(first)}"
    return keys


def _message(turn: Mapping[str, Any]) -> str:
    """A message as a text; a part that is nothing is as good as none, for Parquet fills up with them."""
    parts = {name: value for name, value in turn.items() if value is not None}
    return json.dumps(parts, sort_keys=True, default=repr)


def _firsts(prompts: Iterable[Asked]) -> dict[Asked, Asked]:
    """For each prompt the shortest of all that it begins with, which may be itself.

    Sorted, what begins with a prompt stands right behind it: those that the last one begins with are kept at hand.
    """
    firsts: dict[Asked, Asked] = {}
    begun: list[Asked] = []
    for prompt in sorted(set(prompts)):
        while begun and prompt[: len(begun[-1])] != begun[-1]:
            begun.pop()
        begun.append(prompt)
        firsts[prompt] = next(one for one in begun if not (isinstance(prompt, str) and _within_word(prompt, len(one))))
    return firsts


def checked_kind(name: str, value: Any) -> str:
    """`a text` or `a list of messages`. Raises Refusal for a value that is neither."""
    if value is None:
        raise Refusal(f"{name} is missing")
    if isinstance(value, str):
        return "a text"
    if not isinstance(value, list) or not all(isinstance(turn, dict) and "role" in turn for turn in value):
        raise Refusal(f"{name} is {kind_of(value)}, not a text or a list of messages with role and content")
    for turn in value:
        for part in ("role", "content"):
            if not isinstance(turn.get(part), str):
                raise Refusal(f"{name} has a message whose {part} is {kind_of(turn.get(part))}, not a text")
    return "a list of messages"


def refuse_empty(**values: Any) -> None:
    """Raise Refusal for a text, or messages, that say nothing."""
    for name, answer in values.items():
        said = [answer] if isinstance(answer, str) else [turn["content"] for turn in answer]
        if not any(text.strip() for text in said):
            raise Refusal(f"{name} is empty")


def _of_texts(values: Mapping[str, str], kinds: Mapping[str, str], tokenizer: Any) -> Shaped:
    chosen, rejected, remarks = values["chosen"], values["rejected"], []
    if "prompt" not in values:
        end, remark = _shared_end(chosen, rejected)
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
        remarks += [remark, *[USER_TURNS] * (prompt.endswith(ASSISTANT) and HUMAN in chosen + rejected)]
    elif kinds["prompt"] != "a text":
        raise Refusal(f"prompt is {kinds['prompt']}, but chosen and rejected are texts")
    else:
        prompt = values["prompt"]
        remarks += [TWICE] * bool(prompt and chosen.startswith(prompt) and rejected.startswith(prompt))
    refuse_empty(chosen=chosen, rejected=rejected)
    eos = tokenizer.eos_token
    ended = [prompt + answer + ("" if answer.endswith(eos) else eos) for answer in (chosen, rejected)]
    implicit = "prompt" not in values
    return Shaped((prompt, ended[0], ended[1]), (prompt, chosen, rejected), False, tuple(remarks), implicit=implicit)


def _shared_end(chosen: str, rejected: str) -> tuple[int, str]:
    """Where the prompt ends that two texts begin with, and by which rule."""
    end = common(chosen, rejected)
    if ASSISTANT in chosen and ASSISTANT in rejected:
        start = chosen.rfind(ASSISTANT, 0, end)
        if start < 0:
            raise Refusal("the prompt is implicit, but chosen and rejected share no turn up to 'Assistant:'")
        rule = "the prompt is implicit: what both answers begin with, up to their last 'Assistant:'"
        return start + len(ASSISTANT), rule
    while _within_word(chosen, end) or _within_word(rejected, end):
        end -= 1
    if chosen[end - 1 : end] == " ":  # tokenizers keep a space with the word behind it
        end -= 1
    if end == min(len(chosen), len(rejected)):
        raise Refusal("the prompt is implicit, but one answer is the beginning of the other")
    if end == 0:
        raise Refusal("the prompt is implicit, but chosen and rejected share no first word")
    return end, "the prompt is implicit: what both answers begin with, up to the first word that differs"


def _within_word(text: str, index: int) -> bool:
    """Whether the letters on both sides of the index are of one word, in scripts that have upper and lower case."""
    letters = text[index - 1 : index + 1] if 0 < index < len(text) else ""
    return bool(letters) and all(letter.isdecimal() or letter.lower() != letter.upper() for letter in letters)


def _of_messages(values: Mapping[str, Any], kinds: Mapping[str, str], tokenizer: Any) -> Shaped:
    if tokenizer.chat_template is None:
        raise ValueError(
            "the rows are conversations, but the tokenizer has no chat template; "
            "take the tokenizer of an instruct model, set its chat_template, or give the rows as texts"
        )
    chosen, rejected, remarks = values["chosen"], values["rejected"], []
    if kinds.get("prompt") == "a list of messages":
        prompt, end = values["prompt"], None
        remarks += [TWICE] * bool(prompt and all(turns[: len(prompt)] == prompt for turns in (chosen, rejected)))
    else:
        end = common(chosen, rejected)
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
        remarks += ["the prompt is implicit: the messages that both answers begin with"]
    if not prompt:
        implicit = "the prompt is implicit, but chosen and rejected share no first message"
        raise Refusal("prompt is empty" if end is None else implicit)
    refuse_empty(chosen=chosen, rejected=rejected)
    remarks += [USER_TURNS] * any(turn["role"] == "user" for turn in (*chosen, *rejected))
    plain = (_plain(prompt), _plain(chosen), _plain(rejected))
    return Shaped(rendered(tokenizer, prompt, chosen, rejected), plain, True, tuple(remarks), prompt, end is not None)


def rendered(tokenizer: Any, prompt: list[dict[str, Any]], *answers: list[dict[str, Any]]) -> list[str]:
    """The prompt as the chat template writes it, and the conversation with each answer. Raises Refusal where it fails."""
    asked = templated(tokenizer, prompt, add_generation_prompt=True)
    return [asked, *(templated(tokenizer, [*prompt, *one]) for one in answers)]


def templated(tokenizer: Any, turns: list[dict[str, Any]], **options: Any) -> str:
    """A conversation as the chat template writes it.

    Raises Refusal where the template fails, and ValueError where it is not done after `TEMPLATE_STEPS`.
    """
    left = TEMPLATE_STEPS

    def step(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise TimeoutError
        return step if frame.f_code.co_filename == "<template>" else None  # of other code the calls are enough

    before = sys.gettrace()
    sys.settrace(step)
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # of any kind: a template is a program of its own
        if left < 0:
            raise ValueError(
                f"the chat template is not done with a conversation after {TEMPLATE_STEPS:,} steps; mend it"
            ) from None
        raise Refusal(f"the chat template refuses it: {first_line(error)}") from None
    finally:
        sys.settrace(before)
    return text


def text_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """The ids of texts, with the BOS of a tokenizer that puts one there, never twice, and without its EOS."""
    ends = tokenizer("a")["input_ids"]
    bos = len(ends) > 1 and ends[0] == tokenizer.bos_token_id
    eos = len(ends) > 1 and ends[-1] == tokenizer.eos_token_id
    return [
        ids[bos and text.startswith(tokenizer.bos_token) : len(ids) - eos]
        for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True)
    ]


def _plain(turns: list[dict[str, Any]]) -> str:
    """Messages for people: each with its role, unless it is a single answer."""
    if len(turns) == 1 and turns[0]["role"] == "assistant":
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
