"""The local engine: nodes run in a pool of processes on this machine, or in this one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from precede.engine import Listener, StageFailed, perform, waits
from precede.machine import WATCH_SECONDS, begin, cores, no_memory, wait_asleep
from precede.plan import Node, Plan
from precede.store import Store
from precede.worlds.world import World

EXPECTED = (RuntimeError, ValueError, OSError, MemoryError, SafetensorError)
"""What may go wrong in a stage for reasons of data or machine; anything else is a fault of ours and shows its traceback."""


def allowed(threads: int) -> int:
    """So many threads, or those that OMP_NUM_THREADS allows where that is less."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(asked)) if asked.isdecimal() and int(asked) else threads


class Local:
    """Runs `workers` calls at a time; by default as many as the cores allow by what the nodes need."""

    def __init__(self, plan: Plan, worlds: Sequence[World], workers: int | None = None) -> None:
        needs = [worlds[node.variant].needs(node) for node in plan.nodes]
        shares = [cores() if need.threads is None else need.threads for need in needs]
        alone = any(need.gpus for need in needs)
        self.workers = workers or (1 if alone else max(1, cores() // max(shares, default=1)))
        fixed = max((need.threads or 0 for need in needs), default=0)
        self.threads = fixed or allowed(max(1, cores() // self.workers))

    def run(self, plan: Plan, worlds: Sequence[World], store: Store, listener: Listener) -> None:
        calls = plan.calls(worlds[0], lambda node: not store.has(node))
        run = self._run_here if self.workers == 1 else self._run_in_pool
        run(plan, calls, worlds, store, listener)

    def _run_here(
        self, plan: Plan, calls: list[list[Node]], worlds: Sequence[World], store: Store, listener: Listener
    ) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        call_of = {node.key: call for call in calls for node in call}

        def run(node: Node) -> None:
            """Run the call of a node if it has not run, and before it those of all that its nodes need."""
            call = call_of.get(node.key, ())
            for one in call:
                del call_of[one.key]
            for needed in (needed for one in call for needed in one.edges.values()):
                run(needed)
            if call:
                if (sentence := waits(call, store)) is not None:
                    listener.tell(sentence)
                with _named(call):
                    told = perform(call, worlds[call[0].variant], store, listener.progress)
                for sentence in told:
                    listener.tell(sentence)

        try:
            for node in plan.nodes:
                run(node)
                listener.finished(node)
        finally:
            torch.set_num_threads(before)

    def _run_in_pool(
        self, plan: Plan, waiting: list[list[Node]], worlds: Sequence[World], store: Store, listener: Listener
    ) -> None:
        unfinished = {node.key for call in waiting for node in call}
        for node in plan.nodes:
            if node.key not in unfinished:
                listener.finished(node)
        if not waiting:
            return
        running: dict[Future[list[str]], list[Node]] = {}
        told: set[str | None] = set()
        before, setup = multiprocessing.active_children(), partial(_set_up, self.threads, list(worlds))
        context, given = multiprocessing.get_context("spawn"), (os.getpid(), pickle.dumps(setup))
        with _bare():
            pool = ProcessPoolExecutor(self.workers, context, begin, given)
        wait_asleep()  # the workers, that is
        try:
            while waiting or running:
                ready = [call for call in waiting if not any(_before(node, plan) & unfinished for node in call)]
                busy = None
                for call in ready:
                    if len(running) >= 2 * self.workers:
                        break
                    if (sentence := waits(call, store)) is not None:
                        busy = sentence
                        continue
                    waiting.remove(call)
                    with _bare():
                        running[pool.submit(_run_call, call, store.root)] = call
                if not running and busy not in told:
                    told.add(busy)
                    listener.tell(str(busy))
                if not running:
                    time.sleep(WATCH_SECONDS)
                for future in wait(running, WATCH_SECONDS if busy else None, FIRST_COMPLETED).done:
                    call = running.pop(future)
                    with _named(call):
                        for sentence in future.result():
                            listener.tell(sentence)
                    unfinished -= {node.key for node in call}
                    for node in call:
                        listener.finished(node)
        except BrokenProcessPool:
            raise StageFailed(
                "a worker process was killed (often for lack of memory); finished stages are kept: run the same command again "
                "to go on, with fewer --workers if memory is short"
            ) from None
        except (KeyboardInterrupt, SystemExit):  # nobody waits for what is at work
            for worker in {*multiprocessing.active_children()} - {*before}:
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _named(call: Sequence[Node]) -> Iterator[None]:
    """Say which call stopped, of an error that is expected. A broken pool is no matter of one call."""
    try:
        yield
    except BrokenProcessPool:
        raise
    except EXPECTED as error:
        reason = no_memory(error) or " ".join(str(error).split()) or type(error).__name__
        raise StageFailed(f"stage {call[0].label()} stopped: {reason}") from error


def _before(node: Node, plan: Plan) -> set[str]:
    """What has to be there first: what the node needs, and the audit before it, whose listener may stop the run."""
    audit = plan.audits.get(node.key)
    return {needed.key for needed in node.edges.values()} | ({audit.key} if audit is not None else set())


_worlds: list[World] = []
"""The worlds of a worker process, as the main process made them."""


def _set_up(threads: int, worlds: list[World]) -> None:
    """Set up a worker process."""
    _worlds[:] = worlds
    torch.set_num_threads(threads)


def _run_call(call: list[Node], root: Path) -> list[str]:
    return perform(call, _worlds[call[0].variant], Store(root))


@contextmanager
def _bare() -> Iterator[None]:
    """Let processes start without running the user's script once more: workers need this package and nothing of the script.

    So a script without `if __name__ == "__main__"`, and a notebook, may compare as they are. What a terminal signals is for the
    main process, which ends them.
    """
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    try:
        vars(main).pop("__file__", None)
        main.__spec__ = None
        yield
    finally:
        vars(main).update(kept)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
