"""The grammar world's speed, as ratios from one run: our stages against bare TRL, sharing against not, and two workers.

    python benchmarks/language.py [all | overhead sharing workers] [--rounds 5] [--quick]

`overhead` trains by our functions and by bare TRL, on the same data with the same arguments, in turn and on one thread;
what is timed runs from data and loaded models to the log. `sharing` runs the nodes (models and measurements) of one seed of
the recipe `grammar` and sums their wall seconds: every arm from its teacher on, and every unique node once. Then it really
runs a smaller recipe both ways, with one worker: as one comparison, and each arm in a store of its own. `workers` runs the
smaller recipe with two workers and with one. Such a run has a fresh process and a fresh store; imports count, once per process.
`--quick` only shows that the parts work: its sizes are too small to mean anything.
"""

from __future__ import annotations

import argparse
import gc
import io
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import cpu_count, get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from precede.engine import Listener
from precede.engine.local import Local
from precede.jobs.compare import prepare
from precede.libraries import datasets, quiet, trl
from precede.models.load import load
from precede.plan import Arm, Node, Plan
from precede.settings.recipe import Recipe, load_recipe
from precede.stages import distil
from precede.stages.preferences import dpo, make_pairs
from precede.stages.reinforce import reinforce
from precede.stages.trainer import TrainerSettings
from precede.store import Store
from precede.worlds.grammar.chains import EOS
from precede.worlds.grammar.world import PROMPT


def sizes(teacher: int, distill: int, sampled: int, align: int, couples: int) -> list[str]:
    """Overrides: optimiser steps of each stage, completions to learn from and to make pairs of."""
    steps = {"teacher": teacher, "distill": distill, "align": align}
    samples = {"distill": sampled, "align": couples}
    return [
        *(f"{name}.trainer.max_steps={count}" for name, count in steps.items()),
        *(f"{name}.samples_per_prompt={count}" for name, count in samples.items()),
    ]


SMALL = sizes(200, 160, 5000, 48, 3200)
TINY = [*sizes(4, 4, 1100, 3, 2000), "evaluation.samples_per_prompt=100"]


def arguments_of(node: Node) -> TrainerSettings:
    """A stage's own, with one seed for both sides."""
    extra = dict(node.config["trainer"])
    given = [extra.pop(name) for name in ("learning_rate", "per_device_train_batch_size", "max_steps")]
    return TrainerSettings(*given, seed=0, extra=extra)


def bare(trainer: str, ours: TrainerSettings, folder: Path, more: dict[str, Any], **given: Any) -> Any:
    """A script of bare TRL as a user would write it: a config with our arguments, a trainer, `train()`."""
    more |= {"learning_rate": ours.learning_rate, "per_device_train_batch_size": ours.batch_size, "seed": ours.seed}
    more |= {"max_steps": ours.steps, "logging_steps": 1, "output_dir": str(folder), "use_cpu": True, "bf16": False}
    more |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    config = getattr(trl(), f"{trainer}Config")(activation_checkpointing=False, **more)
    made = getattr(trl(), f"{trainer}Trainer")(args=config, **given)
    made.train()
    return made.state.log_history


def alternate(name: str, rounds: int, models: Callable[[], list[Any]], *sides: Callable[..., Any]) -> None:
    """Time ours and theirs in turn, each with fresh models, after one warm-up of both; print one row."""
    seconds, losses = [], []
    for turn in range(2 + 2 * rounds):
        fresh = models()
        gc.collect()
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            began = time.perf_counter()
            log = sides[turn % 2](*fresh)
            seconds.append(time.perf_counter() - began)
        losses.append([float(entry["loss"]) for entry in log if "loss" in entry])
    ours, theirs = seconds[2::2], seconds[3::2]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    row = f"{name:20}{median(ours):8.3f} s {median(theirs):8.3f} s {median(ratios):9.3f}"
    print(f"{row}  {min(ratios):.3f} to {max(ratios):.3f}  {'yes' if losses[-1] == losses[-2] else 'no':>11}")


