"""The text world end to end, with a tiny random teacher and the real trainers."""

from __future__ import annotations

import html
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
from precede.models.facts import parameters_of
from precede.models.load import kept_layers, load
from precede.plan import Node, Plan
from precede.rewards import hedge
from precede.sampling import prompt_ids
from precede.settings.recipe import Recipe, read_recipe
from precede.store import Store
from precede.worlds.text.world import TextWorld
from test_lm_tiny import logps, tiny_folder


def recipe_of(teacher: Path, **changes: Any) -> Recipe:
    """A recipe of the tiny teacher; `align__beta=0.3` changes the setting `beta` of `align`, None takes one away."""
    recipe: dict[str, Any] = {
        "recipe": "tiny-text",
        "world": {"kind": "text", "prompt": "The", "max_new_tokens": 6, "reward": "hedge", "device": "cpu"},
        "evaluation": {"samples_per_prompt": 40},
        "teacher": {"model": str(teacher)},
        "student": {"keep_layers": 3},
        "align": {
            "kind": "align",
            "method": "dpo",
            "samples_per_prompt": 160,
            "trainer": {"per_device_train_batch_size": 8, "learning_rate": 2e-3, "max_steps": 8},
        },
        "distill": {
            "kind": "distill",
            "samples_per_prompt": 64,
            "temperature": 0.7,
            "trainer": {"per_device_train_batch_size": 8, "learning_rate": 2e-3, "max_steps": 16},
        },
        "orders": ["align > distill", "distill > align"],
        "seeds": 1,
    }
    for name, value in changes.items():
        *blocks, setting = name.split("__")
        place = recipe
        for block in blocks:
            place = place[block]
        place[setting] = value
        if value is None:
            del place[setting]
    return read_recipe(recipe)


@dataclass
class Finished:
    """A plan that was run; `stages` are the models of its orders by lineage, such as `teacher > distill`."""

    store: Store
    plan: Plan
    world: TextWorld

    @property
    def stages(self) -> dict[str, Node]:
        models = [model for model in self.plan.models if model.name != "student" and model.variant == 0]  # no control
        return {" > ".join(ancestor.name for ancestor in model.lineage()): model for model in models}

    def model(self, lineage: str) -> Path:
        """The Hugging Face folder of a model."""
        return Path(self.world.folder(self.stages[lineage], self.store))

    def metrics(self, lineage: str) -> dict[str, Any]:
        """What training says of a model, and what was measured of it."""
        model = self.stages[lineage]
        own = {} if model.kind == "given" else self.store.metrics(model)
        return {name: values[0] for name, values in (own | self.store.metrics(self.plan.measures[model.key])).items()}

    def measured(self, lineage: str, name: str) -> Any:
        """A file of a model's measurement."""
        return json.loads((self.store.folder(self.plan.measures[self.stages[lineage].key]) / name).read_text())

    def log(self, lineage: str) -> Any:
        return json.loads((self.store.folder(self.stages[lineage]) / "training.json").read_text())

    def truth(self, lineage: str) -> dict[str, list[list[int]]]:
        """The truth's samples that a model is measured on: those of the one prompt."""
        node = self.plan.measures[self.stages[lineage].key].edges["truth"]
        kept = json.loads((self.store.folder(node) / "truth.json").read_text())
        assert {len(part) for part in kept.values()} == {1}
        return {name: part[0] for name, part in kept.items()}


def planned(recipe: Recipe, root: Path) -> tuple[TextWorld, Plan]:
    (world, *_), plan, _ = prepare(recipe, root)
    assert isinstance(world, TextWorld)
    return world, plan


def run_all(recipe: Recipe, store: Store) -> Finished:
    """Run every node that is not there."""
    world, plan = planned(recipe, store.root)
    for node in plan.nodes:
        if node.kind != "given" and node.variant == 0 and not store.has(node):
            world.run([node], store)
    return Finished(store, plan, world)


