"""The grammar world: small Llamas trained from scratch on strings whose likelihood and mode are known exactly."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from precede.libraries import quiet, transformers
from precede.metrics import Cost
from precede.models.load import parameter_count
from precede.seeding import seeded
from precede.stages import distil
from precede.store import Stage, Store
from precede.worlds.grammar.chains import BOS, EOS, Chains, make_chains, tokenizer
from precede.worlds.language.estimate import rows_per_step
from precede.worlds.language.stages import Log, stream_of, trainer_settings
from precede.worlds.language.truth import Rows
from precede.worlds.language.world import LanguageWorld

FLOPS_PER_SECOND = 3e10
"""Rate of one core at these sizes, where fixed costs outweigh arithmetic; for estimates only."""


class ChainTruth:
    """The truth of one random world. Reward is the exact posterior of the target modes."""

    def __init__(self, chains: Chains, target_reward: float) -> None:
        self.chains = chains
        self.target_reward = target_reward
        self.prompt = [BOS]

    def sample(self, count: int, seed: int) -> list[list[int]]:
        return self.chains.sample(count, torch.Generator().manual_seed(seed))[0]

    training_sample = sample

    def target_sample(self, count: int, seed: int) -> list[list[int]]:
        return self.chains.sample(count, torch.Generator().manual_seed(seed), self.chains.target_modes)[0]

    def logps(self, rows: Rows) -> Tensor:
        return self.chains.logps(rows)

    def target_logps(self, rows: Rows) -> Tensor:
        return self.chains.target_logps(rows)

    def rewards(self, rows: Rows) -> list[float]:
        rewards: list[float] = self.chains.target_posterior(rows).tolist()
        return rewards


class GrammarWorld(LanguageWorld):
    versions: ClassVar = {"teacher": 2, "distill": 2, "align": 2}
    threads = 1
    sampling_batch = 1000
    seconds_per_stage = 8.0
    gpu_flops_per_second = None
    note = ""
    prompt = ""
    flops_per_second = FLOPS_PER_SECOND

    def truth(self, stage: Stage, *_: Any) -> ChainTruth:
        return ChainTruth(self.chains(stage.seeds[0]), self.config["target_reward"])

    def chains(self, seed: int) -> Chains:
        """The random world that a seed lives in."""
        config = dict(self.config, length=self.config["max_new_tokens"])
        return make_chains(config, seed % self.config["worlds"])

    def teacher(self, stage: Stage, cost: Cost) -> tuple[Any, Any, Log]:
        settings, words = trainer_settings(self, stage), tokenizer(self.config["vocabulary"])
        model = self._fresh(stage)
        truth = self.truth(stage)
        rows = truth.sample(settings.steps * rows_per_step(stage.config), stream_of(stage, "samples"))
        steps = distil.sequence(model, words, [truth.prompt] * len(rows), rows, settings)
        cost.train(parameter_count(model), sum(map(len, rows)) + len(rows))
        return model, words, {"steps": steps}

    def student(self, stage: Stage, store: Store) -> Any:
        return self._fresh(stage)

    def parameters(self, stage: Stage) -> int:
        made = next(ancestor for ancestor in reversed(stage.lineage()) if _makes_model(ancestor))
        return _parameters(*self._shape(made))

    def truth_parameters(self, stage: Stage) -> int:
        return 0

    def _shape(self, stage: Stage) -> tuple[int, int, int, int, int]:
        config = stage.config
        tokens = self.config["max_new_tokens"] + 1
        return self.config["vocabulary"], config["hidden_size"], config["layers"], config["heads"], tokens

    def _fresh(self, stage: Stage) -> Any:
        """A model of the stage's architecture with random weights of its seed."""
        with seeded(stream_of(stage, "weights")):
            return transformers().LlamaForCausalLM(_config(*self._shape(stage))).to(self.device)


def make(config: Mapping[str, Any]) -> GrammarWorld:
    return GrammarWorld(config)


def _makes_model(stage: Stage) -> bool:
    return stage.kind == "teacher" or (stage.kind == "distill" and stage.config["start"] == "new")


def _config(vocabulary: int, hidden_size: int, layers: int, heads: int, tokens: int) -> Any:
    return transformers().LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=tokens,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )


@cache
def _parameters(*shape: int) -> int:
    with quiet(), torch.device("meta"):
        return parameter_count(transformers().LlamaForCausalLM(_config(*shape)))
