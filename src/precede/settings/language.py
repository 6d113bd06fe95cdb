"""Settings of the worlds of language models, `grammar` and `text`: truth, data, teacher, student, stages, what is measured.

Methods are those of `precede.stages.registry`; what TRL knows is called as TRL calls it and stands under `trainer`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from precede.settings.base import (
    MOST,
    MOST_OF_A_KIND,
    Count,
    Exponent,
    Extrapolation,
    Few,
    NonNegative,
    Positive,
    Preference,
    Settings,
    Share,
    StageSettings,
    check_targets,
)
from precede.stages.registry import METHODS, methods_of

WHOLE = {
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), (1, MOST_OF_A_KIND)),
    **dict.fromkeys(("num_iterations", "num_generations"), (1, MOST_OF_A_KIND)),
    "max_steps": (1, MOST_OF_A_KIND),
    "seed": (0, 2**32 - 1),
    "dataloader_num_workers": (0, 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), (1, 1000)),
}
"""Arguments of trainers and of configurations that are whole numbers: the least and the most."""


def _check_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers of libraries' arguments are finite, no larger than any use has them, and whole where they count."""
    for name, value in values.items():
        least, most = WHOLE.get(name, (0, 0))
        if name in WHOLE and not (
            (type(value) is int and least <= value <= most) or (name, value) == ("max_steps", -1)
        ):
            raise ValueError(f"{name} must be a whole number from {least} to {most:,}, not {value!r}")
        if isinstance(value, int | float) and not abs(value) < 2**32:
            raise ValueError(f"{name} must be a finite number below 2**32, not {value}")
    return values


Arguments = Annotated[dict[str, Any], AfterValidator(_check_numbers)]
"""What a library is given as it stands."""
Name = Annotated[str, Field(min_length=1)]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]


class GrammarWorld(Settings):
    """Strings of a mixture of Markov chains with exact likelihood; every pipeline's chains follow from its seed."""

    kind: Literal["grammar"]
    worlds: Count = 5
    """Random worlds; seed s lives in world s mod this."""
    vocabulary: Annotated[int, Field(ge=4, le=10_000)] = 32
    """Tokens, BOS and EOS among them."""
    max_new_tokens: Few = 12
    """Length at which a string is cut, tokens."""
    modes: Annotated[Few, Field(ge=2)] = 10
    subset: Count = 16
    """Symbols of each mode."""
    starts: Count = 8
    """Symbols that a string of a mode can start with."""
    successors: Count = 5
    """Symbols that can follow a symbol in a mode."""
    noise: Share = 0.03
    """Share of every distribution that is even over the whole vocabulary."""
    zipf_exponent: Exponent = 1.0
    """Weights of the modes that are not targets fall as rank^−exponent."""
    target_modes: Annotated[list[int], Field(min_length=1)] = [9]
    """Which modes are targets, counted from 0."""
    target_weight: Share = 0.01
    """Total weight of the target modes under the truth."""
    target_reward: Annotated[Positive, Field(le=1)] = 0.5
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

    hidden_size: Annotated[Count, Field(le=100_000)]
    layers: Few
    heads: Few = 4

    @model_validator(mode="after")
    def _check(self) -> Architecture:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be a multiple of 2 × heads, and {self.hidden_size} is not")
        return self


class GrammarTeacher(Architecture):
    """The teacher p′: trained on fresh strings of the truth."""

    hidden_size: Annotated[Count, Field(le=100_000)] = 64
    layers: Few = 2
    trainer: Arguments = {}
    """Arguments of TRL's SFTConfig over 3e-3, 256 strings a step, 500 steps."""

    @model_validator(mode="after")
    def _check_steps(self) -> GrammarTeacher:
        if self.trainer.get("max_steps") == -1:
            raise ValueError(
                "trainer.max_steps must be a number of steps: its strings are fresh, so that there are no epochs"
            )
        return self

    def active(self, shape: str = "") -> dict[str, Any]:
        defaults = {"learning_rate": 3e-3, "per_device_train_batch_size": 256, "max_steps": 500, "save_strategy": "no"}
        return super().active() | {"trainer": defaults | self.trainer, "lora": None}


class GrammarStudent(Architecture):
    """The student before it has learned anything."""

    hidden_size: Annotated[Count, Field(le=100_000)] = 32
    layers: Few = 1


