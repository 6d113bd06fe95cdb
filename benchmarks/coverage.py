"""How often the 95 % intervals that are printed hold the truth, by simulation.

    python benchmarks/coverage.py [--repetitions 10000] [--write]

Every kind of interval of the package, in cases as they occur, at several sizes: seeds, or prompts where the interval is over
prompts. The intervals are those of the package's own functions; the truth is known in closed form or by quadrature. Takes
less than ten minutes on one core. `--write` puts the table into docs/statistics.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from precede import stats, theory
from precede.analysis.collect import REACHED
from precede.evaluate import signals
from precede.evaluate.examiner import retained

Array = NDArray[np.float64]
Generator = np.random.Generator
Draw = Callable[[Generator, int, int], tuple[Array, float]]
"""(generator, size, count) → values (count, size), and the mean of what they are drawn from."""
PAGE = Path(__file__).resolve().parent.parent / "docs" / "statistics.md"
SEEDS, PROMPTS, MANY = (3, 5, 9, 20), (3, 5, 9, 20, 48, 200), (48, 200)
LEAST = 100
"""Printed intervals below which no coverage is told."""
QUANTILES = norm.ppf((np.arange(100_000) + 0.5) / 100_000)
MASS, CORRELATION, STOPS, ADVANTAGE, BETA = 0.05, 0.3, 0.8, 1.0, 0.1
"""Of prompts: mean target mass, how much of a hit's variance is the prompt's, stop rate, and what m* is asked for."""
AUDITED = ((0.03, 0.0), (0.03, 0.3), (0.03, 0.5), (0.3, 0.3), (0.003, 0.3), (0.03, -1.0))
"""Mean target mass of an audit's prompts and ρ; −1: a prompt has a half or nothing, which no beta distribution is."""


@dataclass(frozen=True)
class Case:
    """One row of the table: an interval, what it is over, and values that it is tried on."""

    interval: str
    over: str
    values: str
    sizes: Sequence[int]
    simulate: Callable[[Generator, int, int], tuple[Array, float]]
    """(generator, size, count) → ends (count, 2), NaN where nothing is printed, and the truth."""
    share: float = 1.0
    """Of the repetitions: less where one takes long."""

    @property
    def name(self) -> str:
        return f"{self.interval} | {self.over} | {self.values}"


@dataclass(frozen=True)
class Coverage:
    covered: float
    error: float
    """Standard error."""
    printed: float
    """Share of the repetitions that print an interval."""

    def __str__(self) -> str:
        undefined = self.covered != self.covered
        text = "–" if undefined else f"{100 * self.covered:.1f} ± {100 * self.error:.1f}"
        return text if self.printed > 0.995 else f"{text} ({100 * self.printed:.0f})"


def measure(case: Case, size: int, repetitions: int) -> Coverage:
    generator = np.random.default_rng([size, *case.name.encode()])
    ends, truth = case.simulate(generator, size, max(1, round(case.share * repetitions)))
    printed = np.isfinite(ends).all(1)
    count = int(printed.sum())
    if count < min(LEAST, len(ends)):
        return Coverage(np.nan, np.nan, count / len(ends))
    covered = float(((ends[:, 0] <= truth) & (truth <= ends[:, 1]))[printed].mean())
    return Coverage(covered, float(np.sqrt(covered * (1 - covered) / count)), count / len(ends))


# Seeds: Student's t of differences.


