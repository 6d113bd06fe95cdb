"""How rare each reward's desirable behaviour is in SmolLM2-135M-Instruct, with Clopper–Pearson intervals.

    python benchmarks/rewards.py [--samples 2048]

Completions of the recipe `smollm2-smoke`'s prompt and length, at temperature 1, from one seeded stream.
"""

from __future__ import annotations

import argparse

from precede.libraries import quiet
from precede.models.load import load, pick_device
from precede.rewards import REWARDS
from precede.sampling import prompt_ids, sample, texts
from precede.settings.recipe import load_recipe
from precede.stats import clopper_pearson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2048)
    count = parser.parse_args().samples
    base = load_recipe("smollm2-smoke").variants[0]
    with quiet():
        model, tokenizer = load(base.teacher["model"], pick_device("auto"))
        prompt = prompt_ids(tokenizer, base.world["prompt"])
        length = base.world["max_new_tokens"]
        rows = sample(model, tokenizer, prompt, count, max_new_tokens=length, temperature=1.0, seed=0)
    completions = texts(tokenizer, prompt, rows)
    for name, reward in REWARDS.items():
        hits = sum(reward(text) >= base.world["target_reward"] for text in completions)
        low, high = clopper_pearson(hits, count)
        print(f"{name}: {hits} of {count}, {hits / count:.1%} (95 % interval {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
