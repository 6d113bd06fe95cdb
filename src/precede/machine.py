"""The machine that this runs on. Torch is imported only where it is asked."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import pickle
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

SIDE = 1024
"""Rows and columns of the matrices whose product measures a rate."""
LEAST_SECONDS = 0.3
"""How long products are timed, at the least."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


SPINS = "3000"
"""Turns that a thread waits awake before it sleeps: `benchmarks/waiting.py`."""


def wait_asleep() -> None:
    """Let threads that wait for one another fall asleep soon, unless the user has said how they are to wait.

    It is read when torch is imported, here or in a process that is started. Threads that spin take the cores from other
    jobs; threads that sleep at once cost small models a quarter of their time on a quiet machine.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT=SPINS)


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


NO_MEMORY = (os.strerror(errno.ENOMEM), "out of memory", "allocate memory", "failed to map segment", "start new thread")
"""What torch, the system and its loader say where there is no memory, as errors of many kinds."""


def no_memory(error: BaseException | None) -> str | None:
    """One clause where an error, or one that it came from, is that there was no memory; None for any other."""
    while error is not None:
        said = str(error)
        if isinstance(error, MemoryError) or any(words in said for words in NO_MEMORY):
            what = " ".join(said.split()) or type(error).__name__
            return (
                f"there is not enough memory ({what}); give it more, or take fewer --workers, smaller batches or models"
            )
        error = error.__cause__ or error.__context__
    return None


LEAST_ADDRESSES = 3 * 2**30
"""Bytes of addresses that the libraries take, in round numbers: torch with TRL 2.4 GB."""


def check_limit() -> None:
    """Raise ValueError where a limit of addresses (`ulimit -v`) is too low for the libraries, which crash or spin under it."""
    with suppress(ImportError):  # of a system without such limits
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if 0 <= limit < LEAST_ADDRESSES:
            raise ValueError(
                f"the limit of this shell on addresses is {limit / 2**30:.1f} GiB, and the libraries alone take "
                f"{LEAST_ADDRESSES / 2**30:.0f}; raise it with ulimit -v"
            )


def memory_of(device: str) -> int:
    """Bytes of one GPU where `device` is cuda, else of the machine."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if device == "cuda" else memory()


WATCH_SECONDS = 1.0


def begin(main: int, setup: bytes) -> None:
    """The first act of a worker process: to end with the process `main`, however and whenever that ends (a kill tells nobody).

    Only then `setup`, a pickled call, is read, which imports what takes seconds and hundreds of megabytes. A worker that
    finds no memory for that is gone without a word of its own: the main process says what a lost worker means.
    """

    def watch() -> None:
        while os.getppid() == main:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        pickle.loads(setup)()
    except Exception as error:
        if no_memory(error):
            os._exit(1)
        raise


def release() -> None:
    """Give back memory that nothing uses: what only cycles hold (trainers do), and on glibc what the heap keeps for later."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@cache
def matmul_rate(device: str = "cpu", threads: int | None = None) -> float:
    """FLOP/s of fp32 matrix products of 1,024 rows and columns on a device, as busy as it is now: some tenths of a second.

    `threads` are those of the CPU, by default all that torch uses. A product is 2·1024³ FLOPs.
    """
    import torch

    before, products = torch.get_num_threads(), 0
    torch.set_num_threads(threads or before)
    try:
        a = torch.ones(SIDE, SIDE, device=device)
        float((a @ a)[0, 0])
        began = time.perf_counter()
        while (seconds := time.perf_counter() - began) < LEAST_SECONDS:
            float((a @ a)[0, 0])  # waits for the device
            products += 1
    finally:
        torch.set_num_threads(before)
    return 2.0 * SIDE**3 * products / seconds
