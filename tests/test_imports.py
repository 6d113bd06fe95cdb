"""The shape of the package, read from its imports: downward only, no circle, and what must never import what."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from precede.machine import SPINS

PACKAGE = Path(__file__).parents[1] / "src" / "precede"
NEVER = (
    ("stages", ("worlds", "plan", "engine", "jobs", "analysis", "report", "cli")),
    ("evaluate", ("worlds", "plan", "engine", "jobs", "analysis", "report", "cli")),
    ("plan", ("worlds", "engine", "jobs", "analysis", "report", "cli")),
    (
        "data",
        ("models", "stages", "evaluate", "scoring", "worlds", "plan", "engine", "jobs", "settings", "report", "cli"),
    ),
    ("models", ("stages", "evaluate", "worlds", "plan", "engine", "jobs", "settings", "report", "cli")),
    ("scoring", ("models", "stages", "evaluate", "worlds", "plan", "engine", "jobs", "settings", "report", "cli")),
    ("settings", ("worlds", "plan", "engine", "jobs", "evaluate", "report", "cli")),
    ("engine", ("jobs", "analysis", "report", "cli")),
    ("worlds", ("engine", "jobs", "analysis", "report", "cli")),
    ("analysis", ("engine", "jobs", "worlds", "report", "cli")),
    ("store", ("plan", "stages", "worlds", "settings", "models", "data")),
)
"""Part of the package → what none of its modules may import."""
ONLY = {"data": ("data", "libraries", "sampling", "seeding")}
"""Part of the package → all of the package that its modules may import."""
PURE = ("theory", "metrics", "stats", "worlds.mixture")
HEAVY = ("transformers", "trl", "peft", "accelerate", "precede.libraries", "precede.models", "precede.worlds.language")
MOST_FILES = 15
"""In the root of the package."""


def imports(source: str, late: bool = False) -> Iterator[str]:
    """Modules that a source imports when it is imported itself; with `late`, also those that its functions import.

    Whatever stands under `if TYPE_CHECKING` is left out.
    """

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "the package imports its modules by their full names"
            assert not node.level, "the package imports its modules by their full names"
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from walk(other)
        elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for child in ast.iter_child_nodes(node):
                yield from walk(child)

    yield from walk(ast.parse(source))


def modules(package: Path) -> dict[str, str]:
    """Dotted name → source of every module."""
    found = {}
    for path in package.rglob("*.py"):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text("utf-8")
    assert found
    return found


def circle(sources: dict[str, str]) -> list[str]:
    """A circle of imports, if there is one."""
    arrows = {
        name: {one for one in imports(source) if one in sources and one != name} for name, source in sources.items()
    }
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(arrows[name]):
                if found := visit(other, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := visit(name, []))), [])


def trespasses(sources: dict[str, str]) -> list[tuple[str, str]]:
    """Imports that `NEVER` forbids or `ONLY` does not allow, of every module."""
    found = []
    for name, source in sources.items():
        own = [one for one in imports(source) if within(one, "precede") and one != "precede"]
        for part, never in NEVER:
            if within(name, f"precede.{part}"):
                found += [(name, one) for one in own if any(within(one, f"precede.{other}") for other in never)]
        for part, only in ONLY.items():
            if within(name, f"precede.{part}"):
                found += [(name, one) for one in own if not any(within(one, f"precede.{other}") for other in only)]
    return found


def heavy(sources: dict[str, str]) -> list[tuple[str, str]]:
    """Imports of language models, anywhere in modules that are `PURE`."""
    return [
        (name, one)
        for name, source in sources.items()
        if any(within(name, f"precede.{pure}") for pure in PURE)
        for one in imports(source, late=True)
        if any(within(one, other) for other in HEAVY)
    ]


def root_files(package: Path) -> list[str]:
    return sorted(path.name for path in package.iterdir() if path.is_file())


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_there_is_no_circle() -> None:
    assert circle(modules(PACKAGE)) == []


def test_imports_run_downward() -> None:
    assert trespasses(modules(PACKAGE)) == []


def test_the_exact_world_and_the_ground_floor_need_no_language_models() -> None:
    assert heavy(modules(PACKAGE)) == []


def test_the_root_is_small() -> None:
    assert len(root_files(PACKAGE)) <= MOST_FILES


def test_every_part_that_is_named_is_there() -> None:
    """A part that was renamed would be held to nothing."""
    named = {part for part, _ in NEVER} | {*ONLY, *PURE} | {other for _, never in NEVER for other in never}
    assert {f"precede.{part}" for part in named} <= {*modules(PACKAGE)}


def made_up(folder: Path, **sources: str) -> Path:
    """A package `precede` of its own; `stages__new="import os"` is its module stages/new.py."""
    for name, source in sources.items():
        path = folder / "precede" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, "utf-8")
    return folder / "precede"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("import precede.b", "from precede.a import x", ["precede.a", "precede.b", "precede.a"]),
        ("from precede import b", "from precede import a", ["precede.a", "precede.b", "precede.a"]),
        ("try:\n    pass\nexcept ImportError:\n    import precede.b", "class A:\n    import precede.a", ["precede.a"]),
        ("import precede.b", "def f():\n    from precede.a import x", []),
        ("import precede.b", "if TYPE_CHECKING:\n    from precede.a import x", []),
        ("import precede.b", "if TYPE_CHECKING:\n    pass\nelse:\n    import precede.a", ["precede.a"]),
    ],
)
def test_a_circle_would_be_seen(one: str, other: str, expected: list[str], tmp_path: Path) -> None:
    found = circle(modules(made_up(tmp_path, a=one, b=other)))
    assert found[: len(expected)] == expected
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("stages__new", "import torch\nfrom precede.worlds.text.world import TextWorld", "precede.worlds.text.world"),
        ("stages__new", "from precede.plan import Node", "precede.plan"),
        ("evaluate__new", "import precede.worlds.mixture", "precede.worlds.mixture"),
        ("evaluate__new", "from precede import plan", "precede.plan"),
        ("plan", "from precede import worlds", "precede.worlds"),
        ("data__new", "from precede.models.load import load", "precede.models.load"),
        ("data__new", "from precede.metrics import Cost", "precede.metrics"),
        ("engine__new", "with x:\n    from precede.jobs import build", "precede.jobs"),
        ("engine__new", "import precede.cli.main", "precede.cli.main"),
    ],
)
def test_a_trespass_would_be_seen(module: str, source: str, imported: str, tmp_path: Path) -> None:
    sources = modules(made_up(tmp_path, **{module: source, "stats": "import precede.worlds"}))
    assert (f"precede.{module.replace('__', '.')}", imported) in trespasses(sources)


def test_what_is_allowed_is_no_trespass(tmp_path: Path) -> None:
    sources = {
        "data__new": "import os\nimport precede\nfrom precede.data.shapes import x\nfrom precede.libraries import trl",
        "stages__new": "def f():\n    from precede.report import card",
        "worlds__new": "from precede.plan import Node",
    }
    assert trespasses(modules(made_up(tmp_path, **sources))) == []


@pytest.mark.parametrize("module", ["theory", "metrics", "stats", "worlds__mixture__new"])
@pytest.mark.parametrize(
    "source", ["import transformers", "def f():\n    from trl import x", "from precede.libraries import y"]
)
def test_what_is_heavy_would_be_seen(module: str, source: str, tmp_path: Path) -> None:
    assert heavy(modules(made_up(tmp_path, **{module: source})))
    assert not heavy(modules(made_up(tmp_path / "other", worlds__text=source)))


def test_a_full_root_would_be_seen(tmp_path: Path) -> None:
    package = made_up(tmp_path, **{f"m{number}": "" for number in range(MOST_FILES + 1)}, data__more="")
    assert len(root_files(package)) == MOST_FILES + 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("PASSIVE", SPINS)),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", "None")),
        ({"GOMP_SPINCOUNT": "7"}, ("None", "7")),
    ],
)
def test_threads_fall_asleep_soon_unless_the_user_says_otherwise(
    given: dict[str, str], expected: tuple[str, str]
) -> None:
    """libgomp reads the variables when torch is imported, so that they have to be there before."""
    script = (
        "import atexit, os, sys; sys.argv = ['precede', '--version']; from precede.cli.main import main; "
        "assert 'torch' not in sys.modules; names = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'); "
        "atexit.register(lambda: print(*(os.environ.get(name) for name in names))); main()"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert tuple(done.stdout.split()[-2:]) == expected, done.stderr
