"""What an engine is: it runs the nodes of a plan that the store lacks, each after those that it needs. And `Launched`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from precede.plan import Node, Plan
from precede.stages.processes import first_does
from precede.store import Store
from precede.worlds.world import Progress, World, silent


class StageFailed(RuntimeError):
    """A node stopped; the message names it and the reason. Finished nodes are kept."""


@dataclass(frozen=True)
class Listener:
    """Who hears of a run. `finished` hears of every node as soon as it is there, in an order in which all that a node needs
    comes before it, and may raise to stop the run; `progress` hears of what is done of a node."""

    finished: Callable[[Node], None] = lambda node: None
    progress: Progress = silent


class Engine(Protocol):
    """Runs plans. `workers` is how many nodes it runs at a time."""

    workers: int

    def run(self, plan: Plan, worlds: Sequence[World], store: Store, listener: Listener) -> None:
        """Run the nodes that the store lacks; `worlds[node.variant]` runs a node.

        Raises StageFailed. Whatever finished before a failure, an interrupt or a kill stays in the store.
        """
        ...


class Launched:
    """The engine of processes that `accelerate launch` started: all of them run every node together, one after the other.

    Stages are trained by all processes; the first one decides what is missing, writes, measures and speaks.
    """

    workers = 1

    def run(self, plan: Plan, worlds: Sequence[World], store: Store, listener: Listener) -> None:
        for node in plan.nodes:
            if node.kind != "given" and not first_does(lambda node=node: store.has(node)):  # type: ignore[misc]
                worlds[node.variant].run([node], store, listener.progress)
            listener.finished(node)
