"""Settings of the worlds of language models, `grammar` and `text`: truth, data, teacher, student, and what is measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from precede.settings.base import Count, NonNegative, Settings, StageSettings, check_targets

Name = Annotated[str, Field(min_length=1)]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]


class GrammarWorld(Settings):
    """Strings of a mixture of Markov chains with exact likelihood; every pipeline's chains follow from its seed."""

    kind: Literal["grammar"]
    worlds: Count = 5
    """Random worlds; seed s lives in world s mod this."""
    vocabulary: Annotated[int, Field(ge=4)] = 32
    """Tokens, BOS and EOS among them."""
    max_new_tokens: Count = 12
    """Length at which a string is cut, tokens."""
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
    """A string is target when its reward, the target's posterior, is at least this."""
    device: Device = "cpu"
    """The models are so small that a GPU gains nothing."""
    dtype: Dtype = "auto"
    """Arithmetic of training; `auto` takes bfloat16 on CUDA cards that have it. Measuring is always in float32."""

    @model_validator(mode="after")
    def _check(self) -> GrammarWorld:
        check_targets(self.target_modes, self.modes)
        if self.subset > self.vocabulary - 2:
            raise ValueError(f"subset is {self.subset}, but the vocabulary has {self.vocabulary - 2} symbols")
        for name, value in (("starts", self.starts), ("successors", self.successors)):
            if value > self.subset:
                raise ValueError(f"{name} is {value}, but a mode has {self.subset} symbols (subset)")
        return self


class Architecture(StageSettings):
    """A small Llama with random weights."""

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

    hidden_size: Count = 64
    layers: Count = 2
    trainer: dict[str, Any] = {}
    """Arguments of TRL's SFTConfig over 3e-3, 256 strings a step, 500 steps."""

    def active(self, shape: str = "") -> dict[str, Any]:
        defaults = {"learning_rate": 3e-3, "per_device_train_batch_size": 256, "max_steps": 500, "save_strategy": "no"}
        return super().active() | {"trainer": defaults | self.trainer, "lora": None}


class GrammarStudent(Architecture):
    """The student before it has learned anything."""

    hidden_size: Count = 32
    layers: Count = 1


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


class TextWorld(Settings):
    """Real language models on the prompts of the data, or on one prompt."""

    kind: Literal["text"] = "text"
    prompt: Name | None = None
    """The one prompt, where there are no data."""
    max_new_tokens: Annotated[int, Field(ge=2)] | None = None
    """Length at which completions are cut, in training and measuring; where not given, what 95 % of the chosen ones fit in,
    24 for one prompt."""
    reward: Name | None = None
    """`module:function` or `file.py:function`, called as TRL calls rewards, or one of `precede.rewards` by name."""
    reward_model: Name | None = None
    """A sequence classifier with one output, in place of `reward`."""
    target_reward: float | None = None
    """Reward from which a completion is desirable; where not given, the median of the held-out chosen, 1 for one prompt."""
    truth: Name | None = None
    """What models are measured against: a model, or for one prompt a JSONL file of texts under the key `text`; where not given,
    the model that the orders begin with."""
    device: Device = "auto"
    """`auto` takes CUDA, then MPS, then the CPU."""
    dtype: Dtype = "auto"
    """Arithmetic of training; `auto` takes bfloat16 on CUDA cards that have it. Weights and measuring are float32."""

    @model_validator(mode="after")
    def _check(self) -> TextWorld:
        if self.reward is not None and self.reward_model is not None:
            raise ValueError("give reward or reward_model, not both")
        return self


class TextTeacher(StageSettings):
    """The teacher: a Hugging Face model folder or id, or `bundled:smollm2-135m-instruct`."""

    model: Name | None = None


class TextStudent(StageSettings):
    """A new student: a model (folder or id), the teacher with layers removed, or a configuration to begin from scratch."""

    model: Name | None = None
    keep_layers: Annotated[int, Field(ge=2)] | None = None
    """Layers of the teacher that are kept, evenly spaced, the first and the last included."""
    config: dict[str, Any] | None = None
    """Changes to the teacher's configuration, such as `hidden_size`; weights are random, the tokenizer is the teacher's."""

    @model_validator(mode="after")
    def _check(self) -> TextStudent:
        if sum(value is not None for value in (self.model, self.keep_layers, self.config)) != 1:
            raise ValueError("give one of model, keep_layers and config")
        return self


class Evaluation(Settings):
    """What is measured of every model; nothing of it changes what is trained."""

    pairs: Annotated[int, Field(ge=2)] = 128
    """Held-out pairs at most, where there are data."""
    samples_per_prompt: Count | None = None
    """Completions sampled of each prompt, from every model to measure it and from the truth to stand for it; where not given,
    1 of each held-out prompt, 128 of one prompt, 2000 in the grammar world."""
    tasks: list[str] = []
    """Tasks of lm-eval that a build runs on its first and its last model (`pip install precede[eval]`)."""
    task_folder: str | None = None
    """A folder with task files of your own, for lm-eval."""
    task_limit: Count | None = None
    """Documents per task at most."""


class Run(Settings):
    """What is done around the stages of language models."""

    skip: list[Literal["audit"]] = []
    """`audit`: leave out the audits of a build."""
    fail_on: Literal["risky", "trapped"] | None = None
    """Stop a build before an alignment whose reference the audit finds to be this or worse."""
    report_to: list[str] = []
    """Trackers, as transformers names them: tensorboard (its files go to runs/NAME), trackio, wandb, mlflow. What is logged is
    always kept in training.json too."""
    push_to_hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """owner/name of a repository to upload a build to; made private where it is not there."""
