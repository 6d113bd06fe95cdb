"""Wrong files for `campaign_inputs.py`: every kind of file that runs read × `DAMAGES`, rows, models and rewards."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import load_file, save_file

from campaign_runs import Around, write_lines

Change = Callable[[Path, random.Random], Any]
"""What is done to a run's folder, or to a file."""


@dataclass(frozen=True)
class Input:
    """A run of `RUNS` in a folder that `change` has changed, with more words."""

    group: str
    name: str
    run: str
    words: tuple[str, ...] = ()
    change: Change = lambda here, draw: None
    expect: str = "any"
    """`refused`; `same` (ends as the undisturbed run does); `stops` (what only the run can show); `quiet` (it ends, and says no
    word); `any`: it is refused, or ends without a fault."""
    around: Around | None = None


HOSTILE = ["\x1b[31mred\x1b[0m", "\x00", "\ud800", "a" * 100_000, "a\nb", "a\rb", "\t", " ", "\u202eevil", "é漢😀"]
HOSTILE += [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "](x) | `a`",
    "{{ 7*7 }}",
    "{% for %}",
    "[/red]",
]
HOSTILE += ["$(touch pwned)", "'; touch pwned; '", "!!python/object/apply:os.system ['touch pwned']", "%s%n", "-rf"]
HOSTILE += [
    "--help",
    "../pwned",
    "/etc/passwd",
    "~nouser/x",
    "~",
    ".",
    "..",
    "/dev/zero",
    "x:y:z",
    "null",
    "NaN",
    "*",
    "|",
]
VALUES: list[Any] = [
    math.nan,
    math.inf,
    -1,
    0,
    0.5,
    5e-324,
    1e-320,
    1e200,
    1e308,
    10**9,
    10**30,
    "nonsense",
    "",
    True,
    None,
]
VALUES += [[], {}, [-1], [10**9], ["nonsense"], [[1e-320, 0], [0, 1e-320]], {"a": 1}]


def shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) < 60 else f"{text[:50]}… ({len(text)})"


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


def instead(make: Callable[[Path], Any]) -> Change:
    return lambda path, draw: (path.unlink(missing_ok=True), make(path))


def of(data: bytes | str) -> Change:
    return instead(lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode()))


def at(name: str, change: Change) -> Change:
    return lambda here, draw: change(here / name, draw)


BYTES: dict[str, Change] = {"a bit flipped": flip, "cut": cut, "a page of zeros": zeros}
GONE: dict[str, Change] = {
    "missing": instead(lambda path: None),
    "a folder": instead(Path.mkdir),
    "a pipe": instead(os.mkfifo),
    "without end": instead(lambda path: path.symlink_to("/dev/zero")),
    "a circle": instead(lambda path: path.symlink_to(path.name)),
}
TEXTS = {"empty": "", "zero": "\x00" * 4096, "null": "null", "a list": "[]", "numbers": "[1, 2]", "a text": '"x"'}
TEXTS |= {"a mapping": "{}", "a number": "1" * 5000, "deep": "[" * 100_000}
DAMAGES = {**BYTES, **GONE, **{what: of(text) for what, text in TEXTS.items()}}
MARKED: Change = lambda path, draw: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # noqa: E731
WIDE: Change = lambda path, draw: path.write_bytes(path.read_text("utf-8").encode("utf-16"))  # noqa: E731

EITHER = ("dpo", "audit")
MODEL = ("config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json", "generation_config.json")
FILES = {
    name: [(run, ("--data", name)) for run in EITHER] for name in ("pairs.json", "pairs.jsonl.gz", "pairs.parquet")
}
FILES |= {"pairs.jsonl": [("dpo", ()), ("audit", ())], "truth.jsonl": [("prompt", ())]}
FILES |= {
    "completions.jsonl": [("dpo", ("--set", "orders=[distill]", "--set", "distill.completions=completions.jsonl"))]
}
FILES |= {"reward.py": [("rloo", ()), ("audit", ())], "mixture.yaml": [("mixture", ())], "text.yaml": [("text", ())]}
FILES |= {f"teacher/{name}": [("dpo", ()), ("audit", ())] for name in MODEL}
"""Files that runs read, and those runs."""


def of_files(draw: random.Random) -> Iterator[Input]:
    for name, runs in FILES.items():
        group = "models" if "/" in name else "recipes" if name.endswith("yaml") else "data"
        for what, change in DAMAGES.items():
            run, words = draw.choice(runs)
            needed = not name.endswith(("tokenizer_config.json", "generation_config.json"))
            expect = "refused" if needed and what in (*GONE, "empty", "zero") else "any"
            yield Input(group, f"{run}: {name} is {what}", run, words, at(name, change), expect)
        if name.endswith((".json", ".jsonl", ".yaml")):
            run, words = draw.choice(runs)
            marked = (
                "any" if group == "models" or name.startswith("completions") else "same"
            )  # those make another order
            yield Input(group, f"{run}: {name} with a mark", run, words, at(name, MARKED), marked)
            yield Input(group, f"{run}: {name} in UTF-16", run, words, at(name, WIDE))


ROW = {"prompt": "a b", "chosen": " c d", "rejected": " e f"}
BROKEN: list[Any] = [None, 5, [], {}, "x", {"prompt": "a"}, ROW | {"chosen": None}, ROW | {"prompt": 5}]
BROKEN += [ROW | {"chosen": [ROW]}, ROW | {"chosen": {}}, ROW | {"prompt": 10**3000}, ROW | {"chosen": ROW["rejected"]}]
BROKEN += [ROW | {"prompt": [{"role": "user"}]}, {**ROW, "messages": 5}, *({**ROW, name: ""} for name in ROW)]


