"""precede puts the stages of post-training in the right order: align first, then distil (arXiv 2509.23667)."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """`precede.audit(...)`, imported on first use: it takes seconds."""
    if name == "audit":
        return importlib.import_module("precede.audit")
    raise AttributeError(f"module 'precede' has no attribute '{name}'")