def overhead(options: argparse.Namespace) -> None:
    recipe = load_recipe("grammar", ["seeds=1", *(TINY if options.quick else [])])
    with tempfile.TemporaryDirectory() as name, quiet():
        store, scratch = Store(Path(name) / "stages"), Path(name) / "trl"
        worlds, plan, _ = prepare(recipe, store.root)
        world: Any = worlds[0]
        teacher = plan.arms[0].blocks[0][0]
        first = [node for node in plan.models if node.parent == teacher]
        distilled, by_rloo, by_dpo = (
            next(node for node in first if node.config["method"] == method) for method in ("sequence", "rloo", "dpo")
        )
        sft, reinforcing, preferring = (arguments_of(node) for node in (distilled, by_rloo, by_dpo))
        student = distilled.edges["student"]
        world.run([teacher, student], store)
        folder, fresh = (Path(world.folder(node, store)) for node in (teacher, student))
        words, chains = world.tokenizer(teacher), world.chains(0)
        dataset, tools = datasets().Dataset.from_dict, {"processing_class": words}
        rows, drawn = (
            chains.sample(node.config["samples_per_prompt"], torch.Generator().manual_seed(0))[0]
            for node in (distilled, by_dpo)
        )

        def rewards_of(ids: list[list[int]]) -> list[float]:
            values: list[float] = chains.target_posterior(ids).tolist()
            return values

        # TRL ends every text that it is given with EOS, ours takes ids as they are: these are ended here
        ended = [row if row[-1] == EOS else [*row, EOS] for row in drawn]
        pairs = make_pairs(ended, rewards_of(drawn), seed=0, min_reward_gap=by_dpo.config["min_reward_gap"])
        texts = [[" ".join(words.convert_ids_to_tokens(row)) for row in (pair.chosen, pair.rejected)] for pair in pairs]
        price, beta, length = by_dpo.config["beta"], by_rloo.config["beta"], world.max_new_tokens

        def our_sft(new: Any) -> Any:
            return distil.sequence(new, words, [PROMPT.prompt] * len(rows), rows, sft)

        def bare_sft(new: Any) -> Any:
            ids = [[*PROMPT.prompt, *row] for row in rows]
            data = dataset({"input_ids": ids, "labels": [[-100] * len(PROMPT.prompt) + row for row in rows]})
            return bare("SFT", sft, scratch, {"max_length": None}, model=new, train_dataset=data, **tools)

        def our_dpo(policy: Any, reference: Any) -> Any:
            return dpo(policy, reference, words, [PROMPT.prompt] * len(pairs), pairs, preferring, coefficient=price)

        def bare_dpo(policy: Any, reference: Any) -> Any:
            chosen, rejected = zip(*texts, strict=True)
            data = dataset({"prompt": [""] * len(pairs), "chosen": chosen, "rejected": rejected})
            given = {"model": policy, "ref_model": reference, "train_dataset": data, **tools}
            return bare("DPO", preferring, scratch, {"beta": price, "max_length": None}, **given)

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return rewards_of(completion_ids)

        def our_rloo(policy: Any) -> Any:
            more = {"beta": beta, "max_new_tokens": length}
            return reinforce("rloo", policy, folder, words, [""], reward, reinforcing, **more)

        def bare_rloo(policy: Any) -> Any:
            more = {"beta": beta, "max_completion_length": length, "num_generations": reinforcing.batch_size}
            given = {"model": policy, "train_dataset": dataset({"prompt": [""]}), **tools}
            given["reward_funcs"] = reward
            return bare("RLOO", reinforcing, scratch, more, **given)

        rounds = 2 if options.quick else options.rounds
        print(f"overhead, {rounds} rounds        ours   bare TRL     ratio  its range       same losses")
        alternate(f"SFT, {len(rows)} rows", rounds, lambda: [load(fresh)[0]], our_sft, bare_sft)
        alternate(f"DPO, {len(pairs)} pairs", rounds, lambda: [load(folder)[0] for _ in range(2)], our_dpo, bare_dpo)
        alternate("RLOO", rounds, lambda: [load(folder)[0]], our_rloo, bare_rloo)


def small_recipe(quick: bool) -> Recipe:
    """RLOO and DPO in both orders, one seed, shorter stages."""
    return load_recipe("grammar", ["seeds=1", "sweep={align.method: [dpo]}", *(TINY if quick else SMALL)])


def part_of(plan: Plan, arm: Arm) -> Plan:
    """What one arm needs of a plan."""
    needed: set[str] = set()

    def need(node: Node) -> None:
        needed.add(node.key)
        for other in node.edges.values():
            need(other)

    for node in (node for chain in arm.blocks for node in chain):
        need(node)
        need(plan.measures[node.key])
    return Plan([arm], [node for node in plan.nodes if node.key in needed], plan.measures)


def seconds_for(quick: bool, arm_by_arm: bool, workers: int) -> float:
    """Seconds in this process for the small plan, whole or each arm as a plan of its own, from empty stores."""
    with tempfile.TemporaryDirectory() as folder:
        worlds, plan, _ = prepare(small_recipe(quick), Path(folder))
        began = time.perf_counter()
        for number, part in enumerate([part_of(plan, arm) for arm in plan.arms] if arm_by_arm else [plan]):
            Local(part, worlds, workers).run(part, worlds, Store(Path(folder) / str(number)), Listener())
        return time.perf_counter() - began


def in_fresh_process(*arguments: Any) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(seconds_for, *arguments).result()


def print_sharing(name: str, plan: Plan, shared: float, apart: float) -> None:
    counts = len(plan.nodes), sum(len(part_of(plan, arm).nodes) for arm in plan.arms)
    print(f"{name:20}{shared:10.3f} s of {counts[0]:3}{apart:14.3f} s of {counts[1]:3}{shared / apart:9.3f}")


def sharing(options: argparse.Namespace) -> None:
    recipe = load_recipe("grammar", ["seeds=1", *(TINY if options.quick else [])])  # what is shared is within a seed
    print("sharing, totals          unique nodes    every arm from scratch    ratio")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        worlds, plan, _ = prepare(recipe, store.root)
        Local(plan, worlds, 1).run(plan, worlds, store, Listener())
        wall = {node: store.cost(node)["wall_seconds"] for node in plan.nodes}
        small = prepare(small_recipe(options.quick), store.root)[1]
    apart = sum(wall[node] for arm in plan.arms for node in part_of(plan, arm).nodes)
    print_sharing("recipe grammar", plan, sum(wall.values()), apart)
    seconds = [in_fresh_process(options.quick, arm_by_arm, 1) for arm_by_arm in (False, True)]
    print_sharing("small recipe, run", small, *seconds)


def workers(options: argparse.Namespace) -> None:
    two, one = (in_fresh_process(options.quick, False, count) for count in (2, 1))
    print(f"workers, totals on {cpu_count()} cores: two {two:.3f} s, one {one:.3f} s, ratio {two / one:.3f}")


def main() -> None:
    parts = {"overhead": overhead, "sharing": sharing, "workers": workers}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["all", *parts], default="all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of `overhead`")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    for name in parts if "all" in options.parts else options.parts:
        parts[name](options)


if __name__ == "__main__":
    main()
