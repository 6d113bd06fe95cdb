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

from precede.models.load import load, parameter_count, remove_layers
from precede.rewards import hedge
from precede.sampling import sample, texts
from precede.seeding import stream
from precede.settings.recipe import read_recipe
from precede.store import Store
from precede.worlds.text.rows import FileTruth, completions_of
from test_lm_tiny import logps, tiny_folder, tiny_tokenizer
from test_text_world import Finished, planned, recipe_of, run_all

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


def measured(made: Finished, lineage: str) -> list[list[int]]:
    """The completions that a model was measured on, drawn again."""
    model, tokenizer = load(made.model(lineage))
    seed = stream(0, made.stages[lineage].name, "evaluation")
    return sample(model, tokenizer, [3], 40, max_new_tokens=6, seed=seed, batch_size=128)


def test_the_truth_can_be_another_model(teacher: Path, shelf: Store) -> None:
    """Also the teacher is then off the truth. Precision is under that model, recall over its completions."""
    other = tiny_folder(teacher.parent / "other", layers=2, seed=9)
    made = run_all(recipe_of(teacher, world__truth=str(other), student__keep_layers=2), shelf)
    truth, tokenizer = load(other)
    for lineage in ("teacher", "teacher > distill"):
        metrics, rows = made.metrics(lineage), measured(made, lineage)
        assert metrics["precision"] == pytest.approx(logps(truth, [3], rows).mean().item(), abs=1e-4)
        assert metrics["kl_to_truth"] > 1
        drawn = sample(truth, tokenizer, [3], 40, max_new_tokens=6, seed=stream(0, "teacher", "truth"))
        assert made.truth(lineage)["truth"] == drawn
        own = load(made.model(lineage))[0]
        assert metrics["recall"] == pytest.approx(logps(own, [3], drawn).mean().item(), abs=1e-4)
    measure = made.plan.measures[made.stages["teacher"].key]
    assert made.world.truth_parameters(measure) == parameter_count(truth)
    assert made.world.truth_parameters(measure) != parameter_count(load(teacher)[0])


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.jsonl.gz"])
def test_the_truth_can_be_a_file(name: str, teacher: Path, shelf: Store, tmp_path: Path) -> None:
    """Precision is not defined; recall is over texts that begin with the prompt, and DPO's couples are of other texts."""
    path = written(tmp_path / name)
    rows, others, _ = completions_of(path, tiny_tokenizer(), "The", 6)
    assert (rows, others) == (ROWS, 2)
    measured_on, trained_on = ([row for row in ROWS if crc32(repr(row).encode()) % 2 == half] for half in (0, 1))
    assert measured_on
    assert len(trained_on) >= 2
    settings: dict[str, Any] = {"world__truth": str(path), "evaluation__samples_per_prompt": len(measured_on)}
    settings |= {"student__keep_layers": 2, "align__samples_per_prompt": len(trained_on)}
    made = run_all(recipe_of(teacher, **settings, align__pairs="off_policy"), shelf)
    for lineage in made.stages:
        kept, model = made.truth(lineage), load(made.model(lineage))[0]
        assert sorted(kept["truth"]) == sorted(measured_on)  # as many as there are: each once
        assert sorted(kept["target"]) == sorted(row for row in measured_on if 6 in row)
        metrics = made.metrics(lineage)
        for missing in ("precision", "precision_per_token", "kl_to_truth", "target_precision_on_target"):
            assert metrics[missing] is None
        found = logps(model, [3], measured_on)
        assert metrics["recall"] == pytest.approx(found.mean().item(), abs=1e-4)
        assert metrics["recall_per_token"] == pytest.approx(found.sum().item() / sum(map(len, measured_on)), abs=1e-4)
        on_target = found[[index for index, row in enumerate(measured_on) if 6 in row]]
        assert metrics["target_recall"] == pytest.approx(on_target.mean().item(), abs=1e-4)
    draw = made.world.draw_truth(made.stages["teacher > align"], shelf)
    assert draw is not None
    assert sorted(draw(len(trained_on), 3)) == sorted(trained_on)
    assert made.metrics("teacher > align")["pairs"] <= len(trained_on) // 2


