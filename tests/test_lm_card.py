"""The model card: a head that the hub reads, tables with a cell for every head, and texts of users that break neither."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from precede.report.card import interval, markdown, model_card

HOSTILE = [
    "a|b",
    "`code` and ``more``",
    "```\n# Heading\n```",
    "line\n\n# Heading\n\n| a | b |",
    "---\nlicense: mine\n---",
    "<script>alert(1)</script>",
    "\\|\\",
    "*stars* __bars__ ~~gone~~",
    "[link](https://example.org)",
    "![image](x) &amp; |",
    "`",
    "- item",
]


def report(**changes: Any) -> dict[str, Any]:
    """The report of a build with an alignment that was audited, a distillation, a task, and a share that was retained."""
    cost = {"trained_tokens": 1234.0, "flops": 5.6e7, "wall_seconds": 7.0, "peak_memory_bytes": 8.0e8}
    stage = {"steps": 9, "pairs": 50, "first": {"loss": 0.6931}, "last": {"loss": 0.5}, "cost": cost, "key": "0" * 24}
    audit = {
        "verdict": "ready",
        "reasons": ["100.0 % [39.8, 100.0] of them"],
        "advice": [],
        "numbers": {},
        "settings": {},
    }
    numbers = {
        "chosen_logp": [-20.0, -22.5, -18.0],
        "ranking_accuracy": [0.5, None, None],
        "reward": [None, None, None],
    }
    values: dict[str, Any] = {
        "recipe": "mine",
        "prompt": None,
        "order": "align > distill",
        "teacher": "owner/large",
        "student": {"keep_layers": 3},
        "stages": [
            {"name": "align", "kind": "align", "settings": {"method": "dpo"}, "audit": audit, **stage},
            {"name": "distill", "kind": "distill", "settings": {"method": "sequence"}, "audit": None, **stage},
        ],
        "models": {"start": numbers, "align": numbers, "distill": {**numbers, "kl_to_truth": [1.0, 0.5, 1.5]}},
        "retained": {"reward": [0.9, 0.8, 1.0], "preference_margin": [None, None, None]},
        "tasks": {"start": {"hellaswag": {"acc": 0.5}}, "final": {"hellaswag": {"acc": 0.4}}},
        "target_reward": 0.5,
        "max_new_tokens": 32,
        "data": {"source": "pairs.jsonl", "training_pairs": 90, "held_out_pairs": 10, "refused": [], "notes": []},
        "command": "precede build --teacher owner/large",
        "versions": {"precede": "0.1.0", "torch": "2.13.0"},
    }
    return values | changes


def parsed(card: str) -> list[Any]:
    return MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)


def outline(card: str) -> list[str]:
    """Headings, tables and blocks of code, in order; a table as the numbers of cells of its rows, lists as their items."""
    found: list[str] = []
    tokens = parsed(card)
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            found.append(f"{token.tag} {tokens[place + 1].content}" if token.tag != "h1" else "h1")
        elif token.type in ("fence", "table_open", "list_item_open", "code_block", "html_block", "hr"):
            found.append(token.type)
        elif token.type == "tr_open":
            found.append("row 0")
        elif token.type in ("th_open", "td_open"):
            found[-1] = f"row {int(found[-1].split()[1]) + 1}"
    return found


def inline_kinds(card: str) -> set[str]:
    return {child.type for token in parsed(card) for child in token.children or []}


def test_the_head_is_what_the_hub_reads() -> None:
    card = ModelCard(model_card(report(), adapter=False))
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "owner/large",
        "tags": ["precede", "align", "distill"],
    }
    assert ModelCard(model_card(report(), adapter=True)).data.to_dict()["library_name"] == "peft"


@pytest.mark.parametrize(
    "base", ["large", "/large", "./large", "~/large", "a/b/c", "bundled:smollm2-135m-instruct", "a b/c"]
)
def test_what_is_no_id_is_no_base_model(base: str) -> None:
    assert "base_model" not in ModelCard(model_card(report(teacher=base), False)).data.to_dict()


def test_a_folder_that_is_there_is_no_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models/large` reads like owner/name."""
    (tmp_path / "models" / "large").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in ModelCard(model_card(report(teacher="models/large"), False)).data.to_dict()


