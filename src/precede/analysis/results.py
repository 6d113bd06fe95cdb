"""What a comparison found, as JSON values: the schema of `results.json` and of `--json`. See docs/results.md."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

SCHEMA_VERSION = 1

Interval = list[float | None]
"""Lower and upper end of a 95 % bootstrap interval over seeds; nulls where there is one seed."""


class Run(TypedDict):
    """One order under one setting with one seed."""

    order: str
    settings: dict[str, Any]
    seed: int
    metrics: dict[str, float | None]
    cost: dict[str, float]


class Comparison(TypedDict):
    """Order `a` against order `b` on one metric under one setting, paired by seed: differences are a − b."""

    a: str
    b: str
    settings: dict[str, Any]
    metric: str
    mean_difference: float | None
    ci95: Interval
    sd_ratio: float | None
    p_value: float | None
    n_seeds: int
    mean_a: float | None
    mean_b: float | None
    sd_a: float | None
    sd_b: float | None
    ci95_a: Interval
    ci95_b: Interval


class Matched(TypedDict):
    """`a` against `b` at one level of `along` (target mass, or FLOPs), interpolated per seed along a sweep."""

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


class OrderGap(TypedDict):
    """The order-gap law under one setting: (Δ/β)(1/τ − 1) against logit m_AK − logit m_KA as measured, in nats."""

    settings: dict[str, Any]
    predicted: float | None
    predicted_ci95: Interval
    measured: float | None
    measured_ci95: Interval
    n_seeds: int


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
    cost: dict[str, float]
    folder: str | None


class Results(TypedDict):
    schema_version: int
    versions: dict[str, str]
    recipe: dict[str, Any]
    note: str
    orders: list[str]
    roles: dict[str, str]
    own: list[dict[str, Any]]
    runs: list[Run]
    comparisons: list[Comparison]
    matched: list[Matched]
    order_gap: list[OrderGap]
    stages: list[StageRecord]
