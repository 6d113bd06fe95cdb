"""Distilling from π^λ·π_ref^(1−λ) of one alignment: against the tilt at β/λ, and in every way that a model is taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from build_material import make_inputs, recipe, run
from conftest import SMALL, Stages, random_mixtures, truth_of
from precede import theory
from precede.jobs.compare import compare, prepare
from precede.models.extrapolation import extrapolate
from precede.models.load import load, parameter_count
from precede.report import extrapolation
from precede.report.view import number
from precede.sampling import sample_prompts
from precede.scoring.logprobs import score
from precede.settings.recipe import read_recipe
from precede.stages import distil
from precede.stages.context import Amounts
from precede.stages.registry import METHODS
from precede.store import Store
from precede.worlds.mixture import density, oracle
from precede.worlds.mixture.world import load as load_mixture
from test_grammar_tiny import changed
from test_lm_distil import divergence
from test_lm_scoring_families import family
from test_lm_tiny import (
    PROMPT,
    TEXT,
    doubled,
    exact_logps,
    rows_of,
    settings,
    stopping_model,
    tiny_model,
    tiny_tokenizer,
)

FLOOR = 1e-12
LAMBDAS = (0.25, 0.5, 1.5, 3.0)


def powers(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ the law


@given(
    st.lists(st.tuples(st.floats(-6, 0), st.floats(-3, 3)), min_size=2, max_size=9),
    st.floats(0.05, 5.0),
    st.floats(0.05, 4.0),
)
def test_an_extrapolated_tilt_is_the_tilt_at_another_price(
    outcomes: list[tuple[float, float]], beta: float, extrapolation: float
) -> None:
    weights, rewards = np.array(outcomes).T
    reference = theory.sharpened(weights, 1.0)
    found = theory.extrapolated(theory.tilt(reference, rewards, beta), reference, extrapolation)
    expected = theory.tilt(reference, rewards, theory.extrapolated_price(beta, extrapolation))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_no_extrapolation_is_the_model_and_none_of_it_the_reference() -> None:
    own, reference = np.log([0.7, 0.2, 0.1]), np.log([0.2, 0.3, 0.5])
    assert theory.extrapolated(own, reference, 1.0) == pytest.approx(own)
    assert theory.extrapolated(own, reference, 0.0) == pytest.approx(reference)
    lacking = theory.extrapolated([np.log(0.5), np.log(0.5), -np.inf], reference, 2.0)
    assert lacking[2] == -np.inf
    assert np.exp(lacking).sum() == pytest.approx(1)
    for call in (
        lambda: theory.extrapolated(own, reference, -0.1),
        lambda: theory.extrapolated([0.0, -np.inf], [-np.inf, 0.0], 2.0),
        lambda: theory.extrapolated_price(0.1, 0.0),
    ):
        with pytest.raises(ValueError, match=r"must|no outcome in common"):
            call()


# ---------------------------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_in_the_exact_arm_mixtures_extrapolate_to_the_tilt_at_another_price(beta: float) -> None:
    """Weights, means and covariances of every component that matters, to 1e-6, at once for several λ."""
    truth = truth_of("log_density", target_weight=0.3)
    reference = density.sharpen(truth.parameters, 1.3).expand(len(LAMBDAS), -1, -1)
    price, extrapolation = powers([beta] * len(LAMBDAS)), powers(LAMBDAS)
    aligned = oracle.optimum(reference, truth, price, FLOOR).model
    found = oracle.extrapolated(aligned, reference, truth, extrapolation, FLOOR)
    expected = oracle.optimum(reference, truth, price / extrapolation, FLOOR).model
    shares = [density.log_weights(model).exp() for model in (found, expected)]
    torch.testing.assert_close(*shares, rtol=0, atol=1e-6)
    heavy = shares[1] > 1e-6
    assert bool(heavy.any(-1).all())
    torch.testing.assert_close(found[heavy][:, 1:3], expected[heavy][:, 1:3], rtol=1e-6, atol=1e-6)
    shapes = [density.covariances(model)[heavy] for model in (found, expected)]
    torch.testing.assert_close(*shapes, rtol=1e-6, atol=1e-6)


def test_any_two_mixtures_are_multiplied_point_by_point(generator: torch.Generator) -> None:
    """Oracle: means and covariance of the density on a finer grid, for mixtures of unlike components and sizes."""
    truth = truth_of()
    aligned, reference = random_mixtures(generator, 1, 3), random_mixtures(generator, 1, 4)
    found = oracle.extrapolated(aligned, reference, truth, powers([0.6]), FLOOR)
    axis = torch.linspace(-14, 14, 1601, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis).T.unsqueeze(0)
    scores = 0.6 * density.log_density(aligned, points) + 0.4 * density.log_density(reference, points)
    weight = torch.softmax(scores, -1)
    mean = (points * weight.unsqueeze(1)).sum(-1)
    share = density.log_weights(found).exp().unsqueeze(-1)
    torch.testing.assert_close((share * found[..., 1:3]).sum(1), mean, rtol=0, atol=1e-4)
    moments = density.covariances(found) + density.products(found[..., 1:3])
    second = (density.products(points.transpose(1, 2)) * weight.unsqueeze(-1)).sum(1)
    torch.testing.assert_close((share * moments).sum(1), second, rtol=1e-4, atol=1e-4)


def test_what_grows_outwards_is_refused() -> None:
    truth = truth_of()
    wide = truth.parameters.clone()
    wide[..., [3, 5]] += 0.5
    with pytest.raises(
        ValueError, match=r"^extrapolation 3 of this alignment is no distribution that can be integrated"
    ):
        oracle.extrapolated(wide, truth.parameters, truth, powers([3.0]), FLOOR)


def test_a_stage_of_mixtures_distils_as_if_aligned_at_the_other_price(store: Store, stages: type[Stages]) -> None:
    made = stages((0, 1), reward={"kind": "log_density"})
    teacher = made.teacher(samples=300, restarts=2)
    aligned, other = (made.align(teacher, method="exact", beta=beta) for beta in (0.5, 0.25))
    settings = {"samples": 200, "restarts": 2}
    plain = made.distill(other, **settings)
    config = made.distill(aligned, **settings).config | {"extrapolation": 2.0}
    edges = {"parent": aligned, "teacher": aligned, "reference": teacher}
    beyond = made._node("distill", config, edges)
    made.run(store, plain, beyond)
    torch.testing.assert_close(load_mixture(store, beyond), load_mixture(store, plain), rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- plans


def test_at_1_nothing_is_new_and_beyond_it_the_reference_is_an_edge(tmp_path: Path) -> None:
    recipe = read_recipe(SMALL | {"sweep": [{"distill.extrapolation": [1.0, 0.5]}], "orders": ["align > distill"]})
    before = read_recipe(SMALL | {"sweep": [], "orders": ["align > distill"]})
    plain, swept = (prepare(one, tmp_path)[1] for one in (before, recipe))
    last = [arm.blocks[0][-1] for arm in swept.arms]
    assert [arm.blocks[0][-1].key for arm in plain.arms] == [last[0].key]
    assert "reference" not in last[0].edges
    assert last[1].edges["reference"] == last[1].edges["parent"].edges["reference"] == swept.arms[1].blocks[0][0]


@pytest.mark.parametrize("order", ["distill > align", "distill", "align > distill > again"])
def test_without_an_alignment_right_before_it_is_one_sentence(order: str, tmp_path: Path) -> None:
    stage = {**SMALL["distill"], "kind": "distill", "extrapolation": 0.5}
    stages = {"distill": {**SMALL["distill"], "extrapolation": 1.0 if "again" in order else 0.5}, "again": stage}
    recipe = read_recipe(SMALL | stages | {"sweep": [], "orders": [order]})
    with pytest.raises(
        ValueError, match=r"^(distill|again)\.extrapolation goes on from an alignment, and .* right behind an"
    ):
        prepare(recipe, tmp_path)


# ---------------------------------------------------------------------------------------------- language models


def pair(**more: Any) -> tuple[Any, Any]:
    """A model and the reference it stands for."""
    return tiny_model(**more), tiny_model(seed=4, scale=0.4, **more)


def mixed(
    extrapolation: float, aligned: Any, reference: Any, rows: list[list[int]], tau: float = 1.0
) -> list[torch.Tensor]:
    """log softmax((λ·l + (1−λ)·l_ref)/τ) at each token, in float64."""
    with torch.no_grad():
        own, other = (exact_logps(doubled(one), rows) for one in (aligned, reference))
    scores = (extrapolation * a + (1 - extrapolation) * b for a, b in zip(own, other, strict=True))
    return [(one / tau).log_softmax(-1) for one in scores]


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2", "qwen2", "gemma3 plain", "mistral", "phi", "cohere"])
def test_logits_of_many_families_are_both(name: str) -> None:
    own = family(name.removesuffix(" plain"))
    own.config.final_logit_softcapping = None
    reference = family(name.removesuffix(" plain"))
    reference.config.final_logit_softcapping = None
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.9)
        ids = torch.arange(3, 20)[None]
        expected = 1.7 * own(ids).logits - 0.7 * reference(ids).logits
        extrapolate(own, reference, 1.7)
        torch.testing.assert_close(own(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "why"), [("gemma2", "needs a plain linear head"), ("opt", "cannot be extrapolated")])
def test_models_of_another_make_are_refused(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        extrapolate(family(name), family(name), 0.5)


@pytest.mark.parametrize("extrapolation", [0.5, 1.5])
def test_samples_are_of_the_mixed_logits(extrapolation: float) -> None:
    """With prompts of unlike lengths and caches of both models: all but greedy, against a loop without any cache."""
    aligned, reference = pair()
    prompts = [PROMPT, [*PROMPT, 5, 9, 11], [*PROMPT, 7]]
    expected = []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(6):
            ids = torch.tensor([row])
            with torch.no_grad():
                scores = extrapolation * aligned(ids).logits[0, -1] + (1 - extrapolation) * reference(ids).logits[0, -1]
            row.append(int(scores.argmax()))
            if row[-1] == 2:
                break
        expected.append(row[len(prompt) :])
    extrapolate(aligned, reference, extrapolation)
    drawn = sample_prompts(aligned, tiny_tokenizer(), prompts, max_new_tokens=6, temperature=1e-4, seed=0)
    assert drawn == expected
    assert len({tuple(row) for row in expected}) > 1


def test_frequencies_at_a_temperature_are_those_of_the_mixed_softmax() -> None:
    aligned, reference = pair()
    (wanted,) = mixed(1.5, aligned, reference, [[8]], tau=0.7)
    extrapolate(aligned, reference, 1.5)
    rows = sample_prompts(aligned, tiny_tokenizer(), [PROMPT] * 4000, max_new_tokens=1, temperature=0.7, seed=1)
    counts = np.bincount([row[0] for row in rows], minlength=wanted.shape[-1])
    expected = 4000 * wanted[0].exp().numpy()
    seen = expected > 5
    statistic = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
    assert statistic < seen.sum() + 5 * np.sqrt(2 * seen.sum())


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.parametrize("method", ["token", "on_policy"])
def test_first_loss_is_the_divergence_from_the_mixed_teacher(method: str, tau: float) -> None:
    student, (aligned, reference) = tiny_model(seed=3), pair()
    rows = rows_of(aligned, count=16) if method == "token" else [[8]]
    wanted, own = mixed(0.5, aligned, reference, rows, tau), exact_logps(doubled(student), rows)
    expected = float(
        torch.cat([divergence("forward_kl", a, b) for a, b in zip(wanted, own, strict=True)]).mean().detach()
    )
    extrapolate(aligned, reference, 0.5)
    more: dict[str, Any] = {"divergence": "forward_kl", "temperature": tau}
    if method == "token":
        prompts = [PROMPT] * len(rows)
        log = distil.token(student, aligned, tiny_tokenizer(), prompts, rows, settings(batch_size=16, steps=1), **more)
    else:  # of one token, so that the loss does not depend on what is drawn
        log = distil.on_policy(
            student, aligned, tiny_tokenizer(), [TEXT] * 8, settings(steps=1), max_new_tokens=1, **more
        )
    assert log[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_scorer_sees_the_mixed_model() -> None:
    aligned, reference = pair()
    rows = rows_of(stopping_model(), count=12)
    wanted = mixed(0.5, aligned, reference, rows)
    extrapolate(aligned, reference, 0.5)
    (found,) = score(aligned, [PROMPT], [rows])
    for one, logps, row in zip(found, wanted, rows, strict=True):
        expected = float(logps.gather(1, torch.tensor([row]).T).sum())
        assert one.logp == pytest.approx(expected, abs=1e-3)


# --------------------------------------------------------------------------------------------------- whole runs


def test_a_build_extrapolates_and_says_so(tmp_path: Path) -> None:
    """The model differs from that of λ = 1, the alignment is shared, and card and costs name both models."""
    make_inputs(tmp_path)
    common: dict[str, Any] = {"orders": ["align > distill"], "align__trainer": {"learning_rate": 1e-2, "max_steps": 20}}
    run(tmp_path, "plain", **common)
    run(tmp_path, "beyond", distill__extrapolation=0.5, **common)
    first, second = (load(tmp_path / name)[0] for name in ("plain", "beyond"))
    assert not torch.equal(*(torch.cat([p.flatten() for p in one.parameters()]) for one in (first, second)))
    assert "extrapolation" in (tmp_path / "beyond" / "README.md").read_text("utf-8")
    assert "extrapolation" not in (tmp_path / "plain" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("method", ["sequence", "token", "on_policy"])
def test_a_dry_run_counts_both_models(method: str, tmp_path: Path) -> None:
    """Memory of the reference's weights beside the teacher's, once more where both are sharpened copies, and its FLOPs."""
    make_inputs(tmp_path)
    found = []
    for power in (1.0, 0.5):
        asked = {"distill__method": method, "distill__temperature": 0.7, "distill__extrapolation": power}
        worlds, plan, _ = prepare(recipe(tmp_path, orders=["align > distill"], **asked), tmp_path / "store")
        (node,) = (one for one in plan.nodes if one.kind == "distill")
        found.append((worlds[0].peak_bytes(node), worlds[0].estimate(node).flops))
    weights = 4 * parameter_count(stopping_model())
    more = found[1][0] - found[0][0]
    assert more == pytest.approx(weights, rel=0.01) if method == "sequence" else more >= 2 * weights
    assert found[1][1] > found[0][1]


def test_the_report_holds_one_alignment_against_an_alignment_for_each_price(tmp_path: Path) -> None:
    """By hand from the runs: means, difference, and the alignment counted once."""
    only = {"orders": ["align > distill"]}
    sweep = [{"distill.extrapolation": [0.5, 0.8], **only}, {"align.beta": [0.6, 0.375], **only}, {"align.beta": [0.7]}]
    recipe = read_recipe(SMALL | {"sweep": sweep, "align": SMALL["align"] | {"method": "dpo", "beta": 0.3}})
    done = compare(recipe, out=tmp_path / "out", store=tmp_path / "store", workers=1)
    (line,) = extrapolation.lines(done.results)
    assert [(pair.extrapolation, round(pair.beta, 9)) for pair in line.pairs] == [(0.5, 0.6), (0.8, 0.375), (1.0, 0.3)]

    def mean(kind: str, name: str, **settings: float) -> float:
        runs = [run for run in done.results["runs"] if run["order"] == "align > distill"]
        own = {"align.beta": 0.3, "distill.extrapolation": 1.0} | {
            f"{k.replace('_', '.')}": v for k, v in settings.items()
        }
        return float(np.mean([run[kind][name] for run in runs if own.items() <= run["settings"].items()]))  # type: ignore[literal-required]

    (table,) = extrapolation.extrapolation_tables(done.results)
    rows = {tuple(row[table.columns.index(name)] for name in ("metric", "λ")): row for row in table.rows}
    for power, beta in ((0.5, 0.6), (0.8, 0.375)):
        row = dict(zip(table.columns, rows["target mass", f"{power:g}"], strict=True))
        one, anew = (
            mean("metrics", "target_mass", **at) for at in ({"distill_extrapolation": power}, {"align_beta": beta})
        )
        assert (row[extrapolation.ONE], row[extrapolation.ANEW]) == (number(one), number(anew))
        assert row["difference"] == number(one - anew)
    together, apart = line.flops(done.results)
    aligned = next(one for one in done.results["stages"] if one["lineage"] == ["teacher", "align"])["cost"]["flops"]
    both = mean("cost", "flops", align_beta=0.3)
    assert apart == pytest.approx(both + sum(mean("cost", "flops", align_beta=beta) for beta in (0.6, 0.375)))
    extrapolated = sum(mean("cost", "flops", distill_extrapolation=power) for power in (0.5, 0.8))
    assert together == pytest.approx(both + extrapolated - 2 * float(aligned or 0.0))
    assert together < apart
    assert "from one alignment" in (tmp_path / "out" / "tables" / "extrapolation.md").read_text("utf-8")
    assert (tmp_path / "out" / "figures" / "extrapolation.svg").stat().st_size > 5000
    assert "λ, extrapolation" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_grammar_distils_by_every_method(tmp_path: Path) -> None:
    methods = ["sequence", "token", "on_policy"]
    stage = changed()["distill"] | {"kind": "distill", "extrapolation": 1.5}
    raw = changed(orders=["align > beyond", "align > distill"]) | {"beyond": stage, "sweep": {"beyond.method": methods}}
    results = compare(read_recipe(raw), out=tmp_path / "out", store=tmp_path / "store", workers=1).results
    stages = [one for one in results["stages"] if one["kind"] == "distill"]
    (plain,) = (one for one in stages if "extrapolation" not in one["config"])
    assert [one["config"]["method"] for one in stages if one is not plain] == methods
    for one, passes in zip((one for one in stages if one is not plain), (640, 640 + 640, 2 * 32 * 10), strict=True):
        assert one["config"]["extrapolation"] == 1.5
        method, amounts = METHODS[one["config"]["method"]], Amounts(examples=64, steps=2, tokens=10.0, drawn=64)
        before = method.work({k: v for k, v in one["config"].items() if k != "extrapolation"}, amounts)
        assert method.work(one["config"], amounts).scored == before.scored | {"reference": passes}
