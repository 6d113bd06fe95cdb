"""What the verbs share: flags, one sentence for what goes wrong, tables."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import RenderableType
from rich.measure import Measurement
from rich.table import Table

from precede.data.sentences import printable
from precede.machine import check_limit, no_memory
from precede.progress import screen

KEPT = "finished stages are kept, run the same command again to go on"
UNBOUNDED = 10_000
"""Columns of a terminal into which every table fits."""
AGAIN_SECONDS = 0.1
TWICE_SECONDS = 1.0
"""A launcher may send a signal to a process and to its group, which is one signal."""

Teacher = Annotated[str | None, typer.Option(help="Folder, Hugging Face id, or bundled:smollm2-135m-instruct.")]
Student = Annotated[str | None, typer.Option(help="Folder or Hugging Face id of the small model.")]
KeepLayers = Annotated[
    int | None, typer.Option(metavar="N", help="In place of --student: the teacher with N of its layers.")
]
Pairs = Annotated[
    str | None,
    typer.Option("--data", help="Preferences: a .jsonl, .jsonl.gz or .parquet file, a folder, or a `datasets` name."),
]
RewardFunction = Annotated[
    str | None,
    typer.Option(
        "--reward",
        metavar="FILE.py:FUNCTION",
        help="f(prompts, completions) → numbers, as TRL calls it, of a file or MODULE:FUNCTION.",
    ),
]
Classifier = Annotated[
    str | None, typer.Option(metavar="ID", help="A sequence classifier with one output, in place of --reward.")
]
Beta = Annotated[float | None, typer.Option(help="Price of KL; default 0.1.")]
Limit = Annotated[int | None, typer.Option(help="Use the first N rows of the data only.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. --set align.beta=0.1; may be repeated."),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of finished stages, shared by all runs; default ~/.cache/precede/stages."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Processes that run stages; default: what the cores allow.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the stages with their estimated cost, memory and disk; run nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of tables.")]


def settings_of(
    teacher: str | None,
    student: str | None,
    keep_layers: int | None,
    data: str | None,
    reward: str | None,
    reward_model: str | None,
    beta: float | None,
    limit: int | None,
    **others: Any,
) -> dict[str, Any]:
    """The flags that say what the models and the data are, as settings of a recipe; those that are not given are left out."""
    flags: dict[str, Any] = {"teacher.model": teacher, "student.model": student, "student.keep_layers": keep_layers}
    flags |= {"data.source": data, "data.limit": limit, "world.reward": reward, "world.reward_model": reward_model}
    return {name: value for name, value in {**flags, "align.beta": beta, **others}.items() if value is not None}


def guarded(work: Callable[[], None], interrupted: str = KEPT) -> None:
    """Turn what users give wrong into one sentence and exit status 2; a failed stage, and no memory, into one and status 1; a
    signal that ends the run into one and 128 + its number. Where nobody reads what is printed, the end is quiet."""
    try:
        with _signals():
            check_limit()
            work()
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter, which flushes once more
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        told = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
        _say(f"{told}; {interrupted}")
        raise typer.Exit(128 + number) from None
    except Exception as error:
        clause, failed = no_memory(error), type(error).__name__ == "StageFailed"
        if not (clause or failed or isinstance(error, ValueError | OSError)):
            raise
        _say(f"{clause}; {interrupted}" if clause and not failed else str(error))
        raise typer.Exit(1 if clause or failed else 2) from None


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as SIGINT does, unless they are ignored, as under nohup.

    Python swallows what a signal raises while an object is being destroyed; that signal arrives once more.
    """
    ends = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    last, told, main = -math.inf, sys.unraisablehook, threading.main_thread().ident
    waiting: list[threading.Timer] = []

    def stop(number: int, _: Any) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > TWICE_SECONDS:
            raise KeyboardInterrupt(signal.Signals(number))

    def swallowed(error: sys.UnraisableHookArgs) -> None:
        nonlocal last
        if not isinstance(error.exc_value, KeyboardInterrupt):
            told(error)
            return
        last, (number,) = -math.inf, error.exc_value.args or (signal.SIGINT,)
        waiting.append(threading.Timer(AGAIN_SECONDS, signal.pthread_kill, (main, number)))
        waiting[-1].start()

    for one in ends:
        signal.signal(one, stop)
    sys.unraisablehook = swallowed
    try:
        yield
    finally:
        sys.unraisablehook = told
        for again in waiting:
            again.cancel()
        for one in ends:
            signal.signal(one, signal.SIG_DFL)


def _say(sentence: str) -> None:
    """One line to stderr; of several processes that `accelerate launch` started, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        with suppress(OSError):  # of a terminal that is gone
            typer.echo(printable(f"precede: {' '.join(sentence.split())}"), err=True)


def show(*things: RenderableType, style: str | None = None) -> None:
    """Print results: texts with nothing in them that moves or colours a terminal, and tables of which nothing is cut off."""
    console = screen()
    for thing in things:
        if isinstance(thing, str):
            console.print(printable(thing), style=style)
        else:
            room = console.options.update(width=UNBOUNDED)
            for column in thing.columns if isinstance(thing, Table) else ():
                if column.no_wrap:
                    cells = (column.header, *column.cells)
                    column.min_width = max(Measurement.get(console, room, cell).maximum for cell in cells)
            console.width = max(console.width, Measurement.get(console, room, thing).minimum)
            console.print(thing, soft_wrap=False, crop=False)


def print_json(value: Any) -> None:
    """JSON to stdout, in ASCII, which every encoding has."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]] = (), title: str | None = None) -> Table:
    """A table without frames, its first column to the left and the others to the right, of which no cell is broken."""
    drawn = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for index, head in enumerate(heads):
        drawn.add_column(head, justify="right" if index else "left", no_wrap=index > 0)
    for row in rows:
        drawn.add_row(*(printable(str(cell)) for cell in row))
    return drawn
