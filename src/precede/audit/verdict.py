"""From numbers to a verdict: `ready`, `risky` or `trapped`, by the rules below (docs/audit.md has their calibration).

Every rule looks at one number's interval: it says `trapped` where the whole interval is bad, `risky` where its point or
chance alone could be; the verdict is the worst that any rule says, and each rule that spoke gives its reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from precede import theory
from precede.audit.signals import QUANTILE, Estimate

LEVELS = ("ready", "risky", "trapped")
HALF = 0.5
"""A reference is trapped where alignment would leave less than this target mass, or this share of what the teacher's gives."""
SHARES = {"unsupported_share": (0.05, 0.5), "unreachable_share": (0.05, 0.5)}
"""Share of chosen completions → above which the reference is risky, above which it is trapped."""
FEW_PAIRS = 30
"""Below this many pairs the intervals are too wide for `ready`."""

Numbers = Mapping[str, Estimate]


@dataclass(frozen=True)
class Verdict:
    """`level` is one of `LEVELS`; `reasons` say why, `advice` what to do instead; all sentences."""

    level: str
    reasons: list[str]
    advice: list[str]


def judge(numbers: Numbers, teacher: Numbers | None, *, beta: float, advantage: float) -> Verdict:
    """The verdict on a reference from its `numbers` and the teacher's.

    Names are those of `precede.audit.signals`; rules whose numbers are missing say nothing. `advantage` is Δ.
    """
    reach = advantage / beta
    said: list[tuple[int, str]] = []
    if "achievable_mass" in numbers:
        said += _on_mass(numbers, teacher, reach)
    if "unreachable_share" in numbers:
        words = (
            f"{percent(numbers['unreachable_share'])} of the chosen completions lost more than the {reach:.1f} nats that "
            f"alignment can add (Δ/β) against the teacher; the mean loss is {nats(numbers['recall_gap'])}"
        )
        said.append((_by_share(numbers, "unreachable_share", 0.0), words))
    words = (
        f"{percent(numbers['unsupported_share'])} of the chosen completions are less likely under the reference than all but "
        f"{1 - QUANTILE:.0%} of what it writes itself; {1 - QUANTILE:.0%} is chance"
    )
    said.append((_by_share(numbers, "unsupported_share", 1 - QUANTILE), words))
    if numbers["unsupported_share"].count < FEW_PAIRS:
        said.append((1, f"there are only {numbers['unsupported_share'].count} pairs"))
    worst = max(level for level, _ in said)
    reasons = [text for level, text in said if level == worst] if worst else [text for _, text in said]
    return Verdict(LEVELS[worst], reasons, _advice(worst, numbers, teacher, reach))


def _on_mass(numbers: Numbers, teacher: Numbers | None, reach: float) -> list[tuple[int, str]]:
    mass, best = numbers["target_mass"], numbers["achievable_mass"]
    words = (
        f"{percent(mass)} of its samples are desirable, of which alignment at Δ/β = {reach:.1f} nats can make "
        f"{percent(best)} at most"
    )
    said = [(2 if best.high < HALF else 1 if best.low < HALF else 0, words)]
    if mass.value == 0:
        said.append(
            (1, f"none of {mass.count} samples is desirable: on-policy alignment would see nothing to learn from")
        )
    if teacher is not None and "achievable_mass" in teacher:
        other = teacher["achievable_mass"]
        level = 2 if best.value < HALF * other.value else 1 if best.low < HALF * other.high else 0
        said.append((level, f"{words}; the teacher could be brought to {percent(other)}"))
    return said


def _by_share(numbers: Numbers, name: str, chance: float) -> int:
    """Trapped where the interval's lower end is above the second bound, risky where it is above the first and chance."""
    risky, trapped = SHARES[name]
    low = numbers[name].low
    return 2 if low > trapped else 1 if low > max(risky, chance) else 0


def _advice(worst: int, numbers: Numbers, teacher: Numbers | None, reach: float) -> list[str]:
    if worst == 0:
        return ["align it as it is; keep this audit beside the run"]
    advice = []
    if teacher is not None:
        advice.append("align the teacher and distil it afterwards (align > distill)")
        advice.append("if the small model must be aligned: distil again at τ = 1 or by forward-KL token distillation")
        advice.append("or seed the on-policy pool with the teacher's samples (align.pairs: seeded)")
    else:
        advice.append(
            "audit the model that this one was distilled from, with --teacher; align that one first if it is ready"
        )
        advice.append("or fine-tune on the chosen completions first (sft > align), and audit again")
    mass = numbers.get("target_mass")
    if mass is not None and 0 < mass.value < 1:
        needed = float(theory.price_of_recall(mass.value, HALF))
        if needed > reach:
            advice.append(
                f"half of the mass takes Δ/β ≥ {needed:.1f} nats, that is β ≤ {reach / needed:.2g} times the present one"
            )
    if mass is not None and math.isfinite(found := numbers["samples_needed"].value):
        advice.append(f"draw at least {found:,.0f} samples per step, so that 95 % of the steps see a desirable one")
    return advice


def rank(numbers: Sequence[Numbers], verdicts: Sequence[Verdict]) -> list[int]:
    """Places of the candidates, best first: by verdict, achievable mass, unreachable and unsupported share, chosen log-prob."""

    def key(place: int) -> tuple[float, ...]:
        own = numbers[place]
        best, gap = (own[name].value if name in own else 0.0 for name in ("achievable_mass", "unreachable_share"))
        rest = own["unsupported_share"].value, -own["chosen_logp_per_token"].value
        return float(LEVELS.index(verdicts[place].level)), -best, gap, *rest

    return sorted(range(len(numbers)), key=key)


def percent(share: Estimate) -> str:
    """`4.2 % [3.3, 5.1]`."""
    value, low, high = (100 * number for number in (share.value, share.low, share.high))
    digits = 1 if high - low > 0.2 else 3
    return f"{value:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"


def nats(value: Estimate) -> str:
    return f"{value.value:.1f} nats [{value.low:.1f}, {value.high:.1f}]"
