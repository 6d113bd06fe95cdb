"""The plan: everything that a run is made of, as nodes whose parents and references are explicit edges.

Nodes make models (`teacher`, `merged`, `student`, `sft`, `align`, `distill`), sample the truth (`truth`), audit (`audit`),
measure (`measure`) and run lm-eval's tasks (`tasks`); a node of kind `given` is a model that is there. Orders × sweep × seeds
make arms; a build is one arm. Equal nodes are one node: two orders share what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from precede.settings.order import Order
from precede.settings.recipe import Recipe
from precede.settings.sweep import Variant
from precede.store import canonical_json, key_of

MODELS = ("given", "merged", "teacher", "student", "sft", "align", "distill")
"""Kinds of nodes that are models."""
STAGES = ("sft", "align", "distill")
Config = Mapping[str, Any]
Seeds = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """A piece of work as a value. Its key is a hash of its description: settings, content, edges, seeds, code version."""

    name: str
    kind: str
    world: Config
    """What the world's part in it is: settings of the world that change it, and the content of models, data and code."""
    config: Config
    edges: Mapping[str, Node]
    """By role. `parent`: the stage before; of an alignment `reference`, what it is anchored to, and `original`, the model
    before distillation, where it is sampled; of a distillation `student`, what is trained, `teacher`, what it learns from, and
    `reference`, what its teacher was anchored to, where it extrapolates; of audits and measurements `model`, and what it is
    held against."""
    seeds: Seeds
    """The seeds that it holds; none where nothing in it is random."""
    version: int
    variant: int = 0
    """Which variant of the recipe it was first planned for; no part of its key."""

    def description(self) -> dict[str, Any]:
        """What the key is a hash of, as JSON values."""
        fields = ("name", "kind", "world", "config", "edges", "seeds", "version")
        return {name: getattr(self, name) for name in fields} | {
            "edges": {role: node.key for role, node in self.edges.items()}
        }

    @cached_property
    def key(self) -> str:
        """Hexadecimal name of the node, equal for equal nodes and no others."""
        return key_of(self.description())

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.key == other.key

    @property
    def parent(self) -> Node | None:
        return self.edges.get("parent")

    def lineage(self) -> list[Node]:
        """The models from the one that the order began with to this one."""
        return [*(self.parent.lineage() if self.parent else []), self]

    def root(self) -> Node:
        """The model that the order began with."""
        return self.lineage()[0]

    def distill_temperature(self) -> float | None:
        """τ of the latest distillation at or upstream of this model, if there was one."""
        distillations = (node for node in reversed(self.lineage()) if node.kind == "distill")
        return next((float(node.config["temperature"]) for node in distillations), None)

    def label(self) -> str:
        """For people: `teacher > distill > align (3f2a…)`."""
        path, model = " > ".join(node.name for node in self.lineage()), self.edges.get("model")
        return f"{path} ({self.key[:8]})" if model is None else f"{path} of {model.label()}"


class PlannedWorld(Protocol):
    """What a plan asks of a world; see `precede.worlds.world.World`."""

    versions: Mapping[str, int]
    """By kind of node; raised whenever the code of one would give other numbers."""
    seeds_per_node: int
    """How many seeds one node holds: many where seeds are a tensor axis, 1 where a stage is one training run."""
    anchored: tuple[str, ...]
    """Kinds of models that are measured against the reference of the latest alignment."""
    audited: bool
    """Whether there are pairs to audit models on."""
    rows_per_call: int
    """How many (node, seed) rows one call should hold at most; 0: every node is a call of its own."""
    varying: Mapping[str, frozenset[str]]
    """Kind of node → the settings in which the nodes of one call may differ."""

    def cluster(self, seed: int) -> int:
        """What a seed shares with other seeds, so that they are no independent replicates; its own number if nothing."""
        return seed

    def content(self) -> Config:
        """`Node.world` of what measures and audits."""

    def root(self, variant: Variant, order: Order, seeds: Seeds) -> Node:
        """The model that an order begins with."""

    def student(self, variant: Variant, root: Node, seeds: Seeds) -> Node | None:
        """A new student; None where a student is fitted from nothing."""
        return None

    def original(self, root: Node) -> Node | None:
        """The model that the root was distilled from, where it is known."""
        return None

    def stage_content(self, config: Config) -> Config:
        """`Node.world` of a stage with these settings: what of the world it reads, and nothing else."""
        return self.content()

    def truth_samples(self, variant: Variant, root: Node, seeds: Seeds) -> Node | None:
        """What the truth's samples are, where measuring needs them."""
        return None

    def measuring(self, variant: Variant) -> Config:
        """Settings of measurements, which nothing that is trained depends on."""
        return {}

    def save_dtype(self, model: Node) -> str:
        """What a build saves a model's weights in."""
        return "float32"


