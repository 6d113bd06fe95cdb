"""Folders that can say whether they are whole: `SHA256SUMS`, in the format that `sha256sum -c` reads, is written last."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHECKSUMS = "SHA256SUMS"


def seal(folder: Path) -> list[Path]:
    """Write the checksums of everything in a folder; they appear by one rename. Returns the files that they speak of."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = "".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    scratch = folder / f".{CHECKSUMS}"
    scratch.write_text(sums, "ascii")
    scratch.rename(folder / CHECKSUMS)
    return files


def is_sealed(folder: Path) -> bool:
    return (folder / CHECKSUMS).is_file()


def damage(folder: Path) -> str | None:
    """None for a folder that is as it was when it was sealed; else one clause that says what is wrong."""
    try:
        lines = (folder / CHECKSUMS).read_text("ascii").splitlines()
    except (OSError, ValueError):
        return f"{CHECKSUMS} cannot be read"
    listed = {}
    for line in lines:
        digest, separator, name = line.partition("  ")
        if not separator:
            return f"{CHECKSUMS} is malformed"
        listed[name] = digest
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS}
    if difference := present ^ set(listed):
        return f"files are missing or extra: {', '.join(sorted(difference))}"
    changed = (name for name, digest in listed.items() if _sha256(folder / name) != digest)
    return next((f"{name} does not match its checksum" for name in changed), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
