"""Small runs of every kind, and the wrong inputs that `campaign.py` gives them.

Inputs come from the settings' schemas (every setting × `VALUES`), from TRL's arguments, from the readers (every kind of file ×
`DAMAGES`), and from `HOSTILE`, a corpus of texts, in every place that takes a text.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
import yaml
from safetensors.torch import load_file, save_file

from precede.libraries import trainer_config, transformers
from precede.models.load import save
from precede.settings.language import Run
from precede.settings.recipe import WORLDS
from precede.worlds.grammar.chains import tokenizer

Change = Callable[[Path, random.Random], None]
ROWS, VOCABULARY = 48, 32


@dataclass(frozen=True)
class Trial:
    """One input: a run of `RUNS` in a folder that `change` has changed, with more words, as the environment has it."""

    group: str
    name: str
    run: str
    words: tuple[str, ...] = ()
    change: Change = lambda here, draw: None
    expect: str = "any"
    """`refused`; `same` (ends as the undisturbed run does); `stops` (what only the run can show); `any` of a sentence before
    the run and an end without a fault."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    """Limits of `resource`, by name."""
    output: str | None = None
    """A file in place of the standard output, or `closed`."""
    fresh: bool = False
    """Whether it needs a Python of its own."""


# ---------------------------------------------------------------------------------------------------- what is run

STEPS = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
TEXT: dict[str, Any] = {
    "teacher": "teacher",
    "student": {"keep_layers": 2},
    "data": "pairs.jsonl",
    "world": {"kind": "text", "device": "cpu", "max_new_tokens": 6, "reward": "reward.py:some"},
    "evaluation": {"samples_per_prompt": 1, "pairs": 8},
    "align": {"trainer": STEPS},
    "distill": {"trainer": STEPS},
    "orders": ["align > distill"],
    "seeds": 1,
}
FIT = {"samples": 60, "restarts": 1}
CHAINS = {"vocabulary": 12, "max_new_tokens": 5, "modes": 3, "subset": 6, "starts": 3, "successors": 2, "target_modes": [2]}
RECIPES: dict[str, dict[str, Any]] = {
    "mixture": {
        "world": {"kind": "mixture"},
        "teacher": FIT,
        "align": {"method": "ppo", "steps": 3, "samples": 64},
        "distill": FIT,
        "orders": ["align > distill", "distill > align"],
        "seeds": 2,
        "sweep": [{"align.method": ["ppo", "dpo"]}],
    },
    "grammar": {
        "world": {"kind": "grammar", "worlds": 1, "target_weight": 0.1, **CHAINS},
        "teacher": {"hidden_size": 16, "layers": 1, "trainer": {"max_steps": 4, "per_device_train_batch_size": 16}},
        "student": {"hidden_size": 16, "layers": 1},
        "evaluation": {"samples_per_prompt": 50},
        "align": {"method": "rloo", "trainer": {"max_steps": 2, "per_device_train_batch_size": 16}},
        "distill": {"samples_per_prompt": 50, "trainer": {"max_steps": 4, "per_device_train_batch_size": 16}},
        "orders": ["align > distill", "distill > align"],
        "seeds": 1,
    },
    "text": TEXT | {"orders": ["align > distill", "distill > align"]},
    "prompt": {name: value for name, value in TEXT.items() if name != "data"}
    | {"world": TEXT["world"] | {"prompt": "a b", "truth": "truth.jsonl"}, "evaluation": {"samples_per_prompt": 20}}
    | {"align": {"method": "rloo", "trainer": STEPS}, "orders": ["align > distill", "distill > align"]},
    "dpo": TEXT | {"sft": {"trainer": STEPS}, "orders": ["sft > align > distill"]},
    "lora": TEXT | {stage: {"trainer": STEPS, "lora": {"rank": 2}} for stage in ("align", "distill")},
    "rloo": TEXT | {"align": {"method": "rloo", "trainer": STEPS | {"num_generations": 2}}, "skip": ["audit"]},
    "distil": TEXT
    | {"distill": {"method": "on_policy", "trainer": STEPS}, "skip": ["audit"], "orders": ["distill > again"]}
    | {"again": {"kind": "distill", "method": "token", "start": "parent", "trainer": STEPS}},
}
COMPARED = ("mixture", "grammar", "text", "prompt")
LEAVE = ("--out", "out", "--store", "store")
RUNS: dict[str, tuple[str, ...]] = {
    name: ("compare" if name in COMPARED else "build", f"{name}.yaml", "--workers", "1", *LEAVE) for name in RECIPES
}
RUNS["workers"] = ("compare", "mixture.yaml", "--workers", "2", *LEAVE)
RUNS["audit"] = ("audit", "teacher", "--data", "pairs.jsonl", "--reward", "reward.py:some", "--samples", "2", "--out", "out")
REWARD = "def some(prompts, completions, **_):\n    return [float(sum(map(ord, text)) % 3 > 0) for text in completions]\n"


def make_material(folder: Path) -> None:
    """Everything that the runs read: models, pairs in every format, a truth, completions, a reward, recipes."""
    words, draw = tokenizer(VOCABULARY), random.Random(0)
    for name, layers in (("teacher", 4), ("student", 2)):
        torch.manual_seed(layers)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4}
        limits = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "eos_token_id": 1, "initializer_range": 0.3}
        save(transformers().LlamaForCausalLM(transformers().LlamaConfig(**shape, **limits)), words, folder / name)

    def text(count: int) -> str:
        return " ".join(words.convert_ids_to_tokens([draw.randrange(2, VOCABULARY) for _ in range(count)]))

    rows = [{"prompt": text(3), "chosen": f" {text(4)}", "rejected": f" {text(4)}"} for _ in range(ROWS)]
    lines = write_lines(folder / "pairs.jsonl", rows)
    (folder / "pairs.json").write_text(json.dumps(rows), "utf-8")
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "pairs.parquet")
    write_lines(folder / "truth.jsonl", [{"text": f"a b {text(4)}"} for _ in range(ROWS)])
    write_lines(folder / "completions.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
    (folder / "reward.py").write_text(REWARD, "utf-8")
    for name, recipe in RECIPES.items():
        write_recipe(folder / f"{name}.yaml", recipe | {"recipe": name})


def write_lines(path: Path, rows: list[Any]) -> bytes:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(data)
    return data


def write_recipe(path: Path, recipe: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe)), sort_keys=False), "utf-8")


# ------------------------------------------------------------------------------------------------------- settings

HOSTILE = ["\x1b[31mred\x1b[0m", "\x00", "\ud800", "a" * 100_000, "a\nb", "a\rb", "\t", " ", "\u202eevil", "é漢😀"]
HOSTILE += ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "](x) | `a`", "{{ 7*7 }}", "{% for %}", "[/red]"]
HOSTILE += ["$(touch pwned)", "'; touch pwned; '", "!!python/object/apply:os.system ['touch pwned']", "%s%n", "-rf", "--help"]
HOSTILE += ["../pwned", "/etc/passwd", "~nouser/x", "~", ".", "..", "/dev/zero", "x:y:z", "null", "NaN", "*", "|"]
NUMBERS = [math.nan, math.inf, -1, 0, 0.5, 5e-324, 1e-320, 1e200, 1e308, 10**9, 10**30]
VALUES: list[Any] = [*NUMBERS, "nonsense", "", True, None, [], {}, [-1], [10**9], ["nonsense"], [[1e-320, 0], [0, 1e-320]], {"a": 1}]
KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}


def fits(value: Any, schema: Mapping[str, Any], blocks: Mapping[str, Any]) -> bool:
    """Whether a JSON schema takes a value; of lists and mappings only that they are ones."""
    if "$ref" in schema:
        return fits(value, blocks[schema["$ref"].rpartition("/")[2]], blocks)
    if "anyOf" in schema:
        return any(fits(value, one, blocks) for one in schema["anyOf"])
    kind = KINDS[type(value)]
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if schema.get("type", kind) not in (kind, *(("number",) if kind == "integer" else ())):
        return False
    if kind not in ("integer", "number"):
        return len(value or "") >= schema.get("minLength", schema.get("minItems", 0)) or value is None
    inside = schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf) and not math.isinf(value)
    return inside and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)


def settings(schema: Mapping[str, Any], blocks: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The paths and schemas of all settings of a block."""
    for one in schema.get("anyOf", [schema]):
        one = blocks[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        for name, inner in one.get("properties", {}).items():
            yield f"{path}{name}", inner
            yield from settings(inner, blocks, f"{path}{name}.")


def put(here: Path, draw: random.Random, *, file: str, path: str, value: Any) -> None:
    """Change a setting in a recipe."""
    recipe = yaml.safe_load((here / file).read_text("utf-8"))
    *above, last = path.split(".")
    block = recipe
    for name in above:
        if not isinstance(block.get(name), dict):
            block[name] = {}
        block = block[name]
    block[last] = value
    (here / file).write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")


def setting(group: str, run: str, path: str, value: Any, expect: str = "any") -> Trial:
    change = partial(put, file=f"{run}.yaml", path=path, value=value)
    return Trial(group, f"{run}: {path} = {shown(value)}", run, change=change, expect=expect)


def shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) < 50 else f"{text[:40]}… ({len(text)})"


