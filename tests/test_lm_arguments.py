"""Which trainer arguments are ours: what a method's record refuses is what its stage gives its trainer; the rest is TRL's."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from precede.libraries import trainer_config
from precede.stages import distil, preferences, reinforce
from precede.stages import kto as kto_stage
from precede.stages.preferences import Pair
from precede.stages.registry import METHODS
from precede.stages.running import check_arguments
from test_lm_tiny import PROMPT, TEXT, settings, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", METHODS)
def test_the_refused_arguments_are_those_that_the_stage_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    train = "precede.stages.trainer.train"
    monkeypatch.setattr(train, lambda make, config, settings, device, **more: given.update(more) or [])
    student, teacher, words = tiny_model(), tiny_model(), tiny_tokenizer()
    matched = {"divergence": "forward_kl", "temperature": 1.0}
    rows: Any = [[4, 2]]
    if name in ("sft", "sequence"):
        distil.sequence(student, words, [PROMPT], rows, settings())
    elif name == "token":
        distil.token(student, teacher, words, [PROMPT], rows, settings(), **matched)
    elif name == "on_policy":
        distil.on_policy(student, teacher, words, [TEXT], settings(), max_new_tokens=2, **matched)
    elif name == "dpo":
        preferences.dpo(student, teacher, words, [PROMPT], [Pair([4, 2], [5, 2])], settings(), coefficient=0.1)
    elif name == "kto":
        kto_stage.kto(student, teacher, words, [PROMPT], [Pair([4, 2], [5, 2])], settings(), beta=0.1)
    else:
        more = {"beta": 0.1, "max_new_tokens": 2}
        reinforce.reinforce(name, student, Path("reference"), words, [TEXT], lambda **_: [], settings(), **more)
    assert set(given) == set(METHODS[name].fixed)
    for argument in given:
        with pytest.raises(ValueError, match=rf"^trainer\.{argument} cannot be passed through; it follows from the st"):
            check_arguments(METHODS[name], {argument: given[argument]}, CPU, "auto")


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_arguments_that_trl_takes(name: str) -> None:
    """Those of every shape of a world; and a default is no argument that the method fixes."""
    method = METHODS[name]
    known = {field.name for field in fields(trainer_config(method.trainer))}
    for shape, defaults in method.defaults.items():
        check_arguments(method, defaults["trainer"], CPU, "auto")
        assert set(defaults["trainer"]) <= known - set(method.fixed), shape


@pytest.mark.parametrize(
    ("name", "extra", "sentence"),
    [
        (
            "dpo",
            {"warmup_step": 1},
            r"^trainer\.warmup_step is no argument of TRL's DPOConfig; did you mean 'warmup_ste",
        ),
        ("sequence", {"output_dir": "here"}, r"^trainer\.output_dir cannot be passed through"),
        ("dpo", {"learning_rate": "fast"}, r"^trainer\.learning_rate is 'fast': input should be a valid number"),
        ("dpo", {"learning_rate": 0.0}, r"^trainer\.learning_rate must be above 0, not 0\.0$"),
        ("rloo", {"num_train_epochs": -1}, r"^trainer\.num_train_epochs must be above 0, not -1$"),
        ("rloo", {"temperature": 0}, r"^trainer\.temperature must be above 0, not 0$"),
        ("sft", {"lr_scheduler_type": "steep"}, r"^trainer: .*steep"),
        ("rloo", {"optim": "steep"}, r"^trainer: .*steep"),
        ("dpo", {"optim": "galore_adamw"}, r"^trainer: You need to install `galore_torch`"),
        ("dpo", {"optim_args": "much"}, r"^trainer: not enough values"),
        ("grpo", {"lr_scheduler_type": "warmup_stable_decay"}, r"^trainer: .*num_decay_steps"),
        ("dpo", {"lr_scheduler_kwargs": {"steep": 1}}, r"^trainer: .*unexpected keyword argument 'steep'"),
        (
            "dpo",
            {"use_liger_kernel": True},
            r"^trainer\.use_liger_kernel needs the package 'liger_kernel'; run `pip install",
        ),
        (
            "kto",
            {"eval_strategy": "steps"},
            r"^trainer\.eval_strategy cannot be passed through; a stage has no rows to",
        ),
    ],
)
def test_what_trl_does_not_take_is_one_sentence(name: str, extra: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        check_arguments(METHODS[name], extra, CPU, "auto")
    assert "\n" not in str(caught.value)


def test_what_is_compiled_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"^trainer\.torch_compile needs a compiler, one of .*clang\+\+"):
        check_arguments(METHODS["dpo"], {"torch_compile": True}, CPU, "auto")
