"""The campaign of faults at small size: what it judges, what it tries, and that a small part of it finds nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def campaign() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setenv("OMP_NUM_THREADS", "1")
        import campaign

        yield campaign


ENDINGS: dict[str, tuple[int | None, str, tuple[str, ...], str, str, str]] = {
    "one sentence": (2, "precede: no\n", (), "refused", "", "one sentence"),
    "usage": (2, "Usage: precede build\n\nError: no\n", (), "any", "", "one sentence"),
    "written": (2, "precede: no\n", ("here/out/x",), "refused", "", "late"),
    "a note before it": (2, "48 rows\nprecede: no\n", (), "refused", "", "one sentence"),
    "two lines": (2, "UserWarning: odd\nprecede: no\n", (), "refused", "", "traceback"),
    "no sentence": (2, "no\n", (), "any", "", "traceback"),
    "told by the run": (1, "precede: stage a stopped: no\n", (), "any", "", "late"),
    "only the run can know": (1, "a note\nprecede: stage a stopped: no\n", (), "stops", "", "one sentence"),
    "traceback": (1, "Traceback (most recent call last):\nValueError: no\n", (), "stops", "", "traceback"),
    "traceback, then fine": (0, "Traceback (most recent call last):\nValueError: no\n", (), "any", "", "traceback"),
    "a signal": (-11, "", (), "any", "", "traceback"),
    "hang": (None, "", (), "any", "", "hang"),
    "escapes": (2, "precede: no \x1b[31m\n", (), "refused", "", "traceback"),
    "accepted": (0, "", (), "refused", "", "different"),
    "other numbers": (0, "", (), "same", "kl is 1, not 2", "different"),
    "refused without need": (2, "precede: no\n", (), "same", "", "different"),
    "the same": (0, "", (), "same", "", "went on"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_endings_are_told_apart(ending: str, campaign: Any) -> None:
    status, errors, new, expect, unlike, outcome = ENDINGS[ending]
    assert campaign.judge(campaign.Ended(status, "", errors, new), expect, unlike)[0] == outcome


def test_every_setting_is_tried_and_what_must_be_refused_is_known(campaign: Any) -> None:
    listed = [*campaign.inputs(0)]
    expected = {one.name: one.expect for one in listed}
    first = [one.group for one in listed[:8]]
    assert len({*first}) == 8  # a small sample has something of each group
    for name, expect in {
        "mixture: align.beta = -1": "refused",
        "mixture: align.beta = nan": "refused",
        "mixture: align.beta = 0.5": "any",
        "mixture: align.clip = 1e+308": "refused",
        "grammar: teacher.layers = 0": "refused",
        "dpo: align.lora = None": "any",
        "dpo: align.lora.rank = True": "refused",
        "dpo: fail_on = 'nonsense'": "refused",
        "dpo: align.trainer.learning_rate = inf": "any",
    }.items():
        assert expected[name] == expect, name


def test_numbers_that_differ_are_seen_and_times_are_not(campaign: Any, tmp_path: Path) -> None:
    places = [campaign.Place(tmp_path / name) for name in "ab"]
    for place, seconds in zip(places, (1, 2), strict=True):
        (place.here / "out").mkdir(parents=True)
        (place.here / "out" / "results.json").write_text(f'{{"kl": 0.5, "cost": {{"wall_seconds": {seconds}}}}}')
        (place.here / "out" / "model.safetensors").write_bytes(b"weights")
    assert campaign.difference(*map(campaign.left, places)) == ""
    (places[1].here / "out" / "model.safetensors").write_bytes(b"Weights")
    assert campaign.difference(*map(campaign.left, places)).startswith(" model.safetensors is ")
    for place, number in zip(places, (0.5, 0.25), strict=True):
        (place.here / "out" / "model.safetensors").unlink()
        (place.here / "out" / "results.json").write_text(f'{{"models": [{{"kl": {number}}}]}}')
    assert campaign.difference(*map(campaign.left, places)) == " results.json models 0 kl is 0.5, not 0.25"


def test_what_stays_behind_is_a_hang(campaign: Any, tmp_path: Path) -> None:
    """A child of the group that outlives its leader is found, and ended."""
    program = "import subprocess; print(subprocess.Popen(['sleep', '99']).pid)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["campaign_runs"], "STAYS", 0.2)
        leader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True)
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        assert campaign.end(leader.pid) is None
    leader.stdout.close()
    leader.returncode = 0  # it was waited for
    for _ in range(200):
        if child in campaign.members(leader.pid):
            time.sleep(0.01)
    assert child not in campaign.members(leader.pid)


@pytest.mark.parametrize("how", ["a bit flipped", "cut", "a page of zeros"])
def test_damages_change_a_file(how: str, campaign: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x01" * 9000)
    campaign.BYTES[how](path, random.Random(0))
    assert path.read_bytes() != b"\x01" * 9000


def test_a_sample_of_all_parts_finds_no_fault(tmp_path: Path) -> None:
    asked = ["--trials", "12", "3", "3", "1", "--runs", "mixture"]
    command = [sys.executable, str(BENCHMARKS / "campaign.py"), *asked]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "| all |  | 19 |" in done.stdout
    assert not [*tmp_path.iterdir()]


def test_one_fault_is_status_1(campaign: Any) -> None:
    rows = {
        ("inputs", "data"): Counter({"one sentence": 3, "went on": 1}),
        ("kills", "mixture"): Counter({"went on": 2}),
    }
    assert campaign.status(rows) == 0
    for fault in ("traceback", "hang", "late", "different"):
        worse = rows | {("kills", "text"): Counter({fault: 1})}
        assert campaign.status(worse) == 1
        assert "| all |  | 7 | 3 | 3 | 0 |" in [*campaign.table(worse)][-1]
