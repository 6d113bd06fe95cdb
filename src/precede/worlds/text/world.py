"""The text world: real causal language models in Hugging Face form, on completions of one prompt."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

import torch
from torch import Tensor

from precede.libraries import quiet, transformers
from precede.metrics import Cost
from precede.models.load import (
    BUNDLED,
    bundled_file,
    kept_layers,
    load,
    parameter_count,
    pick_device,
    read_config,
    remove_layers,
    shorter,
)
from precede.rewards import get_reward
from precede.sampling import prompt_ids, sample, texts
from precede.scoring.logprobs import completion_logps
from precede.store import Stage, Store
from precede.worlds.language.stages import Log, model_folder
from precede.worlds.language.truth import Rows
from precede.worlds.language.world import LanguageWorld

FLOPS_PER_SECOND = {"cpu": 1.6e11, "mps": 1.0e12, "cuda": 1.0e14}
"""Rates in the FLOPs of `Cost`; the CPU's was measured on two cores in fp32, the others are guesses."""
KNOWN_PARAMETERS = {
    BUNDLED: 134_515_008,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
}
"""So that a run can be planned where the hub is out of reach."""
BUNDLED_LAYERS, BUNDLED_PER_LAYER = 30, 3_540_096
"""SmolLM2-135M: layers, and parameters in each."""


class ModelTruth:
    """The truth is a language model at temperature 1."""

    def __init__(self, model: Any, tokenizer: Any, world: Mapping[str, Any]) -> None:
        self.model, self.tokenizer, self.world = model, tokenizer, world
        self.prompt = prompt_ids(tokenizer, world["prompt"])
        self.target_reward = world["target_reward"]
        self._reward = get_reward(world["reward"])

    def sample(self, count: int, seed: int) -> list[list[int]]:
        length = self.world["max_new_tokens"]
        return sample(self.model, self.tokenizer, self.prompt, count, max_new_tokens=length, seed=seed)

    training_sample = sample

    def target_sample(self, count: int, seed: int) -> None:
        return None

    def logps(self, rows: Rows) -> Tensor | None:
        return completion_logps(self.model, self.prompt, rows)[0]

    def target_logps(self, rows: Rows) -> Tensor | None:
        return None

    def rewards(self, rows: Rows) -> list[float]:
        return [self._reward(text) for text in texts(self.tokenizer, self.prompt, rows)]


class DataTruth(ModelTruth):
    """The truth is a file of texts: it can be drawn from, and has no likelihood.

    Texts are dealt out by a hash of their tokens: one half is measured on, the other may be trained on.
    """

    def __init__(self, path: Path, tokenizer: Any, world: Mapping[str, Any]) -> None:
        super().__init__(None, tokenizer, world)
        self.path = path

    def sample(self, count: int, seed: int) -> list[list[int]]:
        """Texts that begin with the prompt, their continuation as completions, none twice. ValueError for too few."""
        return self._draw(count, seed, 0)

    def training_sample(self, count: int, seed: int) -> list[list[int]]:
        return self._draw(count, seed, 1)

    def _draw(self, count: int, seed: int, half: int) -> list[list[int]]:
        found, others = completions_of(self.path, self.tokenizer, self.world["prompt"], self.world["max_new_tokens"])
        rows = [row for row in found if crc32(repr(row).encode()) % 2 == half]
        if count > len(rows):
            use, setting = (("measure on", "evaluation_samples"), ("train on", "samples"))[half]
            raise ValueError(
                f"{self.path} has {len(rows)} texts to {use} that begin with {self.world['prompt']!r} ({others} begin "
                f"otherwise), and {count} are asked for; lower {setting}, or give more texts"
            )
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        return [rows[place] for place in order[:count].tolist()]

    def logps(self, rows: Rows) -> Tensor | None:
        return None


