"""The text world: real causal language models in Hugging Face form, on the user's prompts and pairs, or on one prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from precede.data.completions import translated
from precede.data.paths import path_of
from precede.data.preferences import Preference
from precede.evaluate.audit import audit_rows
from precede.evaluate.examiner import TruthRows, logps_of, rewards_of
from precede.models.adapters import merged
from precede.models.facts import classifier_parameters, shape_from_scratch, shape_of
from precede.models.load import dtype_of, from_scratch, load, read_generation_config, remove_layers
from precede.models.memory import Shape
from precede.plan import Node
from precede.rewards import Reward
from precede.sampling import batch_size, eos_ids, sample_prompts, texts
from precede.seeding import seeded, stream
from precede.settings.order import Order
from precede.settings.recipe import Recipe
from precede.settings.sweep import Variant
from precede.stages.context import Context, Trained
from precede.stages.registry import METHODS
from precede.store import Store, Writer, canonical_json
from precede.worlds.language import LanguageWorld
from precede.worlds.text.checks import check
from precede.worlds.text.rows import FileTruth, Inputs
from precede.worlds.world import Progress

GPU_FLOPS_PER_SECOND = 1.0e14
"""A guess of a large GPU's rate in the FLOPs of `Cost`."""
AUDIT_SAMPLES = 4
"""Samples of a prompt that an audit draws at least."""


