"""The Hugging Face hub: uploading a built model, and the licence that a card of a model or a data set states."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Literal

import yaml

from precede.data.paths import path_of
from precede.data.sentences import first_line
from precede.models.load import BUNDLED, BUNDLED_LICENCE

NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
"""owner/name."""


def push(folder: Path, repository: str) -> str:
    """Upload `folder` to `repository` (owner/name), made private where it is not there; returns its address.

    Raises ValueError where the hub cannot be reached or refuses; the folder stays as it is.
    """
    hub = importlib.import_module("huggingface_hub").HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(folder_path=str(folder), repo_id=repository, commit_message="Built by precede")
    except Exception as error:  # the client raises what its transport raises
        raise ValueError(
            f"{repository} could not be uploaded ({first_line(error)}); the model is in {folder}: log in with `hf auth login`, "
            f"then run `hf upload {repository} {folder}`"
        ) from None
    return f"https://huggingface.co/{repository}"


def is_id(name: str | None) -> bool:
    """Whether a name is one of the hub, and no path that is there."""
    return name is not None and NAME.fullmatch(name) is not None and not Path(name).exists()


def licence(name: str, kind: Literal["model", "dataset"]) -> str | None:
    """The licence that the card of a model or a data set states in its head; None where there is none to be read.

    The card is README.md in a folder, beside a file, or in the hub's cache; the hub is not asked.
    """
    if name == BUNDLED:
        return BUNDLED_LICENCE
    path = path_of(name)
    card: Any = (path if path.is_dir() else path.parent) / "README.md" if path.exists() else None
    if is_id(name):
        card = importlib.import_module("huggingface_hub").try_to_load_from_cache(name, "README.md", repo_type=kind)
    try:
        text = Path(card).read_text("utf-8") if Path(card).is_file() else ""  # no pipe, which is read for ever
        head = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        stated = yaml.safe_load(head[1]).get("license") if head else None
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return None
    stated = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    return stated if isinstance(stated, str) and re.fullmatch(r"[\w.+-]+", stated) else None
