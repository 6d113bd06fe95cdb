"""transformers, trl and datasets: imported on first use (they take seconds), untyped, and silenced."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def transformers() -> Any:
    return importlib.import_module("transformers")


def trl() -> Any:
    return importlib.import_module("trl")


def datasets() -> Any:
    return importlib.import_module("datasets")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing progress bars and notices; warnings of Python are not touched."""
    logging = transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
