from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from precede.recipe import Recipe, read_recipe
from precede.schema import MixtureAlign, MixtureDistill, MixtureTeacher, MixtureWorld
from precede.store import Stage, Store

os.environ.setdefault("HF_HUB_OFFLINE", "1")


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
    """Makes mixture stages by hand."""

    def __init__(self, seeds: tuple[int, ...], **world: Any) -> None:
        self.world = MixtureWorld(kind="mixture", **world).model_dump(mode="json")
        self.seeds = seeds

    def teacher(self, **config: Any) -> Stage:
        return self._stage("teacher", "teacher", MixtureTeacher(**config).active(), None)

    def distill(self, parent: Stage, **config: Any) -> Stage:
        return self._stage("distill", "distill", MixtureDistill(kind="distill", **config).active(), parent)

    def align(self, parent: Stage, **config: Any) -> Stage:
        return self._stage("align", "align", MixtureAlign(kind="align", **config).active(), parent)

    def _stage(self, name: str, kind: str, config: dict[str, Any], parent: Stage | None) -> Stage:
        return Stage(name, kind, self.world, config, parent, self.seeds, 1)


@pytest.fixture
def stages() -> type[Stages]:
    return Stages


def random_mixtures(generator: torch.Generator, rows: int, components: int) -> torch.Tensor:
    """Parameters (rows, components, 6) of well-behaved random mixtures."""
    parameters = torch.randn(rows, components, 6, generator=generator, dtype=torch.float64)
    parameters[..., [3, 5]] = 0.4 * parameters[..., [3, 5]] - 0.7
    parameters[..., 4] *= 0.3
    return parameters