class TextWorld(LanguageWorld):
    threads = None
    sample_batch = 128
    seconds_per_node = 15.0
    gpu_flops_per_second = GPU_FLOPS_PER_SECOND

    def __init__(self, recipe: Recipe, variant: Variant, inputs: Inputs) -> None:
        super().__init__(recipe, variant)
        self.inputs = inputs
        self.audited = self.config["prompt"] is None
        self.teacher_name: str | None = variant.teacher["model"]
        self.student_name: str | None = None if variant.student is None else variant.student["model"]
        what = "one prompt" if self.config["prompt"] is not None else "one set of prompts"
        about = "what the orders differ by here says nothing about other models or prompts"
        self.note = f"One teacher and {what}: {about}."

    @property
    def max_new_tokens(self) -> int:  # type: ignore[override]
        return self.inputs.max_new_tokens

    @property
    def target_reward(self) -> float | None:  # type: ignore[override]
        return self.inputs.target_reward

    def content(self) -> Mapping[str, Any]:
        return {**self._shared("held_out"), **self.inputs.reward_content}

    def _shared(self, use: Literal["training", "held_out"]) -> dict[str, Any]:
        """What all nodes read: the prompt, or the data with the numbers of the rows that are of `use` (`training`, `held_out`):
        which those are depends on every model's tokenizer and length."""
        rows: dict[str, Any] = {"prompt": self.config["prompt"]}
        if self.config["prompt"] is None:
            given = {name: value for name, value in self.config["data"].items() if not name.endswith("source")}
            numbers = [row.row for row in self.inputs.rows_of(use)]
            content = next(iter(self.inputs.source_of(use).values())).content
            rows = {**given, "data": content, "rows": hashlib.sha256(canonical_json(numbers).encode()).hexdigest()}
        return {"kind": "text", **rows, "dtype": self.config["dtype"], "max_new_tokens": self.max_new_tokens}

    @property
    def writer_name(self) -> str:
        """The model whose tokenizer given completions are written by: the student, or the teacher whose layers it has."""
        return str(self.student_name or self.teacher_name)

    def stage_content(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        content = self._shared("training")
        if METHODS[config["method"]].needs_reward(config):
            content |= self.inputs.reward_content
        if config.get("completions") is not None:
            content["completions"] = self.inputs.completions(config["completions"], self.writer_name).content
        if config.get("pairs") == "off_policy" and self.config["truth"] is not None:
            content["truth"] = (
                self.file_truth.content if self.truth_file else self.inputs.contents[self.config["truth"]]
            )
        return content

    def given(self, role: str, name: str) -> Node:
        """A model that is there, or an adapter that is merged with its base first."""
        config = self.inputs.contents[name]
        kind = "merged" if "adapter" in config else "given"
        return Node(role, kind, {}, config, {}, (), self.versions[kind])

    def root(self, variant: Variant, order: Order, seeds: tuple[int, ...]) -> Node:
        distils = any(variant.stages[name]["kind"] == "distill" for name in order.stages)
        if self.teacher_name is not None and (distils or self.student_name is None):
            return self.given("teacher", self.teacher_name)
        return self.given("student", str(self.student_name))

    def original(self, root: Node) -> Node | None:
        """An order that begins with the student knows the teacher as the model that it was distilled from."""
        return self.given("teacher", self.teacher_name) if root.name == "student" and self.teacher_name else None

    def student(self, variant: Variant, root: Node, seeds: tuple[int, ...]) -> Node:
        assert variant.student is not None
        if self.student_name is not None:
            return self.given("student", self.student_name)
        config = {name: value for name, value in variant.student.items() if value is not None}
        edges = {"teacher": self.given("teacher", str(self.teacher_name))}
        drawn = seeds if "config" in config else ()
        return Node("student", "student", {}, config, edges, drawn, self.versions["student"])

    def given_dtype(self, model: Node) -> str:
        name = self.inputs.look(self.name_of(model))
        return "float32" if name in self.inputs.unreachable else dtype_of(name)

    def samples(self, variant: Variant) -> int:
        return int(variant.evaluation["samples_per_prompt"] or (1 if self.config["prompt"] is None else 128))

    def truth_edges(self, root: Node) -> Mapping[str, Node]:
        if self.config["truth"] is None:
            return {"model": root}
        return {"root": root} if self.truth_file else {"model": self.given("truth", self.config["truth"]), "root": root}

    def truth_samples(self, variant: Variant, root: Node, seeds: tuple[int, ...]) -> Node:
        samples = super().truth_samples(variant, root, seeds)
        if self.truth_file is None:
            return samples
        return replace(samples, world={**samples.world, "truth": self.file_truth.content})

    def check(self, nodes: Sequence[Node], disk: Path) -> list[str]:
        super().check(nodes, disk)
        return check(self, nodes, disk)

    @property
    def offline(self) -> bool:
        return bool(self.inputs.unreachable)

    def prompts(self, node: Node) -> int:
        return 1 if self.config["prompt"] is not None else super().prompts(node)

    def longest(self, node: Node) -> float:
        one = self.config["prompt"] is not None and self.stage_completions(node) is None
        return self.row_tokens(node) if one else super().longest(node)

    def audit_samples(self, node: Node) -> int:
        rewarded = self.config["reward"] is not None or self.config["reward_model"] is not None
        return max(AUDIT_SAMPLES, node.config["samples_per_prompt"]) if rewarded else 0

    def reward_parameters(self) -> int:
        model = self.config["reward_model"]
        return 0 if model is None else classifier_parameters(model)

    def row_tokens(self, node: Node) -> float:
        prompt = self.config["prompt"]
        return super().row_tokens(node) if prompt is None else self.max_new_tokens + 1 + len(prompt) // 4

    def data_report(self, variant: Variant) -> dict[str, Any] | None:
        if self.config["prompt"] is not None:
            return None
        first, data = self.inputs.models[0], self.inputs.data[self.inputs.models[0]]
        return {
            "source": data.source,
            "held_out_source": self.config["data"]["held_out_source"],
            "training_pairs": len(self.inputs.training_rows(first)),
            "held_out_pairs": len(self.inputs.held_out_rows(first, variant.evaluation["pairs"])),
            "refused": [{"row": one.row, "reason": one.reason} for one in data.refused],
            "notes": data.notes,
        }

    def shape(self, node: Node) -> Shape:
        if node.kind in ("given", "merged"):
            return shape_of(self.inputs.look(self.name_of(node)))
        if node.kind == "student":
            teacher = self.inputs.look(str(self.teacher_name))
            if "config" in node.config:
                return shape_from_scratch(teacher, node.config["config"])
            return shape_of(teacher, node.config["keep_layers"])
        return self.shape(node.edges.get("student") or node.edges["parent"])

    def architecture(self, node: Node) -> Any:
        return from_scratch(self.inputs.look(self.name_of(node)), {}, empty=True)

    def truth_parameters(self, node: Node) -> int:
        model = node.edges["truth"].edges.get("model") if "truth" in node.edges else node.edges.get("model")
        return 0 if model is None else self.parameters(model)

    def name_of(self, node: Node) -> str:
        """What the recipe calls the model that a node's tokenizer, or the node itself, comes from."""
        if node.kind in ("given", "merged"):
            return next(name for name, content in self.inputs.contents.items() if content == node.config)
        if node.kind == "student":
            return str(self.teacher_name)
        return self.name_of(node.edges.get("student") or node.edges["parent"])

    def folder(self, node: Node, store: Store) -> str:
        return self.name_of(node) if node.kind == "given" else super().folder(node, store)

    def tokenizer(self, model: Node) -> Any:
        return self.inputs.tokenizers[self.name_of(model)]

    def training_rows(self, model: Node) -> Sequence[Preference]:
        return self.inputs.training_rows(self.name_of(model))

    def evaluation_rows(self, model: Node, pairs: int) -> Sequence[Preference]:
        return self.inputs.held_out_rows(self.name_of(model), pairs)

    def reward(self, seed: int) -> Reward | None:
        return self.inputs.reward

    def stage_completions(self, node: Node) -> Sequence[tuple[list[int], list[int]]] | None:
        source = node.config.get("completions")
        return None if source is None else self.inputs.completions(source, self.writer_name).rows

    def make_model(self, node: Node, store: Store, context: Context) -> tuple[Any, Any, Trained | None]:
        name = self.name_of(node)
        if node.kind == "merged":
            return merged(self.inputs.look(name), path_of(name)), self.tokenizer(node), None
        teacher, tokenizer = load(self.folder(node.edges["teacher"], store))
        if "config" not in node.config:
            return remove_layers(teacher, node.config["keep_layers"]), tokenizer, None
        with seeded(stream(node.seeds[0], "distill", "student")):
            return from_scratch(self.inputs.look(name), node.config["config"]), tokenizer, None

    @property
    def truth_file(self) -> Path | None:
        return path_of(self.config["truth"]) if _names_file(self.config["truth"]) else None

    @cached_property
    def file_truth(self) -> FileTruth:
        """The truth that is a file, read once."""
        path = self.truth_file
        assert path is not None
        if not path.is_file():
            raise ValueError(f"world.truth names the file {path}, which is not there")
        tokenizer = self.inputs.tokenizers[self.inputs.models[0]]
        return FileTruth(path, tokenizer, self.config["prompt"], self.max_new_tokens)

    def _truth_model(self, model: Node, root: Node, store: Store) -> Any:
        """The truth's model; its completions end where those of the model do that the order begins with."""
        network, _ = load(self.folder(model, store), self.device)
        if model != root:
            ends = read_generation_config(self.folder(root, store)).eos_token_id
            network.generation_config.eos_token_id = network.config.eos_token_id = ends
        return network

    def _sampled(self, model: Any, root: Node, rows: Sequence[Preference], times: int, seed: int) -> list[list[int]]:
        prompts, length = [row.prompt for row in rows for _ in range(times)], self.max_new_tokens
        size = batch_size(max(map(len, prompts)) + length, self.sample_batch)
        return sample_prompts(model, self.tokenizer(root), prompts, max_new_tokens=length, seed=seed, batch_size=size)

    def draw_truth(self, node: Node, store: Store) -> Callable[[int, int], list[list[int]]] | None:
        if self.config["prompt"] is None:
            return None
        if self.truth_file is not None:
            return self.file_truth.trained
        root, truth = node.root(), self.config["truth"]
        model = root if truth is None else self.given("truth", truth)

        def draw(count: int, seed: int) -> list[list[int]]:
            return self._sampled(self._truth_model(model, root, store), root, self.training_rows(root), count, seed)

        return draw

    def sample_truth(self, node: Node, store: Store) -> dict[str, list[list[list[int]]]]:
        times, root = node.config["samples_per_prompt"], node.edges.get("root", node.edges.get("model"))
        assert root is not None
        rows = self.evaluation_rows(root, node.config["pairs"])
        seed = stream(node.seeds[0], "teacher", "truth")
        if "model" not in node.edges:
            samples = self.file_truth.measured(times, seed)
        else:
            samples = self._sampled(self._truth_model(node.edges["model"], root, store), root, rows, times, seed)
        truth = [samples[n : n + times] for n in range(0, len(samples), times)]
        target: list[list[list[int]]] = [[] for _ in truth]
        if self.inputs.reward is not None and self.target_reward is not None:
            for desirable, row, drawn in zip(target, rows, truth, strict=True):
                written = texts(self.tokenizer(root), row.prompt, drawn)
                rewards = rewards_of(self.inputs.reward, [row] * len(drawn), written, drawn)
                desirable.extend(ids for ids, value in zip(drawn, rewards, strict=True) if value >= self.target_reward)
        return {"truth": truth, "target": target}

    def truth_rows(self, node: Node, store: Store, drawn: Mapping[str, Any]) -> TruthRows:
        subject, truth = node.edges["model"], node.edges["truth"]
        model = truth.edges.get("model")
        root = truth.edges.get("root", model)
        assert root is not None
        if self.tokenizer(root) is self.tokenizer(subject):
            if model is None:
                return TruthRows(drawn["truth"], drawn["target"])

            def logps(prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> torch.Tensor:
                return logps_of(self._truth_model(model, root, store), prompts, rows)

            return TruthRows(drawn["truth"], drawn["target"], logps)
        rows = self.evaluation_rows(root, node.config["pairs"])
        tokenizer_to, tokenizer_from = self.tokenizer(subject), self.tokenizer(root)
        ends = eos_ids(read_generation_config(self.folder(root, store)), tokenizer_from)

        def handed(row: Preference, ids: list[list[int]]) -> list[list[int]]:
            return translated(tokenizer_from, [row.prompt] * len(ids), ids, ends, tokenizer_to, [row.turns] * len(ids))

        both = (zip(rows, drawn[name], strict=True) for name in ("truth", "target"))
        truths, targets = ([handed(row, ids) for row, ids in pairs] for pairs in both)
        return TruthRows(truths, targets)

    def _audit(self, node: Node, store: Store, writer: Writer, progress: Progress) -> None:
        from precede.report.audit_output import write_audit

        subject, teacher = node.edges["model"], node.edges.get("teacher")
        data = self.inputs.source_of("held_out")[self.name_of(subject)]
        rows = self.evaluation_rows(subject, node.config["pairs"])
        folder, label, above = self.folder(subject, store), node.label(), None
        if teacher is not None and self.tokenizer(teacher) is self.tokenizer(subject):
            above = self.folder(teacher, store)
        audit = audit_rows(
            [folder],
            {name: list(rows) for name in (folder, above) if name is not None},
            data,
            teacher=above,
            reward=self.inputs.reward,
            target_reward=self.target_reward,
            beta=node.config["beta"],
            samples=max(AUDIT_SAMPLES, node.config["samples_per_prompt"]),
            max_new_tokens=self.max_new_tokens,
            device=self.device,
            seed=node.seeds[0],
            progress=lambda name, done, total: progress(label, done, total),
            store=store,
        )
        candidate = replace(audit.candidates[0], model=_lineage(subject))
        settings = {**audit.settings, "reward": self.config["reward"], "reward_model": self.config["reward_model"]}
        teacher_name = None if above is None or teacher is None else _lineage(teacher)
        write_audit(replace(audit, candidates=[candidate], teacher=teacher_name, settings=settings), writer.folder)


def _names_file(truth: str | None) -> bool:
    return truth is not None and truth.endswith((".jsonl", ".jsonl.gz"))


def _lineage(model: Node) -> str:
    return " > ".join(one.name for one in model.lineage())


def make(recipe: Recipe, variant: Variant, shared: dict[str, Any]) -> TextWorld:
    named, truth = [variant.teacher["model"], variant.student and variant.student["model"]], variant.world["truth"]
    models = [name for name in (*named, None if _names_file(truth) else truth) if name is not None]
    key = canonical_json([variant.world, models])
    if key not in shared:
        shared[key] = Inputs(variant.world, models)
    return TextWorld(recipe, variant, shared[key])
