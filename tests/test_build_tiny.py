"""What the tests of builds share: a tiny teacher, preference pairs, a reward, and a build of them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from precede.build_recipe import read_build
from precede.jobs.build import Built, build
from precede.models.load import save
from test_lm_tiny import WORDS, stopping_model, tiny_tokenizer

REWARD = "def blue(prompts, completions, **_):\n    return [float('blue' in text or 'sky' in text) for text in completions]\n"


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


def recipe(folder: Path, **settings: Any) -> Any:
    """A build of the inputs in `folder`; `align__beta=0.3` changes the setting `beta` of `align`."""
    raw: dict[str, Any] = {
        "teacher": str(folder / "teacher"),
        "student": {"keep_layers": 3},
        "data": {"source": str(folder / "pairs.jsonl")},
        "evaluation": {"samples_per_prompt": 2},
        "device": "cpu",
    }
    for name, value in settings.items():
        block, _, key = name.partition("__")
        if key:
            raw.setdefault(block, {})[key] = value
        else:
            raw[block] = value
    return read_build({key: value for key, value in raw.items() if value is not None})


def run(folder: Path, out: str, **settings: Any) -> Built:
    return build(recipe(folder, **settings), folder / out, store=folder / "store")


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "PRECEDE_CACHE": str(folder / "cache")}


def command(folder: Path, *arguments: str) -> list[str]:
    given = ["--teacher", "teacher", "--keep-layers", "3", "--data", "pairs.jsonl"]
    return [sys.executable, "-m", "precede", "build", *given, *arguments]


def losses(out: Path, stage: str) -> list[float]:
    log = json.loads((out / "evidence" / stage / "training.json").read_text("utf-8"))
    return [entry["loss"] for entry in log]


def spoken(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stdout}\n{done.stderr}"
