"""Where runs leave what they make: no run writes over what another one has left.

A folder is known by what was asked for, which stands in it: recipe.yaml of a comparison, audit.yaml of an audit. The same again
goes there again; so a killed run goes on where it was.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from precede.files import write

KINDS = {"recipe.yaml": "a comparison", "audit.yaml": "an audit"}
"""The file that says what was asked for, and of what."""
FOLDERS = ("figures", "tables")
FILES = (*KINDS, "results.json", "report.html", "audit.json", "audit.html", "pairs.parquet", "refused.jsonl")
"""What runs leave."""


def choose(kind: str, asked: Mapping[str, Any], named: Path | None, default: Path) -> tuple[Path, list[str]]:
    """The folder of a run that is `asked` for, and a note where it is not the `default`. Nothing is written.

    A folder that somebody `named` is taken; else `default`, or the first of `default`-2, `default`-3 … that no other run
    has. `kind` is one of `KINDS`. Raises ValueError where the named one is another run's, or cannot be written.
    """
    if named is None:
        numbered = (default.with_name(f"{default.name}-{number}") for number in itertools.count(2))
        out = next(path for path in itertools.chain([default], numbered) if _other(path, kind, asked) is None)
        check_place(out)
        return out, [f"{default} holds {_other(default, kind, asked)}; this one goes to {out}"] * (out != default)
    check_place(named)
    if (other := _other(named, kind, asked)) is not None:
        raise ValueError(f"{named} holds {other}; name another folder with --out, or move that one away")
    return named, []


def check_place(out: Path) -> None:
    """Raise ValueError where a folder cannot be made or written into, as far as that is known before it is. Nothing is left."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder with --out")
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryDirectory(prefix=".precede-", dir=above).cleanup()
    except OSError as error:
        raise _unwritable(out, error) from None
    for name in (*FOLDERS, *FILES):
        if (out / name).exists() and (out / name).is_dir() != (name in FOLDERS):
            there, written = ("file", "folder") if name in FOLDERS else ("folder", "file")
            raise ValueError(f"{out / name} is a {there} where a {written} goes; move it away, or name another --out")


def claim(out: Path, kind: str, asked: Mapping[str, Any]) -> None:
    """Make the folder and write into it what was asked for. Raises ValueError where that cannot be done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
        write(out / kind, _text(asked))
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> ValueError:
    return ValueError(f"the output folder {out} cannot be written ({error.strerror}); name another with --out")


def _other(folder: Path, kind: str, asked: Mapping[str, Any]) -> str | None:
    """What other run a folder holds, and how it differs from what is asked for; None where it holds none."""
    there = next((name for name in KINDS if (folder / name).is_file()), None)
    if there is None:
        return None if not folder.exists() or folder.is_dir() else "something that is no folder"
    text = (folder / there).read_text("utf-8", "replace")
    if there != kind:
        return KINDS[there]
    if text == _text(asked):
        return None
    try:
        before, now = _flat(yaml.safe_load(text)), _flat(yaml.safe_load(_text(asked)))
    except yaml.YAMLError:
        return f"{KINDS[kind]} whose {kind} cannot be read"
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not names:  # the same, written otherwise
        return None
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{KINDS[kind]} that differs in {', '.join(names[:3])}{more}"


def _text(asked: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(asked), sort_keys=False, allow_unicode=True))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Settings by their dotted paths."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        key: one
        for name, inner in value.items()
        for key, one in _flat(inner, f"{path}.{name}" if path else str(name)).items()
    }
