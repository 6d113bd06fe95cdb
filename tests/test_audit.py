"""`precede audit` from end to end on tiny models: files, numbers, exit statuses, a browser; and nothing is executed."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import precede as package
from conftest import precede
from precede.cli.main import app
from precede.data.preferences import Preference
from precede.evaluate.audit import audit, threshold_and_advantage
from precede.evaluate.signals import Estimate
from precede.models.load import load
from precede.report.audit_output import write_audit
from precede.sampling import sample, texts
from precede.stats import clopper_pearson
from test_lm_tiny import tiny_folder
from test_report import CHROMIUM, QUIET, beyond, columns_of_dashes


def logp_of(model: Any, prompt: list[int], row: list[int]) -> float:
    """log π(row | prompt), written out: one forward of one row, float64."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(logits.gather(1, torch.tensor(row)[:, None]).sum())


SCRIPT = "<script>document.title='owned'</script>"
REWARD = """
def sea(prompts, completions):
    assert len(prompts) == len(completions)
    return [float("sea" in text) for text in completions]

def broken(prompts, completions):
    return [float("nan") for _ in completions]

def short(prompts, completions):
    return [1.0]
"""


def rows() -> list[dict[str, str]]:
    made = [
        {"prompt": "The", "chosen": f" sea is w{n % 17} .", "rejected": f" sky was {SCRIPT} w{n % 13} w{n % 7}"}
        for n in range(40)
    ]
    made[3]["chosen"] = " sea \x00\x1b[31m"
    made[5]["rejected"] = made[5]["chosen"]  # the same twice: refused
    made[7]["chosen"] = ""
    return made


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, their teacher, data and a reward, in which an audit was run."""
    folder = tmp_path_factory.mktemp("audit")
    for name, seed in (("one", 1), ("two", 2), ("teacher", 3)):
        tiny_folder(folder / name, layers=2, seed=seed)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
    (folder / "wanted.py").write_text(REWARD, "utf-8")
    done = precede(*COMMAND, "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "pairs.jsonl: 40 rows, 38 to audit on, 2 refused: 1 " in done.stderr
    (folder / "stdout.txt").write_text(done.stdout, "utf-8")
    return folder


COMMAND = ["audit", "one", "two", "--data", "pairs.jsonl", "--teacher", "teacher", "--reward", "wanted:sea"]
COMMAND += ["--target-reward", "1", "--samples", "5", "--max-new-tokens", "6", "--beta", "0.2"]


@pytest.fixture(scope="module")
def found(shop: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((shop / "out" / "audit.json").read_text("utf-8"))
    return loaded


def test_what_is_left(shop: Path, found: dict[str, Any]) -> None:
    assert {path.name for path in (shop / "out").iterdir()} == {
        "audit.html",
        "audit.json",
        "audit.yaml",
        "pairs.parquet",
        "refused.jsonl",
        "figures",
    }
    assert {path.name for path in (shop / "out" / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("verdict", "typicality", "recall-gap") for kind in ("svg", "pdf")
    }
    assert (found["data"]["pairs"], found["data"]["refused"]) == (38, 2)
    refused = [json.loads(line) for line in (shop / "out" / "refused.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in refused] == [6, 8]
    assert {model["model"] for model in found["models"]} == {"one", "two"}
    assert found["settings"]["reach_nats"] == pytest.approx(5)  # chosen with "sea" are worth 1, the others 0


def test_pairs_are_scored_as_one_by_one(shop: Path) -> None:
    """Every number of every pair again, from plain forward passes."""
    columns = pyarrow.parquet.read_table(shop / "out" / "pairs.parquet").to_pydict()
    assert len(columns["row"]) == 76
    models = {name: load(shop / name) for name in ("one", "two", "teacher")}
    for place in range(0, 76, 5):
        model, tokenizer = models[columns["model"][place]]
        prompt = tokenizer(columns["prompt"][place])["input_ids"]
        for side in ("chosen", "rejected"):
            row = [*tokenizer(columns[side][place])["input_ids"], tokenizer.eos_token_id]
            logp = logp_of(model, prompt, row)
            assert columns[f"{side}_logp"][place] == pytest.approx(logp, abs=1e-4)
            assert columns[f"{side}_tokens"][place] == len(row)
            logits = (
                model(torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1].detach().double().log_softmax(-1)
            )
            entropies = -(logits.exp() * logits).sum(-1)
            varentropies = (logits.exp() * logits**2).sum(-1) - entropies**2
            z = (-logp - entropies.sum()) / varentropies.sum().sqrt()
            name = "typicality" if side == "chosen" else "rejected_typicality"
            assert columns[name][place] == pytest.approx(float(z), abs=1e-3)
            if side == "chosen":
                above = logp_of(models["teacher"][0], prompt, row)
                assert columns["recall_gap"][place] == pytest.approx(above - logp, abs=1e-4)


def test_summaries_are_of_the_pairs(shop: Path, found: dict[str, Any]) -> None:
    table = pyarrow.parquet.read_table(shop / "out" / "pairs.parquet").to_pydict()
    for model in found["models"]:
        mine = [place for place, name in enumerate(table["model"]) if name == model["model"]]
        gap = np.array([table["recall_gap"][place] for place in mine])
        assert model["numbers"]["recall_gap"]["value"] == pytest.approx(gap.mean())
        hits = int((gap > 5).sum())
        low, high = clopper_pearson(hits, 38)
        expected = {"value": hits / 38, "low": low, "high": high, "count": 38}
        assert model["numbers"]["unreachable_share"] == pytest.approx(expected)
        mass = model["numbers"]["target_mass"]
        assert mass["count"] == 38 * 5
        pooled = 1 / (1 + math.exp(-5) * (1 - mass["value"]) / mass["value"]) if mass["value"] else 0
        assert mass["value"] <= model["numbers"]["achievable_mass"]["value"] <= pooled + 1e-9


def test_python_gives_the_same(shop: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)

    def sea(prompts: Any, completions: Any) -> list[float]:
        return [float("sea" in text) for text in completions]

    done = package.audit(
        ["one", "two"],
        "pairs.jsonl",
        teacher="teacher",
        reward=sea,
        target_reward=1,
        samples=5,
        max_new_tokens=6,
        beta=0.2,
    )
    assert [candidate.model for candidate in done.candidates] == [model["model"] for model in found["models"]]
    for candidate, model in zip(done.candidates, found["models"], strict=True):
        for name, number in model["numbers"].items():
            if number["value"] is not None:
                assert candidate.numbers[name].value == pytest.approx(number["value"], abs=1e-5), name


@pytest.mark.parametrize(
    ("chosen", "rejected", "threshold", "advantage"),
    [
        ((0.2, 0.5, 0.9), (0.1, 0.6, 0.1), 0.5, 2 / 3 - 0.4 / 3),  # the median of the chosen
        ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), 1.0, 1.0),  # all reach the median, 0
        ((1.0, 1.0, 2.0), (1.0, 3.0, 1.0), 2.0, 1.5),
    ],
)
def test_what_is_desirable_where_nobody_says(
    chosen: tuple[float, ...], rejected: tuple[float, ...], threshold: float, advantage: float
) -> None:
    both = zip(chosen, rejected, strict=True)
    rows = [Preference(n, [1], [2], [3], "", str(a), str(b)) for n, (a, b) in enumerate(both)]

    def reward(prompts: Any, completions: Any, *_: Any) -> list[float]:
        return [float(text) for text in completions]

    assert threshold_and_advantage(reward, rows, None) == pytest.approx((threshold, advantage))
    most = max(*chosen, *rejected)
    assert threshold_and_advantage(reward, rows, most)[0] == most


def test_json_is_the_file(shop: Path) -> None:
    done = precede(*COMMAND, "--out", "again", "--json", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((shop / "again" / "audit.json").read_text("utf-8"))


def test_table_names_verdict_and_report(shop: Path, found: dict[str, Any]) -> None:
    text = (shop / "stdout.txt").read_text("utf-8")
    for model in found["models"]:
        assert f"{model['verdict'].upper()}: {model['model']}" in text
    assert "2 rows could not be used (row 6, for one:" in text
    assert "report: out/audit.html" in text


def test_a_copy_of_the_teacher_has_lost_nothing(shop: Path, tmp_path: Path) -> None:
    model, tokenizer = load(shop / "one")
    prompt = tokenizer("The")["input_ids"]
    drawn = [
        texts(tokenizer, prompt, [row])[0] for row in sample(model, tokenizer, prompt, 120, max_new_tokens=8, seed=1)
    ]
    pairs = [{"prompt": "The", "chosen": a, "rejected": b} for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), "utf-8")
    shutil.copytree(shop / "one", tmp_path / "copy")
    judged = audit(str(shop / "one"), str(tmp_path / "own.jsonl"), teacher=str(tmp_path / "copy"))
    assert judged.candidates[0].numbers["recall_gap"].value == pytest.approx(0, abs=1e-5)
    assert judged.candidates[0].numbers["unreachable_share"].value == 0


@pytest.mark.parametrize(("level", "status"), [("risky", (0, 1, 1)), ("trapped", (0, 0, 1))])
def test_fail_on(level: str, status: tuple[int, int, int], shop: Path, found: dict[str, Any]) -> None:
    done = precede(*COMMAND, "--out", f"fail-{level}", "--fail-on", level, cwd=shop)
    assert done.returncode == status[("ready", "risky", "trapped").index(found["models"][0]["verdict"])]


BAD: dict[str, tuple[list[str], str]] = {
    "no such model": (["audit", "nowhere", "--data", "pairs.jsonl"], "the model 'nowhere' was not found"),
    "no such data": (["audit", "one", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
    "beta": ([*COMMAND, "--beta", "0"], "beta is 0.0, but it must be from 1e-09 to 1e+09"),
    "samples": ([*COMMAND, "--samples", "0"], "samples is 0, but it must be from 1 to 10,000"),
    "limit": ([*COMMAND, "--limit", "0"], "limit"),
    "fail-on": ([*COMMAND, "--fail-on", "bad"], "--fail-on is 'bad', but it must be unchecked, risky or trapped"),
    "map": ([*COMMAND, "--map", "prompt"], "--map is 'prompt', but it must look like prompt=question"),
    "map to nothing": ([*COMMAND, "--map", "prompt=question"], "question"),
    "two rewards": ([*COMMAND, "--reward-model", "one"], "give a reward or a reward model, not both"),
    "no such reward": ([*COMMAND[:-8], "--reward", "wanted:nothing"], "the reward 'wanted:nothing' cannot be imported"),
    "no such module": ([*COMMAND[:-8], "--reward", "absent:nothing"], "the reward 'absent:nothing' cannot be imported"),
    "not a reward": ([*COMMAND[:-8], "--reward", "happy"], "the reward 'happy' is neither module:function nor one of"),
    "NaN reward": (
        [*COMMAND[:-8], "--reward", "wanted:broken"],
        "the reward 'wanted:broken' returns nan for the completion",
    ),
    "short reward": ([*COMMAND[:-8], "--reward", "wanted:short"], "the reward 'wanted:short' returns 1 values for 38"),
    "out below a file, told first": (
        ["audit", "nowhere", "--data", "pairs.jsonl", "--out", "pairs.jsonl/x"],
        "the output folder pairs.jsonl/x cannot be written (Not a directory); name another with --out",
    ),
    "billion samples": (
        [*COMMAND, "--samples", "1000000000"],
        "samples is 1000000000, but it must be from 1 to 10,000",
    ),
    "beta that underflows": ([*COMMAND, "--beta", "5e-324"], "beta is 5e-324, but it must be from 1e-09 to 1e+09"),
    "goal of NaN": ([*COMMAND, "--target-reward", "nan"], "target_reward is nan, but it must be from -1e+09 to 1e+09"),
    "out is a file": ([*COMMAND, "--out", "pairs.jsonl"], "pairs.jsonl is a file; name a folder with --out"),
    "no room to sample": ([*COMMAND, "--max-new-tokens", "80"], "leaves no room for 80 more in the 64 that"),
    "device": ([*COMMAND, "--device", "abacus"], "device 'abacus' is not available here"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, sentence = BAD[case]
    monkeypatch.chdir(shop)
    done = CliRunner().invoke(app, arguments if "--out" in arguments else [*arguments, "--out", "bad"])
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert [line[:8] for line in done.stderr.splitlines()[-1:]] == ["precede:"]
    assert done.stderr.count("precede:") == 1
    assert "Traceback" not in done.output
    assert not (shop / "bad").exists()


def test_no_code_of_a_model_is_run_unless_asked(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Python files that its configuration names, nor pickled weights."""
    model = AutoModelForCausalLM.from_pretrained(shop / "one")
    coded = tiny_folder(tmp_path / "coded", layers=2, seed=1)
    config = json.loads((coded / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"}
    config["model_type"] = "evil"
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    pickled = tiny_folder(tmp_path / "pickled", layers=2, seed=1)
    (pickled / "model.safetensors").unlink()
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    for folder in (coded, pickled):
        monkeypatch.chdir(shop)
        done = CliRunner().invoke(app, ["audit", str(folder), "--data", "pairs.jsonl", "--out", "bad"])
        assert done.exit_code == 2, done.output
        assert done.stderr.count("precede:") == 1
        assert "Traceback" not in done.output
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    asked = [str(coded), "--data", "pairs.jsonl", "--out", "bad", "--trust-remote-code"]
    CliRunner().invoke(app, ["audit", *asked])
    assert (tmp_path / "ran").exists()


def test_damaged_weights_are_told(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / "one", tmp_path / "damaged")
    weights = load_file(tmp_path / "damaged" / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"is damaged: model.norm.weight has numbers that are not finite; fetch it again"
    ):
        audit(str(tmp_path / "damaged"), str(shop / "pairs.jsonl"))


def test_one_folder_is_one_model(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    found = audit(["one", "./one"], "pairs.jsonl", teacher=str(shop / "one"))
    (candidate,) = found.candidates
    assert "recall_gap" not in candidate.numbers
    assert found.teacher_numbers == candidate.numbers


def test_report_in_a_browser(shop: Path, found: dict[str, Any]) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install the package `chromium` to run the report's browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_context(offline=True).new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
        page.goto((shop / "out" / "audit.html").as_uri())
        assert page.locator(".verdict").all_inner_texts() == [model["verdict"] for model in found["models"]]
        assert page.locator(".verdict").first.bounding_box()["y"] < 400  # type: ignore[index]
        assert page.locator("#fig-typicality svg").bounding_box()["width"] > 200  # type: ignore[index]
        assert page.locator("#fig-recall-gap svg").count() == 1
        assert page.locator("#table-worst-0 tbody tr").count() == 20
        assert page.locator("td", has_text="<script>").count() >= 1
        assert "owned" not in page.title()
        settings = dict(row.split("\t") for row in page.locator("#table-settings tbody tr").all_inner_texts())
        assert settings["β, price of KL: reward units per nat"] == "0.2"
        assert settings["reward"] == "wanted:sea"
        assert settings["how pairs were scored"].startswith("one: ")
        assert "limit" not in " ".join(settings)  # none was given
        assert columns_of_dashes(page) == []
        page.set_viewport_size({"width": 1200, "height": 800})
        assert not any(wider for wider, *_ in beyond(page).values())
        assert not re.search(r'[{\[]"', page.locator("body").inner_text())  # JSON is in audit.json
        assert said == []
        browser.close()


def test_a_number_that_nothing_knows_is_no_column(shop: Path, tmp_path: Path) -> None:
    """One pair has no spread; and what a candidate lacks is told of the others."""
    (tmp_path / "one.jsonl").write_text(json.dumps(rows()[0]) + "\n", "utf-8")
    judged = audit([str(shop / "one"), str(shop / "two")], str(tmp_path / "one.jsonl"))
    unknown = {"ranking_accuracy": Estimate(math.nan, math.nan, math.nan, 0)}
    lacking = [replace(one, numbers=one.numbers | unknown) for one in judged.candidates]
    for candidates, there in ((lacking, False), ([*lacking[:1], *judged.candidates[1:]], True)):
        page = write_audit(replace(judged, candidates=candidates), tmp_path / str(there)).read_text("utf-8")
        overview = page[page.index('id="table-overview"') : page.index('id="table-numbers"')]
        assert (">ranking accuracy<" in overview) is there
        assert ">chosen beyond the 99 % quantile<" in overview
