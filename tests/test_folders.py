"""No run writes over what another one has left; the same run goes to its folder again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import precede
from build_material import make_inputs
from conftest import SMALL
from conftest import precede as command
from precede.jobs.folders import choose, claim

QUICK: dict[str, Any] = {**SMALL, "seeds": 2, "sweep": []}


def test_comparisons_that_differ_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second goes to NAME-2 and says why; both again go where they were, and every result is that of its own recipe."""
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    for _ in range(2):
        for beta, folder in ((0.1, "small"), (0.3, "small-2")):
            align = {**QUICK["align"], "beta": beta}
            done = precede.compare({**QUICK, "align": align}, store="store", workers=1, tell=told.append)
            assert done.report == Path("runs", folder, "report.html")
            results = json.loads(Path("runs", folder, "results.json").read_text("utf-8"))
            assert results["recipe"]["align"]["beta"] == beta
    assert told == ["runs/small holds a comparison that differs in align.beta; this one goes to runs/small-2"] * 2


def test_a_named_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"recipe": "one", "seeds": [0, 1], "align": {"beta": 0.1, "steps": 5}, "data": {}}
    claim(tmp_path / "mine", "recipe.yaml", asked)
    again = (tmp_path / "mine", "recipe.yaml", asked)
    assert choose("recipe.yaml", asked, tmp_path / "mine", Path("unused")) == (again[0], [])
    other = {**asked, "seeds": [0], "align": {"beta": 0.2, "steps": 6}, "student": {}}
    with pytest.raises(
        ValueError, match=r"mine holds a comparison that differs in seeds, align.beta, align.steps and 1 more"
    ):
        choose("recipe.yaml", other, tmp_path / "mine", Path("unused"))
    with pytest.raises(ValueError, match=r"mine holds a comparison; name another folder with --out"):
        choose("audit.yaml", {"models": []}, tmp_path / "mine", Path("unused"))
    (tmp_path / "mine" / "recipe.yaml").write_text(json.dumps(asked), "utf-8")  # YAML of the same, written otherwise
    assert choose("recipe.yaml", asked, tmp_path / "mine", Path("unused")) == (again[0], [])
    (tmp_path / "mine" / "recipe.yaml").write_text("{", "utf-8")
    with pytest.raises(ValueError, match=r"mine holds a comparison whose recipe.yaml cannot be read"):
        choose("recipe.yaml", asked, tmp_path / "mine", Path("unused"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is a file; name a folder with --out"):
        choose("recipe.yaml", asked, tmp_path / "file", Path("unused"))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "notes.txt").touch()
    assert choose("recipe.yaml", asked, tmp_path / "plain", Path("unused")) == (tmp_path / "plain", [])


def test_audits_keep_what_others_left(tmp_path: Path) -> None:
    """By command: two audits that differ, the first one again, and one into the folder of another, which changes nothing."""
    make_inputs(tmp_path)
    said = ["audit", "teacher", "--data", "pairs.jsonl", "--limit", "8"]
    first = command(*said, cwd=tmp_path)
    assert "report: runs/audit/audit.html" in first.stdout
    left = {path.name: path.read_bytes() for path in (tmp_path / "runs" / "audit").iterdir() if path.is_file()}
    other = command(*said, "--beta", "0.2", cwd=tmp_path)
    assert "runs/audit holds an audit that differs in beta; this one goes to runs/audit-2" in other.stderr
    assert "report: runs/audit-2/audit.html" in other.stdout
    refused = command(*said, "--beta", "0.3", "--out", "runs/audit", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("precede: runs/audit holds an audit that differs in beta; name another folder")
    again = command(*said, cwd=tmp_path)
    assert "report: runs/audit/audit.html" in again.stdout
    assert {path.name: path.read_bytes() for path in (tmp_path / "runs" / "audit").iterdir() if path.is_file()} == left
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["audit", "audit-2"]
