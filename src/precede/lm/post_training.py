"""The stages of a build, on users' models and rows: fine-tune, align, distil. Orders are not known here.

A stage works in the folder of its `Keep`: what it sampled, its checkpoints, and at last its model stand there, so that a
killed stage goes on where it was. Each of several processes runs the same function; sampling is divided among them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precede.lm import distil as methods
from precede.lm.data import Preference
from precede.lm.models import load, load_tokenizer, pick_device
from precede.lm.policy import adapter_config, load_quantized
from precede.lm.preferences import Pair, dpo, make_pairs
from precede.lm.preflight import same_tokenizer
from precede.lm.processes import count, index, wait, whole_weights
from precede.lm.reinforce import reinforce
from precede.lm.rewards import PairReward, Prompt, text_of
from precede.lm.sampling import sample_prompts, texts
from precede.lm.seeding import stream
from precede.lm.training import Keep, Log, TrainerSettings

CHUNK = 64
"""Prompts that are completed under one seed and written to one file."""
FREE = frozenset({"output_dir"})
"""Trainer arguments that a build may not have: the stage's folder is ours."""


@dataclass(frozen=True)
class Material:
    """What a stage works with, beside its settings and models; `rows` are as `tokenizer` writes them."""

    tokenizer: Any
    rows: Sequence[Preference]
    reward: PairReward | None
    max_new_tokens: int
    seed: int
    device: str
    dtype: str
    keep: Keep

    @property
    def prompts(self) -> list[Prompt]:
        return [row.turns or row.prompt_text for row in self.rows]


@dataclass(frozen=True)
class Done:
    """What a stage did: the trainer's log, and tokens trained, sampled and scored (prompts included), by model."""

    log: Log
    trained: float = 0.0
    sampled: Mapping[str, float] | None = None
    scored: Mapping[str, float] | None = None
    pairs: int | None = None


def settings(
    config: Mapping[str, Any], defaults: Mapping[str, Any], material: Material, default_steps: int = -1
) -> Any:
    """The trainer's settings: the stage's defaults, over them what the recipe passes through."""
    extra = {**defaults, **config["trainer"]}
    lora = config["lora"]
    return TrainerSettings(
        learning_rate=extra.pop("learning_rate"),
        batch_size=extra.pop("per_device_train_batch_size"),
        steps=extra.pop("max_steps", default_steps),
        seed=extra.pop("seed", material.seed),
        dtype=material.dtype,
        extra=extra,
        refused=FREE,
        device=pick_device(material.device),
        peft=None if lora is None else adapter_config(lora),
        keep=material.keep,
    )


def policy_of(source: str | Path, config: Mapping[str, Any]) -> Any:
    """The model that a stage trains: in 4 bits where its adapter says so, else in fp32."""
    lora = config["lora"]
    return load_quantized(source) if lora and lora["quantization"] == "4bit" else load(source)[0]


def sft(source: str | Path, config: Mapping[str, Any], defaults: Mapping[str, Any], material: Material) -> Done:
    """Maximum likelihood on the chosen completions."""
    prompts, chosen = [row.prompt for row in material.rows], [row.chosen for row in material.rows]
    log = methods.sequence(
        policy_of(source, config), material.tokenizer, prompts, chosen, settings(config, defaults, material)
    )
    return Done(log, _passes(log) * _tokens(prompts, chosen))


def align(
    source: str | Path,
    reference: str | Path,
    original: str | Path | None,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    material: Material,
) -> Done:
    """`source` aligned at price β, anchored to `reference`; `original` is the model before distillation, if there is one.

    Raises ValueError where the KL to the reference is not 0 at step 0 though the reference is the model itself.
    """
    training = settings(config, defaults, material)
    own = str(source) == str(reference)
    if config["method"] != "dpo":
        return _reinforced(source, reference, config, training, material)
    prompts, pairs, sampled = _pairs(reference, original, config, material)
    if not pairs:
        raise ValueError(
            "no couple of samples differs in reward, so DPO has nothing to learn from (the sampling trap): align the model "
            "before distillation first, or take pairs: given"
        )
    anchor = None if own and training.peft is not None else load(reference)[0]
    log = dpo(
        policy_of(source, config),
        anchor,
        material.tokenizer,
        prompts,
        pairs,
        training,
        coefficient=config["beta"],
    )
    if own and log and log[0].get("step", 1.0) == 1.0:
        check_start(log[0].get("rewards/chosen", 0.0) / config["beta"])
    tokens = _tokens(prompts, [pair.chosen for pair in pairs]) + _tokens(prompts, [pair.rejected for pair in pairs])
    passes = _passes(log)
    return Done(log, passes * tokens, sampled, {"reference": passes * tokens}, len(pairs))


