"""Settings of language-model stages: one class for each kind, in every world of language models.

Methods are those of `precede.stages.registry`; what TRL knows is called as TRL calls it and stands under `trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from precede.settings.base import Count, NonNegative, Positive, Preference, Settings, StageSettings
from precede.stages.method import Method
from precede.stages.registry import METHODS, methods_of


class Lora(Settings):
    """Low-rank adapters in place of the weights, by PEFT."""

    rank: Count = 16
    alpha: Positive = 32.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    quantization: Literal["none", "4bit"] = "none"
    """`4bit`: the frozen weights in NF4 (QLoRA)."""
    adapter: Literal["merge", "keep"] = "merge"
    """`merge` into the weights, or `keep` beside them; only the last stage of an order can keep its adapter."""


class LanguageStage(StageSettings):
    """A stage that a TRL trainer runs."""

    optional: ClassVar[frozenset[str]] = frozenset()
    """Settings that only some methods read (`Method.reads`)."""

    trainer: dict[str, Any] = {}
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

    @model_validator(mode="after")
    def _check_trainer(self) -> LanguageStage:
        for name in ("gradient_accumulation_steps", "per_device_train_batch_size", "num_iterations", "num_generations"):
            value = self.trainer.get(name, 1)
            if type(value) is not int or value < 1:
                raise ValueError(f"trainer.{name} must be a whole number from 1, not {value!r}")
        return self

    def record(self) -> Method:
        return METHODS[self.method]  # type: ignore[attr-defined]

    def active(self, shape: str = "rows") -> dict[str, Any]:
        """What the stage's key is made of: every setting that the method reads, defaults filled in for a world's `shape`."""
        method, values = self.record(), self.model_dump(mode="json")
        defaults = {**method.defaults["rows"], **method.defaults.get(shape, {})}
        for name, value in defaults.items():
            if name != "trainer" and values.get(name) is None:
                values[name] = value
        values["trainer"] = _arguments(method, defaults["trainer"], self.trainer, shape)
        values |= self.by_shape(shape, values)
        return {k: v for k, v in values.items() if k not in self.optional or k in method.reads}

    def by_shape(self, shape: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings whose default follows from the shape of the world."""
        return {}


def _arguments(method: Method, defaults: Mapping[str, Any], given: Mapping[str, Any], shape: str) -> dict[str, Any]:
    """TRL's arguments: those given over the defaults; how long to train is asked for in steps or in epochs, not both."""
    length = {"max_steps", "num_train_epochs"}
    kept = {name: value for name, value in defaults.items() if not (name in length and length & set(given))}
    found = {**kept, **given}
    if method.compares and shape != "rows":  # all completions of a round are of the one prompt there is
        found.setdefault("num_generations", found["per_device_train_batch_size"])
    return found


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
    samples_per_prompt: Annotated[int, Field(ge=2)] | None = None
    """Completions drawn of each prompt for couples, two each."""
    min_reward_gap: NonNegative = 0.0
    """Couples whose rewards differ by no more are ties and left out."""
    preference: Labels = Labels()
    no_pairs: Literal["keep", "stop"] = "keep"
    """Where no couple differs: `keep` the model as it is, or `stop`."""

    def by_shape(self, shape: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return {"pairs": values["pairs"] or ("given" if shape == "rows" else "on_policy")}


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
        return self


STAGES: dict[str, type[LanguageStage]] = {"sft": Sft, "align": Align, "distill": Distill}
