"""Preference data as people really have it: each bad row is named with its reason, each bad file told in a sentence."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from precede.data import preferences as data
from precede.data.preferences import Refused, read_preferences
from test_lm_data import ASKED, CHATS, GIVEN, TEMPLATE, byte_tokenizer, read, said
from test_lm_tiny import tiny_tokenizer

GOOD = {"prompt": "q", "chosen": " a", "rejected": " b"}
HH = {"chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: y\n\nAssistant: b"}
ANSWERS = {"chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")]}
SHAPE = "not a text or a list of messages with role and content"
HALF = "it holds half of a surrogate pair, which is no character"

REFUSED: list[tuple[Any, str]] = [
    (GOOD | {"chosen": ""}, "chosen is empty"),
    (GOOD | {"rejected": " \n\t"}, "rejected is empty"),
    (GOOD | {"prompt": ""}, "prompt has no tokens"),
    (GOOD | {"prompt": None}, "prompt is missing"),
    ({"prompt": "q", "chosen": "a"}, "rejected is missing"),
    ({}, "prompt is missing"),
    (GOOD | {"rejected": " a"}, "chosen and rejected are identical"),
    (GOOD | {"rejected": " a</s>"}, "chosen and rejected are identical as tokens"),
    (GOOD | {"chosen": "a" * 100_000}, "longer than 50 tokens"),
    (GOOD | {"prompt": "a " * 50_000}, "longer than 50 tokens"),
    (GOOD | {"chosen": 3}, f"chosen is a number, {SHAPE}"),
    (GOOD | {"prompt": {"text": "q"}}, f"prompt is a mapping, {SHAPE}"),
    (GOOD | {"rejected": ["b"]}, f"rejected is a list, {SHAPE}"),
    (GOOD | {"chosen": [{"content": "a"}]}, f"chosen is a list, {SHAPE}"),
    (GOOD | {"chosen": "\ud800"}, HALF),
    (GOOD | {"prompt": "\ud83d \udc00"}, HALF),
    (GOOD | {"chosen": ANSWERS["chosen"]}, "chosen is a list of messages, but rejected is a text"),
    (GOOD | {"prompt": ASKED}, "prompt is a list of messages, but chosen and rejected are texts"),
    (ANSWERS | {"prompt": "q"}, "the prompt is implicit, but chosen and rejected share no first message"),
    (ANSWERS | {"prompt": []}, "prompt is empty"),
    (ANSWERS | {"prompt": ASKED, "chosen": []}, "chosen is empty"),
    (ANSWERS | {"prompt": ASKED, "rejected": [said("assistant", " ")]}, "rejected is empty"),
    (ANSWERS | {"prompt": [said("user", "\ud800")]}, HALF),
    (ANSWERS | {"prompt": [{"role": "user"}]}, "prompt has a message whose content is nothing, not a text"),
    (
        ANSWERS | {"prompt": [said("user", "q") | {"role": 1}]},
        "prompt has a message whose role is a number, not a text",
    ),
    (ANSWERS | {"prompt": [said("tool", "q")]}, "the chat template refuses it: no tools here"),
    ('{"prompt": "q", "chosen"', "not valid JSON: Expecting ':' delimiter: line 1 column 25 (char 24)"),
    ("[" * 100_000, "not valid JSON: nested too deeply"),
    ('{"chosen": ' + "9" * 5000 + "}", "not valid JSON: Exceeds the limit (4300 digits)"),
    ('["q", "a", "b"]', "not a JSON object: a list"),
    (b'{"chosen": "\xff"}', "not valid UTF-8"),
    ("\x00\x00", "not valid JSON: Expecting value"),
]


def lines_of(rows: list[Any]) -> bytes:
    made = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    return b"".join((row if isinstance(row, bytes) else row.encode()) + b"\n" for row in made)


@pytest.mark.parametrize("place", range(len(REFUSED)))
def test_row_is_refused_with_its_reason(place: int, tmp_path: Path) -> None:
    row, reason = REFUSED[place]
    (tmp_path / "rows.jsonl").write_bytes(lines_of([GOOD, row, GOOD]))
    made = read_preferences(str(tmp_path / "rows.jsonl"), byte_tokenizer(), max_length=50)
    assert [preference.row for preference in made.rows] == [1, 3]
    (refused,) = made.refused
    assert refused.row == 2
    assert refused.reason.startswith(reason)


def test_every_row_is_used_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "BATCH", 9)
    rows = [each for row, _ in REFUSED for each in (row, GOOD)]
    (tmp_path / "rows.jsonl").write_bytes(lines_of([GOOD, *rows]))
    made = read_preferences(str(tmp_path / "rows.jsonl"), byte_tokenizer(), max_length=50)
    good, bad = [row.row for row in made.rows], [entry.row for entry in made.refused]
    assert good == [*range(1, len(rows) + 2, 2)]
    assert bad == [*range(2, len(rows) + 2, 2)]


@pytest.mark.parametrize(
    "loop",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set all = range(99999) | map('string') | list %}{% endfor %}",
    ],
)
def test_a_template_that_goes_on_for_ever_stops_the_reading(loop: str, tmp_path: Path) -> None:
    """Whoever it hangs on: here the second row."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE + "{% if messages[0].content == 'long' %}" + loop + "{% endif %}"
    rows = [ANSWERS | {"prompt": [said("user", text)]} for text in ("q", "long")]
    rows[0] |= {"rejected": [said("assistant", "b")]}
    with pytest.raises(ValueError, match="the chat template is not done with a conversation after 1,000,000 steps; m"):
        read(tmp_path, tokenizer, *rows)
    assert len(read(tmp_path, tokenizer, rows[0]).rows) == 1


