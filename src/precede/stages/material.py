"""What a stage of a build works with: rows, reward, a folder that outlives a kill, and completions that models wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precede.data.preferences import Preference
from precede.models.load import load, pick_device
from precede.rewards import PairReward, Prompt
from precede.sampling import sample_prompts, texts
from precede.seeding import stream
from precede.stages.processes import count, index, wait, whole_weights
from precede.stages.trainer import Keep

CHUNK = 64
"""Prompts that are completed under one seed and written to one file."""


@dataclass(frozen=True)
class Material:
    """What a stage works with, beside its settings and models; `rows` are as `tokenizer` writes them."""

    tokenizer: Any
    rows: Sequence[Preference]
    reward: PairReward | None
    max_new_tokens: int
    seed: int
    device: str
    dtype: str
    keep: Keep

    @property
    def prompts(self) -> list[Prompt]:
        return [row.turns or row.prompt_text for row in self.rows]


def translated(
    words: Any, prompts: Sequence[Sequence[int]], drawn: Sequence[Sequence[int]], tokenizer: Any
) -> list[list[int]]:
    """Completions of one tokenizer as another writes their texts, with its EOS where they had ended by themselves."""
    rows = []
    for prompt, ids in zip(prompts, drawn, strict=True):
        text = texts(words, prompt, [ids])[0]
        ended = bool(ids) and ids[-1] in set(words.all_special_ids)
        rows.append(
            tokenizer(text, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if ended else [])
        )
    return [row or [tokenizer.eos_token_id] for row in rows]


def draw(
    source: str | Path, prompts: Sequence[Sequence[int]], temperature: float, name: str, material: Material
) -> list[list[int]]:
    """One completion of each prompt from the model at `source`, in the stage's folder under `name`, a file per `CHUNK`.

    What is there already is not sampled again. Each process samples its share; a chunk's seed is its own, so that the
    completions depend neither on the number of processes nor on a kill between chunks.
    """
    folder = material.keep.folder / f"samples-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(prompts), CHUNK)
    files = [folder / f"{number:06d}.json" for number in range(len(starts))]
    missing = [n for n, file in enumerate(files) if n % count() == index() and not file.exists()]
    if missing:
        with whole_weights():
            model, tokenizer = load(source, pick_device(material.device))
        for number in missing:
            rows = sample_prompts(
                model,
                tokenizer,
                prompts[starts[number] : starts[number] + CHUNK],
                max_new_tokens=material.max_new_tokens,
                temperature=temperature,
                seed=stream(material.seed, name, f"chunk {number}"),
            )
            scratch = files[number].with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps(rows), "utf-8")
            scratch.rename(files[number])
            material.keep.progress(number + 1, len(files))
    wait()
    return [row for file in files for row in json.loads(file.read_text("utf-8"))]
