"""The benchmark of the advice at small size: it runs, is judged by seeds that it has not seen, and its page has its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.slow
def test_advice_is_judged_by_other_seeds(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "advice.py"),
        "--quick",
        "--worlds",
        "1",
        "--workers",
        "1",
        "--out",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = json.loads((tmp_path / "out" / "00" / "judged.json").read_text("utf-8"))
    runs = json.loads((tmp_path / "out" / "00" / "all" / "results.json").read_text("utf-8"))["runs"]
    assert sorted({run["seed"] for run in runs}) == [0, 1, 2, 3, 4, 5]
    for name, used in (("seeds-0", [0, 1, 2]), ("seeds-3", [3, 4, 5])):
        told = json.loads((tmp_path / "out" / "00" / name / "results.json").read_text("utf-8"))
        assert sorted({run["seed"] for run in told["runs"]}) == used
    for one in (first, second):
        assert one["truth"] == pytest.approx(one["means"][0] - one["means"][1])
    assert first["means"] != second["means"]
    assert "| sure: ship |" in done.stdout


def test_a_world_as_a_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chosen answers are the target's by the reward in the file, and prompts show it as rarely as the truth does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from precede.rewards import load_reward
    from user_world import make_world

    world = make_world(tmp_path, 3, 0.03, teacher_steps=2)
    world.write_pairs(300)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text("utf-8").splitlines()]
    reward = load_reward(f"{tmp_path / 'reward.py'}:reward")
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (reward(prompts, [row[side] for row in rows]) for side in ("chosen", "rejected"))
    assert len(rows) == 300
    assert min(chosen) > 0.5
    assert sum(rejected) / 300 == pytest.approx(0.03, abs=4 * (0.03 * 0.97 / 300) ** 0.5)
    assert all(len(prompt) == 2 for prompt in world.prompts(50, 1))


def test_page_has_the_tables() -> None:
    text = (ROOT / "docs" / "statistics.md").read_text("utf-8")
    written = text.split("<!-- advice: begin -->")[1].split("<!-- advice: end -->")[0]
    given = [
        int(line.split("|")[2]) for line in written.splitlines() if line.startswith(("| sure", "| orders", "| not"))
    ]
    assert sum(given) == 48
    assert written.count("\n| dpo |") == written.count("\n| rloo |") == 12
