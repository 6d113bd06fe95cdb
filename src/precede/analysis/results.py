"""What a comparison found, as JSON values: the schema of `results.json` and of `--json`. See docs/results.md."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

SCHEMA_VERSION = 2

Interval = list[float | None]
"""Lower and upper end of a 95 % interval, Student's t over replicates; nulls where there are fewer than three."""


class Run(TypedDict):
    """One order under one setting with one seed."""

    order: str
    settings: dict[str, Any]
    seed: int
    metrics: dict[str, float | None]
    cost: dict[str, float | None]


class Comparison(TypedDict):
    """Order `a` against order `b` on one metric under one setting, paired by seed: differences are a − b.

    `p_value` is that of the paired t-test over `n_replicates` (clusters of seeds that share a world, else seeds), not adjusted;
    `sd_difference` is the standard deviation between those, `detectable` the difference that so many would call with 80 %
    probability. `n_censored` counts the seeds with a counted share of 0 or 1 on either side, whose log-odds are bounds; where
    they are more than one in ten, log-odds have no interval and no p-value.
    """

    a: str
    b: str
    settings: dict[str, Any]
    metric: str
    mean_difference: float | None
    ci95: Interval
    sd_difference: float | None
    sd_ratio: float | None
    p_value: float | None
    detectable: float | None
    n_seeds: int
    n_replicates: int
    n_censored: int
    mean_a: float | None
    mean_b: float | None
    sd_a: float | None
    sd_b: float | None
    ci95_a: Interval
    ci95_b: Interval


class Matched(TypedDict):
    """`a` against `b` at one level of `along` (target mass, or FLOPs), interpolated per seed along a sweep.

    `n_seeds` of `of_seeds` reach that level in both orders. Which do is no accident: where they are few, there is no interval.
    """

    a: str
    b: str
    settings: dict[str, Any]
    swept: str
    along: str
    level: float | str
    metric: str
    mean_difference: float | None
    ci95: Interval
    n_seeds: int
    of_seeds: int


class Decomposition(TypedDict):
    """The difference a − b on one metric in two parts, paired by seed (docs/theory.md, equivalence).

    The control is order `b` at the smaller price of KL in `control`, which sharpens as distilling last does. `sharpening` is
    control − b, what anybody can have by paying less for KL; `recall` is a − control, what that price does not buy; `total`
    their sum, with `p_value` that of a recall part of 0.
    """

    a: str
    b: str
    settings: dict[str, Any]
    control: dict[str, float]
    metric: str
    mean_a: float | None
    mean_b: float | None
    mean_control: float | None
    total: float | None
    total_ci95: Interval
    sharpening: float | None
    sharpening_ci95: Interval
    recall: float | None
    recall_ci95: Interval
    p_value: float | None
    n_seeds: int
    n_replicates: int
    n_censored: int


class PromptComparison(TypedDict):
    """The final models of two orders that one seed made, paired over held-out prompts: differences are a − b.

    The interval is for these two models over prompts like these; `higher`, `lower`, `equal` count the prompts.
    """

    a: str
    b: str
    settings: dict[str, Any]
    seed: int
    metric: str
    mean_a: float | None
    mean_b: float | None
    mean_difference: float | None
    ci95: Interval
    p_value: float | None
    n_prompts: int
    higher: int
    lower: int
    equal: int


class Support(TypedDict):
    """What a model reaches at held-out prompts: `pass_at` k → share of prompts with a desirable one among k samples.

    `kept`, `lost`, `gained`: shares of the prompts at which the model before had it and this one has, had it and has it no
    more, had it not and has; nulls for the first model.
    """

    settings: dict[str, Any]
    model: str
    seed: int
    n_prompts: int
    samples: int
    pass_at: dict[str, float]
    kept: float | None
    lost: float | None
    gained: float | None


class Example(TypedDict):
    """What both final models of the first seed wrote at one prompt; `difference` is a − b in mean reward at that prompt.

    Without a reward, difference and rewards are null.
    """

    a: str
    b: str
    settings: dict[str, Any]
    row: int
    prompt: str
    difference: float | None
    completion_a: str
    completion_b: str
    reward_a: float | None
    reward_b: float | None


class OrderGap(TypedDict):
    """The order-gap law under one setting: (Δ/β)(1/τ − 1) against logit m_AK − logit m_KA as measured, in nats."""

    settings: dict[str, Any]
    predicted: float | None
    predicted_ci95: Interval
    measured: float | None
    measured_ci95: Interval
    n_seeds: int
    n_censored: int


class StageRecord(TypedDict):
    """A stage that was run or reused; metrics are means over its seeds, cost is per seed."""

    key: str
    parent: str | None
    lineage: list[str]
    world: dict[str, Any]
    variant: int
    kind: str
    config: dict[str, Any]
    student: dict[str, Any] | None
    tilts: bool
    seeds: list[int]
    metrics: dict[str, float | None]
    cost: dict[str, float | None]
    folder: str | None


class Results(TypedDict):
    schema_version: int
    versions: dict[str, str]
    recipe: dict[str, Any]
    note: str
    orders: list[str]
    clusters: list[int]
    """For each seed what it shares with others, such as a random world; its own number where nothing."""
    roles: dict[str, str]
    own: list[dict[str, Any]]
    runs: list[Run]
    comparisons: list[Comparison]
    matched: list[Matched]
    decomposition: list[Decomposition]
    prompts: list[PromptComparison]
    support: list[Support]
    examples: list[Example]
    order_gap: list[OrderGap]
    stages: list[StageRecord]
