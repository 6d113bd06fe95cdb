"""Small runs of every kind for `campaign.py`: their material, their start in a forked process, their end, what they leave."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import yaml

from precede.libraries import transformers
from precede.machine import cores
from precede.models.load import save
from precede.worlds.grammar.chains import tokenizer

SECONDS = 120.0
"""After which a run hangs, of the wall's clock on a machine that is not busy; an undisturbed one takes a tenth of it."""
ROOM = 4 * 2**30
"""Bytes of address space that a run may take beside what is imported, and of a file."""
STAYS = 10.0
"""Seconds in which the workers of a run must end with it."""
MACHINE = {"wall_seconds", "cpu_seconds", "peak_memory_bytes", "folder", "command"}
"""What differs from run to run in what is left."""

# ---------------------------------------------------------------------------------------------------- what is run

ROWS, VOCABULARY = 48, 32
REWARD = (
    "def some(prompts, completions, **_):\n    return [float(sum(map(ord, text)) % 3 > 0) for text in completions]\n"
)
RECIPES: dict[str, dict[str, Any]] = yaml.safe_load("""
mixture:
  world: {kind: mixture}
  teacher: {samples: 60, restarts: 1}
  align: {method: ppo, steps: 3, samples: 64}
  distill: {samples: 60, restarts: 1}
  orders: &both [align > distill, distill > align]
  seeds: 2
  sweep: [{align.method: [ppo, dpo]}]
grammar:
  world: {kind: grammar, worlds: 1, target_weight: 0.1, vocabulary: 12, max_new_tokens: 5, modes: 3, subset: 6, starts: 3,
          successors: 2, target_modes: [2]}
  teacher: {hidden_size: 16, layers: 1, trainer: {max_steps: 4, per_device_train_batch_size: 16}}
  student: {hidden_size: 16, layers: 1}
  evaluation: {samples_per_prompt: 50}
  align: {method: rloo, trainer: {max_steps: 2, per_device_train_batch_size: 16}}
  distill: {samples_per_prompt: 50, trainer: {max_steps: 4, per_device_train_batch_size: 16}}
  orders: *both
  seeds: 1
text: &text
  teacher: teacher
  student: {keep_layers: 2}
  data: {source: pairs.jsonl}
  world: &world {kind: text, device: cpu, max_new_tokens: 6, reward: "reward.py:some"}
  evaluation: {samples_per_prompt: 1, pairs: 8}
  align: &stage {trainer: &trainer {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 0.001}}
  distill: *stage
  orders: *both
  seeds: 1
prompt:
  <<: *text
  world: {<<: *world, prompt: a b, truth: truth.jsonl}
  data: null
  evaluation: {samples_per_prompt: 20}
  align: {method: rloo, trainer: *trainer}
dpo: {<<: *text, sft: *stage, orders: [sft > align > distill]}
lora:
  <<: *text
  align: &lora {trainer: *trainer, lora: {rank: 2}}
  distill: *lora
  orders: [align > distill]
rloo:
  <<: *text
  align: {method: rloo, trainer: {<<: *trainer, num_generations: 2}}
  orders: [align > distill]
  skip: [audit]
distil:
  <<: *text
  distill: {method: on_policy, trainer: *trainer}
  again: {kind: distill, method: token, start: parent, trainer: *trainer}
  orders: [distill > again]
  skip: [audit]
""")
COMPARED = ("mixture", "grammar", "text", "prompt")
LEAVE = ("--out", "out", "--store", "store")
RUNS: dict[str, tuple[str, ...]] = {
    **{
        name: ("compare" if name in COMPARED else "build", f"{name}.yaml", "--workers", "1", *LEAVE) for name in RECIPES
    },
    "workers": ("compare", "mixture.yaml", "--workers", "2", *LEAVE),
    "audit": (
        "audit",
        "teacher",
        "--data",
        "pairs.jsonl",
        "--reward",
        "reward.py:some",
        "--samples",
        "2",
        "--out",
        "out",
    ),
}


