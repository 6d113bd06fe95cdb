"""What a world is, to everything above it, which knows nothing else of it: it plans and runs nodes, and draws figures.

A world supplies the truth, the target, the reward, a teacher, and how its policies distil and align.
"""

from __future__ import annotations

import importlib
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from precede.metrics import Cost
from precede.plan import Node, Plan, PlannedWorld
from precede.settings.recipe import Recipe
from precede.settings.sweep import Variant
from precede.store import Store

if TYPE_CHECKING:
    from precede.analysis.results import Results
    from precede.report.figures import Figure

Progress = Callable[[str, int, int], None]
"""Hears what is done: the name of a piece of work, how much of it, how much there is."""


def silent(name: str, done: int, total: int) -> None:
    """Progress that nobody hears."""


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


class Meter:
    """What a node takes of the machine from now on, and took `before` in processes that were killed (fields of `Cost`)."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        reset_peak_memory()
        before = before or {}
        self._wall = time.perf_counter() - before.get("wall_seconds", 0.0)
        self._cpu = time.process_time() - before.get("cpu_seconds", 0.0)

    def seconds(self) -> dict[str, float]:
        """The fields of `Cost` that a clock tells."""
        return {"wall_seconds": time.perf_counter() - self._wall, "cpu_seconds": time.process_time() - self._cpu}

    def read(self, share: float = 1.0) -> dict[str, float]:
        """The fields of `Cost` that a clock or a gauge tells: `share` of the seconds, and the peak memory."""
        seconds = {name: share * value for name, value in self.seconds().items()}
        return seconds | {"peak_memory_bytes": peak_memory_bytes()}


@dataclass(frozen=True)
class Needs:
    """What a node needs of a machine."""

    threads: int | None = None
    """CPU threads that it uses; None: all there are, divided among the workers."""
    gpus: int = 0
    processes: int = 1
    """Processes that it can use at once, as `accelerate launch` starts them; 0: as many as there are."""


class World(PlannedWorld, Protocol):
    """A world. Made in the main process (to plan and to draw) and handed to every worker (to run)."""

    gpu_flops_per_second: float | None = None
    """Assumed rate of one GPU, for the GPU hours of a plan; None where a GPU gains nothing."""
    ships: bool = False
    """Whether its final models are files that can be shipped."""
    note: str = ""
    """One sentence for the report on what results in this world prove; may be empty."""

    @property
    def offline(self) -> bool:
        """Whether a model cannot be had here though its size is known: a run can be planned, and no more."""
        return False

    def check(self, nodes: Sequence[Node], disk: Path) -> list[str]:
        """Raise ValueError, in one sentence, where something that its nodes need is missing or does not fit.

        Returns what should be known before anything runs, in sentences. `disk` is where the store will be.
        """
        return []

    def needs(self, node: Node) -> Needs: ...

    def estimate(self, node: Node) -> Cost:
        """Expected cost per seed, before anything runs."""

    def peak_bytes(self, node: Node) -> float:
        """Bytes of memory that a node is expected to have at the highest."""

    @property
    def device(self) -> torch.device:
        """Where its models are."""
        return torch.device("cpu")

    def disk_bytes(self, nodes: Sequence[Node]) -> tuple[float, float]:
        """Room in the store that the nodes will take, about, and what one of them needs beside it while it runs."""
        return 0.0, 0.0

    def tilts(self, config: Mapping[str, Any]) -> bool:
        """Whether the optimum of an alignment is the tilt at β, so that the laws speak of it."""

    def run(self, nodes: Sequence[Node], store: Store, progress: Progress = silent) -> None:
        """Run nodes whose edges are finished (they differ only as `varying` allows) and write them to the store."""

    def figures(self, results: Results, examples: Mapping[str, Node], plan: Plan, store: Store) -> list[Figure]:
        """World-specific figures, of the results and of the models in `examples`, by name."""


def load_world(recipe: Recipe, variant: Variant, shared: dict[str, Any] | None = None) -> World:
    """The world of a variant of a recipe. Imported on demand: the mixture world never imports transformers.

    What variants read in common is read once where they are given one dictionary as `shared`.
    """
    make = importlib.import_module(f"precede.worlds.{variant.world['kind']}.world").make
    world: World = make(recipe, variant, {} if shared is None else shared)
    return world
