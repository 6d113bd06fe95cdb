"""What stages of a language world cost, by hand, and orders with more than two stages, in the grammar world."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precede.plan import Node
from precede.sampling import sample
from precede.seeding import stream
from precede.stages.running import rows_seen
from precede.store import Store
from precede.worlds.grammar.chains import tokenizer
from test_grammar_tiny import PARAMETERS, Finished, changed, names, run_all
from test_lm_tiny import logps

BIG = PARAMETERS
SMALL = 2 * 12 * 8 + (4 * 8 * 8 + 3 * 8 * 24 + 2 * 8) + 8
"""Parameters of the teacher (hidden size 16) and of the student (8)."""


def trainer(steps: int, batch: int, **more: Any) -> dict[str, Any]:
    return {"max_steps": steps, "per_device_train_batch_size": batch, **more}


ORDERS: dict[str, Any] = {
    "student": {"hidden_size": 8, "layers": 1, "heads": 2},
    "warmup": {
        "kind": "distill",
        "method": "token",
        "temperature": 0.7,
        "samples_per_prompt": 150,
        "trainer": trainer(12, 32),
    },
    "bridge": {
        "kind": "distill",
        "method": "on_policy",
        "temperature": 0.7,
        "start": "parent",
        "trainer": trainer(5, 8),
    },
    "polish": {"kind": "align", "method": "grpo", "reference": "teacher", "trainer": trainer(3, 8)},
    "orders": ["align > warmup > bridge > polish", "distill > prefer"],
    "prefer": {
        "kind": "align",
        "method": "dpo",
        "pairs": "seeded",
        "samples_per_prompt": 201,
        "min_reward_gap": 0.5,
        "trainer": trainer(7, 16),
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    store = Store(tmp_path_factory.mktemp("costs") / "store")
    store.prepare()
    return run_all(changed(**ORDERS), store)


def stage_of(finished: Finished, name: str) -> Node:
    (found,) = [stage for stage in finished.stages if stage.name == name]
    return found


def check(finished: Finished, stage: Node, sampled: dict[int, float], scored: dict[int, float], trained: float) -> None:
    """Tokens by the size of the model that they pass through, and 2N, 2N and 6N FLOPs for each."""
    cost = finished.store.cost(stage)
    own = finished.world(stage).parameters(stage)
    assert cost["sampled_tokens"] == pytest.approx(sum(sampled.values()))
    assert cost["scored_tokens"] == pytest.approx(sum(scored.values()))
    assert cost["trained_tokens"] == pytest.approx(trained)
    passed = sum(2 * size * tokens for some in (sampled, scored) for size, tokens in some.items())
    assert cost["flops"] == pytest.approx(passed + 6 * own * trained)
    assert cost["wall_seconds"] > 0
    assert 0 < cost["cpu_seconds"] < 64 * cost["wall_seconds"]
    assert cost["peak_memory_bytes"] > 1e6


def drawn(finished: Finished, stage: Node, count: int, temperature: float, model: Node) -> list[list[int]]:
    return sample(
        finished.model(model),
        tokenizer(12),
        [0],
        count,
        max_new_tokens=5,
        temperature=temperature,
        seed=stream(0, stage.name, "samples"),
        batch_size=1000,
    )


def logged(finished: Finished, stage: Node) -> float:
    """Tokens that a trainer which samples by itself has seen: its running sum at the last round."""
    return max(entry.get("num_tokens", 0.0) for entry in finished.log(stage)["log"])


def brute_force(rows: int, per_step: int, steps: int) -> int:
    seen, left = 0, rows
    for _ in range(steps if rows else 0):
        taken = min(per_step, left)
        seen, left = seen + taken, left - taken
        left = left or rows
    return seen


@given(st.integers(0, 40), st.integers(1, 17), st.integers(1, 30))
def test_rows_seen(rows: int, per_step: int, steps: int) -> None:
    config = {"trainer": {"per_device_train_batch_size": per_step}}
    assert rows_seen(rows, config, steps) == brute_force(rows, per_step, steps)
    halves = {"trainer": {"per_device_train_batch_size": per_step, "gradient_accumulation_steps": 2}}
    assert rows_seen(rows, halves, steps) == brute_force(rows, 2 * per_step, steps)


def test_teacher(finished: Finished) -> None:
    """30 steps of 64 fresh strings, each with its BOS."""
    teacher = finished.stages[0]
    generator = torch.Generator().manual_seed(stream(0, "teacher", "samples"))
    rows = finished.chains(teacher).sample(30 * 64, generator)[0]
    check(finished, teacher, {}, {}, sum(len(row) + 1 for row in rows))


def test_sequence(finished: Finished) -> None:
    """200 rows; 20 steps of 32 are 2 passes of 7 steps (the seventh has 8 rows) and 6 full steps: 592 rows."""
    stage = stage_of(finished, "distill")
    tokens = sum(len(row) + 1 for row in drawn(finished, stage, 200, 0.7, stage.root()))
    check(finished, stage, {BIG: tokens}, {}, tokens * 592 / 200)


def test_token(finished: Finished) -> None:
    """150 rows; 12 steps of 32 are 2 passes of 5 steps and 2 full steps: 364 rows, each scored by the teacher."""
    stage = stage_of(finished, "warmup")
    tokens = sum(len(row) + 1 for row in drawn(finished, stage, 150, 0.7, stage.edges["teacher"]))
    check(finished, stage, {BIG: tokens}, {BIG: tokens * 364 / 150}, tokens * 364 / 150)


def test_on_policy(finished: Finished) -> None:
    stage = stage_of(finished, "bridge")
    tokens = logged(finished, stage)
    assert 5 * 8 * 2 <= tokens <= 5 * 8 * 6
    check(finished, stage, {SMALL: tokens}, {BIG: tokens}, tokens)


def test_rloo(finished: Finished) -> None:
    """Scored once by the policy and once by the reference, here the same size."""
    stage = stage_of(finished, "align")
    tokens = logged(finished, stage)
    assert 4 * 16 * 2 <= tokens <= 4 * 16 * 6
    check(finished, stage, {BIG: tokens}, {BIG: 2 * tokens}, tokens)


def test_grpo(finished: Finished) -> None:
    """Scored by the policy and by the reference, here the aligned teacher."""
    stage = stage_of(finished, "polish")
    tokens = logged(finished, stage)
    assert 3 * 8 * 2 <= tokens <= 3 * 8 * 6
    check(finished, stage, {SMALL: tokens}, {SMALL: tokens, BIG: tokens}, tokens)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_iterations_train_again_on_what_was_sampled_once(method: str, finished: Finished) -> None:
    """6 steps are 3 rounds of 16 completions, each gone through twice."""
    settings = {"num_iterations": 2, "max_steps": 6, "per_device_train_batch_size": 16}
    recipe = changed(align__method=method, align__trainer=settings, orders=["align", "align > distill"])
    made = run_all(recipe, finished.store)
    stage = stage_of(made, "align")
    assert len(made.log(stage)["log"]) == made.log(stage)["steps"] == 6
    tokens = logged(made, stage)
    assert 3 * 16 * 2 <= tokens <= 3 * 16 * 6
    check(made, stage, {BIG: tokens}, {BIG: 2 * tokens}, 2 * tokens)


def test_dpo(finished: Finished) -> None:
    """100 couples; 7 steps over the pairs that are left, two completions each. Half is drawn from the model before."""
    stage = stage_of(finished, "prefer")
    pairs = finished.log(stage)["pairs"]
    cost = finished.store.cost(stage)
    rows = 2 * brute_force(pairs, 16, 7)
    assert pairs > 10
    assert rows * 2 <= cost["trained_tokens"] <= rows * 6
    row = cost["trained_tokens"] / rows
    half = cost["sampled_tokens"] / 2
    assert 100 * 2 <= half <= 101 * 6
    assert half == pytest.approx(100 * row, rel=0.02)
    check(finished, stage, {SMALL: half, BIG: half}, {SMALL: rows * row}, rows * row)


def test_estimates_bound_the_costs(finished: Finished) -> None:
    """As if every completion ran to its full length, and every couple made a pair; these are short, and pairs are few."""
    for stage in finished.stages:
        expected, cost = finished.world(stage).estimate(stage), finished.store.cost(stage)
        for name in ("flops", "sampled_tokens", "scored_tokens", "trained_tokens"):
            assert cost[name] <= getattr(expected, name), (names(stage), name)
            if stage.config.get("method") != "dpo":
                assert cost[name] >= 0.3 * getattr(expected, name), (names(stage), name)
        assert expected.wall_seconds > 0
        trained = SMALL if "distill" in names(stage) or "warmup" in names(stage) else BIG
        assert expected.peak_memory_bytes >= 16 * trained


# ---------------------------------------------------------------------------------------------------- longer orders


def test_a_bridge_goes_on_with_the_student_and_its_teacher(finished: Finished) -> None:
    align, warmup, bridge, polish = (stage_of(finished, name) for name in ("align", "warmup", "bridge", "polish"))
    assert names(polish) == "teacher > align > warmup > bridge > polish"
    assert warmup.edges["teacher"] == bridge.edges["teacher"] == align
    assert warmup.edges["student"].kind == "student"
    assert bridge.edges["student"] == warmup
    assert polish.edges["reference"] == align
    assert polish.parent == bridge
    shapes = {stage.name: finished.model(stage).config for stage in finished.stages}
    for name, hidden in (("align", 16), ("warmup", 8), ("bridge", 8), ("polish", 8)):
        assert (shapes[name].hidden_size, shapes[name].num_hidden_layers) == (hidden, 1)
        assert finished.metrics(stage_of(finished, name))["recall"] is not None
    before, after = (finished.model(stage).state_dict() for stage in (warmup, bridge))
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 0 < moved < 5 * 3e-3 * 1.5  # five Adam steps away from the warmup student, not a new one
    assert finished.metrics(polish)["kl_at_start"] > 0
    assert finished.metrics(polish)["reference_target_mass"] == finished.metrics(align)["target_mass"]


def test_bridge_comes_nearer_to_the_aligned_teacher_at_its_temperature(finished: Finished) -> None:
    """60 more steps; KL(student ‖ teacher at τ) over the student's own samples."""
    recipe = changed(**ORDERS)
    recipe["bridge"] |= {"trainer": trainer(60, 32)}
    recipe["orders"] = ["align > warmup > bridge", "align > warmup"]
    made = run_all(recipe, finished.store)
    warmup, bridge = (stage_of(made, name) for name in ("warmup", "bridge"))
    teacher, gaps = made.model(bridge.edges["teacher"]), []
    for stage in (warmup, bridge):
        rows = sample(made.model(stage), tokenizer(12), [0], 400, max_new_tokens=5, seed=1)
        gaps.append(float((logps(made.model(stage), [0], rows) - logps(teacher, [0], rows, 0.7)).mean()))
    assert 0 < gaps[1] < 0.9 * gaps[0]


def test_training_logs_are_json(finished: Finished) -> None:
    for stage in finished.stages:
        log = json.loads((finished.store.folder(stage) / "training.json").read_text())
        start = {"kl_to_teacher_at_start", "overlap_at_start"} if stage.config.get("method") == "on_policy" else set()
        assert set(log) == {"steps", "log", "kl_at_start", "pairs"} | start
        assert all(isinstance(value, float) for entry in log["log"] for value in entry.values())
        assert log["steps"] == log["log"][-1]["step"]
