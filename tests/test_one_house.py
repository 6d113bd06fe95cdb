"""What compare and build share: one recipe, one plan, one store; keys are content, references are edges."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from precede.jobs.build import build
from precede.jobs.compare import compare, prepare
from precede.models.load import save
from precede.plan import Node, Plan
from precede.settings.recipe import read_recipe
from precede.worlds.text.rows import Inputs
from test_lm_tiny import WORDS, stopping_model, tiny_folder, tiny_model, tiny_tokenizer

TRAINER = {"learning_rate": 2e-3, "per_device_train_batch_size": 8, "max_steps": 4}
REWARD = """
def answered(prompts, completions, answer, **_):
    return [float(word.startswith("w")) for word, _ in zip(answer, completions, strict=True)]
"""


def one_prompt(teacher: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of one prompt in both orders; `align__beta=0.3` changes the setting `beta` of `align`."""
    raw: dict[str, Any] = {
        "recipe": "tiny",
        "world": {"kind": "text", "prompt": "<s> The", "max_new_tokens": 6, "reward": "hedge", "device": "cpu"},
        "teacher": str(teacher),
        "student": {"keep_layers": 3},
        "evaluation": {"samples_per_prompt": 20},
        "align": {"pairs": "on_policy", "samples_per_prompt": 40, "trainer": TRAINER},
        "distill": {"samples_per_prompt": 16, "temperature": 0.7, "trainer": TRAINER},
        "orders": ["align > distill", "distill > align"],
        "seeds": 2,
    }
    return changed(raw, changes)


def many_rows(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of the teacher and the pairs in `folder`."""
    raw: dict[str, Any] = {
        "teacher": str(folder / "teacher"),
        "student": {"keep_layers": 3},
        "data": {"source": str(folder / "pairs.jsonl"), "held_out": 0.2},
        "world": {"kind": "text", "device": "cpu"},
        "align": {"trainer": TRAINER},
        "distill": {"trainer": TRAINER},
        "skip": ["audit"],
    }
    return changed(raw, changes)


def changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        block, _, setting = name.partition("__")
        if setting:
            raw.setdefault(block, {})[setting] = value
        else:
            raw[block] = value
    return raw


def plan_of(raw: dict[str, Any], tmp_path: Path, **options: Any) -> Plan:
    return prepare(read_recipe(raw), tmp_path, **options)[1]


def keys(plan: Plan, *kinds: str) -> set[str]:
    return {node.key for node in plan.nodes if node.kind in kinds}


def by_lineage(plan: Plan) -> dict[str, Node]:
    return {" > ".join(one.name for one in node.lineage()): node for node in plan.models}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`teacher/`, `pairs.jsonl` with a column `answer`, and a reward that reads it."""
    folder = tmp_path_factory.mktemp("rows")
    save(stopping_model(), tiny_tokenizer(), folder / "teacher")
    draw, words = random.Random(0), WORDS[3:]
    with (folder / "pairs.jsonl").open("w") as file:
        for _ in range(60):
            prompt = "<s> The " + " ".join(draw.choices(words, k=2))
            chosen, rejected = (" " + " ".join(draw.choices(part, k=4)) for part in (words[:11], words[11:]))
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "answer": draw.choice(words)}
            file.write(json.dumps(row) + "\n")
    (folder / "columns_reward.py").write_text(REWARD)
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


# ------------------------------------------------------------------------------------------ compare, then build


