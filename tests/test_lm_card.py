"""The model card: its head parses, its tables hold, and names that users chose cannot break them."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from precede.lm.card import interval, markdown, model_card


def report(**changes: Any) -> dict[str, Any]:
    numbers = {"ranking_accuracy": [0.5, 0.4, 0.6], "recall": [-105.25, -120.0, -90.5]}
    cost = {"trained_tokens": 1200.0, "flops": 1.5e9, "wall_seconds": 12.3, "peak_memory_bytes": 2e9}
    audit = {"verdict": "risky", "reasons": ["too few pairs"], "advice": []}
    stage = {"name": "align", "kind": "align", "settings": {"method": "dpo"}, "steps": 9.0, "pairs": 72}
    stage |= {"first": {"loss": 0.69}, "last": {"loss": 0.5}, "cost": cost, "audit": audit}
    return {
        "build": "small",
        "order": "align > distill",
        "teacher": "owner/teacher",
        "student": {"keep_layers": 3},
        "data": {"source": "pairs.jsonl", "training_pairs": 72, "held_out_pairs": 8, "refused": []},
        "models": {"start": {"ranking_accuracy": [0.5, 0.4, 0.6]}, "align": numbers},
        "stages": [stage],
        "retained": {"preference_margin": [0.8, 0.5, 1.1], "reward": [None, None, None]},
        "tasks": {"start": {"toy": {"acc": 0.5}}, "final": {"toy": {"acc": 0.25}}},
        "max_new_tokens": 12,
        "target_reward": 0.5,
        "versions": {"precede": "0.1.0"},
        "command": "precede build recipe.yaml",
    } | changes


def test_the_head_is_a_models() -> None:
    card = ModelCard(model_card(report(), adapter=False))
    data = card.data.to_dict()
    assert data["base_model"] == "owner/teacher"
    assert data["library_name"] == "transformers"
    assert "precede" in data["tags"]
    assert ModelCard(model_card(report(), adapter=True)).data.to_dict()["library_name"] == "peft"
    local = ModelCard(model_card(report(teacher="./teacher"), adapter=False)).data.to_dict()
    assert "base_model" not in local  # a folder is no repository


def test_it_says_what_was_found() -> None:
    text = model_card(report(), adapter=False)
    for words in (
        "the last stage kept 0.8 [0.5, 1.1]",
        "Alignment made no gain in reward",
        "before align: **risky**, because too few pairs",
        "| recall of the first model's samples, nats | – | -105.2 [-120.0, -90.5] |",
        "| toy | acc | 0.5 | 0.25 |",
        "precede build recipe.yaml",
        "72 pairs to train on, 8 held out by prompt, 0 rows refused",
        "arXiv 2509.23667",
    ):
        assert words in text, words


@pytest.mark.parametrize("name", ["a|b", "a`b", "a\nb", "| --- |\n# Title", "---"])
def test_names_cannot_break_the_tables(name: str) -> None:
    text = model_card(report(teacher=name, models={"start": {}, name: {"recall": [1.0, None, None]}}), adapter=False)
    for line in text.splitlines():
        if line.startswith("| recall"):
            assert line.replace("\\|", "").count("|") == 4
    assert "\n# Title" not in text
    assert ModelCard(text).data.to_dict()["library_name"] == "transformers"


def test_numbers_are_readable() -> None:
    assert interval(None) == interval([None, None, None]) == "–"
    assert interval([0.12345, 0.1, 0.2]) == "0.123 [0.1, 0.2]"
    assert interval([-136.04, -147.61, -124.2]) == "-136.0 [-147.6, -124.2]"
    assert interval([2.0, None, None]) == "2"
    assert markdown(["a"], [["b|c\nd"]]).splitlines()[-1] == "| b\\|c d |"
