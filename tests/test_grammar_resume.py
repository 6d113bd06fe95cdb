"""A comparison in the grammar world by the command line, killed in the middle of its work, against one left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import PRECEDE
from precede.jobs.compare import compare
from precede.plan import STAGES
from precede.settings.recipe import read_recipe
from test_grammar_tiny import TINY

MACHINE = ("wall_seconds", "cpu_seconds", "peak_memory_bytes", "folder")


def numbers(path: Path) -> Any:
    """results.json without what depends on the machine."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items() if name not in MACHINE}
        return [plain(part) for part in value] if isinstance(value, list) else value

    return plain(json.loads((path / "results.json").read_text("utf-8")))


def finished(store: Path) -> dict[str, str]:
    """Key → kind of all that is finished."""
    kept = (path.with_name("manifest.json") for path in store.glob("??/*/SHA256SUMS"))
    return {path.parent.name: json.loads(path.read_text("utf-8"))["entry"]["kind"] for path in kept}


def stages_in(kinds: Iterable[str]) -> int:
    return sum(kind in ("teacher", *STAGES) for kind in kinds)


def training(store: Path) -> bool:
    """A stage beyond the teacher is at its optimiser's steps."""
    logs = [path for path in (store / "checkpoints").glob("*/metrics.jsonl") if path.parent.name not in finished(store)]
    return stages_in(finished(store).values()) >= 1 and any(path.stat().st_size for path in logs)


def measuring(store: Path) -> bool:
    """A stage beyond the teacher is finished, and not yet measured: nothing is written before the numbers are there."""
    kinds = list(finished(store).values())
    return stages_in(kinds) > max(1, kinds.count("measure")) and any((store / "unfinished").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("moment", [training, measuring])
def test_killed_in_the_middle_of_work_it_goes_on_to_the_same_numbers(
    moment: Callable[[Path], bool], tmp_path: Path, whole: Path
) -> None:
    """Killed while a stage trains, or while it is measured; the other run is in this process."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY), "utf-8")
    command = [*PRECEDE, "compare", "tiny.yaml", "--out", "killed", "--store", "store", "--workers", "1"]
    environment = {**os.environ, "PRECEDE_CACHE": str(tmp_path / "cache")}
    store = tmp_path / "store"
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not moment(store):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = finished(store)
    stages = stages_in(before.values())
    assert 1 <= stages < 6
    assert not (tmp_path / "killed" / "results.json").exists()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"{6 - stages} stages run, {stages} taken from the store" in done.stdout
    assert [*(store / "unfinished").iterdir(), *(store / "checkpoints").iterdir()] == []
    assert numbers(tmp_path / "killed") == numbers(whole / "out")
    assert finished(store) == finished(whole / "store")
    for key in finished(store):  # bit for bit, but for what is said of time and memory
        one, other = (
            dict(reversed(line.split("  ")) for line in (root / key[:2] / key / "SHA256SUMS").read_text().splitlines())
            for root in (store, whole / "store")
        )
        assert {name for name in one if one[name] != other[name]} <= {"manifest.json"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same comparison left alone."""
    path = tmp_path_factory.mktemp("whole")
    assert compare(read_recipe(TINY), out=path / "out", store=path / "store", workers=1).stages_run == 6
    return path
