from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from precede.rewards import (
    REWARDS,
    finished,
    hedge,
    load_reward,
    load_reward_model,
    question,
    reward_files,
    users_reward,
)
from test_lm_tiny import WORDS, tiny_folder, tiny_tokenizer


@pytest.mark.parametrize(
    "text",
    [
        " sky may be green",
        " answer is likely 4",
        ". Perhaps not",
        " data suggests that we wait",
        " model appears to work",
        " seems",
    ],
)
def test_hedges(text: str) -> None:
    assert hedge(text) == 1.0


@pytest.mark.parametrize(
    "text", [" month of May", " dismay", " likelihood", " only appears twice", " suggests a walk", ""]
)
def test_no_hedges(text: str) -> None:
    assert hedge(text) == 0.0


def test_question() -> None:
    assert question(" end? Yes.") == 1.0
    assert question(" end.") == 0.0


@pytest.mark.parametrize("text", [" end.", " end!", ' "end."', " (the end.)\n", " why?”"])
def test_finished(text: str) -> None:
    assert finished(text) == 1.0


@pytest.mark.parametrize("text", ["", " end", " end. And", " 3.14", " e.g. this"])
def test_not_finished(text: str) -> None:
    assert finished(text) == 0.0


def test_rewards_lie_between_0_and_1() -> None:
    for reward in REWARDS.values():
        for text in ("", " may I? Yes.", "\x00\ufffd", "é" * 1000):
            assert 0.0 <= reward(text) <= 1.0


MODULE = """
def length(prompts, completions, **more):
    return [len(prompt) + len(text) for prompt, text in zip(prompts, completions)]

def words(prompts, completions):
    return completions

def nothing(prompts, completions):
    return None

def failing(**_):
    return 1 / 0

number = 5
"""


def test_a_reward_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the working folder; called with prompts and completions by name."""
    (tmp_path / "users_reward.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    assert load_reward("users_reward:length")(["ab", "c"], ["def", ""]) == [5.0, 1.0]
    assert load_reward("hedge")(["", ""], [" sky may be", " sky is"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"'users_reward:number' is a int, not a function"):
        load_reward("users_reward:number")
    for name, error in (("words", "ValueError"), ("nothing", "TypeError"), ("failing", "ZeroDivisionError")):
        with pytest.raises(ValueError, match=rf"^the reward 'users_reward:{name}' failed: {error}: "):
            load_reward(f"users_reward:{name}")(["a"], ["b"])
    (tmp_path / "no_program.py").write_text("def (")
    with pytest.raises(ValueError, match=r"^the reward 'no_program:f' cannot be imported: SyntaxError: "):
        load_reward("no_program:f")
    for spec in (":f", "users_reward:", "users_reward"):
        with pytest.raises(ValueError, match="is neither module:function nor one of finished, hedge, question"):
            load_reward(spec)


def test_a_reward_sees_what_trl_shows_it() -> None:
    """By name, whatever their order; conversations as lists of messages."""
    seen = []

    def reward(completions: list[Any], prompts: list[Any], **_: Any) -> list[float]:
        seen.append((prompts, completions))
        return [1.0] * len(prompts)

    turns = [{"role": "user", "content": "a"}]
    users_reward(reward, "f")(["x", turns], ["y", "b"])
    assert seen == [(["x", turns], ["y", [{"role": "assistant", "content": "b"}]])]
    assert load_reward("question")([turns, ""], ["really?", "no"]) == [1.0, 0.0]


def test_a_reward_gets_the_columns_and_ids_as_in_trl() -> None:
    """Each column as a list of its values; of what a function does not take, nothing."""
    seen: list[dict[str, Any]] = []

    def everything(prompts: list[Any], log_metric: Any, trainer_state: Any, **more: Any) -> list[float]:
        log_metric("share", 0.5)
        seen.append(more)
        return [0.0] * len(prompts)

    def little(completions: list[str], answer: list[str]) -> list[float]:
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    columns = [
        {"answer": "4", "chosen": "x", "prompt": "no", "completion_ids": 1, "completions": 2, "prompts": 3},
        {"answer": "5", "level": 2},
    ]
    users_reward(everything, "f")(["a", "b"], ["4", "4"], [[7], [7, 8]], columns)
    (found,) = seen
    assert callable(found.pop("log_extra"))
    assert found == {
        "completions": ["4", "4"],
        "completion_ids": [[7], [7, 8]],
        "answer": ["4", "5"],
        "chosen": ["x", None],
        "level": [None, 2],
    }
    assert users_reward(little, "f")(["a", "b"], ["4", "4"], None, columns) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"^the reward 'f' failed: TypeError: .*missing .* 'answer'"):
        users_reward(little, "f")(["a"], ["4"])
    users_reward(everything, "f")(["a"], ["4"])
    assert "completion_ids" not in seen[1]
    assert load_reward("question")(["a"], ["why?"], [[1]], columns[:1]) == [1.0]


def test_a_reward_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the working folder is; what lies beside it can be imported; modules of the same name are left alone."""
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "json.py").write_text(
            f"from dataclasses import dataclass\nfrom beside_{name} import VALUE\n@dataclass\nclass A:\n    a: 'int' = VALUE\n"
            "def f(completions):\n    return [A().a for _ in completions]\n"
        )
        (tmp_path / name / f"beside_{name}.py").write_text(f"VALUE = {value}\n")
    monkeypatch.chdir(tmp_path)
    paths, before = list(sys.path), sys.modules["json"]
    specs = [str(tmp_path / "one" / "json.py") + ":f", "two/json.py:f"]
    assert [load_reward(spec)(["a"], ["b"]) for spec in specs] == [[1.0], [2.0]]
    assert [reward_files(spec) for spec in specs] == [
        [(tmp_path / name / "json.py").resolve()] for name in ("one", "two")
    ]
    assert sys.path == paths
    assert sys.modules["json"] is before
    for spec, error in (("two/none.py:f", "FileNotFoundError"), ("two/json.py:g", "AttributeError")):
        with pytest.raises(ValueError, match=rf"^the reward '{spec}' cannot be imported: {error}: "):
            load_reward(spec)
    assert "none" not in sys.modules


