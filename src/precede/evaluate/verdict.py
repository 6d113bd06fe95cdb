"""From numbers to a verdict: `ready`, `unchecked`, `risky` or `trapped`, by the rules below (docs/audit.md lists them).

A rule says `ready` where its number's whole interval is good, `trapped` where the whole interval is bad, and `risky` between.
Rules on weak evidence never say `trapped`, and alone never `ready`: with neither teacher nor reward the best verdict is
`unchecked`. The verdict is the worst that any rule says; the rules that said it are its reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from precede import theory
from precede.evaluate.signals import QUANTILE
from precede.stats import Estimate

LEVELS = ("ready", "unchecked", "risky", "trapped")
READY, UNCHECKED, RISKY, TRAPPED = range(4)
HALF = 0.5
"""The target mass whose price the advice names."""
BATCH = 256
"""A batch of this many samples should hold a desirable one in 95 % of steps."""
FEW_PAIRS = 30
ABOVE_0 = math.ulp(0.0)
"""The least number that is above 0."""
STOPPING, STOPPING_POINTS = 0.5, 0.1
"""Samples should end by themselves at least half as often as the chosen do within the length that is sampled, or within ten
points of it."""

EVERY = Estimate(1.0, 1.0, 1.0, 0)
"""How often the chosen stop where nobody counted it: completions of data end."""

Numbers = Mapping[str, Estimate]


@dataclass(frozen=True)
class Thresholds:
    """Bounds of the rules. A reference is trapped where alignment would leave less than the target mass `mass`, or less than
    the share `ratio` of what the teacher's gives. A rule on pairs says ready up to the share `few` of them, and trapped from
    the share `many`, if it can. The values were chosen on references of known fate (docs/audit-calibration.md)."""

    mass: float = 0.6
    ratio: float = 0.5
    few: float = 0.4
    many: float = 0.5


THRESHOLDS = Thresholds()


@dataclass(frozen=True)
class Gauge:
    """A rule as a scale: its number, with the whole interval of which it says ready up to `ready`, and trapped beyond `trapped`
    (None: it never does), risky between. `rising` where more of the number is better, and both are bounds from below."""

    what: str
    unit: str
    """`share`, `ratio` or `nats`."""
    number: Estimate
    ready: float
    trapped: float | None
    rising: bool = False

    @property
    def level(self) -> int:
        low, high, ready, trapped = self._falling()
        return READY if high <= ready else TRAPPED if low > trapped else RISKY

    @property
    def nearest(self) -> tuple[int, float]:
        """The nearest other level, and how far the interval's end is from it, in the number's unit."""
        low, high, ready, trapped = self._falling()
        ways = {READY: high - ready, TRAPPED: trapped - low}
        if self.level == RISKY:
            other = min(ways, key=lambda level: ways[level])
            return other, ways[other]
        return RISKY, -ways[self.level]

    def _falling(self) -> tuple[float, float, float, float]:
        """Low and high end, ready and trapped, as numbers of which less is better."""
        one, trapped = self.number, math.inf if self.trapped is None else self.trapped
        if self.rising:
            return -one.high, -one.low, -self.ready, math.inf if self.trapped is None else -self.trapped
        return one.low, one.high, self.ready, trapped


@dataclass(frozen=True)
class Verdict:
    """`level` is one of `LEVELS`; `reasons` say why, `advice` what to do instead, all sentences; `gauges` are the rules with a
    number, the worst first."""

    level: str
    reasons: list[str]
    advice: list[str]
    gauges: list[Gauge]


@dataclass(frozen=True)
class _Said:
    """What one rule said: its level as an index of `LEVELS`, its name, a sentence, and its scale if it has one."""

    level: int
    rule: str
    text: str
    gauge: Gauge | None = None


def judge(
    numbers: Numbers, teacher: Numbers | None, *, beta: float, advantage: float, thresholds: Thresholds = THRESHOLDS
) -> Verdict:
    """The verdict on a reference from its `numbers` and the teacher's.

    Names are those of `precede.evaluate.signals`; rules whose numbers are missing say nothing. `advantage` is Δ.
    """
    reach = advantage / beta
    said = [_typicality(numbers, thresholds)]
    if "unigram_gain" in numbers:
        said.append(_language(numbers["unigram_gain"]))
    if (count := numbers["chosen_logp"].count) < FEW_PAIRS:
        said.append(_Said(RISKY, "pairs", f"{count} pairs were scored; {FEW_PAIRS} are the least to judge by"))
    if "target_mass" in numbers:
        said += _mass(numbers, teacher, reach, thresholds)
    if "recall_gap" in numbers:
        said += _gaps(numbers, reach, thresholds)
    if not {"target_mass", "recall_gap"} & numbers.keys():
        text = "only its typicality was looked at, and that does not tell a good reference from one that lost the behaviour"
        said.append(_Said(UNCHECKED, "unchecked", text))
    worst = max(one.level for one in said)
    reasons = [one.text for one in said if one.level == worst]
    checks = {"recall_gap": "recall (no --teacher)", "target_mass": "target mass (no --reward)"}
    if missing := [check for name, check in checks.items() if name not in numbers]:
        reasons.append(f"not checked: {', '.join(missing)}")
    rules = {one.rule for one in said if one.level == worst} if worst else set()
    gauges = [one.gauge for one in sorted(said, key=lambda one: -one.level) if one.gauge is not None]
    return Verdict(LEVELS[worst], reasons, _advice(rules, numbers, teacher, reach, thresholds), gauges)


def _scaled(rule: str, text: str, gauge: Gauge) -> _Said:
    return _Said(gauge.level, rule, text, gauge)


def _typicality(numbers: Numbers, thresholds: Thresholds) -> _Said:
    share = numbers["unsupported_share"]
    text = (
        f"{percent(share)} of the chosen completions are less likely under the reference than {QUANTILE:.0%} of what it writes "
        f"itself; {1 - QUANTILE:.0%} is chance"
    )
    return _scaled("typicality", text, Gauge("unsupported share of the chosen", "share", share, thresholds.few, None))


def _language(gain: Estimate) -> _Said:
    """Whether the model knows more of the data's text than how often each token occurs in it."""
    gauge = Gauge("gain over token frequencies", "nats", gain, ABOVE_0, ABOVE_0, rising=True)
    text = f"it gives the data's completions {nats(gain)} a token more than the frequencies of their own tokens do"
    if gauge.level != READY:
        text += ": it writes no such text, and is untrained or damaged"
    return _scaled("language", text, gauge)


