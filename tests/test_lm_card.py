"""The model card: a head that the hub reads, tables with a cell for every head, and texts of users that break neither."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from precede.metrics import COSTS, Expense
from precede.report.card import LONGEST, model_card, verdict
from precede.report.markup import interval, markdown

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
        "name": "mine",
        "turns": None,
        "licences": {"teacher": "apache-2.0", "data": None},
        "weights": {"dtype": "bfloat16", "parameters": 1_000_000, "adapter": False, "base": None},
        "samples": [
            {"prompt": f"Ask {n}", "written": {"start": "One.", "align": "Two.", "distill": "Three."}}
            for n in (1, 2, 3)
        ],
        "shipping": shipping(),
        "versions": {"precede": "0.1.0", "torch": "2.13.0"},
    }
    return values | changes


def shipping(**changes: Any) -> dict[str, Any]:
    """A verdict on a model that is better than what it began with."""
    values: dict[str, Any] = {"level": "better", "broken": [], "metric": "reward", "first": 0.4, "last": 0.6}
    values |= {"difference": [0.2, 0.1, 0.3], "count": 100, "surprise": [0.1, 0.0, 0.2], "kl": 3.0}
    return values | {"stops": [90, 100], "stops_first": [95, 100]} | changes


def adapter(base: str) -> dict[str, Any]:
    return {"weights": {"dtype": "float32", "parameters": 9, "adapter": True, "base": base}}


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
    """`ModelCard` parses the numbers as results: each has task, data set, metric and value."""
    data = ModelCard(model_card(report())).data
    head = data.to_dict()
    assert {name: head[name] for name in ("library_name", "pipeline_tag", "license", "base_model", "tags")} == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "base_model": "owner/large",
        "tags": ["precede", "align", "distill"],
    }
    assert "datasets" not in head
    assert data.model_name == "mine"
    found = {(one.dataset_type, one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    rows = ("local", "held-out rows of pairs.jsonl")
    assert found == {
        (*rows, "ranking_accuracy"): 0.5,
        (*rows, "chosen_logp"): -20.0,
        (*rows, "kl_to_truth"): 1.0,
        ("hellaswag", "hellaswag", "acc"): 0.4,
    }
    assert all(one.task_type == "text-generation" for one in data.eval_results)
    assert ModelCard(model_card(report(**adapter("owner/large")))).data.library_name == "peft"


def test_a_data_set_of_the_hub_is_named() -> None:
    data = report()["data"] | {"source": "owner/pairs"}
    card = ModelCard(model_card(report(data=data)))
    assert card.data.datasets == ["owner/pairs"]
    assert card.data.eval_results[0].dataset_type == "owner/pairs"


@pytest.mark.parametrize(
    ("licences", "head"),
    [
        ({"teacher": "mit", "student": "mit", "data": None}, "mit"),
        ({"teacher": "mit", "student": "apache-2.0", "data": "mit"}, "unknown"),
        ({"teacher": None, "data": "mit"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_a_licence_is_that_of_all_models_or_unknown(licences: dict[str, str | None], head: str) -> None:
    card = model_card(report(licences=licences))
    assert ModelCard(card).data.license == head
    for role, stated in licences.items():
        assert f"- {role}: {stated or 'unknown, for no card of it states one'}" in card


@pytest.mark.parametrize(
    "base", ["large", "/large", "./large", "~/large", "a/b/c", "bundled:smollm2-135m-instruct", "a b/c"]
)
def test_what_is_no_id_is_no_base_model(base: str) -> None:
    assert "base_model" not in ModelCard(model_card(report(teacher=base))).data.to_dict()


def test_a_folder_that_is_there_is_no_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models/large` reads like owner/name."""
    (tmp_path / "models" / "large").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in ModelCard(model_card(report(teacher="models/large"))).data.to_dict()


def test_the_base_of_a_student_that_was_there_is_the_student() -> None:
    card = ModelCard(model_card(report(student={"model": "owner/small"})))
    assert card.data.base_model == "owner/small"


def test_tables_have_a_cell_for_every_head() -> None:
    found = outline(model_card(report()))
    assert found == [
        *["h1", "h2 Use", "fence"],
        *["h2 What each stage did", "table_open", *["row 4"] * 5],
        *["h2 Capability (lm-eval)", "table_open", *["row 4"] * 2],
        *["h2 Samples", *["fence"] * 12],
        *["h2 Licences", *["list_item_open"] * 2],
        *["h2 Audits", "list_item_open"],
        *["h2 Training", "table_open", *["row 8"] * 3],
        *["h2 How to make it again", "fence"],
        "h2 Citation",
    ]


def test_numbers_stand_where_they_belong() -> None:
    """A line for each number, a column for each model; – where a model has none."""
    lines = model_card(report()).splitlines()
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
    hostile["name"] = text
    for sample in hostile["samples"]:
        sample |= {"prompt": text, "written": dict.fromkeys(sample["written"], text)}
    card, plain = model_card(hostile), model_card(harmless)
    assert outline(card) == outline(plain)
    assert inline_kinds(card) <= inline_kinds(plain) | {"text_special"}
    head, other = (ModelCard(one).data for one in (card, plain))
    assert list(head.to_dict()) == list(other.to_dict())
    assert len(head.eval_results) == len(other.eval_results)
    assert "base_model" not in head.to_dict()
    fences = [token.content for token in parsed(card) if token.type == "fence" and token.info == "text"]
    assert fences == [f"{text}\n"] * 12
    shown = [
        "".join(child.content for child in token.children or [] if child.type != "link_open") for token in parsed(card)
    ]
    words = " ".join(text.split())
    assert f"from the teacher {words} and the student {words}." in " ".join(shown)
    assert words in shown
    assert any(f"because {words}" in line for line in shown)


