"""Completions of a teacher behind an API: texts and conversations as token ids, and each wrong row by its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from precede.lm.completions import read_completions
from test_lm_tiny import tiny_tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ '<s> ' if message.role == 'user' else ' ' }}{{ message.content }}"
    "{{ ' </s>' if message.role == 'assistant' }}{% endfor %}"
)


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_texts_end_with_eos(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", {"prompt": "<s> The sky", "completion": " is blue ."})
    assert read_completions(source, tiny_tokenizer()) == [([1, 3, 8], [5, 11, 14, 2])]
    ended = write(tmp_path / "ended.jsonl", {"prompt": "<s> The sky", "completion": " is </s>"})
    assert read_completions(ended, tiny_tokenizer()) == [([1, 3, 8], [5, 2])]  # EOS once


def test_conversations_follow_the_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    turns = [{"role": "user", "content": "The sky"}], [{"role": "assistant", "content": "is blue"}]
    source = write(tmp_path / "rows.jsonl", {"prompt": turns[0], "completion": turns[1]})
    with pytest.raises(ValueError, match="row 1 is a conversation, but the tokenizer has no chat template"):
        read_completions(source, tokenizer)
    tokenizer.chat_template = TEMPLATE
    assert read_completions(source, tokenizer) == [([1, 3, 8], [5, 11, 2])]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "<s> The", "completion": ""}, "row 2: prompt and completion must both be"),
        ({"prompt": "", "completion": " sky"}, "row 2: prompt and completion must both be"),
        ({"prompt": "<s> The", "completion": None}, "row 2: prompt and completion must both be"),
        ({"prompt": "<s> The", "completion": ["sky"]}, "row 2: prompt and completion must both be"),
    ],
)
def test_a_wrong_row_is_named(row: Any, sentence: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", {"prompt": "<s> The", "completion": " sky"}, row)
    with pytest.raises(ValueError, match=sentence):
        read_completions(source, tiny_tokenizer())


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", {"prompt": "<s> The", "answer": " sky"})
    with pytest.raises(ValueError, match=r"has no column 'completion'; its columns are 'prompt', 'answer'"):
        read_completions(source, tiny_tokenizer())