def check_start(nats: float) -> None:
    """Raise ValueError where a model's log-ratio to itself is not 0 before the first step."""
    if abs(nats) > 0.05:
        raise ValueError(f"KL to the reference at step 0 is {nats:.3g} nats, though the reference is the model itself")


def _reinforced(
    source: str | Path, reference: str | Path, config: Mapping[str, Any], training: TrainerSettings, material: Material
) -> Done:
    assert material.reward is not None
    judge = material.reward

    def rewards(prompts: list[Prompt], completions: list[Any], **_: Any) -> list[float]:
        return judge(prompts, [text_of(completion) for completion in completions])

    log = reinforce(
        config["method"],
        policy_of(source, config),
        Path(str(reference)),
        material.tokenizer,
        material.prompts,
        rewards,
        training,
        beta=config["beta"],
        epochs=config["epochs"],
        clip=config["clip"],
        group=config["samples_per_prompt"],
        max_new_tokens=material.max_new_tokens,
    )
    tokens = max((entry.get("num_tokens", 0.0) for entry in log), default=0.0)
    own = str(source) == str(reference)
    if own and log and log[0].get("step", 1.0) == 1.0:
        check_start(log[0].get("kl", 0.0))
    return Done(log, tokens * config["epochs"], {"policy": tokens}, {"reference": tokens, "policy": tokens})


def _pairs(
    reference: str | Path, original: str | Path | None, config: Mapping[str, Any], material: Material
) -> tuple[list[list[int]], list[Pair], dict[str, float]]:
    """Prompts and pairs that DPO trains on, and the tokens that were sampled for them."""
    rows = material.rows
    if config["pairs"] == "given":
        return [row.prompt for row in rows], [Pair(row.chosen, row.rejected) for row in rows], {}
    assert material.reward is not None
    prompts = [row.prompt for row in rows]
    first = draw(reference, prompts, 1.0, "first", material)
    other = reference if config["pairs"] == "on_policy" or original is None else original
    second = draw(other, prompts, 1.0, "second", material)
    rewards = [
        material.reward(
            material.prompts,
            [texts(material.tokenizer, prompt, [ids])[0] for prompt, ids in zip(prompts, drawn, strict=True)],
        )
        for drawn in (first, second)
    ]
    kept, pairs = [], []
    for place, prompt in enumerate(prompts):
        both, values = [first[place], second[place]], [rewards[0][place], rewards[1][place]]
        made = make_pairs(both, values, seed=material.seed, min_reward_gap=config["min_reward_gap"])
        kept += [prompt] * len(made)
        pairs += made
    sampled = {"reference": _tokens(prompts, first)}
    name = "reference" if other == reference else "original"
    sampled[name] = sampled.get(name, 0.0) + _tokens(prompts, second)
    return kept, pairs, sampled


