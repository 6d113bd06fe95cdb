"""What the settings of all worlds share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

LEAST, MOST, MOST_OF_A_KIND = 1e-9, 1e9, 10_000_000
"""Ranges that no use reaches and no arithmetic here leaves: of quantities, and of what is counted."""
Positive = Annotated[float, Field(ge=LEAST, le=MOST, allow_inf_nan=False)]
Extrapolation = Annotated[float, Field(ge=LEAST, le=100, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Exponent = Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)]
"""Of Zipf's law."""
Share = Annotated[float, Field(ge=LEAST, lt=1)]
Count = Annotated[int, Field(ge=1, le=MOST_OF_A_KIND)]
Few = Annotated[int, Field(ge=1, le=1000)]
"""Of what a program makes one by one: layers, heads, modes, components."""


class Settings(BaseModel):
    """A block of settings: unknown keys are errors, values are immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StageSettings(Settings):
    """A stage: a block of settings with a kind. `active` drops what the chosen method does not read."""

    only: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Setting → the methods that read it; a setting that is not named here is read by all."""

    def active(self, shape: str = "") -> dict[str, Any]:
        """The settings that change the stage's outcome, as JSON values (they enter the stage's key).

        `shape` is that of the world, where defaults follow from it (`precede.stages.method.Method.defaults`).
        """
        values = self.model_dump(mode="json")
        method = values.get("method")
        return {k: v for k, v in values.items() if k not in self.only or method in self.only[k]}


def check_targets(targets: list[int], modes: int) -> None:
    """Raise ValueError where `targets` are not distinct modes, or are all of them."""
    if len(set(targets)) != len(targets):
        raise ValueError("target_modes names a mode twice")
    if not all(0 <= mode < modes for mode in targets):
        raise ValueError(f"target_modes must lie between 0 and {modes - 1}")
    if len(targets) == modes:
        raise ValueError("target_modes names every mode; at least one mode must not be a target")


class Preference(Settings):
    """How preference labels are made from rewards."""

    scale: NonNegative = 0.1
    """Bradley–Terry: P(first preferred) = σ((R₁ − R₂)/scale); 0 ranks without noise. Reward units."""
    flip_rate: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of labels turned round afterwards."""

    @model_validator(mode="after")
    def _check(self) -> Preference:
        if 0 < self.scale < LEAST:
            raise ValueError(f"scale must be 0 or at least {LEAST:g}, not {self.scale:g}")
        return self
