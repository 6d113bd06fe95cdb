"""The configurations under `examples/accelerate/`: accelerate takes each, they mean what they say, and `cpu-2` runs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, deepspeed_launcher, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType

FOLDER = Path(__file__).parents[1] / "examples" / "accelerate"
KINDS = {"cpu-2": "MULTI_GPU", "gpu-8": "MULTI_GPU", "fsdp-8": "FSDP", "zero3-8": "DEEPSPEED"}
"""`distributed_type` of each; the number in the name is the number of processes."""

SCRIPT = """\
import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
total = accelerator.reduce(torch.tensor([accelerator.process_index + 1.0]), "sum").item()
assert accelerator.num_processes == 2, accelerator.num_processes
assert torch.distributed.get_backend() == "gloo", torch.distributed.get_backend()
print(f"rank {accelerator.process_index} of {accelerator.num_processes}: {total}\\n", end="", flush=True)
accelerator.end_training()
"""


def arguments(name: str) -> Any:
    """What `accelerate launch --config_file` makes of the file."""
    parsed = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "script.py"])
    return _validate_launch_command(parsed)[0]


def test_every_file_is_tested() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_loads_it(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type.value == KINDS[name]
    assert config.num_processes == int(name.partition("-")[2])
    assert config.mixed_precision == ("no" if name == "cpu-2" else "bf16")
    assert config.use_cpu == (name == "cpu-2")


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_would_launch_it(name: str) -> None:
    found = arguments(name)
    launcher = {"MULTI_GPU": found.multi_gpu, "FSDP": found.use_fsdp, "DEEPSPEED": found.use_deepspeed}
    assert {kind for kind, chosen in launcher.items() if chosen} == {KINDS[name]}
    assert (found.num_processes, found.num_machines) == (int(name.partition("-")[2]), 1)


def test_every_setting_is_one_of_the_launcher() -> None:
    """Accelerate ignores names within `fsdp_config` and `deepspeed_config` that it does not know."""
    known = set(vars(launch_command_parser().parse_args(["script.py"])))
    for name in KINDS:
        config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
        assert {*(config.fsdp_config or {}), *(config.deepspeed_config or {})} <= known, name


def test_fsdp_is_full_shard_and_saves_plain_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in prepare_multi_gpu_env(arguments("fsdp-8")).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


def test_zero3_gathers_weights_on_save() -> None:
    found = arguments("zero3-8")
    found.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(found)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "true"


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_zero3_asks_for_deepspeed_and_nothing_else() -> None:
    with pytest.raises(ImportError, match=r"^DeepSpeed is not installed"):
        deepspeed_launcher(arguments("zero3-8"))


def test_two_processes_on_the_cpu_reduce(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, "utf-8")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    done = subprocess.run(
        [*launch, "--config_file", str(FOLDER / "cpu-2.yaml"), str(tmp_path / "script.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n"))[1:] == ["rank 0 of 2: 3.0", "rank 1 of 2: 3.0"]
