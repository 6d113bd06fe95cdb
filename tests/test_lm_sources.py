"""Where rows come from: files of every kind, folders, names; and each way in which a source can be broken."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from precede.data.preferences import read_preferences
from precede.data.sources import read_table
from precede.libraries import datasets
from test_lm_data import CHATS, GIVEN, byte_tokenizer, ids_of, write

ROWS = [{"prompt": f"q{n}", "chosen": " a", "rejected": f" r{n}"} for n in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
WANTED = {"prompt", "chosen", "rejected"}


def parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def zipped(path: Path, text: str = LINES) -> None:
    path.write_bytes(gzip.compress(text.encode()))


def saved(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    datasets().Dataset.from_list(rows).save_to_disk(path)


def both_saved(path: Path) -> None:
    """The rows are the split train."""
    made = {"test": datasets().Dataset.from_list(GIVEN), "train": datasets().Dataset.from_list(ROWS)}
    datasets().DatasetDict(made).save_to_disk(path)


def shards(path: Path) -> None:
    """A folder as the hub has them: the rows are in two files of the split train, which are read in order."""
    (path / "data").mkdir(parents=True)
    parquet(path / "data" / "train-00000-of-00002.parquet", ROWS[:3])
    parquet(path / "data" / "train-00001-of-00002.parquet", ROWS[3:])
    parquet(path / "data" / "test-00000-of-00001.parquet", GIVEN)
    (path / "README.md").write_text("not data", "utf-8")
    (path / "dataset_infos.json").write_text("{}", "utf-8")
    (path / ".cache").mkdir()
    (path / ".cache" / "train.jsonl").write_text("not read", "utf-8")
    (path / "rows.pkl").write_bytes(b"cos\nabort\n(tR.")
    (path / "data.py").write_text("raise SystemExit", "utf-8")


def one_file(path: Path) -> None:
    path.mkdir()
    parquet(path / "some.parquet")
    (path / "dataset_infos.json").write_text("{}", "utf-8")


SOURCES: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_text(LINES, "utf-8"),
    "b.ndjson": lambda path: path.write_text(LINES.replace("\n", "\r\n"), "utf-8", newline=""),
    "c.jsonl.gz": zipped,
    "d.json": lambda path: path.write_text(json.dumps(ROWS, indent=1), "utf-8"),
    "e.json": lambda path: path.write_text(LINES, "utf-8"),
    "f.json.gz": lambda path: zipped(path, json.dumps(ROWS)),
    "g.jsonl": zipped,  # a gzip file that lost its ending
    "h.jsonl": lambda path: path.write_text(LINES.rstrip("\n"), "utf-8-sig"),
    "i.json": lambda path: path.write_text(" \n" + json.dumps(ROWS), "utf-8"),
    "j.parquet": parquet,
    "k": saved,
    "l": both_saved,
    "m": shards,
    "n": one_file,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_holds_the_same_rows(name: str, tmp_path: Path) -> None:
    SOURCES[name](tmp_path / name)
    expected = list(enumerate(ROWS, start=1))
    found = read_table(str(tmp_path / name), WANTED)
    assert found.rows == expected
    assert list(found.columns) == list(ROWS[0])
    assert read_table(str(tmp_path / name), WANTED, limit=4).rows == expected[:4]
    assert read_table(str(tmp_path / name), {"chosen"}, limit=1).rows == [(1, {"chosen": " a"})]


@pytest.mark.parametrize("make", [parquet, saved], ids=["parquet", "saved"])
def test_messages_survive_every_kind(make: Callable[..., None], tmp_path: Path) -> None:
    make(tmp_path / "rows.parquet", CHATS)
    lines = write(tmp_path / "rows.jsonl", CHATS)
    tokenizer = byte_tokenizer()
    expected = ids_of(read_preferences(lines, tokenizer).rows)
    assert ids_of(read_preferences(str(tmp_path / "rows.parquet"), tokenizer).rows) == expected


def test_numbers_are_those_of_lines(tmp_path: Path) -> None:
    first, second = LINES.splitlines()[:2]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{first}\n   \n\n{second}\n\n", "utf-8")
    assert [number for number, _ in read_table(str(path), WANTED).rows] == [2, 5]


def test_numbers_run_on_through_a_folder(tmp_path: Path) -> None:
    shards(tmp_path / "data")
    notes = read_table(str(tmp_path / "data"), WANTED).notes
    assert notes[0].startswith("not read, for they are not of the split 'train': data/test-00000")
    assert notes[1:] == [
        "rows after 0 are those of data/train-00000-of-00002.parquet",
        "rows after 3 are those of data/train-00001-of-00002.parquet",
    ]
    assert read_table(str(tmp_path / "data"), WANTED, split="test").rows == list(enumerate(GIVEN, start=1))


def test_name_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(name: str, **settings: Any) -> Any:
        asked.update(settings, name=name)
        return datasets().Dataset.from_list([row | {"more": 1} for row in ROWS])

    monkeypatch.setattr(datasets(), "load_dataset", load_dataset)
    found = read_table("owner/pairs", WANTED, split="test", limit=2)
    assert found.rows == [(1, ROWS[0]), (2, ROWS[1])]
    assert list(found.columns) == [*ROWS[0], "more"]
    assert asked == {"name": "owner/pairs", "split": "test", "trust_remote_code": False}


def test_name_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach it\nmore")

    monkeypatch.setattr(datasets(), "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"owner/pairs is neither .* split 'train' \(Couldn't reach it\); give a file"):
        read_table("owner/pairs", WANTED)


@pytest.mark.parametrize(
    "name", ["json", "pandas", "missing.jsonl", "data/missing.parquet", "/no/where", "../up/x", "s3://a/b"]
)
def test_what_is_no_source_loads_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In particular none of the builders of datasets, of which `json` reads whatever the working folder holds."""
    monkeypatch.setattr(datasets(), "load_dataset", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=r"^there is no file or folder "):
        read_table(name, WANTED)


