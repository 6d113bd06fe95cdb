"""Rows of one question are known by one key; all columns, and what tells the data that were read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precede.data.preferences import read_preferences
from precede.data.sources import read_table
from test_lm_data import ASKED, CHATS, GIVEN, IMPLICIT_CHATS, byte_tokenizer, read, said, write
from test_lm_sources import LINES, ROWS, parquet, saved, shards, zipped


def pair(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


def test_implicit_prompts_of_one_question_share_a_group(tmp_path: Path) -> None:
    rows = [
        pair("The sky is blue and wide.", "The sky is blue and cold."),
        pair("The sky is blue.", "The sky is green."),
        pair("The skyline is high.", "The skyline is low."),
        pair("The sky is green.", "The sky is blue and wide."),
        pair("What is it?\nA", "What is it?\nB"),
        pair("What is it? Not a", "What is it? Not b"),
        pair("What is it? No", "What is it?\nB"),
    ]
    made = read(tmp_path, byte_tokenizer(), *rows)
    sky, line, what = "text: The sky is", "text: The skyline is", "text: What is it?"
    assert [row.group for row in made.rows] == [sky, sky, line, sky, what, what, what]
    assert [row.prompt_text for row in made.rows[:2]] == ["The sky is blue and", "The sky is"]  # as they are


def test_groups_of_what_is_no_implicit_text(tmp_path: Path) -> None:
    """Given prompts are their own, though one begin the other; messages count whole, with or without parts that are nothing."""
    row = {"chosen": " a", "rejected": " b"}
    given_rows = [row | {"prompt": "The sky"}, row | {"prompt": "The sky is"}]
    assert [one.group for one in read(tmp_path, byte_tokenizer(), *given_rows).rows] == [
        "text: The sky",
        "text: The sky is",
    ]
    one, other = (one.group for one in read(tmp_path, byte_tokenizer(), *CHATS).rows)
    assert one != other
    longer = [*ASKED, said("assistant", "Blue."), said("user", "Sure?")]
    chats = [
        {name: [*longer, said("assistant", name)] for name in ("chosen", "rejected")},
        IMPLICIT_CHATS[0],
        {name: [ASKED[0] | {"name": None}, ASKED[1], said("assistant", name)] for name in ("chosen", "rejected")},
        IMPLICIT_CHATS[1],
        {name: [said("user", "Which colour? Say"), said("assistant", name)] for name in ("chosen", "rejected")},
    ]
    groups = [one.group for one in read(tmp_path, byte_tokenizer(), *chats).rows]
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 3


def test_rows_that_are_refused_still_tell_the_question(tmp_path: Path) -> None:
    rows = [
        pair("The sky is blue a", "The sky is blue b"),
        pair("The sky has a", "The sky has b"),
        pair("The sky was", "The sky " + "x" * 99),
    ]
    made = read(tmp_path, byte_tokenizer(), *rows, max_length=50)
    assert [(row.row, row.group) for row in made.rows] == [(1, "text: The sky"), (2, "text: The sky")]


WORDS = st.lists(st.sampled_from(["a", "ab", "b", "abb", "c."]), min_size=1, max_size=4).map(" ".join)


@given(
    question=WORDS, answers=st.lists(WORDS, min_size=3, max_size=6, unique=True), more=st.lists(st.tuples(WORDS, WORDS))
)
@settings(max_examples=150, deadline=None)
def test_no_question_is_on_both_sides(
    question: str, answers: list[str], more: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every pair of some answers: rows that share an answer, and prompts that begin one another, are of one group."""
    texts = [f"{question} {answer}" for answer in answers]
    rows = [pair(texts[place], text) for place in range(len(texts)) for text in texts[:place]]
    rows += [pair(one, other) for one, other in more]
    path = tmp_path_factory.getbasetemp() / "groups.jsonl"
    made = read_preferences(write(path, rows), byte_tokenizer(), max_refused_share=1) if usable(rows) else None
    if made is None:
        return
    for one in made.rows:
        assert f"{one.prompt_text} ".startswith(f"{one.group.removeprefix('text: ')} ")
        for other in made.rows:
            shared = {one.prompt_text + one.chosen_text, one.prompt_text + one.rejected_text} & {
                other.prompt_text + other.chosen_text,
                other.prompt_text + other.rejected_text,
            }
            if shared or f"{other.prompt_text} ".startswith(f"{one.prompt_text} "):
                assert one.group == other.group