class Data(Settings):
    """Preference pairs; `precede.data.preferences.read_preferences` says what can be read."""

    source: Name
    """A .jsonl, .jsonl.gz, .json or .parquet file, a folder, or a `datasets` name."""
    columns: dict[Literal["prompt", "chosen", "rejected"], str] = {}
    """What the source calls our columns."""
    split: Name = "train"
    limit: Count | None = None
    """Rows to read at most."""
    max_length: Annotated[Count, Field(ge=8)] | None = None
    """Rows of more tokens than this are refused; where not given, those longer than the models read."""
    held_out: Share | None = None
    """Share of the prompts that is kept from training, for the audit and the metrics; where not given a tenth, and at least 30
    where there are three times as many."""
    held_out_source: Name | None = None
    """A source of their own for the rows that are kept from training, in place of a share; no question of it is trained on."""

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.held_out is not None and self.held_out_source is not None:
            raise ValueError(
                "held_out is a share of the source, and held_out_source has rows of its own; give one of them"
            )
        return self


class TextWorld(Settings):
    """Real language models on the prompts of the data, or on one prompt."""

    kind: Literal["text"] = "text"
    prompt: Name | None = None
    """The one prompt, where there are no data."""
    max_new_tokens: Annotated[Count, Field(ge=2)] | None = None
    """Length at which completions are cut, in training and measuring; where not given, what 95 % of the chosen ones fit in,
    24 for one prompt."""
    reward: Name | None = None
    """`module:function` or `file.py:function`, called as TRL calls rewards, or one of `precede.rewards` by name."""
    reward_model: Name | None = None
    """A sequence classifier with one output, in place of `reward`."""
    target_reward: Annotated[float, Field(ge=-MOST, le=MOST, allow_inf_nan=False)] | None = None
    """Reward from which a completion is desirable; where not given, 1 for one prompt, else the median of the held-out chosen
    (where all completions reach that, the lowest reward above the least)."""
    truth: Name | None = None
    """What models are measured against: a model, or for one prompt a JSONL file of texts under the key `text`; where not given,
    the model that the orders begin with."""
    device: Device = "auto"
    """`auto` takes CUDA, then MPS, then the CPU."""
    dtype: Dtype = "auto"
    """Arithmetic of training; `auto` takes bfloat16 on CUDA cards that have it. Weights are trained and measured as float32."""

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
    keep_layers: Annotated[Few, Field(ge=2)] | None = None
    """Layers of the teacher that are kept, evenly spaced, the first and the last included."""
    config: Arguments | None = None
    """Changes to the teacher's configuration, such as `hidden_size`; weights are random, the tokenizer is the teacher's."""

    @model_validator(mode="after")
    def _check(self) -> TextStudent:
        if sum(value is not None for value in (self.model, self.keep_layers, self.config)) != 1:
            raise ValueError("give one of model, keep_layers and config")
        return self


