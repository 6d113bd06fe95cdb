"""What the text world measures against, where its students come from, and its other methods, on tiny models."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from safetensors.torch import load_file

from precede.jobs.compare import prepare
from precede.models.load import load, parameter_count
from precede.rewards import hedge
from precede.sampling import sample, texts
from precede.scoring.logprobs import completion_logps
from precede.store import Stage, Store
from precede.worlds.language.stages import stream_of
from precede.worlds.text.world import completions_of
from test_lm_tiny import tiny_folder, tiny_tokenizer
from test_text_world import recipe_of, run_all

TEXTS = [
    "The sky is blue",
    "The answer may",
    "sea The sky",  # begins otherwise
    "The",  # nothing behind the prompt
    "The sea was green . w1 w2 w3 w4",  # longer than 6 tokens
    "The sky may",
]
ROWS = [[8, 5, 11, 2], [4, 6, 2], [9, 13, 12, 14, 16, 17], [8, 6, 2]]
"""Their completions of "The" with their end token (2), cut at 6."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("truth") / "teacher", layers=3, seed=4)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("truth") / "store")
    store.prepare()
    return store


def written(path: Path, lines: list[str] | None = None) -> Path:
    content = "\n".join(lines or [json.dumps({"text": text, "source": 1}) for text in TEXTS]) + "\n"
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def metrics_of(store: Store, stage: Stage) -> dict[str, Any]:
    return {name: values[0] for name, values in store.metrics(stage).items()}


def measured(store: Store, stage: Stage) -> list[list[int]]:
    """The completions that the stage's model was measured on, drawn again."""
    model, tokenizer = load(store.folder(stage) / "model")
    seed = stream_of(stage, "evaluation")
    return sample(model, tokenizer, [3], 40, max_new_tokens=6, seed=seed, batch_size=128)


def test_the_truth_can_be_another_model(teacher: Path, shelf: Store) -> None:
    """Also the teacher is then off the truth. Precision is under that model, recall over its completions."""
    other = tiny_folder(teacher.parent / "other", layers=2, seed=9)
    stages = run_all(recipe_of(teacher, world__truth=str(other), distill__keep_layers=2), shelf)
    truth, tokenizer = load(other)
    for lineage in ("teacher", "teacher > distill"):
        stage = stages[lineage]
        metrics, rows = metrics_of(shelf, stage), measured(shelf, stage)
        assert metrics["precision"] == pytest.approx(completion_logps(truth, [3], rows).mean().item(), abs=1e-4)
        assert metrics["kl_to_truth"] > 1
        kept = json.loads((shelf.folder(stages["teacher"]) / "truth.json").read_text())
        drawn = sample(truth, tokenizer, [3], 40, max_new_tokens=6, seed=stream_of(stages["teacher"], "truth"))
        assert kept["truth"] == drawn
        own = load(shelf.folder(stage) / "model")[0]
        assert metrics["recall"] == pytest.approx(completion_logps(own, [3], drawn).mean().item(), abs=1e-4)
    world: Any = prepare(recipe_of(teacher, world__truth=str(other), distill__keep_layers=2))[0]
    assert world.truth_parameters(stages["teacher"]) == parameter_count(truth)


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.jsonl.gz"])
def test_the_truth_can_be_a_file(name: str, teacher: Path, shelf: Store, tmp_path: Path) -> None:
    """Precision is not defined; recall is over texts that begin with the prompt, and DPO's couples are of other texts."""
    path = written(tmp_path / name)
    assert completions_of(path, tiny_tokenizer(), "The", 6) == (ROWS, 2)
    measured_on, trained_on = ([row for row in ROWS if crc32(repr(row).encode()) % 2 == half] for half in (0, 1))
    settings = {"world__truth": str(path), "world__evaluation_samples": len(measured_on), "distill__keep_layers": 2}
    settings |= {"align__samples": len(trained_on)}
    stages = run_all(recipe_of(teacher, **settings, align__pairs="off_policy"), shelf)
    kept = json.loads((shelf.folder(stages["teacher"]) / "truth.json").read_text())
    assert sorted(kept["truth"]) == sorted(measured_on)  # as many as there are: each once
    assert sorted(kept["target"]) == sorted(row for row in measured_on if 6 in row)
    for stage in stages.values():
        metrics, model = metrics_of(shelf, stage), load(shelf.folder(stage) / "model")[0]
        for missing in ("precision", "precision_per_token", "kl_to_truth", "target_precision_on_target"):
            assert metrics[missing] is None
        logps = completion_logps(model, [3], measured_on)[0]
        assert metrics["recall"] == pytest.approx(logps.mean().item(), abs=1e-4)
        assert metrics["recall_per_token"] == pytest.approx(logps.sum().item() / sum(map(len, measured_on)), abs=1e-4)
        on_target = logps[[index for index, row in enumerate(measured_on) if 6 in row]]
        assert metrics["target_recall"] == pytest.approx(on_target.mean().item(), abs=1e-4)
    world: Any = prepare(recipe_of(teacher, **settings))[0]
    truth = world.truth(stages["teacher"], None, None, tiny_tokenizer())
    assert sorted(truth.training_sample(len(trained_on), 3)) == sorted(trained_on)


