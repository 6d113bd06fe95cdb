"""What would stop a run of the text world later, said before anything is trained."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precede.data.paths import path_of
from precede.data.preferences import row_budget
from precede.evaluate.audit import longest, threshold_and_advantage
from precede.evaluate.examiner import rewards_of
from precede.models.adapters import check_fits
from precede.models.facts import parameters_of
from precede.models.load import from_scratch, read_config, read_generation_config, unreadable_weights
from precede.models.tokenizers import preflight
from precede.plan import STAGES, Node
from precede.stages.registry import METHODS
from precede.stages.running import PACKAGES, rows_per_step
from precede.store import Store

if TYPE_CHECKING:
    from precede.worlds.text.world import TextWorld

SCORED = ("teacher", "reference", "original")
"""Roles of models that score what the trained one's tokenizer writes, or hand their completions over to it."""
CHECKED_ROWS = 4
"""Rows that the reward is called on before anything is trained."""
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")
"""What transformers can report to, each a package of that name."""
EXTRAS = {"lm_eval": "pip install 'precede[eval]'"}
"""How a package is installed, where it is not by its own name."""


def check(world: TextWorld, nodes: Sequence[Node], disk: Path) -> list[str]:
    """Raise ValueError, in one sentence, for whatever would stop the run later; returns notes. Nothing is written."""
    tasks = any(node.kind == "tasks" for node in nodes)
    for package, setting in packages(world).items():
        if not installed(package) and (tasks or package != "lm_eval"):
            command = EXTRAS.get(package, f"pip install {package}")
            raise ValueError(f"{setting} needs the package '{package}'; run `{command}`")
    inputs = world.inputs
    for model in inputs.models:
        unreadable_weights(inputs.look(model))
        if inputs.is_adapter(model):
            check_fits(inputs.look(model), path_of(model))
    stages = [node for node in nodes if node.kind in STAGES]
    notes = _row_budget(world) + _check_tokenizers(world, stages)
    _check_sizes(world)
    if world.config["prompt"] is None:
        _check_rows(world)
    _check_room(world)
    notes += _preflight(world)
    _check_completions(world, stages)
    _check_reward(world, any(node.kind == "audit" for node in nodes))
    _check_truth(world, nodes)
    _check_disk(world, nodes, disk)
    return notes


def _configurations(world: TextWorld) -> Iterator[tuple[str, str, Any]]:
    """What each model is called, whose tokenizer it has, and its configuration; a new student among them."""
    inputs = world.inputs
    for model in inputs.models:
        yield model, model, read_config(inputs.look(model))
    teacher, changes = world.teacher_name, (world.variant.student or {}).get("config")
    if teacher is not None and changes is not None:
        yield "student.config", teacher, from_scratch(inputs.look(teacher), changes, empty=True).config


def packages(world: TextWorld) -> dict[str, str]:
    """Optional package → the setting that needs it. Raises ValueError for a tracker that is not known."""
    needed: dict[str, str] = {}
    for tracker in world.settings.report_to:
        if tracker not in TRACKERS:
            raise ValueError(f"report_to names '{tracker}', but the trackers are {', '.join(TRACKERS)}")
        needed[tracker] = f"report_to {tracker}"
    if world.variant.evaluation["tasks"]:
        needed["lm_eval"] = "evaluation.tasks"
    for name, stage in world.variant.stages.items():
        if stage["lora"] is not None:
            needed["peft"] = f"{name}.lora"
            if stage["lora"]["quantization"] == "4bit":
                needed["bitsandbytes"] = f"{name}.lora.quantization 4bit"
        for argument, package in PACKAGES.items():
            if stage["trainer"].get(argument):
                needed[package] = f"{name}.trainer.{argument}"
    return needed


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _check_tokenizers(world: TextWorld, stages: list[Node]) -> list[str]:
    inputs, notes = world.inputs, []
    for node in stages:
        trained = world.name_of(node.edges.get("student", node))
        others = {role: world.name_of(other) for role, other in node.edges.items() if role in SCORED}
        for role in filter(others.get, SCORED):
            both, difference = f"{trained} and {others[role]}", inputs.difference(trained, others[role])
            if difference is None or (node.kind, role) == ("distill", "reference"):  # which is of the teacher's family
                continue
            if role != "teacher":
                raise ValueError(
                    f"{node.name} takes the teacher as reference or samples it, and the tokenizers of {both} differ; use "
                    "reference: self and pairs: given or on_policy"
                )
            if METHODS[node.config["method"]].needs_one_tokenizer:
                raise ValueError(
                    f"{node.name}.method {node.config['method']} needs one tokenizer, and those of {both} differ "
                    f"({difference}); set it to sequence"
                )
            note = f"the tokenizers of {both} differ ({difference}): completions are handed over as texts"
            notes += [] if note in notes else [note]
    first, truth = inputs.models[0], world.config["truth"]
    if truth is not None and world.truth_file is None and inputs.difference(truth, first) is not None:
        raise ValueError(f"world.truth {truth} and {first} have different tokenizers; choose models of one family")
    return notes


def _check_sizes(world: TextWorld) -> None:
    """A student is smaller than its teacher."""
    if world.teacher_name is None or world.student_name is None:
        return
    student, teacher = (parameters_of(world.inputs.look(name)) for name in (world.student_name, world.teacher_name))
    if student > teacher:
        raise ValueError(
            f"the student has {student:,} parameters and the teacher {teacher:,}; a student is the smaller one: are they "
            "the wrong way round?"
        )


