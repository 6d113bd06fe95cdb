"""Alignment of mixtures: the tilt against quadrature and integration, PPO against the optimum, the order gap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate

from conftest import Stages, random_mixtures, truth_of
from precede import theory
from precede.store import Store
from precede.worlds.mixture import align, density, measure, oracle
from precede.worlds.mixture.quadrature import RULES, component_nodes
from precede.worlds.mixture.truth import Truth
from precede.worlds.mixture.world import load


def best(reference: torch.Tensor, truth: Truth, beta: torch.Tensor) -> oracle.Optimum:
    return oracle.optimum(reference, truth, beta, 1e-12)


@pytest.mark.parametrize("beta", [0.005, 0.02, 0.1, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("radius", [0.5, 1.5, 6.0])
def test_closed_form_tilt_equals_quadrature(beta: float, radius: float) -> None:
    """log Z and every component's mass, mean and covariance of π*, to 1e-8 or better, at any price and scale."""
    truth = truth_of("log_density", radius=radius, target_weight=0.3)
    reference = density.sharpen(truth.parameters, 1.3)
    price = torch.tensor([beta], dtype=torch.float64)
    target = truth.target[0, 0]
    closed, log_z = oracle.gaussian_tilt(reference, price, target[1:3], density.covariances(target))
    grid_log_z, _, _, moments = oracle._on_grid(reference, truth, price)
    torch.testing.assert_close(grid_log_z, log_z, rtol=1e-9, atol=1e-8)
    matched = oracle.moment_match(moments, 1e-15)
    torch.testing.assert_close(density.log_weights(matched).exp(), density.log_weights(closed).exp(), rtol=0, atol=1e-8)
    heavy = density.log_weights(closed)[0] > math.log(1e-6)
    torch.testing.assert_close(matched[:, heavy, 1:3], closed[:, heavy, 1:3], rtol=1e-8, atol=1e-8)
    shapes = [density.covariances(model)[:, heavy] for model in (matched, closed)]
    torch.testing.assert_close(*shapes, rtol=1e-8, atol=1e-8)


def test_optimum_that_cannot_be_resolved_is_undefined() -> None:
    truth = truth_of(radius=20.0)
    found = best(truth.parameters, truth, torch.tensor([1e-6], dtype=torch.float64))
    assert torch.isnan(found.log_z).all()
    assert torch.isnan(found.reward).all()


def test_closed_form_tilt_is_proportional_to_its_definition(generator: torch.Generator) -> None:
    """log π* − log π_ref − R/β + log Z = 0 at every point."""
    truth = truth_of("log_density", covariance=[[0.05, 0.02], [0.02, 0.04]])
    reference = random_mixtures(generator, 2, 4)
    beta = torch.tensor([0.7, 3.0], dtype=torch.float64)
    target = truth.target[0, 0]
    closed, log_z = oracle.gaussian_tilt(reference, beta, target[1:3], density.covariances(target))
    points = torch.randn(2, 2, 200, generator=generator, dtype=torch.float64)
    tilted = density.log_density(reference, points) + truth.reward(points) / beta.unsqueeze(1) - log_z.unsqueeze(1)
    torch.testing.assert_close(density.log_density(closed, points), tilted, rtol=1e-9, atol=1e-9)


def test_optimum_of_the_bump_against_adaptive_integration(generator: torch.Generator) -> None:
    truth, reference = truth_of(), random_mixtures(generator, 1, 2)
    beta = torch.tensor([0.2], dtype=torch.float64)

    def integrand(y: float, x: float) -> float:
        point = torch.tensor([[[x], [y]]], dtype=torch.float64)
        return float((density.log_density(reference, point) + truth.reward(point) / beta).exp())

    total, _ = integrate.dblquad(integrand, -7, 7, -7, 7, epsabs=1e-5, epsrel=1e-5)
    assert float(best(reference, truth, beta).log_z) == pytest.approx(np.log(total), abs=1e-4)


