"""`precede audit`: parse, run, print."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from precede.cli.bars import bars, by_name
from precede.evaluate.verdict import LEVELS
from precede.jobs.audit import Audit, audit
from precede.metrics import describe
from precede.models.load import trust_remote_code
from precede.report.audit_output import SHOWN, estimate, write_audit

STYLES = {"ready": "green", "risky": "yellow", "trapped": "red"}


def run_audit(
    models: list[str],
    data: str,
    mapping: list[str],
    options: dict[str, Any],
    out: Path,
    json_output: bool,
    fail_on: str | None,
    trusted: bool,
) -> None:
    """Run `precede audit`. Raises ValueError for what is wrong with the input; exits with 1 where `fail_on` asks for it."""
    if fail_on is not None and fail_on not in LEVELS[1:]:
        raise ValueError(f"--fail-on is '{fail_on}', but it must be risky or trapped")
    columns = dict(_parts(entry) for entry in mapping)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, which is a file; name a folder")
    messages = Console(stderr=True, highlight=False, markup=False)
    began = time.perf_counter()
    with bars(messages) as bar, trust_remote_code(trusted):
        found = audit(models, data, columns=columns, progress=by_name(bar), **options)
    path = write_audit(found, out)
    if json_output:
        sys.stdout.write((out / "audit.json").read_text("utf-8") + "\n")
    else:
        _print(found, path, time.perf_counter() - began)
    worst = LEVELS.index(found.candidates[0].verdict.level)
    if fail_on is not None and worst >= LEVELS.index(fail_on):
        raise typer.Exit(1)


def _parts(entry: str) -> tuple[str, str]:
    ours, equals, theirs = entry.partition("=")
    if not equals or not ours or not theirs:
        raise ValueError(f"--map is '{entry}', but it must look like prompt=question")
    return ours, theirs


def _print(found: Audit, path: Path, seconds: float) -> None:
    console = Console(highlight=False, markup=False)
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    sides = [(candidate.model, candidate.numbers) for candidate in found.candidates]
    if found.teacher_numbers is not None:
        sides.append((f"{found.teacher} (teacher)", found.teacher_numbers))
    for name, _ in sides:
        table.add_column(name, justify="right", overflow="fold")
    for name in SHOWN:
        if any(name in numbers for _, numbers in sides):
            table.add_row(describe(name).label, *[estimate(numbers.get(name)) for _, numbers in sides])
    console.print(table)
    for candidate in found.candidates:
        level = candidate.verdict.level
        console.print(f"{level.upper()}: {candidate.model}", style=f"bold {STYLES[level]}", soft_wrap=True)
        for line in candidate.verdict.reasons:
            console.print(f"  because {line}", soft_wrap=True)
        for line in candidate.verdict.advice:
            console.print(f"  → {line}", soft_wrap=True)
    if found.refused:
        model, first = found.refused[0]
        console.print(
            f"{len(found.refused)} rows could not be used (row {first.row}, for {model}: {first.reason}); refused.jsonl names "
            "them all",
            soft_wrap=True,
        )
    for note in found.notes:
        console.print(note, soft_wrap=True)
    console.print(f"{len(found.candidates[0].rows)} pairs, {seconds:.0f} s", soft_wrap=True)
    console.print(f"report: {path}", soft_wrap=True)
