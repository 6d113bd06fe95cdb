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

from precede.build_recipe import read_build
from precede.jobs.build import build
from precede.libraries import quiet
from precede.metrics import Cost
from precede.models.load import save
from precede.plan import make_plan
from precede.settings.recipe import load_recipe
from precede.worlds.grammar.chains import EOS
from precede.worlds.world import load_world

ORDERS = ("align > distill", "distill > align")
PREFIX = 2
"""Symbols of a prompt."""
WORLD: dict[int, Any] = {}
"""Seed → truth and tokenizer of the world that is being built in, for the reward."""


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The exact posterior of the target mode, of prompt and completion together."""
    truth, words, length = WORLD[0]
    rows = [words.convert_tokens_to_ids(f"{a} {b}".split()) for a, b in zip(prompts, completions, strict=True)]
    values: list[float] = truth.rewards([row[:length] if len(row) >= length else [*row, EOS] for row in rows])
    return values


def prepare(seed: int, folder: Path, pairs: int, quick: bool) -> int:
    """Teacher and pairs of one world in `folder`; returns the length of its strings."""
    small = ["teacher.steps=30"] if quick else []
    recipe = load_recipe("grammar", [f"seeds=[{seed}]", "world.target_weight=0.03", *small])
    world: Any = load_world(recipe.variants[0].world)
    teacher = make_plan(recipe, world).stages[0]
    truth = world.truth(teacher)
    with quiet():
        model, words, _ = world.teacher(teacher, Cost())
    save(model, words, folder / "teacher")
    length = world.config["max_new_tokens"]
    WORLD[0] = truth, words, length

    def whole(rows: list[list[int]]) -> list[list[int]]:
        return [row[:-1] for row in rows if EOS not in row]  # the last place is for the EOS that the reader adds

    good: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    for row in whole(truth.target_sample(40 * pairs, 1_000_000 + seed)):
        good[tuple(row[:PREFIX])].append(row)
    kept: list[dict[str, str]] = []
    rows = whole(truth.sample(40 * pairs, 2_000_000 + seed))
    for row, value in zip(rows, truth.rewards([[*row, EOS] for row in rows]), strict=True):
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
    """A4's recipe as a build's: RLOO at β = 0.1, sequence distillation at τ = 0.7 into half the width and one layer."""
    steps = (4, 6) if quick else (120, 400)
    return {
        "build": f"grammar-{seed}",
        "teacher": str(folder / "teacher"),
        "student": {"config": {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}},
        "data": {"source": str(folder / "pairs.jsonl"), "held_out": 0.15},
        "order": order,
        "reward": "benchmark_reward:reward",
        "target_reward": 0.5,
        "evaluation": {"pairs": 32 if quick else 300, "samples_per_prompt": 8, "max_new_tokens": length - PREFIX},
        "align": {
            "method": "rloo",
            "samples_per_prompt": 16,
            "trainer": {"learning_rate": 1e-3, "per_device_train_batch_size": 256, "max_steps": steps[0]},
        },
        "distill": {
            "temperature": 0.7,
            "samples_per_prompt": 1 if quick else 8,
            "trainer": {"learning_rate": 3e-3, "per_device_train_batch_size": 256, "max_steps": steps[1]},
        },
        "seed": seed,
        "device": "cpu",
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
            recipe = read_build(settings(folder, order, seed, length, options.quick))
            name = order.replace(" > ", "-then-")
            done = build(recipe, folder / name, store=options.store)
            print("| " + " | ".join(row_of(seed, done.report)) + " |", flush=True)


if __name__ == "__main__":
    main()
