"""Wrong inputs of the runs in `campaign_runs.py`.

They come from the settings' schemas (every setting × `VALUES`), from TRL's arguments, from the readers (`campaign_files.py`),
and from `HOSTILE`, a corpus of texts, in the places that take a text.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from campaign_files import HOSTILE, VALUES, Change, Input, at, of, of_files, of_models, of_rewards, of_rows, shown
from campaign_runs import Around
from precede.libraries import trainer_config
from precede.settings.language import Run
from precede.settings.recipe import WORLDS

KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def fits(value: Any, schema: Mapping[str, Any], blocks: Mapping[str, Any]) -> bool:
    """Whether a JSON schema takes a value; of lists and mappings only that they are ones."""
    if "$ref" in schema:
        return fits(value, blocks[schema["$ref"].rpartition("/")[2]], blocks)
    if "anyOf" in schema:
        return any(fits(value, one, blocks) for one in schema["anyOf"])
    kind = KINDS.get(type(value), "null")
    if "enum" in schema or "const" in schema:
        return value in schema.get("enum", [schema.get("const")])
    if schema.get("type", kind) not in (kind, *(("number",) if kind == "integer" else ())):
        return False
    if kind in ("string", "array"):
        return len(value) >= schema.get("minLength", schema.get("minItems", 0))
    if kind not in ("integer", "number"):
        return True
    inside = schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf) and not math.isinf(value)
    return inside and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)


def settings(
    schema: Mapping[str, Any], blocks: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The paths and schemas of all settings of a block."""
    for one in schema.get("anyOf", [schema]):
        one = blocks[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        for name, inner in one.get("properties", {}).items():
            yield f"{path}{name}", inner
            yield from settings(inner, blocks, f"{path}{name}.")


def setting(group: str, run: str, path: str, value: Any, expect: str = "any") -> Input:
    def put(here: Path, draw: random.Random) -> None:
        file = here / f"{run}.yaml"
        block = recipe = yaml.safe_load(file.read_text("utf-8"))
        *above, last = path.split(".")
        for name in above:
            block[name] = block[name] if isinstance(block.get(name), dict) else {}
            block = block[name]
        block[last] = value
        file.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")

    return Input(group, f"{run}: {path} = {shown(value)}", run, change=put, expect=expect)


def of_settings(draw: random.Random) -> Iterator[Input]:
    for run, kind in (("mixture", "mixture"), ("grammar", "grammar"), ("dpo", "text"), ("prompt", "text")):
        world = WORLDS[kind]
        models: dict[str, Any] = {"world": world.world, "teacher": world.teacher, **world.stages, **world.blocks}
        models = {"world": world.world} if run == "prompt" else models | ({"": Run} if run == "dpo" else {})
        for block, model in models.items():
            schema = model.model_json_schema()
            blocks = schema.get("$defs", {})
            for path, inner in settings(schema, blocks, f"{block}." if block else ""):
                for value in [*VALUES, *draw.sample(HOSTILE, 2)]:
                    expect = "any" if fits(value, inner, blocks) else "refused"
                    yield setting(f"settings: {kind}", run, path, value, expect)
        for key in (*filter(None, models), "recipe", "description", "orders", "seeds", "sweep", "unknown"):
            for value in [*VALUES, *draw.sample(HOSTILE, 2)]:
                yield setting("recipes", run, key, value)


ABSENT = {
    "optim": ["galore_adamw", "nonsense", "adamw_8bit"],
    "lr_scheduler_type": ["nonsense"],
    "eval_strategy": ["steps"],
}
ABSENT |= {name: [True] for name in ("use_liger_kernel", "torch_compile", "bf16", "fp16", "use_vllm")}
ABSENT |= {"eos_token": ["nonsense"], "deepspeed": ["nonsense.json"], "report_to": ["nonsense", "wandb"]}
"""Arguments of the right kind that ask for what may not be there."""


def of_trainers(draw: random.Random) -> Iterator[Input]:
    for run, stage, name in (("dpo", "align", "DPO"), ("dpo", "distill", "SFT"), ("rloo", "align", "RLOO")):
        for argument in dataclasses.fields(trainer_config(name)):
            path = f"{stage}.trainer.{argument.name}"
            for value in ABSENT.get(argument.name, []):
                yield setting("trainer arguments: absent", run, path, value)
            for value in VALUES if argument.init else []:
                yield setting("trainer arguments", run, path, value)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def of_recipes(draw: random.Random) -> Iterator[Input]:
    """Recipes that are no recipes, and others that are too large."""
    texts = {"anchors that expand": LAUGHS, "code": "!!python/object/apply:os.system ['touch pwned']", "tabs": "\ta: b"}
    texts |= {
        "a key twice": "seeds: 1\nseeds: 2\n",
        "a key that is a list": "? [a]\n: b\n",
        "a date": "seeds: 2025-99-99",
    }
    texts |= {"a key of a number": "1: 2", "controls": "recipe: \x07", "nothing": "\n", "deep maps": "{a: " * 5000}
    for what, text in texts.items():
        for run in ("mixture", "dpo"):
            yield Input("recipes", f"{run}: {what}", run, change=at(f"{run}.yaml", of(text)), expect="refused")
    grid = {f"align.{name}": [0.1 + 0.001 * step for step in range(100)] for name in ("beta", "learning_rate", "clip")}
    wrong = {
        "world.kind": ["mixture"],
        "align.kind": {"a": 1},
        "orders": [" > ".join(["align"] * 10_000)],
        "sweep": grid,
    }
    for path, value in {**wrong, "recipe": "..", "seeds": [0, 0]}.items():
        yield setting("recipes", "mixture", path, value, "refused")

    def share(path: Path, draw: random.Random) -> None:
        recipe = yaml.safe_load(path.read_text("utf-8"))
        path.write_text(yaml.safe_dump(recipe | {"distill": recipe["align"]}, sort_keys=False), "utf-8")

    yield Input("recipes", "text: stages that share an anchor", "text", change=at("text.yaml", share), expect="same")
    for path, value in {"description": "\ud800", "orders": "align > align", "seeds": [*range(10**5)]}.items():
        yield setting("recipes", "dpo", path, value)


# ---------------------------------------------------------------------------------------- texts and the environment

FLAGS = {
    "audit": "--teacher --data --reward --map --split --out --device --fail-on --beta --limit --samples --target-reward"
}
FLAGS |= {
    "dpo": "--teacher --student --data --reward --order --set --seed --keep-layers --store --out --fail-on --limit"
}
FLAGS |= {"mixture": "--orders --seeds --beta --set --workers --store --out"}


def of_texts(draw: random.Random) -> Iterator[Input]:
    """Hostile texts where no schema leads: flags, names of files, folders and stages."""
    words = [
        text for text in [*HOSTILE, "-1", "nan", "1e999", ""] if text not in ("\x00", "\ud800")
    ]  # no argument of a system
    for run, flags in FLAGS.items():
        for flag in flags.split():
            for text in words:
                if flag not in ("--out", "--store") or not text.startswith(("/", "..", "~")):
                    yield Input("flags", f"{run} {flag} {shown(text)}", run, (flag, text))
    for text in words:
        if "/" not in text and text not in (".", "..") and 0 < len(text) < 200:
            for old, flag, new in (("pairs.jsonl", "--data", f"{text}.jsonl"), ("teacher", "--teacher", f"./{text}")):
                rename: Change = lambda here, draw, old=old, new=new: (here / old).rename(here / new)  # noqa: E731
                yield Input("names", f"{old} is called {shown(new)}", "dpo", (flag, new), rename)
        yield setting("names", "mixture", text.replace(".", "") or "x", {"kind": "align"})


def of_environment(draw: random.Random) -> Iterator[Input]:
    """Terminals, encodings, homes, limits, and files that stand where the output goes."""
    nobody = dict.fromkeys(("HOME", "USER", "LOGNAME", "PRECEDE_CACHE"))
    arounds: dict[str, tuple[Around, str]] = {
        **{
            f"output in {codec}": (
                Around({"PYTHONIOENCODING": codec, "PYTHONUTF8": "0", "LC_ALL": "C"}, fresh=True),
                "stops",
            )
            for codec in ("ascii", "latin-1")
        },
        **{f"{columns} columns": (Around({"COLUMNS": columns}), "same") for columns in ("0", "1", "40", "x")},
        "no home": (Around(nobody, fresh=True), "same"),
        "output closed": (Around(output="closed", fresh=True), "quiet"),
        "output full": (Around(output="/dev/full", fresh=True), "stops"),
        "64 open files": (Around(limits={"RLIMIT_NOFILE": 64}), "stops"),
        **{f"files of {size} bytes": (Around(limits={"RLIMIT_FSIZE": size}), "stops") for size in (1_000, 20_000)},
    }
    for run in ("mixture", "audit", "dpo"):
        for what, (around, expect) in arounds.items():
            yield Input("environment", f"{run}: {what}", run, expect=expect, around=around)
        for name in ("out", "store")[: 1 + (run != "audit")]:
            yield Input("environment", f"{run}: {name} is a file", run, change=at(name, of("x")), expect="refused")
        taken = {"mixture": ("figures", "results.json", "report.html"), "audit": ("audit.html", "pairs.parquet")}
        for name in taken.get(run, ()):  # a file where a folder goes, a folder where a file goes
            make: Change = lambda path, draw: (path / "x").mkdir(parents=True) if "." in path.name else in_new(path)  # noqa: E731
            yield Input("environment", f"{run}: {name} is taken", run, change=at(f"out/{name}", make))


def in_new(path: Path) -> None:
    path.parent.mkdir()
    path.touch()


SOURCES = (of_settings, of_trainers, of_recipes, of_files, of_rows, of_models, of_rewards, of_texts, of_environment)


def inputs(seed: int) -> Iterator[Input]:
    """All inputs, the groups in turn, each group's in a random order."""
    draw = random.Random(seed)
    groups: dict[str, list[Input]] = {}
    for one in (one for source in SOURCES for one in source(draw)):
        groups.setdefault(one.group, []).append(one)
    for listed in groups.values():
        draw.shuffle(listed)
    for number in range(max(map(len, groups.values()))):
        yield from (listed[number] for listed in groups.values() if number < len(listed))
