"""Every number that is reported, by name: what it means, its unit, and which way is better (docs/theory.md); and costs.

A name means the same number wherever it stands, in comparisons, audits and builds. World-independent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Metric:
    """A metric: `better` is +1 where higher is better, −1 where lower is, 0 where neither is."""

    name: str
    title: str
    definition: str
    unit: str
    better: int

    @property
    def label(self) -> str:
        """The title, with the unit where it is nats or tokens: the head of a row in a table that has no column of units."""
        return f"{self.title}, {self.unit}" if self.unit in ("nats", "tokens") else self.title


def _and_per_token(name: str, title: str, definition: str, better: int, length: str) -> tuple[Metric, Metric]:
    """A metric in nats, and the same over the mean length."""
    per_token = Metric(f"{name}_per_token", f"{title} per token", f"{definition} / {length}", "nats", better)
    return Metric(name, title, definition, "nats", better), per_token


_EXCESS = "e = g(y_w) − g(y_l) − c(|y_w| − |y_l|), c = Σ g(y_l) / Σ |y_l|"
_MEAN = "the mean over pairs of nats per token"
_ALL = (
    Metric("reward", "reward", "E_{x~p} R(x)", "reward units", 1),
    Metric("target_mass", "target mass", "P_{x~p}[x is target]", "probability", 1),
    Metric("target_log_odds", "log-odds of target mass", "log(m / (1 − m)) of counted hits", "nats", 1),
    *_and_per_token("target_precision", "target precision", "E_{x~p} log p_T(x)", 1, "E_{x~p} |x|"),
    *_and_per_token(
        "target_precision_on_target",
        "target precision on target",
        "E_{x~p}[log p_T(x) | x is target]",
        1,
        "E_{x~p}[|x| | x is target]",
    ),
    *_and_per_token("target_recall", "target recall", "E_{x~p_T} log p(x)", 1, "E_{x~p_T} |x|"),
    *_and_per_token("precision", "precision", "E_{x~p} log p*(x)", 1, "E_{x~p} |x|"),
    *_and_per_token("recall", "recall", "E_{x~p*} log p(x)", 1, "E_{x~p*} |x|"),
    *_and_per_token("kl_to_truth", "KL to the truth", "KL(p ‖ p*)", -1, "E_{x~p} |x|"),
    *_and_per_token("kl_to_reference", "KL to reference", "KL(π ‖ π_ref)", 0, "E_{x~π} |x|"),
    Metric("kl_at_start", "KL to reference at step 0", "KL(π ‖ π_ref) before training", "nats", 0),
    Metric(
        "kl_to_teacher_at_start",
        "KL to the teacher at step 0",
        "KL(student ‖ teacher) before on-policy distillation",
        "nats",
        0,
    ),
    Metric(
        "overlap_at_start", "overlap with the teacher at step 0", "mean over tokens of Σ min(p, p_teacher)", "share", 0
    ),
    Metric("pairs", "pairs", "preference pairs that DPO trained on", "pairs", 0),
    Metric("regret", "regret", "J(π*) − J(π) = β KL(π ‖ π*)", "reward units", -1),
    Metric("optimal_reward", "optimal reward", "E_{x~π*} R(x)", "reward units", 0),
    Metric("optimal_target_mass", "optimal target mass", "P_{x~π*}[x is target]", "probability", 0),
    Metric("reference_target_mass", "target mass of the reference", "P_{x~π_ref}[x is target]", "probability", 0),
    *_and_per_token("entropy", "entropy", "−E_{x~p} log p(x)", 0, "E_{x~p} |x|"),
    Metric("distinct_1", "distinct-1", "distinct tokens / tokens of the samples", "share", 0),
    Metric("distinct_2", "distinct-2", "distinct bigrams / bigrams of the samples", "share", 0),
    Metric("length", "length", "mean tokens per completion", "tokens", 0),
    Metric("stop_rate", "stop rate", "share of completions that end by themselves", "share", 0),
    Metric(
        "chosen_stop_rate", "stop rate of chosen", "share of the chosen that end within the length sampled", "share", 0
    ),
    # of preference pairs (x, y_w, y_l), π the model
    Metric("ranking_accuracy", "ranking accuracy", "P[log π(y_w|x) > log π(y_l|x)]", "share", 1),
    Metric(
        "ranking_accuracy_per_token",
        "ranking accuracy per token",
        "P[log π(y_w|x) / |y_w| > log π(y_l|x) / |y_l|]",
        "share",
        1,
    ),
    Metric("margin", "margin", "E[log π(y_w|x) − log π(y_l|x)]", "nats", 1),
    Metric("chosen_logp", "log-prob of chosen", "E log π(y_w|x)", "nats", 1),
    Metric("chosen_logp_per_token", "log-prob of chosen per token", f"E[log π(y_w|x) / |y_w|], {_MEAN}", "nats", 1),
    Metric("rejected_logp", "log-prob of rejected", "E log π(y_l|x)", "nats", 0),
    Metric("rejected_logp_per_token", "log-prob of rejected per token", f"E[log π(y_l|x) / |y_l|], {_MEAN}", "nats", 0),
    Metric("chosen_tokens", "length of chosen", "E |y_w|", "tokens", 0),
    Metric("rejected_tokens", "length of rejected", "E |y_l|", "tokens", 0),
    Metric("chosen_longer_share", "chosen is the longer", "P[|y_w| > |y_l|]", "share", 0),
    Metric(
        "unigram_gain",
        "gain over token frequencies",
        "E log [π(y|x) / f(y)] / |y| of both sides, f the frequencies of tokens in the other pairs",
        "nats",
        1,
    ),
    Metric(
        "typicality",
        "typicality z of chosen",
        "E z(y_w), z(y) = Σ_t (−log π(y_t) − H_t) / √(Σ_t V_t), H_t entropy, V_t varentropy of step t",
        "standard deviations",
        -1,
    ),
    Metric("rejected_typicality", "typicality z of rejected", "E z(y_l)", "standard deviations", 0),
    Metric("unsupported_share", "chosen beyond the 99 % quantile", "P[z(y_w) > Φ⁻¹(0.99)]", "share", -1),
    # against the teacher π_T; Δ what a desirable completion is worth more than the rest, β the price of KL
    Metric("recall_gap", "recall gap of chosen", "E g(y_w), g(y) = log π_T(y|x) − log π(y|x)", "nats", -1),
    Metric("recall_gap_per_token", "recall gap of chosen per token", f"E[g(y_w) / |y_w|], {_MEAN}", "nats", -1),
    Metric("rejected_recall_gap", "recall gap of rejected", "E g(y_l)", "nats", 0),
    Metric("unreachable_share", "chosen that lost more than Δ/β", "P[g(y_w) > Δ/β]", "share", -1),
    Metric("excess_gap", "what was lost of chosen beyond rejected", f"E e, {_EXCESS}", "nats", -1),
    Metric(
        "lost_preference_share",
        "lost more of chosen than of rejected, by over Δ/β",
        f"P[e > Δ/β], {_EXCESS}",
        "share",
        -1,
    ),
    # of the model's own samples, m_x the target mass at prompt x
    Metric("achievable_mass", "achievable mass m*", "E_x σ(logit m_x + Δ/β)", "probability", 1),
    Metric("samples_needed", "samples for one hit (95 %)", "⌈log 0.05 / log(1 − m)⌉", "samples", -1),
    Metric("prompts_without_hit", "prompts without a desirable sample", "share of prompts x with no hit", "share", -1),
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


@dataclass
class Cost:
    """What a stage took, per seed.

    `flops` counts 6·N per trained and 2·N per sampled or scored token, N the number of parameters; in the mixture world a
    point is a token. Tokens and FLOPs are of the stage's own work, without measuring its model; so are the seconds in
    the mixture world. `cpu_seconds` are those of all threads of the process: on a busy machine, where `wall_seconds` are
    waiting too, they say what a stage took. `peak_memory_bytes` is the high-water mark, while the stage ran, of the process
    and of its GPU memory.
    """

    flops: float = 0.0
    sampled_tokens: float = 0.0
    scored_tokens: float = 0.0
    trained_tokens: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: float = 0.0

    def sample(self, parameters: int, tokens: float) -> None:
        self.sampled_tokens += tokens
        self.flops += 2 * parameters * tokens

    def score(self, parameters: int, tokens: float) -> None:
        self.scored_tokens += tokens
        self.flops += 2 * parameters * tokens

    def train(self, parameters: int, tokens: float) -> None:
        self.trained_tokens += tokens
        self.flops += 6 * parameters * tokens

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Expense:
    """How tables show a field of `Cost`: its value times `scale`, in `unit`."""

    name: str
    title: str
    unit: str
    scale: float = 1.0

    @property
    def label(self) -> str:
        """The title, with the unit where the title does not say it."""
        return self.title if self.title.endswith(self.unit) else f"{self.title}, {self.unit}"


COSTS: dict[str, Expense] = {
    expense.name: expense
    for expense in (
        Expense("flops", "FLOPs", "FLOPs"),
        Expense("sampled_tokens", "sampled tokens", "tokens"),
        Expense("scored_tokens", "scored tokens", "tokens"),
        Expense("trained_tokens", "trained tokens", "tokens"),
        Expense("wall_seconds", "wall seconds", "seconds"),
        Expense("cpu_seconds", "CPU seconds", "seconds"),
        Expense("peak_memory_bytes", "peak memory", "GB", 1e-9),
    )
}
"""Every field of `Cost`, in its order."""
