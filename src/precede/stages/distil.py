"""Distillation of a student from a teacher, by TRL's trainers: `sequence`, `token` and `on_policy`.

The teacher is always taken at temperature τ and the student at 1: the student is to become the teacher's sharpened
distribution softmax(logits/τ). An aligned teacher may be extrapolated from the model that it was anchored to, and is then both
(`precede.models.extrapolation`). A *divergence* is per token, summed over the vocabulary and averaged over tokens:
`forward_kl` KL(teacher ‖ student), `reverse_kl` KL(student ‖ teacher), `jensen_shannon` with equal weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from precede.data.completions import translated
from precede.libraries import gkd, trainer_config, trl
from precede.models.extrapolation import extrapolate
from precede.models.load import load_tokenizer, read_generation_config
from precede.models.tokenizers import same_tokenizer
from precede.rewards import Prompt
from precede.sampling import eos_ids
from precede.stages.context import Amounts, Context, Models, Trained, Work, draw, look_at
from precede.stages.method import Config, Method
from precede.stages.running import amounts_of, load_trained, rows_per_step, rows_seen, sampled_amounts, settings_of
from precede.stages.trainer import Log, TrainerSettings, train_on

DIVERGENCES = {"forward_kl": 0.0, "reverse_kl": 1.0, "jensen_shannon": 0.5}
"""Divergence → the coefficient that TRL calls `beta`, which interpolates them (Agarwal et al. 2024, eq. 1)."""

LOOKED_AT = 64
"""Completions of the student on which it is held against its teacher before on-policy distillation."""
LITTLE = 0.5
"""Mass of the next token in common below which a caution is told; by reason, not by measurement."""

Rows = Sequence[Sequence[int]]


def sequence(student: Any, tokenizer: Any, prompts: Rows, completions: Rows, settings: TrainerSettings) -> Log:
    """Maximum likelihood on `completions[i]` of `prompts[i]` (token ids), in place, by SFTTrainer; returns the log.

    Sampled from the teacher at τ they make this the paper's sequence distillation; given by people, supervised fine-tuning.
    The loss is −Σ log p(token)/tokens over the completions of a batch, their EOS included; the prompt is context and not
    learned. The trainer is given ids and labels, so nothing is tokenised again, cut, or taken for padding: a tokenizer whose
    pad is its EOS still teaches the student to stop.
    """
    columns = {
        "input_ids": [[*prompt, *row] for prompt, row in zip(prompts, completions, strict=True)],
        "labels": [[-100] * len(prompt) + list(row) for prompt, row in zip(prompts, completions, strict=True)],
    }
    fixed = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    return train_on(columns, trl().SFTTrainer, trainer_config("SFT"), (student,), tokenizer, settings, **fixed)


def token(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    prompts: Rows,
    completions: Rows,
    settings: TrainerSettings,
    *,
    divergence: str,
    temperature: float,
) -> Log:
    """Match the teacher's next-token distributions along `completions[i]` of `prompts[i]`, in place, by GKDTrainer with λ = 0.

    Teacher and student need one vocabulary (ValueError otherwise).
    """
    check_one_vocabulary(student, teacher)
    columns = {"prompt": [list(prompt) for prompt in prompts], "completion": [list(row) for row in completions]}

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["prompt"]) + len(row["completion"]) for row in batch)
        ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for index, row in enumerate(batch):
            joined, width = torch.tensor([*row["prompt"], *row["completion"]]), len(row["prompt"])
            ids[index, : len(joined)] = joined
            labels[index, width : len(joined)] = joined[width:]
            mask[index, : len(joined)] = 1
        width = min(len(row["prompt"]) for row in batch)  # what the trainer would sample from, which λ = 0 never does
        beginning = {"prompts": ids[:, :width], "prompt_attention_mask": mask[:, :width]}
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **beginning}

    trainer, models = partial(gkd().GKDTrainer, data_collator=collate), (student, sharpened(teacher, temperature))
    fixed = {"beta": DIVERGENCES[divergence], "lmbda": 0.0, "temperature": 1.0, "max_length": None}
    return train_on(columns, trainer, trainer_config("GKD"), models, tokenizer, settings, **fixed)


def on_policy(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    settings: TrainerSettings,
    *,
    divergence: str,
    temperature: float,
    max_new_tokens: int,
) -> Log:
    """Match the teacher's next-token distributions along the student's own samples, in place, by DistillationTrainer.

    `settings.batch_size` of `prompts` (texts or messages) are completed anew at every step (Agarwal et al. 2024). With TRL
    1.16 bf16 reaches the sampling only; gradients are computed in the weights' fp32.
    """
    check_one_vocabulary(student, teacher)
    trainer, models = trl().DistillationTrainer, (student, sharpened(teacher, temperature))
    fixed = {"beta": DIVERGENCES[divergence], "max_completion_length": max_new_tokens}
    config = trainer_config("Distillation")
    return train_on({"prompt": list(prompts)}, trainer, config, models, tokenizer, settings, **fixed)


def sharpened(model: Any, temperature: float) -> Any:
    """A copy of `model` whose distribution at temperature 1 is that of `model` at τ: its head is divided by τ.

    Raises ValueError for models that cap their logits (Gemma 2 and its like) or have no linear head.
    """
    if temperature == 1.0:
        return model
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise ValueError(
            f"a temperature other than 1 needs a plain linear head, which {type(model).__name__} lacks; "
            "set distill.temperature to 1, or distill.method to sequence"
        )
    sharp = copy.deepcopy(model)
    head = sharp.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() / temperature, requires_grad=False)  # untied from the embedding
    if head.bias is not None:
        head.bias = nn.Parameter(head.bias.detach() / temperature, requires_grad=False)
    sharp.config.tie_word_embeddings = False
    return sharp


def one_vocabulary(student: Any, teacher: Any, tokens: int) -> None:
    """Give both models heads of one size, in place, where one tokenizer of `tokens` tokens serves both.

    Vocabularies are padded to different sizes (Qwen 2.5 has 151,936 or 152,064 for 151,665 tokens): the larger is cut to the
    smaller, down to no less than the tokenizer's own. What is cut are rows that no text has.
    """
    sizes = [model.get_output_embeddings().weight.shape[0] for model in (student, teacher)]
    if sizes[0] != sizes[1] and min(sizes) >= tokens:
        (student if sizes[0] > sizes[1] else teacher).resize_token_embeddings(min(sizes))


def check_one_vocabulary(student: Any, teacher: Any) -> None:
    """Raise ValueError where the two models' heads differ in size: their distributions cannot be compared."""
    sizes = [model.get_output_embeddings().weight.shape[0] for model in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the student has {sizes[0]} tokens and the teacher {sizes[1]}; token and on_policy distillation need one "
            "vocabulary, set distill.method to sequence"
        )


