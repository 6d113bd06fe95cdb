"""Rows of a data set as they stand in their source: a file, a folder, or a name that `datasets` knows.

Nothing that a source holds is ever run: JSON, Parquet and Arrow are read, pickles and loading scripts are not.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import sys
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from precede.data.paths import path_of
from precede.data.sentences import first_line, kind_of
from precede.libraries import datasets, quiet

LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
WHOLE = (".json", ".json.gz")
SUFFIXES = (*LINES, *WHOLE, ".parquet")
SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")
"""Words in the name of a file or folder that say which split it holds."""
ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""JSON files about a data set, in folders of `datasets`."""
NAMES_AS = ("utf-8", "surrogateescape")
"""How the names of files become bytes, as the system itself has it."""
MOST_PACKED, UNPACKED = 200, 2**24
"""How many times its size a gzip file unpacks to at most, where that is more than so many bytes. Text: about 10 times."""
BOM = b"\xef\xbb\xbf"

Fields = dict[str, Any]


@dataclass
class Table:
    """Rows with their 1-based numbers, each as its wanted fields or as the reason why it cannot be read, and all columns.

    `content` tells what was read: the SHA-256 of a file's bytes, of the names and bytes of a folder's files, and of the
    fingerprint that `datasets` has of a saved or named data set. Files are hashed while they are read: the bytes are the
    very ones that were parsed, unpacked ones of a gzip file. Where `limit` ends the reading of lines, the hash ends there too,
    and so do files that are read no more; other files are hashed whole.
    """

    rows: list[tuple[int, Fields | str]] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    content: str = ""
    digests: dict[str, Any] = field(default_factory=lambda: defaultdict(hashlib.sha256))
    """Running hashes by the name of a file in a folder, or by nothing."""


@dataclass(frozen=True)
class Wanted:
    """The columns to read: those named, or all; `rest` are the others too, a value being None where it cannot be read."""

    names: Collection[str] | None
    rest: bool = False

    def present(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.rest or self.needed(name)]

    def needed(self, name: str) -> bool:
        return self.names is None or name in self.names


def read_table(
    source: str,
    wanted: Collection[str] | None = None,
    *,
    rest: bool = False,
    split: str = "train",
    limit: int | None = None,
) -> Table:
    """The rows of a source, with the columns `wanted` of each, or all; `limit` takes the first that many rows.

    A row of which a wanted column cannot be read is a reason and no fields. `rest` reads the other columns too, and no row
    is lost for them: a value that cannot be read is None.

    A source is a file (.jsonl, .ndjson, .json: an array or lines, each also with .gz; .parquet), a folder that
    `datasets.save_to_disk` wrote or that holds such files, or a name owner/name of `datasets`. Rows are numbered as lines
    of a file of lines (blank lines are no rows but count as lines), as elements or rows elsewhere, and on through the
    files of a folder, which are read in the order of their names. `split` is for names and folders. Raises ValueError
    with one sentence for a source that is missing, empty, damaged, cut short or of a kind that is not read.
    """
    table, columns = Table(), Wanted(wanted, rest)
    path = path_of(source)
    try:
        if path.is_dir():
            rows = _folder(path, split, columns, table)
        elif path.is_file():
            rows = _file(path, columns, table)
        else:
            rows = _named(source, split, columns, table)
        table.rows += itertools.islice(rows, limit if limit is None else min(limit, sys.maxsize))
    except (OSError, pyarrow.ArrowException) as error:  # no permission, a disk that fails, a damaged folder of datasets
        raise ValueError(f"{source} cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from None
    if not table.rows:
        raise ValueError(f"{source} holds no rows; give a source with at least one")
    table.content = _content(table)
    return table


def _content(table: Table) -> str:
    hashes = {name: digest.hexdigest() for name, digest in table.digests.items()}
    if list(hashes) == [""]:
        return str(hashes[""])
    return hashlib.sha256("".join(f"{name}\0{one}\n" for name, one in hashes.items()).encode(*NAMES_AS)).hexdigest()


def _file(path: Path, wanted: Wanted, table: Table, name: str = "") -> Iterator[tuple[int, Fields | str]]:
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path} is not of a kind that is read here; give {', '.join(SUFFIXES)}, or a folder")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; was it written to the end?")
    if path.name.endswith(".parquet"):
        return _parquet(path, wanted, table, table.digests[name])
    numbered = (_lines if path.name.endswith(LINES) else _array_or_lines)(path, table.digests[name])
    return ((number, _fields(value, wanted, table)) for number, value in numbered)


