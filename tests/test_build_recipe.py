"""Recipes of builds: flags, --set and YAML say the same things; what is resolved can be read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from precede.build_recipe import load_build, read_build

RAW: dict[str, Any] = {
    "build": "mine",
    "teacher": "large",
    "student": {"keep_layers": 4},
    "data": {"source": "pairs.jsonl", "limit": 100, "columns": {"prompt": "question"}},
    "order": "warm > align > distill",
    "reward": "colours:blue",
    "warm": {"kind": "sft", "trainer": {"num_train_epochs": 2}},
    "align": {"method": "rloo", "beta": 0.3, "trainer": {"learning_rate": 1e-6}},
    "distill": {"method": "token", "divergence": "reverse_kl", "lora": {"rank": 4}},
    "evaluation": {"pairs": 64},
    "skip": ["audit"],
    "fail_on": "trapped",
    "push_to_hub": "somebody/small",
    "seed": 3,
}
FLAGS: dict[str, Any] = {
    "teacher": "large",
    "student.keep_layers": 4,
    "data.source": "pairs.jsonl",
    "data.limit": 100,
    "order": "warm > align > distill",
    "reward": "colours:blue",
    "align.beta": 0.3,
    "skip": ["audit"],
    "fail_on": "trapped",
    "push_to_hub": "somebody/small",
}
SET = [
    "build=mine",
    "data.columns={prompt: question}",
    "warm={kind: sft, trainer: {num_train_epochs: 2}}",
    "align.method=rloo",
    "align.trainer.learning_rate=1e-6",
    "distill.method=token",
    "distill.divergence=reverse_kl",
    "distill.lora.rank=4",
    "evaluation.pairs=64",
    "seed=3",
]


def test_flags_and_overrides_and_yaml_give_the_same_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RAW), "utf-8")
    from_yaml, from_flags = load_build(str(path)), load_build(None, SET, FLAGS)
    assert from_yaml == from_flags == read_build(RAW)
    every = [f"{key}={json.dumps(value)}" for key, value in RAW.items()]
    assert load_build(None, every) == from_yaml


def test_flags_stand_above_yaml_and_overrides_above_flags(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RAW), "utf-8")
    assert load_build(str(path), [], {"align.beta": 0.7}).resolved()["align"]["beta"] == 0.7
    assert load_build(str(path), ["align.beta=0.9"], {"align.beta": 0.7}).resolved()["align"]["beta"] == 0.9
    untouched = load_build(str(path), ["align.beta=0.9"]).resolved()
    assert {**untouched, "align": {**untouched["align"], "beta": 0.3}} == read_build(RAW).resolved()


@pytest.mark.parametrize("raw", [RAW, {"teacher": "t", "student": {"keep_layers": 2}, "data": {"source": "d.jsonl"}}])
def test_what_is_resolved_reads_as_the_same_recipe(raw: dict[str, Any]) -> None:
    recipe = read_build(raw)
    again = read_build(yaml.safe_load(yaml.safe_dump(recipe.resolved(), sort_keys=False)))
    assert again == recipe
    assert again.resolved() == recipe.resolved()


def test_reading_leaves_what_it_read_as_it_was() -> None:
    raw = json.loads(json.dumps(RAW))
    read_build(raw)
    assert raw == RAW


def test_defaults() -> None:
    recipe = load_build(None, [], {"teacher": "t", "student.model": "s", "data.source": "d.jsonl"})
    settings = recipe.settings
    assert [name for name, _ in recipe.sequence()] == ["align", "distill"]
    align, distill = (stage.model_dump() for _, stage in recipe.sequence())
    assert (align["method"], align["beta"], align["reference"], align["pairs"]) == ("dpo", 0.1, "self", "given")
    assert (distill["method"], distill["temperature"], distill["samples_per_prompt"]) == ("sequence", 1.0, 1)
    assert align["lora"] is distill["lora"] is None
    assert (settings.data.held_out, settings.evaluation.pairs, settings.evaluation.samples_per_prompt) == (0.1, 128, 1)
    assert (settings.skip, settings.fail_on, settings.report_to, settings.push_to_hub) == ([], None, [], None)
    assert (settings.seed, settings.device, settings.dtype) == (0, "auto", "auto")


def test_a_text_stands_for_a_source_and_for_a_student_that_is_there() -> None:
    short = read_build({"teacher": "t", "student": "s", "data": "d.jsonl"})
    assert short == read_build({"teacher": "t", "student": {"model": "s"}, "data": {"source": "d.jsonl"}})


def test_a_flag_goes_into_a_block_that_was_written_short(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("teacher: t\nstudent: s\ndata: d.jsonl\nalign:\n", "utf-8")
    recipe = load_build(str(path), ["align.beta=0.2"], {"data.limit": 5})
    assert recipe.settings.data.source == "d.jsonl"
    assert recipe.settings.data.limit == 5
    assert recipe.resolved()["align"]["beta"] == 0.2


def test_settings_that_a_method_does_not_read_are_no_part_of_it() -> None:
    """They must not enter the key of a stage: to change them changes nothing."""
    base = {"teacher": "t", "student": "s", "data": "d.jsonl"}
    plain, clipped = read_build(base), read_build({**base, "align": {"clip": 0.3, "samples_per_prompt": 3}})
    assert plain.stages["align"].active() == clipped.stages["align"].active()
    assert plain.stages["align"] != clipped.stages["align"]
