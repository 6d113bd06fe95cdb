"""The engine of processes that `accelerate launch` started: all of them run every node together, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from precede.engine import Listener
from precede.plan import Plan
from precede.stages.processes import first_does
from precede.store import Store
from precede.worlds.world import World


class Launched:
    """Stages are trained by all processes; the first one decides what is missing, writes, measures and speaks."""

    workers = 1

    def run(self, plan: Plan, worlds: Sequence[World], store: Store, listener: Listener) -> None:
        for node in plan.nodes:
            if node.kind != "given" and not first_does(lambda node=node: store.has(node)):  # type: ignore[misc]
                worlds[node.variant].run([node], store, listener.progress)
            listener.finished(node)
