"""What the verbs share: flags, one sentence for what goes wrong, tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
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
