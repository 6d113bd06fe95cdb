"""Adapters: merged they are what they were beside their base; one of another base is refused in one sentence."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from build_material import adapter, set_config
from precede.models.adapters import adapter_config, base_of, is_adapter, load_quantized, merged
from precede.models.load import load, save
from test_lm_tiny import PROMPT, stopping_model, tiny_folder, tiny_tokenizer

IDS = torch.tensor([[*PROMPT, 8, 5, 11]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "base"
    save(stopping_model(), tiny_tokenizer(), path)
    return path


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_merged_is_the_adapter_on_its_base(base: Path, tmp_path: Path) -> None:
    """Against PEFT's own forward pass, and against W + (α/r)·B·A by hand."""
    path = adapter(tmp_path / "adapter", base)
    found = merged(base, path)
    plain, _ = load(base)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        beside = peft.PeftModel.from_pretrained(load(base)[0], str(path)).eval()
    torch.testing.assert_close(logits(found), logits(beside), rtol=1e-5, atol=1e-5)
    assert (logits(found) - logits(plain)).abs().max() > 0.1
    parts = load_file(path / "adapter_model.safetensors")
    settings = json.loads((path / "adapter_config.json").read_text("utf-8"))
    name = "model.layers.1.self_attn.q_proj"
    low, high = (parts[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    weight = plain.get_submodule(name).weight + settings["lora_alpha"] / settings["r"] * high @ low
    torch.testing.assert_close(found.get_submodule(name).weight, weight, rtol=1e-5, atol=1e-6)


def test_merged_is_a_plain_model(base: Path, tmp_path: Path) -> None:
    found = merged(base, adapter(tmp_path / "adapter", base))
    assert type(found) is type(load(base)[0])
    save(found, tiny_tokenizer(), tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged")[0]), logits(found), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"intermediate_size": 64}, "size mismatch for base_model"),
        ({"hidden_size": 16}, "size mismatch for base_model"),
        ({"layers": 3}, "the adapter lacks base_model.model.model.layers.3."),
        ({"layers": 7}, "the model has no place for base_model.model.model.layers.5."),
    ],
)
def test_an_adapter_for_another_base_is_refused(model: dict[str, int], words: str, base: Path, tmp_path: Path) -> None:
    """PEFT itself ignores layers that are missing or too many."""
    path = adapter(tmp_path / "adapter", base, **model)
    with pytest.raises(ValueError, match="does not fit") as problem:
        merged(base, path)
    assert str(problem.value).startswith(f"the adapter {path} does not fit {base}: {words}")
    assert "\n" not in str(problem.value)


def test_an_adapter_that_lost_a_weight_is_refused(base: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter", base)
    parts = load_file(path / "adapter_model.safetensors")
    lost = parts.popitem()[0]
    save_file(parts, path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"the adapter lacks {lost}"):
        merged(base, path)


def test_pickled_adapters_are_not_read(base: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter", base)
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_model.safetensors cannot be read"):
        merged(base, path)


def test_the_base_is_the_adapters_own_word(base: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter", base)
    assert base_of(path) == str(base)
    set_config(path, "adapter_config.json", base_model_name_or_path="")
    with pytest.raises(ValueError, match=r"names no base model \(base_model_name_or_path\)"):
        base_of(path)
    for text in ("{", "[]", "3"):
        (path / "adapter_config.json").write_text(text, "utf-8")
        with pytest.raises(ValueError, match=r"adapter_config.json (cannot be read|names no base model)"):
            base_of(path)


def test_a_folder_with_a_model_is_no_adapter(base: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter", base)
    assert is_adapter(path)
    assert not is_adapter(base)
    assert not is_adapter(tmp_path / "nonesuch")
    (path / "config.json").write_text("{}", "utf-8")
    assert not is_adapter(path)


def test_settings_of_an_adapter() -> None:
    found = adapter_config({"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"]})
    assert (found.r, found.lora_alpha, found.lora_dropout) == (4, 8.0, 0.0)
    assert set(found.target_modules) == {"q_proj", "v_proj"}
    assert adapter_config({"rank": 4, "alpha": 8.0, "target_modules": "all-linear"}).target_modules == "all-linear"


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_4bit_without_its_package_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="quantization '4bit' needs the package 'bitsandbytes'; run `pip install bitsan"
    ):
        load_quantized(tiny_folder(tmp_path / "model"))
