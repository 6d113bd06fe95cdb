"""`precede build` end to end, with a tiny teacher and the real trainers: orders, methods, adapters, what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from build_material import command, environment, losses, make_inputs, recipe, run, spoken
from precede.engine import StageFailed
from precede.jobs.build import AuditRefused, Built, build
from precede.models.load import load, remove_layers
from precede.store import CHECKSUMS
from test_lm_tiny import PROMPT

FAST = {"learning_rate": 3e-3}
JUDGED = {"world__reward": "toy_reward:blue", "world__target_reward": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    make_inputs(folder)
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture(scope="module")
def aligned_first(folder: Path) -> Built:
    return run(folder, "model", align__trainer=FAST | {"num_train_epochs": 6}, distill__trainer=FAST)


def weights(path: Path | str) -> torch.Tensor:
    model, _ = load(path)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_result_is_a_plain_model_with_its_evidence(aligned_first: Built, folder: Path) -> None:
    out = folder / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.num_hidden_layers == 3
    ids = torch.tensor([PROMPT])
    assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape[1] > 2
    assert tokenizer.eos_token == "</s>"
    assert not list(out.rglob("*.bin"))
    assert not list(out.rglob("*.pt"))
    report = json.loads((out / "build.json").read_text("utf-8"))
    assert list(report["models"]) == ["start", "align", "distill"]
    assert report["data"]["training_pairs"] + report["data"]["held_out_pairs"] == 80
    assert report["stages"][0]["audit"]["verdict"] in ("ready", "risky", "trapped")
    for stage in report["stages"]:
        assert stage["cost"]["trained_tokens"] > 0
        assert stage["cost"]["wall_seconds"] > 0
    for name in ("align/audit.html", "align/training.json", "distill/measures.parquet", "start/completions.json"):
        assert (out / "evidence" / name).is_file(), name


def test_alignment_does_what_dpo_does(aligned_first: Built) -> None:
    """Six epochs of DPO on words that the chosen have and the rejected have not: held-out pairs are told apart."""
    models = aligned_first.report["models"]
    assert models["align"]["ranking_accuracy"][0] > models["start"]["ranking_accuracy"][0] + 0.2
    share, low, high = aligned_first.report["retained"]["preference_margin"]
    assert low < share < high
    margins = {label: models[label]["chosen_logp"][0] - models[label]["rejected_logp"][0] for label in models}
    gain = margins["align"] - margins["start"]
    assert share == pytest.approx((margins["distill"] - margins["start"]) / gain, rel=1e-6)


def test_measures_are_against_the_start(aligned_first: Built) -> None:
    """The first model is at no distance from itself and gives its own samples most; a later one falls short of that."""
    models = aligned_first.report["models"]
    assert models["start"]["kl_to_truth"] == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
    assert models["align"]["kl_to_truth"][0] > 0.05
    assert models["align"]["recall"][0] < models["start"]["recall"][0] - 0.05
    truth, entropy = models["start"]["recall"], models["start"]["entropy"]
    assert truth[1] < -entropy[1]  # two estimates of one number, from samples of two seeds: their intervals meet
    assert -entropy[2] < truth[2]


def test_the_same_again_takes_everything_from_the_store(aligned_first: Built, folder: Path) -> None:
    again = run(folder, "again", align__trainer=FAST | {"num_train_epochs": 6}, distill__trainer=FAST)
    assert (again.stages_run, again.stages_reused) == (0, 2)
    assert torch.equal(weights(folder / "model"), weights(folder / "again"))


def test_measuring_otherwise_trains_nothing(aligned_first: Built, folder: Path) -> None:
    settings = {"align__trainer": FAST | {"num_train_epochs": 6}, "distill__trainer": FAST, "evaluation__pairs": 4}
    again = run(folder, "fewer", evaluation__samples_per_prompt=3, **settings)
    assert (again.stages_run, again.stages_reused) == (0, 2)
    assert again.report["data"]["held_out_pairs"] == 4


def test_changed_data_in_the_same_file_is_noticed(aligned_first: Built, tmp_path: Path) -> None:
    make_inputs(tmp_path, rows=60)
    first = run(tmp_path, "first", skip=["audit"])
    make_inputs(tmp_path, rows=61)
    second = run(tmp_path, "second", skip=["audit"])
    assert first.stages_run == second.stages_run == 2


def test_a_damaged_stage_is_named_and_made_again(folder: Path) -> None:
    settings: dict[str, Any] = {"orders": "align", "student": None, "skip": ["audit"], "seeds": [5]}
    run(folder, "whole", **settings)
    key = json.loads((folder / "whole" / "build.json").read_text())["stages"][0]["key"]
    victim = folder / "store" / key[:2] / key / "model" / "model.safetensors"
    assert (victim.parents[1] / CHECKSUMS).is_file()
    data = bytearray(victim.read_bytes())
    data[-5] ^= 0x10
    victim.write_bytes(data)
    heard: list[str] = []
    made = build(recipe(folder, **settings), folder / "mended", store=folder / "store", tell=heard.append)
    assert made.stages_run == 1
    assert any("model.safetensors does not match its checksum; it is made again" in line for line in heard)
    assert torch.equal(weights(folder / "whole"), weights(folder / "mended"))


def test_the_other_order_says_what_it_expects_to_lose(folder: Path) -> None:
    heard: list[str] = []
    asked = recipe(folder, orders="distill > align", distill__temperature=0.5, **JUDGED)
    made = build(asked, folder / "other", store=folder / "store", tell=heard.append)
    said = " ".join(heard)
    assert "align > distill would end 10.0 nats higher in the log-odds of the desirable (Δ/β = 10.0, τ = 0.5)" in said
    assert "samples that the audit drew of the teacher are desirable" in said
    audits = {stage["name"]: stage["audit"] for stage in made.report["stages"]}
    assert "recall_gap" in audits["align"]["numbers"]
    assert "recall_gap" not in audits["distill"]["numbers"]
    assert list(made.report["models"]) == ["start", "distill", "align"]


@pytest.mark.parametrize("workers", [1, 2])
def test_fail_on_stops_before_training(workers: int, folder: Path) -> None:
    store = folder / f"refused-{workers}"
    with pytest.raises(AuditRefused, match="the audit before align says"):
        build(recipe(folder, fail_on="risky", seeds=[9]), folder / "refused", store=store, workers=workers)
    assert not (folder / "refused").exists()
    assert kinds_in(store) >= {"audit", "measure"}
    assert not kinds_in(store) & {"align", "distill"}


def kinds_in(store: Path) -> set[str]:
    """Kinds of the finished nodes of a store."""
    return {json.loads(file.read_text("utf-8"))["entry"]["kind"] for file in store.glob("*/*/manifest.json")}


def test_several_workers_build_the_same_and_each_node_is_heard_of_once(folder: Path) -> None:
    """What one process makes, two make, each on half of the threads; what is there is not heard of as finished again."""
    asked, heard = recipe(folder, align__trainer=FAST, distill__trainer=FAST, skip=["audit"]), []
    counts: list[tuple[int, int]] = []
    for store, workers in (("here", 1), ("pool", 2), ("pool", 2)):
        build(
            asked,
            folder / f"{store}-{len(counts)}",
            store=folder / store,
            workers=workers,
            started=lambda total, there: counts.append((total, there)),
            finished=heard.append,
        )
    total = counts[0][0]
    assert counts == [(total, 0), (total, 0), (total, total)]
    assert len(heard) == 2 * total
    assert {node.key for node in heard[:total]} == {node.key for node in heard[total:]}
    torch.testing.assert_close(weights(folder / "here-0"), weights(folder / "pool-1"), rtol=0, atol=1e-3)
    assert torch.equal(weights(folder / "pool-1"), weights(folder / "pool-2"))


@pytest.mark.slow
def test_what_was_compared_is_built_from_the_command_line(folder: Path) -> None:
    """One file for both verbs, two seeds, no reward; the build of one of its arms trains nothing."""
    raw = recipe(folder, orders=["align > distill", "distill > align"], seeds=2, skip=["audit"]).resolved
    (folder / "both.yaml").write_text(yaml.safe_dump(raw), "utf-8")
    words = [sys.executable, "-m", "precede"]
    asked = {"cwd": folder, "env": environment(folder), "capture_output": True, "text": True}
    swept = ["--set", "sweep={align.beta: [0.1, 0.5]}"]
    done = subprocess.run([*words, "compare", "both.yaml", "--store", "shared", *swept], **asked)
    assert done.returncode == 0, spoken(done)
    assert "margin" in done.stdout
    chosen = ["--order", "distill > align", "--seed", "1", "--out", "shipped", "--store", "shared"]
    done = subprocess.run([*words, "build", "both.yaml", *chosen], **asked)
    assert done.returncode == 0, spoken(done)
    assert "0 stages run, 2 taken from the store" in done.stdout
    report = json.loads((folder / "shipped" / "build.json").read_text("utf-8"))
    assert (report["order"], report["seed"]) == ("distill > align", 1)


def test_without_an_order_to_take_several_are_refused(folder: Path) -> None:
    several = {"orders": ["distill > align", "sft > align > distill"]}
    with pytest.raises(ValueError, match=r"has several orders .*; name one with --order"):
        run(folder, "which", **several)


def test_without_an_informative_pair_the_model_is_left_or_the_build_stops(folder: Path) -> None:
    """A reward that no sample gets: by default alignment leaves the model, `no_pairs: stop` ends the build and says why."""
    never = {"align__pairs": "on_policy", "world__reward": "toy_reward:never", "orders": "align", "student": None}
    made = run(folder, "left", **never, world__target_reward=1.0, skip=["audit"])
    (stage,) = made.report["stages"]
    assert (stage["pairs"], stage["steps"]) == (0, 0)
    assert torch.equal(weights(made.folder), weights(folder / "teacher"))
    with pytest.raises(StageFailed, match=r"none of the .* couples of samples differs in reward"):
        run(folder, "stopped", **never, align__no_pairs="stop", world__target_reward=1.0, skip=["audit"])
    assert not (folder / "stopped").exists()


def test_a_gate_without_an_audit_is_refused(folder: Path) -> None:
    for changes in ({"skip": ["audit"]}, {"orders": "distill"}):
        with pytest.raises(ValueError, match="fail_on asks for the verdict of an audit, and there is none: "):
            run(folder, "ungated", fail_on="risky", **changes)


def test_a_stage_outside_the_order_changes_nothing(aligned_first: Built, folder: Path) -> None:
    settings = {"align__trainer": FAST | {"num_train_epochs": 6}, "distill__trainer": FAST, "sft__trainer": FAST}
    again = run(folder, "beside", **settings)
    assert (again.stages_run, again.stages_reused) == (0, 2)


METHODS: dict[str, dict[str, Any]] = {
    "rloo": {"align__method": "rloo", "align__trainer": {"max_steps": 2}},
    "grpo": {"align__method": "grpo", "align__trainer": {"max_steps": 2}},
    "on-policy pairs": {"align__pairs": "on_policy"},
    "seeded, teacher as reference": {
        "orders": "distill > align",
        "align__pairs": "seeded",
        "align__reference": "teacher",
    },
    "token": {"distill__method": "token", "distill__temperature": 0.7},
    "on-policy distillation": {"distill__method": "on_policy", "distill__trainer": {"max_steps": 2}},
    "bf16": {"world__dtype": "bfloat16"},
    "sft first": {"orders": "sft > align > distill"},
    "a stage of its own": {"orders": "align > distill > polish", "polish": {"kind": "align", "beta": 0.5}},
    "distilled twice": {
        "orders": "distill > align > again",
        "again": {"kind": "distill", "trainer": {"max_steps": 2}},
    },
    "distilled on": {
        "orders": "distill > align > on",
        "on": {"kind": "distill", "method": "token", "start": "parent", "trainer": {"max_steps": 2}},
    },
    "a student from scratch": {
        "student": {"config": {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}}
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ends_with_a_model_that_loads(name: str, folder: Path) -> None:
    made = run(folder, name.replace(" ", "-"), world__reward="toy_reward:blue", skip=["audit"], **METHODS[name])
    assert torch.isfinite(weights(made.folder)).all()
    numbers = made.report["models"][made.report["stages"][-1]["name"]]
    assert numbers["reward"][0] is not None
    assert numbers["target_mass"][0] is not None
    for stage in made.report["stages"]:
        assert stage["steps"] >= 1


def test_steps_and_rates_pass_through_to_the_trainer(folder: Path) -> None:
    given = {"learning_rate": 7e-4, "max_steps": 5, "lr_scheduler_type": "constant", "gradient_accumulation_steps": 2}
    settings: dict[str, Any] = {"orders": "align", "student": None, "skip": ["audit"], "data__held_out": 0.1}
    made = run(folder, "passed", **settings, align__trainer=given)
    (stage,) = made.report["stages"]
    assert stage["steps"] == 5
    assert stage["last"]["learning_rate"] == pytest.approx(7e-4)
    assert stage["last"]["epoch"] == 1.0  # 72 rows are nine batches of 8, five steps of two


def test_gradient_checkpointing_gives_the_same_numbers(folder: Path) -> None:
    settings: dict[str, Any] = {"orders": "align", "student": None, "skip": ["audit"]}
    plain = run(folder, "plain", **settings, align__trainer=FAST)
    saving = run(folder, "saving", **settings, align__trainer=FAST | {"gradient_checkpointing": True})
    assert losses(plain.folder, "align") == pytest.approx(losses(saving.folder, "align"), rel=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT reads the old name
def test_an_adapter_is_merged_or_kept(folder: Path) -> None:
    """Both give the same model; its reference is the model without it: the log-ratio is 0 at step 0."""
    from peft import AutoPeftModelForCausalLM

    settings: dict[str, Any] = {"orders": "align", "student": None, "skip": ["audit"], "align__trainer": FAST}
    merged = run(folder, "merged", **settings, align__lora={"rank": 4})
    kept = run(folder, "kept", **settings, align__lora={"rank": 4, "adapter": "keep"})
    for made in (merged, kept):
        assert made.report["stages"][0]["first"]["rewards/chosen"] == 0.0
        assert made.report["stages"][0]["last"]["rewards/margins"] > 0.05
    one = AutoModelForCausalLM.from_pretrained(folder / "merged")
    other = AutoPeftModelForCausalLM.from_pretrained(folder / "kept")
    ids = torch.tensor([[1, 3, 5, 8, 4]])
    with torch.inference_mode():
        found, expected = one(input_ids=ids).logits, other(input_ids=ids).logits
        before = AutoModelForCausalLM.from_pretrained(folder / "teacher")(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2)


@pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed; `pip install bitsandbytes`"
)
def test_frozen_weights_in_4_bits_start_at_their_reference(folder: Path) -> None:
    """QLoRA: the adapter starts at 0 and learns; it is added to the weights as they were, in fp32."""
    lora = {"rank": 4, "quantization": "4bit"}
    made = run(folder, "four", orders="align", student=None, skip=["audit"], align__trainer=FAST, align__lora=lora)
    (stage,) = made.report["stages"]
    assert stage["first"]["rewards/chosen"] == 0.0
    assert stage["last"]["rewards/margins"] > 0.02
    embeddings = [load(path)[0].get_input_embeddings().weight for path in (made.folder, folder / "teacher")]
    assert torch.equal(*embeddings)


def test_layers_are_taken_from_the_teacher_in_both_orders(folder: Path, tmp_path: Path) -> None:
    """Without training the student is the teacher with layers removed, whatever alignment did before."""
    still = {"learning_rate": 1e-20, "max_steps": 1}
    made = run(folder, "still", align__trainer=FAST, distill__trainer=still, skip=["audit"])
    teacher, _ = load(folder / "teacher")
    expected = torch.cat([p.detach().flatten() for p in remove_layers(teacher, 3).parameters()])
    assert torch.allclose(weights(made.folder), expected, atol=1e-12)


def test_a_teacher_behind_an_api_is_a_file_of_completions(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    with (folder / "completions.jsonl").open("w") as file:
        for row in rows:
            file.write(json.dumps({"prompt": row["prompt"], "completion": row["chosen"]}) + "\n")
    student = {"model": str(folder / "teacher")}
    made = run(
        folder,
        "from-api",
        teacher=None,
        student=student,
        orders="distill > align",
        distill__completions=str(folder / "completions.jsonl"),
        distill__trainer=FAST | {"num_train_epochs": 4},
    )
    assert list(made.report["models"]) == ["start", "distill", "align"]
    assert made.report["teacher"] is None
    assert json.loads((made.folder / "build.json").read_text("utf-8"))["student"] == student
    assert f"the student `{student['model']}`" in (made.folder / "README.md").read_text("utf-8")
    assert losses(made.folder, "distill")[-1] < 0.9 * losses(made.folder, "distill")[0]


def test_the_command_line_prints_a_table_and_json(folder: Path) -> None:
    arguments = ["--store", "store", "--skip", "audit", "--out", "spoken", "--json", "--seed", "3"]
    arguments += ["--set", "report_to=[tensorboard]", "--set", "recipe=spoken"]
    done = subprocess.run(
        command(folder, *arguments), cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 0, spoken(done)
    report = json.loads(done.stdout)
    assert report["command"].startswith("precede build --teacher teacher --keep-layers 3")
    assert report == json.loads((folder / "spoken" / "build.json").read_text("utf-8"))
    for stage in ("align", "distill"):  # a tracker's files outlive the stage
        assert list((folder / "runs" / "spoken" / stage).glob("events.out.tfevents.*"))
