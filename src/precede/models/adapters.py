"""Adapters: what LoRA and QLoRA (Hu et al. 2021, Dettmers et al. 2023) train, and how they become part of a model. By PEFT."""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from precede.data.sentences import first_line
from precede.libraries import quiet, renamed, transformers
from precede.models.load import from_scratch, load, read, weight_names


def peft() -> Any:
    """The package. Raises ValueError where it is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ValueError("adapters need the package 'peft'; run `pip install peft`")
    return importlib.import_module("peft")


def adapter_config(settings: Mapping[str, Any]) -> Any:
    """PEFT's LoraConfig for a causal language model: rank, alpha, target modules. No dropout: it is no part of a policy."""
    modules = settings["target_modules"]
    return peft().LoraConfig(
        task_type="CAUSAL_LM",
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0,
        target_modules=modules if modules is None or modules == "all-linear" else list(modules),
    )


def check_targets(targets: Sequence[str], network: Any) -> None:
    """Raise ValueError where a name is that of no linear layer of a model beside its head."""
    linear = (torch.nn.Linear, transformers().pytorch_utils.Conv1D)
    head = network.get_output_embeddings()
    names = {name for name, layer in network.named_modules() if isinstance(layer, linear) and layer is not head}
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = dict.fromkeys(name.rpartition(".")[2] for name in sorted(names))
            raise ValueError(f"target_modules names '{target}', but the model's linear layers are {', '.join(known)}")


def load_quantized(model: str | Path) -> Any:
    """A model in 4-bit NF4 for QLoRA, its norms in fp32. Raises ValueError where bitsandbytes is missing or cannot run here."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("quantization '4bit' needs the package 'bitsandbytes'; run `pip install bitsandbytes`")
    compute = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    config = transformers().BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
    network = read("AutoModelForCausalLM", model, quantization_config=config, use_safetensors=True)
    with renamed():
        return peft().prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def merged(base: str | Path, adapter: Path) -> Any:
    """`base` in fp32 with the adapter's weights added. Raises ValueError where the adapter is of another base."""
    return _joined(base, adapter, load(base)[0]).merge_and_unload()


def check_fits(base: str | Path, adapter: Path) -> None:
    """Raise ValueError where an adapter is damaged or of another base. Of the base's weights only the shapes are made."""
    _joined(base, adapter, from_scratch(base, {}, empty=True))


def _joined(base: str | Path, adapter: Path, network: Any) -> Any:
    file = adapter / "adapter_model.safetensors"
    there = weight_names(file)
    try:
        with quiet(), warnings.catch_warnings():
            # missing weights, which are errors below, and the model's old name that PEFT 0.21 still reads
            warnings.simplefilter("ignore")
            joined = peft().PeftModel.from_pretrained(network, str(adapter))
            asked = set(peft().get_peft_model_state_dict(joined))
    except Exception as error:  # of any kind: PEFT reads settings without looking at them
        what = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), first_line(error))
        raise ValueError(f"the adapter {adapter} does not fit {base}: {what}") from None
    for name in sorted(there ^ asked):
        whose = "the adapter lacks" if name in asked else "the model has no place for"
        raise ValueError(f"the adapter {adapter} does not fit {base}: {whose} {name}")
    return joined


def set_base(adapter: Path, base: str) -> None:
    """Let an adapter name the model that it stands on: a Hugging Face id, or a folder by its absolute path."""
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text("utf-8")) | {"base_model_name_or_path": base}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def base_of(adapter: Path) -> str:
    """The model that an adapter was trained on, by its own configuration."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{adapter}/adapter_config.json cannot be read: {first_line(error)}") from None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise ValueError(f"{adapter}/adapter_config.json names no base model (base_model_name_or_path)")
    return base