@dataclass
class Compared(Finished):
    comparison: Comparison
    teacher: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    root = tmp_path_factory.mktemp("text")
    teacher = tiny_folder(root / "model", layers=5, seed=4)  # hedges in 17 % of completions
    recipe = recipe_of(teacher)
    comparison = compare(recipe, out=root / "out", store=root / "store", workers=1)
    world, plan = planned(recipe, root / "store")
    return Compared(Store(root / "store"), plan, world, comparison, teacher)


ALL = (
    "teacher",
    "teacher > align",
    "teacher > align > distill",
    "teacher > distill",
    "teacher > distill > align",
)


def test_stages(finished: Compared) -> None:
    assert set(finished.stages) == set(ALL)
    assert (finished.comparison.stages_run, finished.comparison.stages_reused) == (5, 0)
    for node in finished.plan.nodes:
        assert node.kind == "given" or finished.store.damage(node) is None, node.label()
    assert finished.comparison.report.is_file()
    assert "says nothing about other models or prompts" in finished.comparison.report.read_text()


def test_completions_of_one_prompt_stand_side_by_side(finished: Compared) -> None:
    """The first five of each final model as they were drawn, whatever they are worth."""
    examples = finished.comparison.results["examples"]
    assert len(examples) == 5
    for side, order in (("a", "align > distill"), ("b", "distill > align")):
        drawn = finished.measured(f"teacher > {order}", "completions.json")["completions"][:5]
        assert [one[f"completion_{side}"] for one in examples] == [one["text"] for one in drawn]
        assert [one[f"reward_{side}"] for one in examples] == [one["reward"] for one in drawn]
        assert {one[side] for one in examples} == {order}
    means = [finished.metrics(f"teacher > {order}")["reward"] for order in ("align > distill", "distill > align")]
    assert {one["difference"] for one in examples} == {means[0] - means[1]}
    page = finished.comparison.report.read_text("utf-8")
    table = page[page.index('id="table-examples"') :]
    for one in examples:
        assert one["completion_a"] in html.unescape(table)
    assert "in the order they were drawn" in table
    assert "Prompt: The." in table


@pytest.mark.parametrize("lineage", ALL)
def test_every_stage_is_a_hugging_face_folder(finished: Compared, lineage: str) -> None:
    folder = finished.model(lineage)
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


def test_folders_name_no_place_of_this_machine(finished: Compared) -> None:
    for lineage in ALL:
        for file in finished.model(lineage).glob("*.json"):
            assert str(finished.teacher.parent) not in file.read_text(), file.name


def test_the_teacher_is_measured_where_it_lies(finished: Compared) -> None:
    """A model that is given is not copied: nothing in the store has its weights, and its folder is as it was."""
    given = finished.teacher / "model.safetensors"
    assert finished.model("teacher") == finished.teacher
    assert not finished.store.folder(finished.stages["teacher"]).exists()
    kept = [path.read_bytes() for path in finished.store.root.rglob("*.safetensors")]
    assert len(kept) == 6  # the new student, four stages, and the control
    assert given.read_bytes() not in kept
    again = tiny_folder(finished.store.root.parent / "again", layers=5, seed=4)
    assert given.read_bytes() == (again / "model.safetensors").read_bytes()


def test_metrics_are_defined_where_they_should_be(finished: Compared) -> None:
    every = set(finished.metrics("teacher"))
    for lineage in ALL:
        metrics = finished.metrics(lineage)
        optimum = {"reference_target_mass", "optimal_target_mass"} if lineage.endswith("align") else set()
        facts = set() if lineage == "teacher" else {"kl_at_start", "pairs"}
        assert set(metrics) == every | optimum | facts
        assert (metrics["kl_to_reference_per_token"] is not None) == lineage.endswith("align")
        for name in ("kl_at_start", "pairs"):
            assert (metrics.get(name) is not None) == lineage.endswith("align")
        decoded = {name for name, value in metrics.items() if name.startswith("decoded_") and value is not None}
        assert bool(decoded) == ("distill" in lineage)
        assert (metrics["kl_to_reference"] is not None) == lineage.endswith("align")
        assert 0 < metrics["target_mass"] < 1
        assert metrics["target_precision"] is None
        assert metrics["target_precision_on_target"] is not None
        assert metrics["reward"] == metrics["target_mass"]
        assert metrics["kl_to_truth"] == pytest.approx(-metrics["entropy"] - metrics["precision"], abs=1e-4)


