"""The shape of the package, read from its imports: downward only, no circle, and what must never import what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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
PURE = ("theory", "metrics", "stats", "worlds.mixture")
HEAVY = ("transformers", "trl", "peft", "accelerate", "precede.libraries", "precede.models", "precede.worlds.language")


def imports(source: str, late: bool = False) -> Iterator[str]:
    """Modules that a source imports when it is imported itself; with `late`, also those that its functions import."""

    def walk(nodes: list[ast.stmt]) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for part in ("body", "orelse", "finalbody"):
                    yield from walk(getattr(node, part, []))

    yield from walk(ast.parse(source).body)


def modules(package: Path) -> dict[str, str]:
    """Dotted name → source of every module."""
    found = {}
    for path in package.rglob("*.py"):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text("utf-8")
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
    """Imports that `NEVER` forbids, of every module."""
    found = []
    for name, source in sources.items():
        for part, never in NEVER:
            if within(name, f"precede.{part}"):
                found += [
                    (name, one) for one in imports(source) if any(within(one, f"precede.{other}") for other in never)
                ]
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_there_is_no_circle() -> None:
    assert circle(modules(PACKAGE)) == []


def test_imports_run_downward() -> None:
    assert trespasses(modules(PACKAGE)) == []


def test_the_exact_world_and_the_ground_floor_need_no_language_models() -> None:
    for name, source in modules(PACKAGE).items():
        if any(within(name, f"precede.{pure}") for pure in PURE):
            assert not [one for one in imports(source, late=True) if any(within(one, heavy) for heavy in HEAVY)], name


def test_the_root_is_small() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 14


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (
            {"precede.a": "import precede.b", "precede.b": "from precede.a import x"},
            ["precede.a", "precede.b", "precede.a"],
        ),
        ({"precede.a": "import precede.b", "precede.b": "def f():\n    from precede.a import x"}, []),
    ],
)
def test_a_circle_would_be_seen(sources: dict[str, str], expected: list[str]) -> None:
    assert circle(sources) == expected


def test_a_trespass_would_be_seen() -> None:
    sources = {
        "precede.stages.new": "import torch\nfrom precede.worlds.text.world import TextWorld",
        "precede.plan": "import os",
    }
    assert ("precede.stages.new", "precede.worlds.text.world") in trespasses(sources)
    assert trespasses({"precede.plan": "from precede import worlds"}) == [("precede.plan", "precede.worlds")]
