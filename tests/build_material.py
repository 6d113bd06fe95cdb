"""Models, pairs and rewards of which the tests of `precede build` make their builds, and a run of its command line."""

from __future__ import annotations

import json
import random
import shutil
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
from precede.lm.models import save
from precede.lm.policy import adapter_config
from test_lm_tiny import WORDS, stopping_model, tiny_model, tiny_tokenizer

REWARDS = """
import math

def blue(prompts, completions, **_):
    return [float("blue" in text) for text in completions]

def nan(prompts, completions, **_):
    return [math.nan for _ in completions]

def too_few(prompts, completions, **_):
    return [1.0 for _ in completions][1:]

def raising(prompts, completions, **_):
    return [{}["colour"] for _ in completions]

number = 3
"""


def pairs(count: int = 48, seed: int = 0) -> list[dict[str, Any]]:
    """Preferences of random words behind prompts of two."""
    draw = random.Random(seed)

    def words(many: int) -> str:
        return " ".join(draw.choice(WORDS[3:]) for _ in range(many))

    return [
        {"prompt": f"<s> The {words(2)}", "chosen": f" {words(3)}", "rejected": f" {words(2)}"} for _ in range(count)
    ]


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
    path.mkdir(parents=True, exist_ok=True)
    save(stopping_model(), tiny_tokenizer(), path / "teacher")
    save(tiny_model(layers=2, seed=3), tiny_tokenizer(), path / "student")
    write_rows(path / "pairs.jsonl", pairs())
    (path / "colours.py").write_text(REWARDS, "utf-8")
    return path


class CommandLine:
    """`precede` in this process, in a folder: what it exits with and says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, cwd: Path, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.chdir(cwd)
        self.monkeypatch.setenv("PRECEDE_CACHE", str(cwd / "cache"))
        self.monkeypatch.setenv("COLUMNS", "200")
        self.monkeypatch.setattr(sys, "argv", ["precede", *arguments])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        output, errors = self.capfd.readouterr()
        return int(stop.value.code or 0), output, errors
