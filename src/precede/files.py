"""Files that a run leaves: where they are kept, and how they are written, which is whole by one rename; and folders that can
say whether they are whole: `SHA256SUMS`, in the format that `sha256sum -c` reads, is written last."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKSUMS = "SHA256SUMS"
HOST = socket.gethostname().replace("@", "_").replace("/", "_")


def cache_folder() -> Path:
    """Where stages and models are kept: $PRECEDE_CACHE, or ~/.cache/precede. Raises ValueError where there is no home."""
    try:
        return Path(os.environ.get("PRECEDE_CACHE") or Path.home() / ".cache" / "precede")
    except RuntimeError:
        raise ValueError(
            "this user has no home folder to keep stages and models in; set HOME, or PRECEDE_CACHE to a folder of yours"
        ) from None


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A free name beside `path`, for a file or folder that is renamed to `path` when it is whole; what is not goes.

    What processes that were killed left under such names goes first.
    """
    remove_left(path)
    made = path.with_name(f".{path.name}.{HOST}@{os.getpid()}")
    try:
        yield made
    finally:
        _remove(made)


def remove_left(path: Path) -> None:
    """Remove what killed processes of this machine left of `path` in their scratch."""
    begins = f".{path.name}.{HOST}@"
    for left in path.parent.iterdir() if path.parent.is_dir() else ():
        pid = left.name.removeprefix(begins)
        if left.name.startswith(begins) and pid.isdecimal() and not alive(int(pid)):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except OSError as error:  # no permission to signal it: it is another user's, and alive
        return isinstance(error, PermissionError)
    return True


def write(path: Path, content: str | bytes) -> None:
    """Write a file that appears whole: UTF-8, and half of a surrogate pair, which is no character, as its escape."""
    with scratch(path) as made:
        made.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))
        made.replace(path)


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
