"""`precede compare` killed, damaged, and given wrong input: what is finished stays, and what is wrong is said."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from conftest import PRECEDE, precede, results_of


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_results(folder: Path) -> None:
    """kill -9 of the whole process group at growing delays until a run ends by itself."""
    command = [*PRECEDE, "compare", "small.yaml", "--out", "killed", "--store", "killed-store", "--workers", "2"]
    finished_before: set[str] = set()
    kills = models_before = 0
    for delay in (3.0, 4.5, 5.5, 6.5, 8.0, 11.0, 240.0):
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
        )
        try:
            output, errors = process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            time.sleep(0.1)
            finished = {path.parent.name for path in (folder / "killed-store").glob("??/*/SHA256SUMS")}
            assert finished >= finished_before
            finished_before, models_before = finished, len(stages_in(folder / "killed-store"))
            continue
        assert process.returncode == 0, errors
        models = len(stages_in(folder / "killed-store"))
        assert f"{models - models_before} stages run, {models_before} taken from the store" in output
        break
    assert kills >= 1
    assert list((folder / "killed-store" / "unfinished").iterdir()) == []
    killed, whole = results_of(folder / "killed"), results_of(folder / "out")
    for key in ("comparisons", "matched", "order_gap"):
        assert killed[key] == whole[key]
    assert [run["metrics"] for run in killed["runs"]] == [run["metrics"] for run in whole["runs"]]


def test_flipped_byte_is_named_and_that_stage_made_again(folder: Path) -> None:
    before = results_of(folder / "out")
    victim = folder / next(s["folder"] for s in before["stages"] if s["kind"] == "align") / "model.safetensors"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 0x10
    victim.write_bytes(data)
    done = precede("compare", "small.yaml", "--out", "mended", cwd=folder)
    assert done.returncode == 0
    said = " ".join(done.stderr.split())
    assert "model.safetensors does not match its checksum; it is made again" in said
    assert victim.parent.name[:8] in said
    assert "1 stages run, 25 taken from the store" in done.stdout
    after = results_of(folder / "mended")
    assert [run["metrics"] for run in after["runs"]] == [run["metrics"] for run in before["runs"]]


@pytest.mark.parametrize("when", ["workers start", "workers run", "workers run, SIGTERM"])
def test_workers_end_when_the_main_process_is_killed(when: str, folder: Path) -> None:
    """Workers hold the pipe open while they live: it must close soon after the main process alone was killed.

    Also where it is killed while they are still importing, and know nothing of it yet.
    """
    command = [*PRECEDE, "compare", "small.yaml", "--out", "orphans", "--store", "orphans-store", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--set", "align.steps=100000"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 60
        while not workers_of(process.pid) or (when != "workers start" and not stages_in(folder / "orphans-store")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        process.terminate() if "SIGTERM" in when else process.kill()
        _, errors = process.communicate(timeout=60)  # returns when nobody holds the pipe
        if "SIGTERM" in when:
            assert process.returncode == 128 + signal.SIGTERM
            assert b"precede: ended by SIGTERM; finished stages are kept" in errors
            assert b"Traceback" not in errors
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes that one has started with `spawn`."""
    return [child for child in psutil.Process(pid).children() if any("spawn_main" in part for part in child.cmdline())]


def stages_in(store: Path) -> set[str]:
    """Keys of the finished models."""
    return {path.parent.name for path in store.glob("??/*/SHA256SUMS") if (path.parent / "model.safetensors").is_file()}


def test_a_full_disk_is_said_in_one_sentence(folder: Path) -> None:
    """Files may not pass 4 KiB: no stage can be written."""
    words = " ".join([*PRECEDE, "compare", "small.yaml", "--out", "full", "--store", "full-store", "--workers", "1"])
    done = subprocess.run(f"ulimit -f 4; {words}", shell=True, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "could not be written" in done.stderr
    assert "make room" in done.stderr
    assert [line[:8] for line in done.stderr.splitlines() if not line.startswith("the machine is busy")] == ["precede:"]
    assert not (folder / "full" / "results.json").exists()
    assert not list((folder / "full-store" / "unfinished").iterdir())


WRONG: dict[str, tuple[list[str], str]] = {
    "no such recipe": (
        ["compare", "nonesuch"],
        "there is no recipe nonesuch; give a YAML file or one of audit-grammar",
    ),
    "bad override": (["compare", "small.yaml", "--set", "align.beta=0"], "align.beta must be at least 1e-09, not 0"),
    "unknown order": (["compare", "small.yaml", "--set", "orders=[align > x, distill > align]"], "unknown stage 'x'"),
    "no setting with two orders": (
        ["compare", "small.yaml", "--set", "orders=[align > distill]"]
        + ["--set", "sweep={align.beta: [0.2], orders: [distill > align]}"],
        "no setting under which two orders run",
    ),
    "one order": (["compare", "small.yaml", "--set", "orders=[align > distill]"], "a comparison needs two or more"),
    "output folder is a file": (
        ["compare", "small.yaml", "--out", "small.yaml"],
        "is a file; name a folder with --out",
    ),
    "output folder below a file": (["compare", "small.yaml", "--out", "small.yaml/x"], "cannot be written"),
    "store is a file": (
        ["compare", "small.yaml", "--out", "w", "--store", "small.yaml"],
        "the store small.yaml cannot be",
    ),
    "no workers": (["compare", "small.yaml", "--workers", "0"], "--workers"),
    "unknown flag": (["compare", "small.yaml", "--betas", "1"], "--betas"),
    "unknown verb": (["compere", "small.yaml"], "compere"),
    "no recipe": (["compare"], "there is nothing to compare; give a RECIPE"),
    "unknown recipe to print": (["recipes", "nonesuch"], "there is no recipe 'nonesuch'"),
    "missing model": (
        ["compare", "smollm2-smoke", "--set", "teacher.model=/no/such/model", "--out", "w"],
        "/no/such/model",
    ),
    "missing model, dry run": (
        ["compare", "smollm2-smoke", "--set", "teacher.model=/no/such/model", "--dry-run"],
        "/no/such/model",
    ),
    "method of another world": (
        ["compare", "smollm2-smoke", "--set", "align.method=ppo"],
        "align.method: 'ppo' is not known; the methods are dpo",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_sentence_and_status_2(case: str, folder: Path) -> None:
    arguments, words = WRONG[case]
    before = {path for path in folder.rglob("*") if "unfinished" in path.parts}
    done = precede(*arguments, cwd=folder)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr + done.stdout
    if done.stderr.startswith("precede:"):
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "w" / "results.json").exists()
    assert {path for path in folder.rglob("*") if "unfinished" in path.parts} - before <= {folder / "w" / "unfinished"}


def test_a_stage_that_diverges_stops_with_its_name(folder: Path) -> None:
    done = precede(
        "compare",
        "small.yaml",
        "--set",
        "align.learning_rate=1e9",
        "--set",
        "sweep=[]",
        "--out",
        "diverged",
        cwd=folder,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "stage teacher >" in done.stderr
    assert "ppo diverged" in done.stderr
    assert not (folder / "diverged" / "results.json").exists()
