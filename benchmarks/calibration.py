"""Cases of known fate, and what they say of the audit: rank correlation, area under ROC, choice of the rules' thresholds.

Everything here is a function of the cases that `benchmarks/audit.py calibration` writes. Rules are chosen on worlds of even
number; worlds of odd number are held back from that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from precede.evaluate.verdict import LEVELS, THRESHOLDS, Thresholds, judge
from precede.stats import Estimate

RESAMPLES = 2000
BY_REASON = Thresholds(mass=0.5, ratio=0.5, few=0.2, many=0.5)
"""The thresholds before any calibration. Ties go to what is nearest to them."""
MASS_GRID = RATIO_GRID = tuple(n / 10 for n in range(1, 10))
MANY_GRID = MASS_GRID[1:]
FEW_GRID = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
SAMPLED = (
    "target_mass",
    "achievable_mass",
    "samples_needed",
    "prompts_without_hit",
    "reward",
    "length",
    "stop_rate",
)
"""Numbers that need a reward."""
FORMER = {"sampled_reward": "reward", "sampled_tokens": "length"}
"""Names in older files of cases → what they are called now."""

Array = NDArray[Any]
Statistic = Callable[..., float]
"""Of columns, arrays with one entry for each reference."""


@dataclass(frozen=True)
class Case:
    """One reference: what the audit said, and what became of it."""

    seed: int
    world: int
    settings: dict[str, Any]
    beta: float
    advantage: float
    numbers: dict[str, Estimate]
    teacher: dict[str, Estimate]
    verdict: str
    realised: float
    other: float
    """Target mass of align > distill with the same settings and seed."""

    @property
    def failed(self) -> bool:
        return self.realised < 0.5 * self.other

    def level(self, thresholds: Thresholds, rewarded: bool = True, stops: bool = True) -> int:
        """The verdict under these thresholds as an index of `LEVELS`; without the reward, from pairs and teacher alone; without
        `stops` as if every sample had ended by itself."""
        own, teacher = (
            {name: number for name, number in numbers.items() if rewarded or name not in SAMPLED}
            for numbers in (self.numbers, self.teacher)
        )
        if rewarded and not stops:
            own["stop_rate"] = replace(own["stop_rate"], value=1.0, low=1.0, high=1.0)
        return LEVELS.index(judge(own, teacher, beta=self.beta, advantage=self.advantage, thresholds=thresholds).level)


SCORES: dict[str, Callable[[Case], float]] = {
    "verdict": lambda c: float(c.level(THRESHOLDS)),
    "verdict, rule on stopping aside": lambda c: float(c.level(THRESHOLDS, stops=False)),
    "verdict without the reward": lambda c: float(c.level(THRESHOLDS, rewarded=False)),
    "achievable mass against the teacher's": lambda c: (
        -c.numbers["achievable_mass"].value / c.teacher["achievable_mass"].value
    ),
    "achievable mass m*": lambda c: -c.numbers["achievable_mass"].value,
    "target mass m": lambda c: -c.numbers["target_mass"].value,
    "lost preferences": lambda c: c.numbers["lost_preference_share"].value,
    "mean excess gap": lambda c: c.numbers["excess_gap"].value,
    "unreachable share": lambda c: c.numbers["unreachable_share"].value,
    "mean recall gap": lambda c: c.numbers["recall_gap"].value,
    "unsupported share": lambda c: c.numbers["unsupported_share"].value,
    "mean typicality": lambda c: c.numbers["typicality"].value,
    "ranking accuracy, falling": lambda c: -c.numbers["ranking_accuracy"].value,
}


def save(found: Sequence[Case], path: Path) -> None:
    """Write the cases as JSON; numbers that are not finite as words ("inf", "nan")."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([plain(asdict(case)) for case in found], indent=1, allow_nan=False) + "\n", "utf-8")


def read(path: Path) -> list[Case]:
    """The cases that `save` wrote."""

    def numbers(entries: dict[str, dict[str, Any]]) -> dict[str, Estimate]:
        return {
            FORMER.get(name, name): Estimate(float(e["value"]), float(e["low"]), float(e["high"]), e["count"])
            for name, e in entries.items()
        }

    return [
        Case(**{**entry, "numbers": numbers(entry["numbers"]), "teacher": numbers(entry["teacher"])})
        for entry in json.loads(path.read_text("utf-8"))
    ]


def area(scores: Array, failed: Array) -> float:
    """Area under the ROC curve: the chance that a failed reference scores above one that did not fail, ties half."""
    bad, good = int(failed.sum()), int((~failed).sum())
    if not bad or not good:
        return float("nan")
    return float((stats.rankdata(scores)[failed].sum() - bad * (bad + 1) / 2) / (bad * good))


