"""`precede compare` as people run it: a process of its own, killed, damaged, and given wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from conftest import SMALL
from precede.results import Results

PRECEDE = [sys.executable, "-m", "precede.cli.main"]


def precede(*arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PRECEDE_CACHE": str(cwd / "cache"), "COLUMNS": "200"}
    return subprocess.run(
        [*PRECEDE, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small recipe was compared once."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL), "utf-8")
    done = precede("compare", "small.yaml", "--out", "out", "--workers", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout, "utf-8")
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "results.json").read_text("utf-8"))
    return loaded


def test_output_ends_with_the_report(folder: Path) -> None:
    text = (folder / "stdout.txt").read_text("utf-8")
    assert "at the recipe's own setting" in text
    assert max(len(line) for line in text.splitlines() if "target_precision" in line) <= 80
    assert text.rstrip().splitlines()[-1] == "report: out/report.html"
    assert "20 stages run, 0 taken from the store" in text


def test_everything_is_written(folder: Path) -> None:
    out = folder / "out"
    assert (out / "report.html").stat().st_size > 10_000
    for name in ("densities", "headline", "beta", "frontier"):
        assert (out / "figures" / f"{name}.svg").read_text("utf-8").startswith("<?xml")
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_results_follow_the_schema(folder: Path) -> None:
    results = results_of(folder / "out")
    TypeAdapter(Results).validate_python(results)
    assert len(results["runs"]) == 2 * 6 * 4
    run = results["runs"][0]
    assert {"order", "settings", "seed", "metrics", "cost"} == set(run)
    wanted = {"reward", "target_mass", "target_precision", "target_recall", "precision", "recall"}
    assert wanted <= set(run["metrics"])
    keys = {"align.method", "align.pairs", "align.beta", "align.reference", "distill.temperature"}
    assert keys <= set(run["settings"])
    assert results["recipe"]["align"]["clip"] == 0.2  # resolved: defaults included
    assert {c["a"] for c in results["comparisons"]} == {"align > distill"}


def test_comparisons_are_those_of_the_runs(folder: Path) -> None:
    """Mean differences and sd ratios, computed again from the runs."""
    results = results_of(folder / "out")
    for comparison in results["comparisons"]:
        sides = [
            [
                run["metrics"][comparison["metric"]]
                for run in results["runs"]
                if run["order"] == comparison[side] and run["settings"] == comparison["settings"]
            ]
            for side in ("a", "b")
        ]
        a, b = (np.array(side, dtype=float) for side in sides)
        defined = np.isfinite(a) & np.isfinite(b)
        assert comparison["n_seeds"] == defined.sum()
        if defined.sum() > 1:
            assert comparison["mean_difference"] == pytest.approx((a - b)[defined].mean(), rel=1e-9, abs=1e-12)
            low, high = comparison["ci95"]
            assert low <= comparison["mean_difference"] <= high
            if comparison["sd_ratio"] is not None:
                expected = a[defined].std(ddof=1) / b[defined].std(ddof=1)
                assert comparison["sd_ratio"] == pytest.approx(expected, rel=1e-6)


def test_matched_decoding_ties_where_alignment_does_nothing(folder: Path) -> None:
    """At an enormous price of KL both orders are the distilled teacher; sampled at τ they must tie as well."""
    sets = ["sweep=[]", "align.method=exact", "align.beta=1e9", "distill.components=8"]
    done = precede("compare", "small.yaml", "--out", "noop", *[w for s in sets for w in ("--set", s)], cwd=folder)
    assert done.returncode == 0, done.stderr
    for c in results_of(folder / "noop")["comparisons"]:
        if c["metric"] in ("target_mass", "decoded_target_mass", "reward", "decoded_reward"):
            assert c["mean_difference"] == pytest.approx(0.0, abs=1e-6)
    assert "ties with" in done.stdout


def test_resolved_recipe_gives_the_same_results(folder: Path) -> None:
    done = precede("compare", "out/recipe.yaml", "--out", "again", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "0 stages run, 20 taken from the store" in done.stdout
    assert results_of(folder / "again") == results_of(folder / "out")


def test_json_goes_to_stdout_alone(folder: Path) -> None:
    done = precede("compare", "small.yaml", "--out", "json", "--json", cwd=folder)
    assert json.loads(done.stdout) == results_of(folder / "out")


def test_a_changed_sweep_runs_only_what_is_new(folder: Path) -> None:
    done = precede(
        "compare", "small.yaml", "--out", "more", "--set", "distill.temperature=0.7", "--workers", "1", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    # The teacher and the six stages that align it are there; the student and what starts from it are new.
    assert "13 stages run, 7 taken from the store" in done.stdout


def test_dry_run_runs_nothing(folder: Path) -> None:
    done = precede("compare", "small.yaml", "--dry-run", "--set", "seeds=5", "--out", "dry", cwd=folder)
    assert done.returncode == 0
    assert "20 stages for 12 arms × 5 seeds; nothing is run" in done.stdout
    assert "teacher > distill > align" in done.stdout
    assert not (folder / "dry").exists()
    plan = json.loads(precede("compare", "small.yaml", "--dry-run", "--json", cwd=folder).stdout)["plan"]
    assert sum(row["stages"] for row in plan) == 20
    assert sum(row["finished"] for row in plan) == 20
    assert all(row["flops"] >= 0 for row in plan)


def test_workers_do_not_change_results(folder: Path) -> None:
    done = precede("compare", "small.yaml", "--out", "one", "--store", "fresh", "--workers", "1", cwd=folder)
    assert done.returncode == 0, done.stderr
    one, two = results_of(folder / "one"), results_of(folder / "out")
    assert [run["metrics"] for run in one["runs"]] == [run["metrics"] for run in two["runs"]]


def test_stages_under_other_names_are_reported_by_their_role(folder: Path) -> None:
    """Custom names, reversed listing, an unused stage called align: labels and figures are still right."""
    raw = {**SMALL, "recipe": "named", "align": {"method": "exact"}, "prefer": {"kind": "align", **SMALL["align"]}}
    raw["shrink"] = {"kind": "distill", **SMALL["distill"]}
    del raw["distill"]
    raw["orders"] = ["shrink > prefer", "prefer > shrink"]
    raw["sweep"] = [{"prefer.beta": [0.1, 0.3]}, {"shrink.temperature": [0.5, 1.0]}]
    (folder / "named.yaml").write_text(yaml.safe_dump(raw), "utf-8")
    done = precede("compare", "named.yaml", "--out", "named", cwd=folder)
    assert done.returncode == 0, done.stderr
    results = results_of(folder / "named")
    assert results["roles"] == {"align": "prefer", "distill": "shrink"}
    assert {gap["settings"]["shrink.temperature"] for gap in results["order_gap"]} == {0.5, 1.0}
    page = (folder / "named" / "report.html").read_text("utf-8")
    for name in ("beta", "frontier", "temperature"):
        assert f'id="fig-{name}"' in page
    assert "<td>ppo</td>" in page
    assert "<td>exact</td>" not in page


def test_longer_orders_run_and_are_compared(folder: Path) -> None:
    orders = "orders=[align > distill, distill > align, align > distill > align]"
    done = precede("compare", "small.yaml", "--out", "three", "--set", orders, "--set", "sweep=[]", cwd=folder)
    assert done.returncode == 0, done.stderr
    results = results_of(folder / "three")
    assert {(c["a"], c["b"]) for c in results["comparisons"]} == {
        ("align > distill", "distill > align"),
        ("align > distill", "align > distill > align"),
    }


def test_killed_at_any_moment_it_goes_on_to_the_same_results(folder: Path) -> None:
    """kill -9 of the whole process group at growing delays until a run ends by itself."""
    command = [*PRECEDE, "compare", "small.yaml", "--out", "killed", "--store", "killed-store", "--workers", "2"]
    finished_before: set[str] = set()
    kills = 0
    for delay in (3.0, 4.5, 5.5, 6.5, 8.0, 11.0, 240.0):
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
        )
        try:
            output, errors = process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            time.sleep(0.1)
            finished = {path.parent.name for path in (folder / "killed-store").glob("??/*/SHA256SUMS")}
            assert finished >= finished_before
            finished_before = finished
            continue
        assert process.returncode == 0, errors
        assert f"{len(finished_before)} taken from the store" in output
        break
    assert kills >= 1
    assert list((folder / "killed-store" / "unfinished").iterdir()) == []
    killed, whole = results_of(folder / "killed"), results_of(folder / "out")
    for key in ("comparisons", "matched", "order_gap"):
        assert killed[key] == whole[key]
    assert [run["metrics"] for run in killed["runs"]] == [run["metrics"] for run in whole["runs"]]


def test_flipped_byte_is_named_and_that_stage_made_again(folder: Path) -> None:
    before = results_of(folder / "out")
    victim = folder / next(s["folder"] for s in before["stages"] if s["kind"] == "align") / "model.safetensors"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 0x10
    victim.write_bytes(data)
    done = precede("compare", "small.yaml", "--out", "mended", cwd=folder)
    assert done.returncode == 0
    said = " ".join(done.stderr.split())
    assert "model.safetensors does not match its checksum; it is made again" in said
    assert victim.parent.name[:8] in said
    assert "1 stages run, 19 taken from the store" in done.stdout
    after = results_of(folder / "mended")
    assert [run["metrics"] for run in after["runs"]] == [run["metrics"] for run in before["runs"]]


def test_workers_end_when_the_main_process_is_killed(folder: Path) -> None:
    """Workers hold the pipe open while they live: it must close soon after the main process alone was killed."""
    command = [*PRECEDE, "compare", "small.yaml", "--out", "orphans", "--store", "orphans-store", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--set", "align.steps=100000"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(9)
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=30)  # returns when nobody holds the pipe


def test_a_full_disk_is_said_in_one_sentence(folder: Path) -> None:
    """Files may not pass 4 KiB: no stage can be written."""
    words = " ".join([*PRECEDE, "compare", "small.yaml", "--out", "full", "--store", "full-store", "--workers", "1"])
    done = subprocess.run(f"ulimit -f 4; {words}", shell=True, cwd=folder, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "stopped:" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "full" / "results.json").exists()
    assert not list((folder / "full-store" / "unfinished").iterdir())


WRONG: dict[str, tuple[list[str], str]] = {
    "no such recipe": (["compare", "nonesuch"], "there is no recipe nonesuch; give a YAML file or one of mixture"),
    "bad override": (["compare", "small.yaml", "--set", "align.beta=0"], "align.beta must be above 0, not 0"),
    "unknown order": (["compare", "small.yaml", "--set", "orders=[align > x, distill > align]"], "unknown stage 'x'"),
    "one order": (["compare", "small.yaml", "--set", "orders=[align > distill]"], "a comparison needs two or more"),
    "output folder is a file": (["compare", "small.yaml", "--out", "small.yaml"], "cannot be written"),
    "output folder below a file": (["compare", "small.yaml", "--out", "small.yaml/x"], "cannot be written"),
    "store is a file": (
        ["compare", "small.yaml", "--out", "w", "--store", "small.yaml"],
        "the store small.yaml cannot be",
    ),
    "no workers": (["compare", "small.yaml", "--workers", "0"], "--workers"),
    "unknown flag": (["compare", "small.yaml", "--betas", "1"], "--betas"),
    "unknown verb": (["compere", "small.yaml"], "compere"),
    "no recipe": (["compare"], "RECIPE"),
    "unknown recipe to print": (["recipes", "nonesuch"], "there is no recipe 'nonesuch'"),
    "missing model": (
        ["compare", "smollm2-smoke", "--set", "teacher.model=/no/such/model", "--out", "w"],
        "/no/such/model",
    ),
    "missing model, dry run": (
        ["compare", "smollm2-smoke", "--set", "teacher.model=/no/such/model", "--dry-run"],
        "/no/such/model",
    ),
    "method of another world": (["compare", "smollm2-smoke", "--set", "align.method=ppo"], "align.method is 'ppo'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_sentence_and_status_2(case: str, folder: Path) -> None:
    arguments, words = WRONG[case]
    before = {path for path in folder.rglob("*") if "unfinished" in path.parts}
    done = precede(*arguments, cwd=folder)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr + done.stdout
    if done.stderr.startswith("precede:"):
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "w" / "results.json").exists()
    assert {path for path in folder.rglob("*") if "unfinished" in path.parts} - before <= {folder / "w" / "unfinished"}


def test_a_stage_that_diverges_stops_with_its_name(folder: Path) -> None:
    done = precede(
        "compare",
        "small.yaml",
        "--set",
        "align.learning_rate=1e300",
        "--set",
        "sweep=[]",
        "--out",
        "diverged",
        cwd=folder,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "stage teacher >" in done.stderr
    assert "ppo diverged" in done.stderr
    assert not (folder / "diverged" / "results.json").exists()


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from precede.cli.main import app; "
        "print([name for name in ('torch', 'transformers', 'trl', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_mixture_world_runs_without_transformers(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from precede.recipe import load_recipe; from precede.compare import compare; "
        "compare(load_recipe('small.yaml'), out=Path('plain'), store=Path('cache/stages'), workers=1); "
        "print([name for name in ('transformers', 'trl', 'accelerate', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_recipes_are_listed_and_printed(folder: Path) -> None:
    listed = precede("recipes", cwd=folder)
    for name in ("mixture", "mixture-phase", "smollm2-smoke"):
        assert name in listed.stdout
    printed = precede("recipes", "mixture", cwd=folder)
    assert yaml.safe_load(printed.stdout)["recipe"] == "mixture"