def test_commands_with_fences_stay_in_their_block() -> None:
    command = "precede build --set 'data.source=```\n```\n# x'"
    blocks = [token for token in parsed(model_card(report(command=command))) if token.type == "fence"]
    assert blocks[-1].content == command + "\n"


def test_a_student_from_scratch_is_described() -> None:
    card = model_card(report(student={"config": {"hidden_size": 8}}))
    assert "the student a new model, `{'hidden_size': 8}`." in card


def test_it_says_what_was_found() -> None:
    text = model_card(report())
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


def test_what_cannot_be_seen_is_written_out_and_long_texts_are_cut() -> None:
    """Escapes of a terminal, a text that turns its line round, ends of lines that are none to Markdown."""
    written = {"start": "a\x1b[31m\u202eb\rc\u2028d\u3000e", "align": "x" * (LONGEST + 1), "distill": ""}
    card = model_card(report(samples=[{"prompt": "Ask", "written": written}]))
    assert "a\\x1b[31m\\u202eb\\rc\\u2028d\u3000e\n" in card
    assert "x" * LONGEST + "…\n" in card
    assert "x" * (LONGEST + 1) not in card
    assert "after distill: nothing." in card


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            "**Better than what it began with**: reward 0.6 against 0.4, +0.2 [0.1, 0.3] on 100 held-out questions. It stops",
        ),
        (
            {"level": "worse", "difference": [-0.2, -0.3, -0.1]},
            "**Worse than what it began with**: reward 0.6 against 0.4, -0.2",
        ),
        ({"level": "unsure", "count": 9}, "on 9 held-out questions, where 30 are the least to judge by."),
        ({"metric": None}, "there is neither a reward nor pairs to compare them by."),
        ({"kl": None}, "at the start).\n"),
        (
            {
                "level": "broken",
                "broken": ["surprise", "stops"],
                "kl": 39.0,
                "stops": [0, 15],
                "surprise": [2.5, 2.0, 3.0],
            },
            "**Do not ship**: what it writes is 2.5 [2, 3] nats per token less likely under the model that it began with than "
            "what that writes itself (1 is the most that passes, Δ/β of alignment allowed for; KL 39 nats); it stops in 0 of "
            "15 samples within 32 tokens (95 of 100 at the start). Reward 0.6 against 0.4",
        ),
    ],
)
def test_the_verdict_stands_first_in_words(changes: dict[str, Any], said: str) -> None:
    card = model_card(report(shipping=shipping(**changes)))
    first = card.partition("# mine\n\n")[2].partition("\n\n")[0] + "\n"
    assert said in first
    assert first.startswith(f"**{verdict(report(shipping=shipping(**changes)))[0]}**: ")


def test_a_negative_kl_is_called_noise() -> None:
    models = report()["models"]
    note = "A KL is never below 0"
    assert note not in model_card(report())
    assert note in model_card(report(models={**models, "align": {"kl_to_truth": [-0.1, -0.3, 0.1]}}))


def test_costs_are_those_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU seconds stand beside wall seconds where `metrics` knows them; a stage of an older store has none."""
    monkeypatch.setitem(COSTS, "cpu_seconds", Expense("cpu_seconds", "CPU seconds", "seconds"))
    stages = copy.deepcopy(report()["stages"])
    assert "CPU seconds" not in model_card(report(stages=stages))
    stages[0]["cost"] = stages[0]["cost"] | {"cpu_seconds": 13.0}
    lines = model_card(report(stages=stages)).splitlines()
    assert "| align | dpo | 9 | 0.6931 → 0.5 | 1,234 | 5.6e+07 | 7 | 13 | 0.8 |" in lines
    assert "| distill | sequence | 9 | 0.6931 → 0.5 | 1,234 | 5.6e+07 | 7 | – | 0.8 |" in lines


def test_links_lead_where_they_say() -> None:
    card = model_card(report())
    links = [
        (child.attrs["href"]) for token in parsed(card) for child in token.children or [] if child.type == "link_open"
    ]
    assert links == ["https://arxiv.org/abs/2509.23667"]
    assert "[the paper](https://arxiv.org/abs/2509.23667)" in card


def test_the_card_says_what_the_weights_are() -> None:
    assert (
        "safetensors in bfloat16, rounded from the float32 in which it was trained: 1,000,000 parameters"
        in model_card(report())
    )
    for base, words in (
        ("owner/large", "`owner/large`, which is not in this folder"),
        ("/home/me/large", "The base is a folder on the machine that made this"),
        ("base", "a copy of which is in `base/`"),
    ):
        assert words in model_card(report(**adapter(base)))


def test_numbers_are_readable() -> None:
    assert interval(None) == interval([None, None, None]) == "–"
    assert interval([0.12345, 0.1, 0.2]) == "0.123 [0.1, 0.2]"
    assert interval([-136.04, -147.61, -124.2]) == "-136.0 [-147.6, -124.2]"
    assert interval([2.0, None, None]) == "2"
    assert markdown(["a"], [["b|c\nd"]]).splitlines()[-1] == "| b&#124;c d |"
