"""A comparison on a user's rows: two levels that are never pooled, what k samples reach, examples, and the answer."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter
from scipy.stats import ttest_1samp
from transformers import AutoModelForCausalLM

from conftest import precede
from precede.analysis.prompts import pass_at
from precede.analysis.results import Results
from precede.jobs.build import order_ahead
from precede.jobs.compare import compare, prepare
from precede.models.load import save
from precede.plan import Plan
from precede.report.answer import answer
from precede.report.view import by_role
from precede.settings.recipe import load_recipe
from precede.store import Store
from test_lm_tiny import WORDS, stopping_model, tiny_tokenizer

TRAINER = {"learning_rate": 5e-3, "per_device_train_batch_size": 8, "max_steps": 6}
REWARD = """
def longer(completions, **_):
    return [len(one.split()) / 6 for one in completions]
"""
SEEDS, SAMPLES = (0, 1, 2), 5


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Plan, Store]:
    folder = tmp_path_factory.mktemp("user")
    save(stopping_model(), tiny_tokenizer(), folder / "teacher")
    (folder / "reward.py").write_text(REWARD, "utf-8")
    rows = [
        {"prompt": f"<s> {a} {b}", "chosen": f" {b} {a} {a}", "rejected": f" {a}"}
        for a, b in itertools.product(WORDS[:8], WORDS[:5])
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    raw = {
        "recipe": "user",
        "teacher": str(folder / "teacher"),
        "student": {"keep_layers": 3},
        "data": {"source": str(folder / "pairs.jsonl"), "held_out": 0.3},
        "world": {
            "reward": f"{folder / 'reward.py'}:longer",
            "target_reward": 0.5,
            "max_new_tokens": 6,
            "device": "cpu",
        },
        "evaluation": {"samples_per_prompt": SAMPLES},
        "align": {"trainer": TRAINER},
        "distill": {"temperature": 0.7, "trainer": TRAINER},
        "seeds": list(SEEDS),
    }
    recipe = load_recipe(raw)
    compared = compare(recipe, out=folder / "out", store=folder / "store", workers=1)
    _, plan, _ = prepare(recipe, folder / "store")
    return compared.results, folder, plan, Store(folder / "store")


def measured(done: tuple[Any, Path, Plan, Store], order: str, seed: int) -> dict[str, list[float]]:
    """What was kept per prompt of an order's final model at the recipe's own setting."""
    _, _, plan, store = done
    arm = next(arm for arm in plan.arms if str(arm.order) == order)
    node = plan.measures[arm.blocks[SEEDS.index(seed)][-1].key]
    columns: dict[str, list[float]] = pyarrow.parquet.read_table(store.folder(node) / "measures.parquet").to_pydict()
    return columns


def test_results_follow_the_schema_and_hold_the_control(done: Any) -> None:
    results = json.loads((done[1] / "out" / "results.json").read_text("utf-8"))
    TypeAdapter(Results).validate_python(results)
    assert {d["metric"] for d in results["decomposition"]} >= {"reward", "target_mass", "recall"}
    assert {json.dumps(d["control"]) for d in results["decomposition"]} == {'{"align.beta": 0.07}'}


def test_two_models_are_compared_over_prompts_within_a_seed(done: Any) -> None:
    rows = [p for p in done[0]["prompts"] if p["metric"] == "reward"]
    assert [p["seed"] for p in rows] == list(SEEDS)
    for p in rows:
        a, b = (np.array(measured(done, p[side], p["seed"])["reward"]) for side in ("a", "b"))
        interval = ttest_1samp(a - b, 0.0).confidence_interval(0.95)
        assert p["mean_difference"] == pytest.approx((a - b).mean(), abs=1e-12)
        assert p["ci95"] == pytest.approx((interval.low, interval.high), abs=1e-9)
        assert (p["higher"], p["lower"], p["equal"]) == ((a > b).sum(), (a < b).sum(), (a == b).sum())
        assert p["n_prompts"] == len(a) > 5
    margins = [p for p in done[0]["prompts"] if p["metric"] == "margin"]
    columns = measured(done, margins[0]["a"], 0)
    margin = np.array(columns["chosen_logp"]) - np.array(columns["rejected_logp"])
    assert margins[0]["mean_a"] == pytest.approx(margin.mean())


def test_seeds_are_compared_over_seeds(done: Any) -> None:
    """The comparison of procedures rests on three numbers, one for each seed, and on nothing of the prompts."""
    c = next(c for c in done[0]["comparisons"] if c["metric"] == "reward")
    differences = [
        np.mean(measured(done, c["a"], seed)["reward"]) - np.mean(measured(done, c["b"], seed)["reward"])
        for seed in SEEDS
    ]
    interval = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert c["ci95"] == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert (c["n_seeds"], c["n_replicates"]) == (3, 3)


@pytest.mark.parametrize(("hits", "samples"), [((0, 1, 4), 4), ((2, 3, 5), 5)])
def test_pass_at_k_by_counting_subsets(hits: tuple[int, ...], samples: int) -> None:
    for k in range(1, samples + 1):
        counted = [
            np.mean([any(place < c for place in chosen) for chosen in itertools.combinations(range(samples), k)])
            for c in hits
        ]
        assert pass_at(np.array(hits, float), samples, k) == pytest.approx(float(np.mean(counted)), abs=1e-12)
    with pytest.raises(ValueError, match="between 1 and"):
        pass_at(np.array(hits, float), samples, samples + 1)


def test_pass_at_k_is_unbiased() -> None:
    """Mean over 20,000 draws of 6 samples, against 1 − (1 − m)^3; 4 standard errors."""
    hits = np.random.default_rng(2).binomial(6, 0.2, size=20_000).astype(float)
    each = np.array([pass_at(np.array([c]), 6, 3) for c in range(7)])[hits.astype(int)]
    assert abs(pass_at(hits, 6, 3) - (1 - 0.8**3)) < 4 * each.std() / math.sqrt(len(each))


def test_support_is_kept_lost_and_gained(done: Any) -> None:
    rows = {(one["model"], one["seed"]): one for one in done[0]["support"]}
    models = {model for model, _ in rows}
    assert models == {
        "teacher",
        *(f"teacher > {rest}" for rest in ("align", "align > distill", "distill", "distill > align")),
    }
    for (model, seed), one in rows.items():
        assert set(one["pass_at"]) == {"1", "2", "4", "5"}
        assert list(one["pass_at"].values()) == sorted(one["pass_at"].values())
        if " > " not in model:
            assert one["kept"] is one["lost"] is one["gained"] is None
            continue
        before = rows[model.rpartition(" > ")[0], seed]
        assert one["kept"] + one["lost"] == pytest.approx(before["pass_at"]["5"])
        assert one["kept"] + one["gained"] == pytest.approx(one["pass_at"]["5"])
    final = rows["teacher > align > distill", 1]
    assert final["pass_at"]["1"] == pytest.approx(np.mean(measured(done, "align > distill", 1)["target_mass"]))


def test_examples_are_chosen_by_rule(done: Any) -> None:
    """From the largest difference in mean reward down to the smallest, with what both models wrote there."""
    examples = done[0]["examples"]
    a, b = (np.array(measured(done, order, 0)["reward"]) for order in ("align > distill", "distill > align"))
    differences = [one["difference"] for one in examples]
    assert differences == sorted(differences, reverse=True)
    assert (differences[0], differences[-1]) == (pytest.approx((a - b).max()), pytest.approx((a - b).min()))
    for one in examples:
        assert one["prompt"].startswith("<s>")
        assert one["reward_a"] == pytest.approx(len(one["completion_a"].split()) / 6)


def test_the_answer_says_both_levels_and_both_parts(done: Any) -> None:
    ((advice, *evidence),) = answer(by_role(done[0]))
    line = " ".join([advice, *evidence])
    assert len(evidence) == 3
    c = next(c for c in done[0]["comparisons"] if c["metric"] == "reward")
    assert line.split(":")[0] in (
        "Ship align > distill", "Ship distill > align", "Take the cheaper", "Not yet sure",
        "At this price of KL, ship align > distill", "At this price of KL, ship distill > align",
    )  # fmt: skip
    assert "over 3 seeds" in line or ", 3 seeds" in line
    assert f"These two models (seed 0): reward {c['mean_a']:.0f}"[:32] in line
    d = next(d for d in done[0]["decomposition"] if d["metric"] == "reward")
    said = "is sharpening, which distill > align gets too by a smaller price of KL (align.beta = 0.07)"
    assert (
        said if d["total"] > 0 else "In parts: "
    ) in line  # which order is ahead at this size depends on the processor
    assert "times the FLOPs of distill > align." in line
    page = (done[1] / "out" / "report.html").read_text("utf-8")
    for table in ("parts", "prompts", "support", "examples"):
        assert f'id="table-{table}"' in page


# ------------------------------------------------------------------------------------------ by flags, and shipped


@pytest.fixture(scope="module")
def by_flags(done: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same comparison asked for by flags, with one seed, in a folder of its own."""
    folder, given = tmp_path_factory.mktemp("flags"), done[1]
    flags = ["--teacher", str(given / "teacher"), "--keep-layers", "3", "--data", str(given / "pairs.jsonl")]
    flags += ["--reward", f"{given / 'reward.py'}:longer", "--seeds", "1", "--store", "store", "--out", "run"]
    short = [f"{stage}.trainer={json.dumps(TRAINER)}" for stage in ("align", "distill")]
    short += ["world.max_new_tokens=6", "world.device=cpu"]
    shown = precede("compare", *flags, *itertools.chain(*(("--set", one) for one in short)), cwd=folder)
    assert shown.returncode == 0, shown.stderr
    return folder, shown.stdout


