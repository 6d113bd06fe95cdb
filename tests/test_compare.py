"""`precede compare` as people run it, in a process of its own: what it writes, says and takes from the store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

from conftest import SMALL, precede, results_of
from precede.analysis.results import Results


def test_output_ends_with_the_report(folder: Path) -> None:
    text = (folder / "stdout.txt").read_text("utf-8")
    assert "at the recipe's own setting" in text
    assert max(len(line) for line in text.splitlines() if "target_precision" in line) <= 80
    assert text.rstrip().splitlines()[-1] == "report: out/report.html"
    assert "26 stages run, 0 taken from the store" in text


def test_everything_is_written(folder: Path) -> None:
    out = folder / "out"
    assert (out / "report.html").stat().st_size > 10_000
    for name in ("densities", "headline", "beta", "frontier"):
        assert (out / "figures" / f"{name}.svg").read_text("utf-8").startswith("<?xml")
        assert (out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_results_follow_the_schema(folder: Path) -> None:
    results = results_of(folder / "out")
    TypeAdapter(Results).validate_python(results)
    assert len(results["runs"]) == (2 * 6 + 6) * 4  # both orders, and the control of each setting, which no sweep has
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
            half = student_t.ppf(0.975, defined.sum() - 1) * (a - b)[defined].std(ddof=1) / np.sqrt(defined.sum())
            ends = comparison["mean_difference"] - half, comparison["mean_difference"] + half
            assert comparison["ci95"] == pytest.approx(ends, rel=1e-6, abs=1e-12)
            if comparison["sd_ratio"] is not None:
                expected = a[defined].std(ddof=1) / b[defined].std(ddof=1)
                assert comparison["sd_ratio"] == pytest.approx(expected, rel=1e-6)


def test_difference_is_sharpening_and_recall(folder: Path) -> None:
    """The parts, computed again from the runs: the control is the other order at the price τβ, with the same seeds."""
    results = results_of(folder / "out")
    runs: dict[str, dict[int, Any]] = {}
    for run in results["runs"]:
        runs.setdefault(json.dumps([run["order"], run["settings"]]), {})[run["seed"]] = run["metrics"]
    rows = [d for d in results["decomposition"] if d["metric"] == "target_mass"]
    assert len(rows) == 6
    for d in rows:
        assert d["control"] == {"align.beta": pytest.approx(0.5 * d["settings"]["align.beta"])}
        named = [(d["a"], d["settings"]), (d["b"], {**d["settings"], **d["control"]}), (d["b"], d["settings"])]
        a, control, b = (
            np.array([metrics["target_mass"] for metrics in runs[json.dumps([order, settings])].values()])
            for order, settings in named
        )
        for name, part in (("total", a - b), ("sharpening", control - b), ("recall", a - control)):
            assert d[name] == pytest.approx(part.mean(), abs=1e-12), name
            interval = ttest_1samp(part, 0.0).confidence_interval(0.95)
            assert d[f"{name}_ci95"] == pytest.approx((interval.low, interval.high), abs=1e-9), name
        assert d["p_value"] == pytest.approx(ttest_1samp(a - control, 0.0).pvalue, rel=1e-6)
        assert d["n_seeds"] == d["n_replicates"] == 4


def test_orders_tie_where_alignment_does_nothing(folder: Path) -> None:
    """At an enormous price of KL both orders are the distilled teacher; sampled at τ they must tie as well."""
    sets = ["sweep=[]", "align.method=exact", "align.beta=1e9", "distill.components=8"]
    done = precede("compare", "small.yaml", "--out", "noop", *[w for s in sets for w in ("--set", s)], cwd=folder)
    assert done.returncode == 0, done.stderr
    for c in results_of(folder / "noop")["comparisons"]:
        if c["metric"] in ("target_mass", "decoded_target_mass", "reward", "decoded_reward"):
            assert c["mean_difference"] == pytest.approx(0.0, abs=1e-6)
    assert "Take the cheaper: the orders do not differ on reward" in done.stdout


def test_resolved_recipe_gives_the_same_results(folder: Path) -> None:
    done = precede("compare", "out/recipe.yaml", "--out", "again", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "0 stages run, 26 taken from the store" in done.stdout
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
    assert "19 stages run, 7 taken from the store" in done.stdout


def test_dry_run_runs_nothing(folder: Path) -> None:
    done = precede("compare", "small.yaml", "--dry-run", "--set", "seeds=5", "--out", "dry", cwd=folder)
    assert done.returncode == 0
    assert "52 nodes for 18 arms × 5 seeds; nothing is run" in done.stdout
    assert "teacher > distill > align" in done.stdout
    assert not (folder / "dry").exists()
    plan = json.loads(precede("compare", "small.yaml", "--dry-run", "--json", cwd=folder).stdout)["plan"]
    assert sum(row["nodes"] for row in plan) == 52
    assert sum(row["finished"] for row in plan) == 52
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
    assert "Method: ppo." in page
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


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from precede.cli.main import app; "
        "print([name for name in ('torch', 'transformers', 'trl', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_mixture_world_runs_without_transformers(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from precede.settings.recipe import load_recipe; "
        "from precede.jobs.compare import compare; "
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