def test_the_teacher_is_the_truth(finished: Compared) -> None:
    metrics = finished.metrics("teacher")
    assert metrics["kl_to_truth"] == 0
    assert metrics["precision"] == -metrics["entropy"]
    assert metrics["recall"] == pytest.approx(metrics["precision"], abs=4)
    assert finished.metrics("teacher > align")["kl_to_truth"] == finished.metrics("teacher > align")["kl_to_reference"]


def test_recall_by_hand(finished: Compared) -> None:
    truth = finished.truth("teacher > distill > align")
    assert truth == finished.truth("teacher")
    model, tokenizer = load(finished.model("teacher > distill > align"))
    prompt, rows = prompt_ids(tokenizer, "The"), truth["truth"]
    found = logps(model, prompt, rows)
    metrics = finished.metrics("teacher > distill > align")
    assert metrics["recall"] == pytest.approx(found.mean().item(), abs=1e-4)
    hits = [index for index, row in enumerate(rows) if hedge(tokenizer.decode(row))]
    assert truth["target"] == [rows[index] for index in hits] != []
    assert metrics["target_recall"] == pytest.approx(found[hits].mean().item(), abs=1e-4)
    cooler = logps(model, prompt, rows, 0.7)
    assert metrics["decoded_recall"] == pytest.approx(cooler.mean().item(), abs=1e-4)


def test_completions_are_what_was_measured(finished: Compared) -> None:
    for lineage in ALL:
        for name, shown in finished.measured(lineage, "completions.json").items():
            mass = finished.metrics(lineage)[name.removesuffix("completions") + "target_mass"]
            assert len(shown) == 40
            assert sum(hedge(row["text"]) for row in shown) / 40 == mass
            assert [hedge(row["text"]) for row in shown] == [row["reward"] for row in shown]


