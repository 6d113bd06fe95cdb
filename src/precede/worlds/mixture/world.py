"""The mixture world: two-dimensional Gaussian mixtures with exact densities, all seeds in one batch of tensors."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from precede.metrics import Cost
from precede.store import Stage, Store
from precede.worlds.mixture import align, density, fit, measure, oracle
from precede.worlds.mixture.truth import make_truth
from precede.worlds.world import peak_memory_bytes, reset_peak_memory

if TYPE_CHECKING:
    from precede.analysis.results import Results
    from precede.report.figures import Figure

VERSIONS = {"teacher": 3, "distill": 3, "align": 3}
ALIGNED_VARIANCE_FLOOR = 1e-3
"""Smallest squared Cholesky diagonal that an aligned component may reach: the policy family has a floor, as EM has."""
KMEANS_TRIALS = 3
NOISE_ROUNDS = 16
"""Rounds of PPO noise drawn at once."""
FLOPS_PER_SECOND = 3e9
"""Rate of one core, in the 6·N FLOPs of `Cost`; for estimates only."""
TYPICAL_EM_STEPS = 40


class MixtureWorld:
    seeds_per_stage = 64
    rows_per_call = 64
    threads: int | None = 1
    varying: Mapping[str, frozenset[str]] = {
        "teacher": frozenset(),
        "distill": frozenset({"temperature"}),
        "align": frozenset({"beta"}),
    }
    gpu_flops_per_second = None
    note = ""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.truth = make_truth(config)

    def version(self, kind: str) -> int:
        return VERSIONS[kind]

    def check(self, stages: Sequence[Stage]) -> None:
        """Nothing outside the package is needed."""

    def estimate(self, stage: Stage) -> Cost:
        """Expected cost per seed; EM is taken to converge in TYPICAL_EM_STEPS."""
        cost, config = Cost(), stage.config
        if stage.kind == "align":
            _alignment_cost(cost, config, *(self._parameters(model) for model in (stage.source(), stage.reference())))
        else:
            sampled = self._parameters(stage.parent) if stage.parent else _count(self.truth.parameters.shape[1])
            cost.sample(sampled, config["samples"])
            cost.train(self._parameters(stage), config["samples"] * TYPICAL_EM_STEPS * config["restarts"])
        cost.wall_seconds = cost.flops / FLOPS_PER_SECOND
        return cost

    def _parameters(self, stage: Stage) -> int:
        """Free parameters of the model that a stage leaves."""
        fitted = next(ancestor for ancestor in reversed(stage.lineage()) if ancestor.kind != "align")
        return _count(fitted.config["components"] or self.truth.parameters.shape[1])

    def run(self, stages: Sequence[Stage], store: Store) -> None:
        """Run stages of one kind and one setting but for `varying`, over their seeds, as one batch."""
        began = time.perf_counter()
        reset_peak_memory()
        first = stages[0]
        make = {"teacher": self._teacher, "distill": self._distill, "align": self._align}[first.kind]
        models, costs = make(stages, store)
        rows_in_all = len(stages) * len(first.seeds)
        seconds = (time.perf_counter() - began) / rows_in_all
        metrics = self._measure(models, stages, store)
        for number, stage in enumerate(stages):
            rows = slice(number * len(first.seeds), (number + 1) * len(first.seeds))
            with store.writing(stage) as writer:
                save_file({"parameters": models[rows].contiguous()}, writer.folder / "model.safetensors")
                writer.metrics = {
                    name: [value if math.isfinite(value) else None for value in values[rows].tolist()]
                    for name, values in metrics.items()
                }
                costs[number].wall_seconds = seconds
                costs[number].peak_memory_bytes = peak_memory_bytes()
                writer.cost = costs[number].as_dict()

    def figures(self, results: Results, examples: Mapping[str, Stage], store: Store) -> list[Figure]:
        """Densities of truth, teacher, student and the final models of the first seed; the phase diagram if swept."""
        from precede.worlds.mixture import figures

        models = {"truth p*": self.truth.parameters}
        models |= {name: load(store, stage)[:1] for name, stage in examples.items()}
        diagram = figures.phase(results)
        return [figures.densities(models, self.truth), *([diagram] if diagram else [])]

    def _measure(self, models: Tensor, stages: Sequence[Stage], store: Store) -> dict[str, Tensor]:
        """All metrics, (B,) each, of the models of a batch of stages."""
        count = len(stages[0].seeds)
        parts = [
            measure.measure(models[i * count : (i + 1) * count], self.truth, stage.distill_temperature())
            for i, stage in enumerate(stages)
        ]
        metrics = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        anchors = [_latest_reference(stage) for stage in stages]
        if None in anchors:
            return metrics
        reference = _stack(store, [anchor for anchor in anchors if anchor is not None])
        ridge = self.truth.ridge_width
        if stages[0].kind != "align":
            metrics["kl_to_reference"] = measure.kl_to_reference(models, reference, ridge)
            return metrics
        beta = _column(stages, "beta")
        best = self._optimum(reference, beta)
        metrics |= measure.measure_alignment(models, reference, metrics["reward"], beta, best, ridge)
        masses = [value for stage in stages for value in store.metrics(stage.reference())["target_mass"]]
        metrics["reference_target_mass"] = torch.tensor(masses, dtype=torch.float64)
        return metrics

    def _optimum(self, reference: Tensor, beta: Tensor) -> oracle.Optimum:
        return oracle.optimum(reference, self.truth, beta, ALIGNED_VARIANCE_FLOOR)

    def _teacher(self, stages: Sequence[Stage], store: Store) -> tuple[Tensor, list[Cost]]:
        (stage,) = stages
        config = stage.config
        noise = density.draw_noise(generators(stage, "samples"), config["samples"])
        truth = self.truth.parameters.expand(len(stage.seeds), -1, -1)
        components = config["components"] or truth.shape[1]
        return self._fit(density.sample(truth, noise), components, stages, truth.shape[1])

    def _distill(self, stages: Sequence[Stage], store: Store) -> tuple[Tensor, list[Cost]]:
        first = stages[0]
        noise = density.draw_noise(generators(first, "samples"), first.config["samples"], len(stages))
        teachers = _stack(store, [stage.source() for stage in stages])
        temperatures = _column(stages, "temperature")
        points = density.sample(density.sharpen(teachers, temperatures), noise)
        return self._fit(points, first.config["components"], stages, teachers.shape[1])

    def _fit(self, points: Tensor, components: int, stages: Sequence[Stage], sampled: int) -> tuple[Tensor, list[Cost]]:
        """Fitted models and costs; `sampled` is the number of components of what the points were drawn from."""
        config = stages[0].config
        shape = (config["restarts"], components, KMEANS_TRIALS)
        uniforms = torch.stack(
            [torch.rand(shape, generator=generator, dtype=torch.float64) for generator in generators(stages[0], "fit")]
        ).repeat(len(stages), 1, 1, 1)
        result = fit.fit(
            points,
            components,
            uniforms=uniforms,
            max_iterations=config["max_iterations"],
            tolerance=config["tolerance"],
            variance_floor=config["variance_floor"],
        )
        costs = []
        for steps in result.steps.to(torch.float64).reshape(len(stages), -1).mean(-1).tolist():
            cost = Cost()
            cost.sample(_count(sampled), config["samples"])
            cost.train(_count(components), config["samples"] * steps * config["restarts"])
            costs.append(cost)
        return result.parameters, costs

    def _align(self, stages: Sequence[Stage], store: Store) -> tuple[Tensor, list[Cost]]:
        config = stages[0].config
        start = _stack(store, [stage.source() for stage in stages])
        reference = _stack(store, [stage.reference() for stage in stages])
        beta = _column(stages, "beta")
        method = config["method"]
        if method == "ppo":
            models = align.ppo(
                start,
                reference,
                self.truth.reward,
                beta,
                _rounds(stages, config["steps"], config["samples"]),
                steps=config["steps"],
                epochs=config["epochs"],
                clip=config["clip"],
                learning_rate=config["learning_rate"],
                variance_floor=ALIGNED_VARIANCE_FLOOR,
            )
        elif method == "dpo":
            models = align.dpo(
                start,
                reference,
                *self._pairs(stages, reference),
                align.dpo_coefficient(beta, config["preference"]["scale"]),
                steps=config["steps"],
                learning_rate=config["learning_rate"],
                variance_floor=ALIGNED_VARIANCE_FLOOR,
            )
        else:
            models = self._optimum(reference, beta).model
            if not bool(torch.isfinite(models).all()):
                raise ValueError(f"the exact optimum at beta = {float(beta.min()):g} is too narrow to be integrated")
        costs = []
        for _ in stages:
            cost = Cost()
            _alignment_cost(cost, config, _count(start.shape[1]), _count(reference.shape[1]))
            costs.append(cost)
        return models, costs

    def _pairs(self, stages: Sequence[Stage], reference: Tensor) -> tuple[Tensor, Tensor]:
        """DPO's pairs, drawn from the reference (on-policy) or the truth (off-policy) and ranked by the reward."""
        config = stages[0].config
        count, preference = config["pair_count"], config["preference"]
        noise = density.draw_noise(generators(stages[0], "pairs"), 2 * count, len(stages))
        source = reference if config["pairs"] == "on_policy" else self.truth.parameters.expand(len(noise), -1, -1)
        points = density.sample(source, noise)
        uniforms = torch.stack(
            [torch.rand(2, count, generator=g, dtype=torch.float64) for g in generators(stages[0], "labels")]
        ).repeat(len(stages), 1, 1)
        return align.label(
            points[..., :count],
            points[..., count:],
            self.truth.reward,
            uniforms,
            scale=preference["scale"],
            flip_rate=preference["flip_rate"],
        )