def distill(
    teacher: str | Path,
    student: str | Path,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    material: Material,
    teacher_rows: Sequence[Preference],
) -> Done:
    """`student` taught by `teacher`; `teacher_rows` are the rows as the teacher's tokenizer writes them.

    Where the tokenizers differ, the teacher's completions are handed over as texts (sequence distillation only).
    """
    training = settings(config, defaults, material)
    network = policy_of(student, config)
    matched = {"divergence": config.get("divergence"), "temperature": config["temperature"]}
    if config["method"] == "on_policy":
        mentor = load(teacher)[0]
        methods.one_vocabulary(network, mentor, len(material.tokenizer))
        log = methods.on_policy(
            network,
            mentor,
            material.tokenizer,
            material.prompts,
            training,
            max_new_tokens=material.max_new_tokens,
            **matched,
        )
        tokens = max((entry.get("num_tokens", 0.0) for entry in log), default=0.0)
        return Done(log, tokens, {"policy": tokens}, {"teacher": tokens})
    times = config["samples_per_prompt"]
    rows = [row for row in material.rows for _ in range(times)]
    asked = [row.prompt for row in teacher_rows for _ in range(times)]
    drawn = draw(teacher, asked, config["temperature"], "teacher", material)
    prompts, completions = [row.prompt for row in rows], drawn
    words = load_tokenizer(teacher)
    if config["method"] == "sequence" and same_tokenizer(words, material.tokenizer) is not None:
        completions = translated(words, asked, drawn, material.tokenizer)
    sampled = {"teacher": _tokens(asked, drawn)}
    if config["method"] == "sequence":
        log = methods.sequence(network, material.tokenizer, prompts, completions, training)
        return Done(log, _passes(log) * _tokens(prompts, completions), sampled)
    mentor = load(teacher)[0]
    methods.one_vocabulary(network, mentor, len(material.tokenizer))
    log = methods.token(network, mentor, material.tokenizer, prompts, completions, training, **matched)
    tokens = _passes(log) * _tokens(prompts, completions)
    return Done(log, tokens, sampled, {"teacher": tokens})


def distill_completions(
    student: str | Path,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    material: Material,
    given: Sequence[tuple[list[int], list[int]]],
) -> Done:
    """`student` taught by completions that somebody else sampled: (prompt, completion) as the student's token ids."""
    prompts, completions = [prompt for prompt, _ in given], [completion for _, completion in given]
    training = settings(config, defaults, material)
    log = methods.sequence(policy_of(student, config), material.tokenizer, prompts, completions, training)
    return Done(log, _passes(log) * _tokens(prompts, completions))


def translated(
    words: Any, prompts: Sequence[Sequence[int]], drawn: Sequence[Sequence[int]], tokenizer: Any
) -> list[list[int]]:
    """Completions of one tokenizer as another writes their texts, with its EOS where they had ended by themselves."""
    rows = []
    for prompt, ids in zip(prompts, drawn, strict=True):
        text = texts(words, prompt, [ids])[0]
        ended = bool(ids) and ids[-1] in set(words.all_special_ids)
        rows.append(
            tokenizer(text, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if ended else [])
        )
    return [row or [tokenizer.eos_token_id] for row in rows]


def draw(
    source: str | Path, prompts: Sequence[Sequence[int]], temperature: float, name: str, material: Material
) -> list[list[int]]:
    """One completion of each prompt from the model at `source`, in the stage's folder under `name`, a file per `CHUNK`.

    What is there already is not sampled again. Each process samples its share; a chunk's seed is its own, so that the
    completions depend neither on the number of processes nor on a kill between chunks.
    """
    folder = material.keep.folder / f"samples-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(prompts), CHUNK)
    files = [folder / f"{number:06d}.json" for number in range(len(starts))]
    missing = [n for n, file in enumerate(files) if n % count() == index() and not file.exists()]
    if missing:
        with whole_weights():
            model, tokenizer = load(source, pick_device(material.device))
        for number in missing:
            rows = sample_prompts(
                model,
                tokenizer,
                prompts[starts[number] : starts[number] + CHUNK],
                max_new_tokens=material.max_new_tokens,
                temperature=temperature,
                seed=stream(material.seed, name, f"chunk {number}"),
            )
            scratch = files[number].with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps(rows), "utf-8")
            scratch.rename(files[number])
            material.keep.progress(number + 1, len(files))
    wait()
    return [row for file in files for row in json.loads(file.read_text("utf-8"))]


def _tokens(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> float:
    return float(sum(map(len, prompts)) + sum(map(len, completions)))


def _passes(log: Log) -> float:
    """How often the data was gone through: the trainer's own count of epochs."""
    return log[-1].get("epoch", 1.0) if log else 0.0
