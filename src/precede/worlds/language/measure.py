"""Everything that is measured of a language model (docs/theory.md), by sampling: nats per completion and per token.

Each number is a mean over `samples` completions of the model (reward, target mass, precision, entropy) or of the truth
(recall); its noise is that of those samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precede.metrics import DECODED
from precede.sampling import eos_ids, sample, texts
from precede.scoring.logprobs import completion_logps
from precede.worlds.language.truth import Rows, Truth

Metrics = dict[str, float | None]
SHOWN = 100
"""Completions of a model that are kept for people to read."""
REFERENCE_METRICS = ("kl_to_reference", "kl_to_reference_per_token")


@dataclass(frozen=True)
class Examiner:
    """What a measurement needs besides the model: the truth, completions drawn from it, and how to sample."""

    truth: Truth
    truth_rows: Rows
    target_rows: Rows
    """Completions drawn from p_T; those of `truth_rows` that are target where the truth knows no p_T."""
    tokenizer: Any
    max_new_tokens: int
    samples: int
    batch_size: int
    seed: int

    def examine(
        self, model: Any, reference: Any | None, temperature: float | None
    ) -> tuple[Metrics, dict[str, list[dict[str, Any]]]]:
        """Metrics of `model`, and the first completions they were taken from (decoding → text and reward).

        reward E_p R; target_mass P_p[target], target being R ≥ the truth's `target_reward`; target_log_odds log((h + ½)/(n
        − h + ½)) for h hits in n (Haldane 1956), finite at 0 and n hits; precision E_p log p*; recall E_p* log p; entropy
        −E_p log p; kl_to_truth KL(p ‖ p*); target_recall E_pT log p; target_precision
        E_p log p_T, None as soon as one sample has p_T = 0; target_precision_on_target the same over the samples on
        target. `…_per_token` divides the summed nats by the summed tokens. distinct_1 and distinct_2: share of n-grams
        that are distinct among all that the completions have. length in tokens, EOS included; stop_rate the share that
        ends with EOS. kl_to_reference KL(p ‖ π_ref), None without a reference. `decoded_…`: the same of the model
        sampled at τ = `temperature`, that is of p_τ with per-token softmax(logits/τ). None where there is nothing to
        average or the truth has no likelihood.
        """
        decodings = {"": 1.0} | ({DECODED: temperature} if temperature is not None else {})
        temperatures = tuple(decodings.values())
        recalls = self._score(model, self.truth_rows, temperatures)
        target_recalls = self._score(model, self.target_rows, temperatures)
        metrics: Metrics = {}
        shown = {}
        for (prefix, tau), recall, target_recall in zip(decodings.items(), recalls, target_recalls, strict=True):
            rows = sample(
                model,
                self.tokenizer,
                self.truth.prompt,
                self.samples,
                max_new_tokens=self.max_new_tokens,
                temperature=tau,
                seed=self.seed,
                batch_size=self.batch_size,
            )
            rewards = self.truth.rewards(rows)
            own = self._score(model, rows, (tau,))[0]
            values = self._summary(rows, rewards, own, recall) | _mean("target_recall", target_recall, self.target_rows)
            ends = eos_ids(model, self.tokenizer)
            values["stop_rate"] = sum(row[-1] in ends for row in rows) / len(rows)
            metrics |= {prefix + name: value for name, value in values.items()}
            if not prefix:
                gap = None if reference is None else own - self._score(reference, rows, (1.0,))[0]
                metrics |= dict.fromkeys(REFERENCE_METRICS) if gap is None else _mean(REFERENCE_METRICS[0], gap, rows)
            written = texts(self.tokenizer, self.truth.prompt, rows[:SHOWN])
            shown[prefix + "completions"] = [
                {"text": text, "reward": reward} for text, reward in zip(written, rewards, strict=False)
            ]
        if temperature is None:
            metrics |= {DECODED + name: None for name in metrics if name not in REFERENCE_METRICS}
        return metrics, shown

    def kl(self, model: Any, reference: Any) -> float:
        """KL(model ‖ reference), nats per completion, over a few of the model's own samples; 0 for one model twice."""
        rows = sample(
            model,
            self.tokenizer,
            self.truth.prompt,
            min(self.samples, 256),
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        return float((self._score(model, rows, (1.0,)) - self._score(reference, rows, (1.0,))).double().mean())

    def _score(self, model: Any, rows: Rows, temperatures: tuple[float, ...]) -> Tensor:
        return completion_logps(
            model, self.truth.prompt, rows, temperatures=temperatures, batch_size=max(32, self.batch_size // 4)
        )

    def _summary(self, rows: Rows, rewards: Sequence[float], own: Tensor, recall: Tensor) -> Metrics:
        hits = on_target(rewards, self.truth)
        truth, target = self.truth.logps(rows), self.truth.target_logps(rows)
        if target is None and truth is not None and self.target_rows:
            share = len(self.target_rows) / len(self.truth_rows)  # log p_T = log p* − log m* on the target
            target = (truth - math.log(share)).masked_fill(~hits, -math.inf)
        count, found = len(rows), int(hits.sum())
        hit_rows = [row for row, hit in zip(rows, hits.tolist(), strict=True) if hit]
        return {
            "reward": sum(rewards) / count,
            "target_mass": found / count,
            "target_log_odds": math.log((found + 0.5) / (count - found + 0.5)),
            **_mean("target_precision", target, rows),
            **_mean("target_precision_on_target", None if target is None else target[hits], hit_rows),
            **_mean("precision", truth, rows),
            **_mean("recall", recall, self.truth_rows),
            **_mean("entropy", -own, rows),
            **_mean("kl_to_truth", None if truth is None else own.double() - truth.double(), rows),
            "distinct_1": distinct(rows, 1),
            "distinct_2": distinct(rows, 2),
            "length": sum(map(len, rows)) / count,
        }


def distinct(rows: Rows, n: int) -> float | None:
    """Distinct n-grams over all n-grams of the rows (Li et al. 2016); None where no row is long enough."""
    grams = [tuple(row[place : place + n]) for row in rows for place in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def on_target(rewards: Sequence[float], truth: Truth) -> Tensor:
    """Which completions are target, by their rewards: (n,)."""
    return torch.tensor(rewards, dtype=torch.float64) >= truth.target_reward


def _mean(name: str, values: Tensor | None, rows: Rows) -> Metrics:
    """Mean of the rows' nats per completion and per token; None where there are none, or one is infinite."""
    total = float(values.double().sum()) if values is not None and len(rows) else math.nan
    if not math.isfinite(total):
        return {name: None, f"{name}_per_token": None}
    return {name: total / len(rows), f"{name}_per_token": total / sum(map(len, rows))}
