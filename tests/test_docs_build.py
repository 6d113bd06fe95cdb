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

from precede.build_recipe import read_build
from precede.settings.build import Align, Build, Data, Distill, Evaluation, Lora, Sft
from test_build_tiny import environment, make_inputs, spoken
from test_lm_tiny import tiny_folder

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("build", "howto-node", "howto-small", "howto-api")]
COMMANDS = [
    (page.stem, line)
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    for line in block.splitlines()
]
TOY = ["data.limit=40", "evaluation.pairs=8", "data.held_out=0.3"]
"""What makes a how-to's command small: fewer rows."""


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
    (found,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "howto-node.md").read_text("utf-8"), re.DOTALL)
    (folder / "node.yaml").write_text(found)
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
    if "build" in words:
        words += [part for setting in TOY for part in ("--set", setting)]
        words += ["--store", "store"]
    done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, spoken(done)
    if "build" in words:
        assert (folder / words[words.index("--out") + 1] / "model.safetensors").is_file()


def test_the_recipe_of_the_reference_is_read_and_has_the_defaults() -> None:
    """Every setting of docs/build.md exists, and is the default where it is not an example."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "build.md").read_text("utf-8"), re.DOTALL)
    raw: dict[str, Any] = yaml.safe_load(text)
    order = raw.pop("order")
    assert order == Build.model_fields["order"].default
    read_build({key: value for key, value in raw.items() if key != "sft"} | {"order": order})
    plain = Build.model_validate({"data": {"source": "x"}})
    for name in Build.model_fields:
        if name not in ("data", "teacher", "student", "order", "evaluation"):
            assert raw[name] == getattr(plain, name), name
    for name, model in (("data", Data), ("evaluation", Evaluation)):
        for key, value in raw[name].items():
            if key != "source":
                default = model.model_fields[key].get_default(call_default_factory=True)
                assert value == default, f"{name}.{key}"
    for name, stage in (("sft", Sft), ("align", Align), ("distill", Distill)):
        for key, value in raw[name].items():
            assert value == (stage.defaults if key == "trainer" else stage.model_fields[key].default), f"{name}.{key}"
    page = (ROOT / "docs" / "build.md").read_text("utf-8")
    assert Lora.model_fields["rank"].default == 16
    assert "rank: 16" in page
    assert Lora.model_fields["alpha"].default == 32
    assert "alpha: 32" in page
    for key in ("samples_per_prompt", "epochs", "clip"):
        assert f"`{key}: {Align.model_fields[key].default}`" in page
