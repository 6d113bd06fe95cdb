"""EM against scikit-learn, and its hard cases."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from conftest import random_mixtures
from precede.worlds.mixture import density, fit


def data(generator: torch.Generator, rows: int, count: int) -> torch.Tensor:
    truth = random_mixtures(generator, rows, 4)
    noise = torch.stack([density.draw_noise([generator], count)[0] for _ in range(rows)])
    return density.sample(truth, noise)


def test_em_against_scikit_learn(generator: torch.Generator) -> None:
    """From one start and for the same number of steps, weights, means, covariances and likelihood are the same."""
    points = data(generator, 2, 300)
    start = random_mixtures(generator, 2, 3).unsqueeze(1)
    steps = 12
    ours = fit.em(points, start, max_iterations=steps + 1, tolerance=-1.0, variance_floor=1e-9)
    for row in range(2):
        s11, s12, s22 = density.covariances(start[row, 0]).numpy().T
        matrices = np.stack([np.stack([s11, s12], -1), np.stack([s12, s22], -1)], -2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            theirs = GaussianMixture(
                3,
                tol=0.0,
                reg_covar=0.0,
                max_iter=steps,
                weights_init=density.log_weights(start[row, 0]).exp().numpy(),
                means_init=start[row, 0, :, 1:3].numpy(),
                precisions_init=np.linalg.inv(matrices),
            ).fit(points[row].T.numpy())
        np.testing.assert_allclose(density.log_weights(ours.parameters[row]).exp(), theirs.weights_, atol=1e-8)
        np.testing.assert_allclose(ours.parameters[row, :, 1:3], theirs.means_, atol=1e-7)
        np.testing.assert_allclose(
            density.covariances(ours.parameters[row]), theirs.covariances_.reshape(3, 4)[:, [0, 1, 3]], atol=1e-7
        )
        assert float(ours.mean_logp[row]) == pytest.approx(theirs.score(points[row].T.numpy()), abs=1e-8)


def test_whole_fit_is_as_good_as_scikit_learn(generator: torch.Generator) -> None:
    points = data(generator, 6, 400)
    uniforms = torch.rand(6, 6, 4, 3, generator=generator, dtype=torch.float64)
    ours = fit.fit(points, 4, uniforms=uniforms, variance_floor=1e-3, tolerance=1e-5, max_iterations=400)
    theirs = [
        GaussianMixture(4, n_init=6, init_params="k-means++", reg_covar=1e-6, tol=1e-5, max_iter=400, random_state=0)
        .fit(row.T.numpy())
        .score(row.T.numpy())
        for row in points
    ]
    assert float(ours.mean_logp.mean()) > np.mean(theirs) - 0.01


def test_likelihood_never_falls(generator: torch.Generator) -> None:
    points = data(generator, 1, 200)
    start = random_mixtures(generator, 1, 3).unsqueeze(1)
    levels = [
        float(fit.em(points, start, max_iterations=n, tolerance=-1.0, variance_floor=1e-9).mean_logp)
        for n in range(1, 15)
    ]
    assert np.all(np.diff(levels) >= -1e-12)


def test_converged_parameters_have_the_reported_likelihood(generator: torch.Generator) -> None:
    points = data(generator, 3, 200)
    uniforms = torch.rand(3, 2, 3, 3, generator=generator, dtype=torch.float64)
    result = fit.fit(points, 3, uniforms=uniforms)
    torch.testing.assert_close(density.log_density(result.parameters, points).mean(-1), result.mean_logp)
    assert int(result.steps.max()) < 200


def test_rows_do_not_see_one_another(generator: torch.Generator) -> None:
    """Bit for bit: a row alone, in a pair, and among all gives the same parameters."""
    points = data(generator, 9, 151)
    uniforms = torch.rand(9, 3, 4, 3, generator=generator, dtype=torch.float64)
    together = fit.fit(points, 4, uniforms=uniforms)
    for rows in ([4], [7, 1], [0, 2, 3, 5, 8]):
        alone = fit.fit(points[rows], 4, uniforms=uniforms[rows])
        assert torch.equal(alone.parameters, together.parameters[rows])


def test_empty_component_is_put_to_use(generator: torch.Generator) -> None:
    """A component that starts too far away to own a point ends with a share of the data."""
    points = data(generator, 1, 300)
    start = density.pack(
        torch.tensor([[0.5, 0.5]], dtype=torch.float64),
        torch.tensor([[[0.0, 0.0], [1e4, 1e4]]], dtype=torch.float64),
        torch.tensor([[[1.0, 0.0, 1.0], [0.01, 0.0, 0.01]]], dtype=torch.float64),
    ).unsqueeze(1)
    result = fit.em(points, start, max_iterations=100, tolerance=1e-9, variance_floor=1e-3)
    assert torch.isfinite(result.parameters).all()
    assert float(density.log_weights(result.parameters).exp().min()) > 0.01
    assert float(result.parameters[..., 1:3].abs().max()) < 100


def test_variance_floor_holds_for_points_on_a_line_and_for_copies(generator: torch.Generator) -> None:
    line = torch.linspace(0, 1, 40, dtype=torch.float64)
    points = torch.stack((torch.stack((line, line)), torch.ones(2, 40, dtype=torch.float64)))
    uniforms = torch.rand(2, 2, 3, 3, generator=generator, dtype=torch.float64)
    result = fit.fit(points, 3, uniforms=uniforms, variance_floor=0.01)
    assert torch.isfinite(result.parameters).all()
    s11, s12, s22 = density.covariances(result.parameters).unbind(-1)
    smallest = 0.5 * (s11 + s22) - (0.25 * (s11 - s22) ** 2 + s12**2).sqrt()
    assert float(smallest.min()) >= 0.01 - 1e-9


def test_floor_leaves_other_covariances_alone(generator: torch.Generator) -> None:
    covariances = density.covariances(random_mixtures(generator, 3, 4))
    assert torch.equal(fit.floor_eigenvalues(covariances, 1e-9), covariances)


def test_points_must_be_finite() -> None:
    points = torch.full((1, 2, 5), float("nan"), dtype=torch.float64)
    with pytest.raises(ValueError, match="not finite"):
        fit.fit(points, 1, uniforms=torch.rand(1, 1, 1, 1, dtype=torch.float64))


def test_kmeans_plus_plus_centres_are_points_far_apart(generator: torch.Generator) -> None:
    corners = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 9.0, 0.0, 9.0]], dtype=torch.float64)
    points = corners.repeat_interleave(25, dim=1).unsqueeze(0)
    points = points + 0.01 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    uniforms = torch.rand(1, 20, 4, 3, generator=generator, dtype=torch.float64)
    centres = fit.initial_centres(points, uniforms)[0]
    found = (centres > 4.5).long()
    codes = found[..., 0] * 2 + found[..., 1]
    assert all(sorted(row.tolist()) == [0, 1, 2, 3] for row in codes)