def usable(rows: list[dict[str, str]]) -> bool:
    """Whether two answers of some row share a first word, and neither begins the other."""
    return any(
        row["chosen"].split()[0] == row["rejected"].split()[0]
        and not f"{row['chosen']} ".startswith(f"{row['rejected']} ")
        and not f"{row['rejected']} ".startswith(f"{row['chosen']} ")
        for row in rows
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_columns_of_the_source(kind: str, tmp_path: Path) -> None:
    """All but the prompt's, whatever it is called there."""
    rows = [
        {"question": "a", "chosen": " b", "rejected": f" {n}", "prompt": "not this", "score": n, "tags": ["x", "y"]}
        for n in range(3)
    ]
    path = tmp_path / f"rows.{kind}"
    {"jsonl": write, "parquet": parquet, "saved": saved}[kind](path, rows)
    made = read_preferences(str(path), byte_tokenizer(), columns={"prompt": "question"})
    assert [row.columns for row in made.rows] == [
        {name: value for name, value in row.items() if name != "question"} for row in rows
    ]
    assert read_table(str(path)).rows == list(enumerate(rows, start=1))


def test_columns_that_only_some_rows_have_are_none_elsewhere(tmp_path: Path) -> None:
    made = read(tmp_path, byte_tokenizer(), GIVEN[0] | {"score": 1}, GIVEN[1] | {"prompt": "q"})
    assert [row.columns.get("score", "none") for row in made.rows] == [1, None]


def test_other_columns_that_cannot_be_read_cost_no_row(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS[:2])
    table = table.append_column("note", pyarrow.array([b"good", b"\xff\xfe"]).view(pyarrow.string()))
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    made = read_preferences(str(tmp_path / "rows.parquet"), byte_tokenizer())
    assert [row.columns["note"] for row in made.rows] == ["good", None]


def sha(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_content_is_what_was_parsed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(LINES, "utf-8")
    zipped(tmp_path / "rows.jsonl.gz")
    parquet(tmp_path / "rows.parquet")
    plain = read_preferences(str(tmp_path / "rows.jsonl"), byte_tokenizer()).content
    assert plain == read_table(str(tmp_path / "rows.jsonl.gz")).content == sha(LINES.encode())
    assert read_table(str(tmp_path / "rows.parquet")).content == sha((tmp_path / "rows.parquet").read_bytes())
    first = "".join(LINES.splitlines(keepends=True)[:2])
    assert read_table(str(tmp_path / "rows.jsonl"), limit=2).content == sha(first.encode())


@pytest.mark.parametrize("make", [shards, saved], ids=["shards", "saved"])
def test_content_of_a_folder(make: Callable[[Path], None], tmp_path: Path) -> None:
    """Names and bytes of what was read, and of nothing else."""
    make(tmp_path / "one")
    folder = tmp_path / "two"
    (tmp_path / "one").rename(folder)
    first = read_table(str(folder)).content
    (folder / "README.md").write_text("something else", "utf-8")
    assert read_table(str(folder)).content == first
    file = next(
        path for path in sorted(folder.rglob("*")) if path.suffix in (".parquet", ".arrow") and "test" not in path.name
    )
    if make is saved:
        file.write_bytes(file.read_bytes().replace(b"r0", b"r9", 1))
    else:
        parquet(file, [ROWS[0] | {"chosen": " z"}, *ROWS[1:3]])
    changed = read_table(str(folder)).content
    assert changed != first
    assert len(changed) == 64


def test_content_of_a_folder_knows_the_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text(LINES, "utf-8")
    assert read_table(str(tmp_path / "a")).content != read_table(str(tmp_path / "b")).content
