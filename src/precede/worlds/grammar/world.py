"""The grammar world: small Llamas trained from scratch on strings whose likelihood and mode are known exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any

import torch

from precede.data.preferences import Preference
from precede.evaluate.examiner import TruthRows
from precede.libraries import quiet, transformers
from precede.models.facts import shape_by
from precede.models.load import parameter_count
from precede.models.memory import Shape
from precede.plan import Node
from precede.rewards import Prompt, Reward
from precede.seeding import seeded, stream
from precede.settings.order import Order
from precede.settings.recipe import Recipe
from precede.settings.sweep import Variant
from precede.stages.context import Context, Trained
from precede.stages.distil import sequence
from precede.stages.running import amounts_of, rows_per_step, settings_of
from precede.store import Store
from precede.worlds.grammar.chains import BOS, EOS, Chains, make_chains, tokenizer
from precede.worlds.language import LanguageWorld

PROMPT = Preference(0, [BOS], [], [], "", "", "")
"""The one prompt: BOS."""
TARGET_SHARE = 4
"""The target's own samples are so many times fewer than the truth's."""


class GrammarWorld(LanguageWorld):
    threads = 1
    sample_batch = 1000
    seconds_per_node = 4.0
    audited = False
    efficiency: Mapping[str, float] = MappingProxyType({"sampled": 0.1, "other": 0.2})
    """At these sizes fixed costs outweigh arithmetic."""

    def __init__(self, recipe: Recipe, variant: Variant) -> None:
        super().__init__(recipe, variant)
        self.max_new_tokens = int(self.config["max_new_tokens"])
        self.target_reward = float(self.config["target_reward"])

    def chains(self, seed: int) -> Chains:
        """The random world that a seed lives in."""
        return make_chains({**self.config, "length": self.max_new_tokens}, seed % self.config["worlds"])

    def cluster(self, seed: int) -> int:
        """Seeds of one random world are no independent replicates, unless that world is the only one that is asked about."""
        return seed % self.config["worlds"] if self.config["worlds"] > 1 else seed

    @cached_property
    def shared_tokenizer(self) -> Any:
        """The tokenizer of every model."""
        return tokenizer(self.config["vocabulary"])

    def content(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.config.items() if name not in ("device", "target_reward")}

    def root(self, variant: Variant, order: Order, seeds: tuple[int, ...]) -> Node:
        return Node("teacher", "teacher", self.content(), variant.teacher, {}, seeds, self.versions["teacher"])

    def student(self, variant: Variant, root: Node, seeds: tuple[int, ...]) -> Node:
        assert variant.student is not None
        return Node("student", "student", self.content(), variant.student, {}, seeds, self.versions["student"])

    def samples(self, variant: Variant) -> int:
        return int(variant.evaluation["samples_per_prompt"] or 2000)

    def shape(self, node: Node) -> Shape:
        if node.kind not in ("teacher", "student"):
            return self.shape(node.edges.get("student") or node.edges["parent"])
        model = self.architecture(node)
        return shape_by(model.config, parameter_count(model))

    def architecture(self, node: Node) -> Any:
        if node.kind not in ("teacher", "student"):
            return self.architecture(node.edges.get("student") or node.edges["parent"])
        return _empty(*self._shape(node))

    def peak_bytes(self, node: Node) -> float:
        """With the chains, and what draws a token of each row of them."""
        vocabulary = int(self.config["vocabulary"])
        chains = 3 * self.config["modes"] * vocabulary**2
        return super().peak_bytes(node) + 8.0 * float(chains + vocabulary * self.rows_drawn(node))

    def truth_parameters(self, node: Node) -> int:
        return 0

    def tokenizer(self, model: Node) -> Any:
        return self.shared_tokenizer

    def training_rows(self, model: Node) -> Sequence[Preference]:
        return [PROMPT]

    def evaluation_rows(self, model: Node, pairs: int) -> Sequence[Preference]:
        return [PROMPT]

    def reward(self, seed: int) -> Reward:
        """The exact posterior of the target modes."""
        chains = self.chains(seed)

        def posterior(
            prompts: Sequence[Prompt],
            completions: Sequence[str],
            completion_ids: Sequence[Sequence[int]] | None = None,
            columns: Sequence[Mapping[str, Any]] | None = None,
        ) -> list[float]:
            assert completion_ids is not None
            return list(chains.target_posterior(completion_ids).tolist())

        return posterior

    def draw_truth(self, node: Node, store: Store) -> Callable[[int, int], list[list[int]]]:
        chains = self.chains(node.seeds[0])
        return lambda count, seed: _drawn(chains, count, seed)

    def sample_truth(self, node: Node, store: Store) -> dict[str, list[list[list[int]]]]:
        count, chains = node.config["samples_per_prompt"], self.chains(node.seeds[0])
        seed = stream(node.seeds[0], "teacher", "truth")
        target = _drawn(chains, count // TARGET_SHARE, seed, chains.target_modes)
        return {"truth": [_drawn(chains, count, seed)], "target": [target]}

    def truth_rows(self, node: Node, store: Store, drawn: Mapping[str, Any]) -> TruthRows:
        chains = self.chains(node.seeds[0])
        return TruthRows(drawn["truth"], drawn["target"], lambda prompts, rows: chains.logps(rows), chains.target_logps)

    def make_model(self, node: Node, store: Store, context: Context) -> tuple[Any, Any, Trained | None]:
        model = self._fresh(node)
        if node.kind == "student":
            return model, self.shared_tokenizer, None
        count = node.config["trainer"]["max_steps"] * rows_per_step(node.config)
        rows = _drawn(self.chains(node.seeds[0]), count, context.stream("samples"))
        prompts = [PROMPT.prompt] * len(rows)
        log = sequence(model, self.shared_tokenizer, prompts, rows, settings_of(node.config, context))
        return model, self.shared_tokenizer, Trained(model, log, amounts_of(log, prompts, rows, 0))

    def _shape(self, node: Node) -> tuple[int, int, int, int, int]:
        sizes = (node.config[name] for name in ("hidden_size", "layers", "heads"))
        return self.config["vocabulary"], *sizes, self.max_new_tokens + 1

    def _fresh(self, node: Node) -> Any:
        """A model of the node's architecture with random weights of its seed; a student's are of the stream of distillation."""
        name = "distill" if node.kind == "student" else node.name
        with seeded(stream(node.seeds[0], name, "weights")):
            return transformers().LlamaForCausalLM(_config(*self._shape(node))).to(self.device)


def make(recipe: Recipe, variant: Variant, shared: dict[str, Any]) -> GrammarWorld:
    return GrammarWorld(recipe, variant)


def _drawn(chains: Chains, count: int, seed: int, modes: Sequence[int] | None = None) -> list[list[int]]:
    return chains.sample(count, torch.Generator().manual_seed(seed), modes)[0]


def _config(vocabulary: int, hidden_size: int, layers: int, heads: int, tokens: int) -> Any:
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden_size, "intermediate_size": 3 * hidden_size}
    depths = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads}
    ends = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    return transformers().LlamaConfig(**sizes, **depths, **ends, max_position_embeddings=tokens)


@cache
def _empty(*shape: int) -> Any:
    with quiet(), torch.device("meta"):
        return transformers().LlamaForCausalLM(_config(*shape))
