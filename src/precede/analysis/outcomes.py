"""Finished arms with their numbers over seeds, as arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from precede.metrics import COSTS, Cost
from precede.plan import Arm, Node, Plan
from precede.store import Store

Array = NDArray[np.float64]


@dataclass
class Outcome:
    """One arm with its numbers over all seeds, in the order of the recipe's seeds."""

    arm: Arm
    metrics: dict[str, Array]
    cost: dict[str, Array]


Pair = tuple[Outcome, Outcome]
"""The two orders of a comparison under one setting."""


class Reader:
    """Reads each finished node once. The metrics of a model are its own facts and what was measured of it."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._metrics: dict[str, dict[str, Array]] = {}
        self._costs: dict[str, dict[str, float]] = {}

    def metrics(self, model: Node) -> dict[str, Array]:
        if model.key not in self._metrics:
            measure = self.plan.measures.get(model.key)
            raw = {} if model.kind == "given" else self.store.metrics(model)
            raw = raw | ({} if measure is None else self.store.metrics(measure))
            self._metrics[model.key] = {name: np.array(values, dtype=float) for name, values in raw.items()}
        return self._metrics[model.key]

    def measured(self, model: Node) -> Path | None:
        """The folder of what was measured of a model."""
        measure = self.plan.measures.get(model.key)
        return None if measure is None else self.store.folder(measure)

    def cost(self, model: Node) -> dict[str, float]:
        """Every field of `Cost`; NaN for one that an entry of an older version lacks."""
        if model.key not in self._costs:
            spent = Cost().as_dict() if model.kind == "given" else self.store.cost(model)
            self._costs[model.key] = {name: spent.get(name, math.nan) for name in COSTS}
        return self._costs[model.key]

    def outcome(self, arm: Arm) -> Outcome:
        finals = [self.metrics(chain[-1]) for chain in arm.blocks]
        names = [name for name in finals[0] if all(name in final for final in finals)]  # of any age
        metrics = {name: np.concatenate([final[name] for final in finals]) for name in names}
        cost: dict[str, list[float]] = {}
        for chain in arm.blocks:
            parts = [self.cost(node) for node in chain[1:]]  # the teacher is there before any order begins
            for name in parts[0]:
                values = [part[name] for part in parts]
                total = max(values) if name == "peak_memory_bytes" else sum(values)
                cost.setdefault(name, []).extend([total] * len(chain[-1].seeds))
        return Outcome(arm, metrics, {name: np.array(values) for name, values in cost.items()})


def matrix(outcomes: list[Outcome], name: str) -> Array:
    """(seeds, points)."""
    return np.stack([outcome.metrics[name] for outcome in outcomes], axis=1)


def log_odds(metrics: dict[str, Array]) -> Array:
    """Log-odds of the target mass: the world's own estimate where it counts hits, else those of the mass."""
    return metrics["target_log_odds"] if "target_log_odds" in metrics else logit(metrics["target_mass"])


def logit(mass: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(mass) - np.log1p(-mass)
    return np.where(np.isfinite(odds), odds, np.nan)


def json_value(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def json_list(values: Array) -> list[float | None]:
    return [json_value(value) for value in values.tolist()]