IMPLICIT: list[tuple[dict[str, Any], str]] = [
    ({"chosen": "x y", "rejected": "x y z"}, "the prompt is implicit, but one answer is the beginning of the other"),
    ({"chosen": "yes", "rejected": "no"}, "the prompt is implicit, but chosen and rejected share no first word"),
    ({"chosen": "", "rejected": "x y"}, "chosen is empty"),
    (HH, "the prompt is implicit, but chosen and rejected share no turn up to 'Assistant:'"),
    (HH | {"rejected": "\n\nHuman: x\n\nAssistant:"}, "rejected is empty"),
    (ANSWERS, "the prompt is implicit, but chosen and rejected share no first message"),
    ({"chosen": ASKED, "rejected": [*ASKED, said("assistant", "a")]}, "chosen is empty"),
]


@pytest.mark.parametrize("place", range(len(IMPLICIT)))
def test_implicit_prompt_that_cannot_be_told(place: int, tmp_path: Path) -> None:
    row, reason = IMPLICIT[place]
    good = {"chosen": "The sky is blue", "rejected": "The sky is green"}
    assert read(tmp_path, byte_tokenizer(), good, row).refused == [Refused(2, reason)]


def test_what_looks_odd_and_is_kept(tmp_path: Path) -> None:
    odd = ["\x00", " \x00\x07\x1b[31m\r", "<script>alert(1)</script>", "\u202e\ufeff\ufffe", "[red]b[/red]", "😀" * 99]
    rows = [GOOD | {"chosen": text} for text in odd]
    made = read(tmp_path, byte_tokenizer(), *rows)
    assert [row.chosen_text for row in made.rows] == odd
    assert [byte_tokenizer().decode(row.chosen) for row in made.rows] == [text + "</s>" for text in odd]


def test_longest_row_that_fits(tmp_path: Path) -> None:
    """The prompt has one token and the EOS is one: 8 letters are 10 tokens."""
    rows = [GOOD | {"rejected": "z" * letters} for letters in (8, 9)] + [GOOD | {"chosen": "z" * 9}, GOOD]
    made = read(tmp_path, byte_tokenizer(), *rows, max_length=10)
    assert [entry.row for entry in made.refused] == [2, 3]