def curve(scores: Array, failed: Array) -> tuple[Array, Array]:
    """The ROC curve: share of good references called and share of failed ones called, as the bar falls from above all."""
    bars = np.array([np.inf, *np.unique(scores)[::-1]])
    called = scores[None] >= bars[:, None]
    return called[:, ~failed].mean(1), called[:, failed].mean(1)


def correlation(predicted: Array, realised: Array) -> float:
    """Spearman's rank correlation; undefined where one side is constant."""
    ranks = [stats.rankdata(values) for values in (predicted, realised)]
    return float("nan") if any(np.ptp(r) == 0 for r in ranks) else float(np.corrcoef(*ranks)[0, 1])


def sensitivity(called: Array, failed: Array) -> float:
    """Share of the failed references that were called."""
    return float(called[failed].mean()) if failed.any() else float("nan")


def specificity(called: Array, failed: Array) -> float:
    """Share of the others that were not called."""
    return sensitivity(~called, ~failed)


def balanced(called: Array, failed: Array) -> float:
    """Balanced accuracy."""
    return (sensitivity(called, failed) + specificity(called, failed)) / 2


def interval(statistic: Statistic, *columns: Array) -> tuple[float, float]:
    """95 % bootstrap interval over references; resamples in which the statistic is undefined are left out."""
    generator = np.random.default_rng(7)
    count = len(columns[0])
    drawn = [
        statistic(*(column[places] for column in columns))
        for places in generator.integers(count, size=(RESAMPLES, count))
    ]
    drawn = [value for value in drawn if not math.isnan(value)]
    low, high = np.percentile(drawn, (2.5, 97.5)) if drawn else (float("nan"),) * 2
    return float(low), float(high)


def without_each(statistic: Statistic, worlds: Array, *columns: Array) -> tuple[float, float]:
    """Least and greatest value of the statistic when one world is left out."""
    values = [statistic(*(column[worlds != world] for column in columns)) for world in np.unique(worlds)]
    return float(np.min(values)), float(np.max(values))


def choose(grid: Iterable[Thresholds], worth: Callable[[Thresholds], float]) -> Thresholds:
    """The thresholds of the grid that are worth most; of equals the nearest to `BY_REASON`, then the first."""

    def distance(thresholds: Thresholds) -> float:
        return float(sum(abs(value - getattr(BY_REASON, name)) for name, value in asdict(thresholds).items()))

    return max(grid, key=lambda thresholds: (round(worth(thresholds), 9), -round(distance(thresholds), 9)))


@dataclass(frozen=True)
class Call:
    """What a verdict is taken to say of a reference: that alignment will fail on it."""

    name: str
    says: Callable[[Case, Thresholds], bool]

    def columns(self, found: Sequence[Case], thresholds: Thresholds) -> tuple[Array, Array]:
        """Called and failed, of each reference."""
        called = [self.says(case, thresholds) for case in found]
        return np.array(called), np.array([case.failed for case in found])


WORST = LEVELS.index("trapped")
TRAPPED = Call("trapped, with teacher and reward", lambda c, at: c.level(at) == WORST)
TRAPPED_BY_PAIRS = Call("trapped, with teacher alone", lambda c, at: c.level(at, rewarded=False) == WORST)
UNREADY_BY_PAIRS = Call("not ready, with teacher alone", lambda c, at: c.level(at, rewarded=False) > 0)
UNREADY = Call("not ready, with teacher and reward", lambda c, at: c.level(at) > 0)
EITHER = Call(
    "trapped with the reward or without it", lambda c, at: WORST in (c.level(at), c.level(at, rewarded=False))
)
UNREADY_BUT_FOR_STOPPING = Call(
    "not ready, with teacher and reward, rule on stopping aside", lambda c, at: c.level(at, stops=False) > 0
)
"""The last two are verdicts that the audit does not give; they were thought of when the outcomes were known."""


def choose_all(found: Sequence[Case]) -> Thresholds:
    """`mass` and `ratio` together by what is called trapped with a reward, then `many` by what is called trapped without
    one, then `few`, at most `many`, by what is called ready without one."""

    def worth(call: Call) -> Callable[[Thresholds], float]:
        return lambda thresholds: balanced(*call.columns(found, thresholds))

    chosen = choose(
        (replace(BY_REASON, mass=mass, ratio=ratio) for mass, ratio in product(MASS_GRID, RATIO_GRID)), worth(TRAPPED)
    )
    chosen = choose((replace(chosen, many=many) for many in MANY_GRID), worth(TRAPPED_BY_PAIRS))
    return choose((replace(chosen, few=few) for few in FEW_GRID if few <= chosen.many), worth(UNREADY_BY_PAIRS))
