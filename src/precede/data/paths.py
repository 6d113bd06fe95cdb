"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path


def path_of(name: str | Path) -> Path:
    """The path that a text names, `~` and `~user` being home folders. Raises ValueError where there is no such home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ValueError(f"{name} begins with a home folder that cannot be found here; write the whole path") from None
