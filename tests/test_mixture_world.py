"""Stages of the mixture world: batches do not change results, seeds do not see one another, streams are paired."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from conftest import Stages
from precede.plan import Node, before_distillation
from precede.store import Store
from precede.worlds.mixture.world import MixtureWorld, generators, load

FAST = {"steps": 12, "samples": 47, "pair_count": 61}  # no multiples of a vector register


def run(store: Store, world: MixtureWorld, *calls: list[Node]) -> None:
    for call in calls:
        world.run(call, store)


@pytest.mark.parametrize("method", [{"method": "ppo"}, {"method": "dpo"}, {"method": "dpo", "pairs": "off_policy"}])
def test_batched_equals_one_by_one(tmp_path: Path, method: dict[str, str]) -> None:
    """Bit for bit: three seeds and two β in one batch, against one run per seed and β."""
    together, alone = Store(tmp_path / "together"), Store(tmp_path / "alone")

    def chains(seeds: tuple[int, ...]) -> list[list[Node]]:
        made = Stages(seeds)
        teacher = made.teacher(samples=300, restarts=2)
        student = made.distill(teacher, samples=203, restarts=2)
        aligned = [made.align(student, beta=beta, **FAST, **method) for beta in (0.1, 0.4)]
        measured = [[made.measure(model)] for model in (teacher, student)]
        return [[teacher], measured[0], [student], measured[1], aligned, [made.measure(model) for model in aligned]]

    world = MixtureWorld(Stages((0,)).world)
    batch = chains((0, 1, 2))
    run(together, world, *batch)
    for seed in (0, 1, 2):
        single = chains((seed,))
        run(alone, world, *[[node] for call in single for node in call])
        for batched, one in zip(itertools.chain(*batch), itertools.chain(*single), strict=True):
            if one.kind != "measure":
                assert torch.equal(load(together, batched)[seed : seed + 1], load(alone, one)), (method, seed, one.name)
            for name, values in alone.metrics(one).items():
                assert together.metrics(batched)[name][seed] == values[0], (name, seed)


def test_a_stage_is_reproducible(tmp_path: Path) -> None:
    made = Stages((3, 4))
    teacher = made.teacher(samples=200, restarts=2)
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    for store in (first, second):
        run(store, MixtureWorld(made.world), [teacher])
    assert torch.equal(load(first, teacher), load(second, teacher))


def test_seeds_and_purposes_have_streams_of_their_own() -> None:
    made = Stages((0, 1))
    teacher = made.teacher()
    draws = [
        float(torch.rand(1, generator=generator))
        for stage in (teacher, made.align(teacher))
        for purpose in ("samples", "fit")
        for generator in generators(stage, purpose)
    ]
    assert len(set(draws)) == len(draws)


def test_both_orders_draw_the_same_noise() -> None:
    """What pairs the comparison by seed: the align stage's streams do not depend on what came before it."""
    made = Stages((5,))
    teacher = made.teacher()
    early, late = made.align(teacher), made.align(made.distill(teacher))
    one, other = (float(torch.rand(1, generator=generators(stage, "rounds")[0])) for stage in (early, late))
    assert one == other


def test_global_random_state_is_left_alone(store: Store) -> None:
    made = Stages((0,))
    before = torch.get_rng_state()
    run(store, MixtureWorld(made.world), [made.teacher(samples=100, restarts=1)])
    assert torch.equal(before, torch.get_rng_state())


def test_teacher_finds_the_rare_mode(store: Store) -> None:
    """A high-recall teacher: of 16 seeds none loses the target, and the mean mass is the truth's within 4 s.e."""
    made = Stages(tuple(range(16)))
    teacher = made.teacher()
    mass = torch.tensor(made.metrics(store, teacher)["target_mass"], dtype=torch.float64)
    assert float(mass.min()) > 0.005
    assert abs(float(mass.mean()) - 0.02) < 4 * float(mass.std()) / 4


def test_estimate_is_near_the_cost(store: Store) -> None:
    """FLOPs of alignment are known exactly beforehand; those of EM within a factor of 3."""
    made = Stages((0, 1))
    world = MixtureWorld(made.world)
    teacher = made.teacher()
    student = made.distill(teacher)
    aligned = made.align(student, steps=20)
    run(store, world, [teacher], [student], [aligned])
    for stage in (teacher, student, aligned):
        ratio = world.estimate(stage).flops / store.cost(stage)["flops"]
        assert 1 / 3 < ratio < 3
    assert world.estimate(aligned).flops == store.cost(aligned)["flops"]


def test_several_distillations_in_a_row(store: Store) -> None:
    made = Stages((0, 1))
    world = MixtureWorld(made.world)
    teacher = made.teacher(samples=500)
    once = made.distill(teacher, samples=300, components=6)
    twice = made.distill(once, samples=300, components=4)
    aligned = made.align(twice, reference="teacher", **FAST)
    run(store, world, [teacher], [once], [twice], [aligned])
    assert load(store, twice).shape == (2, 4, 6)
    assert before_distillation(twice, world) == once
    assert made.metrics(store, aligned)["reference_target_mass"] == made.metrics(store, once)["target_mass"]
