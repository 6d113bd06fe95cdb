"""Models, pairs and rewards of which the tests of `precede build` make their builds, and runs of it: here, and by command."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from precede.cli.main import main
from precede.jobs.build import Built, build
from precede.models.adapters import adapter_config
from precede.models.load import save
from precede.settings.recipe import Recipe, read_recipe
from test_lm_tiny import WORDS, stopping_model, tiny_model, tiny_tokenizer

REWARD = """
def blue(prompts, completions, **_):
    return [float("blue" in text or "sky" in text) for text in completions]

def never(prompts, completions, **_):
    return [0.0 for _ in completions]
"""

REWARDS = """
import math

def blue(prompts, completions, **_):
    return [float("blue" in text) for text in completions]

def nan(prompts, completions, **_):
    return [math.nan for _ in completions]

def always(prompts, completions, **_):
    return [1.0 for _ in completions]

def too_few(prompts, completions, **_):
    return [1.0 for _ in completions][1:]

def raising(prompts, completions, **_):
    return [{}["colour"] for _ in completions]

number = 3
"""


def make_inputs(folder: Path, rows: int = 80) -> None:
    """`teacher/`, `pairs.jsonl` and `toy_reward.py` in `folder`. Chosen completions use other words than rejected ones."""
    save(stopping_model(), tiny_tokenizer(), folder / "teacher")
    draw = random.Random(0)
    words = WORDS[3:]
    with (folder / "pairs.jsonl").open("w") as file:
        for _ in range(rows):
            prompt = "<s> The " + " ".join(draw.choices(words, k=draw.randint(1, 4)))
            chosen, rejected = (" " + " ".join(draw.choices(part, k=4)) for part in (words[:11], words[11:]))
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    (folder / "toy_reward.py").write_text(REWARD)


def recipe(folder: Path, **settings: Any) -> Recipe:
    """A recipe of the inputs in `folder`; `align__beta=0.3` changes the setting `beta` of `align`."""
    raw: dict[str, Any] = {
        "teacher": str(folder / "teacher"),
        "student": {"keep_layers": 3},
        "data": {"source": str(folder / "pairs.jsonl")},
        "evaluation": {"samples_per_prompt": 2},
        "world": {"kind": "text", "device": "cpu"},
    }
    for name, value in settings.items():
        block, _, key = name.partition("__")
        if key:
            raw.setdefault(block, {})[key] = value
        else:
            raw[block] = value
    return read_recipe({key: value for key, value in raw.items() if value is not None})


def run(folder: Path, out: str, **settings: Any) -> Built:
    return build(recipe(folder, **settings), folder / out, store=folder / "store")


def environment(folder: Path) -> dict[str, str]:
    """Of a process of its own, which finds the modules in `folder` and this checkout of the package."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PRECEDE_CACHE": str(folder / "cache")}


def command(folder: Path, *arguments: str) -> list[str]:
    given = ["--teacher", "teacher", "--keep-layers", "3", "--data", "pairs.jsonl"]
    return [sys.executable, "-m", "precede", "build", *given, *arguments]


def losses(out: Path, stage: str) -> list[float]:
    log = json.loads((out / "evidence" / stage / "training.json").read_text("utf-8"))["log"]
    return [entry["loss"] for entry in log]


def spoken(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stdout}\n{done.stderr}"


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def other_tokenizer(pad: bool = True) -> Any:
    """The words of `tiny_tokenizer` under other ids."""
    words = [*WORDS[:3], *reversed(WORDS[3:])]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "</s>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def adapter(path: Path, base: Path | str | None, **model: Any) -> Path:
    """A random adapter of rank 4 that says it is of `base`, for a tiny model of the shape `model`."""
    torch.manual_seed(1)
    config = adapter_config({"rank": 4, "alpha": 8.0, "target_modules": "all-linear"})
    with warnings.catch_warnings():
        # PEFT 0.21 still reads the model's old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        joined = peft.get_peft_model(tiny_model(**model), config)
    for name, weight in joined.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    joined.save_pretrained(path)
    set_config(path, "adapter_config.json", base_model_name_or_path=None if base is None else str(base))
    return path


def changed(source: Path, target: Path, change: Callable[[Path], Any]) -> Path:
    """A copy of a folder, changed."""
    shutil.copytree(source, target)
    change(target)
    return target


def set_config(path: Path, name: str = "config.json", **values: Any) -> None:
    file = path / name
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def material(path: Path) -> Path:
    """A folder with `teacher`, `student` (2 layers), `pairs.jsonl` and `colours.py`."""
    make_inputs(path, 48)
    save(tiny_model(layers=2, seed=3), tiny_tokenizer(), path / "student")
    (path / "colours.py").write_text(REWARDS, "utf-8")
    return path


TEACHER = ["--teacher", "teacher"]
LAYERS = [*TEACHER, "--keep-layers", "3"]
STUDENT = [*TEACHER, "--student", "student"]
DATA = ["--data", "pairs.jsonl"]
ALIGN = [*TEACHER, *DATA, "--order", "align"]
PLAIN = [*LAYERS, *DATA]


def setting(*given: str) -> list[str]:
    return [part for one in given for part in ("--set", one)]


class CommandLine:
    """`precede build` in this process: what it exits with and says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        self.monkeypatch, self.capfd, self.tmp_path = monkeypatch, capfd, tmp_path

    def __call__(self, cwd: Path, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.chdir(cwd)
        self.monkeypatch.setenv("PRECEDE_CACHE", str(self.tmp_path / "cache"))
        self.monkeypatch.setattr(sys, "argv", ["precede", "build", *arguments])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        output, errors = self.capfd.readouterr()
        return int(stop.value.code or 0), output, errors

    def refused(self, cwd: Path, *arguments: str) -> str:
        """The one sentence with which the input is refused; nothing half-written is left, in the folder or in the store."""
        defaults = [] if "--out" in arguments else ["--out", "out"]
        defaults += [] if "--store" in arguments else ["--store", str(self.tmp_path / "store")]
        before = {*cwd.iterdir(), cwd / "__pycache__"}
        status, output, errors = self(cwd, *arguments, *defaults)
        assert status == 2
        assert output == ""
        assert errors.startswith("precede: ")
        assert len(errors.strip().splitlines()) == 1
        assert set(cwd.iterdir()) <= before
        assert [path for path in self.tmp_path.rglob("*") if path.name not in ("store", "unfinished")] == []
        return errors
