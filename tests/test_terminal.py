"""What the command line says on the way, where there is no terminal."""

from __future__ import annotations

import re

import pytest

from conftest import Stages
from precede.cli import terminal


def test_where_there_is_no_terminal_progress_is_a_dated_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Stages((0, 1)).teacher()
    for seconds, lines in ((0.0, 3), (1e9, 0)):
        monkeypatch.setattr(terminal, "LINE_SECONDS", seconds)
        with terminal.Bars("tiny: stages") as bars:
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