def _fields(value: Any, wanted: Wanted, table: Table) -> Fields | str:
    if isinstance(value, bytes):
        try:
            value = json.loads(value.decode("utf-8"))
        except UnicodeDecodeError:
            return "not valid UTF-8"
        except RecursionError:
            return "not valid JSON: nested too deeply"
        except ValueError as error:  # a JSONDecodeError, or a number with thousands of digits
            return f"not valid JSON: {first_line(error)}"
    if not isinstance(value, dict):
        return f"not a JSON object: {kind_of(value)}"
    table.columns |= dict.fromkeys(value)
    return {name: value[name] for name in wanted.present(value)}


def _lines(path: Path, digest: Any) -> Iterator[tuple[int, bytes]]:
    with _opened(path) as file:
        yield from _rows(_whole_lines(file, path, digest))


def _rows(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers; a byte order mark is not part of the first."""
    for number, line in lines:
        text = (line.removeprefix(BOM) if number == 1 else line).strip()
        if text:
            yield number, text


def _array_or_lines(path: Path, digest: Any) -> Iterator[tuple[int, Any]]:
    with _opened(path) as file:
        data = b"".join(line for _, line in _whole_lines(file, path, digest)).removeprefix(BOM)
    if not data.lstrip().startswith(b"["):
        return _rows(enumerate(data.split(b"\n"), start=1))
    try:
        return enumerate(json.loads(data.decode("utf-8")), start=1)
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON array: {first_line(error)}; mend it, or write a row a line") from None


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if path.name.endswith(".gz") and not zipped:
        raise ValueError(f"{path} is not a gzip file; fetch it again, or rename it without .gz if it is plain text")
    if not zipped:
        return path.open("rb")
    size, most = 0, max(UNPACKED, MOST_PACKED * path.stat().st_size)
    with gzip.open(path) as unpacked, suppress(OSError, EOFError, zlib.error):  # damage is told with its line, below
        while piece := unpacked.read(2**20):
            size += len(piece)
            if size > most:
                raise ValueError(
                    f"{path} unpacks to more than {MOST_PACKED} times its size; unpack it if it is meant so"
                )
    return gzip.open(path)  # type: ignore[return-value]


def _whole_lines(file: IO[bytes], path: Path, digest: Any) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, each hashed as it is handed on.

    A gzip file that ends early or is damaged is an error and no end.
    """
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            yield number, line
    except EOFError:
        raise ValueError(f"{path} is cut short: it ends within line {number + 1}; fetch it again") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged after line {number}: {first_line(error)}; fetch it again") from None


def _parquet(path: Path, wanted: Wanted, table: Table, digest: Any) -> Iterator[tuple[int, Fields | str]]:
    data = path.read_bytes()  # packed, and so a small part of what its rows take
    digest.update(data)
    try:
        with pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)) as file:
            table.columns |= dict.fromkeys(file.schema_arrow.names)
            present = wanted.present(file.schema_arrow.names)
            yield from enumerate(_arrow(file.iter_batches(1000, columns=present), present, wanted), start=1)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a Parquet file, or damaged: {first_line(error)}; fetch it again") from None


def _arrow(batches: Iterable[Any], present: Collection[str], wanted: Wanted) -> Iterator[Fields | str]:
    for batch in batches:
        columns = {name: batch.column(name) for name in present}
        for index in range(batch.num_rows):
            try:
                yield {
                    name: column[index].as_py() if wanted.needed(name) else _if_readable(column[index])
                    for name, column in columns.items()
                }
            except UnicodeDecodeError:
                yield "not valid UTF-8"
            except Exception as error:  # of any kind: a time that Python has no word for
                yield f"not readable: {first_line(error)}"


