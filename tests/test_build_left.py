"""What a build leaves for others: adapters that load from anywhere, weights in their dtype, a card whose program runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from huggingface_hub import ModelCard

from build_material import DATA, CommandLine, adapter, environment, make_inputs, material, run, setting
from precede.jobs.build import Built, build
from precede.models.load import load, round_weights, save
from precede.scoring.logprobs import score
from precede.settings.recipe import read_recipe
from test_grammar_tiny import TINY, changed
from test_lm_tiny import PROMPT, tiny_model, tiny_tokenizer

KEEP = {"rank": 2, "adapter": "keep"}
LEARNING = {"learning_rate": 1e-2}
LOADED = """
import sys, torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM
{load}
with torch.inference_mode():
    torch.save(model(input_ids=torch.tensor([{prompt}])).logits, sys.argv[1])
"""
ANYWHERE = 'base = AutoModelForCausalLM.from_pretrained("MODEL/base"); model = PeftModel.from_pretrained(base, "MODEL")'


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = material(tmp_path_factory.mktemp("left"))
    adapter(path / "adapter", path / "teacher")
    save(tiny_model(seed=5).to(torch.bfloat16), tiny_tokenizer(), path / "half")
    return path


def logits(path: Path | str) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = load(path)[0](input_ids=torch.tensor([PROMPT])).logits
    return found


def loaded(load: str, tmp_path: Path) -> torch.Tensor:
    """Logits of what a program loads in a process of its own, which works elsewhere and asks no hub."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    program = LOADED.format(load=load, prompt=PROMPT)
    words = [sys.executable, "-c", program, str(tmp_path / "logits.pt")]
    offline = {**environment(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=elsewhere, env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: torch.Tensor = torch.load(tmp_path / "logits.pt", weights_only=True)
    return found


def stage_model(made: Built, given: Path) -> Path:
    key = made.report["stages"][-1]["key"]
    return given / "store" / key[:2] / key / "model"


BASES: dict[str, dict[str, Any]] = {
    "layers of the teacher": {"distill__lora": KEEP, "distill__trainer": LEARNING},
    "an earlier stage's model": {"orders": "distill > align", "align__lora": KEEP, "align__trainer": LEARNING},
    "an adapter merged with its base": {
        "teacher": "adapter",
        "student": None,
        "orders": "align",
        "align__lora": KEEP,
        "align__trainer": LEARNING,
    },
}


@pytest.mark.parametrize("name", BASES)
def test_an_adapter_has_a_base_beside_it_that_nobody_else_has(
    name: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another working directory, offline, and once more after the folder was moved: the logits are the stage's."""
    settings = dict(BASES[name])
    settings |= {"teacher": str(given / settings["teacher"])} if "teacher" in settings else {}
    monkeypatch.chdir(given)
    made = run(given, f"kept-{list(BASES).index(name)}", skip=["audit"], **settings)
    expected = logits(stage_model(made, given))
    assert made.report["weights"]["base"] == "base"
    named = json.loads((made.folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    assert named == str(made.folder.absolute() / "base")
    here = loaded(f"model = AutoPeftModelForCausalLM.from_pretrained({str(made.folder)!r})", tmp_path)
    torch.testing.assert_close(here, expected, rtol=0, atol=1e-5)
    assert (expected - logits(made.folder / "base")).abs().max() > 1e-2  # the adapter does something
    moved = made.folder.rename(tmp_path / "moved")
    program = ANYWHERE.replace("MODEL", str(moved))
    assert ANYWHERE.split("; ")[0] in (moved / "README.md").read_text("utf-8")
    torch.testing.assert_close(loaded(program, tmp_path), expected, rtol=0, atol=1e-5)


def test_an_adapter_names_the_users_folder_by_its_absolute_path(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--student student` is a path from where the build ran, and to PEFT a repository of a stranger elsewhere."""
    monkeypatch.chdir(given)
    made = run(
        given, "of-mine", student={"model": "student"}, skip=["audit"], distill__lora=KEEP, distill__trainer=LEARNING
    )
    named = json.loads((made.folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    assert named == str(given / "student")
    assert not (made.folder / "base").exists()
    found = loaded(f"model = AutoPeftModelForCausalLM.from_pretrained({str(made.folder)!r})", tmp_path)
    torch.testing.assert_close(found, logits(stage_model(made, given)), rtol=0, atol=1e-5)
    assert f"`{given / 'student'}`, which is not in this folder" in (made.folder / "README.md").read_text("utf-8")


@pytest.mark.filterwarnings(
    "ignore:Could not find a config file in owner/small"
)  # PEFT asks the hub, which is out of reach
def test_an_adapter_names_an_id_of_the_hub(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the hub, as its cache has it: the id goes into the adapter, and the card's head."""
    hub = cached(given / "student", "owner/small", tmp_path / "hub", "---\nlicense: mit\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(hub))
    made = run(given, "of-hub", student={"model": "owner/small"}, skip=["audit"], distill__lora=KEEP)
    named = json.loads((made.folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
    assert named == "owner/small"
    assert not (made.folder / "base").exists()
    card = ModelCard.load(made.folder / "README.md")
    assert card.data.base_model == "owner/small"
    assert "- student: mit" in card.text
    assert card.data.license == "unknown"  # the teacher's is


def cached(source: Path, name: str, hub: Path, card: str) -> Path:
    """A folder as the hub's cache holds a repository."""
    commit = "0" * 40
    root = hub / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    for file in source.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (snapshot / "README.md").write_text(card)
    return hub


# --------------------------------------------------------------------------------------------------------- dtype


def test_weights_are_saved_in_what_the_base_was_given_in_and_measured_so(given: Path) -> None:
    """A student of a bfloat16 teacher is bfloat16; its numbers are those of what is saved, not of what was trained."""
    made = run(given, "halves", teacher=str(given / "half"), skip=["audit"], distill__trainer=LEARNING)
    assert (
        made.report["weights"]["dtype"] == json.loads((made.folder / "config.json").read_text())["dtype"] == "bfloat16"
    )
    trained, saved = (load(path)[0] for path in (stage_model(made, given), made.folder))
    assert not torch.equal(trained.lm_head.weight, saved.lm_head.weight)
    rows = [json.loads(line) for line in (given / "pairs.jsonl").read_text().splitlines()]
    measures = pyarrow.parquet.read_table(made.folder / "evidence" / "distill" / "measures.parquet").to_pydict()
    tokenizer = tiny_tokenizer()
    prompts = [tokenizer(rows[row - 1]["prompt"])["input_ids"] for row in measures["row"]]
    chosen = [[[*tokenizer(rows[row - 1]["chosen"])["input_ids"], 2]] for row in measures["row"]]
    found = [[one.logp for (one,) in score(model, prompts, chosen)] for model in (trained, saved)]
    assert measures["chosen_logp"] == pytest.approx(found[1], abs=1e-4)
    assert measures["chosen_logp"] != pytest.approx(found[0], abs=1e-3)
    round_weights(trained, "bfloat16")
    assert all(torch.equal(*both) for both in zip(trained.parameters(), saved.parameters(), strict=True))
    assert "rounded from the float32" in (made.folder / "README.md").read_text("utf-8")


def test_a_dtype_that_is_asked_for_trains_nothing_anew(given: Path) -> None:
    plain = run(given, "plain", skip=["audit"])
    assert plain.report["weights"]["dtype"] == "float32"
    other = run(given, "other", skip=["audit"], save_dtype="float16")
    assert (other.stages_run, other.stages_reused) == (0, 2)
    assert json.loads((other.folder / "config.json").read_text())["dtype"] == "float16"
    assert other.report["models"]["align"] == plain.report["models"]["align"]
    assert other.report["models"]["distill"] != plain.report["models"]["distill"]


# ---------------------------------------------------------------------------------------------------------- card


@pytest.fixture(scope="module")
def shipped(given: Path) -> Built:
    (given / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Pairs\n")
    (given / "teacher" / "README.md").write_text("---\nlicense: mit\n---\n# A teacher\n")
    return run(given, "shipped", data__held_out=0.5)


def test_the_program_of_the_card_runs(shipped: Built, given: Path, tmp_path: Path) -> None:
    assert ran(shipped.folder, tmp_path)


def test_the_program_of_an_adapters_card_runs(given: Path, tmp_path: Path) -> None:
    assert ran(run(given, "adapted", skip=["audit"], distill__lora=KEEP).folder, tmp_path)


def test_the_program_of_a_chat_runs(given: Path, tmp_path: Path) -> None:
    """Rows of messages and a chat template: the program asks in the template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<s> {{ m.content }} {% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}is {% endif %}"
    )
    save(tiny_model(seed=2), tokenizer, given / "talker")
    words = ["sky", "sea", "blue", "green", "w1", "w2", "w3", "w4", "w5", "w6", "w7", "w8"]
    with (given / "chats.jsonl").open("w") as file:
        for word in words:
            turns = [{"role": "user", "content": f"The {word}"}]
            answers = {
                name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "blue"), ("rejected", "a"))
            }
            file.write(json.dumps({"prompt": turns, **answers}) + "\n")
    asked = {"teacher": str(given / "talker"), "data": {"source": str(given / "chats.jsonl"), "held_out": 0.4}}
    made = run(given, "talks", skip=["audit"], **asked)
    assert "apply_chat_template" in (made.folder / "README.md").read_text("utf-8")
    ran(made.folder, tmp_path)


def ran(folder: Path, cwd: Path) -> str:
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert '"MODEL' in program
    words = [sys.executable, "-W", "error::UserWarning", "-c", program.replace("MODEL", str(folder))]
    done = subprocess.run(words, cwd=cwd, env=environment(cwd), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_card_shows_the_same_prompts_of_each_model(shipped: Built) -> None:
    """Those of the first three held-out questions, and what each model's evidence has of them."""
    samples = shipped.report["samples"]
    assert len(samples) == 3
    for label in shipped.report["models"]:
        rows = json.loads((shipped.folder / "evidence" / label / "completions.json").read_text("utf-8"))["completions"]
        first: dict[str, str] = {}
        for row in rows:
            first.setdefault(row["prompt"], row["text"])
        assert [(one["prompt"], one["written"][label]) for one in samples] == list(first.items())[:3]


def test_licences_are_those_of_the_cards_beside(shipped: Built) -> None:
    assert shipped.report["licences"] == {"teacher": "mit", "data": "cc-by-4.0"}
    card = ModelCard.load(shipped.folder / "README.md")
    assert card.data.license == "mit"
    assert "- data: cc-by-4.0" in card.text


def test_the_hub_reads_the_measured_numbers(shipped: Built) -> None:
    results = {
        one.metric_type: one.metric_value for one in ModelCard.load(shipped.folder / "README.md").data.eval_results
    }
    numbers = shipped.report["models"]["distill"]
    assert results["ranking_accuracy"] == numbers["ranking_accuracy"][0]
    assert results["kl_to_truth"] == numbers["kl_to_truth"][0]


def test_all_may_read_what_is_left(shipped: Built, given: Path) -> None:
    kept = run(given, "read", skip=["audit"], distill__lora=KEEP)
    for folder in (shipped.folder, kept.folder):
        modes = {path: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
        assert any(path.name.endswith(".safetensors") for path in modes)
        assert all(mode == (0o755 if path.is_dir() else 0o644) for path, mode in modes.items()), modes


def test_the_verdict_is_said_in_the_terminal_too(given: Path, command_line: CommandLine) -> None:
    make_inputs(given / "said") if (given / "said").mkdir() is None else None
    asked = [
        "--teacher",
        "teacher",
        "--keep-layers",
        "3",
        *DATA,
        "--skip",
        "audit",
        *setting("distill.trainer.max_steps=1"),
    ]
    status, output, errors = command_line(given / "said", *asked, "--out", "out", "--store", "store")
    assert status == 0, errors
    card = (given / "said" / "out" / "README.md").read_text("utf-8")
    words = output.split(":")[0].strip()
    assert f"**{words}**: " in card


def test_a_model_of_the_grammar_is_left_with_a_card(tmp_path: Path) -> None:
    """Its student is a size, its one prompt is BOS, and its texts are symbols."""
    raw = changed(orders=["align > distill"], align={**TINY["align"], "method": "dpo", "trainer": {"max_steps": 2}})
    made = build(read_recipe(raw), tmp_path / "grammar", store=tmp_path / "store")
    card = ModelCard.load(made.folder / "README.md")
    assert "a new model, `{'hidden_size': 16, 'layers': 1, 'heads': 4}`" in card.text
    assert "held-out question" in card.text
    ran(made.folder, tmp_path)
