"""`precede.compare`, `precede.audit`, `precede.build`, `precede.load_recipe`: from scripts, from notebooks, as documented."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import precede
from build_material import make_inputs
from conftest import SMALL
from test_lm_tiny import tiny_folder

VERBS = ("compare", "audit", "build", "load_recipe")
QUICK: dict[str, Any] = {**SMALL, "seeds": 2, "sweep": []}
SCRIPT = """
import precede

found = precede.compare({recipe!r}, out="out", store="store", workers=2)
print("runs", len(found.results["runs"]), found.stages_run)
"""


def run(arguments: list[str], cwd: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PRECEDE_CACHE": str(cwd / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, input=text, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("how", ["a script", "stdin"])
def test_no_main_guard_is_needed(how: str, tmp_path: Path) -> None:
    """A script without `if __name__ == "__main__"`, and a session without a file as notebooks are, use workers all the same."""
    text = SCRIPT.format(recipe=QUICK)
    if how == "a script":
        (tmp_path / "script.py").write_text(text, "utf-8")
        done = run(["script.py"], tmp_path)
    else:
        done = run(["-"], tmp_path, text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("runs") == 1
    assert "runs 6 6" in done.stdout
    assert (tmp_path / "out" / "report.html").is_file()
    assert [path.parent.name for path in tmp_path.rglob("results.json")] == ["out"]
    assert {path.name for path in tmp_path.iterdir()} <= {"script.py", "out", "store", "cache"}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_are_typed_functions(verb: str) -> None:
    function = getattr(precede, verb)
    assert inspect.isfunction(function)
    signature = inspect.signature(function)
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())
    assert signature.return_annotation is not inspect.Signature.empty
    assert function.__doc__


def test_verbs_stay_what_they_are_when_modules_are_imported(tmp_path: Path) -> None:
    code = f"""
import importlib, inspect, pkgutil, precede
verbs = {VERBS!r}
before = [getattr(precede, verb) for verb in verbs]
signatures = [inspect.signature(verb) for verb in before]
names = [one.name for one in pkgutil.walk_packages(precede.__path__, "precede.") if one.name != "precede.__main__"]
for name in names:
    importlib.import_module(name)
assert all(getattr(precede, verb) is one for verb, one in zip(verbs, before))
assert [inspect.signature(getattr(precede, verb)) for verb in verbs] == signatures
print(len(names))
"""
    done = run(["-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 50


@pytest.mark.parametrize("verb", VERBS)
def test_documented_examples_run(verb: str, tmp_path: Path) -> None:
    """The example of each docstring, on tiny models and rows; `mixture` at the size of the tests' small recipe."""
    documented = inspect.getdoc(getattr(precede, verb)) or ""
    example = "\n".join(line[4:] for line in documented.splitlines() if line.startswith("    "))
    assert f"precede.{verb}(" in example
    make_inputs(tmp_path)
    tiny_folder(tmp_path / "student", layers=2)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(QUICK), "utf-8")
    example = re.sub(r'compare\("mixture"\)', 'compare("small.yaml")', example)
    done = run(["-"], tmp_path, f"import precede\n{example}\n")
    assert done.returncode == 0, done.stderr
    if verb == "build":
        assert json.loads((tmp_path / "my-model" / "build.json").read_text("utf-8"))["order"] == "align > distill"


def test_recipes_are_names_paths_or_mappings(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL, sort_keys=False), "utf-8")
    ways = [precede.load_recipe(one, ["seeds=3"]) for one in (path, str(path), SMALL)]
    assert ways[0] == ways[1] == ways[2]
    assert ways[0].seeds == (0, 1, 2)
    assert precede.load_recipe("mixture").name == "mixture"