def _row_budget(world: TextWorld) -> list[str]:
    """What becomes of the rows of the data, in a sentence: nothing is dropped in silence."""
    if world.config["prompt"] is not None:
        return []
    inputs, settings = world.inputs, world.config["data"]
    held, trained = len(inputs.held_out), f"{len(inputs.trained)} to train on"
    if settings["held_out_source"] is None:
        return [row_budget(inputs.data.values(), [trained, f"{held} held out (data.held_out)"], settings["max_length"])]
    again = f"{len(inputs.asked_again)} not used, whose question is held out"
    parts = [trained, *([again] if inputs.asked_again else [])]
    there = row_budget(inputs.held_out_data.values(), [f"{held} held out"], settings["max_length"])
    return [row_budget(inputs.data.values(), parts, settings["max_length"]), f"{there} (data.held_out_source)"]


def _check_rows(world: TextWorld) -> None:
    inputs, source = world.inputs, world.config["data"]["source"]
    first, held = inputs.models[0], len(inputs.held_out)
    if held < 2 and (given := world.config["data"]["held_out_source"]) is not None:
        raise ValueError(f"{given} has {held} usable rows (data.held_out_source), and two are the least; give more")
    if held < 2:
        raise ValueError(
            f"{source} has {len(inputs.usable)} usable rows, of which {held} are held out; raise data.held_out or give more"
        )
    if not inputs.training_rows(first):
        raise ValueError(f"{source} has no row to train on beside those held out; lower data.held_out, or give others")
    for name, stage in world.variant.stages.items():
        if METHODS[stage["method"]].compares:
            needed = -(-rows_per_step(stage) // stage["trainer"]["num_generations"])
            if len(inputs.training_rows(first)) < needed:
                raise ValueError(
                    f"a step of {name} asks for {needed} prompts ({name}.trainer.per_device_train_batch_size over "
                    f"num_generations), and {len(inputs.training_rows(first))} are there; lower the one or raise the other"
                )


def _check_room(world: TextWorld) -> None:
    """Every model reads its longest prompt and what is sampled behind it."""
    inputs = world.inputs
    for name, model, config in _configurations(world):
        limit = getattr(config, "max_position_embeddings", None)
        rows = [*inputs.training_rows(model), *inputs.held_out_rows(model, 10**9)]
        width = max(len(row.prompt) for row in rows) + inputs.max_new_tokens
        if limit is not None and width > limit:
            raise ValueError(
                f"the longest prompt leaves no room for {inputs.max_new_tokens} tokens in the {limit} that {name} reads; "
                "lower world.max_new_tokens, or data.max_length to leave long rows out"
            )


def _preflight(world: TextWorld) -> list[str]:
    """Notes on pad, BOS, EOS and chat template of every model."""
    inputs = world.inputs
    chats = world.config["prompt"] is None and any(row.turns is not None for row in inputs.data[inputs.models[0]].rows)
    notes: dict[str, None] = {}
    for name, model, config in _configurations(world):
        config.generation_config = read_generation_config(inputs.look(model))
        notes |= dict.fromkeys(preflight(config, inputs.own_tokenizers[model], name, chats))
    return list(notes)


def _check_completions(world: TextWorld, stages: list[Node]) -> None:
    for node in stages:
        longest_row = max((len(prompt) + len(row) for prompt, row in world.stage_completions(node) or ()), default=0)
        limit = longest(world.inputs.look(world.writer_name)) if longest_row else None
        if limit is not None and longest_row > limit:
            raise ValueError(
                f"{node.config['completions']} has a row of {longest_row} tokens, and {world.writer_name} reads {limit}; "
                "leave long rows out"
            )


def _check_reward(world: TextWorld, audited: bool) -> None:
    """The reward can be called; where there are audits, it tells the desirable completions of the data from the others."""
    if world.inputs.reward is None:
        return
    rows = world.inputs.held_out_rows(world.inputs.models[0], CHECKED_ROWS)
    rewards_of(world.inputs.reward, rows, [row.chosen_text for row in rows], [row.chosen for row in rows])
    if audited:
        rows = world.inputs.held_out_rows(world.inputs.models[0], world.variant.evaluation["pairs"])
        threshold_and_advantage(world.inputs.reward, rows, world.target_reward)


def _check_truth(world: TextWorld, nodes: Sequence[Node]) -> None:
    """A file of texts has as many as are measured on, and as many others as are trained on."""
    if world.truth_file is None:
        return
    for node in nodes:
        if node.kind == "truth":
            world.file_truth.measured(node.config["samples_per_prompt"], 0)
        elif node.config.get("pairs") == "off_policy":
            world.file_truth.trained(2 * (node.config["samples_per_prompt"] // 2), 0)


def _check_disk(world: TextWorld, nodes: Sequence[Node], disk: Path) -> None:
    folder = next(path for path in (disk, *disk.resolve().parents) if path.exists())
    store = Store(disk)
    need = sum(world.disk_bytes([node for node in nodes if not store.has(node)]))
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ValueError(
            f"{folder} has {free / 1e9:.1f} GB free, and this needs about {need / 1e9:.1f} GB for checkpoints and models; name "
            "another place with --store, or train adapters (lora)"
        )
