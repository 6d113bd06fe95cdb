"""The store and the plan: keys, atomic writes, damage, sharing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from conftest import SMALL, Stages
from precede.files import CHECKSUMS, seal
from precede.jobs.compare import prepare
from precede.plan import Node, before_distillation
from precede.settings.recipe import Recipe, load_recipe, read_recipe
from precede.store import Store, full_disk


def finished(store: Store, stage: Node) -> Path:
    with store.writing(stage) as writer:
        (writer.folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)
        writer.metrics = {"reward": [0.5, None]}
        writer.cost = {"flops": 1.0}
    return store.folder(stage)


@pytest.fixture
def stage() -> Node:
    return Stages((0, 1)).teacher()


def test_key_is_of_everything_and_nothing_else(stage: Node) -> None:
    same = Stages((0, 1)).teacher()
    assert stage.key == same.key
    changed = [
        replace(stage, name="other"),
        replace(stage, kind="distill"),
        replace(stage, seeds=(0, 2)),
        replace(stage, version=2),
        replace(stage, config={**stage.config, "samples": 1}),
        replace(stage, world={**stage.world, "radius": 2.0}),
        replace(stage, edges={"parent": same}),
    ]
    assert len({stage.key, *(other.key for other in changed)}) == 8


def test_keys_stay_what_they_are() -> None:
    """Nodes that were finished by earlier code are found again: keys are hashes of descriptions as they are written here."""
    teacher = Node("teacher", "teacher", {"kind": "mixture"}, {"samples": 2000}, {}, (0, 1), 1)
    edges = {"reference": teacher, "parent": teacher}
    aligned = Node("align", "align", {"kind": "mixture"}, {"reference": "self", "beta": 0.1}, edges, (0, 1), 2)
    written = (
        '{"config":{"beta":0.1,"reference":"self"},"edges":{"parent":"7a3e514245a826cd56b907f7",'
        '"reference":"7a3e514245a826cd56b907f7"},"kind":"align","name":"align","seeds":[0,1],"version":2,'
        '"world":{"kind":"mixture"}}'
    )
    assert [teacher.key, aligned.key] == ["7a3e514245a826cd56b907f7", "48db9c147641ffb1a8ca4d6b"]
    assert aligned.key == hashlib.sha256(written.encode()).hexdigest()[:24]


def test_what_a_node_was_planned_for_is_no_part_of_its_key(stage: Node) -> None:
    assert replace(stage, variant=7) == stage


def test_reference_is_the_parent_or_the_model_before_the_latest_distillation(stage: Node) -> None:
    made = Stages((0, 1))
    first = made.distill(stage)
    aligned = made.align(first)
    second = made.distill(aligned)

    def references(parent: Node) -> list[Node]:
        return [made.align(parent, reference=name).edges["reference"] for name in ("self", "teacher")]

    assert references(stage) == [stage, stage]
    assert references(first) == [first, stage]
    assert references(second) == [second, aligned]
    assert references(made.align(first))[1] == stage
    assert before_distillation(second, made.made) == aligned


def test_finished_stage_reads_back(store: Store, stage: Node) -> None:
    assert not store.has(stage)
    folder = finished(store, stage)
    assert store.has(stage)
    assert store.damage(stage) is None
    assert store.metrics(stage) == {"reward": [0.5, None]}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["entry"]["config"] == stage.config
    assert manifest["libraries"]["torch"]
    assert manifest["entry"]["seeds"] == [0, 1]


def test_checksums_are_those_of_sha256sum(store: Store, stage: Node) -> None:
    folder = finished(store, stage)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS], cwd=folder, check=True)


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json", "manifest.json", CHECKSUMS])
def test_every_flipped_byte_is_noticed(store: Store, stage: Node, name: str) -> None:
    path = finished(store, stage) / name
    original = path.read_bytes()
    for place in range(0, len(original), max(1, len(original) // 40)):
        path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
        assert store.damage(stage), (name, place)
    path.write_bytes(original)
    assert store.damage(stage) is None


def test_missing_extra_and_short_files_are_noticed(store: Store, stage: Node) -> None:
    folder = finished(store, stage)
    (folder / "extra").write_text("x")
    assert "missing or extra: extra" in str(store.damage(stage))
    (folder / "extra").unlink()
    (folder / "model.safetensors").write_bytes(b"short")
    assert store.damage(stage) == "model.safetensors does not match its checksum"
    (folder / "model.safetensors").unlink()
    assert "missing or extra: model.safetensors" in str(store.damage(stage))
    (folder / CHECKSUMS).unlink()
    assert store.damage(stage) == f"{CHECKSUMS} cannot be read"


def test_an_error_while_writing_leaves_nothing(store: Store, stage: Node) -> None:
    def stop_half_way() -> None:
        with store.writing(stage) as writer:
            (writer.folder / "model.safetensors").write_bytes(b"half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        stop_half_way()
    assert not store.folder(stage).exists()
    assert list((store.root / "unfinished").iterdir()) == []


def test_the_same_stage_finished_twice_is_one(store: Store, stage: Node) -> None:
    finished(store, stage)
    finished(Store(store.root), stage)
    assert store.damage(stage) is None


def test_leftovers_of_dead_processes_are_swept_and_others_kept(store: Store) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    host, unfinished = socket.gethostname(), store.root / "unfinished"
    kept = [f"{host}@{os.getpid()}-x", f"elsewhere@{dead.pid}-x"]
    for name in (f"{host}@{dead.pid}-x", *kept):
        (unfinished / name).mkdir()
    store.prepare()
    assert sorted(path.name for path in unfinished.iterdir()) == sorted(kept)


def test_what_was_kept_between_kills_is_gone_with_the_finished_stage(store: Store, stage: Node) -> None:
    """Also where a run was killed between the rename and the sweeping; of stages that go on, nothing is touched."""
    other = replace(stage, name="other")
    for one in (stage, other):
        store.checkpoints(one).mkdir(parents=True)
    finished(store, stage)
    assert not store.checkpoints(stage).exists()
    store.checkpoints(stage).mkdir()  # as a kill leaves it
    store.prepare()
    assert not store.checkpoints(stage).exists()
    assert store.checkpoints(other).exists()


def test_discarding_a_sound_or_absent_stage_does_no_harm(store: Store, stage: Node) -> None:
    store.discard(stage)
    finished(store, stage)
    store.discard(stage)
    assert store.damage(stage) is None


def test_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the store .* cannot be written .*--store"):
        Store(tmp_path / "file" / "store").prepare()


def test_plan_shares_what_arms_share(small: Recipe) -> None:
    _, plan, _ = prepare(small, Path())
    names = [[stage.name for stage in s.lineage()] for s in plan.models]
    # Six settings (three methods × two β) in both orders, each with its control, share one teacher and one distilled student.
    assert len(plan.arms) == 18
    assert names.count(["teacher"]) == 1
    assert names.count(["teacher", "distill"]) == 1
    assert names.count(["teacher", "align"]) == 6
    assert names.count(["teacher", "distill", "align"]) == 12
    assert len(plan.models) == 1 + 1 + 4 * 6
    assert len(plan.nodes) == 2 * len(plan.models)  # each is measured once
    position = {node: i for i, node in enumerate(plan.nodes)}
    assert all(position[needed] < position[node] for node in plan.nodes for needed in node.edges.values())


def test_seeds_come_in_blocks() -> None:
    recipe = read_recipe({**SMALL, "seeds": 130})
    _, plan, _ = prepare(recipe, Path())
    assert [len(chain[0].seeds) for chain in plan.arms[0].blocks] == [64, 64, 2]


def test_calls_cover_every_needed_stage_once(small: Recipe) -> None:
    worlds, plan, _ = prepare(small, Path())
    calls = plan.calls(worlds[0], lambda node: node.name != "teacher")
    assert sorted(s.key for call in calls for s in call) == sorted(s.key for s in plan.nodes if s.name != "teacher")
    for call in calls:
        assert len({(s.name, s.config.get("method"), len(s.lineage())) for s in call}) == 1
    assert any(len(call) > 1 for call in calls)


def test_reference_teacher_is_self_where_nothing_was_distilled(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(SMALL), "utf-8")
    recipe = load_recipe(str(path), ["sweep={align.reference: [self, teacher]}", "distill.temperature=1.0"])
    _, plan, _ = prepare(recipe, Path())
    first = [stage for stage in plan.models if [s.name for s in stage.lineage()] == ["teacher", "align"]]
    second = [stage for stage in plan.models if [s.name for s in stage.lineage()] == ["teacher", "distill", "align"]]
    assert [stage.config["reference"] for stage in first] == ["self"]
    assert sorted(stage.config["reference"] for stage in second) == ["self", "teacher"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_full_disk_is_known_from_what_writers_raise(tmp_path: Path) -> None:
    """/dev/full has no room; a file that is not there, or damaged, is another thing."""
    with pytest.raises(OSError, match="No space") as system:
        Path("/dev/full").write_text("a")
    with pytest.raises(RuntimeError) as torchs:
        torch.save({"a": torch.zeros(100_000)}, "/dev/full")
    for error in (system.value, torchs.value):
        assert full_disk(error) == "No space left on device"
    with pytest.raises(OSError, match="No such file") as missing:
        (tmp_path / "nonesuch").read_text()
    assert full_disk(missing.value) is None
    assert full_disk(RuntimeError("CUDA error: out of memory")) is None


def test_a_stage_in_the_place_of_another_is_damage(tmp_path: Path, stage: Node) -> None:
    """Two whole folders that were exchanged: their sums hold, and the key of each says that it lies wrongly."""
    store, other = Store(tmp_path), replace(stage, seeds=(5,))
    one, two = finished(store, stage), finished(store, other)
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    assert store.damage(stage) == f"the stage {other.key} lies in its place"
    store.discard(stage)
    assert not store.has(stage)


@pytest.mark.parametrize("name", ["manifest.json", "metrics.json"])
def test_whole_sums_of_other_contents_are_damage(tmp_path: Path, stage: Node, name: str) -> None:
    store = Store(tmp_path)
    folder = finished(store, stage)
    (folder / name).write_text("[]")
    (folder / CHECKSUMS).unlink()
    seal(folder)
    assert store.damage(stage) == "its manifest or metrics are not what this program writes"


def test_what_is_kept_between_kills_is_looked_at_before_it_is_used(tmp_path: Path, stage: Node) -> None:
    """What a kill cut short goes in silence, what was damaged since is named; what is whole stays."""
    store = Store(tmp_path)
    places = ["checkpoint-2", "checkpoint-4", "checkpoint-6", "samples-pairs/000000", "samples-pairs/000001"]
    folders = [store.checkpoints(stage) / place for place in places]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes([number]) * 100)
        if number != 2:
            seal(folder)
    for folder in (folders[1], folders[4]):
        (folder / "weights").write_bytes(b"x" * 100)
    what = "is damaged (weights does not match its checksum); it goes on from what is whole"
    assert store.mend(stage) == [
        f"stage {stage.label()}: checkpoint-4 {what}",
        f"stage {stage.label()}: samples-pairs/000001 {what}",
    ]
    assert store.kept(stage) == [folders[0], folders[3]]
    assert not folders[2].exists()
    assert store.mend(stage) == []


HOLD = """
import sys, time
from types import SimpleNamespace
from pathlib import Path
from precede.store import Store
with Store(Path(sys.argv[1])).claimed([SimpleNamespace(key=sys.argv[2])]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_who_works_on_a_stage_keeps_others_waiting_until_it_ends(tmp_path: Path, stage: Node) -> None:
    store = Store(tmp_path)
    assert not store.claimed_elsewhere(stage)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), stage.key], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert store.claimed_elsewhere(stage)
        threading.Timer(0.2, other.kill).start()
        with store.claimed([stage]):
            assert other.poll() is not None or other.wait(5) == -signal.SIGKILL
            assert store.claimed_elsewhere(stage)  # by this process
    assert not store.claimed_elsewhere(stage)
    assert not list((tmp_path / "locks").iterdir())
