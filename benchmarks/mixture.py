"""The mixture world's speed, as ratios from one run: batched against one seed at a time, and EM against scikit-learn.

    python benchmarks/mixture.py [--seeds 256] [--alone 4]

The whole default comparison runs twice in the same process on one thread, each in a fresh store: for all seeds batched,
and for a few seeds one after the other by the same code (as a loop over seeds would run it), scaled to all seeds. Then the
EM fits of all teachers and students run batched, and by scikit-learn in a loop with the same starts, tolerance and floor.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
import warnings
from pathlib import Path

import torch

from precede.engine import Listener
from precede.engine.local import Local
from precede.jobs.compare import prepare
from precede.settings.recipe import load_recipe
from precede.store import Store
from precede.worlds.mixture import density, fit
from precede.worlds.mixture.truth import make_truth


def comparison(seeds: list[int]) -> float:
    """Seconds for the stages of the default comparison with these seeds, from an empty store, on one thread."""
    recipe = load_recipe("mixture", [f"seeds={seeds}"])
    with tempfile.TemporaryDirectory() as folder:
        worlds, plan, _ = prepare(recipe, Path(folder))
        began = time.perf_counter()
        Local(plan, worlds, 1).run(plan, worlds, Store(Path(folder)), Listener())
        return time.perf_counter() - began


def em(seeds: int) -> tuple[float, float, float]:
    """Seconds for fitting the teachers of all seeds batched and by scikit-learn, and the mean gap in likelihood, nats."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    recipe = load_recipe("mixture")
    config, truth = recipe.variants[0].teacher, make_truth(recipe.variants[0].world)
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    noise = density.draw_noise(generators, config["samples"])
    points = density.sample(truth.parameters.expand(seeds, -1, -1), noise)
    shape = (config["restarts"], 8, 3)
    uniforms = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators])
    limits = {"max_iterations": config["max_iterations"], "tolerance": config["tolerance"]}
    began = time.perf_counter()
    parts = [
        fit.fit(points[i : i + 64], 8, uniforms=uniforms[i : i + 64], variance_floor=config["variance_floor"], **limits)
        for i in range(0, seeds, 64)
    ]
    ours = time.perf_counter() - began
    level = torch.cat([part.mean_logp for part in parts]).mean()
    began = time.perf_counter()
    theirs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for seed in range(seeds):
            model = GaussianMixture(
                8,
                n_init=config["restarts"],
                init_params="k-means++",
                tol=config["tolerance"],
                max_iter=config["max_iterations"],
                reg_covar=1e-6,
                random_state=seed,
            )
            theirs.append(model.fit(points[seed].T.numpy()).score(points[seed].T.numpy()))
    return ours, time.perf_counter() - began, float(level) - sum(theirs) / seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--alone", type=int, default=4, help="seeds that are run one at a time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread")
    comparison([10_000])  # imports and caches
    began_alone = [comparison([seed]) for seed in range(arguments.alone)]
    alone = sum(began_alone) / arguments.alone
    batched = comparison(list(range(arguments.seeds))) / arguments.seeds
    print(f"default comparison, one seed at a time: {alone:.3f} s per seed")
    print(f"default comparison, {arguments.seeds} seeds batched:  {batched:.3f} s per seed")
    print(f"ratio: {alone / batched:.1f}")
    ours, theirs, gap = em(arguments.seeds)
    print(f"EM of {arguments.seeds} teachers: batched {ours:.2f} s, scikit-learn in a loop {theirs:.2f} s")
    print(f"ratio: {theirs / ours:.1f} (mean log-likelihood of ours less theirs: {gap:+.4f} nats per point)")


if __name__ == "__main__":
    main()