def test_compare_by_flags_ends_with_the_command_that_ships(by_flags: tuple[Path, str]) -> None:
    folder, said = by_flags
    results = json.loads((folder / "run" / "results.json").read_text("utf-8"))
    assert results["orders"] == ["align > distill", "distill > align"]
    assert [run["seed"] for run in results["runs"]] == [0, 0]
    assert "Of the orders themselves, 1 seed can say nothing" in " ".join(said.split())
    assert "to ship it: precede build --from run --out model --store store" in said
    assert "precede build --from run --out model" in (folder / "run" / "report.html").read_text("utf-8")


def test_what_was_compared_is_shipped_from_another_folder(
    by_flags: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe that a comparison leaves names its files by absolute paths."""
    folder, _ = by_flags
    flags = ["--from", str(folder / "run"), "--out", "model", "--store", str(folder / "store"), "--skip", "audit"]
    made = precede("build", *flags, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "0 stages run, 2 taken from the store" in made.stdout


@pytest.mark.parametrize(
    ("kind", "words"), [("either", "do not differ, and it is the cheaper one"), ("ship", "is ahead")]
)
def test_what_is_shipped_follows_the_answer(done: Any, tmp_path: Path, kind: str, words: str) -> None:
    """The same results with a difference that is surely small, and with one that is surely large."""
    results = json.loads((done[1] / "out" / "results.json").read_text("utf-8"))
    for c in results["comparisons"]:
        if c["metric"] == "reward":
            small = {"ci95": (-1e-9, 1e-9), "mean_difference": 5e-10, "p_value": 0.5}
            large = {"ci95": (0.1, 0.3), "mean_difference": 0.2, "p_value": 1e-4}
            c |= {"mean_a": 0.5, "mean_b": 0.3} | (small if kind == "either" else large)
    (tmp_path / "results.json").write_text(json.dumps(results))
    order, why = order_ahead(tmp_path)
    assert words in why
    own = [run for run in results["runs"] if run["settings"] == results["own"][0]]
    flops = {name: sum(run["cost"]["flops"] for run in own if run["order"] == name) for name in results["orders"]}
    assert order == (min(flops, key=flops.__getitem__) if kind == "either" else "align > distill")
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="is no folder that `precede compare` left"):
        order_ahead(tmp_path)


def test_nothing_is_said_where_nobody_shows_what_is_wanted(done: Any, tmp_path: Path) -> None:
    """No sample of either order is rewarded: that is no tie, since they may differ below what was sampled."""
    results = json.loads((done[1] / "out" / "results.json").read_text("utf-8"))
    for c in results["comparisons"]:
        if c["metric"] in ("reward", "target_mass"):
            c |= {"mean_a": 0.0, "mean_b": 0.0, "mean_difference": 0.0, "ci95": (0.0, 0.0), "p_value": None}
    told = [advice for advice, *_ in answer(by_role(results))]
    assert told
    assert all(advice.startswith("Nothing can be said: no sample of either order") for advice in told)
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "neither is ahead" in order_ahead(tmp_path)[1]


def test_rows_of_one_question_are_one_prompt(tmp_path: Path) -> None:
    """Two rows of each of six questions: the interval rests on six, and k goes beyond the samples of one row."""
    save(stopping_model(), tiny_tokenizer(), tmp_path / "teacher")
    (tmp_path / "reward.py").write_text(REWARD, "utf-8")
    rows = [
        {"prompt": f"<s> {a} {b}", "chosen": f" {b} {c} {a}", "rejected": f" {a}"}
        for a, b in itertools.product(WORDS[3:9], WORDS[3:6])
        for c in WORDS[10:12]
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    raw = {
        "teacher": str(tmp_path / "teacher"),
        "student": {"keep_layers": 3},
        "data": {"source": str(tmp_path / "pairs.jsonl"), "held_out": 0.5},
        "world": {
            "reward": f"{tmp_path / 'reward.py'}:longer",
            "target_reward": 0.5,
            "max_new_tokens": 4,
            "device": "cpu",
        },
        "evaluation": {"samples_per_prompt": 2},
        "align": {"trainer": TRAINER | {"max_steps": 1}},
        "distill": {"trainer": TRAINER | {"max_steps": 1}},
        "seeds": 1,
    }
    recipe = load_recipe(raw)
    compared = compare(recipe, out=tmp_path / "out", store=tmp_path / "store", workers=1)
    _, plan, _ = prepare(recipe, tmp_path / "store")
    ends = [arm.blocks[0][-1] for arm in plan.arms]
    columns = [
        pyarrow.parquet.read_table(
            Store(tmp_path / "store").folder(plan.measures[one.key]) / "measures.parquet"
        ).to_pydict()
        for one in ends
    ]
    held_out, questions = len(columns[0]["row"]), sorted(set(columns[0]["prompt"]))
    assert held_out == 2 * len(questions) > 5
    by_prompt = [
        np.array([np.mean([v for v, p in zip(one["reward"], one["prompt"], strict=True) if p == q]) for q in questions])
        for one in columns
    ]
    (p,) = [p for p in compared.results["prompts"] if p["metric"] == "reward"]
    interval = ttest_1samp(by_prompt[0] - by_prompt[1], 0.0).confidence_interval(0.95)
    assert p["n_prompts"] == len(questions) == p["higher"] + p["lower"] + p["equal"]
    assert p["ci95"] == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert {max(map(int, one["pass_at"])) for one in compared.results["support"]} == {4}
    assert {one["n_prompts"] for one in compared.results["support"]} == {len(questions)}


def test_build_from_a_comparison_trains_nothing(by_flags: tuple[Path, str]) -> None:
    folder, _ = by_flags
    made = precede("build", "--from", "run", "--out", "model", "--store", "store", "--skip", "audit", cwd=folder)
    assert made.returncode == 0, made.stderr
    assert "0 stages run, 2 taken from the store" in made.stdout
    results = json.loads((folder / "run" / "results.json").read_text("utf-8"))
    c = next(c for c in results["comparisons"] if c["metric"] == "reward")
    ahead = c["a"] if c["mean_a"] >= c["mean_b"] else c["b"]
    assert f"order {ahead}: it is ahead (reward" in made.stdout
    assert "; the comparison is not sure of it" in made.stdout  # by one seed
    assert json.loads((folder / "model" / "build.json").read_text("utf-8"))["order"] == ahead
    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.num_hidden_layers == 3
    other = next(order for order in results["orders"] if order != ahead)
    made = precede(
        "build", "--from", "run", "--order", other, "--out", "b", "--store", "store", "--skip", "audit", cwd=folder
    )
    assert made.returncode == 0, made.stderr
    assert json.loads((folder / "b" / "build.json").read_text("utf-8"))["order"] == other


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--from", "nowhere"], "nowhere is no folder that `precede compare` left: it has no results.json"),
        (["--from", "run", "--store", "empty"], "empty lacks"),
        (
            ["--from", "run", "--beta", "0.3"],
            "--from ships what was compared: leave out the recipe and all that would change it",
        ),
        (["--from", "run", "--set", "align.beta=0.3"], "--from ships what was compared"),
        (["--from", "run", "--order", "distil"], "unknown stage 'distil'"),
    ],
)
def test_what_cannot_be_shipped_is_said(by_flags: tuple[Path, str], arguments: list[str], sentence: str) -> None:
    store = [] if "--store" in arguments else ["--store", "store"]
    made = precede("build", *arguments, *store, "--out", "none", "--skip", "audit", cwd=by_flags[0])
    assert made.returncode == 2
    assert sentence in made.stderr
    assert not (by_flags[0] / "none").exists()


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    shown = precede("compare", cwd=tmp_path)
    assert shown.returncode == 2
    assert "there is nothing to compare; give a RECIPE" in shown.stderr
    assert shown.stderr.count("\n") == 1