def of_settings(draw: random.Random) -> Iterator[Trial]:
    for run, kind in (("mixture", "mixture"), ("grammar", "grammar"), ("dpo", "text"), ("prompt", "text")):
        world = WORLDS[kind]
        models: dict[str, Any] = {"world": world.world, "teacher": world.teacher, **world.stages, **world.blocks}
        models |= {"": Run} if run == "dpo" else {}
        for block, model in models.items() if run != "prompt" else [("world", world.world)]:
            schema = model.model_json_schema()
            blocks = schema.get("$defs", {})
            for path, inner in settings(schema, blocks, f"{block}." if block else ""):
                for value in [*VALUES, *draw.sample(HOSTILE, 2)]:
                    wrong = not fits(value, inner, blocks)
                    yield setting(f"settings: {kind}", run, path, value, "refused" if wrong else "any")
        for key in (*filter(None, models), "recipe", "description", "orders", "seeds", "sweep", "unknown"):
            for value in [*VALUES, *draw.sample(HOSTILE, 2)]:
                yield setting("recipes", run, key, value)


ASKED: dict[str, list[Any]] = {
    "optim": ["galore_adamw", "nonsense", "adamw_8bit"],
    "lr_scheduler_type": ["nonsense"],
    "eval_strategy": ["steps"],
    "use_liger_kernel": [True],
    "torch_compile": [True],
    "eos_token": ["nonsense"],
    "bf16": [True],
    "fp16": [True],
    "use_vllm": [True],
    "deepspeed": ["nonsense.json"],
    "report_to": ["nonsense", "wandb"],
}
"""Arguments of the right kind that ask for what is not there."""


