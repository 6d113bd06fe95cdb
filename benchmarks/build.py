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
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from precede.jobs import compare
from precede.jobs.build import build
from precede.models.load import load, save
from precede.settings.recipe import load_recipe, read_recipe
from precede.store import Store
from precede.worlds.grammar.chains import EOS

ORDERS = ("align > distill", "distill > align")
PREFIX = 2
"""Symbols of a prompt."""
WORLD: dict[int, Any] = {}
"""Chains, tokenizer and length of the strings of the world that is being built in, for the reward."""


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The exact posterior of the target mode, of prompt and completion together."""
    chains, words, length = WORLD[0]
    rows = [words.convert_tokens_to_ids(f"{a} {b}".split()) for a, b in zip(prompts, completions, strict=True)]
    ended = [row[:length] if len(row) >= length else [*row, EOS] for row in rows]
    values: list[float] = chains.target_posterior(ended).tolist()
    return values


def prepare(seed: int, folder: Path, pairs: int, quick: bool) -> int:
    """Teacher and pairs of one world in `folder`; returns the length of its strings."""
    small = ["teacher.trainer.max_steps=30"] if quick else []
    recipe = load_recipe("grammar", [f"seeds=[{seed}]", "world.target_weight=0.03", "sweep=[]", *small])
    store = Store(folder / "stages")
    worlds, plan, _ = compare.prepare(recipe, store.root)
    world: Any = worlds[0]
    teacher = next(node for node in plan.nodes if node.kind == "teacher")
    if not store.has(teacher):
        world.run([teacher], store)
    model, words = load(world.folder(teacher, store))
    save(model, words, folder / "teacher")
    chains, length = world.chains(seed), world.max_new_tokens
    WORLD[0] = chains, words, length

    def drawn(million: int, modes: list[int] | None = None) -> list[list[int]]:
        stream = torch.Generator().manual_seed(million * 1_000_000 + seed)
        found: list[list[int]] = chains.sample(40 * pairs, stream, modes)[0]
        return found

    def whole(rows: list[list[int]]) -> list[list[int]]:
        return [row[:-1] for row in rows if EOS not in row]  # the last place is for the EOS that the reader adds

    good: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    for row in whole(drawn(1, chains.target_modes)):
        good[tuple(row[:PREFIX])].append(row)
    kept: list[dict[str, str]] = []
    rows = whole(drawn(2))
    values = chains.target_posterior([[*row, EOS] for row in rows]).tolist()
    for row, value in zip(rows, values, strict=True):
        prefix = tuple(row[:PREFIX])
        if value < 0.5 and good[prefix] and len(kept) < pairs:
            both = [
                words.convert_ids_to_tokens(one) for one in (row[:PREFIX], good[prefix].pop()[PREFIX:], row[PREFIX:])
            ]
            prompt, chosen, rejected = (" ".join(part) for part in both)
            kept.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    return int(length)


def settings(folder: Path, order: str, seed: int, length: int, quick: bool) -> dict[str, Any]:
    """`grammar` on many prompts: RLOO at β = 0.1, sequence distillation at τ = 0.7 into half the width and one layer."""
    steps = (4, 6) if quick else (120, 400)
    return {
        "recipe": f"grammar-{seed}",
        "world": {
            "kind": "text",
            "reward": "benchmark_reward:reward",
            "target_reward": 0.5,
            "max_new_tokens": length - PREFIX,
            "device": "cpu",
        },
        "teacher": str(folder / "teacher"),
        "student": {"config": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}},
        "data": {"source": str(folder / "pairs.jsonl"), "held_out": 0.15},
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
        "seeds": [seed],
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
    import sys

    sys.modules["benchmark_reward"] = sys.modules["__main__"]
    heads = ["world", "order", "audit", "m of the teacher", "m of the reference", "m*", "after align", "at the end"]
    heads += ["recall of the teacher's samples, nats", "reward retained"]
    print("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|", flush=True)
    for seed in range(options.seeds):
        folder = options.out / f"world-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        length = prepare(seed, folder, 60 if options.quick else 2000, options.quick)
        for order in ORDERS:
            recipe = read_recipe(settings(folder, order, seed, length, options.quick))
            name = order.replace(" > ", "-then-")
            done = build(recipe, folder / name, store=options.store, workers=1)
            print("| " + " | ".join(row_of(seed, done.report)) + " |", flush=True)


if __name__ == "__main__":
    main()
