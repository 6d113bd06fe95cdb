"""`precede compare`: parse, run, print."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from precede.analysis.results import Comparison, Results
from precede.cli.bars import bars
from precede.jobs.compare import cache_folder, compare, prepare
from precede.report.view import HEADLINE_METRICS, by_role, method_name, own_setting
from precede.report.words import interval, number, sentences, verdict
from precede.settings.recipe import Recipe, load_recipe
from precede.store import Stage, Store


def run_compare(
    name: str,
    overrides: list[str],
    out: Path | None,
    store: Path | None,
    workers: int | None,
    dry_run: bool,
    json_output: bool,
) -> None:
    """Run `precede compare`. Raises ValueError for what is wrong with the input, StageFailed for a stage that stopped."""
    recipe = load_recipe(name, overrides)
    if dry_run:
        _print_plan(recipe, store or cache_folder() / "stages", json_output)
        return
    messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    began = time.perf_counter()
    with bars(messages) as bar:
        task = bar.add_task(f"{recipe.name}: stages", total=None)
        done = compare(
            recipe,
            out=out,
            store=store,
            workers=workers,
            started=lambda total, finished: bar.update(task, total=total, completed=finished),
            progress=lambda stages: bar.advance(task, stages),
            tell=messages.print,
        )
    if json_output:
        sys.stdout.write((done.report.parent / "results.json").read_text("utf-8"))
        return
    console = Console(highlight=False, markup=False)
    view = by_role(done.results)
    _print_table(console, view)
    for line in [*sentences(view), done.results["note"]]:
        if line:
            console.print(line, soft_wrap=True)
    console.print(
        f"{done.stages_run} stages run, {done.stages_reused} taken from the store, {time.perf_counter() - began:.0f} s",
        soft_wrap=True,
    )
    console.print(f"report: {done.report}", soft_wrap=True)


def _print_table(console: Console, results: Results) -> None:
    """The headline metrics at the recipe's own setting, a block per method; fits 80 columns."""
    rows = [c for c in own_setting(results) if c["metric"] in HEADLINE_METRICS]
    blocks: dict[str, list[Comparison]] = {}
    for c in rows:
        against = "" if len(results["orders"]) == 2 else f", {c['a']} against {c['b']}"
        blocks.setdefault(method_name(c["settings"]) + against, []).append(c)
    first, other = results["comparisons"][0]["a"], results["comparisons"][0]["b"]
    two = len(results["orders"]) == 2
    table = Table(
        title=f"{results['recipe']['recipe']}, at the recipe's own setting",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for heading in (first, other if two else "the other", "difference", "95 % interval"):
        table.add_column(heading.replace(" > ", " >\n"), justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name, comparisons in blocks.items():
        table.add_row(name, style="bold")
        for c in comparisons:
            means = (number(c["mean_a"]), number(c["mean_b"]), number(c["mean_difference"]))
            table.add_row(c["metric"], *means, interval(c["ci95"]), verdict(c))
    console.print(table)


def _print_plan(recipe: Recipe, root: Path, json_output: bool) -> None:
    """The unique stages with their estimated cost, and which of them the store has."""
    world, plan = prepare(recipe)
    store = Store(root)
    groups: dict[tuple[str, ...], list[Stage]] = {}
    for stage in plan.stages:
        groups.setdefault((*(s.name for s in stage.lineage()), str(stage.config.get("method", ""))), []).append(stage)
    rows: list[dict[str, Any]] = []
    for words, stages in groups.items():
        costs = [(world.estimate(stage), len(stage.seeds)) for stage in stages]
        rows.append(
            {
                "stage": " > ".join(words[:-1]),
                "method": words[-1],
                "stages": len(stages),
                "seeds": len({seed for stage in stages for seed in stage.seeds}),
                "finished": sum(store.has(stage) for stage in stages),
                "flops": sum(cost.flops * seeds for cost, seeds in costs),
                "seconds": sum(cost.wall_seconds * seeds for cost, seeds in costs),
                "memory_bytes": max(cost.peak_memory_bytes for cost, _ in costs),
            }
        )
    arms = sum(len(variant.orders) for variant in recipe.variants)
    if json_output:
        print(json.dumps({"recipe": recipe.resolved, "plan": rows}, allow_nan=False))
        return
    table = Table(
        title=f"{recipe.name}: {len(plan.stages)} stages for {arms} arms × {len(recipe.seeds)} seeds; nothing is run"
    )
    for heading in ("stage", "method"):
        table.add_column(heading)
    for heading in ("stages", "seeds", "done", "FLOPs", "seconds", "GiB"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in ("stage", "method", "stages", "seeds", "finished")),
            f"{row['flops']:.2e}",
            f"{row['seconds']:.0f}",
            f"{row['memory_bytes'] / 2**30:.1f}" if row["memory_bytes"] else "–",
        )
    flops, seconds = (sum(row[key] for row in rows) for key in ("flops", "seconds"))
    table.add_section()
    table.add_row("all, estimated", "", str(len(plan.stages)), "", "", f"{flops:.2e}", f"{seconds:.0f}", "")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "Seconds are those of one worker here; GiB is models, gradients and optimiser, without activations.",
        soft_wrap=True,
    )
    rate = world.gpu_flops_per_second
    if rate is not None:
        console.print(
            f"On one GPU, if it runs at {rate:.0e} FLOP/s, the stages take {flops / rate / 3600:.2g} GPU hours, measuring not "
            "counted.",
            soft_wrap=True,
        )