def test_what_was_compared_is_built_as_it_stands(teacher: Path, tmp_path: Path) -> None:
    """The same recipe, the same store: the build trains nothing, and ships the very weights that were compared."""
    recipe = read_recipe(one_prompt(teacher))
    found = compare(recipe, out=tmp_path / "compared", store=tmp_path / "store", workers=1)
    assert (found.stages_run, found.stages_reused) == (10, 0)  # two seeds of four stages and the control
    for order in ("align > distill", "distill > align"):
        made = build(recipe, tmp_path / order.replace(" > ", "-"), order=order, seed=1, store=tmp_path / "store")
        assert (made.stages_run, made.stages_reused) == (0, 2)
        (compared,) = [
            record
            for record in found.results["stages"]
            if record["lineage"] == ["teacher", *order.split(" > ")]
            and record["seeds"] == [1]
            and record["variant"] == 0
        ]
        shipped, kept = weights(made.folder), weights(Path(str(compared["folder"])) / "model")
        assert shipped.keys() == kept.keys()
        assert all(torch.equal(shipped[name], kept[name]) for name in kept)
        last = order.split(" > ")[-1]
        assert made.report["models"][last]["target_mass"][0] == compared["metrics"]["target_mass"]


def test_one_new_student_serves_both_orders_and_all_seeds(teacher: Path, tmp_path: Path) -> None:
    plan = plan_of(one_prompt(teacher), tmp_path)
    students = {node.edges["student"].key for node in plan.nodes if node.kind == "distill"}
    assert len(students) == 1
    assert sum(node.kind == "given" for node in plan.nodes) == 1


# ------------------------------------------------------------------------------------------------ keys are content


def test_other_weights_under_the_same_path_are_other_models(tmp_path: Path) -> None:
    path = tiny_folder(tmp_path / "teacher", seed=0)
    raw = one_prompt(path)
    first = plan_of(raw, tmp_path)
    assert keys(first, "align", "distill") == keys(plan_of(raw, tmp_path), "align", "distill")
    save(tiny_model(seed=1), tiny_tokenizer(), path)
    second = plan_of(raw, tmp_path)
    assert not {node.key for node in first.nodes} & {node.key for node in second.nodes}


def test_the_same_weights_under_another_path_are_the_same_model(tmp_path: Path) -> None:
    plans = [plan_of(one_prompt(tiny_folder(tmp_path / name)), tmp_path) for name in ("one", "other")]
    assert [node.key for node in plans[0].nodes] == [node.key for node in plans[1].nodes]


@pytest.mark.parametrize("what", ["student", "truth"])
def test_students_and_truths_are_known_by_content(teacher: Path, tmp_path: Path, what: str) -> None:
    if what == "student":
        place = tiny_folder(tmp_path / "student", layers=2)
        raw = one_prompt(teacher, student={"model": str(place)})
    else:
        place = tmp_path / "truth.jsonl"
        place.write_text("".join(json.dumps({"text": f"<s> The {word} is ."}) + "\n" for word in WORDS[3:] * 4))
        raw = one_prompt(teacher, world__truth=str(place), evaluation__samples_per_prompt=8)
    kinds = ("distill",) if what == "student" else ("truth", "measure")
    before = keys(plan_of(raw, tmp_path), *kinds)
    if what == "student":
        tiny_folder(place, layers=2, seed=5)
    else:
        place.write_text(place.read_text() + json.dumps({"text": "<s> The sea is blue ."}) + "\n")
    assert not before & keys(plan_of(raw, tmp_path), *kinds)


def test_settings_that_only_change_measuring_change_no_key_of_training(teacher: Path, tmp_path: Path) -> None:
    before = plan_of(one_prompt(teacher), tmp_path)
    for change in ({"evaluation__samples_per_prompt": 21}, {"world__target_reward": 0.5}):
        after = plan_of(one_prompt(teacher, **change), tmp_path)
        assert keys(before, "align", "distill", "student") == keys(after, "align", "distill", "student")
        assert not keys(before, "measure") & keys(after, "measure")


def test_a_changed_reward_is_trained_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_own_reward.py"
    file.write_text(REWARD)
    raw = many_rows(folder, world__reward=f"{file}:answered", align__pairs="on_policy")
    before = keys(plan_of(raw, tmp_path), "align")
    file.write_text(REWARD + "\n# changed\n")
    assert not before & keys(plan_of(raw, tmp_path), "align")