def make_material(folder: Path) -> None:
    """Everything that the runs read: models, pairs in every format, a truth, completions, a reward, recipes."""
    words, draw = tokenizer(VOCABULARY), random.Random(0)
    for name, layers in (("teacher", 4), ("student", 2)):
        torch.manual_seed(layers)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4}
        shape |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "eos_token_id": 1}
        config = transformers().LlamaConfig(**shape, initializer_range=0.3)
        save(transformers().LlamaForCausalLM(config), words, folder / name)

    def text(count: int) -> str:
        return " ".join(words.convert_ids_to_tokens([draw.randrange(2, VOCABULARY) for _ in range(count)]))

    rows = [{"prompt": text(3), "chosen": f" {text(4)}", "rejected": f" {text(4)}"} for _ in range(ROWS)]
    write_lines(folder / "pairs.jsonl", rows)
    (folder / "pairs.json").write_text(json.dumps(rows), "utf-8")
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress((folder / "pairs.jsonl").read_bytes(), mtime=0))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "pairs.parquet")
    write_lines(folder / "truth.jsonl", [{"text": f"a b {text(4)}"} for _ in range(ROWS)])
    write_lines(folder / "completions.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
    (folder / "reward.py").write_text(REWARD, "utf-8")
    for name, recipe in RECIPES.items():
        plain = json.loads(json.dumps(recipe | {"recipe": name}))  # without anchors
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), "utf-8")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


# -------------------------------------------------------------------------------------------------- start and end


@dataclass(frozen=True)
class Around:
    """What a run is started in."""

    environment: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    """Limits of `resource`, by name."""
    output: str | None = None
    """A file in place of the standard output, or `closed`."""
    fresh: bool = False
    """Whether it needs a Python of its own."""


@dataclass(frozen=True)
class Place:
    """A trial's own folder: `here`, in which its runs work, a home, and what they say."""

    root: Path

    @property
    def here(self) -> Path:
        return self.root / "here"

    def said(self, name: str, number: int = 0) -> str:
        path = self.root / f"{name}{number}"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def files(self) -> list[str]:
        """All files of `here` and the home; names that a process makes up are called `unfinished`."""
        found = []
        for top in (self.here, self.root / "home"):
            for folder, _, names in os.walk(top):
                if "__pycache__" not in folder:
                    found += [f"{os.path.relpath(folder, self.root)}/{name}" for name in names]
        return sorted({re.sub(r"[^/]*@\d+-[^/]*|\.\w+\.\d+(?=/)", "unfinished", name) for name in found})


@dataclass(frozen=True)
class Ended:
    """How a run ended: its status (None: it hung, negative: by a signal), what it said, and the files that are new."""

    status: int | None
    output: str
    errors: str
    new: tuple[str, ...] = ()


def start(place: Place, words: tuple[str, ...], around: Around | None = None, number: int = 0) -> int:
    """Fork a process that runs `precede` with these words; it leads a group of its own."""
    if pid := os.fork():
        return pid
    status, around = 1, around or Around()
    try:
        os.setsid()
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # it is ignored where a campaign runs in the background
        os.chdir(place.here)
        variables = {"HOME": str(place.root / "home"), "PRECEDE_CACHE": None, "COLUMNS": "200", **around.environment}
        for name, value in variables.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        _streams(place, around, number)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        for name, limit in {"RLIMIT_AS": size + ROOM, "RLIMIT_FSIZE": ROOM, **around.limits}.items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        if around.fresh:
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


def _streams(place: Place, around: Around, number: int) -> None:
    """Standard input says yes to all that is asked; output and errors go to files beside `here`, or as `around` has it."""
    new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    if around.output == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(around.output or place.root / f"output{number}", new)
    (place.root / "input").write_text("y\n" * 99)
    streams = (os.open(place.root / "input", os.O_RDONLY), writer, os.open(place.root / f"errors{number}", new))
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
    sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace")


def patience() -> float:
    """Seconds to wait for a run, on a machine as busy as it is."""
    return SECONDS * max(1.0, os.getloadavg()[0] / cores())


def end(pid: int) -> int | None:
    """The status of a process that has ended, with all of its group; None where they had to be killed: it hung."""
    limit, status = time.monotonic() + patience(), None
    while time.monotonic() < limit:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            status, limit = os.waitstatus_to_exitcode(code), time.monotonic() + STAYS
            while members(pid) and time.monotonic() < limit:
                time.sleep(0.05)
            break
        time.sleep(0.01)
    if status is not None and not members(pid):
        return status
    stop_group(pid)
    with contextlib.suppress(ChildProcessError):
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
    return sorted({*found} - {pid})


