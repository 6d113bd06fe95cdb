"""Settings of the mixture world."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from precede.settings.base import (
    LEAST,
    MOST,
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
    modes: Annotated[Few, Field(ge=2)] = 8
    radius: Positive = 1.0
    """Grid spacing, or radius of the ring."""
    covariance: Positive | list[list[float]] = 0.025
    """Variance of every mode (times I), or a 2 × 2 covariance."""
    zipf_exponent: Exponent = 1.0
    """Weights of the modes that are not targets fall as rank^−exponent."""
    target_modes: Annotated[list[int], Field(min_length=1)] = [7]
    """Which modes are targets, counted from 0."""
    target_weight: Share = 0.02
    """Total weight of the target modes under the truth."""
    reward: MixtureReward = MixtureReward()

    @model_validator(mode="after")
    def _check(self) -> MixtureWorld:
        if self.layout == "grid" and self.modes != 8:
            raise ValueError(f"layout 'grid' has 8 modes, not {self.modes}; for another number use layout 'ring'")
        check_targets(self.target_modes, self.modes)
        if isinstance(self.covariance, list):
            rows = self.covariance
            if len(rows) != 2 or any(len(row) != 2 for row in rows):
                raise ValueError("covariance must be a variance or a 2 × 2 matrix")
            if not all(abs(value) <= MOST for row in rows for value in row):
                raise ValueError(f"covariance must be finite, of values up to {MOST:g}")
            (a, b), (c, d) = rows
            if b != c or a <= 0 or (a + d - math.hypot(a - d, 2 * b)) / 2 < LEAST:
                raise ValueError(f"covariance must be symmetric and positive definite, of eigenvalues from {LEAST:g}")
        return self


class MixtureFit(StageSettings):
    """Settings of an EM fit, shared by the teacher and by distillation."""

    samples: Annotated[Count, Field(ge=2)] = 1000
    """Points the fit sees."""
    restarts: Few = 4
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

    samples: Annotated[Count, Field(ge=2)] = 2000
    restarts: Few = 8
    components: Few | None = None
    """Components of the teacher; as many as the truth has modes where not given."""


class MixtureDistill(MixtureFit):
    """Distillation: sample the teacher at temperature τ (mode weights raised to 1/τ), fit the student."""

    kind: Literal["distill"]
    method: Literal["sequence"] = "sequence"
    temperature: Positive = 0.5
    """τ: below 1 sharpens the teacher."""
    extrapolation: Extrapolation = 1.0
    """λ: what is distilled is π^λ·π_ref^(1−λ) of an aligned π and the model π_ref that it was anchored to, by the law of the
    tilt the alignment at the price β/λ of KL. Below 1 gives back recall, above 1 goes on beyond the alignment; only for a
    distillation right behind an alignment."""
    components: Few = 5
    """Components of the student."""


class MixtureAlign(StageSettings):
    """Alignment towards the reward at price β, anchored to a reference."""

    only: ClassVar = {
        **dict.fromkeys(("pairs", "pair_count", "preference"), ("dpo",)),
        **dict.fromkeys(("samples", "epochs", "clip"), ("ppo",)),
        **dict.fromkeys(("steps", "learning_rate"), ("ppo", "dpo")),
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
    samples: Annotated[Count, Field(ge=2)] = 256
    """Points that PPO samples in a round."""
    epochs: Few = 2
    """Gradient steps that PPO takes on each round."""
    clip: Share = 0.2
    """PPO's bound on the probability ratio."""
    pairs: Literal["on_policy", "off_policy"] = "on_policy"
    """DPO's pairs: drawn from the reference, or from the truth."""
    pair_count: Count = 1000
    preference: Preference = Preference()
