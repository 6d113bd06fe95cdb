"""What tells the content of models and files apart, so that a stage is taken from the store only if they are the same."""

from __future__ import annotations

import hashlib
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
