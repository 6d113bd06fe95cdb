"""What an engine is: it runs the nodes of a plan that the store lacks, each after those that it needs. And `Launched`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
    comes before it, and may raise to stop the run; `progress` hears of what is done of a node; `tell` hears sentences."""

    finished: Callable[[Node], None] = lambda node: None
    progress: Progress = silent
    tell: Callable[[str], None] = lambda message: None


class Engine(Protocol):
    """Runs plans. `workers` is how many nodes it runs at a time."""

    workers: int

    def run(self, plan: Plan, worlds: Sequence[World], store: Store, listener: Listener) -> None:
        """Run the nodes that the store lacks; `worlds[node.variant]` runs a node.

        Raises StageFailed. Whatever finished before a failure, an interrupt or a kill stays in the store.
        """
        ...


def perform(call: Sequence[Node], world: World, store: Store, progress: Progress = silent) -> list[str]:
    """Run what the store lacks of a call, while no other run does; returns sentences on what a killed one had left damaged."""
    with store.claimed(call):
        left = [node for node in call if not store.has(node)]
        told = [sentence for node in left for sentence in store.mend(node)]
        if left:
            world.run(left, store, progress)
    return told


def waits(call: Sequence[Node], store: Store) -> str | None:
    """A sentence where another run has a node of the call in work."""
    busy = next((node for node in call if store.claimed_elsewhere(node)), None)
    return None if busy is None else f"stage {busy.label()} is in work by another run; this one waits for it"


class Launched:
    """The engine of processes that `accelerate launch` started: all of them run every node together, one after the other.

    Stages are trained by all processes; the first one decides what is missing, writes, measures and speaks.
    """

    workers = 1

    def run(self, plan: Plan, worlds: Sequence[World], store: Store, listener: Listener) -> None:
        for node in plan.nodes:
            with ExitStack() as stack:
                if node.kind != "given" and first_does(partial(self._missing, node, store, listener, stack)):
                    worlds[node.variant].run([node], store, listener.progress)
            listener.finished(node)

    def _missing(self, node: Node, store: Store, listener: Listener, stack: ExitStack) -> bool:
        """Claim a node that the store lacks; whether it still does then."""
        if store.has(node):
            return False
        if (sentence := waits([node], store)) is not None:
            listener.tell(sentence)
        stack.enter_context(store.claimed([node]))
        for sentence in store.mend(node):
            listener.tell(sentence)
        return not store.has(node)
