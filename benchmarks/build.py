"""`precede build` where the truth is known: what alignment wins and distillation keeps, against what the audit said.

    python benchmarks/build.py [--seeds 3] [--store FOLDER] [--out FOLDER] [--quick]

In each random world of the recipe `grammar` (target weight 3 %) a teacher is trained on strings of the truth. Prompts are the
first two symbols of strings that are not target, pairs a target string and another one that begin so, the reward is the exact
posterior of the target mode. Then `precede build` runs in both orders, and the table holds its audit's achievable mass m*
against the target mass that alignment reached, and says how much of the reward the last stage kept. `--quick` only shows that
the parts work: its sizes are too small to mean anything.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from precede.jobs.build import build
from precede.settings.recipe import read_recipe
from precede.worlds.grammar.chains import EOS
from user_world import PREFIX, UserWorld, make_world

ORDERS = ("align > distill", "distill > align")


def write_pairs(world: UserWorld, count: int) -> None:
    """A target string and another one that begin alike, behind the beginning that they share."""

    def drawn(million: int, modes: list[int] | None = None) -> list[list[int]]:
        stream = torch.Generator().manual_seed(million * 1_000_000 + world.seed)
        rows: list[list[int]] = world.chains.sample(40 * count, stream, modes)[0]
        return [row[:-1] for row in rows if EOS not in row]  # the last place is for the EOS that the reader adds

    good: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    for row in drawn(1, list(world.chains.target_modes)):
        good[tuple(row[:PREFIX])].append(row)
    kept: list[tuple[list[int], list[int], list[int]]] = []
    rows = drawn(2)
    for row, value in zip(rows, world.reward(rows), strict=True):
        prefix = tuple(row[:PREFIX])
        if value < 0.5 and good[prefix] and len(kept) < count:
            kept.append((row[:PREFIX], good[prefix].pop()[PREFIX:], row[PREFIX:]))
    world.write(kept)


def settings(world: UserWorld, order: str, quick: bool) -> dict[str, Any]:
    """`grammar` on many prompts: RLOO at β = 0.1, sequence distillation at τ = 0.7 into half the width and one layer."""
    steps = (4, 6) if quick else (120, 400)
    return {
        "recipe": f"grammar-{world.seed}",
        "world": {
            "kind": "text",
            "reward": f"{world.folder / 'reward.py'}:reward",
            "target_reward": 0.5,
            "max_new_tokens": world.chains.length - PREFIX,
            "device": "cpu",
        },
        "teacher": str(world.folder / "teacher"),
        "student": {"config": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}},
        "data": {"source": str(world.folder / "pairs.jsonl"), "held_out": 0.15},
        "orders": [order],
        "evaluation": {"pairs": 32 if quick else 300, "samples_per_prompt": 8},
        "align": {
            "method": "rloo",
            "trainer": {
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 256,
                "num_generations": 16,
                "max_steps": steps[0],
            },
        },
        "distill": {
            "temperature": 0.7,
            "samples_per_prompt": 1 if quick else 8,
            "trainer": {"learning_rate": 3e-3, "per_device_train_batch_size": 256, "max_steps": steps[1]},
        },
        "seeds": [world.seed],
    }


def row_of(seed: int, report: dict[str, Any]) -> list[str]:
    audited = next(stage["audit"] for stage in report["stages"] if stage["kind"] == "align")
    models, last = report["models"], report["stages"][-1]["name"]
    numbers = audited["numbers"]
    start, align, final = (models[label] for label in ("start", "align", last))
    kept = report["retained"].get("reward")
    return [
        str(seed),
        report["order"],
        audited["verdict"],
        *[f"{value:.3f}" for value in (start["target_mass"][0], numbers["target_mass"]["value"])],
        *[f"{value:.3f}" for value in (numbers["achievable_mass"]["value"], align["target_mass"][0])],
        f"{final['target_mass'][0]:.3f}",
        f"{final['recall'][0]:.2f}",
        "–" if kept is None or kept[0] is None else f"{kept[0]:.2f} [{kept[1]:.2f}, {kept[2]:.2f}]",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="worlds, one seed each")
    parser.add_argument("--store", type=Path, help="where the stages are")
    parser.add_argument("--out", type=Path, default=Path("runs/build-grammar"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    heads = ["world", "order", "audit", "m of the teacher", "m of the reference", "m*", "after align", "at the end"]
    heads += ["recall of the teacher's samples, nats", "reward retained"]
    print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|", flush=True)
    for seed in range(options.seeds):
        folder = options.out.absolute() / f"world-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        world = make_world(folder, seed, 0.03, 30 if options.quick else None)
        write_pairs(world, 60 if options.quick else 2000)
        for order in ORDERS:
            recipe = read_recipe(settings(world, order, options.quick))
            done = build(recipe, folder / order.replace(" > ", "-then-"), store=options.store, workers=1)
            print("| " + " | ".join(row_of(seed, done.report)) + " |", flush=True)


if __name__ == "__main__":
    main()
