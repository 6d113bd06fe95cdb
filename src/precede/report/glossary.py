"""The words of a report for a reader who knows none of them, a line each, and how sure its verdicts are."""

from __future__ import annotations

from precede.analysis.results import Results
from precede.report.view import SIGNIFICANT

ORDERS = {
    "align > distill": "A→K: the teacher is aligned to what is wanted, then the student is distilled from it",
    "distill > align": "K→A: the student is distilled from the teacher, then aligned",
}
METRICS = {
    "reward": "mean reward of what a model writes or draws; what alignment is to raise",
    "target_mass": "share of a model's samples that are what is wanted (the target)",
    "recall": "mean log-probability that a model gives to samples of the truth: low where it has lost some of them",
    "precision": "mean log-probability that the truth gives to a model's samples: low where it makes things up",
    "target_recall": "recall of the target alone: low where a model has lost what is wanted",
}


def glossary(results: Results) -> list[tuple[str, str]]:
    """Terms that this report uses, with what each means, in the order in which it uses them; `results` are seen by role."""
    told = {c["metric"] for c in results["comparisons"]}
    own, parts = results["own"], bool(results["decomposition"])
    lines = [(order, ORDERS[order]) for order in results["orders"] if order in ORDERS]
    if any(one.get("align.beta") is not None for one in own):
        lines.append(
            ("β, price of KL", "reward that alignment pays for each nat that a model moves from its reference")
        )
    if any(one.get("distill.temperature") is not None for one in own):
        lines.append(
            ("τ, temperature of distillation", "the teacher is sampled at τ; below 1, likely gets likelier still")
        )
    if any(one.get("distill.extrapolation") is not None for one in own):
        lines.append(
            ("λ, extrapolation", "the aligned teacher, moved from its reference λ times as far as alignment moved it")
        )
    if parts:
        sharpening = "the part of the difference that aligning last has too at the smaller price τβ"
        lines.append(("sharpening", sharpening))
        lines.append(
            ("recall, of a difference", "the rest: what no smaller price gives back, for the student has lost it")
        )
    lines += [(name.replace("_", " "), what) for name, what in METRICS.items() if name in told]
    lines.append(("nat", "unit of log-probabilities: one more is a factor of e, about 2.7"))
    sure = (
        f"wins, loses or undecided over seeds: paired t-test at {100 * SIGNIFICANT:.0f} %, adjusted for how many are said "
        "at once (Holm), here and in every table; a 95 % interval is of one number alone, and may exclude 0 where the verdict "
        "is undecided"
    )
    return [*lines, ("verdict", sure)]
