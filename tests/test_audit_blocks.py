"""An audit that was stopped goes on: what it scored and sampled is kept, by content, block by block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from build_material import make_inputs
from precede.evaluate.audit import Audit, audit
from precede.evaluate.blocks import ROWS
from precede.jobs.audit import audit as job
from precede.models.load import save
from precede.report.audit_output import as_dict
from precede.store import Store
from test_lm_tiny import tiny_model, tiny_tokenizer

PAIRS = 2 * ROWS + 22
SETTINGS: dict[str, Any] = {"samples": 2, "max_new_tokens": 6, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    make_inputs(folder, PAIRS)
    save(tiny_model(layers=2, seed=3), tiny_tokenizer(), folder / "student")
    return folder


def blue(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    return [float("blue" in text or "sky" in text) for text in completions]


def run(folder: Path, store: Store, **changes: Any) -> tuple[Audit, list[tuple[str, int]]]:
    """The audit of the student under its teacher, and what was heard: of which model, rows done."""
    heard: list[tuple[str, int]] = []
    arguments: dict[str, Any] = {"teacher": str(folder / "teacher"), "reward": blue, **SETTINGS, **changes}
    arguments.setdefault("progress", lambda name, done, total: heard.append((Path(name).name, done)))
    return audit(str(folder / "student"), str(folder / "pairs.jsonl"), store=store, **arguments), heard


def said(result: Audit) -> str:
    return json.dumps(as_dict(result), sort_keys=True)


def blocks(store: Store) -> int:
    return len(list(store.root.glob("??/*/block.json")))


def test_stopped_anywhere_it_goes_on_to_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    whole, heard = run(folder, Store(tmp_path / "whole"))
    assert heard[-1] == ("teacher", 3 * PAIRS)
    assert {name for name, _ in heard} == {"student", "teacher"}
    stopped = Store(tmp_path / "stopped")
    for name, after in (("student", ROWS), ("student", PAIRS + 2 * ROWS), ("teacher", 2 * ROWS)):

        def stop(model: str, done: int, total: int, name: str = name, after: int = after) -> None:
            if Path(model).name == name and done > after:
                raise KeyboardInterrupt

        before = blocks(stopped)
        with pytest.raises(KeyboardInterrupt):
            run(folder, stopped, progress=stop)
        assert blocks(stopped) > before
    again, heard = run(folder, stopped)
    assert said(again) == said(whole)
    assert [done for name, done in heard if name == "student"] == [  # all from the store, a block at a time
        *(0, ROWS, 2 * ROWS, PAIRS),
        *(PAIRS + 2 * ROWS, PAIRS + 4 * ROWS, 3 * PAIRS),
    ]


def test_another_price_or_threshold_takes_what_is_there(folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(folder, store)
    made = blocks(store)
    other, _ = run(folder, store, beta=0.5, target_reward=1.0)
    assert blocks(store) == made
    fresh, _ = run(folder, Store(tmp_path / "fresh"), beta=0.5, target_reward=1.0)
    assert said(other) == said(fresh)


def test_nothing_stale_and_nothing_damaged_is_taken(folder: Path, tmp_path: Path) -> None:
    """A model replaced under its path is another model; a block whose bytes changed is made again."""
    store = Store(tmp_path / "store")
    first, _ = run(folder, store, teacher=None)
    made = blocks(store)
    for path in store.root.glob("??/*/block.json"):
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    again, heard = run(folder, store, teacher=None)
    assert said(again) == said(first)
    assert blocks(store) == made
    assert len(heard) > 8  # it was scored again, a batch at a time
    save(tiny_model(layers=2, seed=9), tiny_tokenizer(), folder / "student")
    other, _ = run(folder, store, teacher=None)
    assert blocks(store) == 2 * made
    assert other.candidates[0].numbers["chosen_logp"] != first.candidates[0].numbers["chosen_logp"]


def test_the_command_keeps_what_it_scored(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEDE_CACHE", str(tmp_path / "cache"))
    written = job(str(folder / "student"), str(folder / "pairs.jsonl"), out=tmp_path / "out", device="cpu")
    assert blocks(Store(tmp_path / "cache" / "stages")) == -(-PAIRS // ROWS)
    assert (written.folder / "audit.json").is_file()
