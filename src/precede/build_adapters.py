"""Adapters that a build is given in place of models: each is merged with its own base, into the store, before all else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from precede.build_recipe import BuildRecipe
from precede.models.adapters import base_of, is_adapter, merged
from precede.models.fingerprints import fingerprint
from precede.models.load import load_tokenizer, save
from precede.store import Stage, Store, Writer

VERSION = 1
"""Raised whenever merging would give other weights."""


def given_adapters(recipe: BuildRecipe) -> dict[str, Stage]:
    """Those models of the recipe that are adapter folders, each with the entry of the store that it becomes.

    The entry is named by the contents of adapter and base. Raises ValueError where an adapter names no base, or one that is
    not there, or where a stage would keep an adapter of its own on one of them: its base would be an entry of the store.
    """
    settings = recipe.settings
    student = None if settings.student is None else settings.student.model
    found = {}
    for name in dict.fromkeys(model for model in (settings.teacher, student) if model is not None):
        if not is_adapter(Path(name).expanduser()):
            continue
        try:
            base = base_of(Path(name).expanduser())
            if is_adapter(Path(base).expanduser()):
                raise ValueError(f"its base {base} is an adapter itself; merge the two and give the result")
            config = {"adapter": fingerprint(name), "base": fingerprint(base)}
        except ValueError as error:
            raise ValueError(f"the adapter {name} cannot be merged: {error}") from None
        found[name] = Stage("merged", "merged", {"kind": "build"}, config, None, (), VERSION)
    last, stage = recipe.sequence()[-1]
    trained = student or settings.teacher  # where an adapter may be kept; see `build_recipe`
    if trained in found and stage.lora is not None and stage.lora.adapter == "keep":
        raise ValueError(
            f"{last}.lora.adapter is 'keep', but {trained} is an adapter itself, which is merged with its base first, and "
            "nobody else has the result; set it to merge"
        )
    return found


def merge(name: str, writer: Writer) -> None:
    """Fill an entry of the store with the adapter `name` and its base as one model. Raises ValueError if they do not fit."""
    adapter = Path(name).expanduser()
    base = base_of(adapter)
    own = any(adapter.glob("tokenizer*"))
    save(merged(base, adapter), load_tokenizer(adapter if own else base), writer.folder / "model")


def places(
    adapters: dict[str, Stage], store: Store, make: Callable[[Stage, Callable[[Writer], None]], None]
) -> dict[str, str]:
    """By the names of `adapters`, the folders of their merged models; `make` fills entries that are not there."""
    for name, stage in adapters.items():
        make(stage, lambda writer, name=name: merge(name, writer))  # type: ignore[misc]
    return {name: str(store.folder(stage) / "model") for name, stage in adapters.items()}
