"""Settings of the worlds of language models: `grammar` and `text`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from precede.settings.base import Count, NonNegative, Positive, Preference, Settings, StageSettings, check_targets


class LanguageWorldSettings(Settings):
    """What the worlds of language models share."""

    max_new_tokens: Count
    """Length at which a completion is cut, tokens."""
    target_reward: Annotated[float, Field(gt=0, le=1)]
    """A completion is target when its reward is at least this."""
    evaluation_samples: Annotated[int, Field(ge=2)]
    """Completions sampled from every model to measure it, and from the truth to stand for it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes CUDA, then MPS, then the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of training; `auto` takes bfloat16 on CUDA cards that have it. Measuring is always in float32."""


class Trainer(StageSettings):
    """A stage that a TRL trainer runs."""

    trainer: dict[str, Any] = {}
    """More arguments for the TRL config, passed through as they are."""

    @model_validator(mode="after")
    def _check_trainer(self) -> Trainer:
        accumulated = self.trainer.get("gradient_accumulation_steps", 1)
        if type(accumulated) is not int or accumulated < 1:
            raise ValueError(f"trainer.gradient_accumulation_steps must be a whole number from 1, not {accumulated!r}")
        return self


class SupervisedTrainer(Trainer):
    """What a trainer on given or sampled completions needs."""

    learning_rate: Positive
    """Peak; it falls linearly to 0."""
    batch_size: Count
    """Completions per step."""
    steps: Count
    """Optimiser steps."""


class LanguageDistill(SupervisedTrainer):
    """Distillation: the student is to become the teacher at temperature τ."""

    only: ClassVar = {"divergence": ("token", "on_policy"), "samples": ("sequence", "token")}

    kind: Literal["distill"]
    method: Literal["sequence", "token", "on_policy"] = "sequence"
    """`sequence`: maximum likelihood on teacher samples; `token`: match next-token distributions along teacher samples;
    `on_policy`: along the student's own samples."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """KL(teacher ‖ student), KL(student ‖ teacher), or the mean of their KLs to the even mixture."""
    temperature: Positive = 0.7
    """τ: below 1 sharpens the teacher, token by token."""
    samples: Count
    """Completions sampled from the teacher."""
    start: Literal["new", "parent"] = "new"
    """`new`: a new student, taught by the model of the stage before; `parent`: that model is the student already and goes on
    learning from the model that it was made from."""


class NoiselessPreference(Preference):
    """Labels without noise unless it is asked for: most users of DPO rank."""

    scale: NonNegative = 0.0
    """As in `Preference`; at 0 DPO's coefficient is β itself."""


class LanguageAlign(Trainer):
    """Alignment towards the reward at price β, anchored to a reference."""

    only: ClassVar = {
        "pairs": ("dpo",),
        "samples": ("dpo",),
        "preference": ("dpo",),
        "min_reward_gap": ("dpo",),
        "epochs": ("rloo", "grpo"),
        "clip": ("rloo", "grpo"),
    }

    kind: Literal["align"]
    method: Literal["rloo", "grpo", "dpo"] = "rloo"
    beta: Positive = 0.1
    """Price of KL, reward units per nat."""
    reference: Literal["self", "teacher"] = "self"
    """`self`: the model being aligned; `teacher`: the model before distillation."""
    pairs: Literal["on_policy", "off_policy", "seeded"] = "on_policy"
    """DPO's couples: two completions of the reference; two of the truth; or one of the reference and one of the model before
    distillation."""
    samples: Annotated[int, Field(ge=2)]
    """Completions drawn for DPO's couples, two each."""
    min_reward_gap: NonNegative = 0.5
    """Couples whose rewards differ by no more are ties and left out."""
    preference: NoiselessPreference = NoiselessPreference()
    epochs: Count = 1
    """Optimiser steps on each round of samples."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Bound on the probability ratio; it binds where `epochs` is above 1."""
    learning_rate: Positive | None = None
    """Peak; it falls linearly to 0. Not given: what suits the method, as for the next two."""
    batch_size: Count | None = None
    """Completions per round of sampling, or DPO's pairs per step."""
    steps: Count | None = None
    """Rounds of sampling, or DPO's optimiser steps."""

    @model_validator(mode="after")
    def _check(self) -> LanguageAlign:
        if self.method != "dpo" and self.batch_size == 1:
            raise ValueError(
                f"{self.method} compares a completion with the others of its batch; batch_size must be 2 or more"
            )
        return self


