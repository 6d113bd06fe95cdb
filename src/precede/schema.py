"""The settings of a recipe, as pydantic models: names, types, ranges and defaults.

One class per world and per kind of stage in that world. `recipe.py` reads YAML into them; nothing here computes.
Every setting states its unit or range; a method that a world does not have is refused here, by name.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """A block of settings: unknown keys are errors, values are immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StageSettings(Settings):
    """A stage: a block of settings with a kind. `active` drops what the chosen method does not read."""

    only: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Setting → the methods that read it; a setting that is not named here is read by all."""

    def active(self) -> dict[str, Any]:
        """The settings that change the stage's outcome, as JSON values (they enter the stage's key)."""
        values = self.model_dump(mode="json")
        method = values.get("method")
        return {k: v for k, v in values.items() if k not in self.only or method in self.only[k]}


# ---------------------------------------------------------------------------------------------------- mixture


class MixtureReward(Settings):
    """Reward of a point x: `bump` exp(−‖x−μ_T‖²/2s²) in [0, 1], or `log_density` log N(x; μ_T, Σ_T) in nats.

    With several target modes the reward is that of the nearest bump, or the log of the targets' own mixture.
    """

    kind: Literal["bump", "log_density"] = "bump"
    width: Positive = 0.3
    """s of the bump, in units of the plane."""


class MixtureWorld(Settings):
    """The truth p*: a full-covariance Gaussian mixture in the plane whose target modes are rare."""

    kind: Literal["mixture"]
    layout: Literal["grid", "ring"] = "grid"
    """`grid`: the 3 × 3 grid without its centre (arXiv 2505.13111); `ring`: modes evenly on a circle."""
    modes: Annotated[int, Field(ge=2)] = 8
    radius: Positive = 1.0
    """Grid spacing, or radius of the ring."""
    covariance: Positive | list[list[float]] = 0.025
    """Variance of every mode (times I), or a 2 × 2 covariance."""
    zipf_exponent: NonNegative = 1.0
    """Weights of the modes that are not targets fall as rank^−exponent."""
    target_modes: Annotated[list[int], Field(min_length=1)] = [7]
    """Which modes are targets, counted from 0."""
    target_weight: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Total weight of the target modes under the truth."""
    reward: MixtureReward = MixtureReward()

    @model_validator(mode="after")
    def _check(self) -> MixtureWorld:
        if self.layout == "grid" and self.modes != 8:
            raise ValueError(f"layout 'grid' has 8 modes, not {self.modes}; for another number use layout 'ring'")
        if len(set(self.target_modes)) != len(self.target_modes):
            raise ValueError("target_modes names a mode twice")
        if not all(0 <= mode < self.modes for mode in self.target_modes):
            raise ValueError(f"target_modes must lie between 0 and {self.modes - 1}")
        if len(self.target_modes) == self.modes:
            raise ValueError("target_modes names every mode; at least one mode must not be a target")
        if isinstance(self.covariance, list):
            rows = self.covariance
            if len(rows) != 2 or any(len(row) != 2 for row in rows):
                raise ValueError("covariance must be a variance or a 2 × 2 matrix")
            if not all(math.isfinite(value) for row in rows for value in row):
                raise ValueError("covariance must be finite")
            if rows[0][1] != rows[1][0] or rows[0][0] <= 0 or rows[0][0] * rows[1][1] <= rows[0][1] ** 2:
                raise ValueError("covariance must be symmetric and positive definite")
        return self


class MixtureFit(StageSettings):
    """Settings of an EM fit, shared by the teacher and by distillation."""

    samples: Annotated[int, Field(ge=2)] = 1000
    """Points the fit sees."""
    restarts: Count = 4
    """k-means++ starts; the fit with the highest likelihood is kept."""
    max_iterations: Count = 200
    tolerance: NonNegative = 1e-4
    """EM stops when the mean log-likelihood gains less than this, nats per point."""
    variance_floor: Positive = 1e-3
    """Smallest eigenvalue of a component's covariance."""


def check_enough_samples(where: str, components: int, samples: int) -> None:
    """Raise ValueError where a fit has fewer than 3 points for each component."""
    if samples < 3 * components:
        raise ValueError(
            f"{where}: {components} components need at least {3 * components} samples, 3 each, but samples is {samples}"
        )


class MixtureTeacher(MixtureFit):
    """The teacher p′: EM on samples of the truth."""

    samples: Annotated[int, Field(ge=2)] = 2000
    restarts: Count = 8
    components: Count | None = None
    """Components of the teacher; as many as the truth has modes where not given."""


class MixtureDistill(MixtureFit):
    """Distillation: sample the teacher at temperature τ (mode weights raised to 1/τ), fit the student."""

    kind: Literal["distill"]
    method: Literal["sequence"] = "sequence"
    temperature: Positive = 0.5
    """τ: below 1 sharpens the teacher."""
    components: Count = 5
    """Components of the student."""


