"""Uploading a built model to the Hugging Face hub."""

from __future__ import annotations

import importlib
from pathlib import Path

from precede.data.sentences import first_line


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