def of_trainers(draw: random.Random) -> Iterator[Trial]:
    for run, stage, name in (("dpo", "align", "DPO"), ("dpo", "distill", "SFT"), ("rloo", "align", "RLOO")):
        for argument in dataclasses.fields(trainer_config(name)):
            path = f"{stage}.trainer.{argument.name}"
            for value in ASKED.get(argument.name, []):
                yield setting("trainer arguments: not there", run, path, value)
            for value in VALUES if argument.init else []:
                yield setting("trainer arguments", run, path, value)


# ----------------------------------------------------------------------------------------------------------- files


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def zeros(path: Path, draw: random.Random) -> None:
    """A page of zeros, as a file has where its blocks were not written."""
    data = bytearray(path.read_bytes())
    start = draw.randrange(0, len(data), 4096)
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def instead(path: Path, draw: random.Random, *, make: Callable[[Path], Any]) -> None:
    if path.exists():
        path.unlink()
    make(path)


def of(data: bytes | str) -> Change:
    return partial(instead, make=lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode()))


def recoded(path: Path, draw: random.Random, *, codec: str) -> None:
    path.write_bytes(path.read_text("utf-8", "replace").encode(codec))


BYTES: dict[str, Change] = {"a bit": flip, "cut": cut, "a page of zeros": zeros}
DAMAGES: dict[str, Change] = {
    **BYTES,
    "missing": partial(instead, make=lambda path: None),
    "a folder": partial(instead, make=Path.mkdir),
    "a pipe": partial(instead, make=os.mkfifo),
    "without end": partial(instead, make=lambda path: path.symlink_to("/dev/zero")),
    "a circle": partial(instead, make=lambda path: path.symlink_to(path.name)),
    "empty": of(""),
    "zero": of(b"\x00" * 4096),
    "null": of("null"),
    "a list": of("[]"),
    "a list of numbers": of("[1, 2]"),
    "a text": of('"x"'),
    "a mapping": of("{}"),
    "a number": of("1" * 5000),
    "deep": of("[" * 100_000),
    "a mark": partial(recoded, codec="utf-8-sig"),
    "UTF-16": partial(recoded, codec="utf-16"),
}
GONE = ("missing", "a folder", "a pipe", "without end", "a circle", "empty", "zero")