def _if_readable(value: Any) -> Any:
    try:
        return value.as_py()
    except Exception:  # of any kind: not UTF-8, a time that Python has no word for
        return None


def _folder(path: Path, split: str, wanted: Wanted, table: Table) -> Iterator[tuple[int, Fields | str]]:
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        dataset = _saved(path, split)
        for file in (Path(entry["filename"]) for entry in dataset.cache_files):
            with file.open("rb") as handle:
                table.digests[file.name].update(hashlib.file_digest(handle, "sha256").digest())
        return _dataset(dataset, wanted, table)
    files = sorted(
        file
        for file in path.rglob("*")
        if file.name.endswith(SUFFIXES) and file.name not in ABOUT and file.is_file()
        if not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise ValueError(f"the folder {path} holds no data; expected files that end with {', '.join(SUFFIXES)}")
    splits = {name for file in files for name in _splits(file, path)}
    if splits and split not in splits:
        raise ValueError(f"the folder {path} has no files of the split '{split}'; it has: {', '.join(sorted(splits))}")
    unread = [file for file in files if splits and split not in _splits(file, path)]
    if unread:
        names = ", ".join(str(file.relative_to(path)) for file in unread)
        table.notes.append(f"not read, for they are not of the split '{split}': {names}")
        files = [file for file in files if split in _splits(file, path)]
    return _files(files, path, wanted, table)


def _files(files: list[Path], path: Path, wanted: Wanted, table: Table) -> Iterator[tuple[int, Fields | str]]:
    before = 0
    for file in files:
        if len(files) > 1:
            table.notes.append(f"rows after {before} are those of {file.relative_to(path)}")
        last = 0
        for last, fields in _file(file, wanted, table, file.relative_to(path).as_posix()):
            yield before + last, fields
        before += last


def _splits(file: Path, path: Path) -> set[str]:
    """The splits that the file's name says it holds, or else its folder's."""
    for part in reversed(file.relative_to(path).parts):
        if splits := set(re.split(r"[^a-z]+", part.lower())) & set(SPLITS):
            return splits
    return set()


def _saved(path: Path, split: str) -> Any:
    try:
        saved = datasets().load_from_disk(str(path))
    except Exception as error:  # of any kind: what lies in the folder is not ours
        raise ValueError(f"{path} is not a whole folder of datasets.save_to_disk: {first_line(error)}") from None
    if not isinstance(saved, datasets().DatasetDict):
        return saved
    if split not in saved:
        raise ValueError(f"the folder {path} has no split '{split}'; it has: {', '.join(saved)}")
    return saved[split]


def _named(source: str, split: str, wanted: Wanted, table: Table) -> Iterator[tuple[int, Fields | str]]:
    # a name without an owner may be one of datasets' builders, which read whatever the working folder holds
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) or source.endswith(SUFFIXES):
        raise ValueError(f"there is no file or folder {source}; give one, or a name owner/name of a data set")
    try:
        with quiet():
            dataset = datasets().load_dataset(source, split=split, trust_remote_code=False)
    except Exception as error:  # of any kind: the network, the hub and every builder have their own
        raise ValueError(
            f"{source} is neither a file nor a folder, nor a data set that can be loaded here with the split '{split}' "
            f"({first_line(error)}); give a file, or a folder that datasets.save_to_disk wrote"
        ) from None
    return _dataset(dataset, wanted, table)


def _dataset(dataset: Any, wanted: Wanted, table: Table) -> Iterator[tuple[int, Fields | str]]:
    table.columns |= dict.fromkeys(dataset.column_names)
    table.digests[""].update(str(dataset._fingerprint).encode())
    present = wanted.present(dataset.column_names)
    if not present:
        return ((number, {}) for number in range(1, len(dataset) + 1))
    batches = dataset.select_columns(present).with_format("arrow").iter(1000)
    return enumerate(_arrow(batches, present, wanted), start=1)
