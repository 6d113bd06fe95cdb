"""lm-eval's tasks on a model: a task of our own, whose accuracy is known from the model's log-probabilities."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from precede.evaluate.tasks import run_tasks
from precede.models.load import load
from precede.scoring.logprobs import score
from test_lm_tiny import tiny_folder

pytestmark = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed; `pip install -e '.[eval]'`"),
    pytest.mark.filterwarnings("default"),  # lm-eval's own
]
QUESTIONS = [("The sky is", [" blue", " green"]), ("The sea was", [" a", " blue"]), ("The answer is", [" may", " w3"])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capability")
    tiny_folder(folder / "model")
    rows = [{"question": text, "choices": choices, "answer": 0} for text, choices in QUESTIONS]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "toy_cloze",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_accuracy_is_that_of_the_log_probabilities(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    found = run_tasks(str(folder / "model"), ["toy_cloze"], str(folder), None, "cpu")
    model, tokenizer = load(folder / "model")
    right = 0
    for text, choices in QUESTIONS:
        prompt = tokenizer(text)["input_ids"]
        first, second = (
            score(model, [prompt], [[tokenizer(choice, add_special_tokens=False)["input_ids"]]])[0][0].logp
            for choice in choices
        )
        right += first > second
    assert found["toy_cloze"]["acc"] == pytest.approx(right / len(QUESTIONS))


def test_an_unknown_task_is_one_sentence(folder: Path) -> None:
    with pytest.raises(ValueError, match="lm-eval cannot run no_such_task"):
        run_tasks(str(folder / "model"), ["no_such_task"], str(folder), None, "cpu")
