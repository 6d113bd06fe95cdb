"""Truths of the text world that are files: JSONL files of texts, of which the continuations of a prompt are taken."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from precede.sampling import prompt_ids


class FileTruth:
    """Texts that can be drawn from and have no likelihood.

    They are dealt out by a hash of their tokens: one half is measured on, the other may be trained on.
    """

    def __init__(self, path: Path, tokenizer: Any, prompt: str, length: int) -> None:
        self.path, self.prompt = path, prompt
        self.rows, self.others, self.content = completions_of(path, tokenizer, prompt, length)

    def measured(self, count: int, seed: int) -> list[list[int]]:
        """`count` completions to measure on, none twice. Raises ValueError where there are fewer."""
        return self._draw(count, seed, 0)

    def trained(self, count: int, seed: int) -> list[list[int]]:
        """The same to train on."""
        return self._draw(count, seed, 1)

    def _draw(self, count: int, seed: int, half: int) -> list[list[int]]:
        rows = [row for row in self.rows if crc32(repr(row).encode()) % 2 == half]
        if count > len(rows):
            use, setting = (("measure", "evaluation.samples_per_prompt"), ("train", "samples_per_prompt"))[half]
            raise ValueError(
                f"{self.path} has {len(rows)} texts to {use} on that begin with {self.prompt!r} ({self.others} begin "
                f"otherwise), and {count} are asked for; lower {setting}, or give more texts"
            )
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return [rows[place] for place in order[:count].tolist()]


def completions_of(path: Path, tokenizer: Any, prompt: str, length: int) -> tuple[list[list[int]], int, str]:
    """Completions of `prompt` in a JSONL file with `text` in each line: token ids behind the prompt, cut at `length`.

    Texts that end within `length` get their EOS. The boundary is that of the joined text's tokens. The second value counts the
    texts that do not begin with the prompt, the third is the SHA-256 of what was read. Raises ValueError where the file is not
    of that form.
    """
    start = prompt_ids(tokenizer, prompt)
    try:
        raw = path.read_bytes()
        lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    rows, others = [], 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            if not isinstance(text, str):
                raise TypeError(f"text is a {type(text).__name__}")
            ids = tokenizer(text)["input_ids"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} line {number}: not a JSON object with a `text` ({error!r})") from None
        if ids[: len(start)] == start and len(ids) > len(start):
            rows.append([*ids[len(start) :], tokenizer.eos_token_id][:length])
        else:
            others += 1
    return rows, others, hashlib.sha256(raw).hexdigest()
