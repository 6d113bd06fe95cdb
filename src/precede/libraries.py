"""transformers, trl and datasets: imported on first use (they take seconds), untyped, and silenced."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def transformers() -> Any:
    return importlib.import_module("transformers")


def trl() -> Any:
    return importlib.import_module("trl")


def gkd() -> Any:
    """TRL's generalised knowledge distillation; importing it warns that it is experimental, which is known here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("trl.experimental.gkd")


def trainer_config(name: str) -> Any:
    """TRL's class of arguments by the name of its trainer: `SFT`, `DPO`, `RLOO`, `GRPO`, `Distillation`, `GKD`."""
    return getattr(gkd() if name == "GKD" else trl(), f"{name}Config")


def datasets() -> Any:
    return importlib.import_module("datasets")


def pyarrow() -> Any:
    importlib.import_module("pyarrow.parquet")
    return importlib.import_module("pyarrow")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and the hub's client from printing bars and notices; warnings of Python are not touched."""
    logging, hub = transformers().utils.logging, importlib.import_module("huggingface_hub.utils.logging")
    verbosity, bars, hub_verbosity = logging.get_verbosity(), logging.is_progress_bar_enabled(), hub.get_verbosity()
    logging.set_verbosity_error()
    hub.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set variables of the environment, or take away those that are None, for a block."""
    before = {name: os.environ.pop(name, None) for name in values}
    os.environ.update({name: value for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def renamed() -> Iterator[None]:
    """TRL 1.16 and PEFT 0.21 use old names of gradient checkpointing, of which transformers 5 warns: not the user's affair."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`(is_)?gradient_checkpointing(_disable|_enable)?` is deprecated", FutureWarning
        )
        yield


TILES = (("trl.trainer.utils", "_CHUNKED_LOGPROB_CHUNK_SIZE"), ("trl.kernels.chunked_divergence", "VOCAB_CHUNK_SIZE"))
"""Where TRL 1.16 says how much of the vocabulary it scores at once."""


@contextmanager
def tiles(vocabulary: int) -> Iterator[None]:
    """Let TRL score tokens on tiles no wider than the vocabulary.

    It allocates tiles of 32,768 logits for each token, whatever the vocabulary: half a gigabyte a step for a batch of 256
    short rows, most of it never written. Values are the same; where a name is not there, nothing is changed.
    """
    modules = [(importlib.import_module(module), name) for module, name in TILES if importlib.util.find_spec(module)]
    before = [(module, name, getattr(module, name)) for module, name in modules if hasattr(module, name)]
    for module, name, width in before:
        setattr(module, name, min(width, vocabulary))
    try:
        yield
    finally:
        for module, name, width in before:
            setattr(module, name, width)
