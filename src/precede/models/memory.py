"""What a causal language model takes of memory, from its shape alone: weights, activations, logits, the key-value cache.

Activations after Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1): what the backward pass of a layer needs is counted
tensor by tensor. There it is a layer of GPT with dropout, 34 bytes a token and unit of width in 16 bits (and the attention's
5·a·s/h more, which fused attention does not keep); here it is a layer as Llama and its like have it, without dropout.

Limits: layers of another build (mixtures of experts, state spaces, attention that is not fused) keep more or less; an
allocator keeps some more than is asked of it.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4
"""Bytes of a number."""
TOKENS_PER_TILE, VOCABULARY_PER_TILE = 4096, 32_768
"""Logits that TRL 1.16 has at once (`trl.kernels.chunked_logprob`, `precede.libraries.tiles`)."""
TILES = {"cpu": 9}
"""Tiles alive in its backward pass: on a CPU logits and what is computed of them, each anew; on a GPU one, in place."""
FULL_LOGITS = 10
"""Whole tables of logits alive in token distillation's backward pass (GKDTrainer): of student and teacher each logits, scaled
logits and log-probs; the divergence, its masked rows, and gradients."""
SAMPLED_LOGITS = 4
"""Rows of logits alive where a token is drawn: logits, their fp32 copy, scaled, probabilities."""
NF4 = 0.55
"""Bytes of a weight in 4 bits with its doubly quantised scale (Dettmers et al. 2023: 4.127 bits), and some room."""


@dataclass(frozen=True)
class Shape:
    """A model's sizes: layers, width, that of the MLP, of queries and of keys (heads × their size), vocabulary."""

    layers: int
    width: int
    mlp: int
    queries: int
    keys: int
    vocabulary: int
    parameters: int

    @property
    def weights(self) -> float:
        return FP32 * self.parameters

    @property
    def adapter(self) -> int:
        """Parameters of an adapter of rank 1 on all linear layers: what goes in and what comes out of each."""
        attention = 2 * (self.width + self.queries) + 2 * (self.width + self.keys)
        return self.layers * (attention + 3 * (self.width + self.mlp))

    def in_4_bits(self) -> float:
        """Bytes of weights whose linear layers are in NF4, the rest in fp32."""
        linear = self.layers * (2 * self.width * (self.queries + self.keys) + 3 * self.width * self.mlp)
        return NF4 * linear + FP32 * max(self.parameters - linear, 0)

    def activations(self, tokens: float, *, bf16: bool = False, checkpointing: bool = False) -> float:
        """Bytes that a backward pass over so many tokens, padding included, finds kept.

        Each layer keeps, per token: of two norms the input, the normed and the scaled values, 6·width; queries, keys, values
        (keys and values repeated for every head), attention's output and its copy by token, 5·queries; the gate, its
        activation, the other branch and their product, 4·mlp. In bf16 autocast norms stay in fp32 and the rest is halved.
        With gradient checkpointing a layer keeps its input, and one layer at a time is computed anew.
        """
        inner = (2 if bf16 else FP32) * (5 * self.queries + 4 * self.mlp)
        layer = FP32 * 6 * self.width + inner
        kept = self.layers * FP32 * self.width + layer if checkpointing else self.layers * layer
        return tokens * (kept + FP32 * 3 * self.width)

    def passing(self, tokens: float) -> float:
        """Bytes of a forward pass that keeps nothing: the widest layer."""
        return tokens * FP32 * (3 * self.width + 4 * self.mlp)

    def tiles(self, tokens: float, device: str) -> float:
        """Bytes of the tiles of logits by which TRL scores so many tokens, and of the gradient of the head's weights."""
        tile = min(tokens, TOKENS_PER_TILE) * min(self.vocabulary, VOCABULARY_PER_TILE)
        return FP32 * (TILES.get(device, 1) * tile + self.vocabulary * self.width)

    def logits(self, tokens: float) -> float:
        """Bytes of one whole table of logits."""
        return FP32 * tokens * self.vocabulary

    def sampling(self, rows: float, tokens: float) -> float:
        """Bytes of drawing so many rows of so many tokens at once: key-value cache, and the logits of a token of each."""
        cache = 2 * FP32 * self.layers * self.keys * rows * tokens
        return cache + SAMPLED_LOGITS * self.logits(rows) + self.passing(rows * tokens)
