"""The stages of language models: distillation and alignment by TRL's trainers, with their costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precede.metrics import Cost
from precede.models.load import load, parameter_count
from precede.sampling import sample
from precede.seeding import stream
from precede.stages import distil as methods
from precede.stages.preferences import dpo, make_pairs, preference_coefficient
from precede.stages.reinforce import reinforce
from precede.stages.trainer import TrainerSettings
from precede.store import Stage, Store
from precede.worlds.language import estimate
from precede.worlds.language.measure import Examiner
from precede.worlds.language.truth import Rows

if TYPE_CHECKING:
    from precede.worlds.language.world import LanguageWorld

Log = dict[str, Any]
SAME_MODEL_NATS = 1e-3
"""Largest KL, nats per completion, of one model loaded twice."""


def distil(world: LanguageWorld, stage: Stage, store: Store, examiner: Examiner, cost: Cost) -> tuple[Any, Log]:
    """A student, new or the parent itself, taught by the model that it is to become."""
    config, settings = stage.config, trainer_settings(world, stage)
    tokenizer, prompt = examiner.tokenizer, examiner.truth.prompt
    teacher, _ = load(model_folder(store, stage.taught_by()), world.device)
    new = config["start"] == "new"
    student = world.student(stage, store) if new else load(model_folder(store, stage.source()), world.device)[0]
    divergence = {"divergence": config.get("divergence"), "temperature": config["temperature"]}
    if config["method"] == "on_policy":
        length = world.config["max_new_tokens"]
        steps = methods.on_policy(
            student,
            teacher,
            tokenizer,
            [world.prompt] * settings.batch_size,
            settings,
            max_new_tokens=length,
            **divergence,
        )
        row = _logged_tokens(steps, config)
    else:
        rows = _sample(world, teacher, examiner, config["samples"], config["temperature"], stream_of(stage, "samples"))
        row, prompts = _mean_tokens(prompt, rows), [prompt] * len(rows)
        if config["method"] == "token":
            steps = methods.token(student, teacher, tokenizer, prompts, rows, settings, **divergence)
        else:
            steps = methods.sequence(student, tokenizer, prompts, rows, settings)
    estimate.distillation(cost, config, row, teacher=parameter_count(teacher), student=parameter_count(student))
    return student, {"steps": steps}


def align(world: LanguageWorld, stage: Stage, store: Store, examiner: Examiner, cost: Cost) -> tuple[Any, Log]:
    """The parent, aligned to the reward."""
    config, anchor = stage.config, stage.reference()
    reference, _ = load(model_folder(store, anchor), world.device)
    policy, _ = load(model_folder(store, stage.source()), world.device)
    gap = examiner.kl(policy, reference)
    _check_start(stage, gap)
    log: Log = {"kl_at_start": gap}
    tokenizer, truth = examiner.tokenizer, examiner.truth
    teacher = reference
    if config["method"] == "dpo":
        rows, teacher = _pool(world, stage, store, examiner, reference)
        preference = config["preference"]
        pairs = make_pairs(
            rows,
            truth.rewards(rows),
            seed=stream_of(stage, "labels"),
            min_reward_gap=config["min_reward_gap"],
            scale=preference["scale"],
            flip_rate=preference["flip_rate"],
        )
        log["pairs"] = len(pairs)
        row = _mean_tokens(truth.prompt, rows)
        coefficient = preference_coefficient(config["beta"], preference["scale"])
        if pairs:  # else the sampling trap: no pair tells anything, and the model stays as it is
            settings = trainer_settings(world, stage)
            prompts = [truth.prompt] * len(pairs)
            log["steps"] = dpo(policy, reference, tokenizer, prompts, pairs, settings, coefficient=coefficient)
    else:
        settings = trainer_settings(world, stage)
        log["steps"] = reinforce(
            config["method"],
            policy,
            model_folder(store, anchor),
            tokenizer,
            [world.prompt] * config["trainer"].get("gradient_accumulation_steps", 1),
            lambda completion_ids, **_: truth.rewards(completion_ids),
            settings,
            beta=config["beta"],
            epochs=config["epochs"],
            clip=config["clip"],
            group=settings.batch_size,
            max_new_tokens=world.config["max_new_tokens"],
        )
        row = _logged_tokens(log["steps"], config)
        _check_start(stage, log["steps"][0]["kl"])
    sizes = {"policy": policy, "reference": reference, "teacher": teacher}
    counts = {name: parameter_count(model) for name, model in sizes.items()}
    estimate.alignment(cost, config, row, log.get("pairs", 0), **counts)
    return policy, log


def _check_start(stage: Stage, gap: float) -> None:
    """Raise ValueError where the reference is the model itself and the KL to it is not 0 before training."""
    if stage.reference() == stage.source() and abs(gap) > SAME_MODEL_NATS:
        raise ValueError(f"KL to the reference at step 0 is {gap:.3g} nats, though the reference is the model itself")


def _pool(
    world: LanguageWorld, stage: Stage, store: Store, examiner: Examiner, reference: Any
) -> tuple[list[list[int]], Any]:
    """The completions that DPO's couples are made of, and the model before distillation where it drew some of them."""
    config, seed = stage.config, stream_of(stage, "samples")
    count = config["samples"] // 2 * 2
    if config["pairs"] == "off_policy":
        return examiner.truth.training_sample(count, seed), reference
    original = stage.before_distillation()
    if config["pairs"] == "on_policy" or original is None:
        return _sample(world, reference, examiner, count, 1.0, seed), reference
    teacher, _ = load(model_folder(store, original), world.device)
    own = _sample(world, reference, examiner, count // 2, 1.0, seed)
    seeded = _sample(world, teacher, examiner, count // 2, 1.0, stream_of(stage, "seeds"))
    return [row for couple in zip(own, seeded, strict=True) for row in couple], teacher


def _sample(
    world: LanguageWorld, model: Any, examiner: Examiner, count: int, temperature: float, seed: int
) -> list[list[int]]:
    return sample(
        model,
        examiner.tokenizer,
        examiner.truth.prompt,
        count,
        max_new_tokens=world.config["max_new_tokens"],
        temperature=temperature,
        seed=seed,
        batch_size=world.sampling_batch,
    )


def trainer_settings(world: LanguageWorld, stage: Stage) -> TrainerSettings:
    config = stage.config
    return TrainerSettings(
        learning_rate=config["learning_rate"],
        batch_size=config["batch_size"],
        steps=config["steps"],
        seed=stream_of(stage, "training"),
        dtype=world.config["dtype"],
        extra=config["trainer"],
    )


def stream_of(stage: Stage, purpose: str) -> int:
    """A random stream's seed from the stage's seed, its name and a purpose."""
    (seed,) = stage.seeds
    return stream(seed, stage.name, purpose)


def model_folder(store: Store, stage: Stage) -> Path:
    return store.folder(stage) / "model"


def _mean_tokens(prompt: Sequence[int], rows: Rows) -> float:
    """Mean tokens of prompt and completion that pass through a model, padding not counted."""
    return len(prompt) + sum(map(len, rows)) / len(rows)


def _logged_tokens(steps: Sequence[Mapping[str, float]], config: Mapping[str, Any]) -> float:
    """The same of a trainer that samples by itself: it logs the running sum."""
    total = max(entry.get("num_tokens", 0.0) for entry in steps)  # only the steps that sample have it
    return float(total / (config["steps"] * estimate.rows_per_step(config)))
