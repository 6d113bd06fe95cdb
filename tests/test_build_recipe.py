"""Recipes of users' own models: flags, --set and YAML say the same things; what is resolved can be read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from precede.settings.recipe import Recipe, load_recipe, read_recipe

RAW: dict[str, Any] = {
    "recipe": "mine",
    "teacher": "large",
    "student": {"keep_layers": 4},
    "data": {"source": "pairs.jsonl", "limit": 100, "columns": {"prompt": "question"}},
    "world": {"reward": "colours:blue"},
    "orders": "warm > align > distill",
    "warm": {"kind": "sft", "trainer": {"num_train_epochs": 2}},
    "align": {"method": "rloo", "beta": 0.3, "trainer": {"learning_rate": 1e-6}},
    "distill": {"method": "token", "divergence": "reverse_kl", "lora": {"rank": 4}},
    "evaluation": {"pairs": 64},
    "skip": ["audit"],
    "fail_on": "trapped",
    "push_to_hub": "somebody/small",
    "seeds": [3],
}
FLAGS: dict[str, Any] = {
    "teacher.model": "large",
    "student.keep_layers": 4,
    "data.source": "pairs.jsonl",
    "data.limit": 100,
    "orders": ["warm > align > distill"],
    "world.reward": "colours:blue",
    "align.beta": 0.3,
    "skip": ["audit"],
    "fail_on": "trapped",
    "push_to_hub": "somebody/small",
}
SET = [
    "recipe=mine",
    "data.columns={prompt: question}",
    "warm={kind: sft, trainer: {num_train_epochs: 2}}",
    "align.method=rloo",
    "align.trainer.learning_rate=1e-6",
    "distill.method=token",
    "distill.divergence=reverse_kl",
    "distill.lora.rank=4",
    "evaluation.pairs=64",
    "seeds=[3]",
]
SHORT = {"teacher": "t", "student": "s", "data": "d.jsonl"}


def test_flags_and_overrides_and_yaml_give_the_same_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RAW), "utf-8")
    from_yaml, from_flags = load_recipe(path), load_recipe(None, SET, FLAGS)
    assert from_yaml == from_flags == read_recipe(RAW) == load_recipe(RAW)
    every = [f"{key}={json.dumps(value)}" for key, value in RAW.items()]
    assert load_recipe(None, every) == from_yaml


def test_flags_stand_above_yaml_and_overrides_above_flags(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RAW), "utf-8")
    assert load_recipe(path, [], {"align.beta": 0.7}).resolved["align"]["beta"] == 0.7
    assert load_recipe(path, ["align.beta=0.9"], {"align.beta": 0.7}).resolved["align"]["beta"] == 0.9
    untouched = load_recipe(path, ["align.beta=0.9"]).resolved
    assert {**untouched, "align": {**untouched["align"], "beta": 0.3}} == read_recipe(RAW).resolved


@pytest.mark.parametrize("raw", [RAW, {**SHORT, "student": {"keep_layers": 2}}])
def test_what_is_resolved_reads_as_the_same_recipe(raw: dict[str, Any]) -> None:
    recipe = read_recipe(raw)
    again = read_recipe(yaml.safe_load(yaml.safe_dump(recipe.resolved, sort_keys=False)))
    assert again == recipe
    assert again.resolved == recipe.resolved


def test_reading_leaves_what_it_read_as_it_was() -> None:
    raw = json.loads(json.dumps(RAW))
    read_recipe(raw)
    load_recipe(raw, SET, FLAGS)
    assert raw == RAW


def test_defaults() -> None:
    recipe = load_recipe(None, [], {"teacher.model": "t", "student.model": "s", "data.source": "d.jsonl"})
    (variant,) = recipe.variants
    assert [str(order) for order in recipe.orders] == ["align > distill", "distill > align"]
    align, distill = variant.stages["align"], variant.stages["distill"]
    assert (align["method"], align["beta"], align["reference"], align["pairs"]) == ("dpo", 0.1, "self", "given")
    assert (align["min_reward_gap"], align["no_pairs"], align["preference"]["scale"]) == (0.0, "keep", 0.0)
    assert (distill["method"], distill["temperature"], distill["samples_per_prompt"]) == ("sequence", 1.0, 1)
    assert align["lora"] is distill["lora"] is None
    assert (variant.world["data"]["held_out"], variant.evaluation["pairs"]) == (None, 128)
    assert (variant.world["kind"], variant.world["device"], variant.world["dtype"]) == ("text", "auto", "auto")
    around = {"skip": [], "fail_on": None, "report_to": [], "save_dtype": "auto", "push_to_hub": None}
    assert recipe.run.model_dump() == around
    assert recipe.seeds == (0,)


def test_an_order_that_nobody_named_stops_nothing() -> None:
    """An adapter can be kept behind the last stage only: that is `distill` in the order that is built."""
    kept = {**SHORT, "distill": {"lora": {"adapter": "keep"}}}
    assert [str(order) for order in read_recipe(kept).orders] == ["align > distill"]
    with pytest.raises(ValueError, match="only the last stage of an order can keep its adapter"):
        read_recipe({**kept, "orders": ["align > distill", "distill > align"]})
    with pytest.raises(ValueError, match="no stage can come before distill"):  # the first one is not left out
        read_recipe({**SHORT, "distill": {"completions": "c.jsonl"}})


def test_a_text_stands_for_a_source_a_model_and_an_order() -> None:
    long = {"teacher": {"model": "t"}, "student": {"model": "s"}, "data": {"source": "d.jsonl"}}
    assert read_recipe({**SHORT, "orders": "distill"}) == read_recipe({**long, "orders": ["distill"]})


def test_a_flag_goes_into_a_block_that_was_written_short(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("teacher: t\nstudent: s\ndata: d.jsonl\nalign:\n", "utf-8")
    recipe = load_recipe(path, ["align.beta=0.2"], {"data.limit": 5})
    assert recipe.variants[0].world["data"]["source"] == "d.jsonl"
    assert recipe.variants[0].world["data"]["limit"] == 5
    assert recipe.resolved["align"]["beta"] == 0.2


def test_settings_that_a_method_does_not_read_are_no_part_of_it() -> None:
    """They must not enter the key of a stage: to change them changes nothing."""
    plain = read_recipe({**SHORT, "align": {"method": "rloo"}, "world": {"reward": "hedge"}})
    beside = {"method": "rloo", "samples_per_prompt": 3, "min_reward_gap": 0.5, "no_pairs": "stop"}
    more = read_recipe({**SHORT, "align": beside, "world": {"reward": "hedge"}})
    assert plain.variants[0].stages["align"] == more.variants[0].stages["align"]
    assert plain.resolved["align"] != more.resolved["align"]


def narrow(recipe: Recipe, *given: Any) -> tuple[str, tuple[int, ...]]:
    (order,) = (found := recipe.narrowed(*given)).orders
    return str(order), found.seeds


def test_a_build_takes_one_order_and_one_seed_of_a_recipe() -> None:
    """Those that are named; else align > distill, or the only order, and the first seed. Nothing is swept."""
    both = read_recipe({**SHORT, "seeds": [5, 7], "sweep": {"align.beta": [0.2, 0.3]}})
    assert narrow(both) == ("align > distill", (5,))
    assert narrow(both, "distill > align", 7) == ("distill > align", (7,))
    assert narrow(both, "align", 9) == ("align", (9,))
    assert len(both.variants) == 3
    assert len(both.narrowed().variants) == 1
    assert both.narrowed().variants[0].stages == both.variants[0].stages
    assert narrow(read_recipe({**SHORT, "orders": "distill > align"})) == ("distill > align", (0,))
    several = read_recipe({**SHORT, "orders": ["distill > align", "align"]})
    with pytest.raises(ValueError, match=r"several orders \('distill > align', 'align'\); name one with --order"):
        several.narrowed()
    with pytest.raises(ValueError, match="names an unknown stage 'sft'"):
        both.narrowed("sft > align")
    assert both.narrowed("align").narrowed() == both.narrowed("align")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("reward", "unknown key 'reward'; it stands under `world`"),
        ("max_new_tokens", "unknown key 'max_new_tokens'; it stands under `world`"),
        ("order", "unknown key 'order'; did you mean 'orders'?"),
        ("seed", "unknown key 'seed'; did you mean 'seeds'?"),
    ],
)
def test_what_stands_elsewhere_is_shown_its_place(key: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_recipe({**SHORT, key: "x"})