class Preference(Settings):
    """How preference labels are made from rewards."""

    scale: NonNegative = 0.1
    """Bradley–Terry: P(first preferred) = σ((R₁ − R₂)/scale); 0 ranks without noise. Reward units."""
    flip_rate: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of labels turned round afterwards."""


class MixtureAlign(StageSettings):
    """Alignment towards the reward at price β, anchored to a reference."""

    only = {
        "pairs": ("dpo",),
        "pair_count": ("dpo",),
        "preference": ("dpo",),
        "samples": ("ppo",),
        "epochs": ("ppo",),
        "clip": ("ppo",),
        "steps": ("ppo", "dpo"),
        "learning_rate": ("ppo", "dpo"),
    }

    kind: Literal["align"]
    method: Literal["ppo", "dpo", "exact"] = "ppo"
    """`exact` is the optimum itself where that is a Gaussian mixture (log-density reward, one target), else its projection:
    the mixture whose components have the masses, means and covariances that the tilt gives them."""
    beta: Positive = 0.1
    """Price of KL, reward units per nat."""
    reference: Literal["self", "teacher"] = "self"
    """`self`: the model being aligned; `teacher`: the model before distillation."""
    steps: Count = 300
    """Sampling rounds of PPO, or gradient steps of DPO."""
    learning_rate: Positive = 0.05
    """Adam's at the first step; it falls linearly to 0."""
    samples: Annotated[int, Field(ge=2)] = 256
    """Points that PPO samples in a round."""
    epochs: Count = 2
    """Gradient steps that PPO takes on each round."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """PPO's bound on the probability ratio."""
    pairs: Literal["on_policy", "off_policy"] = "on_policy"
    """DPO's pairs: drawn from the reference, or from the truth."""
    pair_count: Count = 1000
    preference: Preference = Preference()


# ------------------------------------------------------------------------------------------------------- text


class TextWorld(Settings):
    """Completions of a prompt by real language models; the truth is the recipe's teacher itself."""

    kind: Literal["text"]
    prompt: Annotated[str, Field(min_length=1)] = "The"
    max_new_tokens: Count = 24
    """Length at which a completion is cut, tokens."""
    reward: str = "hedge"
    """A reward of `precede.lm.rewards`, by name; rewards lie in [0, 1]."""
    target_reward: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A completion is target when its reward is at least this."""
    evaluation_samples: Annotated[int, Field(ge=2)] = 128
    """Completions sampled from every model to measure it, and from the teacher to stand for the truth."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes CUDA, then MPS, then the CPU."""


class TextTeacher(StageSettings):
    """The teacher: a Hugging Face model folder or id, or `bundled:smollm2-135m-instruct`."""

    model: Annotated[str, Field(min_length=1)]


class Trainer(StageSettings):
    """Settings that both TRL trainers share."""

    learning_rate: Positive = 1e-4
    """At the first step; it falls linearly to 0."""
    batch_size: Count = 16
    """Completions, or pairs, per step."""
    epochs: Count = 1
    trainer: dict[str, Any] = {}
    """More arguments for the TRL config, passed through as they are."""


class TextDistill(Trainer):
    """Sequence distillation: sample the teacher at τ, fine-tune the student on the samples (TRL SFT)."""

    kind: Literal["distill"]
    method: Literal["sequence"] = "sequence"
    temperature: Positive = 0.7
    """τ: below 1 sharpens the teacher."""
    samples: Count = 256
    """Completions sampled from the teacher."""
    keep_layers: Annotated[int, Field(ge=2)]
    """Layers of the recipe's teacher that the student keeps, evenly spaced with the first and the last."""


class TextAlign(Trainer):
    """Direct preference optimisation on pairs sampled from the reference (TRL DPO)."""

    kind: Literal["align"]
    method: Literal["dpo"] = "dpo"
    pairs: Literal["on_policy"] = "on_policy"
    beta: Positive = 0.1
    """Price of KL, reward units per nat."""
    reference: Literal["self", "teacher"] = "self"
    """`self`: the model being aligned; `teacher`: the model before distillation."""
    samples: Annotated[int, Field(ge=2)] = 512
    """Completions sampled from the reference, of which the pairs are made."""
    pair_count: Count = 128
    """Pairs trained on, at most: one per completion of the pool that another one beats."""


class WorldSchema(Settings):
    """Which settings a world takes, kind by kind."""

    world: type[Settings]
    teacher: type[StageSettings]
    stages: dict[str, type[StageSettings]]


WORLDS: dict[str, WorldSchema] = {
    "mixture": WorldSchema(
        world=MixtureWorld, teacher=MixtureTeacher, stages={"align": MixtureAlign, "distill": MixtureDistill}
    ),
    "text": WorldSchema(world=TextWorld, teacher=TextTeacher, stages={"align": TextAlign, "distill": TextDistill}),
}

KINDS = ("sft", "align", "distill")

HEADLINE: dict[str, tuple[str, ...]] = {
    "sft": ("method",),
    "align": ("method", "pairs", "beta", "reference"),
    "distill": ("method", "temperature", "components"),
}
"""Settings that every result names, swept or not; a setting that the method does not read is null."""
