"""The grammar world end to end: every method at tiny size, measured again by hand from the chains."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from precede.plan import Node
from precede.sampling import sample
from precede.seeding import stream
from precede.store import Store
from precede.worlds.grammar.chains import Chains, tokenizer
from test_grammar_tiny import PARAMETERS, TINY, Finished, changed, names, run_all
from test_lm_tiny import logps

SWEEP = [
    {"align.method": ["dpo"], "align.pairs": ["on_policy", "off_policy", "seeded"]},
    {"align.method": ["grpo"]},
    {"distill.method": ["token", "on_policy"]},
    {"align.reference": ["teacher"]},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    store = Store(tmp_path_factory.mktemp("grammar") / "store")
    store.prepare()
    return run_all(TINY | {"sweep": SWEEP}, store)


def by_hand(chains: Chains, row: list[int], modes: list[int]) -> float:
    """log of the mixture of `modes`, their weights scaled to 1, as sums and products of probabilities."""
    total, weights = 0.0, [math.exp(chains.log_weights[mode]) for mode in modes]
    for mode, weight in zip(modes, weights, strict=True):
        product = math.exp(chains.log_starts[mode, row[0]])
        for previous, token in itertools.pairwise(row):
            product *= math.exp(chains.log_transitions[mode, previous, token])
        total += weight / sum(weights) * product
    return math.log(total)


def evaluated(finished: Finished, stage: Node, temperature: float = 1.0) -> list[list[int]]:
    """The completions that the stage's model was measured on, drawn again."""
    return sample(
        finished.model(stage),
        tokenizer(12),
        [0],
        200,
        max_new_tokens=5,
        temperature=temperature,
        seed=stream(0, stage.name, "evaluation"),
        batch_size=1000,
    )


def test_every_stage_is_there_and_sound(finished: Finished) -> None:
    # the teacher; aligned by rloo, dpo on and off policy, grpo; each of these distilled, rloo's also by two other methods;
    # the students; each aligned: sequence by six, token and on_policy by one
    assert len(finished.stages) == 1 + 4 + (4 + 2) + 3 + (6 + 2)
    assert sum(node.kind == "student" for node in finished.plan.nodes) == 1
    for node in finished.plan.nodes:
        assert finished.store.damage(node) is None, node.label()


def test_every_folder_is_a_plain_hugging_face_model(finished: Finished) -> None:
    for stage in finished.plan.models:
        folder = finished.store.folder(stage) / "model"
        outside, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids = words("", return_tensors="pt")
        assert ids["input_ids"].tolist() == [[0]]
        greedy = {"max_new_tokens": 5, "do_sample": False}
        ids = {"input_ids": ids["input_ids"].long(), "attention_mask": ids["attention_mask"].long()}
        tokens = outside.generate(**ids, **greedy)
        assert tokens.shape[1] > 1
        assert torch.equal(tokens, finished.model(stage).generate(**ids, **greedy))
        for file in folder.glob("*.json"):
            assert str(finished.store.root.parent) not in file.read_text(), file.name


def test_metrics_are_defined_where_they_should_be(finished: Finished) -> None:
    every = set(finished.metrics(finished.stages[0]))
    assert {"target_log_odds", "precision_per_token", "recall_per_token", "entropy_per_token", "distinct_2"} <= every
    for stage in finished.stages:
        metrics = finished.metrics(stage)
        optimum = {"reference_target_mass", "optimal_target_mass"} if stage.kind == "align" else set()
        start = {"kl_to_teacher_at_start", "overlap_at_start"} if stage.config.get("method") == "on_policy" else set()
        assert set(metrics) == every | optimum | start
        assert start == set() or 0 < metrics["overlap_at_start"] < 1
        undefined = {name for name, value in metrics.items() if value is None}
        expected = set()
        if stage.kind != "align":
            expected |= {"kl_to_reference", "kl_to_reference_per_token", "kl_at_start"}
        if stage.config.get("method") != "dpo":
            expected |= {"pairs"}
        if "distill" not in names(stage):
            expected |= {name for name in metrics if name.startswith("decoded_")}
        assert undefined == expected, names(stage)
        assert all(math.isfinite(value) for value in metrics.values() if value is not None)
        assert 0 < metrics["target_mass"] < 1


def test_kl_at_start(finished: Finished) -> None:
    """0 against itself; against the teacher it is what distillation did."""
    behind = finished.find("teacher > distill > align", align__reference="teacher")
    for stage in finished.stages:
        if stage.kind == "align" and stage != behind:
            assert finished.metrics(stage)["kl_at_start"] == pytest.approx(0, abs=1e-5)
    start, reference = behind.edges["parent"], behind.edges["reference"]
    student, teacher = finished.model(start), finished.model(behind.root())
    seed = stream(0, "align", "start")
    rows = sample(student, tokenizer(12), [0], 256, max_new_tokens=5, seed=seed, batch_size=1000)
    expected = (logps(student, [0], rows) - logps(teacher, [0], rows)).mean().item()
    assert finished.metrics(behind)["kl_at_start"] == pytest.approx(expected, abs=1e-5)
    assert expected > 0.02
    assert finished.log(behind)["log"][0]["kl"] > 0.005
    assert reference == behind.root()
    assert finished.metrics(behind)["kl_to_reference"] is not None
    assert finished.metrics(behind)["reference_target_mass"] == finished.metrics(behind.root())["target_mass"]