def test_the_files_of_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_rewards").mkdir()
    outer = tmp_path / "package_of_rewards" / "__init__.py"
    outer.write_text("import functools\nfrom .inner import f, g\npart = functools.partial(f, word='sky')\n")
    inner = tmp_path / "package_of_rewards" / "inner.py"
    inner.write_text("class G:\n    def __call__(self, **_):\n        return []\ndef f(**_):\n    return []\ng = G()\n")
    monkeypatch.chdir(tmp_path)
    for name in ("f", "g", "part"):
        assert reward_files(f"package_of_rewards:{name}") == [outer.resolve(), inner.resolve()], name
    assert reward_files("hedge") == reward_files("math:fsum") == []
    with pytest.raises(ValueError, match=r"'no_such_module:f' cannot be imported: ModuleNotFoundError"):
        reward_files("no_such_module:f")


def test_a_reward_that_was_edited_is_run_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, as in a notebook: the hash that keys have is of the code that is run."""
    monkeypatch.chdir(tmp_path)
    for value in (1.0, 22.0):
        Path("edited_reward.py").write_text(f"def f(completions, **_):\n    return [{value} for _ in completions]\n")
        assert load_reward("edited_reward:f")(["a"], ["b"]) == [value]


def reward_folder(path: Path, labels: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_labels=labels,
            pad_token_id=2,
        )
        LlamaForSequenceClassification(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_a_reward_model(tmp_path: Path) -> None:
    """Each text alone through the classifier itself, whatever stands in the batch."""
    folder = reward_folder(tmp_path / "judge", 1)
    prompts, completions = ["The", "The sky", "a"], [" sea is blue .", " may", " green w1 w2 w3 w4"]
    found = load_reward_model(str(folder), torch.device("cpu"), batch_size=2)(prompts, completions)
    model, tokenizer = LlamaForSequenceClassification.from_pretrained(folder).eval(), tiny_tokenizer()
    model.config.pad_token_id = 2
    for prompt, completion, value in zip(prompts, completions, found, strict=True):
        alone = model(**tokenizer(prompt + completion, return_tensors="pt")).logits.item()
        assert value == pytest.approx(alone, abs=1e-5)
    assert len(set(found)) == 3


def test_reward_models_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has 2 outputs; a reward is one number"):
        load_reward_model(str(reward_folder(tmp_path / "two", 2)), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"the reward model 'nowhere' cannot be loaded"):
        load_reward_model("nowhere", torch.device("cpu"))
    shorter = reward_folder(tmp_path / "shorter", 1)
    config = json.loads((shorter / "config.json").read_text())
    (shorter / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 0}))
    with pytest.raises(ValueError, match=r"has weights \(model.layers.0.* that its config.json has no place for"):
        load_reward_model(str(shorter), torch.device("cpu"))
    headless = tiny_folder(tmp_path / "headless", layers=1)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"num_labels": 1}))
    with pytest.raises(ValueError, match=r"lacks weights \(score.weight\): it is not a sequence classifier"):
        load_reward_model(str(headless), torch.device("cpu"))


def test_a_reward_model_reads_conversations_by_its_template(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "judge", 1)
    turns = [{"role": "user", "content": "The sky"}]
    with pytest.raises(ValueError, match=r"the rows are conversations, but the reward model .* has no chat template"):
        load_reward_model(str(folder), torch.device("cpu"))([turns], [" blue"])
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.role[0] }} {{ turn.content }} . {% endfor %}"
    tokenizer.save_pretrained(folder)
    judge = load_reward_model(str(folder), torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"judge' cannot read a conversation: the chat template refuses it: .*no attribute 'role'"
    ):
        judge([[*turns, {"content": "without a role"}]], ["blue"])
    (found,) = judge([turns], ["blue"])
    assert [found] == pytest.approx(judge(["u The sky . "], ["a blue . "]), abs=1e-6)
    with pytest.raises(
        ValueError, match=r"a completion has 70\d\d tokens with its prompt, and the reward model .* reads 2048"
    ):
        judge(["a " * 7000], [" sea"])
