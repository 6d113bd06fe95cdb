"""The grammar world's speed, as ratios from one run: our stages against bare TRL, sharing against not, and two workers.

    python benchmarks/language.py [all | overhead sharing workers] [--rounds 5] [--quick]

`overhead` trains by our functions and by bare TRL, on the same data with the same arguments, in turn and on one thread;
what is timed runs from data and loaded models to the log. `sharing` runs the stages of one seed of the recipe `grammar` and
sums their wall seconds: every arm from its teacher on, and every unique stage once. Then it really runs a smaller recipe
both ways, with one worker: as one comparison, and each arm in a store of its own. `workers` runs the smaller recipe with
two workers and with one. Such a run has a fresh process and a fresh store; imports count, once per process.
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

from precede.engine.local import run_plan
from precede.libraries import datasets, quiet, trl
from precede.metrics import Cost
from precede.models.load import load, save
from precede.plan import Plan, make_plan
from precede.settings.recipe import load_recipe
from precede.stages import distil
from precede.stages.preferences import dpo, make_pairs
from precede.stages.reinforce import reinforce
from precede.stages.trainer import TrainerSettings
from precede.store import Store
from precede.worlds.grammar.chains import EOS
from precede.worlds.world import load_world

SMALL = ["teacher.steps=200", "distill.steps=160", "distill.samples=5000", "align.steps=48", "align.samples=3200"]
TINY = ["teacher.steps=4", "distill.steps=4", "distill.samples=1100", "align.steps=3", "align.samples=2000"]
TINY += ["world.evaluation_samples=100"]


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
    recipe = load_recipe("grammar", TINY if options.quick else [])
    world: Any = load_world(recipe.variants[0].world)
    teacher, *others = make_plan(recipe, world).stages
    first = [stage for stage in others if stage.parent == teacher]
    student, by_rloo, by_dpo = (next(s for s in first if s.config["method"] == m) for m in ("sequence", "rloo", "dpo"))
    sft, reinforcing, preferring = (
        TrainerSettings(*(stage.config[key] for key in ("learning_rate", "batch_size", "steps")), seed=0)
        for stage in (student, by_rloo, by_dpo)
    )
    with tempfile.TemporaryDirectory() as name, quiet():
        folder, scratch = Path(name) / "teacher", Path(name) / "trl"
        model, words, _ = world.teacher(teacher, Cost())
        save(model, words, folder)
        truth, dataset, tools = world.truth(teacher), datasets().Dataset.from_dict, {"processing_class": words}
        rows, drawn = (truth.sample(stage.config["samples"], 0) for stage in (student, by_dpo))
        # TRL ends every text that it is given with EOS, ours takes ids as they are: these are ended here
        ended = [row if row[-1] == EOS else [*row, EOS] for row in drawn]
        pairs = make_pairs(ended, truth.rewards(drawn), seed=0, min_reward_gap=by_dpo.config["min_reward_gap"])
        texts = [[" ".join(words.convert_ids_to_tokens(row)) for row in (pair.chosen, pair.rejected)] for pair in pairs]
        price, length = by_dpo.config["beta"], world.config["max_new_tokens"]
        beta, epochs, clip = (by_rloo.config[key] for key in ("beta", "epochs", "clip"))

        def our_sft(new: Any) -> Any:
            return distil.sequence(new, words, [truth.prompt] * len(rows), rows, sft)

        def bare_sft(new: Any) -> Any:
            ids = [[*truth.prompt, *row] for row in rows]
            data = dataset({"input_ids": ids, "labels": [[-100] * len(truth.prompt) + row for row in rows]})
            return bare("SFT", sft, scratch, {"max_length": None}, model=new, train_dataset=data, **tools)

        def our_dpo(policy: Any, reference: Any) -> Any:
            return dpo(policy, reference, words, [truth.prompt] * len(pairs), pairs, preferring, coefficient=price)

        def bare_dpo(policy: Any, reference: Any) -> Any:
            chosen, rejected = zip(*texts, strict=True)
            data = dataset({"prompt": [""] * len(pairs), "chosen": chosen, "rejected": rejected})
            given = {"model": policy, "ref_model": reference, "train_dataset": data, **tools}
            return bare("DPO", preferring, scratch, {"beta": price, "max_length": None}, **given)

        def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
            return truth.rewards(completion_ids)

        def our_rloo(policy: Any) -> Any:
            more = {"beta": beta, "epochs": epochs, "clip": clip, "max_new_tokens": length}
            more["group"] = reinforcing.batch_size
            return reinforce("rloo", policy, folder, words, [""], reward, reinforcing, **more)

        def bare_rloo(policy: Any) -> Any:
            more = {"beta": beta, "num_iterations": epochs, "epsilon": clip, "max_completion_length": length}
            more["num_generations"] = reinforcing.batch_size
            given = {"model": policy, "train_dataset": dataset({"prompt": [""]}), **tools}
            given["reward_funcs"] = reward
            return bare("RLOO", reinforcing, scratch, more, **given)

        rounds = 2 if options.quick else options.rounds
        print(f"overhead, {rounds} rounds        ours   bare TRL     ratio  its range       same losses")
        alternate(f"SFT, {len(rows)} rows", rounds, lambda: [world.student(student, None)], our_sft, bare_sft)
        alternate(f"DPO, {len(pairs)} pairs", rounds, lambda: [load(folder)[0] for _ in range(2)], our_dpo, bare_dpo)
        alternate("RLOO", rounds, lambda: [load(folder)[0]], our_rloo, bare_rloo)


def small_plan(quick: bool) -> tuple[Any, Plan]:
    """World and plan of RLOO and DPO in both orders, one seed, shorter stages."""
    recipe = load_recipe("grammar", ["seeds=1", "sweep={align.method: [dpo]}", *(TINY if quick else SMALL)])
    world = load_world(recipe.variants[0].world)
    return world, make_plan(recipe, world)


def seconds_for(quick: bool, arm_by_arm: bool, workers: int) -> float:
    """Seconds in this process for the small plan, whole or each arm as a plan of its own, from empty stores."""
    world, plan = small_plan(quick)
    began = time.perf_counter()
    for part in [Plan([arm], arm.blocks[0]) for arm in plan.arms] if arm_by_arm else [plan]:
        with tempfile.TemporaryDirectory() as folder:
            run_plan(part, world, Store(Path(folder)), workers, lambda call: None)
    return time.perf_counter() - began


def in_fresh_process(*arguments: Any) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(seconds_for, *arguments).result()


def print_sharing(name: str, plan: Plan, shared: float, apart: float) -> None:
    counts = len(plan.stages), sum(len(chain) for arm in plan.arms for chain in arm.blocks)
    print(f"{name:20}{shared:10.3f} s of {counts[0]:3}{apart:14.3f} s of {counts[1]:3}{shared / apart:9.3f}")


def sharing(options: argparse.Namespace) -> None:
    recipe = load_recipe("grammar", ["seeds=1", *(TINY if options.quick else [])])  # what is shared is within a seed
    world = load_world(recipe.variants[0].world)
    plan = make_plan(recipe, world)
    print("sharing, totals         unique stages    every arm from scratch    ratio")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        run_plan(plan, world, store, 1, lambda call: None)
        wall = {stage: store.cost(stage)["wall_seconds"] for stage in plan.stages}
    apart = sum(wall[stage] for arm in plan.arms for chain in arm.blocks for stage in chain)
    print_sharing("recipe grammar", plan, sum(wall.values()), apart)
    seconds = [in_fresh_process(options.quick, arm_by_arm, 1) for arm_by_arm in (False, True)]
    print_sharing("small recipe, run", small_plan(options.quick)[1], *seconds)


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