@dataclass(frozen=True)
class Arm:
    """One order under one setting: its models from the root to the final one, once per block of seeds."""

    order: Order
    settings: Config
    stages: Mapping[str, Config]
    """The settings of the stages, by name."""
    blocks: list[list[Node]]


@dataclass(frozen=True)
class Plan:
    """All arms, and the unique nodes so that every node comes after those that it needs."""

    arms: list[Arm]
    nodes: list[Node]
    measures: dict[str, Node]
    """Key of a model → its measurement."""
    audits: dict[str, Node] = field(default_factory=dict)
    """Key of a stage → the audit of the model that it starts from."""
    tasks: dict[str, Node] = field(default_factory=dict)
    """Key of a model → lm-eval's tasks on it."""

    @property
    def models(self) -> list[Node]:
        return [node for node in self.nodes if node.kind in MODELS]

    def calls(self, world: PlannedWorld, needed: Callable[[Node], bool]) -> list[list[Node]]:
        """The nodes for which `needed` holds, grouped into calls that the world can run as one batch."""
        calls: dict[tuple[Any, ...], list[list[Node]]] = {}
        for node in self.nodes:
            if node.kind == "given" or not needed(node):
                continue
            groups = calls.setdefault(_call_key(node, world), [[]])
            if (len(groups[-1]) + 1) * len(node.seeds) > max(world.rows_per_call, len(node.seeds)):
                groups.append([])
            groups[-1].append(node)
        return [group for groups in calls.values() for group in groups if group]


def make_plan(recipe: Recipe, worlds: Sequence[PlannedWorld], *, audits: bool = False, ships: bool = False) -> Plan:
    """Lay out every order under every variant (`worlds[i]` is that of variant i) for every block of seeds.

    With `audits`, the model before each alignment, and before each distillation that alignment follows, is audited. Where the
    last model `ships`, it is measured as it is saved, and lm-eval's tasks of the recipe are run on the first and on the last.
    """
    nodes: dict[str, Node] = {}
    plan = Plan([], [], {})
    for number, (variant, world) in enumerate(zip(recipe.variants, worlds, strict=True)):
        maker = _Maker(nodes, plan, variant, number, world, ships)
        size = world.seeds_per_node
        blocks = [recipe.seeds[i : i + size] for i in range(0, len(recipe.seeds), size)]
        for order in variant.orders:
            chains = [maker.chain(order, seeds, blocks[0], audits) for seeds in blocks]
            plan.arms.append(Arm(order, variant.settings, variant.stages, chains))
            if ships and variant.evaluation.get("tasks"):
                config = {name: variant.evaluation[name] for name in ("tasks", "task_folder", "task_limit")}
                for node in (chains[0][0], chains[0][-1]):
                    plan.tasks[node.key] = maker.add("tasks", {}, config, {"model": node}, ())
    plan.nodes.extend(nodes.values())
    return plan