def test_the_base_of_a_student_that_was_there_is_the_student() -> None:
    card = ModelCard(model_card(report(student={"model": "owner/small"}), False))
    assert card.data.base_model == "owner/small"


def test_tables_have_a_cell_for_every_head() -> None:
    found = outline(model_card(report(), False))
    assert found == [
        *["h1", "fence"],
        *["h2 What each stage did", "table_open", *["row 4"] * 5],
        *["h2 Capability (lm-eval)", "table_open", *["row 4"] * 2],
        *["h2 Audits", "list_item_open"],
        *["h2 Training", "table_open", *["row 8"] * 3],
        *["h2 How to make it again", "fence"],
        "h2 Citation",
    ]


def test_numbers_stand_where_they_belong() -> None:
    """A line for each number, a column for each model; – where a model has none."""
    lines = model_card(report(), False).splitlines()
    assert "|  | at the start | after align | after distill |" in lines
    assert "| log-prob of chosen, nats | -20 [-22.5, -18] | -20 [-22.5, -18] | -20 [-22.5, -18] |" in lines
    assert "| KL to the truth, nats | – | – | 1 [0.5, 1.5] |" in lines
    assert "| ranking accuracy | 0.5 | 0.5 | 0.5 |" in lines
    assert "| hellaswag | acc | 0.5 | 0.4 |" in lines
    assert "| align | dpo | 9 | 0.6931 → 0.5 | 1,234 | 5.6e+07 | 7 | 0.8 |" in lines


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_users_break_nothing(text: str) -> None:
    """Wherever a text of the user stands, the outline is that of a harmless one, and the text is there to be read."""
    harmless = report(teacher="large")
    hostile = copy.deepcopy(harmless)
    hostile |= {
        "teacher": text,
        "student": {"model": text},
        "recipe": text,
        "command": f"precede build --teacher {text!r}",
    }
    hostile["data"]["source"] = text
    hostile["stages"][0]["audit"]["reasons"] = [text]
    hostile["tasks"] = {label: {text: {text: 0.5}} for label in ("start", "final")}
    card, plain = model_card(hostile, False), model_card(harmless, False)
    assert outline(card) == outline(plain)
    assert inline_kinds(card) <= inline_kinds(plain) | {"text_special"}
    assert ModelCard(card).data.to_dict() == ModelCard(plain).data.to_dict()
    shown = [
        "".join(child.content for child in token.children or [] if child.type != "link_open") for token in parsed(card)
    ]
    words = " ".join(text.split())
    assert f"from the teacher {words} and the student {words}." in " ".join(shown)
    assert words in shown
    assert any(f"because {words}" in line for line in shown)


def test_commands_with_fences_stay_in_their_block() -> None:
    command = "precede build --set 'data.source=```\n```\n# x'"
    blocks = [token for token in parsed(model_card(report(command=command), False)) if token.type == "fence"]
    assert blocks[-1].content == command + "\n"


def test_a_student_from_scratch_is_described() -> None:
    card = model_card(report(student={"config": {"hidden_size": 8}}), False)
    assert "the student a new model, `{'hidden_size': 8}`." in card


def test_it_says_what_was_found() -> None:
    text = model_card(report(), False)
    for words in (
        "Of the gain in reward that alignment had made, the last stage kept 0.9 [0.8, 1].",
        "Alignment made no gain in preference margin log π(chosen) − log π(rejected) that can be told from none",
        "before align: **ready**, because 100.0 % [39.8, 100.0] of them",
        "90 pairs to train on, 10 held out by question, 0 rows refused",
        "Target: a reward of at least 0.5.",
        "precede 0.1.0, torch 2.13.0",
        "arXiv 2509.23667",
    ):
        assert words in text, words


def test_numbers_are_readable() -> None:
    assert interval(None) == interval([None, None, None]) == "–"
    assert interval([0.12345, 0.1, 0.2]) == "0.123 [0.1, 0.2]"
    assert interval([-136.04, -147.61, -124.2]) == "-136.0 [-147.6, -124.2]"
    assert interval([2.0, None, None]) == "2"
    assert markdown(["a"], [["b|c\nd"]]).splitlines()[-1] == "| b&#124;c d |"