def at(name: str, change: Change) -> Change:
    return lambda here, draw: change(here / name, draw)


COMPLETIONS = ("--order", "distill", "--set", "distill.completions=completions.jsonl")
FILES: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    **{
        name: [("dpo", ("--data", name)), ("audit", ("--data", name))]
        for name in ("pairs.jsonl", "pairs.json", "pairs.jsonl.gz", "pairs.parquet")
    },
    "truth.jsonl": [("prompt", ())],
    "completions.jsonl": [("dpo", COMPLETIONS)],
    "reward.py": [("rloo", ()), ("audit", ())],
    **{f"teacher/{name}": [("dpo", ()), ("audit", ())] for name in ("config.json", "tokenizer.json", "model.safetensors")},
    **{f"teacher/{name}": [("dpo", ()), ("audit", ())] for name in ("tokenizer_config.json", "generation_config.json")},
    **{f"{name}.yaml": [(name, ())] for name in ("mixture", "text")},
}
"""Files that runs read, and the runs."""
NEEDED = [name for name in FILES if name not in ("teacher/tokenizer_config.json", "teacher/generation_config.json")]


def of_files(draw: random.Random) -> Iterator[Trial]:
    for name, runs in FILES.items():
        group = "models" if "/" in name else "recipes" if name.endswith(".yaml") else "data"
        for what, change in DAMAGES.items():
            run, words = draw.choice(runs)
            marked = what == "a mark" and group == "data" and name.endswith(("json", "jsonl"))
            expect = "refused" if what in GONE and name in NEEDED else "same" if marked else "any"
            yield Trial(group, f"{run}: {name} is {what}", run, words, at(name, change), expect)


ROW = {"prompt": "a b", "chosen": " c d", "rejected": " e f"}
DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]
BROKEN: list[Any] = [None, 5, [], {}, "x", {"prompt": "a"}, ROW | {"chosen": None}, ROW | {"prompt": 5}, ROW | {"more": DEEP}]
BROKEN += [ROW | {"chosen": [ROW]}, ROW | {"chosen": {}}, ROW | {"prompt": 10**3000}, ROW | {"chosen": ROW["rejected"]}]
BROKEN += [ROW | {"prompt": [{"role": "user"}]}, {**ROW, "messages": 5}, *({**ROW, name: ""} for name in ROW)]


