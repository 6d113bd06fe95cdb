"""The metrics by name: what they mean, their unit, and which way is better (docs/theory.md). World-independent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric: `better` is +1 where higher is better, −1 where lower is, 0 where neither is."""

    name: str
    title: str
    definition: str
    unit: str
    better: int


_ALL = (
    Metric("reward", "reward", "E_{x~p} R(x)", "reward units", 1),
    Metric("target_mass", "target mass", "P_{x~p}[x is target]", "probability", 1),
    Metric("target_log_odds", "log-odds of target mass", "log(m / (1 − m)) of counted hits", "nats", 1),
    Metric("target_precision", "target precision", "E_{x~p} log p_T(x)", "nats", 1),
    Metric("target_precision_per_token", "target precision per token", "E_{x~p} log p_T(x) / E_{x~p} |x|", "nats", 1),
    Metric("target_precision_on_target", "target precision on target", "E_{x~p}[log p_T(x) | x is target]", "nats", 1),
    Metric(
        "target_precision_on_target_per_token",
        "target precision on target per token",
        "E_{x~p}[log p_T(x) | x is target] / E_{x~p}[|x| | x is target]",
        "nats",
        1,
    ),
    Metric("target_recall", "target recall", "E_{x~p_T} log p(x)", "nats", 1),
    Metric("target_recall_per_token", "target recall per token", "E_{x~p_T} log p(x) / E_{x~p_T} |x|", "nats", 1),
    Metric("precision", "precision", "E_{x~p} log p*(x)", "nats", 1),
    Metric("precision_per_token", "precision per token", "E_{x~p} log p*(x) / E_{x~p} |x|", "nats", 1),
    Metric("recall", "recall", "E_{x~p*} log p(x)", "nats", 1),
    Metric("recall_per_token", "recall per token", "E_{x~p*} log p(x) / E_{x~p*} |x|", "nats", 1),
    Metric("kl_to_truth", "KL to the truth", "KL(p ‖ p*)", "nats", -1),
    Metric("kl_to_truth_per_token", "KL to the truth per token", "KL(p ‖ p*) / E_{x~p} |x|", "nats", -1),
    Metric("kl_to_reference", "KL to reference", "KL(π ‖ π_ref)", "nats", 0),
    Metric("kl_to_reference_per_token", "KL to reference per token", "KL(π ‖ π_ref) / E_{x~π} |x|", "nats", 0),
    Metric("kl_at_start", "KL to reference at step 0", "KL(π ‖ π_ref) before training", "nats", 0),
    Metric("pairs", "pairs", "preference pairs that DPO trained on", "pairs", 0),
    Metric("regret", "regret", "J(π*) − J(π) = β KL(π ‖ π*)", "reward units", -1),
    Metric("optimal_reward", "optimal reward", "E_{x~π*} R(x)", "reward units", 0),
    Metric("optimal_target_mass", "optimal target mass", "P_{x~π*}[x is target]", "probability", 0),
    Metric("reference_target_mass", "target mass of the reference", "P_{x~π_ref}[x is target]", "probability", 0),
    Metric("entropy", "entropy", "−E_{x~p} log p(x)", "nats", 0),
    Metric("entropy_per_token", "entropy per token", "−E_{x~p} log p(x) / E_{x~p} |x|", "nats", 0),
    Metric("distinct_1", "distinct-1", "distinct tokens / tokens of the samples", "share", 0),
    Metric("distinct_2", "distinct-2", "distinct bigrams / bigrams of the samples", "share", 0),
    Metric("length", "length", "mean tokens per completion", "tokens", 0),
    Metric("stop_rate", "stop rate", "share of completions that end by themselves", "share", 0),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}

DECODED = "decoded_"
"""Prefix of *matched decoding*: the final model sampled at the τ of its distillation. One order ends with a step that
sharpens, the other does not; sampling both at τ takes that advantage away."""


def describe(name: str) -> Metric:
    """The metric of that name, the prefix understood. Raises KeyError for a name that no world reports."""
    if name.startswith(DECODED):
        base = METRICS[name.removeprefix(DECODED)]
        return Metric(name, f"{base.title} at τ", f"{base.definition}, sampled at τ", base.unit, base.better)
    return METRICS[name]
