"""What tells the content of models and data apart, so that a stage is taken from the store only if they are the same."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from precede.models.load import folder, read_config


def fingerprint(model: str) -> str:
    """What tells a model's content: a hash of a folder's files, the commit of a Hugging Face id."""
    place = folder(model)
    if not isinstance(place, Path):
        return str(getattr(read_config(model), "_commit_hash", None) or model)
    return file_hash([path for path in sorted(place.rglob("*")) if path.is_file()], place)


def file_hash(paths: Sequence[Path], root: Path) -> str:
    """SHA-256 over names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def data_fingerprint(source: str) -> str:
    """The same of a data file or folder; a `datasets` name stands for itself."""
    place = Path(source).expanduser()
    if place.is_file():
        return file_hash([place], place.parent)
    if place.is_dir():
        return file_hash([path for path in sorted(place.rglob("*")) if path.is_file()], place)
    return source


def code_fingerprint(spec: str) -> str:
    """The same of the file of a function `module:function` that was imported; what that file imports is not seen."""
    file = getattr(sys.modules.get(spec.partition(":")[0]), "__file__", None)
    return spec if file is None else file_hash([Path(file)], Path(file).parent)
