"""Random streams by name, for libraries that only know the global random state.

`generate` and the TRL trainers take no generator. A block under `seeded` draws from a stream of its own, and the global
states of Python, NumPy and torch are afterwards what they were.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream(seed: int, name: str, purpose: str) -> int:
    """A 32-bit seed from (seed, stage name, purpose) alone, so that both orders share their draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{purpose}".encode()).digest()[:4], "big")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with all global random states set to `seed`; restore them afterwards.

    On CUDA only the current device is covered; the states of MPS are seeded but not restored.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
