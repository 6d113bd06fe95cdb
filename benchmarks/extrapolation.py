"""How far the extrapolation of logits, token by token, is from that of whole strings, where both can be measured.

    python benchmarks/extrapolation.py [--seeds 5] [--samples 20000] [--store FOLDER] [--set KEY=VALUE ...]

The law of λ is of whole strings: π^λ·π_ref^(1−λ)/Z is the tilt at β/λ. A language model is extrapolated token by token, which
normalises at every token, not once: log p_token(x) − log p_string(x) = log Z − Σ_t log Z_t(x_<t). This draws strings of the
extrapolated teacher of `grammar-lambda` at τ = 1 and weighs each by p_string/p_token (importance sampling), which gives log Z,
the KL(p_token ‖ p_string) in nats per string, and the target mass of both. Alignment is taken from the store, or made first.
Means over seeds with their 95 % intervals (Student's t); the effective share of samples says how far to believe the weights.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import precede
from precede import stats
from precede.files import cache_folder
from precede.jobs.compare import prepare
from precede.models.extrapolation import extrapolate
from precede.models.load import load
from precede.plan import Node
from precede.sampling import sample_prompts
from precede.scoring.logprobs import score
from precede.seeding import stream
from precede.settings.recipe import load_recipe
from precede.store import Store
from precede.worlds.grammar.world import PROMPT, GrammarWorld

LAMBDAS = (0.4, 0.8, 1.25, 2.0)
COLUMNS = (
    "target mass, by tokens",
    "target mass, of strings",
    "KL(tokens ‖ strings), nats",
    "effective share of samples",
)


def measured(world: GrammarWorld, aligned: Node, store: Store, extrapolation: float, samples: int) -> list[float]:
    """The four `COLUMNS` of one alignment at λ = `extrapolation`."""
    folders = [world.folder(node, store) for node in (aligned, aligned.edges["reference"])]
    (model, tokenizer), (own, _), (reference, _) = load(folders[0]), load(folders[0]), load(folders[1])
    extrapolate(model, load(folders[1])[0], extrapolation)
    (seed,), prompt = aligned.seeds, PROMPT.prompt
    rows = sample_prompts(
        model,
        tokenizer,
        [prompt] * samples,
        max_new_tokens=world.max_new_tokens,
        seed=stream(seed, aligned.name, "strings"),
        batch_size=1024,
    )
    by_tokens, logp, anchor = (
        np.array([one.logp for one in score(one_model, [prompt], [rows])[0]]) for one_model in (model, own, reference)
    )
    weights = extrapolation * logp + (1 - extrapolation) * anchor - by_tokens
    scale = weights.max()
    weight = np.exp(weights - scale)
    target = world.chains(seed).target_posterior(rows).numpy() >= world.target_reward
    log_z = scale + np.log(weight.mean())
    share = weight.sum() ** 2 / (weight**2).sum() / samples
    return [
        float(target.mean()),
        float((weight * target).sum() / weight.sum()),
        float(log_z - weights.mean()),
        float(share),
    ]


def lines(seeds: int, samples: int, store: Path, overrides: Sequence[str]) -> list[str]:
    """The table, in Markdown."""
    recipe = load_recipe("grammar-lambda", [f"seeds={seeds}", "sweep=[]", *overrides])
    with tempfile.TemporaryDirectory() as folder:
        precede.compare(recipe, out=Path(folder) / "out", store=store)
    worlds, plan, _ = prepare(recipe, store)
    (arm,) = (arm for arm in plan.arms if str(arm.order) == "align > distill")
    found = [f"| λ | {' | '.join(COLUMNS)} |", "| --- " * (1 + len(COLUMNS)) + "|"]
    for extrapolation in LAMBDAS:
        values = [
            measured(worlds[0], chain[1], Store(store), extrapolation, samples)  # type: ignore[arg-type]
            for chain in arm.blocks
        ]
        summary = stats.summarise(np.array(values).T)
        cells = [f"{extrapolation:g}"]
        for mean, (low, high) in zip(summary.mean, summary.ci95, strict=True):
            cells.append(f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    print("\n".join(lines(given.seeds, given.samples, given.store or cache_folder() / "stages", given.set)))


if __name__ == "__main__":
    main()
