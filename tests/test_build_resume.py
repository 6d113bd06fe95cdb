"""A build that is killed goes on from its checkpoint; a build in two processes is the build in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from build_material import command, environment, losses, make_inputs, spoken
from precede.stages.trainer import SECONDS, last_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_inputs(folder)
    return folder


def test_killed_inside_a_stage_it_goes_on_from_the_checkpoint(folder: Path) -> None:
    """kill -9 of the whole group after the second checkpoint: weights and losses are those of a run that was left alone."""
    long = ["--skip", "audit", "--set", "align.trainer.max_steps=120", "--set", "align.trainer.save_steps=20"]
    killed = command(folder, *long, "--store", "killed", "--out", "killed-model")
    process = subprocess.Popen(
        killed, cwd=folder, env=environment(folder), start_new_session=True, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        time.sleep(0.1)
        if len(list(folder.glob("killed/checkpoints/*/checkpoint-*/trainer_state.json"))) >= 2:
            break
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (checkpoints,) = (folder / "killed" / "checkpoints").iterdir()
    found = last_checkpoint(checkpoints)
    assert found is not None
    reached = int(found.rpartition("-")[2])
    assert reached >= 20
    assert not (folder / "killed-model").exists()
    victim = Path(found) / "optimizer.pt"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1  # a checkpoint that was damaged is not taken, and the one before it is
    victim.write_bytes(content)
    earlier = json.loads((checkpoints / f"checkpoint-{reached - 20}" / SECONDS).read_text())["wall_seconds"]
    done = subprocess.run(killed, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, spoken(done)
    wrong = f"checkpoint-{reached} is damaged (optimizer.pt does not match its checksum); it goes on from what is whole"
    assert wrong in spoken(done)
    assert not (folder / "killed" / "checkpoints" / checkpoints.name).exists()
    whole = command(folder, *long, "--store", "whole", "--out", "whole-model")
    assert subprocess.run(whole, cwd=folder, env=environment(folder), capture_output=True).returncode == 0
    one, other = (json.loads((folder / name / "build.json").read_text()) for name in ("killed-model", "whole-model"))
    costs = [[stage["cost"] for stage in report["stages"]] for report in (one, other)]
    timeless = [
        [{n: v for n, v in cost.items() if "seconds" not in n and "memory" not in n} for cost in c] for c in costs
    ]
    assert timeless[0] == timeless[1]
    assert one["stages"][0]["last"] == other["stages"][0]["last"]  # with its running sum of tokens
    assert one["stages"][0]["cost"]["wall_seconds"] > earlier  # the killed process's time is counted
    logs = [
        (folder / name / "evidence" / "align" / "training.json").read_text() for name in ("killed-model", "whole-model")
    ]
    assert logs[0] == logs[1]
    one, other = (load_file(folder / name / "model.safetensors") for name in ("killed-model", "whole-model"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(folder: Path) -> None:
    """`accelerate launch` with two gloo processes: the same losses at every step, the same held-out samples."""
    halves = [
        word
        for stage in ("align", "distill")
        for word in ("--set", f"{stage}.trainer.per_device_train_batch_size=4", "--set", f"{stage}.trainer.max_steps=6")
    ]
    wholes = [word.replace("size=4", "size=8") for word in halves]
    config = ROOT / "examples" / "accelerate" / "cpu-2.yaml"
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", str(config)]
    two = [*launch, *command(folder, *halves, "--store", "two", "--out", "two-model")[1:]]
    done = subprocess.run(two, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, spoken(done)
    one = command(folder, *wholes, "--store", "one", "--out", "one-model")
    assert subprocess.run(one, cwd=folder, env=environment(folder), capture_output=True).returncode == 0
    for stage in ("align", "distill"):
        found, expected = (losses(folder / name, stage) for name in ("two-model", "one-model"))
        assert len(found) == 6
        assert found == pytest.approx(expected, rel=1e-4)
    assert done.stdout.count("model: two-model") == 1  # one of the processes speaks
