"""Completions that somebody else wrote: texts and chats as token ids, wrong rows by their number."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from build_material import write_rows
from precede.data.completions import read_completions, translated
from test_lm_data import byte_tokenizer, said
from test_lm_tiny import WORDS, tiny_tokenizer

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'rain' %}{{ raise_exception('no rain') }}{% endif %}"
    "{{ '<s> ' if message['role'] == 'user' else 'answer ' }}{{ message['content'] }}"
    "{{ ' </s> ' if message['role'] == 'assistant' else ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}answer {% endif %}"
)


def chatting() -> Any:
    words = tiny_tokenizer()
    words.chat_template = TEMPLATE
    return words


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_texts_end_with_eos_and_are_cut_where_the_prompt_ends(tmp_path: Path) -> None:
    rows = [
        {"prompt": "<s> The sky", "completion": " is blue"},
        {"prompt": "<s> The sea", "completion": " was green </s>", "model": "a column that is not read"},
    ]
    found = read_completions(str(write_rows(tmp_path / "rows.jsonl", rows)), tiny_tokenizer()).rows
    assert found == [(ids("<s> The sky"), ids("is blue </s>")), (ids("<s> The sea"), ids("was green </s>"))]


def test_chats_go_through_the_template(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": "The sky"}],
            "completion": [{"role": "assistant", "content": "is blue"}],
        },
        {
            "prompt": [
                {"role": "user", "content": "The sky"},
                {"role": "assistant", "content": "is blue"},
                {"role": "user", "content": "likely"},
            ],
            "completion": [{"role": "assistant", "content": "a sea"}],
        },
    ]
    found = read_completions(str(write_rows(tmp_path / "rows.jsonl", rows)), chatting()).rows
    assert found == [
        (ids("<s> The sky answer"), ids("is blue </s>")),
        (ids("<s> The sky answer is blue </s> <s> likely answer"), ids("a sea </s>")),
    ]


def test_bos_and_eos_are_not_doubled(tmp_path: Path) -> None:
    """A tokenizer that puts BOS before and EOS behind every text, as many do: the ids are those of one that does neither."""
    words = tiny_tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert words("sky")["input_ids"] == ids("<s> sky </s>")
    rows = [{"prompt": "<s> The sky", "completion": " is blue"}, {"prompt": "The sky", "completion": " is blue </s>"}]
    found = read_completions(str(write_rows(tmp_path / "rows.jsonl", rows)), words).rows
    assert found == [(ids("<s> The sky"), ids("is blue </s>"))] * 2


def test_other_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": f"<s> The {word}", "completion": " is blue"} for word in ("sky", "sea")]
    lines = str(write_rows(tmp_path / "rows.jsonl", rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.json", "rows.parquet"):
        found = read_completions(str(tmp_path / name), tiny_tokenizer())
        assert found.rows == read_completions(lines, tiny_tokenizer()).rows
        assert found.content == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


GOOD = {"prompt": "<s> The", "completion": " sky"}
CHAT = {"prompt": [{"role": "user", "content": "sky"}], "completion": [{"role": "assistant", "content": "blue"}]}
BOTH = "prompt and completion must both be texts or both lists of messages"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "<s> The"}, "completion is missing"),
        ({"prompt": "<s> The", "completion": None}, "completion is missing"),
        ({"prompt": "<s> The", "completion": ""}, "completion is empty"),
        ({"prompt": "<s> The", "completion": " "}, "completion is empty"),
        ({"prompt": "", "completion": "sky"}, "prompt is empty"),
        ({"prompt": "<s> The", "completion": 3}, "completion is a number, not a text or a list of messages"),
        ({"prompt": "<s> The", "completion": "\ud800"}, "half of a surrogate pair"),
        ({"prompt": "<s> The", "completion": CHAT["completion"]}, BOTH),
        ({"prompt": CHAT["prompt"], "completion": "blue"}, BOTH),
        ({"prompt": [], "completion": []}, "prompt is empty"),
        (
            {"prompt": [{"rule": "user"}], "completion": CHAT["completion"]},
            "prompt is a list, not a text or a list of mes",
        ),
        ({"prompt": ["sky"], "completion": CHAT["completion"]}, "prompt is a list, not a text or a list of messages"),
        (
            {"prompt": [{"role": "user"}], "completion": CHAT["completion"]},
            "prompt has a message whose content is nothing",
        ),
        ({"prompt": [{"role": "rain", "content": "a"}], "completion": CHAT["completion"]}, "refuses it: no rain"),
        (["sky"], "not a JSON object: a list"),
    ],
)
def test_a_wrong_row_is_named_by_its_number(row: Any, words: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [GOOD, CHAT, row])
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 3: ") as problem:
        read_completions(str(path), chatting())
    assert words in str(problem.value)
    assert "\n" not in str(problem.value)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [GOOD])
    path.write_text(path.read_text("utf-8") + "{\n", "utf-8")
    with pytest.raises(ValueError, match="row 2: not valid JSON"):
        read_completions(str(path), tiny_tokenizer())


def test_a_chat_without_a_template(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [GOOD, CHAT])
    with pytest.raises(ValueError, match="row 2: it is a conversation, but the tokenizer has no chat template"):
        read_completions(str(path), tiny_tokenizer())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "rows.jsonl",
            '{"prompt": "a", "text": "b"}\n',
            "has no column 'completion'; its columns are 'prompt', 'text'",
        ),
        ("rows.jsonl", '{"completion": "b"}\n', "has no column 'prompt'; its columns are 'completion'"),
        ("rows.jsonl", "", "is empty"),
        ("rows.jsonl", "\n\n", "holds no rows"),
        ("rows.txt", "a", "is not of a kind that is read here"),
    ],
)
def test_a_source_that_cannot_be_read(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ValueError, match=words):
        read_completions(str(tmp_path / name), tiny_tokenizer())


def teacher() -> tuple[Any, int]:
    """A tokenizer whose end of a turn is no special token, and that token."""
    words = byte_tokenizer()
    words.add_tokens([AddedToken("<turn|>", special=False)])
    return words, words.convert_tokens_to_ids("<turn|>")


STUDENT = (
    "{{ bos_token }}{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content | trim }}"
    "{% if turn.role == 'assistant' %}{{ '\\n<|over|>\\n' }}{{ eos_token }}{% endif %}{% endfor %}"
)


def student() -> Any:
    """A byte-level tokenizer whose chat template ends a turn with a token that is not its EOS."""
    words = byte_tokenizer(template=STUDENT)
    words.add_tokens([AddedToken("<|over|>", special=True)])
    return words


def test_translated_completions_end_where_the_teacher_ended() -> None:
    """By the teacher's ends, special tokens or not; with the student's own end, of texts and of conversations."""
    words, end = teacher()
    own = student()
    prompt = words("Which colour?")["input_ids"]
    blue = words("Blue. a")["input_ids"]
    asked = [said("user", "Which colour?")]
    drawn = [[*blue, end], [*blue, end, *blue], [*blue, end], blue, blue, [*blue, 1], [*blue, 1]]
    turns = [None, None, asked, asked, None, asked, None]
    found = translated(words, [prompt] * 7, drawn, {1, end}, own, turns)
    assert [own.decode(ids) for ids in found] == [
        "Blue. a</s>",
        "Blue. a</s>",
        "Blue. a\n<|over|>",
        "Blue. a",
        "Blue. a",
        "Blue. a\n<|over|>",
        "Blue. a</s>",
    ]
    assert found[2][-1] == own.convert_tokens_to_ids("<|over|>")
    (unended,) = translated(words, [prompt], [[*blue, 1]], {end}, own, [None])
    assert own.decode(unended) == "Blue. a"  # EOS, at which this model does not stop


def test_translated_ends_are_joined_as_the_template_writes_them() -> None:
    """Ids of the text and of what follows it together: here "a" and "b" merge."""
    words, end = teacher()
    own = byte_tokenizer(template="{% for turn in messages %}{{ turn.content }}b{{ eos_token }}ab{% endfor %}")
    (found,) = translated(words, [[5]], [[*words("Blue a")["input_ids"], end]], {end}, own, [[said("user", "q")]])
    assert found == own("Blue ab</s>")["input_ids"]


def test_translated_completions_are_never_empty() -> None:
    words, end = teacher()
    own = student()
    found = translated(words, [[5]] * 4, [[end], [], [end], []], {end}, own, [None, None, *[[said("user", "q")]] * 2])
    assert [own.decode(ids) for ids in found] == ["</s>", "</s>", "\n<|over|>", "</s>"]


def test_translated_without_a_special_end_gets_eos() -> None:
    words, end = teacher()
    own = byte_tokenizer(template="{% for turn in messages %}{{ turn.content }}\n{% endfor %}")
    (found,) = translated(words, [[5]], [[*words("Blue")["input_ids"], end]], {end}, own, [[said("user", "q")]])
    assert own.decode(found) == "Blue</s>"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no rain') }}", "handed over: the chat template refuses it: no rain"),
        ("{{ messages[0].content }}", "leaves out what the assistant says"),
    ],
)
def test_translated_with_a_template_that_cannot_do_it(template: str | None, words: str) -> None:
    tokenizer, end = teacher()
    with pytest.raises(ValueError, match=words):
        translated(tokenizer, [[5]], [[6, end]], {end}, byte_tokenizer(template=template), [[said("user", "q")]])