def run_sft(models: Models, config: Config, context: Context) -> Trained:
    """Maximum likelihood on the chosen completions of the data."""
    prompts, chosen = [row.prompt for row in context.rows], [row.chosen for row in context.rows]
    return _learn(models, config, context, prompts, chosen)


def run_sequence(models: Models, config: Config, context: Context) -> Trained:
    """Sample the teacher at τ and learn its completions, or learn those that somebody else sampled (`completions`).

    Where the tokenizers differ, the teacher's completions are handed over as texts.
    """
    if (given := context.completions) is not None:
        return _learn(models, config, context, [prompt for prompt, _ in given], [row for _, row in given])
    prompts, completions = _sampled(models, config, context)
    return _learn(models, config, context, prompts, completions, drawn=len(completions))


def run_token(models: Models, config: Config, context: Context) -> Trained:
    """Match the teacher's next-token distributions along its own samples at τ."""
    prompts, completions = _sampled(models, config, context)
    student, teacher = _student_and_teacher(models, config, context)
    settings, matched = settings_of(config, context), {name: config[name] for name in ("divergence", "temperature")}
    log = token(student, teacher, context.tokenizer, prompts, completions, settings, **matched)
    return Trained(student, log, amounts_of(log, prompts, completions, len(completions)))


def run_on_policy(models: Models, config: Config, context: Context) -> Trained:
    """Match the teacher's next-token distributions along the student's own samples."""
    student, teacher = _student_and_teacher(models, config, context)
    settings, matched = settings_of(config, context), {name: config[name] for name in ("divergence", "temperature")}
    prompts, most = context.rounds(settings.batch_size), context.max_new_tokens
    facts = start_of(teacher, models, config["temperature"], context)
    log = on_policy(student, teacher, context.tokenizer, prompts, settings, max_new_tokens=most, **matched)
    return Trained(student, log, sampled_amounts(log, config), facts)


