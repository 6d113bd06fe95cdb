"""What a text world is given: models, tokenizers, rows, a reward, a truth; read once, in the main process, and checked."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
import torch

from precede.data.completions import Completions, read_completions
from precede.data.preferences import Preference, PreferenceData, read_preferences, same_questions
from precede.evaluate.audit import data_rewards, default_target, longest
from precede.models.adapters import base_of, is_adapter
from precede.models.facts import KNOWN_PARAMETERS, file_hash, fingerprint
from precede.models.load import BUNDLED, load_tokenizer, pick_device, read_config
from precede.models.tokenizers import same_tokenizer
from precede.rewards import Reward, load_reward, load_reward_model, reward_files
from precede.sampling import prompt_ids

REBUILT = ("own_tokenizers", "tokenizers", "reward")
"""What every process loads again."""
Use = Literal["training", "held_out"]
HELD_OUT = 0.1
LEAST_HELD_OUT = 30
"""Share of the questions that is held out where none is given, and how many are at least, where there are three times as many:
what an audit asks for (`evaluate.verdict.FEW_PAIRS`)."""
PROMPT_TOKENS = 24
"""Length of a completion of one prompt where none is given."""


class Inputs:
    """The models, rows and reward of a recipe. Rows are split by question: none is held out whose question is trained on.

    `models` are the names of all models that are given. Tokenizers and the reward are loaded again in every process; rows and
    what tells contents apart are read once and handed to the processes.
    """

    def __init__(self, world: Mapping[str, Any], models: list[str]) -> None:
        self.world, self.models = world, list(dict.fromkeys(models))
        self._differences: dict[tuple[str, str], str | None] = {}
        self._completions: dict[str, Completions] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in REBUILT}

    @cached_property
    def contents(self) -> dict[str, dict[str, str]]:
        """What tells a model's content, by its name: its fingerprint, or that of an adapter and of its base."""
        contents = {}
        for name in self.models:
            try:
                if not self.is_adapter(name):
                    contents[name] = {"content": name if name in self.unreachable else fingerprint(name)}
                    continue
                base = base_of(Path(name).expanduser())
                if is_adapter(Path(base).expanduser()):
                    raise ValueError(f"its base {base} is an adapter itself; merge the two and give the result")
                contents[name] = {"adapter": fingerprint(name), "base": fingerprint(base)}
            except ValueError as error:
                before = f"the adapter {name} cannot be merged: " if self.is_adapter(name) else ""
                raise ValueError(f"{before}{error}") from None
        return contents

    @cached_property
    def unreachable(self) -> set[str]:
        """Models that cannot be had here, but are of known size: they can be planned for."""
        names = set()
        for name in {*self.models} & {*KNOWN_PARAMETERS} - {BUNDLED}:
            try:
                read_config(name)
            except ValueError:
                names.add(name)
        return names

    @staticmethod
    def is_adapter(name: str) -> bool:
        return is_adapter(Path(name).expanduser())

    def look(self, name: str) -> str:
        """The model whose configuration is that of `name`: itself, or the base of an adapter."""
        return base_of(Path(name).expanduser()) if self.is_adapter(name) else name

    def difference(self, one: str, other: str) -> str | None:
        """How the tokenizers of two models differ, a clause; None where they do not."""
        if one == other:
            return None
        pair = (min(one, other), max(one, other))
        if pair not in self._differences:
            self._differences[pair] = same_tokenizer(*(self.own_tokenizers[name] for name in pair))
        return self._differences[pair]

    @cached_property
    def own_tokenizers(self) -> dict[str, Any]:
        """Tokenizers as they come with the models."""
        tokenizers = {}
        for name in self.models:
            bare = self.is_adapter(name) and not any(Path(name).expanduser().glob("tokenizer*"))
            tokenizers[name] = load_tokenizer(self.look(name) if bare else name)
        return tokenizers

    @cached_property
    def tokenizers(self) -> dict[str, Any]:
        """Tokenizers by model, one object for all models that share one."""
        shared: dict[str, Any] = {}
        for name, tokenizer in self.own_tokenizers.items():
            alike = (one for one in shared.values() if one is tokenizer or same_tokenizer(one, tokenizer) is None)
            shared[name] = next(alike, tokenizer)
        return shared

    @cached_property
    def data(self) -> dict[str, PreferenceData]:
        """The pairs as each model's tokenizer writes them."""
        return self._read(self.world["data"]["source"], self.world["data"]["limit"])

    @cached_property
    def held_out_data(self) -> dict[str, PreferenceData]:
        """The same of the rows that are held out: those of the same data, or of a source of their own."""
        source = self.world["data"]["held_out_source"]
        return self.data if source is None else self._read(source, None)

    def _read(self, source: str, limit: int | None) -> dict[str, PreferenceData]:
        settings, tables = self.world["data"], dict[str, PreferenceData]()
        limits = [settings["max_length"], *(longest(self.look(model)) for model in self.models)]
        options = {name: settings[name] for name in ("columns", "split")} | {"limit": limit}
        options["max_length"] = min((limit for limit in limits if limit is not None), default=None)
        for model in self.models:
            same = next((data for other, data in tables.items() if self.difference(model, other) is None), None)
            tables[model] = same or read_preferences(source, self.own_tokenizers[model], **options)
        if len({data.content for data in tables.values()}) > 1:
            raise ValueError(f"{source} changed while it was read; start again when it is whole")
        return tables

    @cached_property
    def usable(self) -> set[int]:
        """Numbers of the rows that every model can use."""
        return _common(self.data)

    @cached_property
    def held_out(self) -> set[int]:
        """Numbers of the rows that are kept from training: those of a source of their own, or all rows of some questions.

        By a hash of each, the questions that fall below `data.held_out`, a tenth by default; then so many more that they are
        `LEAST_HELD_OUT`, or a third of all where these are fewer.
        """
        settings = self.world["data"]
        if settings["held_out_source"] is not None:
            return _common(self.held_out_data)
        rows = [row for row in self.data[self.models[0]].rows if row.row in self.usable]
        draws = sorted((_draw(group), group) for group in {row.group for row in rows})
        share = HELD_OUT if settings["held_out"] is None else settings["held_out"]
        least = min(LEAST_HELD_OUT, len(draws) // 3) if settings["held_out"] is None else 0
        kept = {group for place, (draw, group) in enumerate(draws) if draw < share or place < least}
        return {row.row for row in rows if row.group in kept}

    @cached_property
    def asked_again(self) -> set[int]:
        """Numbers of the usable rows that are not trained on, since the source of the held-out rows has their question."""
        if self.world["data"]["held_out_source"] is None:
            return set()
        first = self.models[0]
        return same_questions(self.data[first], self.held_out_data[first], self.held_out) & self.usable

    @property
    def trained(self) -> set[int]:
        """Numbers of the rows of `data` that are trained on."""
        own = self.held_out if self.world["data"]["held_out_source"] is None else self.asked_again
        return self.usable - own

    def training_rows(self, model: str) -> list[Preference]:
        return [self.prompt_row(model)] if self.world["prompt"] is not None else self.rows_of("training", model)

    def held_out_rows(self, model: str, most: int) -> list[Preference]:
        return [self.prompt_row(model)] if self.world["prompt"] is not None else self.rows_of("held_out", model)[:most]

    def rows_of(self, use: Use, model: str | None = None) -> list[Preference]:
        """The rows of one use, as a model's tokenizer writes them, by default the first one's."""
        numbers = self.held_out if use == "held_out" else self.trained
        return [row for row in self.source_of(use)[model or self.models[0]].rows if row.row in numbers]

    def source_of(self, use: Use) -> dict[str, PreferenceData]:
        """What was read of the source of one use, by model."""
        return self.held_out_data if use == "held_out" else self.data

    def prompt_row(self, model: str) -> Preference:
        """The one prompt as a row without answers."""
        text = self.world["prompt"]
        return Preference(0, prompt_ids(self.tokenizers[model], text), [], [], text, "", "", None, text)

    def completions(self, source: str, model: str) -> Completions:
        """Completions that a teacher wrote, as a model's tokenizer writes them; read once."""
        if source not in self._completions:
            self._completions[source] = read_completions(source, self.tokenizers[model])
        return self._completions[source]

    @cached_property
    def max_new_tokens(self) -> int:
        given: int | None = self.world["max_new_tokens"]
        if given is not None or self.world["prompt"] is not None:
            return given or PROMPT_TOKENS
        lengths = [len(row.chosen) for row in self.training_rows(self.models[0])]
        return max(2, int(np.quantile(lengths, 0.95))) if lengths else 2

    @cached_property
    def reward(self) -> Reward | None:
        if self.world["reward_model"] is not None:
            return load_reward_model(self.world["reward_model"], pick_device(self.world["device"]))
        return None if self.world["reward"] is None else load_reward(self.world["reward"])

    @cached_property
    def reward_content(self) -> dict[str, Any]:
        """What tells the reward's content: the source file of the user's function, the fingerprint of a model."""
        if self.world["reward_model"] is not None:
            return {"reward_model": fingerprint(self.world["reward_model"])}
        if self.world["reward"] is None:
            return {}
        files, name = reward_files(self.world["reward"]), self.world["reward"].rpartition(":")[2]
        return {"reward": [name, *(file_hash([file], file.parent) for file in files)]}

    @cached_property
    def target_reward(self) -> float | None:
        """The reward from which a completion is desirable: given, 1 for one prompt, or by the held-out pairs as in an audit."""
        if self.reward is None or self.world["target_reward"] is not None:
            return None if self.reward is None else float(self.world["target_reward"])
        if self.world["prompt"] is not None:
            return 1.0
        rows = self.held_out_rows(self.models[0], 10**9)
        return default_target(*data_rewards(self.reward, rows)) if rows else None


def _draw(group: str) -> float:
    """A number from 0 to 1 by a hash of a question's key."""
    digest = hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _common(tables: Mapping[str, PreferenceData]) -> set[int]:
    """Numbers of the rows that every model can use."""
    return set.intersection(*({row.row for row in data.rows} for data in tables.values()))


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
        return [rows[index] for index in order[:count].tolist()]


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
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} line {number}: not a JSON object with a `text` ({error!r})") from None
        if ids[: len(start)] == start and len(ids) > len(start):
            rows.append([*ids[len(start) :], tokenizer.eos_token_id][:length])
        else:
            others += 1
    return rows, others, hashlib.sha256(raw).hexdigest()
