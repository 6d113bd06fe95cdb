"""`--dry-run` of `precede compare` and `precede build`: the stages, and what they will take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from precede.cli.terminal import print_json, show, table

if TYPE_CHECKING:
    from precede.plan import Plan
    from precede.settings.recipe import Recipe
    from precede.store import Store
    from precede.worlds.world import World

GIB = 2**30


def print_plan(
    recipe: Recipe,
    worlds: Sequence[World],
    plan: Plan,
    notes: Sequence[str],
    store: Store,
    json_output: bool,
    *,
    ships: bool,
) -> None:
    """What the checks noted, the unique nodes with what they will take, which of them the store has, and the disk."""
    from precede.jobs.forecast import forecast

    expected = forecast(worlds, plan, store, ships=ships)
    rows = expected.stages
    if json_output:
        disk = {"store": expected.disk, "output": expected.output, "free": expected.free}
        machine = {"memory_bytes": expected.memory, "disk_bytes": disk}
        print_json({"recipe": recipe.resolved, "notes": [*notes], "plan": rows, **machine})
        return
    arms, count = sum(len(variant.orders) for variant in recipe.variants), sum(row["nodes"] for row in rows)
    heads = ["stage", "method", "nodes", "seeds", "done", "FLOPs", "seconds", "GiB"]
    title = f"{recipe.name}: {count} nodes for {arms} arms × {len(recipe.seeds)} seeds; nothing is run"
    estimates = table(heads, title=title)
    for row in rows:
        cells = [str(row[key]) for key in ("stage", "method", "nodes", "seeds", "finished")]
        estimates.add_row(*cells, f"{row['flops']:.2e}", f"{row['seconds']:.0f}", f"{row['memory_bytes'] / GIB:.1f}")
    flops, seconds = (sum(row[key] for row in rows) for key in ("flops", "seconds"))
    estimates.add_section()
    peak = max(row["memory_bytes"] for row in rows) / GIB
    estimates.add_row("all, estimated", "", str(count), "", "", f"{flops:.2e}", f"{seconds:.0f}", f"{peak:.1f}")
    show(*notes, estimates)
    show(
        f"Seconds are about those of one worker here, GiB its peak of memory; {expected.memory / GIB:.1f} GiB are here."
    )
    output = f", and the model {expected.output / GIB:.1f} GiB" if ships else ""
    free = f"{expected.free / GIB:.1f} GiB are free in {expected.folder}"
    show(f"The store will take about {expected.disk / GIB:.1f} GiB more{output}; {free}.")
    rate = worlds[0].gpu_flops_per_second
    if rate is not None:
        show(f"On one GPU, if it runs at {rate:.0e} FLOP/s, this takes {flops / rate / 3600:.2g} GPU hours.")
