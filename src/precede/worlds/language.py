"""What the worlds of language models share: how their nodes are planned, run, measured and accounted for.

A finished model holds its Hugging Face folder `model/` (and `adapter/` where it was trained as one) and the trainer's log,
`training.json`; a measurement `measures.parquet`, its numbers per prompt, and `completions.json`; a truth its samples,
`truth.json`. A world supplies rows, a reward, the truth, a teacher, and the beginning of a student.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precede import theory
from precede.data.preferences import Preference
from precede.evaluate.examiner import Examiner, TruthRows
from precede.libraries import pyarrow, quiet
from precede.machine import release
from precede.metrics import Cost
from precede.models.adapters import check_targets, merged
from precede.models.load import load, pick_device, read_generation_config, round_weights, save
from precede.models.memory import Shape
from precede.plan import MODELS, STAGES, Node, Plan
from precede.rewards import Reward
from precede.seeding import stream
from precede.settings.recipe import Recipe
from precede.settings.sweep import Variant
from precede.stages.context import Amounts, Context, Models, Trained, Work
from precede.stages.processes import count, first_does, wait
from precede.stages.registry import METHODS
from precede.stages.running import check_arguments
from precede.stages.trainer import Checkpoints, in_bf16, seconds_kept
from precede.store import Store, Writer
from precede.worlds import estimates
from precede.worlds.world import Meter, Needs, Progress, World, silent

if TYPE_CHECKING:
    from precede.analysis.results import Results
    from precede.report.figures import Figure

LIBRARIES = ("transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "safetensors")
Write = Callable[[Node, Store, Writer, Progress], Cost | None]
"""Writes a node, and says what it took beside time and memory."""


class LanguageWorld(World):
    """The interface `precede.worlds.world.World`, for language models."""

    seeds_per_node = 1
    rows_per_call = 0
    ships = True
    varying: Mapping[str, frozenset[str]] = {}
    anchored = ("align",)
    versions: Mapping[str, int] = dict.fromkeys((*MODELS, "truth", "tasks"), 1) | {
        "teacher": 3,
        "audit": 4,
        "measure": 3,
    }
    threads: int | None
    sample_batch: int
    """Completions sampled at once, at most."""
    seconds_per_node: float
    """Loading, saving and other fixed costs, for estimates only."""
    efficiency: Mapping[str, float] = estimates.EFFICIENCY

    def __init__(self, recipe: Recipe, variant: Variant) -> None:
        self.recipe_name, self.settings, self.variant, self.config = recipe.name, recipe.run, variant, variant.world

    max_new_tokens: int
    target_reward: float | None

    @abstractmethod
    def tokenizer(self, model: Node) -> Any:
        """The tokenizer of a model."""

    @abstractmethod
    def training_rows(self, model: Node) -> Sequence[Preference]:
        """Rows to train on, as the model's tokenizer writes them."""

    @abstractmethod
    def evaluation_rows(self, model: Node, pairs: int) -> Sequence[Preference]:
        """Rows to measure on; given pairs, at most so many, that no stage trains on."""

    @abstractmethod
    def reward(self, seed: int) -> Reward | None:
        """The reward of a pipeline."""

    @abstractmethod
    def draw_truth(self, node: Node, store: Store) -> Callable[[int, int], list[list[int]]] | None:
        """`count` completions of the truth to train on, by seed; None where many prompts are given."""

    @abstractmethod
    def sample_truth(self, node: Node, store: Store) -> dict[str, list[list[list[int]]]]:
        """For each prompt that is measured on completions of p* (`truth`) and of p_T (`target`), as ids of the root's."""

    @abstractmethod
    def truth_rows(self, node: Node, store: Store, drawn: Mapping[str, Any]) -> TruthRows:
        """The same for a model that is measured, as its tokenizer writes them, with the truth's likelihood."""

    @abstractmethod
    def make_model(self, node: Node, store: Store, context: Context) -> tuple[Any, Any, Trained | None]:
        """A teacher that is trained, a new student, or an adapter merged with its base: model, tokenizer, training."""

    @abstractmethod
    def shape(self, node: Node) -> Shape:
        """The sizes of a model, from configurations alone. ValueError where it cannot be."""

    @abstractmethod
    def architecture(self, node: Node) -> Any:
        """A model without memory for its weights, with the layers that a node's has by name."""

    def parameters(self, node: Node) -> int:
        return self.shape(node).parameters

    def reward_parameters(self) -> int:
        """Parameters of the reward, if it is a model, else 0."""
        return 0

    @abstractmethod
    def truth_parameters(self, node: Node) -> int:
        """Parameters of the truth that a measurement asks, if it is a model, else 0."""

    def data_report(self, variant: Variant) -> dict[str, Any] | None:
        """What was read of the user's data, and what became of it; None where there are none."""
        return None

    def stage_completions(self, node: Node) -> Sequence[tuple[list[int], list[int]]] | None:
        """Completions that a distillation is given in place of a teacher."""
        return None

    def measuring(self, variant: Variant) -> Mapping[str, Any]:
        pairs, samples = variant.evaluation["pairs"], self.samples(variant)
        return {"pairs": pairs, "samples_per_prompt": samples, "target_reward": self.target_reward}

    def save_dtype(self, model: Node) -> str:
        keeps = model.config["lora"] is not None and model.config["lora"]["adapter"] == "keep"
        asked = self.settings.save_dtype
        return "float32" if keeps else self.given_dtype(model) if asked == "auto" else asked

    def given_dtype(self, model: Node) -> str:
        """The dtype of the weights of the model that a model is made of, as they were given."""
        return "float32"

    @abstractmethod
    def samples(self, variant: Variant) -> int:
        """Completions of each prompt that is measured on."""

    def truth_samples(self, variant: Variant, root: Node, seeds: tuple[int, ...]) -> Node:
        config, edges = self.measuring(variant), self.truth_edges(root)
        return Node("truth", "truth", self.content(), config, edges, seeds, self.versions["truth"])

    def truth_edges(self, root: Node) -> Mapping[str, Node]:
        """The models that the truth's samples are drawn with."""
        return {}

    def needs(self, node: Node) -> Needs:
        gpus = 1 if self.device.type == "cuda" else 0
        return Needs(self.threads, gpus, 0 if node.kind in STAGES else 1)

    def tilts(self, config: Mapping[str, Any]) -> bool:
        return METHODS[config["method"]].tilts(config)

    def check(self, nodes: Sequence[Node], disk: Path) -> list[str]:
        """Raise ValueError where a package or the device is missing, or an argument or a model cannot be."""
        for package in ("transformers", "trl", "accelerate", "datasets"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"language worlds need the package '{package}'; run `pip install {package}`")
        in_bf16(self.config["dtype"], self.device)
        trained = {"teacher": self.variant.teacher} if "trainer" in self.variant.teacher else {}
        for name, config in {**trained, **self.variant.stages}.items():
            method = METHODS[config.get("method", "sft")]
            try:
                check_arguments(method, config["trainer"], self.device, self.config["dtype"])
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None
        for node in nodes:
            if node.kind in MODELS:
                self.parameters(node)
            lora = node.config.get("lora")
            if lora is not None and lora["target_modules"] != "all-linear":
                try:
                    check_targets(lora["target_modules"], self.architecture(node))
                except ValueError as error:
                    raise ValueError(f"{node.name}.lora.{error}") from None
        return []

    def estimate(self, node: Node) -> Cost:
        """Expected cost per seed, as if every completion ran to its full length; see `worlds.estimates`."""
        return estimates.cost(self, node)

    def peak_bytes(self, node: Node) -> float:
        return estimates.peak_bytes(self, node)

    def disk_bytes(self, nodes: Sequence[Node]) -> tuple[float, float]:
        return estimates.disk_bytes(self, nodes)

    def audit_samples(self, node: Node) -> int:
        """Completions of each prompt that an audit draws."""
        return 0

    def work(self, node: Node) -> Work:
        """Tokens that a training is expected to take, by role."""
        return METHODS[node.config.get("method", "sft")].work(node.config, estimates.expected(self, node))

    def prompts(self, node: Node) -> int:
        """How many rows a node trains or measures on."""
        if node.kind not in MODELS:
            return len(self.evaluation_rows(node.edges.get("model", node).root(), node.config["pairs"]))
        return len(self.training_rows(node))

    def longest(self, node: Node) -> float:
        """Tokens of the longest row that a node trains on or samples."""
        if (given := self.stage_completions(node)) is not None:
            return max(len(prompt) + len(row) for prompt, row in given)
        rows = self.training_rows(node.edges.get("model", node).root())
        if node.kind == "sft" or node.config.get("pairs") == "given":
            return max(len(row.prompt) + max(len(row.chosen), len(row.rejected)) for row in rows)
        return self.max_new_tokens + max(len(row.prompt) for row in rows)

    def row_tokens(self, node: Node) -> float:
        rows = self.training_rows(node.edges.get("model", node).root())
        return self.max_new_tokens + sum(len(row.prompt) for row in rows) / max(len(rows), 1)

    def rows_drawn(self, node: Node) -> float:
        """Rows that a node has at once: those that it trains on, or its samples."""
        if node.kind in STAGES or node.kind == "teacher":
            return estimates.expected(self, node).examples
        return 0 if node.kind in MODELS else node.config.get("samples_per_prompt", 0) * self.prompts(node)

    def sizes(self, node: Node) -> dict[str, int]:
        sizes = dict.fromkeys(("policy", "reference", "teacher", "original"), self.parameters(node))
        return sizes | {role: self.parameters(model) for role, model in node.edges.items() if role != "parent"}

    @property
    def device(self) -> Any:
        return pick_device(self.config["device"])

    def folder(self, node: Node, store: Store) -> str:
        """Where a model lies: a folder or an id."""
        return str(store.folder(node) / "model")

    def run(self, nodes: Sequence[Node], store: Store, progress: Progress = silent) -> None:
        """Run each node and write it to the store. Several processes train together; the first one does everything else."""
        does: dict[str, Write] = {"truth": self._truth, "measure": self._measure}
        does |= {"audit": self._audit, "tasks": self._tasks}
        for node in nodes:
            release()
            meter = Meter(seconds_kept(store.kept(node)))
            makes = partial(self._make, meter)
            with quiet():
                work = self._train(node, store, progress, meter) if node.kind in STAGES else does.get(node.kind, makes)
                first_does(partial(self._write, node, store, work, progress, meter))

    def _write(self, node: Node, store: Store, work: Write, progress: Progress, meter: Meter) -> None:
        with store.writing(node, LIBRARIES) as writer:
            cost = work(node, store, writer, progress) or Cost()
            writer.cost = cost.as_dict() | meter.read()

    def _context(self, node: Node, store: Store, progress: Progress, meter: Meter) -> Context:
        folder, logs = store.checkpoints(node), Path("runs") / self.recipe_name / node.name
        name, tell = f"{self.recipe_name}-{node.name}", partial(progress, node.label())
        student, teacher, (seed, *_) = node.edges.get("student", node), node.edges.get("teacher"), node.seeds or (0,)
        return Context(
            name=node.name,
            seed=seed,
            tokenizer=self.tokenizer(student),
            rows=self.training_rows(student),
            reward=self.reward(seed),
            max_new_tokens=self.max_new_tokens,
            sample_batch=self.sample_batch,
            device=self.device,
            dtype=self.config["dtype"],
            checkpoints=Checkpoints(folder, logs, tuple(self.settings.report_to), name, tell, spent=meter.seconds),
            teacher_rows=() if teacher is None else self.training_rows(teacher),
            completions=self.stage_completions(node),
            draw_truth=self.draw_truth(node, store),
        )

    def _train(self, node: Node, store: Store, progress: Progress, meter: Meter) -> Write:
        """Train a stage, from its last checkpoint where a killed run left one; returns what writes it."""
        context = self._context(node, store, progress, meter)
        checkpoints = context.checkpoints
        first_does(lambda: checkpoints.folder.mkdir(parents=True, exist_ok=True))
        paths = {role: self.folder(model, store) for role, model in node.edges.items()}
        start = paths.get("student", paths["parent"])
        models = Models(start, paths.get("reference", start), paths.get("teacher"), paths.get("original"))
        method = METHODS[node.config["method"]]
        trained = method.run(models, node.config, context)
        wait()

        def write(node: Node, store: Store, writer: Writer, progress: Progress) -> Cost:
            model = self._whole(node, trained, checkpoints, start, writer)
            if "teacher" in paths and node.kind == "distill":
                self._end_alike(model, node, paths["teacher"])
            save(model, context.tokenizer, writer.folder / "model")
            _write_log(writer, trained)
            return method.work(node.config, trained.amounts).cost(self.sizes(node))

        return write

    def _whole(self, node: Node, trained: Trained, checkpoints: Checkpoints, start: str, writer: Writer) -> Any:
        """The model that a stage leaves: as it was trained, put together from processes, or with its adapter merged."""
        if node.config["lora"] is not None and checkpoints.model.exists():
            adapter = writer.folder / "adapter"
            shutil.copytree(checkpoints.model, adapter, ignore=shutil.ignore_patterns("*.bin", "checkpoint-*"))
            return merged(start, checkpoints.model)
        return load(checkpoints.model)[0] if count() > 1 and checkpoints.model.exists() else trained.model

    def _end_alike(self, model: Any, node: Node, teacher: str) -> None:
        """Let a student's completions end where its teacher's do, if they have one tokenizer."""
        ends = read_generation_config(teacher).eos_token_id
        if ends is not None and self.tokenizer(node.edges["teacher"]) is self.tokenizer(node.edges["student"]):
            model.generation_config.eos_token_id = model.config.eos_token_id = ends

    def _make(self, meter: Meter, node: Node, store: Store, writer: Writer, progress: Progress) -> Cost | None:
        context = self._context(node, store, progress, meter)
        context.checkpoints.folder.mkdir(parents=True, exist_ok=True)
        model, tokenizer, trained = self.make_model(node, store, context)
        save(model, tokenizer, writer.folder / "model")
        _write_log(writer, trained or Trained(model, [], Amounts(0, 0, 0.0)))
        if trained is None:
            return None
        return METHODS["sft"].work(node.config, trained.amounts).cost({"policy": self.parameters(node)})

    def _truth(self, node: Node, store: Store, writer: Writer, progress: Progress) -> None:
        _write_json(writer.folder / "truth.json", self.sample_truth(node, store))

    def _measure(self, node: Node, store: Store, writer: Writer, progress: Progress) -> None:
        subject = node.edges["model"]
        drawn = json.loads((store.folder(node.edges["truth"]) / "truth.json").read_text("utf-8"))
        examiner = Examiner(
            rows=self.evaluation_rows(subject, node.config["pairs"]),
            tokenizer=self.tokenizer(subject),
            truth=self.truth_rows(node, store, drawn),
            reward=self.reward(node.seeds[0]),
            target_reward=self.target_reward,
            samples=node.config["samples_per_prompt"],
            max_new_tokens=self.max_new_tokens,
            sample_batch=self.sample_batch,
            seed=stream(node.seeds[0], subject.name, "evaluation"),
            progress=partial(progress, node.label()),
        )
        model = load(self.folder(subject, store), self.device)[0]  # as it was written: fp32, no trainer around it
        round_weights(model, node.config.get("save_dtype", "float32"))
        anchor, reference = node.edges.get("reference"), None
        if anchor is not None and self.tokenizer(anchor) is self.tokenizer(subject):
            reference = load(self.folder(anchor, store), self.device)[0]
        examined = examiner.examine(model, reference, node.config["temperature"])
        metrics = examined.metrics | (self._optimum(node, store) if "reference_measure" in node.edges else {})
        writer.metrics = {metric: [value] for metric, value in metrics.items()}
        pyarrow().parquet.write_table(pyarrow().table(examined.per_prompt), writer.folder / "measures.parquet")
        _write_json(writer.folder / "completions.json", examined.completions)

    def _optimum(self, node: Node, store: Store) -> dict[str, float | None]:
        """Target mass of the reference, and what the exact tilt makes of it if the reward is 1 on the target and else 0."""
        mass = store.metrics(node.edges["reference_measure"]).get("target_mass", [None])[0]
        best = None
        if mass is not None and 0 < mass < 1:
            best = float(theory.achievable_mass(mass, 1.0, node.config["beta"]))
        return {"reference_target_mass": mass, "optimal_target_mass": best}

    def _audit(self, node: Node, store: Store, writer: Writer, progress: Progress) -> None:
        raise AssertionError(node.label())

    def _tasks(self, node: Node, store: Store, writer: Writer, progress: Progress) -> None:
        from precede.evaluate.tasks import run_tasks

        tasks, folder, limit = (node.config[name] for name in ("tasks", "task_folder", "task_limit"))
        results = run_tasks(self.folder(node.edges["model"], store), tasks, folder, limit, str(self.device))
        _write_json(writer.folder / "tasks.json", results)

    def figures(self, results: Results, examples: Mapping[str, Node], plan: Plan, store: Store) -> list[Figure]:
        """Target mass of each model with its Clopper–Pearson interval, and the laws if τ was swept."""
        from precede.report import language_figures as figures

        masses = {}
        for name, measure in ((name, plan.measures[model.key]) for name, model in examples.items()):
            columns = pyarrow().parquet.read_table(store.folder(measure) / "measures.parquet").to_pydict()
            masses[name] = figures.target_mass(columns, measure.config["samples_per_prompt"])
        known = {name: mass for name, mass in masses.items() if mass is not None}
        laws = figures.laws(results)
        return [*([figures.target_masses(known)] if known else []), *([laws] if laws else [])]


def _write_log(writer: Writer, trained: Trained) -> None:
    facts = {"kl_at_start": None, "pairs": None} | trained.facts
    writer.metrics = {name: [value] for name, value in facts.items()}
    _write_json(writer.folder / "training.json", {"steps": trained.amounts.steps, "log": trained.log, **facts})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), "utf-8")