def of_rows(draw: random.Random) -> Iterator[Trial]:
    """Rows that are none among rows that are, in the data; alone, in the data and the truth."""

    def write(here: Path, draw: random.Random, *, name: str, rows: list[Any], keep: bool) -> None:
        kept = [json.loads(line) for line in (here / name).read_text("utf-8").splitlines()] if keep else []
        write_lines(here / name, [*kept, *rows])

    texts = [ROW | {draw.choice([*ROW]): text} for text in HOSTILE]
    for row in [*BROKEN, *texts]:
        change = partial(write, name="pairs.jsonl", rows=[row], keep=True)
        yield Trial("data", f"a row {shown(row)}", draw.choice(("dpo", "audit")), change=change)
    for row in BROKEN:
        for run, name in (("dpo", "pairs.jsonl"), ("prompt", "truth.jsonl")):
            change = partial(write, name=name, rows=[row] * 20, keep=False)
            yield Trial("data", f"{run}: {name} of {shown(row)}", run, change=change, expect="refused")
    bomb = gzip.compress(json.dumps(ROW).encode() + b"\n" + bytes(2**31), compresslevel=1)
    yield Trial("data", "a gzip bomb", "audit", ("--data", "pairs.jsonl.gz"), at("pairs.jsonl.gz", of(bomb)), "refused")
    dates = pyarrow.table({**{key: [value] for key, value in ROW.items()}, "at": pyarrow.array([2**62], pyarrow.timestamp("s"))})
    change = at("pairs.parquet", partial(instead, make=lambda path: pyarrow.parquet.write_table(dates, path)))
    yield Trial("data", "a date that overflows", "audit", ("--data", "pairs.parquet"), change)


def of_models(draw: random.Random) -> Iterator[Trial]:
    """Every value of a model's configurations × `VALUES`, and weights that are not those of the configuration."""

    def edit(here: Path, draw: random.Random, *, name: str, key: str, value: Any) -> None:
        path = here / "teacher" / name
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: value}), "utf-8")

    layer = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 32, "rope_parameters": {}}
    more = {"architectures": [], "auto_map": {}, "attn_implementation": "", "quantization_config": {}, "torch_dtype": ""}
    names = {"config.json": [*layer, *more, "model_type", "hidden_act", "eos_token_id", "rms_norm_eps", "dtype", "head_dim"]}
    names["generation_config.json"] = ["eos_token_id", "temperature", "top_k", "max_length", "do_sample"]
    names["tokenizer_config.json"] = ["eos_token", "pad_token", "tokenizer_class", "model_max_length", "chat_template"]
    for name, keys in names.items():
        for key in keys:
            for value in [*VALUES, *draw.sample(HOSTILE, 1)]:
                change = partial(edit, name=name, key=key, value=value)
                yield Trial("models", f"{name}: {key} = {shown(value)}", draw.choice(("dpo", "audit")), change=change)
    wrong = [("config.json", "num_hidden_layers", 3), ("config.json", "num_hidden_layers", -1)]
    wrong += [("config.json", "attn_implementation", "flash_attention_2"), ("config.json", "auto_map", {"AutoConfig": "evil.Evil"})]
    for name, key, value in wrong:
        for run in ("dpo", "audit"):
            change = partial(edit, name=name, key=key, value=value)
            yield Trial("models", f"{run}: {key} = {shown(value)}", run, change=change, expect="refused")

    def weights(here: Path, draw: random.Random, *, edit: Callable[[dict[str, Any]], Any]) -> None:
        path = here / "teacher" / "model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path, {"format": "pt"})

    first = "model.layers.0.mlp.up_proj.weight"
    edits: dict[str, Callable[[dict[str, Any]], Any]] = {
        "NaN": lambda tensors: tensors[first].fill_(math.nan),
        "infinite": lambda tensors: tensors[first].fill_(math.inf),
        "missing": lambda tensors: tensors.pop(first),
        "extra": lambda tensors: tensors.update(extra=torch.zeros(3)),
        "of another shape": lambda tensors: tensors.update({first: torch.zeros(3, 3)}),
        "integers": lambda tensors: tensors.update({first: tensors[first].int()}),
    }
    for what, change in edits.items():
        for run in ("dpo", "audit"):
            expect = "any" if what in ("extra", "integers") else "refused"
            yield Trial("models", f"{run}: weights {what}", run, change=partial(weights, edit=change), expect=expect)
    index = at("teacher/model.safetensors.index.json", of("[]"))
    alone = lambda here, draw: [(here / "teacher" / "model.safetensors").unlink(), index(here, draw)]  # noqa: E731
    yield Trial("models", "an index that is a list", "dpo", change=alone, expect="refused")


