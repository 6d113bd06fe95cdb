"""A build that is killed goes on from its checkpoint; a build in two processes is the build in one."""

from __future__ import annotations

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
from precede.stages.trainer import last_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_inputs(folder)
    return folder


def test_killed_inside_a_stage_it_goes_on_from_the_checkpoint(folder: Path) -> None:
    """kill -9 of the whole group after the second checkpoint: weights and losses are those of a run that was left alone."""
    long = ["--skip", "audit", "--set", "align.trainer.max_steps=600", "--set", "align.trainer.save_steps=20"]
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
    (Path(found) / "trainer_state.json").write_text("{")  # a checkpoint that was cut short is not taken
    assert last_checkpoint(checkpoints) == str(checkpoints / f"checkpoint-{reached - 20}")
    done = subprocess.run(killed, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, spoken(done)
    assert not (folder / "killed" / "checkpoints" / checkpoints.name).exists()
    whole = command(folder, *long, "--store", "whole", "--out", "whole-model")
    assert subprocess.run(whole, cwd=folder, env=environment(folder), capture_output=True).returncode == 0
    assert losses(folder / "killed-model", "align") == losses(folder / "whole-model", "align")
    one, other = (load_file(folder / name / "model.safetensors") for name in ("killed-model", "whole-model"))
    assert all(torch.equal(one[name], other[name]) for name in one)


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
