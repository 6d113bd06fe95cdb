"""`precede audit`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from precede.cli import terminal
from precede.cli.terminal import guarded, print_json, show, table
from precede.progress import Bars

if TYPE_CHECKING:
    from precede.evaluate.audit import Audit

STYLES = {"ready": "green", "unchecked": "blue", "risky": "yellow", "trapped": "red"}


def audit(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="References to judge: folders, Hugging Face ids, or bundled:smollm2-135m-instruct."
        ),
    ],
    data: Annotated[
        str, typer.Option(help="Preferences: a .jsonl, .jsonl.gz or .parquet file, a folder, or a `datasets` name.")
    ],
    teacher: Annotated[
        str | None, typer.Option(help="The model that the references were distilled from; adds the recall gap.")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="f(prompts, completions) → numbers, of a file or MODULE:FUNCTION; adds target mass by sampling.",
        ),
    ] = None,
    reward_model: terminal.Classifier = None,
    target_reward: Annotated[
        float | None,
        typer.Option(help="Reward from which a completion is desirable; default: the median of the chosen."),
    ] = None,
    beta: Annotated[float, typer.Option(help="Price of KL that alignment will pay.")] = 0.1,
    samples: Annotated[int, typer.Option(help="Completions sampled per prompt where there is a reward.")] = 4,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Length at which they are cut, tokens; default: what 95 % of the chosen ones fit in."),
    ] = None,
    limit: terminal.Limit = None,
    map_columns: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="OURS=THEIRS", help="Name a column, e.g. --map prompt=question; may be repeated."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a `datasets` name or folder.")] = "train",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; arithmetic is fp32.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for audit.html, audit.json, pairs.parquet; default runs/audit, and a number where taken."
        ),
    ] = None,
    json_output: terminal.Json = False,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="unchecked|risky|trapped", help="Exit with status 1 if the best reference is this or worse."
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with a model; otherwise none is run.")
    ] = False,
) -> None:
    """Say before any training whether a reference can be aligned to these preferences, and what to do if not.

    Scores every pair under every model, in fp32: how typical the chosen completions are of the reference, what distillation
    lost of them (--teacher), how often the reference does what is wanted (--reward). Verdict: ready, risky or trapped.
    """
    options: dict[str, Any] = {"teacher": teacher, "reward": reward, "reward_model": reward_model}
    options |= {"target_reward": target_reward, "beta": beta, "samples": samples, "max_new_tokens": max_new_tokens}
    options |= {"limit": limit, "split": split, "device": device}

    def work() -> None:
        from precede.evaluate.verdict import LEVELS
        from precede.jobs import audit as job
        from precede.models import load

        if fail_on is not None and fail_on not in LEVELS[1:]:
            raise ValueError(f"--fail-on is '{fail_on}', but it must be {', '.join(LEVELS[1:-1])} or {LEVELS[-1]}")
        columns = dict(_parts(entry) for entry in map_columns or [])
        began = time.perf_counter()
        with Bars() as bars, load.trust_remote_code(trust_remote_code):
            done = job.audit(models, data, out=out, columns=columns, progress=bars.progress, tell=bars.tell, **options)
        if json_output:
            print_json(json.loads((done.folder / "audit.json").read_text("utf-8")))
        else:
            _print(done.audit, done.folder / "audit.html", time.perf_counter() - began)
        level = done.audit.candidates[0].verdict.level
        if fail_on is not None and LEVELS.index(level) >= LEVELS.index(fail_on):
            raise typer.Exit(1)

    guarded(work, "what was scored is kept, run the same command again to go on")


def _parts(entry: str) -> tuple[str, str]:
    ours, equals, theirs = entry.partition("=")
    if not equals or not ours or not theirs:
        raise ValueError(f"--map is '{entry}', but it must look like prompt=question")
    return ours, theirs


def _print(judged: Audit, path: Path, seconds: float) -> None:
    from precede.report.audit_output import numbers_table

    numbers = numbers_table(judged)
    show(table(numbers.columns, numbers.rows))
    for candidate in judged.candidates:
        level = candidate.verdict.level
        show(f"{level.upper()}: {candidate.model}", style=f"bold {STYLES[level]}")
        for reason in candidate.verdict.reasons:
            show(f"  because {reason}")
        for advice in candidate.verdict.advice:
            show(f"  → {advice}")
    if judged.refused:
        model, first = judged.refused[0]
        count, example = len(judged.refused), f"row {first.row}, for {model}: {first.reason}"
        show(f"{count} rows could not be used ({example}); refused.jsonl names them all")
    show(*judged.notes)
    show(f"{len(judged.candidates[0].rows)} pairs, {seconds:.0f} s")
    show(f"report: {path}")