CODE = {
    "None": "return None",
    "too few": "return [1.0 for _ in completions][1:]",
    "NaN": "return [float('nan') for _ in completions]",
    "texts": "return ['x' for _ in completions]",
    "Nones": "return [None for _ in completions]",
    "a number": "return 1.0",
    "raises": "raise KeyError('colour')",
    "ends the process": "import sys; sys.exit(0)",
    "huge": "return [1e308 * (1 + len(text)) for text in completions]",
}


def of_rewards(draw: random.Random) -> Iterator[Trial]:
    for what, body in CODE.items():
        source = f"def some(prompts, completions, **_):\n    {body}\n"
        for run in ("rloo", "audit"):
            yield Trial("rewards", f"{run}: a reward: {what}", run, change=at("reward.py", of(source)), expect="stops")
    for what, source in {"no function": "some = 3", "not Python": "def", "raises on import": "1/0"}.items():
        yield Trial("rewards", f"a reward: {what}", "rloo", change=at("reward.py", of(source)), expect="refused")


# ---------------------------------------------------------------------------------------- texts and the environment


def of_texts(draw: random.Random) -> Iterator[Trial]:
    """Hostile texts where no schema leads: flags, names of files, folders, stages and columns."""
    flags = {"audit": ("--teacher", "--data", "--reward", "--map", "--split", "--out", "--device", "--fail-on", "--beta", "--limit")}
    flags["dpo"] = ("--teacher", "--student", "--data", "--reward", "--order", "--set", "--seed", "--store", "--out", "--fail-on")
    flags["mixture"] = ("--orders", "--seeds", "--beta", "--set", "--workers", "--store")
    words = [text for text in [*HOSTILE, "-1", "nan", "1e999", ""] if "\x00" not in text and text.isprintable()]
    words += [text for text in HOSTILE if text.strip() and not text.isprintable() and "\x00" not in text and text != "\ud800"]
    for run, names in flags.items():
        for flag in names:
            for text in words:
                if not (flag in ("--out", "--store") and text.startswith(("/", "..", "~"))):
                    yield Trial("flags", f"{run} {flag} {shown(text)}", run, (flag, text))

    def rename(here: Path, draw: random.Random, *, old: str, new: str) -> None:
        (here / old).rename(here / new)

    for text in words:
        if "/" not in text and text not in (".", "..") and 0 < len(text) < 200:
            for old, flag, new in (("pairs.jsonl", "--data", f"{text}.jsonl"), ("teacher", "--teacher", text)):
                change = partial(rename, old=old, new=new)
                yield Trial("names", f"{old} is called {shown(new)}", "dpo", (flag, new), change)
        change = partial(put, file="mixture.yaml", path=text.replace(".", "") or "x", value={"kind": "align"})
        yield Trial("names", f"a stage is called {shown(text)}", "mixture", change=change)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
STAGES = 10_000


