"""Settings of `precede build`: models, data, stages, order, and what is done around them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from precede.settings.base import Count, NonNegative, Positive, Settings, StageSettings

Name = Annotated[str, Field(min_length=1)]


class Data(Settings):
    """Preference pairs; `precede.data.preferences.read_preferences` says what can be read."""

    source: Name
    """A .jsonl, .jsonl.gz, .json or .parquet file, a folder, or a `datasets` name."""
    columns: dict[Literal["prompt", "chosen", "rejected"], str] = {}
    """What the source calls our columns."""
    split: Name = "train"
    limit: Count | None = None
    """Rows to read at most."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Rows of more tokens than this are refused; where not given, those longer than the models read."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts that is kept from training, for the audit and the metrics."""


class Student(Settings):
    """A new student: a model (folder or id), the teacher with layers removed, or a configuration to begin from scratch."""

    model: Name | None = None
    keep_layers: Annotated[int, Field(ge=2)] | None = None
    """Layers of the teacher that are kept, evenly spaced, the first and the last included."""
    config: dict[str, Any] | None = None
    """Changes to the teacher's configuration, such as `hidden_size`; weights are random, the tokenizer is the teacher's."""

    @model_validator(mode="after")
    def _check(self) -> Student:
        if sum(value is not None for value in (self.model, self.keep_layers, self.config)) != 1:
            raise ValueError("give one of model, keep_layers and config")
        return self


class Lora(Settings):
    """Low-rank adapters in place of the weights, by PEFT."""

    rank: Count = 16
    alpha: Positive = 32.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    quantization: Literal["none", "4bit"] = "none"
    """`4bit`: the frozen weights in NF4 (QLoRA)."""
    adapter: Literal["merge", "keep"] = "merge"
    """`merge` into the weights, or `keep` beside them; only the last stage of an order can keep its adapter."""


class BuildStage(StageSettings):
    """A stage of a build. `defaults` are the trainer's arguments where the recipe gives none."""

    defaults: ClassVar[dict[str, Any]]
    trainer: dict[str, Any] = {}
    """Arguments of the stage's TRL config, such as `learning_rate`, passed through as they are."""
    lora: Lora | None = None
    """Train adapters; where not given, all weights are trained."""

    def trainer_method(self) -> str:
        """The method by which `precede.libraries.trainer_config` knows TRL's class of arguments."""
        return str(getattr(self, "method", "sequence"))


class Sft(BuildStage):
    """Supervised fine-tuning on the chosen completions."""

    kind: Literal["sft"] = "sft"
    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 2e-5,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
    }


class Align(BuildStage):
    """Alignment at price β, anchored to a reference."""

    only: ClassVar = {
        "pairs": ("dpo",),
        "min_reward_gap": ("dpo",),
        "samples_per_prompt": ("rloo", "grpo"),
        "epochs": ("rloo", "grpo"),
        "clip": ("rloo", "grpo"),
    }

    kind: Literal["align"] = "align"
    method: Literal["dpo", "rloo", "grpo"] = "dpo"
    """`rloo` and `grpo` need a reward."""
    beta: Positive = 0.1
    """Price of KL, reward units per nat; for DPO what TRL calls beta."""
    reference: Literal["self", "teacher"] = "self"
    """`self`: the model being aligned; `teacher`: the model before distillation."""
    pairs: Literal["given", "on_policy", "seeded"] = "given"
    """DPO's pairs: those of the data; two completions of the reference, ranked by the reward; or one of the reference and one
    of the model before distillation, ranked so."""
    min_reward_gap: NonNegative = 0.0
    """Sampled couples whose rewards differ by no more are ties and left out."""
    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Completions of a prompt that are compared with one another."""
    epochs: Count = 1
    """Optimiser steps on each round of samples."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 5e-6,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
    }


class Distill(BuildStage):
    """Distillation of the student from the model of the stage before."""

    only: ClassVar = {
        "divergence": ("token", "on_policy"),
        "samples_per_prompt": ("sequence", "token"),
        "completions": ("sequence",),
    }

    kind: Literal["distill"] = "distill"
    method: Literal["sequence", "token", "on_policy"] = "sequence"
    """`sequence`: maximum likelihood on the teacher's completions; `token`: its next-token distributions along them;
    `on_policy`: its distributions along the student's own. The last two need the teacher's tokenizer."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    temperature: Positive = 1.0
    """τ at which the teacher is taken; below 1 sharpens it."""
    samples_per_prompt: Count = 1
    completions: str | None = None
    """A file of the teacher's completions (`prompt`, `completion`) in place of sampling it: for a teacher behind an API."""
    defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 2e-5,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
    }


BUILD_STAGES: dict[str, type[BuildStage]] = {"sft": Sft, "align": Align, "distill": Distill}


class Evaluation(Settings):
    """What is measured of every model, on prompts and pairs that were kept from training."""

    pairs: Annotated[int, Field(ge=2)] = 128
    """Held-out pairs at most."""
    samples_per_prompt: Count = 1
    """Completions sampled of each held-out prompt."""
    max_new_tokens: Annotated[int, Field(ge=2)] | None = None
    """Length at which samples are cut, in evaluation and training; where not given, what 95 % of the chosen fit in."""
    tasks: list[str] = []
    """Tasks of lm-eval that are run on the first and on the last model (`pip install precede[eval]`)."""
    task_folder: str | None = None
    """A folder with task files of your own, for lm-eval."""
    task_limit: Count | None = None
    """Documents per task at most."""


class Build(Settings):
    """The recipe of a build without its stages."""

    build: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "build"
    """A name for the run."""
    teacher: Name | None = None
    """Folder, Hugging Face id, or `bundled:smollm2-135m-instruct`."""
    student: Student | None = None
    data: Data
    order: str = "align > distill"
    reward: Name | None = None
    """`module:function`, called as TRL calls rewards."""
    reward_model: Name | None = None
    """A sequence classifier with one output, in place of `reward`."""
    target_reward: float | None = None
    """Reward from which a completion is desirable; where not given, the median of the chosen."""
    evaluation: Evaluation = Evaluation()
    skip: list[Literal["audit"]] = []
    """`audit`: leave out the audit before alignment."""
    fail_on: Literal["risky", "trapped"] | None = None
    """Stop before an alignment whose reference the audit finds to be this or worse."""
    report_to: list[str] = []
    """Trackers, as transformers names them: tensorboard (its files go to runs/NAME), trackio, wandb, mlflow. What is logged is
    always kept in evidence/STAGE/training.json too."""
    push_to_hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """owner/name of a repository to upload the result to; made private where it is not there."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of training; weights and measuring are fp32."""

    @model_validator(mode="after")
    def _check(self) -> Build:
        if self.reward is not None and self.reward_model is not None:
            raise ValueError("give reward or reward_model, not both")
        return self
