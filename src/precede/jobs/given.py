"""What scripts hand over where the command line has paths: rows, loaded models, functions. Each becomes a file, or names one.

Workers, keys and recipes know files only. A file has its content in its name and lies in the cache, once.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from precede.data.sentences import first_line
from precede.files import cache_folder, scratch
from precede.libraries import pyarrow, quiet
from precede.models.facts import file_hash, fingerprint

ROWS = ("data", "source", "held_out_source", "completions")
"""Settings that are rows: a path, a list of mappings, or a `datasets.Dataset`."""


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe with a path or name for each value that is none. Raises ValueError for what cannot have one."""
    plain: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            plain[name] = settings(value)
        elif name in ROWS:
            plain[name] = rows(value)
        elif callable(value) and name == "reward":
            plain[name] = function(value)
        else:
            plain[name] = model(value)
    return plain


def rows(value: Any) -> Any:
    """The path of rows: of a list of mappings a JSONL file, of a `datasets.Dataset` a Parquet file; others as `model`."""
    if isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
        return _kept("rows.jsonl", lambda path: path.write_text("".join(map(_line, value)), "utf-8"))
    if isinstance(value, Mapping):
        raise ValueError(f"the data are a {type(value).__name__}; give one split, a path, or a list of rows")
    if hasattr(value, "with_format"):
        return _kept("rows.parquet", lambda path: pyarrow().parquet.write_table(value.with_format("arrow")[:], path))
    return model(value)


def model(value: Any) -> Any:
    """The folder of a loaded pair of model and tokenizer, saved as it is; a path as a text; anything else as it is."""
    if isinstance(value, PathLike):
        return os.fspath(value)
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(hasattr(one, "save_pretrained") for one in value)
    ):
        return value
    network, tokenizer = value

    def save(path: Path) -> None:
        path.mkdir()
        with quiet():
            network.save_pretrained(path)
            tokenizer.save_pretrained(path)

    return _kept("model", save)


def function(value: Callable[..., Any]) -> str:
    """`file.py:name` of a function that stands in a file which can be imported anywhere."""
    name, module = getattr(value, "__qualname__", ""), getattr(value, "__module__", "__main__")
    try:
        path = inspect.getsourcefile(value)
    except TypeError:
        path = None
    if not name.isidentifier() or module == "__main__" or path is None or not Path(path).is_file():
        raise ValueError(
            f"the reward {name or value!r} stands in this script or session, where worker processes cannot have it; put it "
            "into a file of its own and give 'file.py:function', or import it from there"
        )
    return f"{Path(path).resolve()}:{name}"


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _kept(name: str, write: Callable[[Path], Any]) -> str:
    """The path in the cache of what `write` writes, known by its content. Raises ValueError where it cannot be written."""
    shelf = cache_folder() / "given"
    shelf.mkdir(parents=True, exist_ok=True)
    with scratch(shelf / name) as made:
        written = made / name
        try:
            made.mkdir()
            write(written)
        except Exception as error:  # of torch, datasets or json, each with kinds of its own
            what = "the model that was given" if name == "model" else "the rows that were given"
            raise ValueError(f"{what} cannot be written to {shelf}: {first_line(error)}") from None
        content = fingerprint(str(written)) if written.is_dir() else file_hash([written], written.parent)
        kept = shelf / content[:24] / name
        kept.parent.mkdir(exist_ok=True)
        if not kept.exists():
            written.rename(kept)
    return str(kept)


Models = str | PathLike[str] | tuple[Any, Any] | Sequence[str | PathLike[str] | tuple[Any, Any]]


def models(value: Models) -> list[Any]:
    """Each of one or several models as `model` gives it."""
    single = model(value)
    return [single] if isinstance(single, str) else [model(one) for one in single]
