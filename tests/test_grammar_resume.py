"""A comparison in the grammar world by the command line, killed in the middle of a stage, against one left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from conftest import PRECEDE
from precede.jobs.compare import compare
from precede.settings.recipe import read_recipe
from test_grammar_tiny import TINY

MACHINE = ("wall_seconds", "peak_memory_bytes", "folder")


def numbers(path: Path) -> Any:
    """results.json without what depends on the machine."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items() if name not in MACHINE}
        return [plain(part) for part in value] if isinstance(value, list) else value

    return plain(json.loads((path / "results.json").read_text("utf-8")))


def finished_stages(store: Path) -> set[str]:
    return {path.parent.name for path in store.glob("??/*/SHA256SUMS")}


def started(store: Path) -> bool:
    return any(path.is_dir() for path in (store / "unfinished").glob("*/model"))


def test_killed_in_the_middle_of_a_stage_it_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    """Killed while a stage's scratch folder holds a model that is not yet measured; the other run is in this process."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY), "utf-8")
    command = [*PRECEDE, "compare", "tiny.yaml", "--out", "killed", "--store", "store", "--workers", "1"]
    environment = {**os.environ, "PRECEDE_CACHE": str(tmp_path / "cache")}
    store = tmp_path / "store"
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and not (len(finished_stages(store)) >= 1 and started(store)):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = finished_stages(store)
    assert 1 <= len(before) < 5
    assert not (tmp_path / "killed" / "results.json").exists()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"{5 - len(before)} stages run, {len(before)} taken from the store" in done.stdout
    assert list((store / "unfinished").iterdir()) == []
    whole = compare(read_recipe(TINY), out=tmp_path / "whole", store=tmp_path / "other", workers=1)
    assert whole.stages_run == 5
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    for key in finished_stages(store):  # bit for bit, but for the wall time and the trainer's step_time
        one, other = (
            dict(reversed(line.split("  ")) for line in (root / key[:2] / key / "SHA256SUMS").read_text().splitlines())
            for root in (store, tmp_path / "other")
        )
        assert {name for name in one if one[name] != other[name]} <= {"manifest.json", "training.json"}