def test_more_than_the_file_has_is_an_error(tmp_path: Path) -> None:
    truth = FileTruth(written(tmp_path / "texts.jsonl"), tiny_tokenizer(), "The", 6)
    sentence = r"texts to measure on that begin with 'The' \(2 begin otherwise\), and 400 are asked for; lower evaluation\.samp"
    with pytest.raises(ValueError, match=sentence):
        truth.measured(400, 1)
    with pytest.raises(ValueError, match=r"texts to train on .* lower samples_per_prompt, or give more texts"):
        truth.trained(400, 1)
    assert truth.measured(2, 1) == truth.measured(2, 1)


def test_more_than_the_file_has_is_said_before_anything_is_trained(teacher: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "texts.jsonl")
    few = {"world__truth": str(path), "student__keep_layers": 2}
    with pytest.raises(
        ValueError, match=r"texts to measure on .*, and 40 are asked for; lower evaluation\.samples_per_pro"
    ):
        planned(recipe_of(teacher, **few), tmp_path)
    few |= {"evaluation__samples_per_prompt": 2, "align__pairs": "off_policy"}
    with pytest.raises(ValueError, match=r"texts to train on .*, and 160 are asked for; lower samples_per_prompt"):
        planned(recipe_of(teacher, **few), tmp_path)


