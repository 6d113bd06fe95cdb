"""How runs end and what they leave: signals, no memory, no home, files that are whole, terminals of any kind."""

from __future__ import annotations

import json
import os
import pickle
import pwd
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from conftest import PRECEDE, SMALL
from precede.cli import terminal
from precede.cli.main import app
from precede.files import HOST, remove_left, scratch, write
from precede.jobs.folders import choose
from precede.machine import begin
from precede.progress import Bars
from precede.report.tables import Table
from precede.rewards import load_reward

# ------------------------------------------------------------------------------------------------- how a run ends


def ended(work: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and the one line of a verb that does `work`."""
    with pytest.raises(typer.Exit) as stop:
        terminal.guarded(work)
    (line,) = capsys.readouterr().err.splitlines()
    return stop.value.exit_code, line


@pytest.mark.parametrize(
    ("number", "said"), [("SIGINT", "interrupted"), ("SIGTERM", "ended by SIGTERM"), ("SIGHUP", "ended by SIGHUP")]
)
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_ends_a_run_in_one_line(
    number: str, said: str, swallowed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that arrives while an object is being destroyed, when Python swallows what is raised."""
    cleaned = []
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}  # ignored in the background
    before = {one: signal.signal(one, handler) for one, handler in usual.items()}

    class Destroyed:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.Signals[number])
            cleaned.append(False)

    def work() -> None:
        try:
            if swallowed:
                Destroyed()
            else:
                os.kill(os.getpid(), signal.Signals[number])
            time.sleep(60)
        finally:
            cleaned.append(True)

    try:
        status, line = ended(work, capsys)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert (status, cleaned) == (128 + signal.Signals[number], [True])
    assert line == f"precede: {said}; {terminal.KEPT}"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_is_ignored_stays_so_as_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        terminal.guarded(partial(os.kill, os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def raised(error: BaseException, under: BaseException | None = None) -> None:
    raise error from under


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(12, os.strerror(12)),
    ],
)
def test_no_memory_is_one_sentence(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    for work in (partial(raised, error), partial(raised, KeyError("wrapped"), error)):
        status, line = ended(work, capsys)
        assert status == 1
        assert line.startswith("precede: there is not enough memory (")
        assert line.endswith("run the same command again to go on")


def test_a_limit_that_the_libraries_do_not_fit_under_is_told_before_they_are_imported() -> None:
    """Under one of 0.5 to 1 GB they crash, leave C's own words or spin for ever, where it falls while they are loaded."""
    words = f"ulimit -v 700000; {shlex.join([*PRECEDE, 'compare', 'mixture', '--dry-run'])}"
    done = subprocess.run(words, shell=True, timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "precede: the limit of this shell on addresses is 0.7 GiB, and the libraries alone take 3; raise it with ulimit -v\n"
    )


def test_a_worker_without_memory_for_its_libraries_ends_without_a_word() -> None:
    program = "import os, pickle, sys; from precede.machine import begin\n"
    program += "begin(os.getppid(), pickle.loads(sys.stdin.buffer.read()))"
    for error, tracebacks in (("MemoryError", 0), ("KeyError", 1)):
        setup = pickle.dumps(pickle.dumps(partial(exec, f"raise {error}")))
        done = subprocess.run(
            [sys.executable, "-c", program], input=setup, timeout=60, capture_output=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr.count(b"Traceback")) == (1, b"", tracebacks)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "PRECEDE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL), "utf-8")
    done = CliRunner().invoke(app, ["compare", "small.yaml"])
    assert done.exit_code == 2
    assert "precede: this user has no home folder to keep stages and models in; set HOME, or" in done.stderr


def test_a_reader_that_leaves_ends_the_run_quietly() -> None:
    process = subprocess.Popen([*PRECEDE, "recipes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


def test_the_first_act_of_a_worker_is_to_look_for_its_main_process() -> None:
    """What it is to import comes later: one whose main process is gone by then imports nothing."""
    program = "import pickle, sys; from precede.machine import begin; begin(1, pickle.loads(sys.stdin.buffer.read()))"
    setup = pickle.dumps(pickle.dumps(partial(time.sleep, 600)))
    done = subprocess.run([sys.executable, "-c", program], input=setup, timeout=60, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    assert begin.__module__ == "precede.machine"  # which imports no torch: tests/test_imports.py


def test_a_reward_that_exits_is_a_reward_that_failed(tmp_path: Path) -> None:
    (tmp_path / "quitter.py").write_text("import sys\ndef quits(prompts, completions, **_):\n    sys.exit(0)\n")
    with pytest.raises(ValueError, match=r"the reward '.*quitter.py:quits' failed: SystemExit: 0"):
        load_reward(f"{tmp_path / 'quitter.py'}:quits")(["a"], ["b"])


# ------------------------------------------------------------------------------------------------- what it leaves


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write(path, json.dumps({"β": "half \ud800"}, ensure_ascii=False))
    assert json.loads(path.read_text("utf-8")) == {"β": "half \ud800"}
    with suppress(OSError), scratch(path) as made:
        made.write_text("half")
        raise OSError("full")
    assert [one.name for one in tmp_path.iterdir()] == ["results.json"]
    assert json.loads(path.read_text("utf-8")) == {"β": "half \ud800"}


def test_what_a_killed_run_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    program = "import os, pathlib; from precede.files import scratch\nwith scratch(pathlib.Path('m')) as made:\n"
    program += "    made.mkdir(); (made / 'weights').touch(); print(made, flush=True); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    (tmp_path / f".m.{HOST}@1").mkdir()
    (tmp_path / ".m.mine").mkdir()
    assert (tmp_path / done.stdout.strip() / "weights").exists()
    remove_left(tmp_path / "m")
    assert {one.name for one in tmp_path.iterdir()} == {f".m.{HOST}@1", ".m.mine"}


@pytest.mark.parametrize(
    ("name", "said"),
    [("figures", "figures is a file where a folder goes"), ("audit.html", "audit.html is a folder where a file goes")],
)
def test_what_stands_in_the_way_is_told_before_the_run(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch() if name == "figures" else (tmp_path / "out" / name).mkdir()
    with pytest.raises(ValueError, match=said):
        choose("audit.yaml", {}, tmp_path / "out", tmp_path / "runs")


# ------------------------------------------------------------------------------------------------- where it prints


@pytest.mark.parametrize("columns", ["0", "20", "40"])
def test_of_a_table_nothing_is_cut_off(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    rows = [["target_precision", "-104.6", "[-57.26, 92.55]", "undecided"]]
    terminal.show(terminal.table(["a metric", "align > distill", "95 % interval", "verdict"], rows), "a text")
    printed = capsys.readouterr().out
    for text in (*rows[0], "align > distill", "a text"):
        assert text in printed


SAFE = "model\ufffd[31m\ufffd\ufffd\ufffd [red]"


def test_nothing_in_a_name_moves_or_colours_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "model\x1b[31m\x9b\x07\u202e [red]"
    terminal.show(name, terminal.table([""], [[name]]))
    with Bars() as bars:
        bars.tell(name)
        bars.progress(name, 1, 2)
    said = capsys.readouterr()
    assert (said.out + said.err).count(SAFE) == 3
    status, line = ended(partial(raised, ValueError(name)), capsys)
    assert (status, line) == (2, f"precede: {SAFE}")


def test_what_an_encoding_lacks_is_written_as_its_escape() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*PRECEDE, "recipes"], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"smollm2-smoke" in done.stdout
    assert rb"\xd7" in done.stdout


def test_no_text_ends_a_cell_or_is_html() -> None:
    lines = Table("t", "", "", ["<b>|"], [["a\\|<script>\r\nb"]]).markdown().splitlines()
    assert lines == ["| &lt;b>&#124; |", "| --- |", "| a\\&#124;&lt;script><br>b |"]
