"""Uploading a built model where no hub can be reached: the model stays, and one sentence says what to do."""

from __future__ import annotations

import subprocess
from pathlib import Path

from build_material import command, environment, make_inputs


def test_without_a_hub_the_model_stays(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    asked = command(tmp_path, "--order", "align", "--set", "student=null", "--skip", "audit", "--out", "made")
    asked += ["--store", "store", "--push-to-hub", "owner/made"]
    nowhere = environment(tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "none"}
    done = subprocess.run(asked, cwd=tmp_path, env=nowhere, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr
    assert "precede: owner/made could not be uploaded" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "made" / "model.safetensors").is_file()