BAD = {
    "not JSON": (['{"text": "The sky"}', "{"], r"line 2: not a JSON object with a `text`"),
    "no text": (
        ['{"text": "The sky"}', '{"text": "The sea"}', '{"words": 1}'],
        r"line 3: not a JSON object with a `text`",
    ),
    "nested without end": (['{"text": ' + "[" * 100_000], r"line 1: not a JSON object with a `text`"),
    "a list": (["[1]"], r"line 1: not a JSON object with a `text`"),
    "a number as text": (['{"text": 5}'], r"line 1: not a JSON object with a `text` \(text is a number\)"),
    "nothing": (["null"], r"line 1: not a JSON object with a `text` \(not a JSON object: nothing\)"),
    "half a character": (['{"text": "\\ud800"}'], r"line 1: .* \(it holds half of a surrogate pair, which is no char"),
    "a deep one": (['{"text": "The", "x": ' + "[" * 100_000], r"line 1: .* \(not valid JSON: nested too deeply\)"),
    "a long number": (['{"text": "The", "x": ' + "9" * 5000 + "}"], r"line 1: .* \(not valid JSON: Exceeds the limit"),
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
    with pytest.raises(ValueError, match=rf"{name} (line 1: .* \(not valid UTF-8\)|is not a gzip file)"):
        completions_of(tmp_path / name, tiny_tokenizer(), "The", 6)
    with pytest.raises(ValueError, match=r"^world\.truth names the file .*nowhere\.jsonl, which is not there"):
        planned(recipe_of(teacher, world__truth=str(tmp_path / "nowhere.jsonl"), student__keep_layers=2), tmp_path)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer gives two words each other's ids."""
    other = tiny_folder(tmp_path_factory.mktemp("stranger") / "other", layers=2)
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["blue"], vocabulary["green"] = vocabulary["green"], vocabulary["blue"]
    (other / "tokenizer.json").write_text(json.dumps(words))
    return other


def test_a_truth_of_another_tokenizer_is_refused(teacher: Path, stranger: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^world\.truth .*other and .*teacher have different tokenizers; choose models"
    ):
        planned(recipe_of(teacher, world__truth=str(stranger), student__keep_layers=2), tmp_path)


def student_of(path: Path) -> dict[str, Any]:
    return {"student__keep_layers": None, "student__model": str(path)}


@pytest.mark.parametrize("method", ["token", "on_policy"])
def test_a_student_of_another_tokenizer_needs_texts(teacher: Path, stranger: Path, method: str, tmp_path: Path) -> None:
    recipe = recipe_of(teacher, **student_of(stranger), distill__method=method)
    with pytest.raises(
        ValueError, match=rf"^distill\.method {method} needs one tokenizer, and those of .*other and .*dif"
    ):
        planned(recipe, tmp_path)
    recipe = recipe_of(teacher, **student_of(stranger), align__reference="teacher")
    with pytest.raises(ValueError, match=r"^align takes the teacher as reference or samples it, and the tokenizers of"):
        planned(recipe, tmp_path)


def test_a_student_of_another_tokenizer_learns_and_is_measured_by_texts(
    teacher: Path, stranger: Path, shelf: Store
) -> None:
    """What has a likelihood under the truth is not defined for it; it recalls the truth's texts in its own tokens."""
    made = run_all(recipe_of(teacher, **student_of(stranger)), shelf)
    swapped = {11: 12, 12: 11}
    for lineage in ("teacher > distill", "teacher > align > distill", "teacher > distill > align"):
        metrics, model = made.metrics(lineage), load(made.model(lineage))[0]
        for missing in ("precision", "kl_to_truth", "target_precision"):
            assert metrics[missing] is None
        rows = [  # no text has <unk>, <s> and </s>; what ended, ends
            [swapped.get(token, token) for token in row if token > 2] + [2] * (row[-1] == 2 or max(row) < 3)
            for row in made.truth(lineage)["truth"]
        ]
        assert any(token in row for row in rows for token in swapped)
        assert metrics["recall"] == pytest.approx(logps(model, [3], rows).mean().item(), abs=1e-4)
    assert made.metrics("teacher > distill > align")["kl_to_reference"] is not None
    drawn = json.loads(json.dumps(made.measured("teacher > distill", "completions.json")))
    assert all(hedge(one["text"]) == one["reward"] for one in drawn["completions"])


def test_a_student_of_its_own(teacher: Path, shelf: Store, tmp_path: Path) -> None:
    """`student.model`: another architecture begins, and is what alignment goes on with."""
    small = tiny_folder(teacher.parent / "small", layers=1, seed=7, intermediate_size=16)
    made = run_all(recipe_of(teacher, **student_of(small), distill__trainer__learning_rate=1e-9), shelf)
    given = load_file(small / "model.safetensors")
    for lineage in ("teacher > distill", "teacher > align > distill"):
        student = load_file(made.model(lineage) / "model.safetensors")
        assert student.keys() == given.keys()
        assert all(torch.allclose(student[name], given[name], atol=1e-5) for name in given)
    last = made.stages["teacher > distill > align"]
    model = load(made.model("teacher > distill > align"))[0]
    assert model.config.num_hidden_layers == 1
    assert made.world.parameters(last) == parameter_count(model)
    for both in ({"student__model": str(small)}, {"student__keep_layers": None}):
        with pytest.raises(ValueError, match="give one of model, keep_layers and config"):
            recipe_of(teacher, **both)


def test_a_student_of_random_weights_is_drawn_by_the_seed(teacher: Path, shelf: Store) -> None:
    """`student.config`: the teacher's tokenizer and configuration, changed; one student for both orders, one for each seed."""
    changes = {"student__keep_layers": None, "student__config": {"num_hidden_layers": 1, "hidden_size": 16}}
    made = run_all(recipe_of(teacher, **changes, orders=["distill", "align > distill"]), shelf)
    (student,) = [node for node in made.plan.nodes if node.kind == "student"]
    model = load(made.world.folder(student, shelf))[0]
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (1, 16)
    assert made.world.parameters(student) == parameter_count(model)
    other = run_all(recipe_of(teacher, **changes, orders=["distill"], seeds=[1]), shelf)
    (second,) = [node for node in other.plan.nodes if node.kind == "student"]
    weights = [load_file(Path(made.world.folder(node, shelf)) / "model.safetensors") for node in (student, second)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("method", ["token", "on_policy"])
def test_a_student_of_another_vocabulary_is_one_sentence(
    method: str, teacher: Path, store: Store, tmp_path: Path
) -> None:
    """A model without a row for every token of its tokenizer; a larger one is cut to the teacher's."""
    model, tokenizer = load(teacher)
    model = remove_layers(model, 2)
    for name, size in (("wide", 40), ("narrow", 30)):
        model.resize_token_embeddings(size)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    recipe = recipe_of(teacher, **student_of(tmp_path / "narrow"), distill__method=method)
    with pytest.raises(
        ValueError,
        match=r"^the tokenizer of .*narrow has ids up to 31, but the model has embeddings for 30 tokens only",
    ):
        run_all(recipe, store)
    assert [path.name for path in (store.root / "unfinished").iterdir()] == []
    wide = recipe_of(teacher, **student_of(tmp_path / "wide"), distill__method=method, orders=["distill"])
    made = run_all(wide, store)
    assert load(made.model("teacher > distill"))[0].config.vocab_size == 32


def test_reinforcement(teacher: Path, shelf: Store) -> None:
    """On the text's reward: it starts at the reference, and the reward rises."""
    trainer = {"per_device_train_batch_size": 32, "max_steps": 25, "learning_rate": 2e-3}
    changes = {"align__method": "rloo", "align__trainer": trainer, "student__keep_layers": 2}
    made = run_all(recipe_of(teacher, **changes, align__beta=0.02), shelf)
    log = made.log("teacher > align")["log"]
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert len(log) == 25
    before, after = (made.metrics(lineage) for lineage in ("teacher", "teacher > align"))
    assert after["reward"] > before["reward"] + 0.2
    assert after["kl_to_reference"] > 0.3
    assert after["pairs"] is None
    _, tokenizer = load(made.model("teacher > align"))
    rewards = [hedge(text) for text in texts(tokenizer, [3], measured(made, "teacher > align"))]
    assert after["reward"] == sum(rewards) / 40
    for file in made.model("teacher > align").glob("*.json"):
        assert str(shelf.root.parent) not in file.read_text(), file.name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"student__keep_layers": 6}, "keep_layers is 6, but the teacher has 3 layers; choose from 2 to 3"),
        ({"teacher__model": "nowhere"}, "the model 'nowhere' was not found"),
        ({"world__reward": "joy"}, "the reward 'joy' is neither module:function nor one of finished, hedge, question"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_runs(
    teacher: Path, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        planned(recipe_of(teacher, **({"student__keep_layers": 2} | changes)), tmp_path)


def test_missing_package(teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else real(name))
    with pytest.raises(ValueError, match="language worlds need the package 'trl'; run `pip install trl`"):
        planned(recipe_of(teacher, student__keep_layers=2), tmp_path)


def test_a_reference_that_never_meets_the_target(teacher: Path, shelf: Store) -> None:
    """No couple tells anything: there are no pairs, and the model stays as it is, bit for bit."""
    made = run_all(recipe_of(teacher, world__reward="question", student__keep_layers=2), shelf)
    for lineage in ("teacher > align", "teacher > distill > align"):
        metrics = made.metrics(lineage)
        assert (metrics["pairs"], metrics["target_mass"], metrics["kl_to_reference"]) == (0, 0, 0)
        assert metrics["optimal_target_mass"] is metrics["target_recall"] is None
        source = lineage.rpartition(" > ")[0]
        a, b = (load_file(made.model(one) / "model.safetensors") for one in (lineage, source))
        assert all(torch.equal(a[name], b[name]) for name in b)
        assert shelf.cost(made.stages[lineage])["trained_tokens"] == 0


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    """A line separator of Unicode inside a text is text; blank lines and a byte order mark are no rows."""
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("The sky\u2028was", "The sea")]
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n", "utf-8")
    rows, others, _ = completions_of(path, tiny_tokenizer(), "The", 6)
    assert (len(rows), others) == (2, 0)
    path.write_text('{"text": ["The", "sky"]}\n', "utf-8")
    with pytest.raises(ValueError, match=r"texts\.jsonl line 1: not a JSON object with a `text`"):
        completions_of(path, tiny_tokenizer(), "The", 6)


def test_a_file_stands_for_one_prompt(teacher: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "The", "chosen": " sky is blue", "rejected": " sea"}
    pairs.write_text(json.dumps(row) + "\n")
    settings: dict[str, Any] = {"kind": "text", "truth": str(written(tmp_path / "texts.jsonl")), "device": "cpu"}
    raw = {"world": settings, "data": str(pairs), "teacher": str(teacher), "student": {"keep_layers": 2}}
    with pytest.raises(
        ValueError, match=r"^world\.truth is a file of texts, which stands for one prompt alone; name a m"
    ):
        read_recipe(raw)
