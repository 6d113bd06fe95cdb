"""`precede.compare`, `precede.audit`, `precede.build`, `precede.load_recipe`: from scripts, from notebooks, as documented."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, DatasetDict

import precede
from build_material import make_inputs
from conftest import SMALL
from precede.models.load import load
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


def test_rows_and_loaded_models_may_stand_for_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of rows, a `datasets.Dataset` and a loaded pair give what the paths of the same give; each is written once."""
    monkeypatch.setenv("PRECEDE_CACHE", str(tmp_path / "cache"))
    make_inputs(tmp_path)
    teacher, source = tmp_path / "teacher", tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    pair = load(teacher)
    by_path = precede.audit(str(teacher), source)
    for models, data in ((teacher, rows), ([pair], Dataset.from_list(rows)), (pair, rows)):
        by_value = precede.audit(models, data)
        assert by_value.candidates[0].numbers == by_path.candidates[0].numbers
    assert len([*(tmp_path / "cache" / "given").iterdir()]) == 3  # rows, a data set, a model
    heard: list[str] = []
    quick = {"trainer": {"max_steps": 2}}
    recipe = {"teacher": pair, "student": {"keep_layers": 2}, "data": rows, "align": quick, "distill": quick}
    built = precede.build(recipe, out=tmp_path / "model", store=tmp_path / "store", tell=heard.append)
    assert built.stages_run == 2
    assert any("rows.jsonl: " in line for line in heard)
    again = precede.build(recipe, out=tmp_path / "again", store=tmp_path / "store", tell=heard.append)
    assert again.stages_run == 0
    assert len(load(built.folder)[0].model.layers) == 2


def test_what_cannot_stand_for_a_path_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEDE_CACHE", str(tmp_path / "cache"))
    pair = {"prompt": "a", "chosen": " b", "rejected": " c"}
    with pytest.raises(ValueError, match=r"the data are a DatasetDict; give one split"):
        precede.audit("student", DatasetDict({"train": Dataset.from_list([pair])}))
    with pytest.raises(ValueError, match=r"the rows that were given cannot be written to .*not JSON serializable"):
        precede.audit("student", [{**pair, "rejected": object()}])
    data = {"teacher": "t", "student": "s", "data": "pairs.jsonl"}
    with pytest.raises(ValueError, match=r"lambda>. stands in this script or session"):
        precede.load_recipe({**data, "world": {"reward": lambda completions: [0.0 for _ in completions]}})
    recipe = precede.load_recipe({**data, "world": {"reward": known_reward}})
    assert recipe.variants[0].world["reward"] == f"{Path(__file__).resolve()}:known_reward"


def known_reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_progress_is_shown_unless_somebody_hears_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precede.progress.LINE_SECONDS", 0.0)
        precede.compare(QUICK, out=tmp_path / "a", store=tmp_path / "store", workers=1)
        assert re.search(r"small: stages \d+ of \d+, ", capsys.readouterr().err)
        heard: list[str] = []
        precede.compare(QUICK, out=tmp_path / "b", store=tmp_path / "other", workers=1, tell=heard.append)
        assert "stages" not in capsys.readouterr().err


def test_the_version_is_that_of_the_package() -> None:
    assert precede.__version__ == version("precede")