class TextWorld(LanguageWorld):
    versions: ClassVar = {"teacher": 3, "distill": 3, "align": 3}
    threads = None
    sampling_batch = 128
    seconds_per_stage = 15.0
    gpu_flops_per_second = FLOPS_PER_SECOND["cuda"]
    note = "One teacher and one prompt: what the orders differ by here says nothing about other models or prompts."

    @property
    def prompt(self) -> str:
        prompt: str = self.config["prompt"]
        return prompt

    @property
    def flops_per_second(self) -> float:
        return FLOPS_PER_SECOND[pick_device(self.config["device"]).type]

    def check(self, stages: Any) -> None:
        get_reward(self.config["reward"])
        path = self._data()
        if path is not None and not path.is_file():
            raise ValueError(f"world.truth names the file {path}, which is not there")
        super().check(stages)
        for stage in stages:
            self.truth_parameters(stage)

    def truth(self, stage: Stage, store: Store, root: Any, tokenizer: Any) -> ModelTruth:
        path = self._data()
        if path is not None:
            return DataTruth(path, tokenizer, self.config)
        named = self.config["truth"]
        if named is not None:
            model, own = load(named, self.device)
            _check_tokenizers("world.truth", named, own, tokenizer)
            _end_alike(model, _generation(store, stage) if root is None else root.generation_config)
        else:
            model = root if root is not None else load(model_folder(store, stage.root()), self.device)[0]
        return ModelTruth(model, tokenizer, self.config)

    def teacher(self, stage: Stage, cost: Cost) -> tuple[Any, Any, Log]:
        model, tokenizer = load(stage.config["model"], self.device)
        return model, tokenizer, {}

    def student(self, stage: Stage, store: Store) -> Any:
        """The recipe's teacher without some of its layers, or a model of its own."""
        if stage.config["model"] is not None:
            model, own = load(stage.config["model"], self.device)
            _check_tokenizers(
                f"{stage.name}.model", stage.config["model"], own, load(model_folder(store, stage.root()))[1]
            )
            _end_alike(model, _generation(store, stage))
            return model
        return remove_layers(load(model_folder(store, stage.root()), self.device)[0], stage.config["keep_layers"])

    def parameters(self, stage: Stage) -> int:
        teacher = stage.root().config["model"]
        for ancestor in reversed(stage.lineage()):
            if ancestor.kind == "distill" and ancestor.config["start"] == "new":
                own = ancestor.config["model"]
                return parameters_of(own or teacher, None if own else ancestor.config["keep_layers"])
        return parameters_of(teacher, None)

    def truth_parameters(self, stage: Stage) -> int:
        if self._data() is not None:
            return 0
        return parameters_of(self.config["truth"] or stage.root().config["model"], None)

    def _data(self) -> Path | None:
        named = self.config["truth"]
        return Path(named).expanduser() if named is not None and named.endswith((".jsonl", ".jsonl.gz")) else None


def make(config: Mapping[str, Any]) -> TextWorld:
    return TextWorld(config)


def _check_tokenizers(setting: str, model: str, own: Any, teacher: Any) -> None:
    """Raise ValueError where a model reads other tokens than the teacher: one world has one tokenizer."""
    if own.get_vocab() != teacher.get_vocab():
        raise ValueError(f"{setting} {model} and the teacher have different tokenizers; choose models of one family")


def _generation(store: Store, stage: Stage) -> Any:
    return transformers().GenerationConfig.from_pretrained(model_folder(store, stage.root()))


def _end_alike(model: Any, teacher: Any) -> None:
    """Let the model's completions end with the tokens of the teacher's generation configuration."""
    model.generation_config.eos_token_id = model.config.eos_token_id = teacher.eos_token_id


def completions_of(path: Path, tokenizer: Any, prompt: str, length: int) -> tuple[list[list[int]], int]:
    """Completions of `prompt` in a JSONL file with `text` in each line: token ids behind the prompt, cut at `length`.

    Texts that end within `length` get their EOS. The boundary is that of the joined text's tokens. The second value counts
    the texts that do not begin with the prompt. Raises ValueError where the file is not of that form.
    """
    start = prompt_ids(tokenizer, prompt)
    rows, others = [], 0
    for number, line in enumerate(_lines(path), 1):
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
    return rows, others


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


@cache
def parameters_of(model: str, keep: int | None) -> int:
    """Parameters of a model, or of a student with `keep` of its layers. ValueError where either cannot be."""
    if model == BUNDLED:
        bundled_file()
        removed = 0 if keep is None else BUNDLED_LAYERS - len(kept_layers(BUNDLED_LAYERS, keep))
        return KNOWN_PARAMETERS[BUNDLED] - removed * BUNDLED_PER_LAYER
    if keep is None and model in KNOWN_PARAMETERS:
        return KNOWN_PARAMETERS[model]
    config = read_config(model)
    if keep is not None:
        config = shorter(config, kept_layers(config.num_hidden_layers, keep))
    with quiet(), torch.device("meta"):
        return parameter_count(transformers().AutoModelForCausalLM.from_config(config))