def of_recipes(draw: random.Random) -> Iterator[Trial]:
    """Recipes that are no recipes, and others that are too large."""
    texts = {"anchors that expand": LAUGHS, "code": "!!python/object/apply:os.system ['touch pwned']", "tabs": "\ta: b"}
    texts |= {"a key twice": "seeds: 1\nseeds: 2\n", "a key that is a list": "? [a]\n: b\n", "a date": "seeds: 2025-99-99"}
    texts |= {"a key of a number": "1: 2", "controls": "recipe: \x07", "nothing": "\n", "deep maps": "{a: " * 5000}
    for what, text in texts.items():
        for run in ("mixture", "dpo"):
            yield Trial("recipes", f"{run}: {what}", run, change=at(f"{run}.yaml", of(text)), expect="refused")
    axes = {f"align.{name}": [0.1 + 0.001 * step for step in range(100)] for name in ("beta", "learning_rate", "clip")}
    for path, value in {
        "world.kind": ["mixture"],
        "align.kind": {"a": 1},
        "orders": [" > ".join(["align"] * STAGES)],
        "sweep": axes,
        "recipe": "..",
        "seeds": list(range(10**6)),
    }.items():
        yield setting("recipes", "mixture", path, value, "any" if path == "seeds" else "refused")
    for path, value in {"description": "\ud800", "sweep": {"align.beta": ["x"]}, "orders": "align > align"}.items():
        yield setting("recipes", "dpo", path, value)


def of_environment(draw: random.Random) -> Iterator[Trial]:
    """Terminals, encodings, homes and limits; some need a Python of their own."""
    for run in ("mixture", "audit", "dpo"):
        for name, given in {"ascii": "ascii", "latin-1": "latin-1"}.items():
            environment = {"PYTHONIOENCODING": given, "PYTHONUTF8": "0", "LC_ALL": "C"}
            yield Trial("environment", f"{run}: {name}", run, environment=environment, expect="stops", fresh=True)
        for columns in ("0", "1", "40", "x"):
            yield Trial("environment", f"{run}: {columns} columns", run, environment={"COLUMNS": columns}, expect="same")
        nobody = {"HOME": None, "USER": None, "LOGNAME": None, "PRECEDE_CACHE": None}
        yield Trial("environment", f"{run}: no home", run, environment=nobody, expect="same", fresh=True)
        yield Trial("environment", f"{run}: output closed", run, output="closed", expect="stops", fresh=True)
        yield Trial("environment", f"{run}: output full", run, output="/dev/full", expect="stops", fresh=True)
        for size in (1_000, 20_000):
            yield Trial("environment", f"{run}: files of {size} bytes", run, limits={"RLIMIT_FSIZE": size}, expect="stops")
        yield Trial("environment", f"{run}: 64 open files", run, limits={"RLIMIT_NOFILE": 64}, expect="stops")
        for name in ("out", "store") if run != "audit" else ("out",):
            change = at(name, of("x"))
            yield Trial("environment", f"{run}: {name} is a file", run, change=change, expect="refused")
        if run != "dpo":
            for name in ("figures", "results.json", "audit.html", "report.html"):
                blocked = lambda here, draw, name=name: (here / "out" / name).mkdir(parents=True)  # noqa: E731
                change = blocked if "." in name else at(f"out/{name}", lambda path, draw: (path.parent.mkdir(), path.write_text("")))
                yield Trial("environment", f"{run}: {name} is taken", run, change=change)


SOURCES = (of_settings, of_trainers, of_recipes, of_files, of_rows, of_models, of_rewards, of_texts, of_environment)


def inputs(seed: int) -> list[Trial]:
    """All inputs, the groups in turn, each group's in a random order."""
    draw = random.Random(seed)
    groups: dict[str, list[Trial]] = {}
    for trial in {trial.name: trial for source in SOURCES for trial in source(draw)}.values():
        groups.setdefault(trial.group, []).append(trial)
    for trials in groups.values():
        draw.shuffle(trials)
    rounds = range(max(map(len, groups.values())))
    return [trials[number] for number in rounds for trials in groups.values() if number < len(trials)]
