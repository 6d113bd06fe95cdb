"""The truth of the grammar world: a mixture of Markov chains over a small vocabulary, with exact likelihoods.

Token 0 is `<s>` (BOS, the prompt), token 1 is `</s>` (EOS and pad), the others are symbols. A string is what follows the
prompt, as token ids: it ends with its first EOS, or it is cut at `length` tokens and then has none. Noise reaches every
token at every step, so each string that a language model can generate has a finite log-probability.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from precede.libraries import transformers

BOS, EOS = 0, 1


@dataclass(frozen=True)
class Chains:
    """p*(x) = Σ_k π_k p_k(x) over K chains on V tokens; p_k(x) = start_k(x_1) Π_t transition_k(x_t | x_{t−1}).

    `log_weights` (K,), `log_starts` (K, V) and `log_transitions` (K, V, V) as [mode, previous, next] are float64 and
    normalised. p* sums to 1 over the strings of at most `length` tokens. Every method that takes rows (n strings as token
    ids) raises ValueError, with the row's number, for a row that is not such a string.
    """

    log_weights: Tensor
    log_starts: Tensor
    log_transitions: Tensor
    target_modes: tuple[int, ...]
    length: int

    def mode_logps(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """log p_k(x) of every mode, in nats: (n, K)."""
        tokens, sizes = self._padded(rows)
        previous, following = tokens[:, :-1], tokens[:, 1:]
        steps = self.log_transitions.permute(1, 2, 0)[previous, following]  # (n, length − 1, K)
        inside = torch.arange(1, self.length) < sizes[:, None]
        return self.log_starts.T[tokens[:, 0]] + (steps * inside[:, :, None]).sum(1)

    def logps(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """log p*(x) in nats: (n,)."""
        return (self.log_weights + self.mode_logps(rows)).logsumexp(1)

    def posterior(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """P*[mode k | x] of every mode: (n, K) in [0, 1], each row's sum 1."""
        return (self.log_weights + self.mode_logps(rows)).softmax(1)

    def target_posterior(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """P*[the mode that x came from is a target | x]: (n,) in [0, 1]."""
        return self.posterior(rows)[:, list(self.target_modes)].sum(1).clamp(max=1.0)

    def target_logps(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """log p_T(x) in nats, p_T the targets' own mixture with their weights scaled to sum to 1: (n,)."""
        targets = list(self.target_modes)
        return (self.log_weights[targets].log_softmax(0) + self.mode_logps(rows)[:, targets]).logsumexp(1)

    def sample(
        self, count: int, generator: torch.Generator, modes: Sequence[int] | None = None
    ) -> tuple[list[list[int]], Tensor]:
        """`count` independent strings of p* and the mode that each came from, (count,).

        With `modes`, of the mixture of these modes alone, their weights scaled to sum to 1 (a mode named twice counts
        once). A function of the generator's state. Raises ValueError where `modes` is empty or names an unknown mode.
        """
        allowed = sorted(set(range(len(self.log_weights)) if modes is None else modes))
        if not allowed or allowed[0] < 0 or allowed[-1] >= len(self.log_weights):
            raise ValueError(f"modes to sample from are {allowed}; name some of 0 … {len(self.log_weights) - 1}")
        uniforms = torch.rand(1 + self.length, count, generator=generator, dtype=torch.float64)
        drawn = torch.tensor(allowed)[_draw(_cumulative(self.log_weights[allowed]), uniforms[0])]
        starts, transitions = _cumulative(self.log_starts), _cumulative(self.log_transitions)
        tokens = [_draw(starts[drawn], uniforms[1])]
        for step in range(1, self.length):
            tokens.append(_draw(transitions[drawn, tokens[-1]], uniforms[1 + step]))
        table = torch.stack(tokens, 1)
        return [row[:size] for row, size in zip(table.tolist(), _sizes(table).tolist(), strict=True)], drawn

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The rows filled up with EOS, (n, length), and their sizes, (n,); raises ValueError as the class says."""
        sizes = torch.tensor([len(row) for row in rows], dtype=torch.long)
        self._refuse((sizes < 1) | (sizes > self.length), f"has no tokens or more than {self.length}")
        flat = torch.from_numpy(np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(sizes.sum())))
        tokens = torch.full((len(rows), self.length), EOS)
        tokens[torch.arange(self.length) < sizes[:, None]] = flat
        vocabulary = self.log_starts.shape[1]
        outside = (tokens < 0) | (tokens >= vocabulary)
        self._refuse(outside.any(1), f"has a token that is not in 0 … {vocabulary - 1}")
        self._refuse(sizes > _sizes(tokens), "has tokens behind its end token")
        self._refuse(sizes < _sizes(tokens), f"has neither an end token nor {self.length} tokens")
        return tokens, sizes

    @staticmethod
    def _refuse(wrong: Tensor, what: str) -> None:
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"row {row} {what}; give strings of this world, cut behind their end token {EOS}")


def make_chains(config: Mapping[str, Any], seed: int) -> Chains:
    """The chains of a recipe's `world` block (its values as the schema checks them), drawn with the world's seed ≥ 0.

    Each mode draws `subset` of the symbols, then from these `starts` tokens for the first place and `successors` tokens
    behind each of the V tokens, all with Dirichlet(1) weights; each distribution is (1 − ε) · this + ε/V with ε = `noise`
    in (0, 1]. The targets share `target_weight` equally, the other modes' weights fall as rank^−`zipf_exponent`. Modes are
    drawn one after the other: more modes, or other weights, leave the chains of the first ones as they were. Raises
    ValueError where more tokens are to be drawn than there are.
    """
    rng = np.random.default_rng(seed)
    starts, transitions = [], []
    for _ in range(config["modes"]):
        symbols = rng.choice(np.arange(2, config["vocabulary"]), config["subset"], replace=False)
        starts.append(_distribution(config, rng, symbols, config["starts"]))
        behind = [_distribution(config, rng, symbols, config["successors"]) for _ in range(config["vocabulary"])]
        transitions.append(behind)
    logs = [torch.from_numpy(np.array(values)).log() for values in (_weights(config), starts, transitions)]
    return Chains(logs[0], logs[1], logs[2], tuple(config["target_modes"]), config["length"])


def tokenizer(vocabulary: int) -> Any:
    """A word-level tokenizer of the world's strings: token 2 is "a", then "b" … "z", "A" … "Z", "t52", "t53", …

    Words stand apart by blanks. It puts BOS in front of a text and nothing behind it, so an empty text is the prompt [0].
    A word that it does not know becomes `</s>`: a string with one in the middle is refused when it is scored.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    letters = string.ascii_letters
    words = ["<s>", "</s>", *letters[: vocabulary - 2], *(f"t{number}" for number in range(52, vocabulary - 2))]
    backend = Tokenizer(WordLevel({word: token for token, word in enumerate(words)}, unk_token="</s>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    special = {"bos_token": "<s>", **dict.fromkeys(("eos_token", "pad_token", "unk_token"), "</s>")}
    return transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend, **special, padding_side="left", clean_up_tokenization_spaces=False
    )


def _distribution(
    config: Mapping[str, Any], rng: np.random.Generator, symbols: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Dirichlet(1) weights on `count` of the symbols, mixed with the noise: (V,)."""
    probabilities = np.full(config["vocabulary"], config["noise"] / config["vocabulary"])
    chosen = rng.choice(symbols, count, replace=False)
    probabilities[chosen] += (1 - config["noise"]) * rng.dirichlet(np.ones(count))
    return probabilities


def _weights(config: Mapping[str, Any]) -> NDArray[np.float64]:
    targets = config["target_modes"]
    others = [mode for mode in range(config["modes"]) if mode not in targets]
    ranks = np.arange(1, len(others) + 1) ** -float(config["zipf_exponent"])
    weights = np.empty(config["modes"])
    weights[others] = (1 - config["target_weight"]) * ranks / ranks.sum()
    weights[targets] = config["target_weight"] / len(targets)
    return weights


def _cumulative(logs: Tensor) -> Tensor:
    """Cumulative distribution over the last axis, its last entry exactly 1."""
    sums = logs.exp().cumsum(-1)
    return sums / sums[..., -1:]


def _draw(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """One index per uniform number in [0, 1): the number of entries of its (V,) or (n, V) cumulative at or below it."""
    return (cumulative <= uniforms[:, None]).sum(-1)


def _sizes(tokens: Tensor) -> Tensor:
    """Tokens up to and with the first EOS of each full row, all where it has none: (n, length) → (n,)."""
    before = (tokens == EOS).cumsum(1) == 0
    return (before.sum(1) + 1).clamp(max=tokens.shape[1])
