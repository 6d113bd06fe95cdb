"""The mixture world: two-dimensional Gaussian mixtures with exact densities, all seeds in one batch of tensors.

EM begins anew at every distillation: there is no new student. Measuring is by quadrature: the truth is not sampled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from precede.machine import matmul_rate
from precede.metrics import Cost
from precede.plan import Node, Plan
from precede.settings.order import Order
from precede.settings.recipe import Recipe
from precede.settings.sweep import Variant
from precede.store import Store
from precede.worlds.mixture import align, density, fit, measure, oracle
from precede.worlds.mixture.truth import make_truth
from precede.worlds.world import Meter, Needs, Progress, World, silent

if TYPE_CHECKING:
    from precede.analysis.results import Results
    from precede.report.figures import Figure

ALIGNED_VARIANCE_FLOOR = 1e-3
"""Smallest squared Cholesky diagonal that an aligned component may reach: the policy family has a floor, as EM has."""
KMEANS_TRIALS = 3
NOISE_ROUNDS = 16
"""Rounds of PPO noise drawn at once."""
EFFICIENCY = 0.034
"""Rate of one core in the 6·N FLOPs of `Cost` over that of matrix products; for estimates only."""
PEAK_BYTES = 0.5 * 2**30
"""Memory of a worker, most of it torch."""
TABLES = 4
"""Tables of a number for each point and component that are there at once, about."""
TYPICAL_EM_STEPS = 40


class MixtureWorld(World):
    versions: Mapping[str, int] = {"teacher": 3, "distill": 3, "align": 3, "measure": 1}
    seeds_per_node = 64
    rows_per_call = 64
    anchored = ("align", "distill")
    audited = False
    varying: Mapping[str, frozenset[str]] = {
        "teacher": frozenset(),
        "distill": frozenset({"temperature", "extrapolation"}),
        "align": frozenset({"beta"}),
        "measure": frozenset({"temperature", "beta"}),
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.truth = make_truth(config)

    def content(self) -> Mapping[str, Any]:
        return self.config

    def root(self, variant: Variant, order: Order, seeds: tuple[int, ...]) -> Node:
        return Node("teacher", "teacher", self.config, variant.teacher, {}, seeds, self.versions["teacher"])

    def needs(self, node: Node) -> Needs:
        return Needs(threads=1)

    def tilts(self, config: Mapping[str, Any]) -> bool:
        return bool(config["method"] != "dpo" or config["preference"]["scale"] > 0)

    def estimate(self, node: Node) -> Cost:
        """Expected cost per seed; EM is taken to converge in TYPICAL_EM_STEPS."""
        cost = Cost()
        if node.kind == "align":
            sizes = (self._parameters(node.edges[role]) for role in ("parent", "reference"))
            cost = _alignment_cost(node.config, *sizes)
        elif node.kind != "measure":
            sampled = self._parameters(node.parent) if node.parent else _count(self.truth.parameters.shape[1])
            cost = _fitting_cost(node.config, sampled, self._parameters(node), TYPICAL_EM_STEPS)
        cost.wall_seconds = cost.flops / (EFFICIENCY * matmul_rate(threads=1))
        cost.peak_memory_bytes = self.peak_bytes(node)
        return cost

    def peak_bytes(self, node: Node) -> float:
        """A worker's, and the tables of points and components that it computes with, of every seed and restart at once."""
        points = max(node.config.get(name, 0) for name in ("samples", "pair_count"))
        components = 0 if node.kind == "measure" else self._components(node)
        return PEAK_BYTES + TABLES * 8.0 * float(len(node.seeds) * node.config.get("restarts", 1) * components * points)

    def _components(self, node: Node) -> int:
        """Components of the model that a node leaves."""
        fitted = next(ancestor for ancestor in reversed(node.lineage()) if ancestor.kind != "align")
        return int(fitted.config["components"] or self.truth.parameters.shape[1])

    def _parameters(self, node: Node) -> int:
        """Its free parameters."""
        return _count(self._components(node))

    def run(self, nodes: Sequence[Node], store: Store, progress: Progress = silent) -> None:
        """Run nodes of one kind and one setting but for `varying`, over their seeds, as one batch."""
        meter = Meter()
        first = nodes[0]
        if first.kind == "measure":
            metrics = {name: values.tolist() for name, values in self._measure(nodes, store).items()}
            for number, node in enumerate(nodes):
                with store.writing(node) as writer:
                    for name, column in metrics.items():
                        values = column[_rows(number, node)]
                        writer.metrics[name] = [value if math.isfinite(value) else None for value in values]
            return
        make = {"teacher": self._teacher, "distill": self._distill, "align": self._align}[first.kind]
        models, costs = make(nodes, store)
        taken = meter.read(1 / (len(nodes) * len(first.seeds)))
        for number, node in enumerate(nodes):
            with store.writing(node) as writer:
                rows = models[_rows(number, node)].contiguous()
                save_file({"parameters": rows}, writer.folder / "model.safetensors")
                writer.cost = costs[number].as_dict() | taken

    def figures(self, results: Results, examples: Mapping[str, Node], plan: Plan, store: Store) -> list[Figure]:
        """Densities of truth, teacher, student and the final models of the first seed; the phase diagram if swept."""
        from precede.report import mixture_figures as figures

        models = {"truth p*": self.truth.parameters}
        models |= {name: load(store, node)[:1] for name, node in examples.items()}
        diagram = figures.phase(results)
        return [figures.densities(models, self.truth), *([diagram] if diagram else [])]

    def _measure(self, nodes: Sequence[Node], store: Store) -> dict[str, Tensor]:
        """All metrics, (B,) each, of the models that a batch of nodes measures."""
        models = _stack(store, nodes, "model")
        parts = [
            measure.measure(models[_rows(number, node)], self.truth, node.config["temperature"])
            for number, node in enumerate(nodes)
        ]
        metrics = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if "reference" not in nodes[0].edges:
            return metrics
        reference, ridge = _stack(store, nodes, "reference"), self.truth.ridge_width
        if nodes[0].edges["model"].kind != "align":
            metrics["kl_to_reference"] = measure.kl_to_reference(models, reference, ridge)
            return metrics
        beta = _column(nodes, "beta")
        best = oracle.optimum(reference, self.truth, beta, ALIGNED_VARIANCE_FLOOR)
        metrics |= measure.measure_alignment(models, reference, metrics["reward"], beta, best, ridge)
        masses = [value for node in nodes for value in store.metrics(node.edges["reference_measure"])["target_mass"]]
        metrics["reference_target_mass"] = torch.tensor(masses, dtype=torch.float64)
        return metrics

    def _teacher(self, nodes: Sequence[Node], store: Store) -> tuple[Tensor, list[Cost]]:
        (node,) = nodes
        noise = density.draw_noise(generators(node, "samples"), node.config["samples"])
        truth = self.truth.parameters.expand(len(node.seeds), -1, -1)
        components = node.config["components"] or truth.shape[1]
        return self._fit(density.sample(truth, noise), components, nodes, truth.shape[1])

    def _distill(self, nodes: Sequence[Node], store: Store) -> tuple[Tensor, list[Cost]]:
        first = nodes[0]
        noise = density.draw_noise(generators(first, "samples"), first.config["samples"], len(nodes))
        teachers = _stack(store, nodes, "parent")
        if "reference" in first.edges:
            reference, powers = _stack(store, nodes, "reference"), _column(nodes, "extrapolation")
            teachers = oracle.extrapolated(teachers, reference, self.truth, powers, ALIGNED_VARIANCE_FLOOR)
        points = density.sample(density.sharpen(teachers, _column(nodes, "temperature")), noise)
        return self._fit(points, first.config["components"], nodes, teachers.shape[1])

    def _fit(self, points: Tensor, components: int, nodes: Sequence[Node], sampled: int) -> tuple[Tensor, list[Cost]]:
        """Fitted models and costs; `sampled` is the number of components of what the points were drawn from."""
        config = nodes[0].config
        uniforms = _uniforms(nodes, "fit", config["restarts"], components, KMEANS_TRIALS)
        settings = {name: config[name] for name in ("max_iterations", "tolerance", "variance_floor")}
        result = fit.fit(points, components, uniforms=uniforms, **settings)
        means = result.steps.to(torch.float64).reshape(len(nodes), -1).mean(-1).tolist()
        return result.parameters, [_fitting_cost(config, _count(sampled), _count(components), mean) for mean in means]

    def _align(self, nodes: Sequence[Node], store: Store) -> tuple[Tensor, list[Cost]]:
        config = nodes[0].config
        start, reference = _stack(store, nodes, "parent"), _stack(store, nodes, "reference")
        beta = _column(nodes, "beta")
        names = {"ppo": ("steps", "learning_rate", "epochs", "clip"), "dpo": ("steps", "learning_rate")}
        settings = {name: config[name] for name in names.get(config["method"], ())}
        settings["variance_floor"] = ALIGNED_VARIANCE_FLOOR
        if config["method"] == "ppo":
            noise = _rounds(nodes, config["steps"], config["samples"])
            models = align.ppo(start, reference, self.truth.reward, beta, noise, **settings)
        elif config["method"] == "dpo":
            coefficient = align.dpo_coefficient(beta, config["preference"]["scale"])
            models = align.dpo(start, reference, *self._pairs(nodes, reference), coefficient, **settings)
        else:
            models = oracle.optimum(reference, self.truth, beta, ALIGNED_VARIANCE_FLOOR).model
            if not bool(torch.isfinite(models).all()):
                raise ValueError(f"the exact optimum at beta = {float(beta.min()):g} is too narrow to be integrated")
        sizes = _count(start.shape[1]), _count(reference.shape[1])
        return models, [_alignment_cost(config, *sizes) for _ in nodes]

    def _pairs(self, nodes: Sequence[Node], reference: Tensor) -> tuple[Tensor, Tensor]:
        """DPO's pairs, drawn from the reference (on-policy) or the truth (off-policy) and ranked by the reward."""
        config = nodes[0].config
        count = config["pair_count"]
        noise = density.draw_noise(generators(nodes[0], "pairs"), 2 * count, len(nodes))
        source = reference if config["pairs"] == "on_policy" else self.truth.parameters.expand(len(noise), -1, -1)
        points = density.sample(source, noise)
        settings = {name: config["preference"][name] for name in ("scale", "flip_rate")}
        uniforms = _uniforms(nodes, "labels", 2, count)
        return align.label(points[..., :count], points[..., count:], self.truth.reward, uniforms, **settings)