def student(draw: Draw, worlds: int | None, generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """The interval of every comparison over seeds; `worlds`: that many clusters, seed i in world i mod `worlds`."""
    values, truth = draw(generator, size, count)
    return stats.summarise(values, None if worlds is None else [seed % worlds for seed in range(size)]).ci95, truth


def bootstrap(draw: Draw, generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """What is not printed: the percentile bootstrap over seeds, 1,000 resamples."""
    values, truth = draw(generator, size, count)
    ends = np.empty((count, 2))
    for row, own in enumerate(values):
        ends[row] = np.percentile(own[generator.integers(size, size=(1000, size))].mean(1), (2.5, 97.5))
    return ends, truth


def normal(generator: Generator, size: int, count: int) -> tuple[Array, float]:
    return generator.normal(size=(count, size)), 0.0


def in_worlds(spread: float, generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """Seeds of three worlds that differ by `spread` standard deviations of a seed."""
    worlds = spread * generator.normal(size=(count, 3))
    return worlds[:, np.arange(size) % 3] + generator.normal(size=(count, size)), 0.0


def masses(
    a: tuple[float, float], b: tuple[float, float], generator: Generator, size: int, count: int
) -> tuple[Array, float]:
    """Differences of masses whose log-odds are normal (mean, standard deviation) and share half of their variance."""
    shared, first, second = generator.normal(size=(3, count, size)) * np.sqrt(0.5)
    values = expit(a[0] + a[1] * (shared + first)) - expit(b[0] + b[1] * (shared + second))
    return values, expected(*a) - expected(*b)


def expected(mean: float, spread: float) -> float:
    """The mean of σ of a normal."""
    return float(expit(mean + spread * QUANTILES).mean())


def jump(chance: float, generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """Masses near 0 but for a few seeds that align: near 1, with that chance."""
    aligns, z = generator.random((count, size)) < chance, generator.normal(size=(count, size))
    return expit(np.where(aligns, 3.0, -6.0) + z), chance * expected(3, 1) + (1 - chance) * expected(-6, 1)


def jumps(chance: float, generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """Differences of two such orders that are alike."""
    first, second = (jump(chance, generator, size, count)[0] for _ in range(2))
    return first - second, 0.0


def counted_odds(
    a: float, b: float, generator: Generator, size: int, count: int, samples: int = 1000
) -> tuple[Array, float]:
    """Differences of `target_log_odds` of 1,000 samples a model; the truth is that of the masses' own log-odds."""
    odds = np.array([a, b])[:, None, None] + generator.normal(size=(2, count, size))
    hits = generator.binomial(samples, expit(odds))
    first, second = np.log((hits + 0.5) / (samples - hits + 0.5))
    return first - second, a - b


def matched(missing: float, generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """Recall of two orders at one target mass, interpolated; of the second, a share of the seeds does not reach that mass.

    A seed that aligns less has less recall too, so that the seeds that are missing are those with the lowest. The truth is the
    mean over all seeds, on frontiers that went on.
    """
    alike = generator.normal(size=(2, count * size, 1))
    at, prices = np.zeros(count * size), np.linspace(-6, 6, 7)
    tops = (8.0, -float(norm.ppf(missing)))  # the largest log-odds of a frontier less the level, for an average seed
    sides = []
    for ability, top in zip(alike, tops, strict=True):
        odds = prices - 6 + top + ability
        recall = ability - odds - 0.05 * odds**2 + generator.normal(size=ability.shape)
        sides.append(stats.interpolate(odds, recall, at))
    summary = stats.summarise((sides[0] - sides[1]).reshape(count, size))
    few = summary.seeds < REACHED * size
    return np.where(few[:, None], np.nan, summary.ci95), 0.0


# Prompts and samples.


def skewed(generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """Nats per prompt whose logarithm is normal with standard deviation 1."""
    return np.exp(generator.normal(size=(count, size))), float(np.exp(0.5))


def hits(
    mass: float, samples: int, generator: Generator, shape: tuple[int, ...], correlation: float = CORRELATION
) -> NDArray[np.bool_]:
    """(*shape, samples) hits; the prompts' masses are beta-distributed, or alike at a correlation of 0."""
    if correlation == 0:
        return generator.random((*shape, samples)) < mass
    strength = 1 / correlation - 1
    own = generator.beta(mass * strength, (1 - mass) * strength, size=(*shape, 1))
    return generator.random((*shape, samples)) < own


def counted(generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """Target mass of each prompt by four samples."""
    return hits(MASS, 4, generator, (count, size)).mean(2), MASS


def compared(generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """The same of two models, twice as much by the first."""
    first, second = (hits(mass, 4, generator, (count, size)).mean(2) for mass in (2 * MASS, MASS))
    return first - second, MASS


def rows(
    estimate: Callable[[Array], signals.Estimate], draw: Draw, generator: Generator, size: int, count: int
) -> tuple[Array, float]:
    values, truth = draw(generator, size, count)
    return np.array([(one.low, one.high) for one in map(estimate, values)]), truth


def ratio(spread: float, generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """Nats per token: lengths are log-normal, and longer completions have fewer nats per token."""
    length, other = generator.normal(size=(2, count, size))
    tokens, nats = np.exp(3 + spread * length), np.exp(3 + (spread - 0.2) * length + 0.5 * other)
    found = [signals.ratio(*one) for one in zip(nats, tokens, strict=True)]
    truth = np.exp(((spread - 0.2) ** 2 + 0.5**2 - spread**2) / 2)
    return np.array([(one.low, one.high) for one in found]), float(truth)


def kept(chance: float, generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """Rewards of which alignment adds 1 to a share `chance` of the rows, and the last stage keeps 0.7 of it on average."""
    start = generator.normal(size=(count, size))
    gain = (generator.random((count, size)) < chance) * 1.0
    final = start + 0.7 * gain + 0.3 * generator.normal(size=(count, size))
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample without any gain
        found = [retained(*one) for one in zip(start, start + gain, final, strict=True)]
    return np.array([(one.low, one.high) for one in found]), 0.7


def exact(mass: float, samples: int | None, generator: Generator, size: int, count: int) -> tuple[Array, float]:
    """Clopper–Pearson of `size` independent samples, or of `samples` of each of `size` prompts."""
    if samples is None:
        found, trials = generator.binomial(size, mass, count), size
    else:
        found, trials = hits(mass, samples, generator, (count, size)).sum((1, 2)), size * samples
    ends = {int(one): stats.clopper_pearson(int(one), trials) for one in np.unique(found)}
    return np.array([ends[int(one)] for one in found]), mass


@cache
def audits(mass: float, correlation: float, samples: int, size: int, count: int) -> list[dict[str, signals.Estimate]]:
    """What an audit says of so many prompts; negative `correlation`: prompts that have a half or nothing."""
    generator = np.random.default_rng([samples, size, round(1e4 * mass), round(1e4 * abs(correlation))])
    shape = (count, size, samples)
    if correlation < 0:
        good = generator.random(shape) < np.where(generator.random((count, size, 1)) < 2 * mass, 0.5, 0.0)
    else:
        good = hits(mass, samples, generator, (count, size), correlation)
    ended, tokens = hits(STOPS, samples, generator, (count, size)), np.ones((size, samples))
    return [
        signals.sampled_summary(signals.Sampled(one * 1.0, tokens, stopped, stopped[:, 0]), 0.5, ADVANTAGE, BETA)
        for one, stopped in zip(good, ended, strict=True)
    ]


def audited(
    name: str, truth: float, mass: float, correlation: float, samples: int, _: Generator, size: int, count: int
) -> tuple[Array, float]:
    made = audits(mass, correlation, samples, size, count)
    return np.array([(one[name].low, one[name].high) for one in made]), truth


def achievable(mass: float, correlation: float) -> float:
    """E σ(logit m_x + Δ/β) over the prompts."""
    if correlation <= 0:
        own, share = (0.5, 2 * mass) if correlation < 0 else (mass, 1.0)
        return share * float(theory.achievable_mass(own, ADVANTAGE, BETA))
    strength = 1 / correlation - 1
    many = np.random.default_rng(0).beta(mass * strength, (1 - mass) * strength, size=1_000_000)
    return float(theory.achievable_mass(many, ADVANTAGE, BETA).mean())


LOW, MIDDLE, HIGH = (-5.0, 1.5), (0.0, 1.0), (5.0, 1.5)


def cases() -> Iterator[Case]:
    """Every row of the table."""
    differences: list[tuple[str, Draw]] = [
        ("normal differences", normal),
        ("masses near 0 (0.02 against 0.003)", partial(masses, LOW, (-7.0, 1.5))),
        ("masses in the middle (0.5 against 0.2)", partial(masses, MIDDLE, (-1.6, 1.0))),
        ("masses near 1 (0.98 against 0.93)", partial(masses, HIGH, (3.5, 1.5))),
        ("near 1 against near 0 (0.98 against 0.02)", partial(masses, HIGH, LOW)),
        ("one seed in five jumps from 0 to 1", partial(jump, 0.2)),
        ("one seed in twenty jumps from 0 to 1", partial(jump, 0.05)),
        ("two orders alike, one seed in five jumps", partial(jumps, 0.2)),
    ]
    t = "Student's t"
    for values, draw in differences:
        yield Case(t, "seeds", values, SEEDS, partial(student, draw, None))
    yield Case(t + ", sharpening part", "seeds", "0.5 less 0.2", SEEDS, partial(student, differences[2][1], None))
    high = partial(masses, HIGH, MIDDLE)
    yield Case(t + ", recall part", "seeds", "near 1 less the middle", SEEDS, partial(student, high, None))
    for spread, values in ((1.0, "worlds differ as much as seeds"), (0.0, "worlds do not differ")):
        draw = partial(in_worlds, spread)
        yield Case(t + ", clusters", "9 seeds in 3 worlds", values, (9,), partial(student, draw, 3))
        yield Case(t + ", without clusters", "9 seeds in 3 worlds", values, (9,), partial(student, draw, None))
    odds = [("hits are many", -1.0, -2.0), ("second order mostly without a hit", -5.0, -8.0)]
    for values, a, b in odds:
        draw = partial(counted_odds, a, b)
        yield Case(t + ", counted log-odds", "seeds", values, SEEDS, partial(student, draw, None))
    for missing, values in ((1e-6, "every seed reaches the level"), (0.1, "nine seeds in ten reach it")):
        yield Case(t + ", matched rows", "seeds", values, SEEDS, partial(matched, missing))
    for values, draw in (differences[0], differences[5]):
        yield Case("percentile bootstrap (not printed)", "seeds", values, SEEDS, partial(bootstrap, draw), 0.2)

    prompts: list[tuple[str, Draw]] = [("skewed nats (log-normal)", skewed), ("target mass 0.05, 4 samples", counted)]
    for values, draw in prompts:
        yield Case("`signals.mean`", "prompts", values, PROMPTS, partial(rows, signals.mean, draw), 0.2)
    pair = partial(student, compared, None)
    yield Case(t + ", two models", "prompts", "target mass 0.1 against 0.05, 4 samples", PROMPTS, pair, 0.5)
    for spread, values in ((0.5, "lengths vary by half"), (1.0, "lengths skewed (log-normal)")):
        yield Case("`signals.ratio`", "prompts", values, PROMPTS, partial(ratio, spread), 0.2)
    for chance, values in ((0.5, "half of the rows gain"), (0.1, "one row in ten gains")):
        yield Case("`examiner.retained`", "prompts", values, PROMPTS[2:], partial(kept, chance), 0.04)
    for mass in (0.02, 0.3):
        yield Case("Clopper–Pearson", "samples", f"mass {mass}", PROMPTS[3:], partial(exact, mass, None))
    pooled = partial(exact, MASS, 4)
    yield Case("Clopper–Pearson, pooled", "prompts", "mass 0.05, 4 samples of a prompt", PROMPTS[3:], pooled, 0.5)
    for mass, correlation in AUDITED:
        prompts_differ = f"ρ {correlation}" if correlation >= 0 else "a half or nothing"
        for name, title, truth in (
            ("target_mass", "audit, target mass", mass),
            ("achievable_mass", "audit, achievable mass", achievable(mass, correlation)),
        ):
            for samples in (2, 4, 16):
                values = f"m {mass}, {prompts_differ}, mean {truth:.3f}; {samples} samples of a prompt"
                case = partial(audited, name, truth, mass, correlation, samples)
                yield Case(title, "prompts", values, MANY, case, 0.02)
    for samples in (2, 4, 16):
        values = f"mean {STOPS:.2f}, {samples} samples of a prompt"
        yield Case(
            "audit, stop rate",
            "prompts",
            values,
            MANY,
            partial(audited, "stop_rate", STOPS, *AUDITED[0], samples),
            0.02,
        )


def table(repetitions: int) -> Iterator[str]:
    yield f"| interval | over | values | {' | '.join(map(str, PROMPTS))} |"
    yield "| --- " * (3 + len(PROMPTS)) + "|"
    for case in cases():
        cells = [str(measure(case, size, repetitions)) if size in case.sizes else "" for size in PROMPTS]
        yield f"| {case.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help="write the table into docs/statistics.md")
    options = parser.parse_args()
    print("Measured coverage in %, ± its standard error; nominal: 95. In brackets: % that print an interval.")
    lines = []
    for line in table(options.repetitions):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        text = PAGE.read_text("utf-8")
        begin, end = (text.index(f"<!-- coverage: {word} -->") for word in ("begin", "end"))
        begin += len("<!-- coverage: begin -->")
        PAGE.write_text(text[:begin] + "\n" + "\n".join(lines) + "\n" + text[end:], "utf-8")


if __name__ == "__main__":
    main()
