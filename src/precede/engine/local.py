"""The local engine: runs a plan's stages in a pool of processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from precede.plan import Plan
from precede.store import Stage, Store, canonical_json
from precede.worlds.world import World, load_world

EXPECTED = (RuntimeError, ValueError, OSError, SafetensorError)
"""What may go wrong in a stage for reasons of data or machine; anything else is a fault of ours and shows its traceback."""
WATCH_SECONDS = 1.0


class StageFailed(RuntimeError):
    """A stage stopped; the message names the stage and the reason. Finished stages are kept."""


def default_workers(world: World) -> int:
    """One worker per share of the cores that a stage of this world uses."""
    return max(1, _cores() // (world.threads or _cores()))


def run_plan(
    plan: Plan,
    world: World,
    store: Store,
    workers: int,
    progress: Callable[[list[Stage]], None],
) -> None:
    """Run the stages that the store lacks, parents first; `progress` hears of each call that finished.

    Raises StageFailed. Whatever finished before a failure, an interrupt or a kill stays in the store.
    """
    calls = plan.calls(world, lambda stage: not store.has(stage))
    if not calls:
        return
    threads = world.threads or max(1, _cores() // workers)
    if workers == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for call in sorted(calls, key=lambda call: len(call[0].lineage())):
                try:
                    _run_call(call, store.root)
                except EXPECTED as error:
                    raise _failure(call, error) from error
                progress(call)
        finally:
            torch.set_num_threads(before)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(threads,)
    )
    try:
        _run_in_pool(pool, calls, store, workers, progress)
    finally:
        pool.shutdown(cancel_futures=True)


def _run_in_pool(
    pool: ProcessPoolExecutor,
    calls: list[list[Stage]],
    store: Store,
    workers: int,
    progress: Callable[[list[Stage]], None],
) -> None:
    unfinished = {stage.key for call in calls for stage in call}
    waiting = list(calls)
    running: dict[Future[None], list[Stage]] = {}
    while waiting or running:
        ready = [call for call in waiting if not any(stage.parent and stage.parent.key in unfinished for stage in call)]
        try:
            for call in ready[: max(0, 2 * workers - len(running))]:
                waiting.remove(call)
                running[pool.submit(_run_call, call, store.root)] = call
        except BrokenProcessPool:
            raise _killed() from None
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            call = running.pop(future)
            try:
                future.result()
            except BrokenProcessPool:
                raise _killed() from None
            except EXPECTED as error:
                raise _failure(call, error) from error
            unfinished -= {stage.key for stage in call}
            progress(call)


_worlds: dict[str, World] = {}
"""The worlds of this process, each made once."""


def _start_worker(threads: int) -> None:
    """Set up a worker: its threads, and its end with the main process, however that ended (a kill tells nobody)."""
    torch.set_num_threads(threads)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_call(call: list[Stage], root: Path) -> None:
    config: Mapping[str, Any] = call[0].world
    name = canonical_json(config)
    if name not in _worlds:
        _worlds[name] = load_world(config)
    _worlds[name].run(call, Store(root))


def _killed() -> StageFailed:
    return StageFailed(
        "a worker process was killed (often for lack of memory); finished stages are kept: run the same command again to "
        "go on, with fewer --workers if memory is short"
    )


def _failure(call: list[Stage], error: Exception) -> StageFailed:
    reason = " ".join(str(error).split()) or type(error).__name__
    return StageFailed(f"stage {call[0].label()} stopped: {reason}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