def start_of(teacher: Any, models: Models, temperature: float, context: Context) -> dict[str, float]:
    """How near student and teacher are before on-policy distillation, along samples of the student, which is all it sees.

    `kl_to_teacher_at_start`: KL(student ‖ teacher at τ), nats per completion. `overlap_at_start`: Σ min(p, q) over next tokens,
    the mass that both have in common, mean over tokens, in [0, 1]. The student is loaded anew, whole and in fp32: what is
    trained may be in 4 bits, or cut over processes.
    """
    prompts = [row.prompt for row in context.rows[:LOOKED_AT]]
    prompts *= LOOKED_AT if len(prompts) == 1 else 1
    kl, common, tokens = 0.0, 0.0, 0
    cut = partial(one_vocabulary, teacher=teacher, tokens=len(context.tokenizer))  # as what is trained was
    student, teacher = look_at(models.start), teacher.to(context.device)
    cut(student)
    student.to(context.device)
    for prompt, row in zip(prompts, draw(models.start, prompts, 1.0, "start", context, cut), strict=True):
        ids, first = torch.tensor([[*prompt, *row]], device=context.device), len(prompt) - 1
        with torch.inference_mode():
            own, other = (
                (model(ids).logits[0, first:-1].float() / tau).log_softmax(-1)
                for model, tau in ((student, 1.0), (teacher, temperature))
            )
        kl += float((own.exp() * (own - other)).sum())
        common += float(torch.minimum(own, other).exp().sum())
        tokens += len(row)
    return {"kl_to_teacher_at_start": kl / len(prompts), "overlap_at_start": common / max(tokens, 1)}


def caution(label: str, metrics: Mapping[str, Sequence[float | None]]) -> str | None:
    """A sentence where an on-policy distillation began with a student that has little in common with its teacher."""
    (common,) = metrics.get("overlap_at_start", [None])
    if common is None or common >= LITTLE:
        return None
    return (
        f"stage {label}: before it, student and teacher had {common:.0%} of their next tokens' mass in common on what the "
        "student writes; on-policy distillation may collapse from so far away: put a distillation by method token before it, "
        "as warmup and bridge in the recipe grammar-full"
    )


def _learn(
    models: Models, config: Config, context: Context, prompts: Rows, completions: Rows, drawn: int = 0
) -> Trained:
    student = load_trained(models.start, config)
    log = sequence(student, context.tokenizer, prompts, completions, settings_of(config, context))
    return Trained(student, log, amounts_of(log, prompts, completions, drawn))


def _sampled(models: Models, config: Config, context: Context) -> tuple[Rows, Rows]:
    """Prompts and the teacher's completions of them, as the student's tokenizer writes them."""
    assert models.teacher is not None
    times = config["samples_per_prompt"]
    rows = [row for row in context.rows for _ in range(times)]
    asked = [row.prompt for row in context.teacher_rows for _ in range(times)]
    drawn = draw(models.teacher, asked, config["temperature"], "samples", context, partial(_beyond, models, config))
    tokenizer = load_tokenizer(models.teacher)
    if same_tokenizer(tokenizer, context.tokenizer) is not None:
        ends = eos_ids(read_generation_config(models.teacher), tokenizer)
        drawn = translated(tokenizer, asked, drawn, ends, context.tokenizer, [row.turns for row in rows])
    return [row.prompt for row in rows], drawn


