"""Is the advice right? Comparisons on users' data in worlds where the truth is known, judged by other seeds.

    python benchmarks/advice.py [--worlds 24] [--workers 2] [--out runs/advice] [--write] [--quick]

Each random grammar world is laid out as a user's: a teacher's folder, preference pairs in a file, a reward in a file
(`user_world.py`). Target weights go from 0.3 % to 20 %, τ is 0.7 or 1, alignment is DPO on the pairs or RLOO by the reward;
worlds 0, 1, 2, … take these in turn. `precede compare` runs both orders with six seeds in each. What a user of three of the
seeds is told (`precede.report.answer`) is then held against what the other three show, and the other way round: their final
models are sampled on 2,000 new prompts of the truth and get the exact posterior of the target, which is the reward. A
recommendation is *wrong while sure* where it says "ship" and the other seeds' mean is below that of the other order by more
than `SAME`.

Everything is kept below `--out`, and a killed run goes on; `--write` puts the tables into docs/statistics.md. `--quick` only
shows that the parts work: its sizes are too small to mean anything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from precede.jobs.compare import compare, prepare
from precede.models.load import load
from precede.plan import Node
from precede.report.answer import advices
from precede.report.view import by_role
from precede.sampling import sample_prompts
from precede.settings.recipe import Recipe, read_recipe
from precede.stats import clopper_pearson
from precede.store import Store
from precede.worlds.grammar.chains import BOS
from user_world import PREFIX, UserWorld, make_world

WEIGHTS = (0.003, 0.01, 0.03, 0.06, 0.1, 0.2)
TEMPERATURES = (0.7, 1.0)
METHODS = ("dpo", "rloo")
SEEDS = 6
USED = 3
"""Seeds that a user runs; the others are the truth's."""
SAME = 0.02
"""Rewards, target masses here, that differ by less are the same for a user."""
PAGE, BEGIN, END = Path("docs/statistics.md"), "<!-- advice: begin -->", "<!-- advice: end -->"


@dataclass(frozen=True)
class Sizes:
    pairs: int = 1000
    teacher_steps: int = 300
    align_steps: int = 100
    distill_steps: int = 200
    batch: int = 128
    held_out: int = 64
    fresh_prompts: int = 2000


QUICK = Sizes(pairs=80, teacher_steps=6, align_steps=2, distill_steps=2, batch=16, held_out=8, fresh_prompts=20)


@dataclass(frozen=True)
class Judged:
    """One recommendation: what was told from `USED` seeds, and what the other seeds show (`truth`: A→K minus K→A)."""

    world: int
    weight: float
    temperature: float
    method: str
    advice: str
    ahead: str
    told: float
    truth: float
    teacher: float
    """Target mass of the teacher on new prompts."""
    means: tuple[float, float]
    """Of A→K and of K→A, by the other seeds."""

    @property
    def right(self) -> bool:
        """Whether the order that is ahead is the better one, or as good."""
        return (self.truth if self.ahead == "align > distill" else -self.truth) >= -SAME


def settings(world: UserWorld, method: str, temperature: float, sizes: Sizes) -> dict[str, Any]:
    """What a user would write: both orders on pairs, a reward, a small model of half the width and one layer."""
    trainer = {"per_device_train_batch_size": sizes.batch, "save_strategy": "no"}
    align = {"learning_rate": 3e-4 if method == "dpo" else 1e-3, "max_steps": sizes.align_steps, **trainer}
    return {
        "recipe": f"advice-{world.folder.name}",
        "world": {
            "kind": "text",
            "reward": f"{world.folder / 'reward.py'}:reward",
            "target_reward": 0.5,
            "max_new_tokens": world.chains.length - PREFIX,
            "device": "cpu",
        },
        "teacher": str(world.folder / "teacher"),
        "student": {"config": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 96}},
        "data": {"source": str(world.folder / "pairs.jsonl"), "held_out": 0.15},
        "evaluation": {"pairs": sizes.held_out, "samples_per_prompt": 4},
        "align": {
            "method": method,
            "trainer": align | ({} if method == "dpo" else {"num_generations": min(16, sizes.batch)}),
        },
        "distill": {
            "temperature": temperature,
            "samples_per_prompt": 4,
            "trainer": {"learning_rate": 3e-3, "max_steps": sizes.distill_steps, **trainer},
        },
        "seeds": SEEDS,
    }


