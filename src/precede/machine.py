"""The machine that this runs on. Torch is imported only where it is asked."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

SIDE = 1024
"""Rows and columns of the matrices whose product measures a rate."""
LEAST_SECONDS = 0.2
"""How long products are timed, at the least."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy() -> str | None:
    """A sentence where more was running in the last minute, by the load average, than the machine has cores; else None."""
    with suppress(OSError, AttributeError):  # of a system that has no load average
        load = os.getloadavg()[0]
        if load > cores() + 0.5:
            return (
                f"the machine is busy, a load of {load:.1f} on {cores()} cores: this will take longer; costs give CPU seconds "
                "beside wall seconds"
            )
    return None


def memory() -> int:
    """Bytes of memory of the machine, or of the container (cgroup v2) where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text("utf-8").strip()).isdecimal():
        total = min(total, int(text))
    return total


def release() -> None:
    """Give back memory that nothing uses: what only cycles hold (trainers do), and on glibc what the heap keeps for later."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@cache
def matmul_rate(device: str = "cpu", threads: int | None = None) -> float:
    """FLOP/s of fp32 matrix products of 1,024 rows and columns on a device, the best of some tenths of a second.

    `threads` are those of the CPU, by default all that torch uses. 2·1024³ FLOPs a product.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        a = torch.ones(SIDE, SIDE, device=device)
        best, began = float("inf"), time.perf_counter()
        while time.perf_counter() - began < LEAST_SECONDS:
            start = time.perf_counter()
            float((a @ a)[0, 0])  # waits for the device
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2.0 * SIDE**3 / best
