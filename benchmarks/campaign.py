"""What wrong inputs, kills, damaged files and runs at the same time do to precede: a table of counts, and status 1 for a fault.

    python benchmarks/campaign.py [--part inputs|kills|damages|together] [--seed 0] [--trials N ...] [--keep FOLDER]
        [--only REGEX] [--runs NAME ...] [--jobs N]

Every trial is a small run of the command line (`campaign_runs.RUNS`) in a folder of its own, in a process that is forked from
one that has imported everything. It ends as it should in one of three ways:

- one sentence: status 2, one line, notes aside, nothing written (what only the run can show: status 1 and a line);
- went on: status 0, and what it leaves is what the undisturbed run leaves, but for times;
- stopped, then equal: what was killed is run again by the same command, and went on;

or with a fault: a traceback (or any end without its sentence), a hang (also a process that stays behind), late (told by status
1 or when files were written already), different (accepted, other numbers, code or markup of an input that ran).
`--keep` keeps the folder of each fault, with its command in trial.txt; `--only` takes trials with the pattern in "group: name",
and `--runs` is what is killed, damaged and run at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

from campaign_files import BYTES, Input
from campaign_inputs import inputs
from campaign_runs import (
    RUNS,
    SECONDS,
    Ended,
    Place,
    Runs,
    difference,
    end,
    left,
    members,
    run,
    start,
    stop_group,
    wait_for,
)

OUTCOMES = ("one sentence", "went on", "stopped, then equal", "traceback", "hang", "late", "different")
SENTENCE, WENT_ON, EQUAL, TRACEBACK, HANG, LATE, DIFFERENT = OUTCOMES
FAULTS = (TRACEBACK, HANG, LATE, DIFFERENT)
NUMBERS = {"inputs": 400, "kills": 60, "damages": 80, "together": 12}
"""Trials of each part where nothing else is asked for."""
CONTENT = ("key", "data", "recipe")
"""What differs in what is left where the same rows are written otherwise."""
CONTROLS = re.compile(r"[^\n\t -~\x80-\U0010ffff]|[\x80-\x9f\u202a-\u202e\u2066-\u2069]")
NOISE = re.compile(r"^precede: |warn|error|exception", re.IGNORECASE)
MARKUP = re.compile(r"<script>alert|<img src=x")
LITERAL = re.compile(r"\A---\n.*?\n---\n|(`+).*?\1", re.DOTALL)
"""What Markdown does not read as markup: the data at its head, code."""
Verdict = tuple[str, str]
"""An outcome and why."""


@dataclass(frozen=True)
class Trial:
    """What is tried in a copy of `source`, or of the material; `words` is the command, for a person."""

    group: str
    name: str
    words: tuple[str, ...]
    do: Callable[[Place], Verdict]
    source: Path | None = None


def judge(ended: Ended, expect: str, unlike: str = "") -> Verdict:
    """The outcome of a run of which this is expected (`Input.expect`); `unlike`: how what it left is not what it should be."""
    lines = [line for line in ended.errors.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if ended.status is None:
        return HANG, f"for {SECONDS:.0f} s, or a process stays behind: {last}"
    if "Traceback (most recent call last)" in ended.errors:
        return TRACEBACK, last
    if CONTROLS.search(ended.output + ended.errors):
        return TRACEBACK, f"controls reach the terminal: {last}"
    if ended.status == 0:
        wrong = "accepted" if expect == "refused" else unlike
        return (DIFFERENT if wrong else WENT_ON), wrong
    told = last.startswith("precede: ") and len(last) < 2000
    if expect == "quiet" and ended.status > 0 and not any(map(NOISE.search, lines)):
        return WENT_ON, ""
    alone = told and not any(map(NOISE.search, lines[:-1]))  # but for notes of the run, as on a busy machine
    if ended.status == 2 and (alone or "Usage: precede" in ended.errors) and not ended.new:
        return (DIFFERENT, f"refused: {last}") if expect == "same" else (SENTENCE, last)
    if told and ended.status > 0 and expect == "stops":
        return SENTENCE, last
    if told and (ended.status == 1 or ended.new):
        return LATE, f"status {ended.status}, {len(ended.new)} files written: {last}"
    return TRACEBACK, f"status {ended.status}, {len(lines)} lines: {last}"


def again(place: Place, name: str, runs: Runs) -> Verdict:
    """The same command once more: it leaves what the undisturbed run leaves, or says in one sentence why not."""
    ended = run(place, RUNS[name], number=1)
    built = ended.status == 2 and "is there already" in ended.errors  # a build that had ended before it was killed
    unlike = difference(left(place), left(runs.whole(name))) if ended.status == 0 or built else ""
    return judge(Ended(0 if built else ended.status, ended.output, ended.errors), "any", unlike)


# ------------------------------------------------------------------------------------------------------ the four parts


def input_trials(draw: random.Random, runs: Runs, seed: int) -> Iterator[Trial]:
    for one in inputs(seed):
        yield Trial(one.group, one.name, (*RUNS[one.run], *one.words), partial(try_input, one, runs))


def try_input(one: Input, runs: Runs, place: Place) -> Verdict:
    try:
        one.change(place.here, random.Random(one.name))
    except (OSError, ValueError) as error:
        return SENTENCE, f"the system itself refuses the name: {error}"
    ended, unlike = run(place, (*RUNS[one.run], *one.words), one.around), ""
    if ended.status == 0 and one.expect == "same":
        unlike = difference(left(place, unread=CONTENT), left(runs.whole(one.run), unread=CONTENT))
    if any(path.name.startswith("pwned") for path in place.root.rglob("*")):
        return DIFFERENT, "code of the input ran, or it wrote outside its folder"
    for path in [*place.here.glob("out*/**/*.html"), *place.here.glob("out*/**/*.md")]:
        text = path.read_text("utf-8", "replace") if path.is_file() else ""
        if MARKUP.search(LITERAL.sub("", text) if path.suffix == ".md" else text):
            return DIFFERENT, f"markup of the input stands in {path.name}"
    return judge(ended, one.expect, unlike)


def kill_trials(draw: random.Random, runs: Runs, seed: int) -> Iterator[Trial]:
    """A signal before, while or after a file is written, the kinds of files being equally likely."""
    while True:
        for name, moments in runs.moments.items():
            kind = draw.choice(sorted({moment.split("/")[1:3][-1][:9] for moment in moments}))
            number = draw.choice([at for at, moment in enumerate(moments) if f"/{kind}" in moment])
            phase, sent = draw.choice(("before", "while", "after")), draw.choice(("KILL", "KILL", "TERM", "INT"))
            target = draw.choice(("main", "group", *["worker"] * 2 * (name == "workers")))
            awaited = moments[max(0, number - (phase == "before"))]
            what = f"{name}: {sent} to the {target} {phase} {moments[number].partition('/')[2]} is written"
            do = partial(try_kill, runs, name, awaited, 0.02 * (phase == "after"), target, sent)
            yield Trial(f"{sent}, {target}", what, RUNS[name], do)


def try_kill(runs: Runs, name: str, awaited: str, pause: float, target: str, sent: str, place: Place) -> Verdict:
    pid, workers = start(place, RUNS[name]), []

    def ready(there: list[str]) -> bool:
        workers[:] = members(pid) if target == "worker" and awaited in there else []
        return awaited in there and (bool(workers) or target != "worker")

    if wait_for(place, pid, ready):
        time.sleep(pause)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if target == "group" else os.kill)(max(workers, default=pid), signal.Signals[f"SIG{sent}"])
    ended = Ended(end(pid), place.said("output"), place.said("errors"))
    if ended.status == 0:
        return judge(ended, "any", difference(left(place), left(runs.whole(name))))
    if ended.status != -signal.SIGKILL:  # it had time for a sentence
        outcome, why = judge(ended, "stops")
        if outcome != SENTENCE:
            return outcome, why
    outcome, why = again(place, name, runs)
    return {WENT_ON: (EQUAL, ""), SENTENCE: (TRACEBACK, f"it does not go on: {why}")}.get(outcome, (outcome, why))


def damage_trials(draw: random.Random, runs: Runs, seed: int) -> Iterator[Trial]:
    """Damages of what whole runs left in the store and in their outputs, and killed ones in their checkpoints."""
    places = [("store", name, runs.whole(name), "store") for name in runs.moments if name != "audit"]
    places += [("outputs", name, runs.whole(name), "out") for name in runs.moments if RUNS[name][0] != "build"]
    places += [("checkpoints", name, half, "store/checkpoints") for name, half in runs.halves]
    while True:
        draw.shuffle(places)
        for group, name, place, top in places:
            found = [path for path in (place.here / top).rglob("*") if path.is_file() and path.stat().st_size]
            file, how = draw.choice(sorted(found)).relative_to(place.here).as_posix(), draw.choice([*BYTES])
            what = f"{place.root.name}: {file}, {how}"
            do = partial(try_damage, runs, name, file, how, group == "store" and RUNS[name][0] == "build")
            yield Trial(group, what, RUNS[name], do, place.here)


def try_damage(runs: Runs, name: str, file: str, how: str, anew: bool, place: Place) -> Verdict:
    BYTES[how](place.here / file, random.Random(file))
    if anew:
        shutil.rmtree(place.here / "out")
    return again(place, name, runs)


def together_trials(draw: random.Random, runs: Runs, seed: int) -> Iterator[Trial]:
    """Two or three runs with one store, each with its output or all with the same; the first may be killed."""
    while True:
        for name in runs.moments:
            pauses = tuple(round(draw.random(), 3) for _ in range(draw.choice((2, 2, 3))))
            one, killed = draw.random() < 0.5, draw.random() < 0.3
            what = f"{name}: {'one output' if one else 'own outputs'}{', one killed' * killed}, pauses {pauses}"
            yield Trial(f"{len(pauses)} runs", what, RUNS[name], partial(try_together, runs, name, pauses, one, killed))


def try_together(runs: Runs, name: str, pauses: tuple[float, ...], one: bool, killed: bool, place: Place) -> Verdict:
    outs, pids, found = ["out" if one else f"out{number}" for number in range(len(pauses))], [], []
    for number, (out, pause) in enumerate(zip(outs, pauses, strict=True)):
        pids.append(start(place, (*RUNS[name], "--out", out), number=number))
        time.sleep(pause)
    if killed:
        stop_group(pids[0])
    for number, (pid, out) in enumerate(zip(pids, outs, strict=True)):
        ended = Ended(end(pid), place.said("output", number), place.said("errors", number))
        if ended.status != -signal.SIGKILL:
            unlike = difference(left(place, out), left(runs.whole(name))) if ended.status == 0 else ""
            found.append(judge(ended, "any", unlike))
    faults = [verdict for verdict in found if verdict[0] in FAULTS]
    if not faults and (WENT_ON, "") not in found:
        return TRACEBACK, f"none went on: {found[0][1]}"
    return faults[0] if faults else (WENT_ON, "")


# -------------------------------------------------------------------------------------------------------- the campaign

PARTS = {"inputs": input_trials, "kills": kill_trials, "damages": damage_trials, "together": together_trials}
planned: list[tuple[str, Trial]] = []
"""Part and trial, as the processes that are forked find them."""


def attempt(number: int, runs: Runs, seed: int) -> Verdict:
    part, trial = planned[number]
    place = runs.place(f"trials/{number}", trial.source)
    try:
        outcome, why = trial.do(place)
    except Exception as error:  # of any kind: what is left cannot be read
        outcome, why = DIFFERENT, f"what is left cannot be read: {error!r}"
    if outcome in FAULTS:
        again = ["python", "benchmarks/campaign.py", "--part", part, "--seed", str(seed), "--trials", "1"]
        again += ["--only", f"^{re.escape(f'{trial.group}: {trial.name}')}$"]
        again += [] if part == "inputs" else ["--runs", *runs.moments]
        text = f"{trial.group}: {trial.name}\n{outcome}: {why}\n\ncd here && {shlex.join(['precede', *trial.words])}\n"
        text += f"or, with all that is around it: {shlex.join(again)}\n"
        (place.root / "trial.txt").write_text(text, "utf-8", "backslashreplace")
    else:
        shutil.rmtree(place.root, ignore_errors=True)
    return outcome, why


def table(rows: Mapping[tuple[str, str], Counter[str]]) -> Iterator[str]:
    yield f"| part | group | tried | {' | '.join(OUTCOMES)} |"
    yield "| --- " * (3 + len(OUTCOMES)) + "|"
    for (part, group), counts in [*rows.items(), (("all", ""), sum(rows.values(), Counter()))]:
        yield f"| {part} | {group} | {counts.total()} | {' | '.join(str(counts[name]) for name in OUTCOMES)} |"


def status(rows: Mapping[tuple[str, str], Counter[str]]) -> int:
    return int(any(counts[name] for counts in rows.values() for name in FAULTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append", help="may be repeated; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--trials", type=int, nargs="+", help=f"of the parts in turn, the last of all others; default {NUMBERS}"
    )
    parser.add_argument("--only", type=re.compile, default=re.compile(""))
    parser.add_argument("--runs", choices=RUNS, nargs="+", default=[*RUNS])
    parser.add_argument("--keep", type=Path, help="a folder that is not there yet")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    arguments = parser.parse_args()
    for name in (
        "jobs.build",
        "jobs.compare",
        "jobs.audit",
        "worlds.mixture.world",
        "worlds.grammar.world",
        "cli.main",
    ):
        importlib.import_module(f"precede.{name}")
    for module, name in (("peft", "PeftModel"), *(("trl", f"{name}Trainer") for name in ("SFT", "DPO", "RLOO"))):
        getattr(importlib.import_module(module), name)
    made = tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True)
    runs, rows = Runs((arguments.keep or Path(made.name)).absolute()), {}
    parts = [part for part in PARTS if part in (arguments.part or PARTS)]
    for number, part in enumerate(parts):
        count = NUMBERS[part] if arguments.trials is None else arguments.trials[: number + 1][-1]
        if part != "inputs":
            runs.prepare(arguments.runs, halves=part == "damages")
        chosen: dict[str, Trial] = {}
        for looked, trial in enumerate(PARTS[part](random.Random(f"{arguments.seed} {part}"), runs, arguments.seed)):
            if len(chosen) == count or looked > 10**5:
                break
            if arguments.only.search(f"{trial.group}: {trial.name}"):
                chosen.setdefault(trial.name, trial)
        given = [trial.do.args[0] for trial in chosen.values() if part == "inputs"]
        runs.prepare(one.run for one in given if one.expect == "same")
        planned.extend((part, trial) for trial in chosen.values())
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("fork")) as pool:
        verdicts = pool.map(partial(attempt, runs=runs, seed=arguments.seed), range(len(planned)))
        for (part, trial), (outcome, why) in zip(planned, verdicts, strict=True):
            rows.setdefault((part, trial.group), Counter())[outcome] += 1
            if outcome in FAULTS:
                print(ascii(f"{outcome}: {trial.group}: {trial.name}: {why[:300]}")[1:-1], file=sys.stderr, flush=True)
    print("\n".join(table(rows)))
    made.cleanup()
    raise SystemExit(status(rows))


if __name__ == "__main__":
    main()