def test_achievable_mass_law_on_densities() -> None:
    """The optimum's target mass is σ(logit m + Δ/β), with Δ/β the difference of log E e^{R/β} on and off target."""
    truth = truth_of(radius=3.0)
    beta = torch.tensor([0.2], dtype=torch.float64)
    found = float(best(truth.parameters, truth, beta).target_mass)
    nodes = component_nodes(truth.parameters[0], 0.1)
    gains = ((truth.reward(nodes) / beta).exp() * RULES[0.1][1]).sum(-1).log()
    advantage = float(gains[2] - gains[0]) * 0.2
    assert found == pytest.approx(float(theory.achievable_mass(0.05, advantage, 0.2)), rel=1e-6)


def test_order_gap_law_on_densities() -> None:
    """Exact tilt and exact sharpening of separated modes, in both orders: the gap is (Δ/β)(1/τ − 1) to 1e-6."""
    truth = truth_of(radius=3.0)
    beta, tau = torch.tensor([0.25], dtype=torch.float64), 0.6

    def tilted(model: torch.Tensor) -> torch.Tensor:
        return best(model, truth, beta).model

    def log_odds(model: torch.Tensor) -> float:
        return float(torch.logit(measure.measure(model, truth, None)["target_mass"]))

    align_first = density.sharpen(tilted(truth.parameters), tau)
    distill_first = tilted(density.sharpen(truth.parameters, tau))
    advantage = log_odds(tilted(truth.parameters)) - log_odds(truth.parameters)
    law = float(theory.order_gap(advantage, 1.0, tau))
    assert law > 1
    assert log_odds(align_first) - log_odds(distill_first) == pytest.approx(law, abs=1e-6)


def test_equivalence_law_on_densities() -> None:
    """Exact tilt and exact sharpening of separated modes: aligning first at β is aligning last at τβ, to 1e-6 nats."""
    truth, tau = truth_of(radius=3.0, covariance=1e-4, reward={"kind": "bump", "width": 0.6}), 0.6  # constant on a mode

    def tilted(model: torch.Tensor, beta: float) -> torch.Tensor:
        return best(model, truth, torch.tensor([beta], dtype=torch.float64)).model

    def log_odds(model: torch.Tensor) -> float:
        return float(torch.logit(measure.measure(model, truth, None)["target_mass"]))

    align_first = log_odds(density.sharpen(tilted(truth.parameters, 0.5), tau))
    distilled = density.sharpen(truth.parameters, tau)
    same, matched = (log_odds(tilted(distilled, beta)) for beta in (0.5, float(theory.matched_price(0.5, tau))))
    assert align_first - same > 1
    assert align_first == pytest.approx(matched, abs=1e-6)


def test_order_gap_law_through_stages(store: Store) -> None:
    """The same through the real stages, with a student that can hold every mode and many samples.

    Over 24 seeds; within 4 standard errors, and 0.15 nats for the curvature of the log-odds in finite samples.
    """
    made = Stages(tuple(range(24)), layout="ring", modes=5, radius=2.0, target_modes=[2], target_weight=0.1)
    teacher = made.teacher(samples=2000)
    aligned = made.align(teacher, method="exact", beta=0.5)
    distilled = made.distill(teacher, temperature=0.7, components=5, samples=4000)
    first = made.distill(aligned, temperature=0.7, components=5, samples=4000)
    second = made.align(distilled, method="exact", beta=0.5)

    def log_odds(stage: Any, name: str = "target_mass") -> torch.Tensor:
        return torch.logit(torch.tensor(made.metrics(store, stage)[name], dtype=torch.float64))

    law = (log_odds(aligned, "optimal_target_mass") - log_odds(teacher)) * (1 / 0.7 - 1)
    difference = log_odds(first) - log_odds(second) - law
    error = float(difference.std()) / 24**0.5
    assert float(law.mean()) > 0.5
    assert abs(float(difference.mean())) < 4 * error + 0.15


