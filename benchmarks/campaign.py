"""What wrong inputs, kills, damaged files and runs at the same time do to precede: a table of counts, and status 1 for a fault.

    python benchmarks/campaign.py [--part inputs|kills|damages|together] [--seed 0] [--trials N] [--only REGEX] [--keep FOLDER]

Every trial is a small run of the command line (`campaign_inputs.RUNS`) in a folder of its own, in a process that is forked from
one that has imported everything. It ends as it should in one of three ways:

- one sentence: status 2, one line, nothing written (what only the run can show: status 1 and a line);
- went on: status 0, and what it leaves is what the undisturbed run leaves, but for times;
- stopped, then equal: what was killed is run again by the same command, and went on;

or with a fault: a traceback (or any end without its sentence), a hang (also a process that stays behind), late (told only when
files were written, or by status 1), different (accepted, other numbers, code of an input that ran, raw markup in a page).
`--keep` keeps the folder of each fault with its command; `--only` takes the trials whose "group: name" has the pattern.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import resource
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

from campaign_inputs import BYTES, RUNS, Trial, inputs, make_material

SENTENCE, WENT_ON, EQUAL = "one sentence", "went on", "stopped, then equal"
TRACEBACK, HANG, LATE, DIFFERENT = "traceback", "hang", "late", "different"
OUTCOMES = (SENTENCE, WENT_ON, EQUAL, TRACEBACK, HANG, LATE, DIFFERENT)
FAULTS = (TRACEBACK, HANG, LATE, DIFFERENT)
NUMBERS = {"inputs": 400, "kills": 60, "damages": 80, "together": 12}
"""Trials of each part where nothing else is asked for."""
SECONDS = 120.0
"""After which a run hangs; the longest undisturbed one takes a tenth of it."""
ROOM = 4 * 2**30
"""Bytes of address space that a run may take beside what is imported."""
STAYS = 10.0
"""Seconds in which the workers of a run must end with it."""
MACHINE = {"wall_seconds", "cpu_seconds", "peak_memory_bytes", "folder", "command"}
"""What differs from run to run in what is left."""
CONTENT = {"key", "data", "recipe"}
"""What differs where the same rows are written otherwise."""
Verdict = tuple[str, str]
"""An outcome and why."""


# ------------------------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class Place:
    """A trial's own folder: `here`, in which the run works, a home, and what it says."""

    root: Path

    @property
    def here(self) -> Path:
        return self.root / "here"

    def said(self, name: str, number: int = 0) -> str:
        path = self.root / f"{name}{number}"
        return path.read_text("utf-8", "replace") if path.exists() else ""


@dataclass(frozen=True)
class Ended:
    """How a run ended: its status (None: it did not, negative: by a signal), what it said, and the files that are new."""

    status: int | None
    output: str
    errors: str
    new: tuple[str, ...] = ()


def start(place: Place, words: tuple[str, ...], trial: Trial | None = None, number: int = 0) -> int:
    """Fork a process that runs `precede` with these words; it leads a group of its own."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        os.chdir(place.here)
        variables = {"HOME": str(place.root / "home"), "PRECEDE_CACHE": None, "COLUMNS": "200"}
        for name, value in {**variables, **(trial.environment if trial else {})}.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        _streams(place, trial, number)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limits = {"RLIMIT_AS": size + ROOM, "RLIMIT_FSIZE": ROOM, **(trial.limits if trial else {})}
        for name, limit in limits.items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        if trial and trial.fresh:
            os.execv(sys.executable, [sys.executable, "-m", "precede", *words])
        sys.argv = ["precede", *words]
        runpy.run_module("precede", run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _streams(place: Place, trial: Trial | None, number: int) -> None:
    """Standard input says yes to whatever is asked; output and errors go to files beside `here`, or where the trial says."""
    output = str(place.root / f"output{number}")
    if trial and trial.output == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(trial.output if trial and trial.output else output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    (place.root / "input").write_text("y\n" * 99)
    errors = os.open(place.root / f"errors{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for place_of, stream in enumerate((os.open(place.root / "input", os.O_RDONLY), writer, errors)):
        os.dup2(stream, place_of)
    sys.stdin, sys.stdout = open(0, encoding="utf-8", closefd=False), open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def end(pid: int, seconds: float = SECONDS) -> int | None:
    """The status of a process when it has ended; None, and its group is killed, where it has not within the seconds."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    stop_group(pid)
    os.waitpid(pid, 0)
    return None


