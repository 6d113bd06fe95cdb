"""What the audit's numbers are worth: typicality on models' own samples, and verdicts against what alignment then reached.

    python benchmarks/audit.py [all | typicality calibration] [--store FOLDER] [--workers N] [--write]

`typicality` samples SmolLM2-135M-Instruct and the same model with 24 of its 30 layers at two lengths, scores the samples and
tests z against N(0, 1). `calibration` runs the recipe `audit-grammar` (finished stages are taken from the store), audits each
of its 72 references with the teacher and the exact reward, and holds predictions and verdicts against the target mass that
alignment reached, in both orders. Worlds of even number are for choosing rules on, those of odd number are held back from
that. `--write` puts the result into docs/audit-calibration.md and docs/figures/calibration.svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy import stats

from precede.audit.audit import audit
from precede.audit.signals import Estimate, side
from precede.audit.verdict import LEVELS
from precede.compare import cache_folder, compare, prepare
from precede.lm.data import Preference, PreferenceData
from precede.lm.logprobs import score
from precede.lm.models import BUNDLED, load, remove_layers
from precede.lm.sampling import prompt_ids, sample, texts
from precede.recipe import load_recipe
from precede.report.figures import STYLE, canvas
from precede.store import Stage, Store
from precede.worlds.grammar.chains import EOS
from precede.worlds.language.stages import model_folder
from precede.worlds.world import load_world

ROOT = Path(__file__).resolve().parent.parent
PAIRS, SAMPLES = 256, 16
"""Pairs of each reference's audit, and samples drawn for each."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Case:
    """One reference: what the audit said, and what became of it."""

    world: int
    settings: dict[str, Any]
    numbers: dict[str, Estimate]
    teacher: dict[str, Estimate]
    verdict: str
    realised: float
    other: float
    """Target mass of align > distill with the same settings and seed."""

    @property
    def failed(self) -> bool:
        return self.realised < 0.5 * self.other

    @property
    def predicted(self) -> float:
        return self.numbers["achievable_mass"].value


def typicality(count: int = 200, lengths: Sequence[int] = (32, 128)) -> list[str]:
    lines = ["| model | tokens | samples | mean z | sd of z | KS distance | KS p |", "| --- " * 7 + "|"]
    model, tokenizer = load(BUNDLED)
    prompt = prompt_ids(tokenizer, "The")
    for name, network in (("SmolLM2-135M-Instruct", model), ("24 of its 30 layers", remove_layers(model, 24))):
        for length in lengths:
            rows = sample(network, tokenizer, prompt, count, max_new_tokens=length, seed=length, batch_size=50)
            z = side([found[0] for found in score(network, [prompt] * count, [[row] for row in rows])]).typicality
            test = stats.kstest(z, "norm")
            numbers = f"{z.mean():+.2f} | {z.std(ddof=1):.2f} | {test.statistic:.3f} | {test.pvalue:.2f}"
            lines.append(f"| {name} | {length} | {len(z)} | {numbers} |")
            print(lines[-1], flush=True)
    return lines


def cases(store_folder: Path, workers: int | None) -> list[Case]:
    recipe = load_recipe("audit-grammar")
    compare(recipe, store=store_folder, workers=workers, out=Path("runs/audit-grammar"), tell=print)
    store, (_, plan) = Store(store_folder), prepare(recipe)
    ends: dict[tuple[str, int], dict[str, Stage]] = {}
    for arm in plan.arms:
        for chain in arm.blocks:
            (seed,) = chain[-1].seeds
            ends.setdefault((repr(sorted(arm.settings.items())), seed), {})[str(arm.order)] = chain[-1]
    found = []
    for number, orders in enumerate(ends.values()):
        last, other = orders["distill > align"], orders["align > distill"]
        found.append(case(store, last, other))
        print(
            f"{number + 1} of {len(ends)}: {found[-1].verdict}, {found[-1].predicted:.3f}, {found[-1].realised:.3f}",
            flush=True,
        )
    return found


def case(store: Store, last: Stage, other: Stage) -> Case:
    reference, teacher, (seed,) = last.source(), last.root(), last.seeds
    world: Any = load_world(last.world)
    truth, (_, words) = world.truth(last), load(model_folder(store, teacher))
    rows = truth.sample(20 * PAIRS, 1_000_000 + seed)
    good = truth.target_sample(PAIRS, 2_000_000 + seed)
    rest = [row for row, reward in zip(rows, truth.rewards(rows), strict=True) if reward < 0.5][:PAIRS]

    def text(row: Sequence[int]) -> str:
        return texts(words, truth.prompt, [row])[0]

    pairs = [
        Preference(place + 1, truth.prompt, list(a), list(b), "", text(a), text(b))
        for place, (a, b) in enumerate(zip(good, rest, strict=True))
    ]

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        ids = [words.convert_tokens_to_ids(completion.split()) for completion in completions]
        length = world.config["max_new_tokens"]
        values: list[float] = truth.rewards([row if len(row) == length else [*row, EOS] for row in ids])
        return values

    judged = audit(
        str(model_folder(store, reference)),
        PreferenceData("the truth", pairs, [], []),
        teacher=str(model_folder(store, teacher)),
        reward=reward,
        target_reward=world.config["target_reward"],
        beta=last.config["beta"],
        samples=SAMPLES,
        max_new_tokens=world.config["max_new_tokens"],
        seed=seed,
    )
    masses = [store.metrics(stage)["target_mass"][0] for stage in (last, other)]
    assert None not in masses
    (candidate,) = judged.candidates
    assert judged.teacher_numbers is not None
    settings = {
        "weight": world.config["target_weight"],
        **{k: reference.config[k] for k in ("temperature", "hidden_size")},
    }
    return Case(
        seed % world.config["worlds"],
        settings,
        candidate.numbers,
        judged.teacher_numbers,
        candidate.verdict.level,
        *masses,
    )