def test_ppo_reaches_the_optimum(store: Store) -> None:
    """From a reference with enough recall, PPO's regret is under 2 % of what there is to gain; it never beats π*."""
    made = Stages((0, 1, 2, 3), target_weight=0.1)
    teacher = made.teacher(samples=1000)
    aligned = made.align(teacher, method="ppo", beta=0.2)
    metrics = {name: torch.tensor(values) for name, values in made.metrics(store, aligned).items()}
    start = torch.tensor(made.metrics(store, teacher)["reward"])
    assert torch.all(metrics["regret"] > -1e-6)
    assert torch.all(metrics["regret"] < 0.02 * (metrics["optimal_reward"] - start))
    assert torch.all(metrics["kl_to_reference"] > 0)


def test_exact_arm_has_no_regret_for_the_log_density(store: Store) -> None:
    made = Stages((0, 1), reward={"kind": "log_density", "width": 0.3})
    teacher = made.teacher(samples=500)
    aligned = made.align(teacher, method="exact", beta=20.0)
    # J is of the order of 100 nats here.
    assert max(abs(value) for value in made.metrics(store, aligned)["regret"]) < 1e-6


@pytest.mark.parametrize(
    ("world", "beta"),
    [
        ({}, 0.02),
        ({"radius": 6.0}, 0.1),
        ({"target_modes": [1, 7]}, 0.05),
        ({"reward": {"kind": "log_density", "width": 0.3}}, 0.5),
        ({"reward": {"kind": "log_density", "width": 0.3}, "radius": 20.0}, 5.0),
        ({"reward": {"kind": "log_density", "width": 0.3}, "target_modes": [1, 7]}, 1.0),
    ],
)
def test_regret_is_never_negative(world: dict[str, Any], beta: float, store: Store) -> None:
    """J* − J(π) ≥ 0 up to quadrature (1e-3 nats times β), for students and teachers alike."""
    made = Stages((0, 1), **world)
    teacher = made.teacher(samples=400, restarts=2)
    student = made.distill(teacher, samples=300, restarts=2)
    for parent in (teacher, student):
        for method in ("exact", "ppo"):
            aligned = made.align(parent, method=method, beta=beta, steps=20, samples=64)
            for value in made.metrics(store, aligned)["regret"]:
                assert value is not None
                assert value > -1e-3 * beta


def test_clipped_coefficient_against_autograd() -> None:
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
    log_ratio = torch.tensor([-0.5, 0.1, 0.5, -0.5, -0.1, 0.5], dtype=torch.float64, requires_grad=True)
    ratio = log_ratio.exp()
    torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum().backward()
    ours = align.clipped_coefficient(log_ratio.detach().exp(), advantage, 0.2)
    torch.testing.assert_close(ours, log_ratio.grad)


def test_divergence_is_named() -> None:
    truth = truth_of()
    beta = torch.tensor([float("nan")], dtype=torch.float64)
    noise = iter([density.draw_noise([torch.Generator().manual_seed(0)], 16)] * 3)
    with pytest.raises(align.Diverged, match="ppo diverged: the gradient of row 0 is not finite at step 0"):
        align.ppo(
            truth.parameters,
            truth.parameters,
            truth.reward,
            beta,
            noise,
            steps=3,
            epochs=1,
            clip=0.2,
            learning_rate=0.05,
            variance_floor=1e-3,
        )


def test_reference_teacher_anchors_to_the_model_before_distillation(store: Store) -> None:
    made = Stages((0, 1))
    teacher = made.teacher(samples=500)
    student = made.distill(teacher, samples=300, temperature=0.4)
    anchored = made.align(student, method="ppo", reference="teacher", beta=50.0, steps=200, samples=128)
    made.run(store, anchored)
    # At a price this high alignment can only return to its reference: the KL to the teacher falls.
    before = measure.kl_to_reference(load(store, student), load(store, teacher), made.made.truth.ridge_width)
    after = torch.tensor(made.metrics(store, anchored)["kl_to_reference"], dtype=torch.float64)
    assert torch.all(after < 0.5 * before)
