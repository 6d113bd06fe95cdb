"""What the verbs share: one sentence for what goes wrong, progress bars, tables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

KEPT = "finished stages are kept, run the same command again to go on"

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
    typer.Option("--reward", metavar="MODULE:FUNCTION", help="f(prompts, completions) → numbers, as TRL calls it."),
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
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that run stages; default: what the cores allow.")]
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
    """Turn what users give wrong into one sentence and exit status 2, and a failed stage into one and status 1."""
    try:
        work()
    except (ValueError, OSError) as error:
        _say(f"precede: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _say(f"precede: interrupted; {interrupted}")
        raise typer.Exit(130) from None
    except RuntimeError as error:
        if type(error).__name__ != "StageFailed":
            raise
        _say(f"precede: {error}")
        raise typer.Exit(1) from None


def _say(line: str) -> None:
    """To stderr; of several processes that `accelerate launch` started, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(line, err=True)


LINE_SECONDS = 60.0
"""Between two lines of progress where there is no terminal."""


class Bars:
    """Progress on stderr: on a terminal a bar for a whole plan, and one for each piece of work in it; elsewhere, under nohup
    and the like, a dated line a minute."""

    def __init__(self, name: str = "", quiet: bool = False) -> None:
        self.messages = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=quiet)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, *times, console=self.messages, disable=not self.messages.is_terminal)
        self._tasks = {name: self._bar.add_task(name, total=None)} if name else {}
        self._name, self._counts, self._said = name, [0, 0], time.monotonic()

    def __enter__(self) -> Bars:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def tell(self, line: str) -> None:
        self.messages.print(line)

    def started(self, total: int, there: int) -> None:
        self._counts = [there, total]
        self._bar.update(self._tasks[self._name], total=total, completed=there)

    def finished(self, node: Any) -> None:
        self._counts[0] += 1
        self._bar.advance(self._tasks[self._name])
        self._line(node.label())

    def _line(self, what: str) -> None:
        """Where there are no bars, say how far it is, unless that was said within the last minute."""
        if self._bar.disable and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            done = f"{self._name} {self._counts[0]} of {self._counts[1]}, " if self._name else ""
            self.tell(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {done}{what}")

    def progress(self, name: str, done: int, total: int) -> None:
        self._line(f"{name}: {done} of {total}")
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(name, total=total)
        self._bar.update(self._tasks[name], completed=done, total=total, visible=done < total)


def console() -> Console:
    """Where results are printed."""
    return Console(highlight=False, markup=False, soft_wrap=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]] = (), title: str | None = None) -> Table:
    """A table without frames, its first column to the left and the others to the right."""
    drawn = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for index, head in enumerate(heads):
        drawn.add_column(head, justify="right" if index else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(str, row))
    return drawn