def _mass(numbers: Numbers, teacher: Numbers | None, reach: float, thresholds: Thresholds) -> list[_Said]:
    mass, best, needed = (numbers[name] for name in ("target_mass", "achievable_mass", "samples_needed"))
    text = (
        f"{percent(mass)} of its samples are desirable, of which the best policy at Δ/β = {reach:.1f} nats makes "
        f"{percent(best)}"
    )
    bound = thresholds.mass
    said = [_scaled("mass", text, Gauge("achievable target mass", "share", best, bound, bound, rising=True))]
    if (prompts := numbers.get("prompts_without_hit")) is not None and mass.count == prompts.count:
        text = (
            "one sample a prompt does not tell how prompts differ, and so not what alignment makes of the target mass"
        )
        said.append(_Said(RISKY, "single", text))
    if needed.value > BATCH:
        count = f"{needed.value:,.0f}" if math.isfinite(needed.value) else f"at least {needed.low:,.0f}"
        text = (
            f"it takes {count} samples to meet a desirable one with 95 % probability, more than a batch of {BATCH}: most steps "
            "of on-policy alignment would see nothing to learn from"
        )
        said.append(_Said(RISKY, "samples", text))
    stops, chosen = numbers["stop_rate"], numbers.get("chosen_stop_rate", EVERY)
    if stops.low < min(STOPPING * chosen.value, chosen.value - STOPPING_POINTS):
        text = (
            f"{percent(stops)} of its samples end by themselves within the length that was sampled, of the chosen "
            f"{percent(chosen)}"
        )
        said.append(_Said(RISKY, "stops", text))
    if teacher is not None and "achievable_mass" in teacher:
        other = teacher["achievable_mass"]
        ends = ((best.value, other.value), (best.low, other.high), (best.high, other.low))
        value, low, high = (one / two if two else math.inf for one, two in ends)
        share = Estimate(value, low, high, best.count)
        gauge = Gauge("the same, over the teacher's", "ratio", share, thresholds.ratio, thresholds.ratio, rising=True)
        text = f"the teacher could be brought to a target mass of {percent(other)}, this reference to {percent(best)}"
        said.append(_scaled("teacher", text, gauge))
    return said