def test_long_rows(tmp_path: Path) -> None:
    """One long word, many words, implicit prompts: work in proportion to the square of the length would take hours."""
    length = 200_000
    rows = [GOOD | {"chosen": "a" * length}, GOOD | {"chosen": "ab " * length}]
    shared = [
        {"chosen": "a" * length + "b", "rejected": "a" * length + "c"},
        HH | {"chosen": HH["rejected"] * 6_000},
    ]
    assert len(read(tmp_path, byte_tokenizer(), *rows, GOOD, max_length=99, max_refused_share=1).refused) == 2
    good = {"chosen": "The sky is blue", "rejected": "The sky is green"}
    assert len(read(tmp_path, byte_tokenizer(), *shared, good, max_length=99, max_refused_share=1).refused) == 2


def test_words_that_the_tokenizer_does_not_know_are_the_same(tmp_path: Path) -> None:
    made = read(
        tmp_path, tiny_tokenizer(), {"prompt": "The", "chosen": " x", "rejected": " y"}, GOOD | {"chosen": " sea"}
    )
    assert made.refused == [Refused(1, "chosen and rejected are identical as tokens")]


def test_missing_prompt_is_not_made_up_where_others_have_one(tmp_path: Path) -> None:
    row = {"chosen": "The sky is blue", "rejected": "The sky is green"}
    assert read(tmp_path, byte_tokenizer(), GOOD, row).refused == [Refused(2, "prompt is missing")]
    assert not read(tmp_path, byte_tokenizer(), row, row).refused


def test_template_that_drops_or_rewrites_the_answer(tmp_path: Path) -> None:
    """What the template makes of answers is what counts: here it shouts them, or leaves them out."""
    shouting = TEMPLATE.replace("{{ turn.content }}", "{{ turn.content | upper }}")
    row = CHATS[0] | {"rejected": [said("assistant", "BLUE.")]}
    made = read(tmp_path, byte_tokenizer(template=shouting), CHATS[0], row)
    assert made.refused == [Refused(2, "chosen and rejected are identical as tokens")]
    secretive = TEMPLATE.replace(
        "[{{ turn.role }}]", "{% if turn.content == 'ab' %}{% continue %}{% endif %}[{{ turn.role }}]"
    )
    row = CHATS[0] | {"rejected": [said("assistant", "ab")]}
    made = read(tmp_path, byte_tokenizer(template=secretive), CHATS[0], row)
    assert made.refused == [Refused(2, "an answer has no tokens")]
    forgetful = "{% for turn in messages %}{% if loop.first %}{{ turn.content }}{% endif %}{% endfor %}"
    with pytest.raises(
        ValueError, match="most often, 1 times, first in row 1: chosen and rejected are identical as tok"
    ):
        read(tmp_path, byte_tokenizer(template=forgetful), CHATS[0])