def make(config: Mapping[str, Any]) -> MixtureWorld:
    return MixtureWorld(config)


def load(store: Store, stage: Stage) -> Tensor:
    """Parameters (S, K, 6) of a finished stage, one row per seed."""
    return load_file(store.folder(stage) / "model.safetensors")["parameters"]


def generators(stage: Stage, purpose: str) -> list[torch.Generator]:
    """One generator per seed, from (seed, stage name, purpose) alone: orders and settings share their draws."""
    result = []
    for seed in stage.seeds:
        digest = hashlib.sha256(f"{seed}/{stage.name}/{purpose}".encode()).digest()
        result.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))
    return result


def _rounds(stages: Sequence[Stage], steps: int, samples: int) -> Iterator[Tensor]:
    """PPO's noise round by round, (B, 3, samples) each."""
    per_seed = generators(stages[0], "rounds")
    for begin in range(0, steps, NOISE_ROUNDS):
        count = min(NOISE_ROUNDS, steps - begin)
        block = density.draw_noise(per_seed, count * samples)
        for number in range(count):
            yield block[..., number * samples : (number + 1) * samples].repeat(len(stages), 1, 1)


def _latest_reference(stage: Stage) -> Stage | None:
    """What the latest alignment at or upstream of a stage was anchored to, if there was one."""
    for ancestor in reversed(stage.lineage()):
        if ancestor.kind == "align":
            return ancestor.reference()
    return None


def _stack(store: Store, stages: Sequence[Stage]) -> Tensor:
    return torch.cat([load(store, stage) for stage in stages])


def _column(stages: Sequence[Stage], setting: str) -> Tensor:
    """A setting per row (B,), stage by stage."""
    values = torch.tensor([stage.config[setting] for stage in stages], dtype=torch.float64)
    return values.repeat_interleave(len(stages[0].seeds))


def _count(components: int) -> int:
    """Free parameters of a mixture: 6 per component less 1 for the weights' sum."""
    return 6 * components - 1


def _alignment_cost(cost: Cost, config: Mapping[str, Any], policy: int, reference: int) -> None:
    if config["method"] == "ppo":
        points = config["steps"] * config["samples"]
        cost.sample(policy, points)
        cost.score(policy, points)
        cost.score(reference, points)
        cost.train(policy, points * config["epochs"])
    elif config["method"] == "dpo":
        points = 2 * config["pair_count"]
        if config["pairs"] == "on_policy":  # off-policy pairs are data that is there
            cost.sample(reference, points)
        cost.score(reference, points)
        cost.train(policy, points * config["steps"])