def test_alignment_raises_the_reward(finished: Compared) -> None:
    assert finished.metrics("teacher > align")["reward"] > finished.metrics("teacher")["reward"]
    for lineage in ("teacher > align", "teacher > distill > align"):
        log = finished.log(lineage)
        assert log["kl_at_start"] == pytest.approx(0, abs=1e-5)
        assert log["log"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert log["log"][-1]["rewards/margins"] > 0
        assert {"logps/chosen", "logps/rejected"} <= set(log["log"][0])
        assert len(log["log"]) == log["steps"] == 8
        assert 8 <= log["pairs"] <= 80
        assert log["pairs"] == finished.metrics(lineage)["pairs"]


def test_the_student_starts_from_layers_of_the_root(finished: Compared) -> None:
    """Undo nothing: with one tiny step the student is still next to the cut teacher, in both orders."""
    changes = {"distill__trainer__learning_rate": 1e-9, "align__trainer__learning_rate": 3e-2}
    made = run_all(recipe_of(finished.teacher, **changes), finished.store)
    given = load_file(finished.teacher / "model.safetensors")
    kept = kept_layers(5, 3)
    for lineage in ("teacher > distill", "teacher > align > distill"):
        student = load_file(made.model(lineage) / "model.safetensors")
        for place, layer in enumerate(kept):
            name = "model.layers.{}.mlp.up_proj.weight"
            assert torch.allclose(student[name.format(place)], given[name.format(layer)], atol=1e-5)


def test_teacher_as_reference(finished: Compared) -> None:
    """K→A anchored to the model before distillation: pool, KL and loss are taken against it."""
    changes = {"align__reference": "teacher", "align__trainer__learning_rate": 1e-9}
    made = run_all(recipe_of(finished.teacher, **changes), finished.store)
    stage, lineage = made.stages["teacher > distill > align"], "teacher > distill > align"
    assert stage.config["reference"] == "teacher"
    assert stage.edges["reference"] == made.stages["teacher"]
    assert made.stages["teacher > align"].config["reference"] == "self"
    log, metrics = made.log(lineage), made.metrics(lineage)
    assert log["kl_at_start"] > 0.1
    assert metrics["kl_at_start"] == log["kl_at_start"]
    assert abs(log["log"][0]["loss"] - math.log(2)) > 1e-4
    assert metrics["kl_to_reference"] == metrics["kl_to_truth"]
    assert metrics["kl_to_reference"] > 0.05


def test_the_same_numbers_again(finished: Compared, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    torch.manual_seed(123)
    again = run_all(recipe_of(finished.teacher), store)
    assert again.plan.nodes == finished.plan.nodes
    for node in again.plan.nodes:
        if node.kind != "given" and node.variant == 0:
            first, second = (
                (shelf.folder(node) / "SHA256SUMS").read_text().splitlines() for shelf in (finished.store, store)
            )
            differing = {a.split("  ")[1] for a, b in zip(first, second, strict=True) if a != b}
            assert differing <= {"manifest.json"}, node.label()  # it has the wall time


def test_both_orders_draw_from_the_same_streams(finished: Compared) -> None:
    """τ and the stage's name being equal, an untrained alignment changes nothing that distillation draws."""
    made = run_all(recipe_of(finished.teacher, align__trainer__learning_rate=1e-12), finished.store)
    a, b = (load_file(made.model(f"teacher > {end}") / "model.safetensors") for end in ("distill", "align > distill"))
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


def test_cost_by_hand(finished: Compared) -> None:
    sizes = {keep: parameters_of(str(finished.teacher), keep) for keep in (None, 3)}
    for lineage in ALL[1:]:
        cost = finished.store.cost(finished.stages[lineage])
        policy = sizes[3 if "distill" in lineage else None]
        sampled = sizes[3 if lineage == "teacher > distill > align" else None]
        expected = 2 * sampled * cost["sampled_tokens"] + 2 * policy * cost["scored_tokens"]
        assert cost["flops"] == expected + 6 * policy * cost["trained_tokens"]
        if lineage.endswith("distill"):  # 16 steps of 8 are two passes over 64 completions
            assert 64 * 2 <= cost["sampled_tokens"] <= 64 * 7
            assert cost["trained_tokens"] == 2 * cost["sampled_tokens"]
            assert cost["scored_tokens"] == 0
        else:
            pairs = finished.log(lineage)["pairs"]
            rows = 2 * sum(min(8, pairs - 8 * (step % -(-pairs // 8))) for step in range(8))
            assert rows * 2 <= cost["trained_tokens"] == cost["scored_tokens"] <= rows * 7
            assert 160 * 2 <= cost["sampled_tokens"] <= 160 * 7


@pytest.mark.parametrize("lineage", ALL[1:])
def test_estimate_bounds_the_cost(finished: Compared, lineage: str) -> None:
    stage = finished.stages[lineage]
    expected = finished.world.estimate(stage)
    cost = finished.store.cost(stage)
    for name in ("flops", "sampled_tokens", "scored_tokens", "trained_tokens"):
        assert 0.5 * getattr(expected, name) <= cost[name] <= getattr(expected, name)
    assert cost["wall_seconds"] > 0
    assert cost["peak_memory_bytes"] > 1e6


def test_estimate_of_a_measurement(finished: Compared) -> None:
    """40 completions, as if of full length, at each temperature: sampled and scored by the model, and by the truth."""
    teacher, student = parameters_of(str(finished.teacher)), parameters_of(str(finished.teacher), 3)
    row = finished.world.estimate(finished.plan.measures[finished.stages["teacher"].key]).sampled_tokens / 40
    assert 7 <= row <= 8  # 6 tokens behind a prompt of one
    for lineage in ALL:
        expected = finished.world.estimate(finished.plan.measures[finished.stages[lineage].key])
        own, decodings = (student, 2) if "distill" in lineage else (teacher, 1)
        tokens = 40 * row
        assert expected.sampled_tokens == decodings * tokens
        assert expected.scored_tokens == (2 * decodings + 1) * tokens  # its truth's samples, its own, and by the truth
        flops = 2 * own * (2 * decodings + 1) * tokens + 2 * teacher * decodings * tokens
        assert expected.flops == pytest.approx(flops)