def run(place: Place, words: tuple[str, ...], around: Around | None = None, number: int = 0) -> Ended:
    before = place.files()
    status = end(start(place, words, around, number))
    new = tuple(name for name in place.files() if name not in before)
    return Ended(status, place.said("output", number), place.said("errors", number), new)


def wait_for(place: Place, pid: int, ready: Callable[[list[str]], bool]) -> bool:
    """Until the files are such (True), or the process has ended, which stays to be waited for."""
    limit = time.monotonic() + patience()
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < limit:
        if ready(place.files()):
            return True
        time.sleep(0.005)
    return False


def left(place: Place, out: str = "out", unread: Iterable[str] = ()) -> dict[str, Any]:
    """What a run leaves in its output folder, without what depends on the machine, and without the keys `unread`."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items() if name not in MACHINE and name not in unread}
        return [plain(part) for part in value] if isinstance(value, list) else value

    found: dict[str, Any] = {}
    for path in sorted((place.here / out).rglob("*")):
        name = path.relative_to(place.here / out).as_posix()
        if path.suffix == ".json":
            found[name] = plain(json.loads(path.read_text("utf-8").replace(str(place.here), ".")))
        elif path.suffix in (".safetensors", ".parquet"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def difference(one: Any, other: Any, path: str = "") -> str:
    """Where two things that were left differ first, and how; empty where they do not."""
    if isinstance(one, dict) and isinstance(other, dict):
        parts = [(name, one.get(name, "nothing"), other.get(name, "nothing")) for name in sorted({*one, *other})]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [(str(place), *pair) for place, pair in enumerate(zip(one, other, strict=True))]
    else:
        return "" if one == other else f"{path} is {one!r:.80}, not {other!r:.80}"
    return next((told for name, *pair in parts if (told := difference(*pair, f"{path} {name}"))), "")


# ------------------------------------------------------------------------------------------------- whole and half runs


class Runs:
    """In `folder` the material, of each kind of run the undisturbed one, and what kills between two checkpoints left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.moments: dict[str, list[str]] = {}
        """The files that an undisturbed run writes, in their order."""
        self.halves: list[tuple[str, Place]] = []
        if not (pid := os.fork()):  # this process starts no threads, so that it can be forked
            make_material(folder / "material")
            os._exit(0)
        os.waitpid(pid, 0)

    def place(self, name: str, source: Path | None = None) -> Place:
        place = Place(self.folder / name)
        (place.root / "home").mkdir(parents=True)
        shutil.copytree(source or self.folder / "material", place.here, symlinks=True)
        return place

    def whole(self, name: str) -> Place:
        return Place(self.folder / "whole" / name)

    def prepare(self, names: Iterable[str], halves: bool = False) -> None:
        """Make the whole runs that are not there, and with `halves` those that are killed."""
        for name in names:
            if name not in self.moments:
                self._make_whole(name)
        for name, moments in self.moments.items() if halves else ():
            for moment in moments:
                if moment.endswith("checkpoint-2/SHA256SUMS") and name != "workers":
                    self._make_half(name, moment)

    def _make_whole(self, name: str) -> None:
        place = self.place(f"whole/{name}")
        before = {*place.files()}
        pid, seen = start(place, RUNS[name]), dict.fromkeys(before)

        def note(there: list[str]) -> bool:
            seen.update(dict.fromkeys(there))
            return False

        wait_for(place, pid, note)
        if end(pid) or not left(place):
            raise SystemExit(f"undisturbed, {name} does not end well: {place.said('errors')}")
        self.moments[name] = [file for file in seen if file not in before]

    def _make_half(self, name: str, moment: str) -> None:
        place = self.place(f"half/{name}-{len(self.halves)}")
        pid = start(place, RUNS[name])
        wait_for(place, pid, lambda there: moment in there)
        stop_group(pid)
        os.waitpid(pid, 0)
        if moment in place.files():
            self.halves.append((name, place))
