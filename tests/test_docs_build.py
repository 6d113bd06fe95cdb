"""Every command of the how-tos and of docs/build.md is run at toy size, and what they say of settings is so."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from build_material import environment, make_inputs, spoken
from precede.settings.base import Settings
from precede.settings.language import Align, Data, Distill, Evaluation, Lora, Run, Sft, TextWorld
from precede.settings.recipe import read_recipe
from precede.stages.registry import METHODS
from test_lm_tiny import tiny_folder

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in ("build", "extrapolation", "howto-order", "howto-node", "howto-small", "howto-api")
]
COMMANDS = [
    (page.stem, line)
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    for line in block.splitlines()
]
TOY = ["data.limit=40", "evaluation.pairs=8", "data.held_out=0.3", "fail_on=null"]
"""What makes a how-to's command small: fewer rows; and the toy teacher, which is random, may be called trapped."""


def recipes_of(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text("utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of, with a tiny teacher and student."""
    folder = tmp_path_factory.mktemp("howto")
    make_inputs(folder)
    tiny_folder(folder / "student", layers=2, seed=4)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    lines = [json.dumps({"prompt": row["prompt"], "completion": row["chosen"]}) for row in rows]
    (folder / "completions.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "examples").symlink_to(ROOT / "examples")
    (node,) = recipes_of("howto-node")
    (folder / "node.yaml").write_text(node)
    (folder / "recipe.yaml").write_text(recipes_of("build")[0])
    (folder / "both.yaml").write_text(recipes_of("build")[1])
    return folder


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_run(page: str, line: str, folder: Path) -> None:
    words = shlex.split(line)
    python = Path(sys.executable)
    if words[0] == "accelerate":  # the node's eight GPUs are two processes on the CPU here
        words = [str(python.with_name("accelerate")), *words[1:]]
        words = [word.replace("fsdp-8", "cpu-2") for word in words]
    else:
        assert words[0] == "precede"
        words = [str(python), "-m", *words]
    if "build" in words or "compare" in words:
        if "--from" not in words:  # what was compared is small already
            words += [part for setting in TOY for part in ("--set", setting)]
        words += ["--set", "seeds=1"] if "--seeds" in words else []
        words += ["--store", "store"]
    done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, spoken(done)
    if "--dry-run" in words:
        assert "nothing is run" in done.stdout
    elif "build" in words:
        assert (folder / words[words.index("--out") + 1] / "model.safetensors").is_file()
    if words[-1] == "store" and "both.yaml" in words and "build" in words:  # the command before has trained it
        assert "0 stages run, 2 taken from the store" in done.stdout
    if "--from" in words:
        assert "0 stages run" in done.stdout
        (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text("utf-8"), re.DOTALL)
        loaded = subprocess.run([str(python), "-c", script], cwd=folder, env=environment(folder), capture_output=True)
        assert loaded.returncode == 0, loaded.stderr


BLOCKS: dict[str, type[Settings]] = {
    "data": Data,
    "world": TextWorld,
    "evaluation": Evaluation,
    "sft": Sft,
    "align": Align,
    "distill": Distill,
}


def test_the_recipe_of_the_reference_has_every_setting_and_the_defaults() -> None:
    """Read, it is the recipe that names nothing but teacher, student and data; and no setting is left out of it."""
    raw: dict[str, Any] = yaml.safe_load(recipes_of("build")[0])
    models = {name: raw[name] for name in ("teacher", "student")}
    shown, plain = read_recipe(raw), read_recipe({**models, "data": raw["data"]["source"], "sft": {}})
    assert shown.variants == plain.variants
    assert shown.run == plain.run
    assert (shown.name, shown.orders, shown.seeds) == (plain.name, plain.orders, plain.seeds)
    assert set(raw) >= set(Run.model_fields)
    for name, model in BLOCKS.items():
        assert set(raw[name]) | {"kind", "prompt"} == set(model.model_fields) | {"kind", "prompt"}, name
    page = (ROOT / "docs" / "build.md").read_text("utf-8")
    for name in ("rank", "alpha"):
        assert f"{name}: {Lora.model_fields[name].default:g}" in page
    for name in ("rloo", "grpo"):
        count = METHODS[name].defaults["rows"]["trainer"]["num_generations"]
        assert f"`num_generations: {count}`" in page