class Lora(Settings):
    """Low-rank adapters in place of the weights, by PEFT."""

    rank: Annotated[Count, Field(le=65_536)] = 16
    alpha: Positive = 32.0
    target_modules: Annotated[list[Name], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    """Names of linear layers, such as `q_proj`, or all of them."""
    quantization: Literal["none", "4bit"] = "none"
    """`4bit`: the frozen weights in NF4 (QLoRA)."""
    adapter: Literal["merge", "keep"] = "merge"
    """`merge` into the weights, or `keep` beside them; only the last stage of an order can keep its adapter."""


class LanguageStage(StageSettings):
    """A stage that a TRL trainer runs."""

    optional: ClassVar[frozenset[str]] = frozenset()
    """Settings that only some methods read (`Method.reads`)."""

    trainer: Arguments = {}
    """Arguments of the method's TRL config, such as `learning_rate`, `per_device_train_batch_size`, `max_steps`."""
    lora: Lora | None = None
    """Train adapters; where not given, all weights are trained."""

    @field_validator("method", check_fields=False)
    @classmethod
    def _known(cls, name: str) -> str:
        known = methods_of(cls.model_fields["kind"].annotation.__args__[0])  # type: ignore[union-attr]
        if name not in known:
            raise ValueError(f"'{name}' is not known; the methods are {', '.join(known)}")
        return name

    def active(self, shape: str = "rows") -> dict[str, Any]:
        """What the stage's key is made of: every setting that the method reads, defaults filled in for a world's `shape`.

        TRL's arguments are those given over the defaults; how long to train is asked for in steps or in epochs, not both.
        """
        method, values = METHODS[self.method], self.model_dump(mode="json")  # type: ignore[attr-defined]
        defaults = {**method.defaults["rows"], **method.defaults.get(shape, {})}
        for name, value in defaults.items():
            if name != "trainer" and values.get(name) is None:
                values[name] = value
        length = {"max_steps", "num_train_epochs"}
        unread = length if length & set(self.trainer) else set()
        trainer = {name: value for name, value in defaults["trainer"].items() if name not in unread} | self.trainer
        if method.compares and shape != "rows":  # all completions of a round are of the one prompt there is
            trainer.setdefault("num_generations", trainer["per_device_train_batch_size"])
        values["trainer"] = trainer
        return {k: v for k, v in values.items() if k not in self.optional or k in method.reads}


class Labels(Preference):
    """How couples are labelled; without noise unless it is asked for: most users of DPO rank."""

    scale: NonNegative = 0.0
    """As in `Preference`; at 0 DPO's coefficient is β itself."""


class Sft(LanguageStage):
    """Supervised fine-tuning on the chosen completions of the data."""

    kind: Literal["sft"] = "sft"
    method: str = "sft"


class Align(LanguageStage):
    """Alignment towards preferences or a reward at price β, anchored to a reference."""

    optional: ClassVar = frozenset({"pairs", "samples_per_prompt", "min_reward_gap", "preference", "no_pairs"})

    kind: Literal["align"] = "align"
    method: str = "dpo"
    beta: Positive = 0.1
    """Price of KL, reward units per nat; for DPO what TRL calls beta."""
    reference: Literal["self", "teacher"] = "self"
    """`self`: the model being aligned; `teacher`: the model before distillation."""
    pairs: Literal["given", "on_policy", "off_policy", "seeded"] | None = None
    """Those of the data (`given`, the default where there are any); or couples ranked by the reward: two completions of the
    reference (`on_policy`), two of the truth (`off_policy`), or one of the reference and one of the model before distillation
    (`seeded`)."""
    samples_per_prompt: Annotated[Count, Field(ge=2)] | None = None
    """Completions drawn of each prompt for couples, two each."""
    min_reward_gap: NonNegative = 0.0
    """Couples whose rewards differ by no more are ties and left out."""
    preference: Labels = Labels()
    no_pairs: Literal["keep", "stop"] = "keep"
    """Where no couple differs: `keep` the model as it is, or `stop`."""

    def active(self, shape: str = "rows") -> dict[str, Any]:
        values = super().active(shape)
        default = "given" if shape == "rows" else "on_policy"
        return values | ({"pairs": values["pairs"] or default} if "pairs" in values else {})


class Distill(LanguageStage):
    """Distillation: the student is to become the teacher at temperature τ."""

    optional: ClassVar = frozenset({"divergence", "samples_per_prompt", "completions"})

    kind: Literal["distill"] = "distill"
    method: str = "sequence"
    """`sequence`: maximum likelihood on the teacher's completions; `token`: its next-token distributions along them;
    `on_policy`: its distributions along the student's own. The last two need the teacher's tokenizer."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """KL(teacher ‖ student), KL(student ‖ teacher), or the mean of their KLs to the even mixture."""
    temperature: Positive = 1.0
    """τ at which the teacher is taken; below 1 sharpens it, token by token."""
    extrapolation: Extrapolation = 1.0
    """λ: what is distilled is π^λ·π_ref^(1−λ) of an aligned π and the model π_ref that it was anchored to, by the law of the
    tilt the alignment at the price β/λ of KL. Below 1 gives back recall, above 1 goes on beyond the alignment; only for a
    distillation right behind an alignment."""
    samples_per_prompt: Count | None = None
    """Completions sampled from the teacher for each prompt."""
    completions: str | None = None
    """A file of the teacher's completions (`prompt`, `completion`) in place of sampling it: for a teacher behind an API."""
    start: Literal["new", "parent"] = "new"
    """`new`: a new student, taught by the model of the stage before; `parent`: that model is the student already and goes on
    learning from the model that it was made from."""

    @model_validator(mode="after")
    def _check_completions(self) -> Distill:
        if self.completions is not None and "completions" not in METHODS[self.method].reads:
            able = ", ".join(name for name in methods_of("distill") if "completions" in METHODS[name].reads)
            raise ValueError(f"completions are texts, which only method {able} learns from, not {self.method}")
        if self.completions is not None and self.extrapolation != 1:
            raise ValueError(
                "completions are there already, so that extrapolation has nothing to sample; give one of them"
            )
        return self


class Evaluation(Settings):
    """What is measured of every model; nothing of it changes what is trained."""

    pairs: Annotated[Count, Field(ge=2)] = 128
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
    fail_on: Literal["unchecked", "risky", "trapped"] | None = None
    """Stop a build before an alignment whose reference the audit finds to be this or worse."""
    report_to: list[str] = []
    """Trackers, as transformers names them: tensorboard (its files go to runs/NAME), trackio, wandb, mlflow. What is logged is
    always kept in training.json too."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What a build saves the weights in; `auto`: what those of the model were given in that it is made of. The last model is
    measured with its weights rounded to it. An adapter that is kept is float32, as it is trained."""
    push_to_hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """owner/name of a repository to upload a build to; made private where it is not there."""