def _gaps(numbers: Numbers, reach: float, thresholds: Thresholds) -> list[_Said]:
    """What distillation lost."""
    lost, raw = numbers["lost_preference_share"], numbers["unreachable_share"]
    text = (
        f"against the teacher, {percent(lost)} of the chosen completions lost {reach:.1f} nats more than the rejected ones "
        f"did at equal length, which is all that alignment can add (Δ/β); the mean is {nats(numbers['excess_gap'])}"
    )
    said = [_scaled("lost", text, Gauge("lost preferences", "share", lost, thresholds.few, thresholds.many))]
    text = (
        f"{percent(raw)} of the chosen completions lost more than {reach:.1f} nats against the teacher, "
        f"{nats(numbers['recall_gap'])} in the mean, and the rejected ones {nats(numbers['rejected_recall_gap'])}: it is "
        "weaker altogether, or lost both"
    )
    said.append(_scaled("weaker", text, Gauge("chosen beyond the reach", "share", raw, thresholds.few, None)))
    return said


def _advice(
    rules: set[str], numbers: Numbers, teacher: Numbers | None, reach: float, thresholds: Thresholds
) -> list[str]:
    """What to do about the rules that spoke."""
    advice = []
    if "pairs" in rules:
        advice.append(
            f"give at least {FEW_PAIRS} pairs; in a recipe data.held_out, or data.held_out_source, says which"
        )
    if "unchecked" in rules:
        advice.append("give the model that it was distilled from (--teacher), or a reward (--reward, --reward-model)")
        return advice
    if "single" in rules:
        advice.append("draw two samples a prompt or more, better four (--samples)")
    if "language" in rules:
        advice.append("train it before anything else, or look for another reference")
        return advice
    if "stops" in rules:
        advice.append(
            "raise --max-new-tokens; if it still does not stop, train it to (sft > align) before anything else"
        )
    if rules & {"mass", "teacher", "samples", "lost", "weaker"}:
        if teacher is None:
            advice.append(
                "audit the model that it was distilled from as --teacher, and align that one first if it is ready"
            )
        elif (
            "teacher" in rules
            or "achievable_mass" not in teacher
            or teacher["achievable_mass"].value >= thresholds.mass
        ):
            advice.append("align the teacher and distil it afterwards (align > distill)")
            advice.append(
                "if the small model must be aligned: distil it again at τ = 1 or by forward-KL token distillation"
            )
            advice.append("or seed the on-policy pool with the teacher's samples (align.pairs: seeded)")
        else:
            advice.append("the teacher has little of it either: look for another reference")
    if rules & {"mass", "samples", "typicality"}:
        advice.append("or fine-tune on the chosen completions first (sft > align), and audit again")
    if "mass" in rules and 0 < (mass := numbers["target_mass"].value) < 1:
        price = float(theory.price_of_recall(mass, HALF))
        if price > reach:
            advice.append(
                f"half of the mass takes Δ/β ≥ {price:.1f} nats, that is β ≤ {reach / price:.2g} times the present one"
            )
    if "target_mass" in numbers:
        needed = numbers["samples_needed"]
        count = needed.value if math.isfinite(needed.value) else needed.low
        if count > 1:
            advice.append(f"draw {count:,.0f} samples a step or more, so that 95 % of the steps see a desirable one")
    return advice or ["align it as it is, and keep this audit beside the run"]


def rank(numbers: Sequence[Numbers], verdicts: Sequence[Verdict]) -> list[int]:
    """Places of the candidates, best first: by verdict, achievable mass, lost preferences, unsupported share, log-prob."""

    def key(index: int) -> tuple[float, ...]:
        candidate, optional = numbers[index], ("achievable_mass", "lost_preference_share")
        best, lost = (candidate[name].value if name in candidate else 0.0 for name in optional)
        rest = candidate["unsupported_share"].value, -candidate["chosen_logp_per_token"].value
        return float(LEVELS.index(verdicts[index].level)), -best, lost, *rest

    return sorted(range(len(numbers)), key=key)


def percent(share: Estimate) -> str:
    """`4.2 % [3.3, 5.1]`."""
    value, low, high = (100 * number for number in (share.value, share.low, share.high))
    digits = 1 if high - low > 0.2 else 3
    return f"{value:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


def nats(value: Estimate) -> str:
    return f"{value.value:.1f} nats [{value.low:.1f}, {value.high:.1f}]"