def stop_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def members(pid: int) -> list[int]:
    """The other living processes of the group of `pid`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text("utf-8", "replace").rpartition(")")[2].split()[:3]
            found += [int(path.parent.name)] * (int(group) == pid and state != "Z")
    return [one for one in found if one != pid]


def left_behind(pid: int) -> bool:
    """Whether a process of the group lives on after its leader has ended; they are killed then."""
    limit = time.monotonic() + STAYS
    while members(pid):
        if time.monotonic() > limit:
            stop_group(pid)
            return True
        time.sleep(0.05)
    return False


def run(place: Place, words: tuple[str, ...], trial: Trial | None = None, number: int = 0) -> Ended:
    before = files(place)
    pid = start(place, words, trial, number)
    status = end(pid)
    if status is not None and left_behind(pid):
        status = None
    new = tuple(name for name in files(place) if name not in before)
    return Ended(status, place.said("output", number), place.said("errors", number), new)


def files(place: Place) -> list[str]:
    """All files in `here` and in the home; what a process writes under a name of its own is called `unfinished`."""
    found = []
    for top in (place.here, place.root / "home"):
        for folder, _, names in os.walk(top):
            if "__pycache__" not in folder:
                found += [f"{os.path.relpath(folder, place.root)}/{name}" for name in names]
    return sorted({re.sub(r"[^/]*@\d+-[^/]*|\.\w+\.\d+(?=/)", "unfinished", name) for name in found})


def left(place: Place, out: str = "out", unread: frozenset[str] = frozenset()) -> dict[str, Any]:
    """What a run leaves in its output folder, without what depends on the machine."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items() if name not in MACHINE | unread}
        return [plain(part) for part in value] if isinstance(value, list) else value

    found: dict[str, Any] = {}
    for path in sorted((place.here / out).rglob("*")):
        name = path.relative_to(place.here / out).as_posix()
        if path.suffix == ".json":
            found[name] = plain(json.loads(path.read_text("utf-8").replace(str(place.here), ".")))
        elif path.suffix in (".safetensors", ".parquet"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


# ------------------------------------------------------------------------------------------------------------ judging


def judge(ended: Ended, expect: str, same: bool | None) -> Verdict:
    """The outcome of a run on an input of which this is expected (`Trial.expect`); `same`: whether it left what it should."""
    lines = [line for line in ended.errors.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if ended.status is None:
        return HANG, f"after {SECONDS:.0f} s, {last}"
    if "Traceback (most recent call last)" in ended.errors:
        return TRACEBACK, last
    if ended.status == 0:
        if expect == "refused":
            return DIFFERENT, "accepted"
        return (DIFFERENT, "other numbers") if same is False else (WENT_ON, "")
    if re.search(r"[^\n\t -~\x80-\U0010ffff]|[\x80-\x9f\u202a-\u202e]", ended.output + ended.errors):
        return TRACEBACK, f"controls reach the terminal: {last!r}"
    told = last.startswith("precede: ") and len(last) < 2000
    if ended.status == 2 and (told and len(lines) == 1 or "Usage: precede" in ended.errors):
        return (LATE, f"{len(ended.new)} files, such as {ended.new[0]}: {last}") if ended.new else (SENTENCE, last)
    if ended.status > 0 and told:
        return (SENTENCE if expect == "stops" else LATE), f"status {ended.status}: {last}"
    return TRACEBACK, f"status {ended.status}, {len(lines)} lines: {last[:500]}"


def of_input(trial: Trial, place: Place, world: World) -> Verdict:
    try:
        trial.change(place.here, random.Random(trial.name))
    except (OSError, ValueError) as error:  # a name that no file can have
        return SENTENCE, f"the system itself refuses it: {error}"
    ended = run(place, (*RUNS[trial.run], *trial.words), trial)
    same = None
    if ended.status == 0 and trial.expect == "same":
        same = left(place, unread=frozenset(CONTENT)) == left(world.whole(trial.run), unread=frozenset(CONTENT))
    if any(path.name.startswith("pwned") for path in place.root.rglob("*")):
        return DIFFERENT, "code of the input ran, or it wrote outside its folder"
    for path in [*place.here.glob("out*/**/*.html"), *place.here.glob("out*/**/*.md")]:
        if re.search(r"<script>alert|<img src=x", path.read_text("utf-8", "replace")):
            return DIFFERENT, f"markup of the input stands in {path.name}"
    return judge(ended, trial.expect, same)


def again(place: Place, run_name: str, world: World, stopped: bool, number: int = 1) -> Verdict:
    """The same command once more: it must leave what the undisturbed run leaves, or say in one sentence why not."""
    ended = run(place, RUNS[run_name], number=number)
    finished = ended.status == 2 and "is there already" in ended.errors  # a build that ended before it was killed
    same = left(place) == left(world.whole(run_name)) if ended.status == 0 or finished else None
    if finished and same:
        return EQUAL, ""
    outcome, why = judge(Ended(ended.status, ended.output, ended.errors), "any", same)
    if stopped and outcome == SENTENCE:
        return TRACEBACK, f"it does not go on: {why}"
    return (EQUAL if stopped and outcome == WENT_ON else outcome), why


# ------------------------------------------------------------------------------------------------- whole and half runs


class World:
    """The material, and of each kind of run the undisturbed one, and states that a kill between two checkpoints left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.moments: dict[str, list[str]] = {}
        self.halves: list[tuple[str, str]] = []
        in_fork(lambda: make_material(folder / "material"))

    def place(self, name: str, source: Path | None = None) -> Place:
        place = Place(self.folder / name)
        place.root.mkdir(parents=True)
        (place.root / "home").mkdir()
        shutil.copytree(source or self.folder / "material", place.here, symlinks=True)
        return place

    def whole(self, run_name: str) -> Place:
        return Place(self.folder / "whole" / run_name)

    def prepare(self, names: Iterable[str], halves: bool = False) -> None:
        """Make the whole runs that are not there, and the halves of those with checkpoints."""
        for name in names:
            if name not in self.moments:
                self.make_whole(name)
                if halves:
                    self.make_halves(name)

    def make_whole(self, run_name: str) -> None:
        """Run it undisturbed; `moments` are the files that it wrote, in their order."""
        place = self.place(f"whole/{run_name}")
        before = {*files(place)}
        pid, seen = start(place, RUNS[run_name]), dict.fromkeys(before)
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            seen |= dict.fromkeys(files(place))
            time.sleep(0.001)
        if ended[1] or not left(place):
            raise SystemExit(f"undisturbed, {run_name} does not end well: {place.said('errors')}")
        self.moments[run_name] = [name for name in seen if name not in before]

    def make_halves(self, run_name: str) -> None:
        """What a kill behind the second checkpoint of each stage leaves."""
        states = [name for name in self.moments[run_name] if name.endswith("checkpoint-2/trainer_state.json")]
        for number, moment in enumerate(states):
            place = self.place(f"half/{run_name}-{number}")
            pid = start(place, RUNS[run_name])
            wait_for(place, pid, lambda there, moment=moment: moment in there)
            stop_group(pid)
            os.waitpid(pid, 0)
            if moment in files(place):
                self.halves.append((run_name, place.root.name))


def in_fork(work: Callable[[], None]) -> None:
    """Do something in a child, so that this process starts no threads and can be forked."""
    if not (pid := os.fork()):
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the material could not be made")


def wait_for(place: Place, pid: int, ready: Callable[[list[str]], bool]) -> bool:
    """Until the files are such, or the process has ended, which stays to be waited for."""
    limit = time.monotonic() + SECONDS
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < limit:
        if ready(files(place)):
            return True
        time.sleep(0.001)
    return False


# ------------------------------------------------------------------------------------- kills, damages, runs at once


@dataclass(frozen=True)
class Kill:
    """A signal to the `target` (main, worker, group) at a moment of a run: before, during or after the writing of a file."""

    group: str
    name: str
    run: str
    moments: tuple[str, str]
    """The file that is written before, and the file."""
    phase: str
    target: str
    signal: str


def kills(draw: random.Random, world: World) -> Iterator[Kill]:
    while True:
        for run_name, moments in world.moments.items():
            kind = draw.choice(sorted({name.split("/")[1:3][-1] if "store" in name else "out" for name in moments}))
            place = draw.choice([at for at, name in enumerate(moments) if kind in name] or [0])
            phase, sent = draw.choice(("before", "during", "after")), draw.choice(("KILL", "KILL", "TERM", "INT"))
            target = draw.choice(("main", "group", *(("worker",) * 2 if run_name == "workers" else ())))
            name = f"{run_name}: {sent} to the {target} {phase} {moments[place].partition('/')[2]}"
            pair = (moments[max(0, place - 1)], moments[place])
            yield Kill(f"{sent} to the {target}", name, run_name, pair, phase, target, sent)


def of_kill(trial: Kill, place: Place, world: World) -> Verdict:
    pid = start(place, RUNS[trial.run])
    awaited = trial.moments[0 if trial.phase == "before" else 1]
    workers: list[int] = []

    def ready(there: list[str]) -> bool:
        workers[:] = members(pid) if trial.target == "worker" and awaited in there else []
        return awaited in there and bool(workers or trial.target != "worker")

    if wait_for(place, pid, ready):
        time.sleep(0.02 * (trial.phase == "after"))
        number = getattr(signal, f"SIG{trial.signal}")
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if trial.target == "group" else os.kill)(max(workers, default=pid), number)
    status, errors = end(pid), place.said("errors")
    lines = [line for line in errors.splitlines() if line.strip()]
    if status is None or left_behind(pid):
        return HANG, "a process lives on"
    if "Traceback (most recent call last)" in errors:
        return TRACEBACK, lines[-1]
    if status and trial.signal != "KILL" and not (lines and lines[-1].startswith("precede: ")):
        return TRACEBACK, f"status {status} without a sentence"
    if status == 0:
        return (WENT_ON, "") if left(place) == left(world.whole(trial.run)) else (DIFFERENT, "other numbers")
    return again(place, trial.run, world, stopped=True)


@dataclass(frozen=True)
class Damage:
    """A file of what a whole run (`half` is empty) or a killed one left, and what is done to it."""

    group: str
    name: str
    run: str
    half: str
    file: str
    how: str


def damages(draw: random.Random, world: World) -> Iterator[Damage]:
    places = [("store", name, "") for name in world.moments if name != "audit"]
    places += [("outputs", name, "") for name in world.moments if RUNS[name][0] != "build"]
    places += [("checkpoints", *half) for half in world.halves for _ in range(2)]
    while True:
        draw.shuffle(places)
        for what, run_name, half in places:
            place = Place(world.folder / "half" / half) if half else world.whole(run_name)
            top = place.here / {"store": "store", "outputs": "out", "checkpoints": "store/checkpoints"}[what]
            found = sorted(path for path in top.rglob("*") if path.is_file() and path.stat().st_size)
            file, how = draw.choice(found).relative_to(place.here).as_posix(), draw.choice([*BYTES])
            yield Damage(what, f"{half or run_name}: {file}, {how}", run_name, half, file, how)


def of_damage(trial: Damage, place: Place, world: World) -> Verdict:
    BYTES[trial.how](place.here / trial.file, random.Random(trial.name))
    if RUNS[trial.run][0] == "build" and not trial.half:
        shutil.rmtree(place.here / "out")
    return again(place, trial.run, world, stopped=False)


@dataclass(frozen=True)
class Together:
    """Runs at the same time, with one store, each with its output or all with the same; the first may be killed."""

    group: str
    name: str
    run: str
    seconds: tuple[float, ...]
    one_output: bool
    killed: bool


def together(draw: random.Random, world: World) -> Iterator[Together]:
    for number in range(10**6):
        for run_name in world.moments:
            count, one, killed = draw.choice((2, 2, 3)), draw.random() < 0.5, draw.random() < 0.3
            seconds = tuple(round(draw.random(), 2) for _ in range(count))
            what = f"{'one output' if one else 'own outputs'}{', one killed' if killed else ''}"
            yield Together(f"{count} runs", f"{run_name}: {what} ({number})", run_name, seconds, one, killed)


def of_together(trial: Together, place: Place, world: World) -> Verdict:
    outs = ["out" if trial.one_output else f"out{number}" for number in range(len(trial.seconds))]
    pids, expected = [], left(world.whole(trial.run))
    for number, (out, pause) in enumerate(zip(outs, trial.seconds, strict=True)):
        pids.append(start(place, (*RUNS[trial.run], "--out", out), number=number))
        time.sleep(pause)
    if trial.killed:
        stop_group(pids[0])
    found = []
    for number, (pid, out) in enumerate(zip(pids, outs, strict=True)):
        status, stays = end(pid), left_behind(pid)
        same = left(place, out) == expected if status == 0 else None
        if not (trial.killed and number == 0 and status == -signal.SIGKILL):
            ended = Ended(None if stays else status, place.said("output", number), place.said("errors", number))
            found.append(judge(ended, "any", same))
    faults = [one for one in found if one[0] in FAULTS]
    if not faults and all(outcome == SENTENCE for outcome, _ in found):
        return TRACEBACK, f"none went on: {found[0][1]}"
    return faults[0] if faults else (WENT_ON, "")


# -------------------------------------------------------------------------------------------------------- the campaign

PARTS: dict[str, Callable[..., Verdict]] = {
    "inputs": of_input,
    "kills": of_kill,
    "damages": of_damage,
    "together": of_together,
}
planned: list[tuple[str, Any]] = []
"""Part and trial, as the processes that are forked find them."""
worlds: list[World] = []


def attempt(number: int) -> Verdict:
    (part, trial), (world,) = planned[number], worlds
    source = None
    if part == "damages":
        source = (Place(world.folder / "half" / trial.half) if trial.half else world.whole(trial.run)).here
    place = world.place(f"trials/{number}", source)
    try:
        outcome, why = PARTS[part](trial, place, world)
    except Exception as error:  # what was left cannot be read
        outcome, why = DIFFERENT, f"what is left cannot be read: {error!r}"
    if outcome in FAULTS:
        words = getattr(trial, "words", ())
        variables = [f"{name}={value or ''}" for name, value in getattr(trial, "environment", {}).items()]
        command = shlex.join(["env", *variables, "precede", *RUNS[trial.run], *words])
        text = f"{trial.group}: {trial.name}\n{outcome}: {why}\ncd here && {command}\n"
        (place.root / "trial.txt").write_text(text, "utf-8", "backslashreplace")
    else:
        shutil.rmtree(place.root, ignore_errors=True)
    return outcome, why


def chosen(part: str, seed: int, count: int, only: re.Pattern[str], world: World) -> list[Any]:
    """So many trials of a part, no two of one name; those whose group and name have the pattern."""
    draw = random.Random(f"{seed} {part}")
    source: dict[str, Callable[[], Any]] = {"inputs": lambda: inputs(seed), "kills": partial(kills, draw, world)}
    source |= {"damages": partial(damages, draw, world), "together": partial(together, draw, world)}
    found: dict[str, Any] = {}
    for looked, trial in enumerate(source[part]()):
        if len(found) == count or looked > 10**5:
            break
        if only.search(f"{trial.group}: {trial.name}"):
            found.setdefault(trial.name, trial)
    return list(found.values())


def table(rows: Mapping[tuple[str, str], Counter[str]]) -> Iterator[str]:
    yield f"| part | group | tried | {' | '.join(OUTCOMES)} |"
    yield "| --- " * (3 + len(OUTCOMES)) + "|"
    total = sum(rows.values(), Counter())
    for (part, group), counts in [*rows.items(), (("all", ""), total)]:
        yield f"| {part} | {group} | {counts.total()} | {' | '.join(str(counts[name]) for name in OUTCOMES)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, help=f"of each part; default {NUMBERS}")
    parser.add_argument("--only", type=re.compile, default=re.compile(""))
    parser.add_argument("--keep", type=Path, help="must not be there yet")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    arguments = parser.parse_args()
    parts = arguments.part or [*PARTS]
    for name in ("jobs.build", "jobs.compare", "jobs.audit", "worlds.mixture.world", "worlds.grammar.world", "cli.main"):
        importlib.import_module(f"precede.{name}")
    importlib.import_module("peft")
    [getattr(importlib.import_module("trl"), f"{name}Trainer") for name in ("SFT", "DPO", "RLOO")]
    made = tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True)
    world = World(arguments.keep or Path(made.name))
    worlds.append(world)
    rows: dict[tuple[str, str], Counter[str]] = {}
    for part in sorted(parts, key=[*PARTS].index):  # inputs first, few of which are held against an undisturbed run
        if part != "inputs":
            world.prepare([*RUNS], halves="damages" in parts)
        count = NUMBERS[part] if arguments.trials is None else arguments.trials
        trials = chosen(part, arguments.seed, count, arguments.only, world)
        world.prepare(trial.run for trial in trials if getattr(trial, "expect", "") == "same")
        planned.extend((part, trial) for trial in trials)
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("fork")) as pool:
        for (part, trial), (outcome, why) in zip(planned, pool.map(attempt, range(len(planned))), strict=True):
            rows.setdefault((part, trial.group), Counter())[outcome] += 1
            if outcome in FAULTS:
                print(ascii(f"{outcome}: {trial.group}: {trial.name}: {why[:300]}")[1:-1], file=sys.stderr, flush=True)
    print("\n".join(table(rows)))
    made.cleanup()
    raise SystemExit(int(any(counts[name] for counts in rows.values() for name in FAULTS)))


if __name__ == "__main__":
    main()
