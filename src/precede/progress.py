"""Progress of long work, for the command line, scripts and notebooks."""

from __future__ import annotations

import importlib.util
import os
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from precede.data.sentences import printable
from precede.machine import busy

LINE_SECONDS = 60.0
"""Between two lines of progress where there is no terminal."""


def screen(**options: Any) -> Console:
    """A console that takes texts as they are: nothing in them is markup, and lines are not broken."""
    made = Console(highlight=False, markup=False, soft_wrap=True, **options)
    if made.width < 1:  # COLUMNS=0 is a width that nobody knows; rich would print nothing
        made.width = 80
    return made


class Bars:
    """Progress on stderr: in a terminal or notebook a bar for a whole plan, and one for each piece of work in it; elsewhere,
    under nohup and the like, a dated line a minute. When work begins it is said that the machine is busy, if it is."""

    def __init__(self, name: str = "") -> None:
        quiet = os.environ.get("RANK", "0") != "0"  # of the processes of `accelerate launch` the first one speaks
        self.messages = screen(stderr=True, quiet=quiet)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        notebook = self.messages.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        shown = self.messages.is_terminal or notebook
        self._bar = Progress(*columns, *times, console=self.messages, disable=not shown)
        self._tasks = {name: self._bar.add_task(name, total=None)} if name else {}
        self._name, self._counts, self._said = name, [0, 0], time.monotonic()
        self._begun = False

    @property
    def heard(self) -> dict[str, Any]:
        """What a job takes to say how far it is, by name."""
        return {"started": self.started, "finished": self.finished, "progress": self.progress, "tell": self.tell}

    def __enter__(self) -> Bars:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def tell(self, line: str) -> None:
        self.messages.print(printable(line))

    def started(self, total: int, there: int) -> None:
        self._counts = [there, total]
        self._bar.update(self._tasks[self._name], total=total, completed=there)
        if total > there:
            self._begin()

    def _begin(self) -> None:
        """Say once, when there is work, that the machine is busy, if it is."""
        if not self._begun and (sentence := busy()) is not None:
            self.tell(sentence)
        self._begun = True

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
        self._begin()
        self._line(f"{name}: {done} of {total}")
        if name not in self._tasks:
            self._tasks[name] = self._bar.add_task(printable(name), total=total)
        self._bar.update(self._tasks[name], completed=done, total=total, visible=done < total)
