"""The text world end to end, with a tiny random teacher and the real trainers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from precede.jobs.compare import Comparison, compare, prepare
from precede.models.load import kept_layers, load
from precede.plan import Plan, make_plan
from precede.rewards import hedge
from precede.sampling import prompt_ids
from precede.scoring.logprobs import completion_logps
from precede.settings.recipe import Recipe, read_recipe
from precede.store import Stage, Store
from precede.worlds.text.world import parameters_of
from precede.worlds.world import load_world
from test_lm_tiny import tiny_folder


def recipe_of(teacher: Path, **changes: Any) -> Recipe:
    """A recipe of the tiny teacher; `align__beta=0.3` changes the setting `beta` of `align`."""
    recipe: dict[str, Any] = {
        "recipe": "tiny-text",
        "world": {"kind": "text", "max_new_tokens": 6, "evaluation_samples": 40, "device": "cpu"},
        "teacher": {"model": str(teacher)},
        "align": {
            "kind": "align",
            "method": "dpo",
            "samples": 160,
            "batch_size": 8,
            "learning_rate": 2e-3,
            "steps": 8,
        },
        "distill": {
            "kind": "distill",
            "samples": 64,
            "keep_layers": 3,
            "batch_size": 8,
            "steps": 16,
            "learning_rate": 2e-3,
        },
        "orders": ["align > distill", "distill > align"],
        "seeds": 1,
    }
    for name, value in changes.items():
        block, _, setting = name.partition("__")
        recipe[block][setting] = value
    return read_recipe(recipe)


def run_all(recipe: Recipe, store: Store) -> dict[str, Stage]:
    """Run every stage; by lineage such as `teacher > distill`."""
    world, plan = prepare(recipe)
    for stage in plan.stages:
        world.run([stage], store)
    return by_lineage(plan)


def by_lineage(plan: Plan) -> dict[str, Stage]:
    return {" > ".join(ancestor.name for ancestor in stage.lineage()): stage for stage in plan.stages}


@dataclass
class Finished:
    store: Store
    stages: dict[str, Stage]
    comparison: Comparison
    teacher: Path

    def folder(self, lineage: str) -> Path:
        return self.store.folder(self.stages[lineage])

    def metrics(self, lineage: str) -> dict[str, Any]:
        return {name: values[0] for name, values in self.store.metrics(self.stages[lineage]).items()}

    def json(self, lineage: str, name: str) -> Any:
        return json.loads((self.folder(lineage) / name).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("text")
    teacher = tiny_folder(root / "model", layers=5, seed=4)  # hedges in 17 % of completions
    recipe = recipe_of(teacher)
    comparison = compare(recipe, out=root / "out", store=root / "store", workers=1)
    plan = make_plan(recipe, load_world(recipe.variants[0].world))
    return Finished(Store(root / "store"), by_lineage(plan), comparison, teacher)


ALL = (
    "teacher",
    "teacher > align",
    "teacher > align > distill",
    "teacher > distill",
    "teacher > distill > align",
)


def test_stages(finished: Finished) -> None:
    assert set(finished.stages) == set(ALL)
    assert finished.comparison.stages_run == 5
    assert all(finished.store.damage(stage) is None for stage in finished.stages.values())
    assert finished.comparison.report.is_file()
    assert "says nothing about other models or prompts" in finished.comparison.report.read_text()


@pytest.mark.parametrize("lineage", ALL)
def test_every_stage_is_a_hugging_face_folder(finished: Finished, lineage: str) -> None:
    folder = finished.folder(lineage) / "model"
    outside, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inside, _ = load(folder)
    ids = tokenizer("The", return_tensors="pt")
    arguments = {"max_new_tokens": 8, "do_sample": False}
    tokens = outside.generate(**ids, **arguments)
    assert tokens.shape[1] > 1
    assert torch.equal(tokens, inside.generate(**ids, **arguments))
    assert torch.equal(outside(**ids).logits, inside(**ids).logits)
    assert outside.config.num_hidden_layers == (3 if "distill" in lineage else 5)
    original = AutoTokenizer.from_pretrained(finished.teacher)
    assert tokenizer.get_vocab() == original.get_vocab()
    assert tokenizer.special_tokens_map == original.special_tokens_map
    assert (folder / "generation_config.json").is_file()


def test_folders_name_no_place_of_this_machine(finished: Finished) -> None:
    for lineage in ALL:
        for file in (finished.folder(lineage) / "model").glob("*.json"):
            assert str(finished.teacher.parent) not in file.read_text(), file.name


def test_the_teacher_is_kept_as_it_is(finished: Finished) -> None:
    kept = load_file(finished.folder("teacher") / "model" / "model.safetensors")
    given = load_file(finished.teacher / "model.safetensors")
    assert kept.keys() == given.keys()
    assert all(torch.equal(kept[name], given[name]) for name in kept)


def test_metrics_are_defined_where_they_should_be(finished: Finished) -> None:
    every = set(finished.metrics("teacher"))
    for lineage in ALL:
        metrics = finished.metrics(lineage)
        optimum = {"reference_target_mass", "optimal_target_mass"} if lineage.endswith("align") else set()
        assert set(metrics) == every | optimum
        for name in ("kl_to_reference_per_token", "kl_at_start", "pairs"):
            assert (metrics[name] is not None) == lineage.endswith("align")
        decoded = {name for name, value in metrics.items() if name.startswith("decoded_") and value is not None}
        assert bool(decoded) == ("distill" in lineage)
        assert (metrics["kl_to_reference"] is not None) == lineage.endswith("align")
        assert 0 < metrics["target_mass"] < 1
        assert metrics["target_precision"] is None
        assert metrics["target_precision_on_target"] is not None
        assert metrics["reward"] == metrics["target_mass"]
        assert metrics["kl_to_truth"] == pytest.approx(-metrics["entropy"] - metrics["precision"], abs=1e-4)


def test_the_teacher_is_the_truth(finished: Finished) -> None:
    metrics = finished.metrics("teacher")
    assert metrics["kl_to_truth"] == 0
    assert metrics["precision"] == -metrics["entropy"]
    assert metrics["recall"] == pytest.approx(metrics["precision"], abs=4)
    assert finished.metrics("teacher > align")["kl_to_truth"] == finished.metrics("teacher > align")["kl_to_reference"]


def test_recall_by_hand(finished: Finished) -> None:
    truth = finished.json("teacher", "truth.json")
    model, tokenizer = load(finished.folder("teacher > distill > align") / "model")
    prompt, rows = prompt_ids(tokenizer, "The"), truth["truth"]
    logps = completion_logps(model, prompt, rows)[0]
    metrics = finished.metrics("teacher > distill > align")
    assert metrics["recall"] == pytest.approx(logps.mean().item(), abs=1e-4)
    hits = [index for index, row in enumerate(rows) if hedge(tokenizer.decode(row))]
    assert truth["target"] == [rows[index] for index in hits] != []
    assert metrics["target_recall"] == pytest.approx(logps[hits].mean().item(), abs=1e-4)
    cooler = completion_logps(model, prompt, rows, temperatures=(0.7,))[0]
    assert metrics["decoded_recall"] == pytest.approx(cooler.mean().item(), abs=1e-4)


def test_completions_are_what_was_measured(finished: Finished) -> None:
    for lineage in ALL:
        for name, shown in finished.json(lineage, "completions.json").items():
            mass = finished.metrics(lineage)[name.removesuffix("completions") + "target_mass"]
            assert len(shown) == 40
            assert sum(hedge(row["text"]) for row in shown) / 40 == mass
            assert [hedge(row["text"]) for row in shown] == [row["reward"] for row in shown]


def test_alignment_raises_the_reward(finished: Finished) -> None:
    assert finished.metrics("teacher > align")["reward"] > finished.metrics("teacher")["reward"]
    for lineage in ("teacher > align", "teacher > distill > align"):
        log = finished.json(lineage, "training.json")
        assert log["kl_at_start"] == 0
        assert log["steps"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert log["steps"][-1]["rewards/margins"] > 0
        assert {"logps/chosen", "logps/rejected"} <= set(log["steps"][0])
        assert 8 <= log["pairs"] <= 80
        assert log["pairs"] == finished.metrics(lineage)["pairs"]


def test_the_student_starts_from_layers_of_the_root(finished: Finished) -> None:
    """Undo nothing: with one tiny step the student is still next to the cut teacher, in both orders."""
    recipe = recipe_of(finished.teacher, distill__learning_rate=1e-9, align__learning_rate=3e-2)
    stages = run_all(recipe, finished.store)
    given = load_file(finished.teacher / "model.safetensors")
    kept = kept_layers(5, 3)
    for lineage in ("teacher > distill", "teacher > align > distill"):
        student = load_file(finished.store.folder(stages[lineage]) / "model" / "model.safetensors")
        for place, layer in enumerate(kept):
            name = "model.layers.{}.mlp.up_proj.weight"
            assert torch.allclose(student[name.format(place)], given[name.format(layer)], atol=1e-5)


def test_teacher_as_reference(finished: Finished) -> None:
    """K→A anchored to the model before distillation: pool, KL and loss are taken against it."""
    recipe = recipe_of(finished.teacher, align__reference="teacher", align__learning_rate=1e-9)
    stages = run_all(recipe, finished.store)
    stage = stages["teacher > distill > align"]
    assert stage.config["reference"] == "teacher"
    assert stages["teacher > align"].config["reference"] == "self"
    log, metrics = (
        json.loads((finished.store.folder(stage) / "training.json").read_text()),
        finished.store.metrics(stage),
    )
    assert log["kl_at_start"] > 0.1
    assert metrics["kl_at_start"] == [log["kl_at_start"]]
    assert abs(log["steps"][0]["loss"] - math.log(2)) > 1e-4
    assert metrics["kl_to_reference"] == metrics["kl_to_truth"]
    assert metrics["kl_to_reference"][0] > 0.05  # type: ignore[operator]


def test_the_same_numbers_again(finished: Finished, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    torch.manual_seed(123)
    stages = run_all(recipe_of(finished.teacher), store)
    for lineage, stage in stages.items():
        assert stage == finished.stages[lineage]
        first = (finished.folder(lineage) / "SHA256SUMS").read_text().splitlines()
        second = (store.folder(stage) / "SHA256SUMS").read_text().splitlines()
        differing = {a.split("  ")[1] for a, b in zip(first, second, strict=True) if a != b}
        assert differing <= {"manifest.json"}, lineage  # it has the wall time


def test_both_orders_draw_from_the_same_streams(finished: Finished) -> None:
    """τ and the stage's name being equal, an untrained alignment changes nothing that distillation draws."""
    recipe = recipe_of(finished.teacher, align__learning_rate=1e-12)
    stages = run_all(recipe, finished.store)
    student = finished.store.folder(stages["teacher > distill"]) / "model" / "model.safetensors"
    other = finished.store.folder(stages["teacher > align > distill"]) / "model" / "model.safetensors"
    a, b = load_file(student), load_file(other)
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_cost_by_hand(finished: Finished) -> None:
    sizes = {keep: parameters_of(str(finished.teacher), keep) for keep in (None, 3)}
    for lineage in ALL:
        cost = finished.store.cost(finished.stages[lineage])
        policy = sizes[3 if "distill" in lineage else None]
        sampled = sizes[3 if lineage == "teacher > distill > align" else None]
        expected = 2 * sampled * cost["sampled_tokens"] + 2 * policy * cost["scored_tokens"]
        assert cost["flops"] == expected + 6 * policy * cost["trained_tokens"]
        if lineage.endswith("distill"):  # 16 steps of 8 are two passes over 64 completions
            assert 64 * 2 <= cost["sampled_tokens"] <= 64 * 7
            assert cost["trained_tokens"] == 2 * cost["sampled_tokens"]
            assert cost["scored_tokens"] == 0
        elif lineage.endswith("align"):
            pairs = finished.json(lineage, "training.json")["pairs"]
            rows = 2 * sum(min(8, pairs - 8 * (step % -(-pairs // 8))) for step in range(8))
            assert rows * 2 <= cost["trained_tokens"] == cost["scored_tokens"] <= rows * 7
            assert 160 * 2 <= cost["sampled_tokens"] <= 160 * 7
        else:
            assert cost["flops"] == 0


@pytest.mark.parametrize("lineage", ALL)
def test_estimate_bounds_the_cost(finished: Finished, lineage: str) -> None:
    stage = finished.stages[lineage]
    expected = load_world(stage.world).estimate(stage)
    cost = finished.store.cost(stage)
    for name in ("flops", "sampled_tokens", "scored_tokens", "trained_tokens"):
        assert 0.5 * getattr(expected, name) <= cost[name] <= getattr(expected, name)
    assert cost["wall_seconds"] > 0
    assert cost["peak_memory_bytes"] > 1e6
