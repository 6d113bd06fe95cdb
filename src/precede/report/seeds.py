"""Single seeds in the figures that draw means over them: points where they are few, none where they would be a cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from precede.analysis.outcomes import Array, log_odds
from precede.analysis.results import Decomposition, Results
from precede.store import canonical_json

MOST = 20
"""Seeds that are drawn one by one; of a recipe that has more, none is."""
SIZE = 3.4
"""Of a seed's point, in points; a mean's is larger."""
NONE: Array = np.array([])


class Seeds:
    """The numbers of each seed of a comparison, seen by role. Nothing of a recipe with more seeds than `MOST`."""

    def __init__(self, results: Results) -> None:
        self.roles, count = results["roles"], len(results["recipe"]["seeds"])
        self.note = (
            "Small points are single seeds." if count <= MOST else f"With more than {MOST} seeds, none is drawn."
        )
        """What a caption says of them."""
        columns: dict[str, list[Mapping[str, Any]]] = {}
        for run in results["runs"] if count <= MOST else []:
            columns.setdefault(_key(run["order"], run["settings"]), []).append(run["metrics"])
        self.metrics = {
            key: {name: np.array([one[name] for one in seeds], dtype=float) for name in seeds[0]}
            for key, seeds in columns.items()
        }

    def values(self, order: str, settings: Mapping[str, Any], metric: str) -> Array:
        """A metric of each seed, (seeds,), NaN where it is undefined; (0,) where there is none to draw."""
        return self.metrics.get(_key(order, settings), {}).get(metric, NONE)

    def differences(self, row: Any) -> Array:
        """a − b of each seed for a comparison, (seeds,)."""
        return _minus(*(self.values(row[side], row["settings"], row["metric"]) for side in ("a", "b")))

    def parts(self, d: Decomposition) -> dict[str, Array]:
        """`sharpening` and `recall` of each seed, (seeds,)."""
        names = {name: kind for kind, name in self.roles.items()}
        control: dict[str, Any] = {}
        for path, value in d["control"].items():
            stage, dot, rest = path.partition(".")
            control[names.get(stage, stage) + dot + rest] = value
        middle = self.values(d["b"], {**d["settings"], **control}, d["metric"])
        a, b = (self.values(order, d["settings"], d["metric"]) for order in (d["a"], d["b"]))
        return {"sharpening": _minus(middle, b), "recall": _minus(a, middle)}

    def gaps(self, settings: Mapping[str, Any]) -> Array:
        """logit m_AK − logit m_KA of each seed, (seeds,), NaN where a mass is 0 or 1."""
        align, distill = (self.roles.get(kind) for kind in ("align", "distill"))
        orders = (f"{align} > {distill}", f"{distill} > {align}")
        both = [self.metrics.get(_key(order, settings)) for order in orders]
        return _minus(*(NONE if one is None else log_odds(one) for one in both))


def _minus(first: Array, second: Array) -> Array:
    return first - second if len(first) == len(second) else NONE


def _key(order: str, settings: Mapping[str, Any]) -> str:
    return f"{order} {canonical_json(settings)}"


def points(axis: Axes, xs: Sequence[float] | Array, ys: Sequence[float] | Array, tint: str) -> None:
    """Seeds as small points behind the mean; what is undefined is left out."""
    look: Any = {"markersize": SIZE, "markeredgewidth": 0, "alpha": 0.5, "zorder": 1.5}
    axis.plot(xs, ys, "o", color=tint, **look)
