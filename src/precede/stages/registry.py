"""The methods of language-model stages, by name. A new one is a file with its record, and a line here."""

from __future__ import annotations

from precede.stages.distil import ON_POLICY, SEQUENCE, SFT, TOKEN
from precede.stages.kto import KTO
from precede.stages.method import Method
from precede.stages.preferences import DPO
from precede.stages.reinforce import GRPO, RLOO

METHODS: dict[str, Method] = {method.name: method for method in (SFT, DPO, KTO, RLOO, GRPO, SEQUENCE, TOKEN, ON_POLICY)}


def methods_of(kind: str) -> list[str]:
    """Names of the methods of a kind of stage."""
    return [name for name, method in METHODS.items() if method.kind == kind]
