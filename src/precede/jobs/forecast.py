"""What a run of a recipe will take, before it runs: FLOPs, seconds and memory of each stage, and disk. One for all verbs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precede.machine import memory_of
from precede.plan import Node, Plan
from precede.store import Store
from precede.worlds.world import World


@dataclass(frozen=True)
class Forecast:
    """`stages` has a row for all nodes of one lineage and method: `stage`, `method`, how many `nodes` and `seeds`, how many
    `finished` in the store; and of all of them `flops`, `seconds` of one worker, and `memory_bytes` at the highest of a node.
    Bytes: `memory` of the GPU, or the machine; `disk` that the store needs beside what it has, `free` where it is; `output`."""

    stages: list[dict[str, Any]]
    memory: int
    disk: float
    free: int
    folder: Path
    output: float

    def left(self, name: str) -> float:
        """Sum of `flops` or `seconds` over what the store lacks, about: a finished node counts as any other of its row."""
        return float(sum(row[name] * (1 - row["finished"] / row["nodes"]) for row in self.stages))


def forecast(worlds: Sequence[World], plan: Plan, store: Store, *, ships: bool) -> Forecast:
    """Forecast a plan. With `ships` its last models go into a folder of their own, too."""
    groups: dict[tuple[str, ...], list[Node]] = {}
    for node in plan.nodes:
        if node.kind != "given":
            model = node.edges.get("model", node)
            names = [ancestor.name for ancestor in model.lineage()] + [node.name] * (model is not node)
            groups.setdefault((" > ".join(names), str(node.config.get("method", ""))), []).append(node)
    rows: list[dict[str, Any]] = []
    for (stage, method), nodes in groups.items():
        costs = [(worlds[node.variant].estimate(node), max(1, len(node.seeds))) for node in nodes]
        seeds = {seed for node in nodes for seed in node.seeds}
        row: dict[str, Any] = {"stage": stage, "method": method, "nodes": len(nodes), "seeds": len(seeds)}
        row |= {"finished": sum(store.has(node) for node in nodes)}
        row |= {"flops": sum(cost.flops * count for cost, count in costs)}
        row |= {"seconds": sum(cost.wall_seconds * count for cost, count in costs)}
        rows.append(row | {"memory_bytes": max(cost.peak_memory_bytes for cost, _ in costs)})
    missing = [node for node in plan.nodes if not store.has(node)]
    sizes = [world.disk_bytes([node for node in missing if node.variant == n]) for n, world in enumerate(worlds)]
    disk = sum(kept for kept, _ in sizes) + max(working for _, working in sizes)
    folder = next(path for path in (store.root, *store.root.resolve().parents) if path.exists())
    last = plan.arms[0].blocks[0][-1]
    output = worlds[0].disk_bytes([last])[0] if ships else 0.0
    return Forecast(rows, memory_of(worlds[0].device.type), disk, shutil.disk_usage(folder).free, folder, output)