def cut(path: Path, share: float) -> None:
    data = gzip.compress(b"".join(bytes(json.dumps({"chosen": str(n * n)}), "ascii") + b"\n" for n in range(9999)))
    path.write_bytes(data[: int(share * len(data))])


def damaged(path: Path) -> None:
    cut(path, 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def folder_like_a_file(path: Path) -> None:
    (path / "rows.jsonl").mkdir(parents=True)


def saved_without_data(path: Path) -> None:
    saved(path)
    next(path.glob("*.arrow")).unlink()


def saved_and_cut(path: Path) -> None:
    saved(path)
    file = next(path.glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:400])


def parquet_cut(path: Path) -> None:
    parquet(path)
    path.write_bytes(path.read_bytes()[:-40])


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty.jsonl": (lambda path: path.touch(), "is empty"),
    "empty.parquet": (lambda path: path.touch(), "is empty"),
    "blank.jsonl": (lambda path: path.write_text("\n \n"), "holds no rows"),
    "none.json": (lambda path: path.write_text("[]"), "holds no rows"),
    "none.jsonl.gz": (lambda path: zipped(path, ""), "holds no rows"),
    "none.parquet": (lambda path: pyarrow.parquet.write_table(pyarrow.table({"chosen": []}), path), "holds no rows"),
    "cut.jsonl.gz": (lambda path: cut(path, 0.6), r"is cut short: it ends within line \d{2,}; fetch it again"),
    "header.jsonl.gz": (lambda path: cut(path, 0.0002), r"is cut short: it ends within line 1;"),
    "cut.json.gz": (lambda path: cut(path, 0.6), "is cut short"),
    "bomb.jsonl.gz": (lambda path: zipped(path, "\n" * 2**25), "unpacks to more than 200 times its size; unpack it"),
    "bomb.json.gz": (lambda path: zipped(path, "[" + " " * 2**25), "unpacks to more than 200 times its size"),
    "damaged.jsonl.gz": (damaged, "is damaged after line"),
    "plain.jsonl.gz": (lambda path: path.write_text(LINES), "is not a gzip file"),
    "rows.csv": (lambda path: path.write_text("chosen,rejected"), r"is not of a kind that is read here; give \.jsonl"),
    "rows.pkl": (lambda path: path.write_bytes(b"cos\nabort\n(tR."), "is not of a kind"),
    "array.json": (lambda path: path.write_text('[{"chosen": "a"}, '), "is not a JSON array: .* column"),
    "latin.json": (lambda path: path.write_bytes(b'["\xe9"]'), "is not a JSON array: "),
    "deep.json": (lambda path: path.write_text("[" * 200_000), "nested too deeply"),
    "text.parquet": (lambda path: path.write_text(LINES), "is not a Parquet file, or damaged"),
    "cut.parquet": (parquet_cut, "is not a Parquet file, or damaged"),
    "folder": (lambda path: path.mkdir(), "holds no data"),
    "nested": (folder_like_a_file, "holds no data"),
    "splits": (shards, r"has no files of the split 'dev'; it has: test, train"),
    "saved-splits": (both_saved, r"has no split 'dev'; it has: test, train"),
    "saved-lost": (saved_without_data, "is not a whole folder of datasets.save_to_disk"),
    "saved-cut": (saved_and_cut, "is not a whole folder of datasets.save_to_disk"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sources_are_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, message = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as told:
        read_table(str(tmp_path / name), WANTED, split="dev")
    assert "\n" not in str(told.value)
    assert str(tmp_path / name) in str(told.value)
    assert type(told.value) is ValueError


def test_damage_anywhere_in_a_parquet_file(tmp_path: Path) -> None:
    """A byte changed at random gives other rows or one sentence, and never another error."""
    parquet(tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    generator = random.Random(0)
    told = []
    for _ in range(300):
        data = bytearray(whole)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        (tmp_path / "rows.parquet").write_bytes(data)
        try:
            read_table(str(tmp_path / "rows.parquet"), WANTED)
        except ValueError as error:
            told.append(type(error))
    assert len(told) > 30
    assert set(told) == {ValueError}


def test_parquet_with_text_that_is_not_utf8(tmp_path: Path) -> None:
    values = pyarrow.array([b"good", b"\xff\xfe", b"fine"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"chosen": values}), tmp_path / "rows.parquet")
    found = read_table(str(tmp_path / "rows.parquet"), WANTED)
    assert found.rows == [(1, {"chosen": "good"}), (2, "not valid UTF-8"), (3, {"chosen": "fine"})]


def test_parquet_with_times_that_python_has_no_word_for(tmp_path: Path) -> None:
    """A row is refused where such a value is asked for, and has none where it is not."""
    days = pyarrow.array([1, 10**9], pyarrow.int32()).cast(pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.table({"chosen": ["a", "b"], "rejected": days}), tmp_path / "rows.parquet")
    (_, second) = read_table(str(tmp_path / "rows.parquet"), WANTED).rows
    assert second == (2, "not readable: days=1000000000; must have magnitude <= 999999999")
    (_, second) = read_table(str(tmp_path / "rows.parquet"), {"chosen"}, rest=True).rows
    assert second == (2, {"chosen": "b", "rejected": None})


def test_a_home_folder_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"^~nobody-at-all/rows\.jsonl begins with a home folder that cannot be found"):
        read_table("~nobody-at-all/rows.jsonl")
