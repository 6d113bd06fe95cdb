"""Everything that is measured of a language model (docs/theory.md), by sampling: nats per completion.

The truth p* is the recipe's teacher at temperature 1. Each number is a mean over `evaluation_samples` completions of
the model (reward, target mass, precision, entropy) or of the truth (recall); its noise is that of those few samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from precede.lm.logprobs import completion_logps
from precede.lm.rewards import Reward
from precede.lm.sampling import eos_ids, sample, texts

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class TruthSample:
    """Completions of the truth that every model of one pipeline and seed is measured on, and their rewards."""

    prompt: list[int]
    completions: list[list[int]]
    rewards: list[float]


@dataclass(frozen=True)
class Examiner:
    """What a measurement needs besides the model: the truth, samples of it, the reward, and how to sample."""

    truth: Any
    truth_sample: TruthSample
    tokenizer: Any
    reward: Reward
    target_reward: float
    max_new_tokens: int
    samples: int
    seed: int

    def examine(
        self, model: Any, reference: Any | None, temperature: float | None
    ) -> tuple[Metrics, dict[str, list[dict[str, Any]]]]:
        """Metrics of `model`, and the completions they were taken from (decoding → text and reward).

        reward E_p R; target_mass P_p[target], target being R ≥ `target_reward`; precision E_p log p*; recall E_p* log
        p; entropy −E_p log p; kl_to_truth KL(p ‖ p*); target_recall E_pT log p over the truth's target samples.
        target_precision E_p log p_T with log p_T = log p* − log m* on the target and −∞ off it: None as soon as one
        sample is off target; target_precision_on_target is the same mean over the samples on target. m* is the share of
        the truth's samples. length in tokens, EOS included; stop_rate the share that ends with EOS. kl_to_reference
        KL(p ‖ π_ref), None without a reference. `decoded_…`: the same of the model sampled at τ = `temperature`, that
        is of p_τ with per-token softmax(logits/τ). None where there is nothing to average.
        """
        decodings = {"": 1.0} | ({"decoded_": temperature} if temperature is not None else {})
        prompt = self.truth_sample.prompt
        recalls = completion_logps(model, prompt, self.truth_sample.completions, temperatures=tuple(decodings.values()))
        metrics: Metrics = {}
        shown = {}
        for (prefix, tau), recall in zip(decodings.items(), recalls, strict=True):
            rows = sample(
                model,
                self.tokenizer,
                prompt,
                self.samples,
                max_new_tokens=self.max_new_tokens,
                temperature=tau,
                seed=self.seed,
            )
            written = texts(self.tokenizer, prompt, rows)
            rewards = [self.reward(text) for text in written]
            own = completion_logps(model, prompt, rows, temperatures=(tau,))[0]
            truth = own if self.truth is model and tau == 1.0 else completion_logps(self.truth, prompt, rows)[0]
            values = self._summary(rewards, own, truth, recall)
            values["length"] = sum(map(len, rows)) / len(rows)
            ends = eos_ids(model, self.tokenizer)
            values["stop_rate"] = sum(row[-1] in ends for row in rows) / len(rows)
            metrics |= {prefix + name: value for name, value in values.items()}
            if not prefix:
                metrics["kl_to_reference"] = None
                if reference is not None:
                    anchored = truth if reference is self.truth else completion_logps(reference, prompt, rows)[0]
                    metrics["kl_to_reference"] = _mean(own - anchored)
            shown[prefix + "completions"] = [
                {"text": text, "reward": reward} for text, reward in zip(written, rewards, strict=True)
            ]
        if temperature is None:
            metrics |= {f"decoded_{name}": None for name in metrics if name != "kl_to_reference"}
        return metrics, shown

    def _summary(self, rewards: Sequence[float], own: Tensor, truth: Tensor, recall: Tensor) -> Metrics:
        hits = torch.tensor(rewards) >= self.target_reward
        truth_hits = torch.tensor(self.truth_sample.rewards) >= self.target_reward
        truth_mass = float(truth_hits.double().mean())
        on_target = _mean(truth[hits])
        if on_target is not None:
            on_target = on_target - math.log(truth_mass) if truth_mass > 0 else None
        return {
            "reward": sum(rewards) / len(rewards),
            "target_mass": float(hits.double().mean()),
            "target_precision": on_target if bool(hits.all()) else None,
            "target_precision_on_target": on_target,
            "target_recall": _mean(recall[truth_hits]),
            "precision": _mean(truth),
            "recall": _mean(recall),
            "entropy": _mean(-own),
            "kl_to_truth": _mean(own - truth),
        }


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None