@dataclass(frozen=True)
class _Maker:
    """Makes the nodes of a variant, each once, and enters them in the plan."""

    nodes: dict[str, Node]
    plan: Plan
    variant: Variant
    number: int
    world: PlannedWorld
    ships: bool

    def unique(self, node: Node) -> Node:
        """The node of that key, after all that it needs."""
        if node.key not in self.nodes:
            for needed in node.edges.values():
                self.unique(needed)
        return self.nodes.setdefault(node.key, node)

    def add(self, kind: str, content: Config, config: Config, edges: Mapping[str, Node], seeds: Seeds) -> Node:
        """A node that is no model."""
        return self.unique(Node(kind, kind, content, config, edges, seeds, self.world.versions[kind], self.number))

    def chain(self, order: Order, seeds: Seeds, first: Seeds, audits: bool) -> list[Node]:
        """The models of one order with one block of seeds, each with its measurement."""
        root = self.unique(replace(self.world.root(self.variant, order, seeds), variant=self.number))
        chain = [root]
        self._measure(root, seeds if root.seeds else first)
        for position, name in enumerate(order.stages):
            node = self._stage(name, root, chain[-1], seeds)
            later = [self.variant.stages[other] for other in order.stages[position:]]
            betas = [config["beta"] for config in later if config["kind"] == "align"]
            if audits and self.world.audited and betas and node.kind != "sft":
                self._audit(node, chain[-1], betas[0], seeds)
            chain.append(self.unique(node))
            self._measure(chain[-1], seeds, saved=self.ships and position == len(order.stages) - 1)
        return chain

    def _measure(self, model: Node, seeds: Seeds, *, saved: bool = False) -> None:
        edges = {"model": model}
        config = {**self.world.measuring(self.variant), "temperature": model.distill_temperature()}
        if saved and (dtype := self.world.save_dtype(model)) != "float32":
            config["save_dtype"] = dtype
        if (truth := self.world.truth_samples(self.variant, model.root(), seeds)) is not None:
            edges["truth"] = replace(truth, variant=self.number)
        aligned = next((one for one in reversed(model.lineage()) if one.kind == "align"), None)
        if aligned is not None and model.kind in self.world.anchored:
            edges["reference"] = aligned.edges["reference"]
            measured = self.plan.measures.get(edges["reference"].key)
            if model.kind == "align" and measured is not None:
                edges["reference_measure"], config["beta"] = measured, model.config["beta"]
        measure = self.add("measure", self.world.content(), config, edges, seeds)
        if self.plan.measures.setdefault(model.key, measure) != measure:
            raise ValueError(
                f"the sweep measures {model.label()} in two ways and trains it in one (settings of evaluation, "
                "world.target_reward or world.truth); run two comparisons, which share what is trained"
            )

    def _audit(self, stage: Node, model: Node, beta: float, seeds: Seeds) -> None:
        """The audit of the model that a stage starts from, against the model that this was distilled from."""
        original = before_distillation(model, self.world)
        edges = {"model": model} | ({} if original is None else {"teacher": original})
        config = {**self.world.measuring(self.variant), "beta": beta}
        self.plan.audits[stage.key] = self.add("audit", self.world.content(), config, edges, seeds)

    def _stage(self, name: str, root: Node, parent: Node, seeds: Seeds) -> Node:
        """A stage with its edges: what it starts from, what it is anchored to, what it learns from."""
        world, config, edges = self.world, dict(self.variant.stages[name]), {"parent": parent}
        kind, original = config["kind"], before_distillation(parent, world)
        if kind == "align":
            if original is None:  # nothing was distilled before: the model itself is the model before distillation
                same = {("reference", "teacher"): "self", ("pairs", "seeded"): "on_policy"}
                config |= {key: plain for (key, value), plain in same.items() if config.get(key) == value}
            edges["reference"] = original if original is not None and config["reference"] == "teacher" else parent
            if original is not None and config.get("pairs") == "seeded":
                edges["original"] = original
        elif kind == "distill" and config.get("start") == "parent":
            if original is None:
                raise ValueError(
                    f"{name}.start is 'parent', but nothing was distilled before {name}; put it behind a stage that makes a "
                    "student"
                )
            edges |= {"student": parent, "teacher": original}
        elif kind == "distill":
            student = world.student(self.variant, root, seeds)
            edges |= {} if student is None else {"student": student}
            if config.get("completions") is None:
                edges["teacher"] = parent
        if kind == "distill" and config.pop("extrapolation") != 1:
            edges["reference"] = _anchor(name, edges.get("teacher", parent))
            config["extrapolation"] = self.variant.stages[name]["extrapolation"]
        return Node(name, kind, world.stage_content(config), config, edges, seeds, world.versions[kind], self.number)


def before_distillation(node: Node, world: PlannedWorld) -> Node | None:
    """The model that this model, or the student that it goes back to (`start: parent`), was distilled from, if any."""
    for one in reversed(node.lineage()):
        if one.kind == "distill" and one.config.get("start") != "parent":
            return one.edges.get("teacher")
    return world.original(node.root())


def _anchor(name: str, teacher: Node) -> Node:
    """What the teacher of a distillation that extrapolates was anchored to."""
    if teacher.kind != "align":
        raise ValueError(
            f"{name}.extrapolation goes on from an alignment, and {name} learns from {teacher.name}; put it right behind an "
            "align stage, or set it to 1"
        )
    return teacher.edges["reference"]


def _call_key(node: Node, world: PlannedWorld) -> tuple[Any, ...]:
    if not world.rows_per_call:
        return len(node.lineage()), node.key
    fixed = {key: value for key, value in node.config.items() if key not in world.varying.get(node.kind, ())}
    model = node.edges.get("model", node)
    above = model.lineage() if model is not node else node.lineage()[:-1]  # parents and references of a call must stack
    shapes = [(one.kind, one.config.get("components"), one.config.get("reference")) for one in above]
    settings = [node.name, node.kind, node.world, fixed, node.seeds, shapes, sorted(node.edges)]
    return len(shapes), canonical_json(settings)