def of_rows(draw: random.Random) -> Iterator[Input]:
    """Rows that are none among rows that are; alone, in the data and the truth."""
    for row in [*BROKEN, *(ROW | {draw.choice([*ROW]): text} for text in HOSTILE)]:
        line = json.dumps(row) + "\n"
        more = at("pairs.jsonl", lambda path, draw, line=line: path.write_text(path.read_text("utf-8") + line, "utf-8"))
        yield Input("data", f"a row {shown(row)}", draw.choice(EITHER), change=more)
    for row in BROKEN:
        for run, name in (("dpo", "pairs.jsonl"), ("prompt", "truth.jsonl")):
            alone = at(name, lambda path, draw, row=row: write_lines(path, [row] * 20))
            yield Input("data", f"{run}: {name} of {shown(row)}", run, change=alone, expect="refused")
    deep, digits = "[" * 500 + "]" * 500, "1" * 5000
    for what, line in {
        "deep": f'{{"text": {deep}}}',
        "digits": f'{{"text": {digits}}}',
        "half": '{"text": "\\ud800"}',
    }.items():
        for run, name in (("dpo", "pairs.jsonl"), ("prompt", "truth.jsonl")):
            yield Input("data", f"{run}: {name}: {what}", run, change=at(name, of(f"{line}\n")), expect="refused")
    bomb = at("pairs.jsonl.gz", lambda path, draw: path.write_bytes(gzip.compress(bytes(2**31), 1)))
    yield Input("data", "a gzip bomb", "audit", ("--data", "pairs.jsonl.gz"), bomb, "refused")
    dates = {"at": pyarrow.array([2**62], pyarrow.timestamp("s")), **{key: [value] for key, value in ROW.items()}}
    late = at("pairs.parquet", lambda path, draw: pyarrow.parquet.write_table(pyarrow.table(dates), path))
    yield Input("data", "a date that overflows", "audit", ("--data", "pairs.parquet"), late)


KEYS = {
    "config.json": "hidden_size num_hidden_layers num_attention_heads vocab_size rope_parameters architectures model_type "
    "auto_map attn_implementation quantization_config dtype hidden_act eos_token_id rms_norm_eps head_dim",
    "generation_config.json": "eos_token_id temperature top_k max_length do_sample",
    "tokenizer_config.json": "eos_token pad_token tokenizer_class model_max_length chat_template",
}
LAYER = "model.layers.0.mlp.up_proj.weight"
WEIGHTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": lambda tensors: tensors[LAYER].fill_(math.nan),
    "infinite": lambda tensors: tensors[LAYER].fill_(math.inf),
    "missing": lambda tensors: tensors.pop(LAYER),
    "of another shape": lambda tensors: tensors.update({LAYER: torch.zeros(3, 3)}),
    "integers": lambda tensors: tensors.update({LAYER: tensors[LAYER].int()}),
}


def of_models(draw: random.Random) -> Iterator[Input]:
    """Values of a model's configurations × `VALUES`, and weights that are not those of the configuration."""

    def edited(name: str, key: str, value: Any, run: str, expect: str = "any") -> Input:
        def edit(path: Path, draw: random.Random) -> None:
            path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: value}), "utf-8")

        return Input("models", f"{run}: {key} = {shown(value)} in {name}", run, (), at(f"teacher/{name}", edit), expect)

    for name, keys in KEYS.items():
        for key in keys.split():
            for value in [*VALUES, *draw.sample(HOSTILE, 1)]:
                yield edited(name, key, value, draw.choice(EITHER))
    for run in EITHER:
        for layers in (3, -1):  # of the 4 that there are
            yield edited("config.json", "num_hidden_layers", layers, run, "refused")
        yield edited("config.json", "attn_implementation", "flash_attention_2", run)
        yield edited("config.json", "auto_map", {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}, run)
        yield edited("tokenizer_config.json", "chat_template", "{% for i in range(10 ** 12) %}{% endfor %}", run)
        for what, change in WEIGHTS.items():

            def edit(path: Path, draw: random.Random, change: Callable[[dict[str, Any]], Any] = change) -> None:
                tensors = load_file(path)
                change(tensors)
                save_file(tensors, path, {"format": "pt"})

            weights = at("teacher/model.safetensors", edit)
            yield Input(
                "models", f"{run}: weights {what}", run, (), weights, "any" if what == "integers" else "refused"
            )
        index = at(
            "teacher", lambda path, draw: (path / "model.safetensors").rename(path / "model.safetensors.index.json")
        )
        yield Input("models", f"{run}: an index that is none", run, (), index, "refused")


CODE = {
    "None": "return None",
    "too few": "return [1.0 for _ in completions][1:]",
    "texts": "return ['x' for _ in completions]",
}
CODE |= {"NaN": "return [float('nan') for _ in completions]", "Nones": "return [None for _ in completions]"}
CODE |= {"a number": "return 1.0", "raises": "raise KeyError('x')", "ends the process": "import sys; sys.exit(0)"}
CODE |= {"huge": "return [1e308 * (1 + len(text)) for text in completions]"}


def of_rewards(draw: random.Random) -> Iterator[Input]:
    for what, body in CODE.items():
        for run in ("rloo", "audit"):
            change = at("reward.py", of(f"def some(prompts, completions, **_):\n    {body}\n"))
            yield Input("rewards", f"{run}: a reward: {what}", run, change=change, expect="stops")
    for what, source in {"no function": "some = 3", "not Python": "def", "raises on import": "1/0"}.items():
        yield Input("rewards", f"a reward: {what}", "rloo", change=at("reward.py", of(source)), expect="refused")