def test_a_reward_that_only_measures_trains_nothing_anew(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text(REWARD)
    plain = plan_of(many_rows(folder), tmp_path)
    rewarded = plan_of(many_rows(folder, world__reward=f"{tmp_path / 'my_reward.py'}:answered"), tmp_path)
    assert keys(plain, "align", "distill") == keys(rewarded, "align", "distill")
    assert not keys(plain, "measure") & keys(rewarded, "measure")


def test_a_truth_that_is_trained_on_is_known_by_content(teacher: Path, tmp_path: Path) -> None:
    aligned = []
    for name, seed in (("one", 5), ("two", 6), ("same", 5)):
        raw = one_prompt(teacher, world__truth=str(tiny_folder(tmp_path / name, seed=seed)), align__pairs="off_policy")
        aligned.append(keys(plan_of(raw, tmp_path), "align"))
    assert aligned[0] == aligned[2]
    assert not aligned[0] & aligned[1]


def test_the_rows_that_all_models_can_use_are_in_the_keys(folder: Path, tmp_path: Path) -> None:
    """A student that reads fewer tokens leaves rows out, for its teacher's alignment too."""
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    for row in rows[::4]:
        row["chosen"] += " is blue" * 3
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plans = []
    for tokens in (64, 12):
        student = tiny_folder(tmp_path / f"student-{tokens}", layers=2)
        config = json.loads((student / "config.json").read_text())
        (student / "config.json").write_text(json.dumps(config | {"max_position_embeddings": tokens}))
        raw = many_rows(folder, data__source=str(tmp_path / "pairs.jsonl"), student={"model": str(student)})
        plans.append(by_lineage(plan_of(raw, tmp_path))["teacher > align"].key)
    assert plans[0] != plans[1]


def test_one_model_is_not_measured_in_two_ways(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"measures teacher .* in two ways and trains it in one .*target_reward"):
        plan_of(one_prompt(teacher, sweep={"world.target_reward": [0.5]}), tmp_path)


def test_data_are_hashed_as_they_are_read(folder: Path, tmp_path: Path) -> None:
    """An edit after the rows were read does not make them other rows: the key is that of what was read."""
    source = tmp_path / "pairs.jsonl"
    source.write_bytes((folder / "pairs.jsonl").read_bytes())
    raw = many_rows(folder, data__source=str(source))
    world = read_recipe(raw).variants[0].world
    inputs = Inputs(world, [str(folder / "teacher")])
    rows = inputs.data[str(folder / "teacher")]
    source.write_text("not what was read\n")
    assert inputs.data[str(folder / "teacher")].content == rows.content
    again = Inputs(
        {**world, "data": {**world["data"], "source": str(folder / "pairs.jsonl")}}, [str(folder / "teacher")]
    )
    assert again.data[str(folder / "teacher")].content == rows.content


# --------------------------------------------------------------------------------------------- references are edges


def test_an_audit_looks_at_the_model_that_its_subject_was_distilled_from(folder: Path, tmp_path: Path) -> None:
    raw = many_rows(folder, orders=["align > distill > polish"], polish={"kind": "align", "trainer": TRAINER}, skip=[])
    plan = plan_of(raw, tmp_path, audits=True)
    models = by_lineage(plan)
    audit = plan.audits[models["teacher > align > distill > polish"].key]
    assert audit.edges["model"] == models["teacher > align > distill"]
    assert audit.edges["teacher"] == models["teacher > align"]
    first = plan.audits[models["teacher > align"].key]
    assert "teacher" not in first.edges


def test_the_teacher_as_reference_is_the_model_before_distillation(folder: Path, tmp_path: Path) -> None:
    raw = many_rows(folder, orders=["sft > align"], align__reference="teacher", student=None)
    models = by_lineage(plan_of({k: v for k, v in raw.items() if v is not None}, tmp_path))
    assert models["teacher > sft > align"].edges["reference"] == models["teacher > sft"]
    late = by_lineage(
        plan_of(many_rows(folder, orders=["sft > distill > align"], align__reference="teacher"), tmp_path)
    )
    assert late["teacher > sft > distill > align"].edges["reference"] == late["teacher > sft"]


def test_a_student_that_is_aligned_alone_knows_its_teacher(folder: Path, tmp_path: Path) -> None:
    student = tiny_folder(tmp_path / "student", layers=2)
    raw = many_rows(folder, orders=["align"], align__reference="teacher", student={"model": str(student)})
    models = by_lineage(plan_of(raw, tmp_path))
    align = models["student > align"]
    assert align.edges["parent"].name == "student"
    assert align.edges["reference"].name == "teacher"


# ------------------------------------------------------------------------------------------------------- stages


def built(raw: dict[str, Any], tmp_path: Path, name: str, **options: Any) -> Path:
    return build(read_recipe(raw), tmp_path / name, store=tmp_path / "store", **options).folder


def test_two_alignments_of_one_order_share_no_draws(teacher: Path, tmp_path: Path) -> None:
    """Streams carry the stage's name: the same alignment under another name samples other couples."""
    found = []
    for name in ("align", "polish"):
        raw = one_prompt(teacher, orders=[name], seeds=1)
        raw[name] = {"kind": "align", **raw["align"]}
        found.append(weights(built({k: v for k, v in raw.items() if k != "student"}, tmp_path, name)))
    assert any(not torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("method", ["dpo", "rloo"])
def test_columns_of_the_data_reach_the_reward(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    raw = many_rows(folder, orders=["align"], world__reward="columns_reward:answered", align__method=method)
    raw["align"] |= {"pairs": "on_policy", "samples_per_prompt": 8} if method == "dpo" else {}
    raw["evaluation"] = {"samples_per_prompt": 4}
    del raw["student"]
    report = json.loads((built(raw, tmp_path, "made") / "build.json").read_text("utf-8"))
    assert 0 < report["models"]["align"]["reward"][0] < 1


def test_reinforcement_finds_its_reference_under_a_home_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL loads the reference by itself, from what the recipe calls `~/teacher`."""
    monkeypatch.setenv("HOME", str(folder))
    raw = many_rows(folder, teacher="~/teacher", orders=["align"], align__method="rloo", world__reward="question")
    del raw["student"]
    report = json.loads((built(raw, tmp_path, "made") / "build.json").read_text("utf-8"))
    assert report["stages"][0]["first"]["kl"] == pytest.approx(0.0, abs=1e-5)


def test_without_an_informative_pair_the_model_stays_or_the_run_stops(folder: Path, tmp_path: Path) -> None:
    """Nothing that the tiny teacher writes has a question mark: every couple is a tie."""
    raw = many_rows(folder, orders=["align"], world__reward="question", align__pairs="on_policy")
    del raw["student"]
    made = built(raw, tmp_path, "kept")
    before, after = weights(folder / "teacher"), weights(made)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((made / "build.json").read_text("utf-8"))["stages"][0]["pairs"] == 0
    with pytest.raises(Exception, match=r"none of the \d+ couples of samples differs in reward.*sampling trap"):
        built(changed(raw, {"align__no_pairs": "stop"}), tmp_path, "stopped")


def test_weights_are_written_once_into_the_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage's model goes into the store as it was trained; the shipped folder is the one copy of the last."""
    from transformers import PreTrainedModel

    written: list[str] = []
    original = PreTrainedModel.save_pretrained

    def noted(self: Any, path: Any, *given: Any, **more: Any) -> Any:
        written.append(str(path))
        return original(self, path, *given, **more)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", noted)
    raw = many_rows(folder, align__trainer=TRAINER | {"save_strategy": "no"})
    raw["distill"] = {"trainer": TRAINER | {"save_strategy": "no"}}
    built(raw, tmp_path, "made")
    assert len(written) == 3  # the new student, the aligned teacher, the student
    assert not list((tmp_path / "store" / "checkpoints").iterdir())
