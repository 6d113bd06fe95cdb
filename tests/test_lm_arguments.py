"""Which trainer arguments are ours: the list that recipes are checked by is what the stages give their trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from precede.stages import distil, preferences, reinforce
from precede.stages.arguments import FIXED
from precede.stages.preferences import Pair
from test_lm_tiny import PROMPT, TEXT, settings, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("method", FIXED)
def test_the_refused_arguments_are_those_that_the_stage_gives(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    for module in (distil, preferences, reinforce):
        monkeypatch.setattr(module, "train", lambda make, config, settings, device, **more: given.update(more) or [])
    student, teacher, words = tiny_model(), tiny_model(), tiny_tokenizer()
    matched = {"divergence": "forward_kl", "temperature": 1.0}
    rows: Any = [[4, 2]]
    if method == "sequence":
        distil.sequence(student, words, [PROMPT], rows, settings())
    elif method == "token":
        distil.token(student, teacher, words, [PROMPT], rows, settings(), **matched)
    elif method == "on_policy":
        distil.on_policy(student, teacher, words, [TEXT], settings(), max_new_tokens=2, **matched)
    elif method == "dpo":
        preferences.dpo(student, teacher, words, [PROMPT], [Pair([4, 2], [5, 2])], settings(), coefficient=0.1)
    else:
        more = {"beta": 0.1, "epochs": 1, "clip": 0.2, "group": 2, "max_new_tokens": 2}
        reinforce.reinforce(method, student, Path("reference"), words, [TEXT], lambda **_: [], settings(), **more)
    assert set(given) == set(FIXED[method])
