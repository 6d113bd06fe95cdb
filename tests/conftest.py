from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from precede.plan import Node, before_distillation
from precede.settings.mixture import MixtureAlign, MixtureDistill, MixtureTeacher, MixtureWorld
from precede.settings.recipe import Recipe, read_recipe
from precede.store import Store
from precede.worlds.mixture import world as mixture
from precede.worlds.mixture.truth import Truth, make_truth

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LONGEST = [
    "docs_build",
    "docs",
    "build_left",
    "build",
    "user_data",
    "campaign",
    "build_resume",
    "compare_failures",
    "advice",
    "grammar_resume",
    "grammar_world",
    "compare",
    "one_house",
    "folders",
    "forecast",
    "python",
    "lm_training",
    "text_world",
    "audit",
    "doctor",
]
"""Files that take longest: they begin first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    if "PRECEDE_SLOW" not in os.environ:
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason="slow: PRECEDE_SLOW=1 runs it, and so does `make check`"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Stages of the mixture world run on one thread, in tests as in workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20250923)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


SMALL: dict[str, Any] = {
    "recipe": "small",
    "world": {"kind": "mixture"},
    "teacher": {"samples": 400, "restarts": 2},
    "align": {"method": "ppo", "steps": 20, "samples": 64, "pair_count": 100},
    "distill": {"samples": 300, "restarts": 2},
    "orders": ["align > distill", "distill > align"],
    "seeds": 4,
    "sweep": [{"align.method": ["ppo", "dpo", "exact"], "align.beta": [0.1, 0.3]}],
}


@pytest.fixture
def small() -> Recipe:
    return read_recipe(SMALL)


class Stages:
    """Makes nodes of the mixture world by hand."""

    def __init__(self, seeds: tuple[int, ...], **world: Any) -> None:
        self.world = MixtureWorld(kind="mixture", **world).model_dump(mode="json")
        self.seeds = seeds
        self.made = mixture.MixtureWorld(self.world)

    def teacher(self, **config: Any) -> Node:
        return self._node("teacher", MixtureTeacher(**config).active(), {})

    def distill(self, parent: Node, **config: Any) -> Node:
        edges = {"parent": parent, "teacher": parent}
        return self._node("distill", MixtureDistill(kind="distill", **config).active(), edges)

    def align(self, parent: Node, **config: Any) -> Node:
        settings, reference = MixtureAlign(kind="align", **config).active(), parent
        if settings["reference"] == "teacher":
            reference = before_distillation(parent, self.made) or parent
        return self._node("align", settings, {"parent": parent, "reference": reference})

    def measure(self, model: Node) -> Node:
        """The measurement of a model, as a plan lays it out."""
        edges, config = {"model": model}, {"temperature": model.distill_temperature()}
        aligned = next((one for one in reversed(model.lineage()) if one.kind == "align"), None)
        if aligned is not None:
            edges["reference"] = aligned.edges["reference"]
        if model.kind == "align":
            edges["reference_measure"] = self.measure(edges["reference"])
            config["beta"] = model.config["beta"]
        return Node("measure", "measure", self.world, config, edges, self.seeds, 1)

    def metrics(self, store: Store, model: Node) -> dict[str, list[Any]]:
        """What is measured of a model; what is not there yet is run, one node at a time."""
        measure = self.measure(model)
        self.run(store, measure)
        return store.metrics(measure)

    def run(self, store: Store, *nodes: Node) -> None:
        for node in nodes:
            self.run(store, *node.edges.values())
            if not store.has(node):
                self.made.run([node], store)

    def _node(self, kind: str, config: dict[str, Any], edges: dict[str, Node]) -> Node:
        return Node(kind, kind, self.world, config, edges, self.seeds, 1)


@pytest.fixture
def stages() -> type[Stages]:
    return Stages


def random_mixtures(generator: torch.Generator, rows: int, components: int) -> torch.Tensor:
    """Parameters (rows, components, 6) of well-behaved random mixtures."""
    parameters = torch.randn(rows, components, 6, generator=generator, dtype=torch.float64)
    parameters[..., [3, 5]] = 0.4 * parameters[..., [3, 5]] - 0.7
    parameters[..., 4] *= 0.3
    return parameters


def truth_of(reward: str = "bump", **changes: Any) -> Truth:
    """Five modes on a ring, of which the third is the target."""
    config: dict[str, Any] = {"layout": "ring", "modes": 5, "radius": 1.5, "covariance": 0.05, "zipf_exponent": 1.0}
    config |= {"target_modes": [2], "target_weight": 0.05, "reward": {"kind": reward, "width": 0.4}}
    return make_truth(config | changes)


PRECEDE = [sys.executable, "-m", "precede.cli.main"]


def precede(*arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PRECEDE_CACHE": str(cwd / "cache"), "COLUMNS": "200"}
    return subprocess.run(
        [*PRECEDE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small recipe was compared once."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL), "utf-8")
    done = precede("compare", "small.yaml", "--out", "out", "--workers", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout, "utf-8")
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"))
    return loaded


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`build_material.CommandLine`, which is slow to import."""
    from build_material import CommandLine

    return CommandLine(monkeypatch, capfd, tmp_path)