def test_more_than_the_file_has_is_an_error(teacher: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "texts.jsonl")
    world, plan = prepare(recipe_of(teacher, world__truth=str(path), distill__keep_layers=2))
    truth = world.truth(plan.stages[0], None, None, tiny_tokenizer())  # type: ignore[attr-defined]
    sentence = r"texts to measure on that begin with 'The' \(2 begin otherwise\), and 400 are asked for; lower eval"
    with pytest.raises(ValueError, match=sentence):
        truth.sample(400, 1)
    with pytest.raises(ValueError, match=r"texts to train on .* lower samples, or give more texts"):
        truth.training_sample(400, 1)
    assert truth.sample(2, 1) == truth.sample(2, 1)


BAD = {
    "not JSON": (['{"text": "The sky"}', "{"], r"line 2: not a JSON object with a `text`"),
    "no text": (
        ['{"text": "The sky"}', '{"text": "The sea"}', '{"words": 1}'],
        r"line 3: not a JSON object with a `text`",
    ),
    "a list": (["[1]"], r"line 1: not a JSON object with a `text`"),
    "a number as text": (['{"text": 5}'], r"line 1: not a JSON object with a `text`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_sentence(case: str, tmp_path: Path) -> None:
    lines, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence) as caught:
        completions_of(written(tmp_path / "bad.jsonl", lines), tiny_tokenizer(), "The", 6)
    assert str(tmp_path / "bad.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
def test_files_that_cannot_be_read(name: str, tmp_path: Path, teacher: Path) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        completions_of(tmp_path / name, tiny_tokenizer(), "The", 6)
    with pytest.raises(ValueError, match=r"^world\.truth names the file .*nowhere\.jsonl, which is not there"):
        prepare(recipe_of(teacher, world__truth=str(tmp_path / "nowhere.jsonl"), distill__keep_layers=2))


@pytest.mark.parametrize(("setting", "block"), [("truth", "world"), ("model", "distill")])
def test_a_model_of_another_tokenizer_is_refused(
    setting: str, block: str, teacher: Path, shelf: Store, tmp_path: Path
) -> None:
    other = tiny_folder(tmp_path / "other", layers=2)
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["blue"], vocabulary["green"] = vocabulary["green"], vocabulary["blue"]
    (other / "tokenizer.json").write_text(json.dumps(words))
    layers = 2 if setting == "truth" else None
    recipe = recipe_of(teacher, distill__keep_layers=layers, **{f"{block}__{setting}": str(other)})
    with pytest.raises(
        ValueError, match=rf"^{block}\.{setting} .*other and the teacher have different tokenizers; choose models"
    ):
        run_all(recipe, shelf)


def test_a_student_of_its_own(teacher: Path, shelf: Store) -> None:
    """`distill.model`: another architecture begins, and is what alignment goes on with."""
    small = tiny_folder(teacher.parent / "small", layers=1, seed=7, intermediate_size=16)
    changes = {"distill__model": str(small), "distill__keep_layers": None, "distill__learning_rate": 1e-9}
    stages = run_all(recipe_of(teacher, **changes), shelf)
    given = load_file(small / "model.safetensors")
    for lineage in ("teacher > distill", "teacher > align > distill"):
        made = load_file(shelf.folder(stages[lineage]) / "model" / "model.safetensors")
        assert made.keys() == given.keys()
        assert all(torch.allclose(made[name], given[name], atol=1e-5) for name in given)
    model = load(shelf.folder(stages["teacher > distill > align"]) / "model")[0]
    assert model.config.num_hidden_layers == 1
    world, _ = prepare(recipe_of(teacher, **changes))
    assert world.parameters(stages["teacher > distill > align"]) == parameter_count(model)  # type: ignore[attr-defined]
    for both in ({"distill__model": str(small)}, {"distill__keep_layers": None}):
        with pytest.raises(ValueError, match="give a new student either keep_layers or model"):
            recipe_of(teacher, **both)


@pytest.mark.parametrize("method", ["token", "on_policy"])
def test_a_student_of_another_vocabulary_is_one_sentence(
    method: str, teacher: Path, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "wide"
    model, tokenizer = load(teacher)
    model.resize_token_embeddings(40)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    changes = {"distill__model": str(path), "distill__keep_layers": None, "distill__method": method}
    with pytest.raises(
        ValueError, match=r"^the student has 40 tokens and the teacher 32; .* set distill\.method to sequence"
    ):
        run_all(recipe_of(teacher, **changes), store)
    assert [path.name for path in (store.root / "unfinished").iterdir()] == []


def test_reinforcement(teacher: Path, shelf: Store) -> None:
    """On the text's reward: it starts at the reference, and the reward rises."""
    changes = {"align__method": "rloo", "align__batch_size": 32, "align__steps": 25, "distill__keep_layers": 2}
    stages = run_all(recipe_of(teacher, **changes, align__beta=0.02), shelf)
    stage = stages["teacher > align"]
    log = json.loads((shelf.folder(stage) / "training.json").read_text())["steps"]
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert len(log) == 25
    before, after = (metrics_of(shelf, made) for made in (stages["teacher"], stage))
    assert after["reward"] > before["reward"] + 0.2
    assert after["kl_to_reference"] > 0.3
    assert after["pairs"] is None
    _, tokenizer = load(shelf.folder(stage) / "model")
    rewards = [hedge(text) for text in texts(tokenizer, [3], measured(shelf, stage))]
    assert after["reward"] == sum(rewards) / 40
    for file in (shelf.folder(stage) / "model").glob("*.json"):
        assert str(shelf.root.parent) not in file.read_text(), file.name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"distill__keep_layers": 6}, "keep_layers is 6, but the teacher has 3 layers; choose from 2 to 3"),
        ({"teacher__model": "nowhere"}, "the model 'nowhere' was not found"),
        ({"world__reward": "joy"}, "there is no reward 'joy'; there are finished, hedge, question"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_runs(teacher: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        prepare(recipe_of(teacher, **({"distill__keep_layers": 2} | changes)))


def test_missing_package(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else real(name))
    with pytest.raises(ValueError, match="language worlds need the package 'trl'; run `pip install trl`"):
        prepare(recipe_of(teacher, distill__keep_layers=2))


def test_a_reference_that_never_meets_the_target(teacher: Path, shelf: Store) -> None:
    """No couple tells anything: there are no pairs, and the model stays as it is, bit for bit."""
    stages = run_all(recipe_of(teacher, world__reward="question", distill__keep_layers=2), shelf)
    for lineage in ("teacher > align", "teacher > distill > align"):
        metrics = shelf.metrics(stages[lineage])
        assert (metrics["pairs"], metrics["target_mass"], metrics["kl_to_reference"]) == ([0], [0], [0])
        assert metrics["optimal_target_mass"] == metrics["target_recall"] == [None]
        source = stages[lineage.rpartition(" > ")[0]]
        a, b = (load_file(shelf.folder(s) / "model" / "model.safetensors") for s in (stages[lineage], source))
        assert all(torch.equal(a[name], b[name]) for name in b)
        assert shelf.cost(stages[lineage])["trained_tokens"] == 0


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    """A line separator of Unicode inside a text is text, and blank lines are no rows; a text that is none is refused."""
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("The sky\u2028was", "The sea")]
    path.write_text("\n\n".join(lines) + "\n", "utf-8")
    assert len(completions_of(path, tiny_tokenizer(), "The", 6)) == 2
    path.write_text('{"text": ["The", "sky"]}\n', "utf-8")
    with pytest.raises(ValueError, match=r"texts\.jsonl line 1: not a JSON object with a `text`"):
        completions_of(path, tiny_tokenizer(), "The", 6)
