"""What a world is, to everything above it: it runs stages, measures their models, and explains itself in figures.

A world supplies the truth, the target, the reward, a teacher, and how its policies distil and align. Plan, engine,
statistics and report know this interface and nothing else about a world.
"""

from __future__ import annotations

import importlib
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from precede.metrics import Cost
from precede.store import Stage, Store

if TYPE_CHECKING:
    from precede.analysis.results import Results
    from precede.report.figures import Figure


def reset_peak_memory() -> None:
    """Let `peak_memory_bytes` count from now on (on Linux; elsewhere it counts from the start of the process)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> float:
    """High-water mark of this process's memory, with that of its GPU memory, since `reset_peak_memory`."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * int(line.split()[1]) + on_gpu
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + on_gpu


class World(Protocol):
    """A world. Made in the main process (to plan and to draw) and again in every worker (to run)."""

    seeds_per_stage: int
    """How many seeds one stage holds: many where seeds are a tensor axis, 1 where a stage is one training run."""
    rows_per_call: int
    """How many (stage, seed) rows one call of `run` should hold at most."""
    varying: Mapping[str, frozenset[str]]
    """Kind of stage → the settings in which the stages of one call may differ."""
    threads: int | None
    """CPU threads that a stage uses; None: all there are, divided among the workers."""
    gpu_flops_per_second: float | None
    """Assumed rate of one GPU, for the GPU hours of a plan; None where a GPU gains nothing."""
    note: str
    """One sentence for the report on what results in this world prove; may be empty."""

    def version(self, kind: str) -> int:
        """Code version of a kind of stage; raised whenever the code would give other numbers."""
        ...

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise ValueError, in one sentence, where something that the stages need is missing or does not fit."""
        ...

    def estimate(self, stage: Stage) -> Cost:
        """Expected cost per seed, before anything runs."""
        ...

    def run(self, stages: Sequence[Stage], store: Store) -> None:
        """Run stages whose parents are finished (they differ only as `varying` allows) and write them to the store."""
        ...

    def figures(self, results: Results, examples: Mapping[str, Stage], store: Store) -> list[Figure]:
        """World-specific figures, of the results and of the models in `examples`, by name."""
        ...


def load_world(config: Mapping[str, Any]) -> World:
    """The world of a recipe's `world` block. Imported on demand: the mixture world never imports transformers."""
    module = importlib.import_module(f"precede.worlds.{config['kind']}.world")
    world: World = module.make(config)
    return world
