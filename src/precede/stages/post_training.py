"""The stages of a build, on users' models and rows: fine-tune, align, distil. Orders are not known here.

A stage works in the folder of its `Keep`: what it sampled, its checkpoints, and at last its model stand there, so that a
killed stage goes on where it was. Each of several processes runs the same function; sampling is divided among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precede.data.preferences import Preference
from precede.models.adapters import adapter_config, load_quantized
from precede.models.load import load, load_tokenizer, pick_device
from precede.models.tokenizers import same_tokenizer
from precede.rewards import Prompt, text_of
from precede.sampling import texts
from precede.stages import distil as methods
from precede.stages.arguments import FREE
from precede.stages.material import Material, draw, translated
from precede.stages.preferences import Pair, dpo, make_pairs
from precede.stages.processes import whole_weights
from precede.stages.reinforce import reinforce
from precede.stages.trainer import Log, TrainerSettings, in_bf16


@dataclass(frozen=True)
class Done:
    """What a stage did: the trainer's log, and tokens trained, sampled and scored (prompts included), by model."""

    log: Log
    trained: float = 0.0
    sampled: Mapping[str, float] | None = None
    scored: Mapping[str, float] | None = None
    pairs: int | None = None


def settings(config: Mapping[str, Any], defaults: Mapping[str, Any], material: Material) -> TrainerSettings:
    """The trainer's settings: the stage's defaults, over them what the recipe passes through."""
    extra = {**defaults, **config["trainer"]}
    lora = config["lora"]
    return TrainerSettings(
        learning_rate=extra.pop("learning_rate"),
        batch_size=extra.pop("per_device_train_batch_size"),
        steps=extra.pop("max_steps", -1),
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


def mentor_of(source: str | Path) -> Any:
    """A reference or a teacher: a model that is looked at and not trained, whole in every process."""
    with whole_weights():
        return load(source)[0]


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
    if own:
        training = replace(training, keep=replace(material.keep, logged=_starts_at_its_reference(config, training)))
    if config["method"] != "dpo":
        return _reinforced(source, reference, config, training, material)
    prompts, pairs, sampled = _pairs(reference, original, config, material)
    if not pairs:
        raise ValueError(
            "no couple of samples differs in reward, so DPO has nothing to learn from (the sampling trap): align the model "
            "before distillation first, or take pairs: given"
        )
    anchor = None if own and training.peft is not None else mentor_of(reference)
    log = dpo(
        policy_of(source, config),
        anchor,
        material.tokenizer,
        prompts,
        pairs,
        training,
        coefficient=config["beta"],
    )
    tokens = _tokens(prompts, [pair.chosen for pair in pairs]) + _tokens(prompts, [pair.rejected for pair in pairs])
    passes = _passes(log)
    return Done(log, passes * tokens, sampled, {"reference": passes * tokens}, len(pairs))


def _starts_at_its_reference(
    config: Mapping[str, Any], training: TrainerSettings
) -> Callable[[int, Mapping[str, float]], None]:
    """A check of the first step's log, whose numbers are those before it: a model's log-ratio to itself is 0."""
    assert training.device is not None
    tolerance = 1.0 if in_bf16(training.dtype, training.device) else 0.05  # bf16 rounds each token's log-prob

    def check(step: int, logs: Mapping[str, float]) -> None:
        nats = logs.get("kl", logs.get("rewards/chosen", 0.0) / config["beta"])
        if step == 1 and abs(nats) > tolerance:
            raise ValueError(
                f"KL to the reference at step 0 is {nats:.3g} nats, though the reference is the model itself"
            )

    return check


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
        mentor = mentor_of(teacher)
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
    mentor = mentor_of(teacher)
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


def _tokens(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> float:
    return float(sum(map(len, prompts)) + sum(map(len, completions)))


def _passes(log: Log) -> float:
    """How often the data was gone through: the trainer's own count of epochs."""
    return log[-1].get("epoch", 1.0) if log else 0.0