def test_optimal_target_mass_by_hand(finished: Finished) -> None:
    """The tilt of a reward that is 1 on the target: m e^(1/β) / (1 − m + m e^(1/β)), β = 0.1."""
    for stage in finished.stages:
        if stage.kind == "align":
            mass = finished.metrics(stage)["reference_target_mass"]
            assert mass == finished.metrics(stage.edges["reference"])["target_mass"]
            best = mass * math.exp(10) / (1 - mass + mass * math.exp(10))
            assert finished.metrics(stage)["optimal_target_mass"] == pytest.approx(best)


@pytest.mark.parametrize("lineage", ["teacher", "teacher > distill > align"])
def test_measurement_by_hand_from_the_chains(finished: Finished, lineage: str) -> None:
    """Precision, target precision, target mass and reward of the same samples, token by token in float64."""
    stage = finished.find(lineage)
    chains = finished.chains(stage)
    metrics = finished.metrics(stage)
    for prefix, temperature in (("", 1.0), ("decoded_", 0.7)) if stage.parent else (("", 1.0),):
        rows = evaluated(finished, stage, temperature)
        truth, target = ([by_hand(chains, row, modes) for row in rows] for modes in ([0, 1, 2], [2]))
        rewards = [math.exp(math.log(0.1) + b - a) for a, b in zip(truth, target, strict=True)]
        hits = [reward >= 0.5 for reward in rewards]
        expected = {
            "precision": sum(truth) / 200,
            "target_precision": sum(target) / 200,
            "reward": sum(rewards) / 200,
            "target_mass": sum(hits) / 200,
            "target_precision_on_target": sum(b for b, hit in zip(target, hits, strict=True) if hit) / sum(hits),
            "precision_per_token": sum(truth) / sum(map(len, rows)),
            "stop_rate": sum(row[-1] == 1 for row in rows) / 200,
        }
        for name, value in expected.items():
            assert metrics[prefix + name] == pytest.approx(value, rel=1e-9), prefix + name


def test_recall_by_hand(finished: Finished) -> None:
    """Of the truth's samples and of its target modes' samples, which are kept once for all models."""
    stage = finished.find("teacher > distill > align")
    kept = finished.truth(stage)
    assert len({node.key for node in finished.plan.nodes if node.kind == "truth"}) == 1
    chains, model = finished.chains(stage), finished.model(stage)
    for name, count, modes, metric in (("truth", 200, None, "recall"), ("target", 50, [2], "target_recall")):
        generator = torch.Generator().manual_seed(stream(0, "teacher", "truth"))
        assert kept[name] == chains.sample(count, generator, modes)[0]
        expected = logps(model, [0], kept[name]).mean().item()
        assert finished.metrics(stage)[metric] == pytest.approx(expected, abs=1e-5)


def test_dpo_pairs_come_from_where_they_should(finished: Finished) -> None:
    """Their number, made again: couples of the model itself, of the truth, and of the model with the one before it."""
    for pairs, source in (("on_policy", "own"), ("off_policy", "truth"), ("seeded", "both")):
        stage = finished.find("teacher > distill > align", align__method="dpo", align__pairs=pairs)
        chains, own = finished.chains(stage), finished.model(stage.edges["reference"])
        model = {"count": 200 if source == "own" else 100, "max_new_tokens": 5, "batch_size": 1000}
        seed, seeds = (stream(0, "align", purpose) for purpose in ("samples", "seeds"))
        drawn = sample(own, tokenizer(12), [0], **model, seed=seed)
        rows = drawn
        if source == "truth":
            rows = chains.sample(200, torch.Generator().manual_seed(seed))[0]
        elif source == "both":
            assert stage.edges["original"] == stage.root()
            other = sample(finished.model(stage.root()), tokenizer(12), [0], **model, seed=seeds)
            rows = [row for couple in zip(drawn, other, strict=True) for row in couple]
        rewards = chains.target_posterior(rows).tolist()
        expected = sum(abs(a - b) > 0.5 for a, b in zip(rewards[::2], rewards[1::2], strict=True))
        assert finished.metrics(stage)["pairs"] == expected > 0


def test_no_pairs_leave_the_model_as_it_was(finished: Finished) -> None:
    """The sampling trap: no couple tells anything, nothing is trained."""
    recipe = changed(align__method="dpo", align__min_reward_gap=1.0)
    made = run_all(recipe, finished.store)
    stage = made.find("teacher > align", align__method="dpo")
    assert made.metrics(stage)["pairs"] == 0
    assert made.metrics(stage)["kl_to_reference"] == 0
    assert made.log(stage) == {"steps": 0, "log": [], "pairs": 0, "kl_at_start": 0}
    cost = finished.store.cost(stage)
    assert cost["trained_tokens"] == cost["scored_tokens"] == 0
    assert cost["sampled_tokens"] > 0
    one, other = (
        load_file(finished.store.folder(node) / "model" / "model.safetensors")
        for node in (stage, stage.edges["parent"])
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_parameters_are_known_beforehand(finished: Finished) -> None:
    for stage in finished.stages:
        assert finished.world(stage).parameters(stage) == PARAMETERS
        assert sum(value.numel() for value in finished.model(stage).state_dict().values()) == PARAMETERS


def test_bf16_and_the_same_world_elsewhere(finished: Finished, tmp_path: Path) -> None:
    """In bf16 the numbers are others, and the models are kept in fp32 all the same."""
    store = Store(tmp_path)
    store.prepare()
    made = run_all(changed(world__dtype="bfloat16"), store)
    weights = load_file(store.folder(made.stages[0]) / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    recalls = [one.metrics(one.stages[0])["recall"] for one in (made, finished)]
    assert recalls[0] != recalls[1]
    assert recalls[0] == pytest.approx(recalls[1], abs=0.2)