def judge(number: int, folder: Path, workers: int, sizes: Sizes) -> list[Judged]:
    """Both recommendations of a world, each judged by the seeds that it has not seen; kept in a file of the folder."""
    kept = folder / "judged.json"
    if kept.exists():
        return [Judged(**one) for one in json.loads(kept.read_text("utf-8"))]
    each = len(WEIGHTS)
    weight, method = WEIGHTS[number % each], METHODS[number // (2 * each) % 2]
    temperature = TEMPERATURES[number // each % 2]
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world(folder, number, weight, sizes.teacher_steps)
    world.write_pairs(sizes.pairs)
    recipe, store = read_recipe(settings(world, method, temperature, sizes)), Store(folder / "stages")
    compare(recipe, out=folder / "all", store=store.root, workers=workers)
    ends = _ends(recipe, store)
    mass = _sampler(world, sizes.fresh_prompts)
    truths = np.array([[mass(store.folder(node) / "model", 10 + seed) for seed, node in column] for column in ends])
    teacher, judged = mass(folder / "teacher", 1), []
    for used in (recipe.seeds[:USED], recipe.seeds[USED:]):
        done = compare(replace(recipe, seeds=used), out=folder / f"seeds-{used[0]}", store=store.root, workers=1)
        ((c, advice),) = advices(by_role(done.results))
        others = [index for index, seed in enumerate(recipe.seeds) if seed not in used]
        means = (float(truths[0, others].mean()), float(truths[1, others].mean()))
        told = float(c["mean_difference"] or 0.0)
        made = (advice.kind, advice.ahead, told, means[0] - means[1], teacher, means)
        judged.append(Judged(number, weight, temperature, method, *made))
    kept.write_text(json.dumps([asdict(one) for one in judged]), "utf-8")
    return judged


def _ends(recipe: Recipe, store: Store) -> list[list[tuple[int, Node]]]:
    """Seeds and final models of A→K and of K→A, at the recipe's own setting."""
    _, plan, _ = prepare(recipe, store.root)
    arms = {str(arm.order): arm for arm in plan.arms if arm.settings == plan.arms[0].settings}
    chains = [arms[order].blocks for order in ("align > distill", "distill > align")]
    return [[(seed, one[-1]) for seed, one in zip(recipe.seeds, blocks, strict=True)] for blocks in chains]


def _sampler(world: UserWorld, count: int) -> Callable[[Path, int], float]:
    """Mean exact reward of a model's completions of new prompts of the truth, one each."""
    prompts = world.prompts(count, 7_000_000)

    def mass(path: Path, seed: int) -> float:
        model, tokenizer = load(path)
        asked, length = [[BOS, *prompt] for prompt in prompts], world.chains.length - PREFIX
        rows = sample_prompts(model, tokenizer, asked, max_new_tokens=length, seed=seed, batch_size=1000)
        return float(np.mean(world.reward([a + b for a, b in zip(prompts, rows, strict=True)])))

    return mass


KINDS = {"ship": "sure: ship", "either": "orders do not differ", "unsure": "not yet sure"}


def tables(judged: Sequence[Judged]) -> str:
    """Markdown: how often each advice was given and right, over all and by target weight, τ and method."""
    heads = ["worlds", "advice given", "right", "wrong", "of them by more than 0.1", "95 % interval of wrong"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for kind, title in KINDS.items():
        ones = [one for one in judged if one.advice == kind]
        wrong = [one for one in ones if (abs(one.truth) > SAME if kind == "either" else not one.right)]
        far = sum(abs(one.truth) > 0.1 for one in wrong)
        low, high = clopper_pearson(len(wrong), len(ones)) if ones else (0.0, 1.0)
        cells = [title, len(ones), len(ones) - len(wrong), len(wrong), far, f"{100 * low:.0f} to {100 * high:.0f} %"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    tied = [one for one in judged if abs(one.truth) < SAME]
    said = ", ".join(f"{title} {sum(one.advice == kind for one in tied)}" for kind, title in KINDS.items())
    lines += ["", f"Where the truth differs by less than {SAME:g} ({len(tied)} of {len(judged)}): {said}.", ""]
    heads = ["method", "τ", "target weight", "teacher", "A→K", "K→A", "sure, right", "sure, wrong"]
    heads += ["do not differ", "not yet sure"]
    lines += ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    groups: dict[tuple[str, float, float], list[Judged]] = {}
    for one in judged:
        groups.setdefault((one.method, one.temperature, one.weight), []).append(one)
    for (method, temperature, weight), ones in sorted(groups.items()):
        sides = [np.mean([one.means[side] for one in ones]) for side in (0, 1)]
        sure = [one.right for one in ones if one.advice == "ship"]
        counts = [
            sum(sure),
            len(sure) - sum(sure),
            *(sum(one.advice == kind for one in ones) for kind in ("either", "unsure")),
        ]
        masses = [f"{value:.2f}" for value in (ones[0].teacher, *sides)]
        cells = [method, f"{temperature:g}", f"{100 * weight:g} %", *masses, *counts]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/advice"))
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE}")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    judged: list[Judged] = []
    for number in range(options.worlds):
        judged += judge(
            number, options.out.absolute() / f"{number:02d}", options.workers, QUICK if options.quick else Sizes()
        )
        print(f"{number + 1} of {options.worlds} worlds; {judged[-2:]}", flush=True)
    print(tables(judged))
    if options.write:
        text = PAGE.read_text("utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{tables(judged)}{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