def area(scores: Sequence[float], failed: Sequence[bool]) -> float:
    """Area under the ROC curve: the chance that a failed reference scores above one that did not fail, ties half."""
    bad, good = (np.array([s for s, f in zip(scores, failed, strict=True) if f is kind]) for kind in (True, False))
    if not len(bad) or not len(good):
        return float("nan")
    return float(stats.mannwhitneyu(bad, good).statistic / (len(bad) * len(good)))


def with_interval(found: Sequence[Case], statistic: Callable[[Sequence[Case]], float]) -> str:
    """A statistic over references, with its bootstrap interval over references."""
    generator = np.random.default_rng(7)
    drawn = [statistic([found[i] for i in generator.integers(len(found), size=len(found))]) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return f"{statistic(found):.3f} [{low:.3f}, {high:.3f}]"


def correlation(found: Sequence[Case]) -> float:
    return float(stats.spearmanr([c.predicted for c in found], [c.realised for c in found]).statistic)


SCORES: dict[str, Callable[[Case], float]] = {
    "verdict (ready, risky, trapped)": lambda c: float(LEVELS.index(c.verdict)),
    "achievable mass against the teacher's": lambda c: -c.predicted / c.teacher["achievable_mass"].value,
    "achievable mass m*": lambda c: -c.predicted,
    "target mass m": lambda c: -c.numbers["target_mass"].value,
    "lost preferences": lambda c: c.numbers["lost_preference_share"].value,
    "mean excess gap": lambda c: c.numbers["excess_gap"].value,
    "unreachable share": lambda c: c.numbers["unreachable_share"].value,
    "mean recall gap": lambda c: c.numbers["recall_gap"].value,
    "unsupported share": lambda c: c.numbers["unsupported_share"].value,
    "mean typicality": lambda c: c.numbers["typicality"].value,
    "1 − ranking accuracy": lambda c: -c.numbers["ranking_accuracy"].value,
}


def calibration(store: Path, workers: int | None, write: bool) -> list[str]:
    found = cases(store, workers)
    halves = {
        "to choose on": [c for c in found if c.world % 2 == 0],
        "held back": [c for c in found if c.world % 2 == 1],
    }
    lines = ["| | worlds to choose on | worlds held back |", "| --- | --- | --- |"]
    counts = [f"{sum(c.failed for c in half)} of {len(half)}" for half in halves.values()]
    lines.append(f"| references that ended below half of align > distill | {counts[0]} | {counts[1]} |")
    rows = {"rank correlation of m* with the mass reached": correlation}
    for name, signal in SCORES.items():
        rows[f"area under ROC: {name}"] = lambda half, signal=signal: area(
            [signal(c) for c in half], [c.failed for c in half]
        )
    for name, statistic in rows.items():
        lines.append(f"| {name} | " + " | ".join(with_interval(half, statistic) for half in halves.values()) + " |")
    lines += [
        "",
        "| verdict, worlds held back | references | ended below half | mean m* | mean mass reached | the other order |",
    ]
    lines.append("| --- " * 6 + "|")
    for level in LEVELS:
        own = [c for c in halves["held back"] if c.verdict == level]
        if own:
            means = [
                np.mean([pick(c) for c in own])
                for pick in (lambda c: c.predicted, lambda c: c.realised, lambda c: c.other)
            ]
            cells = " | ".join(f"{mean:.3f}" for mean in means)
            lines.append(f"| {level} | {len(own)} | {sum(c.failed for c in own)} | {cells} |")
    print("\n".join(lines))
    if write:
        draw(found)
    return lines


def draw(found: Sequence[Case]) -> None:
    figure, axes = canvas(2, width=3.6, height=3.2)
    tints = {"ready": "#2c7d4f", "risky": "#d9930d", "trapped": "#b3261e"}
    for held, axis in zip((False, True), axes[0], strict=True):
        axis.plot([0, 1], [0, 1], "k--", linewidth=1)
        for level, tint in tints.items():
            own = [c for c in found if c.verdict == level and c.world % 2 == held]
            axis.plot([c.predicted for c in own], [c.realised for c in own], "o", color=tint, markersize=4, label=level)
        axis.set(
            title="worlds held back" if held else "worlds to choose rules on",
            xlabel="achievable mass m*, predicted",
        )
    axes[0, 0].set_ylabel("target mass that alignment reached")
    axes[0, 0].legend(fontsize=7)
    with matplotlib.rc_context(STYLE):
        figure.savefig(ROOT / "docs" / "figures" / "calibration.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["all", "typicality", "calibration"], default="all")
    parser.add_argument("--store", type=Path, default=cache_folder() / "stages", help="where the stages are")
    parser.add_argument("--workers", type=int, help="processes that run stages")
    parser.add_argument("--write", action="store_true", help="write the page and the figure in docs/")
    options = parser.parse_args()
    parts = ("typicality", "calibration") if "all" in options.parts else options.parts
    page = ROOT / "docs" / "audit-calibration.md"
    made = {
        "typicality": lambda: typicality(),
        "calibration": lambda: calibration(options.store, options.workers, options.write),
    }
    for part in parts:
        lines = made[part]()
        if options.write:
            text = page.read_text("utf-8")
            begin, end = (text.index(f"<!-- {part}: {word} -->") for word in ("begin", "end"))
            begin += len(f"<!-- {part}: begin -->")
            page.write_text(text[:begin] + "\n" + "\n".join(lines) + "\n" + text[end:], "utf-8")


if __name__ == "__main__":
    main()
