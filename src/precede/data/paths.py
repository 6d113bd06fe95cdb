"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

LONGEST = 255
"""Characters of a file's name."""


def path_of(name: str | Path) -> Path:
    """The path that a text names, `~` and `~user` being home folders. Raises ValueError where there is no such home or name."""
    if max(map(len, str(name).split("/")), default=0) > LONGEST:
        raise ValueError(f"{str(name)[:40]}… has a part of more than {LONGEST} characters, and no file has such a name")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ValueError(f"{name} begins with a home folder that cannot be found here; write the whole path") from None