def _student_and_teacher(models: Models, config: Config, context: Context) -> tuple[Any, Any]:
    assert models.teacher is not None
    student, teacher = load_trained(models.start, config), look_at(models.teacher)
    one_vocabulary(student, teacher, len(context.tokenizer))
    _beyond(models, config, teacher)
    return student, teacher


def _beyond(models: Models, config: Config, teacher: Any) -> None:
    """Extrapolate the teacher, in place, where a distillation asks for it."""
    if "extrapolation" in config:
        reference = look_at(models.reference).to(teacher.device)
        one_vocabulary(teacher, reference, teacher.get_output_embeddings().weight.shape[0])
        extrapolate(teacher, reference, config["extrapolation"])


def _sequence_work(config: Config, amounts: Amounts) -> Work:
    tokens, drawn = rows_seen(amounts.examples, config, amounts.steps) * amounts.tokens, amounts.drawn * amounts.tokens
    return Work(tokens, {"teacher": drawn} if drawn else {}, _beside(config, drawn))


def _token_work(config: Config, amounts: Amounts) -> Work:
    tokens, drawn = rows_seen(amounts.examples, config, amounts.steps) * amounts.tokens, amounts.drawn * amounts.tokens
    return Work(tokens, {"teacher": drawn}, {"teacher": tokens} | _beside(config, drawn + tokens))


def _on_policy_work(config: Config, amounts: Amounts) -> Work:
    tokens = amounts.steps * rows_per_step(config) * amounts.tokens
    return Work(tokens, {"policy": tokens}, {"teacher": tokens} | _beside(config, tokens))


def _beside(config: Config, tokens: float) -> dict[str, float]:
    """What goes through the reference beside a teacher that is extrapolated from it."""
    return {"reference": tokens} if "extrapolation" in config else {}


_ROWS = {"learning_rate": 2e-5, "per_device_train_batch_size": 8, "num_train_epochs": 1}
_PROMPT = {"learning_rate": 1e-4, "per_device_train_batch_size": 16, "max_steps": 16}
_SMALL = {"learning_rate": 3e-3, "per_device_train_batch_size": 256, "max_steps": 400, "save_strategy": "no"}
_SAMPLED: dict[str, Mapping[str, Any]] = {
    "rows": {"samples_per_prompt": 1, "trainer": _ROWS},
    "prompt": {"samples_per_prompt": 256, "trainer": _PROMPT},
    "small": {"samples_per_prompt": 12_000, "trainer": _SMALL},
}

SFT = Method(
    name="sft",
    kind="sft",
    run=run_sft,
    trainer="SFT",
    fixed=("dataset_kwargs", "max_length"),
    defaults={"rows": {"trainer": _ROWS}, "prompt": {"trainer": _PROMPT}, "small": {"trainer": _SMALL}},
    work=_sequence_work,
)
SEQUENCE = replace(
    SFT,
    name="sequence",
    kind="distill",
    run=run_sequence,
    defaults=_SAMPLED,
    reads=frozenset({"samples_per_prompt", "completions"}),
)
TOKEN = Method(
    name="token",
    kind="distill",
    run=run_token,
    trainer="GKD",
    fixed=("beta", "lmbda", "temperature", "max_length"),
    defaults=_SAMPLED,
    work=_token_work,
    reads=frozenset({"samples_per_prompt", "divergence"}),
    needs_one_tokenizer=True,
    whole_logits=True,
)
ON_POLICY = Method(
    name="on_policy",
    kind="distill",
    run=run_on_policy,
    trainer="Distillation",
    fixed=("beta", "max_completion_length"),
    defaults=SFT.defaults,
    work=_on_policy_work,
    reads=frozenset({"divergence"}),
    needs_one_tokenizer=True,
)