def test_template_that_renders_the_prompt_otherwise(tmp_path: Path) -> None:
    thinking = TEMPLATE.replace("[assistant]{% endif", "[assistant]<think></think>{% endif")
    made = read(tmp_path, byte_tokenizer(template=thinking), CHATS[0])
    assert byte_tokenizer().decode(made.rows[0].prompt).endswith("[assistant]")
    assert any("tokenised otherwise" in note for note in made.notes)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([GOOD], {"limit": 0}, "limit is 0, but at least one row must be read"),
        ([GOOD], {"max_length": 1}, "max_length is 1, but"),
        ([GOOD], {"max_refused_share": 1.5}, "must be from 0 to 1, not 1.5"),
        ([GOOD], {"columns": {"promt": "q"}}, "'promt' is no column that can be mapped; did you mean 'prompt'"),
        (
            [GOOD],
            {"columns": {"prompt": "question"}},
            r"no column 'question'; its columns are 'prompt', .* the mapping",
        ),
        ([{"a\x1b": 1, "\ud800": 2}], {}, r"no column 'chosen'; its columns are 'a\\x1b', '\\ud800'; map one of them"),
        ([{f"c{n}": n for n in range(30)}], {}, r"'c19' and 10 more; map one"),
        ([GOOD | {"chosen": " b"}] * 3, {}, r"3 of 3 rows .* most often, 3 times, first in row 1: .* identical; mend"),
        ([GOOD | {"chosen": " b"}] * 3, {"max_refused_share": 1}, "3 of 3 rows cannot be used"),
        ([GOOD, {"chosen": "a"}, {}, {}, {}], {}, r"4 of 5 rows .* often, 4 times, first in row 2: prompt is missing;"),
        (["x y", GOOD, "[", "nul"], {}, r"3 of 4 .* 3 times, first in row 1: not valid JSON: Expecting value"),
        (["text"], {}, r"1 of 1 rows cannot be used; .*: not valid JSON"),
    ],
)
def test_what_is_wrong_is_told(rows: list[Any], settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines_of(rows))
    with pytest.raises(ValueError, match=message) as told:
        read_preferences(str(tmp_path / "rows.jsonl"), byte_tokenizer(), **settings)
    assert str(told.value).isprintable()


@pytest.mark.parametrize(("share", "fails"), [(0.5, False), (0.49, True), (0, True)])
def test_share_of_refused_rows(share: float, fails: bool, tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"chosen": ""}]
    if fails:
        with pytest.raises(ValueError, match=r"1 of 2 rows cannot be used; .* row 2: chosen is empty; mend the rows"):
            read(tmp_path, byte_tokenizer(), *rows, max_refused_share=share)
    else:
        assert len(read(tmp_path, byte_tokenizer(), *rows, max_refused_share=share).rows) == 1


def test_limit_counts_refused_rows(tmp_path: Path) -> None:
    made = read(tmp_path, byte_tokenizer(), GOOD, GOOD | {"chosen": ""}, GOOD, limit=2)
    assert ([row.row for row in made.rows], [entry.row for entry in made.refused]) == ([1], [2])


def test_utf16_is_refused_by_its_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + "\n", "utf-16")
    with pytest.raises(ValueError, match="first in row 1: not valid UTF-8"):
        read_preferences(str(tmp_path / "rows.jsonl"), byte_tokenizer())


def test_parquet_without_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["q"], "answer": ["a"]}), path)
    with pytest.raises(ValueError, match=r"rows.parquet has no column 'chosen'; its columns are 'question', 'answer'"):
        read_preferences(str(path), byte_tokenizer())


def test_tokenizer_that_cannot_do_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the rows are conversations, but the tokenizer has no chat template; take"):
        read(tmp_path, byte_tokenizer(template=None), GIVEN[0], CHATS[0])
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token; set eos_token"):
        read(tmp_path, endless, GOOD)
    unpadded = byte_tokenizer()
    unpadded.pad_token = None
    assert len(read(tmp_path, unpadded, GOOD).rows) == 1


def test_columns_that_are_not_used_are_noted(tmp_path: Path) -> None:
    made = read(tmp_path, byte_tokenizer(), GOOD | {"tools": "[]", "score": 3})
    assert made.notes == ["the column 'tools' is not used"]


def test_lengths_are_no_news(tmp_path: Path) -> None:
    """The tokenizer's warning about texts longer than its model is not logged: such rows are named instead."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    read_one, alone = byte_tokenizer(), byte_tokenizer()
    read_one.model_max_length = alone.model_max_length = 5
    try:
        read(tmp_path, read_one, GOOD | {"chosen": "a" * 50})
        assert not records
        alone("a" * 50)  # it warns once
        assert len(records) == 1
    finally:
        logging.getLogger("transformers").removeHandler(handler)
