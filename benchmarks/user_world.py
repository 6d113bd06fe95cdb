"""A random world of the recipe `grammar` as a user would have it: a teacher's folder, pairs in a file, a reward in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from precede.jobs.compare import prepare
from precede.models.load import load, save
from precede.settings.recipe import load_recipe
from precede.store import Store
from precede.worlds.grammar.chains import EOS, Chains, make_chains, tokenizer

PREFIX = 2
"""Symbols of a prompt."""
REWARD = '''"""The exact posterior of the target mode, of prompt and completion together."""

import json
from pathlib import Path

from precede.worlds.grammar.chains import EOS, make_chains, tokenizer

WORLD = json.loads(Path(__file__).with_name("world.json").read_text("utf-8"))
CHAINS = make_chains(WORLD["config"], WORLD["seed"])
TOKENIZER = tokenizer(WORLD["config"]["vocabulary"])


def reward(prompts, completions, **_):
    length = WORLD["config"]["length"]
    rows = [TOKENIZER.convert_tokens_to_ids(f"{a} {b}".split()) for a, b in zip(prompts, completions)]
    return CHAINS.target_posterior([row[:length] if len(row) >= length else [*row, EOS] for row in rows]).tolist()
'''


@dataclass(frozen=True)
class UserWorld:
    """What a world is made of, and the files in its folder: `teacher`, `pairs.jsonl`, `reward.py`."""

    folder: Path
    chains: Chains
    tokenizer: Any
    seed: int

    def prompts(self, count: int, seed: int) -> list[list[int]]:
        """The first symbols of strings of the truth, BOS not counted."""
        rows: list[list[int]] = self.chains.sample(2 * count, torch.Generator().manual_seed(seed))[0]
        return [row[:PREFIX] for row in rows if EOS not in row[:PREFIX]][:count]

    def write_pairs(self, count: int) -> None:
        """Pairs behind the beginnings of strings of the truth, so that the target is as rare behind prompts as it is.

        Rejected is how such a string goes on, chosen how the target mode would go on from there.
        """
        generator = torch.Generator().manual_seed(1_000_000 + self.seed)
        transitions = self.chains.log_transitions[self.chains.target_modes[0]].exp()
        rows: list[tuple[list[int], list[int], list[int]]] = []
        for string in self.chains.sample(4 * count, generator)[0]:
            if EOS in string or len(rows) == count:
                continue
            whole = string[:-1]  # the last place is for the EOS that the reader adds
            target = whole[:PREFIX]
            while len(target) < len(whole):
                target.append(int(torch.multinomial(transitions[target[-1]], 1, generator=generator)))
            if EOS not in target and target != whole:
                rows.append((whole[:PREFIX], target[PREFIX:], whole[PREFIX:]))
        self.write(rows)

    def write(self, rows: Sequence[tuple[list[int], list[int], list[int]]]) -> None:
        """Prompt, chosen and rejected of each row into `pairs.jsonl`, as texts."""
        with (self.folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                prompt, *answers = (" ".join(self.tokenizer.convert_ids_to_tokens(part)) for part in row)
                chosen, rejected = (f" {answer}" for answer in answers)
                file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")

    def reward(self, rows: list[list[int]]) -> list[float]:
        """Exact posterior of the target mode of whole strings, cut where the world cuts them."""
        length = self.chains.length
        ended = [row[:length] if len(row) >= length or EOS in row else [*row, EOS] for row in rows]
        values: list[float] = self.chains.target_posterior(ended).tolist()
        return values


def make_world(folder: Path, seed: int, weight: float, teacher_steps: int | None = None) -> UserWorld:
    """Write the random world `seed` with a target of this weight into `folder`, all but the pairs.

    The teacher is trained on strings of the truth, for the recipe's own number of steps unless another is given.
    """
    settings = [f"seeds=[{seed}]", f"world.worlds={seed + 1}", f"world.target_weight={weight}", "sweep=[]"]
    settings += [] if teacher_steps is None else [f"teacher.trainer.max_steps={teacher_steps}"]
    recipe = load_recipe("grammar", settings)
    store = Store(folder / "stages")
    worlds, plan, _ = prepare(recipe, store.root)
    world: Any = worlds[0]
    teacher = next(node for node in plan.nodes if node.kind == "teacher")
    if not store.has(teacher):
        world.run([teacher], store)
    save(*load(world.folder(teacher, store)), folder / "teacher")
    config = {**world.config, "length": world.max_new_tokens}
    (folder / "world.json").write_text(json.dumps({"config": config, "seed": seed}), "utf-8")
    (folder / "reward.py").write_text(REWARD, "utf-8")
    return UserWorld(folder, make_chains(config, seed), tokenizer(config["vocabulary"]), seed)