def make(recipe: Recipe, variant: Variant, shared: dict[str, Any]) -> MixtureWorld:
    return MixtureWorld(variant.world)


def _rows(number: int, node: Node) -> slice:
    """The rows of a batch that are those of its node of that number."""
    return slice(number * len(node.seeds), (number + 1) * len(node.seeds))


def load(store: Store, node: Node) -> Tensor:
    """Parameters (S, K, 6) of a finished node, one row per seed."""
    return load_file(store.folder(node) / "model.safetensors")["parameters"]


def generators(node: Node, purpose: str) -> list[torch.Generator]:
    """One generator per seed, from (seed, node name, purpose) alone: orders and settings share their draws."""
    digests = [hashlib.sha256(f"{seed}/{node.name}/{purpose}".encode()).digest() for seed in node.seeds]
    return [torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1) for digest in digests]


def _uniforms(nodes: Sequence[Node], purpose: str, *shape: int) -> Tensor:
    """Uniform numbers (B, *shape), one draw per seed, repeated node by node."""
    drawn = [torch.rand(shape, generator=one, dtype=torch.float64) for one in generators(nodes[0], purpose)]
    return torch.stack(drawn).repeat(len(nodes), *[1] * len(shape))


def _rounds(nodes: Sequence[Node], steps: int, samples: int) -> Iterator[Tensor]:
    """PPO's noise round by round, (B, 3, samples) each."""
    per_seed = generators(nodes[0], "rounds")
    for begin in range(0, steps, NOISE_ROUNDS):
        count = min(NOISE_ROUNDS, steps - begin)
        block = density.draw_noise(per_seed, count * samples)
        for number in range(count):
            yield block[..., number * samples : (number + 1) * samples].repeat(len(nodes), 1, 1)


def _stack(store: Store, nodes: Sequence[Node], role: str) -> Tensor:
    return torch.cat([load(store, node.edges[role]) for node in nodes])


def _column(nodes: Sequence[Node], setting: str) -> Tensor:
    """A setting per row (B,), node by node."""
    values = torch.tensor([node.config[setting] for node in nodes], dtype=torch.float64)
    return values.repeat_interleave(len(nodes[0].seeds))


def _count(components: int) -> int:
    """Free parameters of a mixture: 6 per component less 1 for the weights' sum."""
    return 6 * components - 1


def _fitting_cost(config: Mapping[str, Any], sampled: int, fitted: int, steps: float) -> Cost:
    cost = Cost()
    cost.sample(sampled, config["samples"])
    cost.train(fitted, config["samples"] * steps * config["restarts"])
    return cost


def _alignment_cost(config: Mapping[str, Any], policy: int, reference: int) -> Cost:
    cost = Cost()
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
    return cost