class GrammarWorld(LanguageWorldSettings):
    """Strings of a mixture of Markov chains with exact likelihood; every pipeline's chains follow from its seed."""

    kind: Literal["grammar"]
    worlds: Count = 5
    """Random worlds; seed s lives in world s mod this."""
    vocabulary: Annotated[int, Field(ge=4)] = 32
    """Tokens, BOS and EOS among them."""
    max_new_tokens: Count = 12
    modes: Annotated[int, Field(ge=2)] = 10
    subset: Annotated[int, Field(ge=1)] = 16
    """Symbols of each mode."""
    starts: Annotated[int, Field(ge=1)] = 8
    """Symbols that a string of a mode can start with."""
    successors: Annotated[int, Field(ge=1)] = 5
    """Symbols that can follow a symbol in a mode."""
    noise: Annotated[float, Field(gt=0, lt=1)] = 0.03
    """Share of every distribution that is even over the whole vocabulary."""
    zipf_exponent: NonNegative = 1.0
    """Weights of the modes that are not targets fall as rank^−exponent."""
    target_modes: Annotated[list[int], Field(min_length=1)] = [9]
    """Which modes are targets, counted from 0."""
    target_weight: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Total weight of the target modes under the truth."""
    target_reward: Annotated[float, Field(gt=0, le=1)] = 0.5
    evaluation_samples: Annotated[int, Field(ge=2)] = 2000
    device: Literal["auto", "cpu", "cuda", "mps"] = "cpu"
    """The models are so small that a GPU gains nothing."""

    @model_validator(mode="after")
    def _check(self) -> GrammarWorld:
        check_targets(self.target_modes, self.modes)
        if self.subset > self.vocabulary - 2:
            raise ValueError(f"subset is {self.subset}, but the vocabulary has {self.vocabulary - 2} symbols")
        for name, value in (("starts", self.starts), ("successors", self.successors)):
            if value > self.subset:
                raise ValueError(f"{name} is {value}, but a mode has {self.subset} symbols (subset)")
        return self


class Architecture(SupervisedTrainer):
    """A small Llama, trained from scratch."""

    hidden_size: Count
    layers: Count
    heads: Count = 4

    @model_validator(mode="after")
    def _check(self) -> Architecture:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be a multiple of 2 × heads, and {self.hidden_size} is not")
        return self


class GrammarTeacher(Architecture):
    """The teacher p′: trained on fresh strings of the truth."""

    learning_rate: Positive = 3e-3
    batch_size: Count = 256
    steps: Count = 500
    hidden_size: Count = 64
    layers: Count = 2


class GrammarDistill(LanguageDistill, Architecture):
    learning_rate: Positive = 3e-3
    batch_size: Count = 256
    steps: Count = 400
    samples: Count = 12_000
    hidden_size: Count = 32
    layers: Count = 1


class GrammarAlign(LanguageAlign):
    by_method: ClassVar = {
        "rloo": {"learning_rate": 1e-3, "batch_size": 256, "steps": 120},
        "grpo": {"learning_rate": 1e-3, "batch_size": 256, "steps": 120},
        "dpo": {"learning_rate": 3e-4, "batch_size": 128, "steps": 100},
    }

    samples: Annotated[int, Field(ge=2)] = 8000


class TextWorld(LanguageWorldSettings):
    """Completions of a prompt by real language models."""

    kind: Literal["text"]
    prompt: Annotated[str, Field(min_length=1)] = "The"
    max_new_tokens: Count = 24
    reward: str = "hedge"
    """A reward of `precede.rewards`, by name; rewards lie in [0, 1]."""
    truth: str | None = None
    """What models are measured against: a model folder or id, or a JSONL file of texts under the key `text`; the recipe's
    teacher where not given."""
    target_reward: Annotated[float, Field(gt=0, le=1)] = 1.0
    evaluation_samples: Annotated[int, Field(ge=2)] = 128


class TextTeacher(StageSettings):
    """The teacher: a Hugging Face model folder or id, or `bundled:smollm2-135m-instruct`."""

    model: Annotated[str, Field(min_length=1)]


class TextDistill(LanguageDistill):
    learning_rate: Positive = 1e-4
    batch_size: Count = 16
    steps: Count = 16
    samples: Count = 256
    keep_layers: Annotated[int, Field(ge=2)] | None = None
    """Layers of the recipe's teacher that a new student keeps, evenly spaced with the first and the last."""
    model: str | None = None
    """A new student's own model folder or id, instead of layers of the teacher."""

    @model_validator(mode="after")
    def _check(self) -> TextDistill:
        if self.start == "new" and (self.keep_layers is None) == (self.model is None):
            raise ValueError("give a new student either keep_layers or model")
        return self


class TextAlign(LanguageAlign):
    by_method: ClassVar = {
        "rloo": {"learning_rate": 1e-5, "batch_size": 32, "steps": 100},
        "grpo": {"learning_rate": 1e-5, "batch_size": 32, "steps": 100},
        "dpo": {"learning_rate": 5e-5, "batch_size": 8, "steps": 16},
    }

    samples: Annotated[int, Field(ge=2)] = 512
