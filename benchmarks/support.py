"""Which modes of the truth each way of distilling keeps: pass@k over behaviours, from what `grammar-full` measured.

    python benchmarks/support.py [--store FOLDER] [-k 100] [--set KEY=VALUE ...]

A completion is of the mode that its exact posterior is highest for. pass@k of a mode is the chance that k completions have one
of it (the unbiased estimator of Chen et al. 2021, as in reports), from 5,000 samples of each model at τ = 1. A mode that the
teacher reaches in k and the model does too is kept, one that the model does not is lost, one that only the model reaches is
gained: sums over the ten modes, means over seeds with 95 % intervals by worlds (Student's t). The models are those of the
store; what is missing is made first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import precede
from precede import stats
from precede.analysis.outcomes import Array
from precede.analysis.prompts import pass_at
from precede.files import cache_folder
from precede.jobs.compare import prepare
from precede.models.load import load
from precede.plan import Arm, Node, Plan
from precede.sampling import sample
from precede.seeding import stream
from precede.settings.recipe import load_recipe
from precede.store import Store
from precede.worlds.grammar.world import PROMPT, GrammarWorld

SAMPLES = 5000
COLUMNS = ("target mass", "modes reached", "kept", "lost", "gained")
WAYS = {
    "sequence": "sampling the teacher",
    "token forward_kl": "token, forward KL",
    "token reverse_kl": "token, reverse KL",
    "on_policy reverse_kl": "on-policy, reverse KL",
}


def reached(model: Node, store: Store, world: GrammarWorld, k: int) -> Array:
    """pass@k of each mode, (modes,), and behind it the share of the target modes."""
    network, tokenizer = load(world.folder(model, store))
    (seed,), length = model.seeds, world.max_new_tokens
    seeded = stream(seed, model.name, "support")
    rows = sample(network, tokenizer, PROMPT.prompt, SAMPLES, max_new_tokens=length, seed=seeded, batch_size=1000)
    chains = world.chains(seed)
    counts = np.bincount(chains.posterior(rows).argmax(-1).numpy(), minlength=world.config["modes"])
    hits = [pass_at(np.array([count], dtype=float), SAMPLES, k) for count in counts]
    return np.array([*hits, counts[list(chains.target_modes)].sum() / SAMPLES])


def way(arm: Arm, plan: Plan) -> str | None:
    """What an arm is called; None where it is not one of those that are held against one another."""
    own, settings = plan.arms[0].settings, arm.settings
    if str(arm.order) in ("align > warmup > bridge", "align > warmup > bridge > polish"):
        return str(arm.order)
    same = all(settings[key] == own[key] for key in own if key not in ("distill.method", "distill.divergence"))
    if str(arm.order) != "align > distill" or not same:
        return None
    return WAYS[" ".join(str(settings[f"distill.{key}"]) for key in ("method", "divergence")).removesuffix(" None")]


def lines(store: Path, k: int, overrides: Sequence[str]) -> list[str]:
    """The table, in Markdown."""
    recipe, shelf = load_recipe("grammar-full", overrides), Store(store)
    with tempfile.TemporaryDirectory() as folder:
        precede.compare(recipe, out=Path(folder) / "out", store=store)
    worlds, plan, _ = prepare(recipe, store)
    found = [f"| way | {' | '.join(COLUMNS)} |", "| --- " * (1 + len(COLUMNS)) + "|"]
    for arm in plan.arms:
        name, rows = way(arm, plan), []
        for chain in arm.blocks if name else ():
            world = worlds[chain[-1].variant]
            assert isinstance(world, GrammarWorld)
            teacher, own = (reached(one, shelf, world, k) for one in (chain[0], chain[-1]))
            before, after = teacher[:-1], own[:-1]
            kept, lost, gained = (before * after).sum(), (before * (1 - after)).sum(), ((1 - before) * after).sum()
            rows.append([own[-1], after.sum(), kept, lost, gained])
        if rows:
            summary = stats.summarise(np.array(rows).T, [worlds[0].cluster(seed) for seed in recipe.seeds])
            cells = [
                f"{mean:.2f} [{low:.2f}, {high:.2f}]"
                for mean, (low, high) in zip(summary.mean, summary.ci95, strict=True)
            ]
            found.append(f"| {name} | {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    print("\n".join(lines(given.store or cache_folder() / "stages", given.k, given.set)))


if __name__ == "__main__":
    main()
