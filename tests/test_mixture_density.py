"""Density, sampling, gradients and quadrature of the mixture world, against SciPy and finite differences."""

from __future__ import annotations

import numpy as np
import torch
from scipy import integrate, stats

from conftest import random_mixtures
from precede.worlds.mixture import density, measure, quadrature
from precede.worlds.mixture.truth import make_truth

WORLD = {
    "layout": "grid",
    "modes": 8,
    "radius": 1.0,
    "covariance": [[0.03, 0.01], [0.01, 0.02]],
    "zipf_exponent": 1.0,
    "target_modes": [7],
    "target_weight": 0.02,
    "reward": {"kind": "bump", "width": 0.3},
}


def covariance_matrix(row: torch.Tensor) -> np.ndarray:
    s11, s12, s22 = row.tolist()
    return np.array([[s11, s12], [s12, s22]])


def test_log_density_against_scipy(generator: torch.Generator) -> None:
    parameters = random_mixtures(generator, 3, 4)
    points = torch.randn(3, 2, 50, generator=generator, dtype=torch.float64)
    ours = density.log_density(parameters, points).numpy()
    for row in range(3):
        weights = density.log_weights(parameters[row]).exp().numpy()
        total = sum(
            w * stats.multivariate_normal(m[1:3], covariance_matrix(c)).pdf(points[row].T.numpy())
            for w, m, c in zip(weights, parameters[row].numpy(), density.covariances(parameters[row]), strict=True)
        )
        np.testing.assert_allclose(ours[row], np.log(total), rtol=1e-10)


