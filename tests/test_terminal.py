"""What is said on the way, where there is no progress, and of a busy machine."""

from __future__ import annotations

import re

import pytest

from conftest import Stages
from precede import machine, progress


def test_where_there_is_no_terminal_progress_is_a_dated_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Stages((0, 1)).teacher()
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    for seconds, lines in ((0.0, 3), (1e9, 0)):
        monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
        with progress.Bars("tiny: stages") as bars:
            bars.started(4, 1)
            bars.progress("align", 3, 10)
            bars.finished(node)
            bars.finished(node)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == lines
        if lines:
            date = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  tiny: stages "
            assert re.match(date + r"1 of 4, align: 3 of 10$", said[0])
            assert re.match(date + r"3 of 4, teacher ", said[2])


@pytest.mark.parametrize("over", [-2.0, 3.0])
def test_a_busy_machine_is_said_once(
    over: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A load above the cores is said when the work begins, and nothing where there is room."""
    monkeypatch.setattr("os.getloadavg", lambda: (machine.cores() + over, 0.0, 0.0))
    with progress.Bars("tiny: stages") as bars:
        bars.started(4, 1)
        bars.progress("align", 1, 2)
    said = capsys.readouterr().err
    assert said.count("the machine is busy") == (over > 0)
    assert (f"a load of {machine.cores() + over:.1f} on" in said) == (over > 0)