def test_gradient_against_finite_differences(generator: torch.Generator) -> None:
    parameters = random_mixtures(generator, 2, 3)
    points = torch.randn(2, 2, 20, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    phi = density.features(points)
    _, shares = density.normalise(density.joint(parameters, phi))
    ours = density.gradient(parameters, density.moments(shares * weights.unsqueeze(1), phi))
    step = 1e-6
    for index in np.ndindex(2, 3, 6):
        up, down = parameters.clone(), parameters.clone()
        up[index] += step
        down[index] -= step
        change = (density.log_density(up, points) - density.log_density(down, points)) * weights
        assert abs(float(change.sum()) / (2 * step) - float(ours[index])) < 1e-6


def test_gradient_against_autograd(generator: torch.Generator) -> None:
    parameters = random_mixtures(generator, 4, 5).requires_grad_()
    points = torch.randn(4, 2, 30, generator=generator, dtype=torch.float64)
    logps = torch.logsumexp(torch.bmm(density.natural(parameters), density.features(points)), dim=1)
    logps.sum().backward()
    fixed = parameters.detach()
    _, shares = density.normalise(density.joint(fixed, density.features(points)))
    ours = density.gradient(fixed, density.moments(shares, density.features(points)))
    torch.testing.assert_close(ours, parameters.grad, rtol=1e-9, atol=1e-9)


def test_pack_round_trip(generator: torch.Generator) -> None:
    parameters = random_mixtures(generator, 2, 4)
    again = density.pack(density.log_weights(parameters).exp(), parameters[..., 1:3], density.covariances(parameters))
    torch.testing.assert_close(again[..., 1:], parameters[..., 1:])
    torch.testing.assert_close(density.log_weights(again), density.log_weights(parameters))


def test_samples_have_the_moments(generator: torch.Generator) -> None:
    """200 000 points; mean and covariance within 5 standard errors."""
    parameters = random_mixtures(generator, 1, 3)
    points = density.sample(parameters, density.draw_noise([generator], 200_000))[0].numpy()
    weights = density.log_weights(parameters)[0].exp().numpy()
    means = parameters[0, :, 1:3].numpy()
    expected = weights @ means
    spread = sum(
        w * (covariance_matrix(c) + np.outer(m - expected, m - expected))
        for w, m, c in zip(weights, means, density.covariances(parameters)[0], strict=True)
    )
    np.testing.assert_array_less(np.abs(points.mean(1) - expected), 5 * np.sqrt(np.diag(spread) / 200_000))
    np.testing.assert_allclose(np.cov(points), spread, atol=5 * spread.max() * np.sqrt(3 / 200_000))


def test_sharpen_is_the_power_of_the_weights(generator: torch.Generator) -> None:
    parameters = random_mixtures(generator, 2, 4)
    powered = density.log_weights(parameters).exp() ** 2
    sharp = density.sharpen(parameters, 0.5)
    torch.testing.assert_close(density.log_weights(sharp).exp(), powered / powered.sum(-1, keepdim=True))
    torch.testing.assert_close(density.sharpen(parameters, 1.0)[..., 1:], parameters[..., 1:])


def test_quadrature_against_closed_forms(generator: torch.Generator) -> None:
    """Bump reward and target precision have closed forms under a Gaussian mixture."""
    truth = make_truth(WORLD)
    parameters = random_mixtures(generator, 3, 4)
    metrics = measure.measure(parameters, truth, 0.5)
    width, target = 0.3, truth.target[0, 0]
    target_mean, target_covariance = target[1:3].numpy(), covariance_matrix(density.covariances(truth.target)[0, 0])
    inverse = np.linalg.inv(target_covariance)
    for row in range(3):
        for model, prefix in ((parameters, ""), (density.sharpen(parameters, 0.5), "decoded_")):
            weights = density.log_weights(model)[row].exp().numpy()
            reward = precision = 0.0
            for w, m, c in zip(weights, model[row].numpy(), density.covariances(model)[row], strict=True):
                s, offset = covariance_matrix(c), m[1:3] - target_mean
                peak = stats.multivariate_normal(m[1:3], s + width**2 * np.eye(2)).pdf(target_mean)
                reward += w * 2 * np.pi * width**2 * peak
                quadratic = np.trace(inverse @ s) + offset @ inverse @ offset
                precision += w * (-np.log(2 * np.pi) - 0.5 * np.log(np.linalg.det(target_covariance)) - 0.5 * quadratic)
            assert abs(float(metrics[prefix + "reward"][row]) - reward) < 1e-9
            assert abs(float(metrics[prefix + "target_precision"][row]) - precision) < 1e-6 * abs(precision)


def test_quadrature_against_monte_carlo(generator: torch.Generator) -> None:
    """Precision, recall, target mass and KL, each within 5 standard errors of 400 000 samples."""
    truth = make_truth(WORLD)
    parameters = random_mixtures(generator, 1, 4)
    metrics = measure.measure(parameters, truth, None)
    noise = density.draw_noise([generator], 400_000)
    own, real = density.sample(parameters, noise), density.sample(truth.parameters, noise)
    target = density.sample(truth.target, noise)
    truth_logps, share, _ = truth.describe(own)
    draws = {
        "precision": truth_logps,
        "target_mass": share,
        "recall": density.log_density(parameters, real),
        "target_recall": density.log_density(parameters, target),
        "kl_to_truth": density.log_density(parameters, own) - truth_logps,
        "reward": truth.reward(own),
    }
    for name, values in draws.items():
        error = float(values.std()) / np.sqrt(values.numel())
        assert abs(float(values.mean()) - float(metrics[name][0])) < 5 * error, name


def test_quadrature_against_a_finer_rule(generator: torch.Generator) -> None:
    """Wide and narrow components: masses and rewards to 1e-5, log-densities to 1e-3 nats, relative to their size."""
    truth = make_truth(WORLD)
    parameters = random_mixtures(generator, 2, 4)
    parameters[0, 0, 3:] = torch.tensor([-2.5, 0.0, 0.2])
    metrics = measure.measure(parameters, truth, None)
    z, weights = quadrature._whitened_rule(0.02)
    fine: dict[str, torch.Tensor] = {}
    for k in range(4):
        _, m1, m2, log_l11, l21, log_l22 = (part.unsqueeze(1) for part in parameters[:, k].unbind(-1))
        points = torch.stack((m1 + log_l11.exp() * z[0], m2 + l21 * z[0] + log_l22.exp() * z[1]), dim=1)
        logps, share, target = truth.describe(points)
        own = density.log_density(parameters, points)
        values = {"precision": logps, "target_mass": share, "target_precision": target, "reward": truth.reward(points)}
        for name, value in (values | {"kl_to_truth": own - logps}).items():
            part = density.log_weights(parameters)[:, k].exp() * (value * weights).sum(-1)
            fine[name] = fine.get(name, torch.zeros(2, dtype=torch.float64)) + part
    for name, value in fine.items():
        tolerance = 1e-5 if name in ("target_mass", "reward") else 1e-3
        assert torch.allclose(metrics[name], value, rtol=1e-5, atol=tolerance), (name, metrics[name], value)


def test_truth_layouts() -> None:
    truth = make_truth(WORLD)
    weights = density.log_weights(truth.parameters)[0].exp()
    assert float(weights[7]) == 0.02 or abs(float(weights[7]) - 0.02) < 1e-12
    assert float(weights.sum()) == 1.0 or abs(float(weights.sum()) - 1) < 1e-12
    ratio = weights[0] / weights[1]
    assert abs(float(ratio) - 2.0) < 1e-9  # Zipf: the second mode has half the weight of the first
    ring = make_truth(WORLD | {"layout": "ring", "modes": 11, "target_modes": [3, 5], "radius": 2.0})
    assert ring.parameters.shape == (1, 11, 6)
    assert torch.allclose(ring.parameters[0, :, 1:3].norm(dim=-1), torch.tensor(2.0, dtype=torch.float64))
    assert abs(float(density.log_weights(ring.parameters)[0].exp()[[3, 5]].sum()) - 0.02) < 1e-12


def test_two_targets_share_mass_and_reward() -> None:
    truth = make_truth(WORLD | {"target_modes": [0, 7]})
    at_targets = truth.target[0, :, 1:3].T.unsqueeze(0)
    assert torch.allclose(truth.reward(at_targets), torch.ones(1, 2, dtype=torch.float64))
    assert torch.all(truth.target_share(at_targets) > 0.99)


def test_normalisation_by_integration(generator: torch.Generator) -> None:
    parameters = random_mixtures(generator, 1, 2)

    def pdf(y: float, x: float) -> float:
        point = torch.tensor([[[x], [y]]], dtype=torch.float64)
        return float(density.log_density(parameters, point).exp())

    total, _ = integrate.dblquad(pdf, -8, 8, -8, 8, epsabs=1e-4, epsrel=1e-4)
    assert abs(total - 1) < 1e-3
