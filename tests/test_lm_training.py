"""What all trainers share: seeds, steps, arithmetic, silence, and the stop when training diverges."""

from __future__ import annotations

import importlib
import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from precede.files import damage
from precede.libraries import TILES, datasets, tiles, trl
from precede.models.load import save
from precede.seeding import stream
from precede.stages import distil
from precede.stages.context import Context
from precede.stages.preferences import Pair, dpo, make_pairs
from precede.stages.registry import METHODS as RECORDS
from precede.stages.reinforce import reinforce
from precede.stages.running import settings_of
from precede.stages.trainer import SECONDS, Checkpoints, Log, in_bf16, last_checkpoint, train
from test_lm_tiny import (
    LENGTH,
    PROMPT,
    TEXT,
    rows_of,
    settings,
    stopping_model,
    tiny_model,
    tiny_tokenizer,
    weights,
)

METHODS = ("sequence", "token", "on_policy", "dpo", "rloo", "grpo")
FOLDER: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def reference(tmp_path_factory: pytest.TempPathFactory) -> None:
    FOLDER["reference"] = tmp_path_factory.mktemp("reference") / "model"
    save(stopping_model(), tiny_tokenizer(), FOLDER["reference"])


def pairs_of(model: Any) -> list[Pair]:
    rows = rows_of(model)
    return make_pairs(rows, [float(bool({6, 7, 15} & set(row))) for row in rows], seed=2)


def toy_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(6 in row or 15 in row) for row in completion_ids]


def run(method: str, model: Any = None, **changes: Any) -> tuple[Any, Log]:
    """Train a tiny model with `method`; 8 steps of 8 rows, or as `changes` say."""
    teacher, tokenizer, training = stopping_model(), tiny_tokenizer(), settings(**changes)
    if model is None:
        model = tiny_model(seed=3) if method in METHODS[:3] else stopping_model()
    matched = {"divergence": "jensen_shannon", "temperature": 0.7}
    if method == "sequence":
        return model, distil.sequence(model, tokenizer, [PROMPT] * 64, rows_of(teacher), training)
    if method == "token":
        return model, distil.token(model, teacher, tokenizer, [PROMPT] * 64, rows_of(teacher), training, **matched)
    if method == "on_policy":
        prompts = [TEXT] * training.batch_size
        return model, distil.on_policy(model, teacher, tokenizer, prompts, training, max_new_tokens=LENGTH, **matched)
    if method == "dpo":
        pairs = pairs_of(teacher)
        return model, dpo(model, teacher, tokenizer, [PROMPT] * len(pairs), pairs, training, coefficient=0.1)
    extra = {"num_generations": training.batch_size, **(training.extra or {})}
    prompts, training = [TEXT] * extra.get("gradient_accumulation_steps", 1), replace(training, extra=extra)
    more = {"beta": 0.1, "max_new_tokens": LENGTH}
    return model, reinforce(method, model, FOLDER["reference"], tokenizer, prompts, toy_reward, training, **more)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_weights(method: str) -> None:
    """Whatever the global random state is; and that is left as it was."""
    torch.manual_seed(1)
    first, log = run(method, steps=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, again = run(method, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(first), weights(second))
    timeless = [
        [{name: value for name, value in entry.items() if name != "step_time"} for entry in one] for one in (log, again)
    ]
    assert timeless[0] == timeless[1]
    other, _ = run(method, steps=3, seed=1)
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_goes_on_ends_as_one_that_was_not_stopped(method: str, tmp_path: Path) -> None:
    """Weights and everything that is logged, running sums of tokens included; checkpoints are sealed, with the time so far."""
    every_two = {"save_steps": 2}
    whole, log = run(method, steps=6, extra=every_two, checkpoints=Checkpoints(tmp_path / "whole", tmp_path))

    def stop(step: int, logs: Any) -> None:
        if step == 5:
            raise InterruptedError

    killed = Checkpoints(tmp_path / "killed", tmp_path, logged=stop, spent=lambda: {"wall_seconds": 7.0})
    with pytest.raises(InterruptedError):
        run(method, steps=6, extra=every_two, checkpoints=killed)
    found = last_checkpoint(killed.folder)
    assert found == str(killed.folder / "checkpoint-4")
    assert damage(Path(found)) is None
    assert json.loads((Path(found) / SECONDS).read_text()) == {"wall_seconds": 7.0}
    for _ in range(2):  # the second time as after a kill behind the last step
        again, resumed = run(method, steps=6, extra=every_two, checkpoints=Checkpoints(tmp_path / "killed", tmp_path))
        assert torch.equal(weights(whole), weights(again))
        assert resumed == log
    assert len(log) == 6


@pytest.mark.parametrize("method", METHODS)
def test_as_many_steps_as_asked(method: str) -> None:
    """11 steps of 8 are more than one pass over 64 rows; the learning rate falls linearly over them."""
    _, log = run(method, steps=11)
    assert [entry["step"] for entry in log] == list(range(1, 12))
    assert [entry["learning_rate"] for entry in log] == pytest.approx([3e-3 * (11 - step) / 11 for step in range(11)])


@pytest.mark.parametrize("method", METHODS)
def test_divergence_stops_with_step_and_metric(method: str) -> None:
    with pytest.raises(
        ValueError, match=r"^training diverged: \S+ is (nan|-?inf) at step \d of \d+; lower learning_rate"
    ):
        run(method, learning_rate=1e30, extra={"max_grad_norm": 0.0})


@pytest.mark.parametrize("method", ["sequence", "token", "dpo"])
def test_a_loss_that_is_not_a_number_is_not_averaged_away(method: str) -> None:
    model = stopping_model(seed=3)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match=r"^training diverged: loss is nan at step 1 of 8; lower learning_rate"):
        run(method, model)


@pytest.mark.parametrize("method", METHODS)
def test_more_arguments_are_passed_through(method: str) -> None:
    _, log = run(method, steps=2, extra={"lr_scheduler_type": "constant"})
    assert [entry["learning_rate"] for entry in log] == [3e-3, 3e-3]
    with pytest.raises(
        ValueError, match=r"^trainer\.warmup_step is no argument of TRL's \w+Config; did you mean 'warmup_steps'"
    ):
        run(method, extra={"warmup_step": 1})


@pytest.mark.parametrize(("method", "name"), [(m, n) for m in METHODS for n in ("output_dir", *RECORDS[m].fixed)])
def test_what_the_stage_says_cannot_be_passed_through(method: str, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^trainer\.{name} cannot be passed through; it"):
        run(method, extra={name: 1})


def test_a_recipes_arguments_are_those_of_the_trainer(tmp_path: Path) -> None:
    """Everything under `trainer` reaches TRL, by its name there; what is left out has the seed of the stage's own stream."""
    given = {
        "learning_rate": 0.0123,
        "per_device_train_batch_size": 3,
        "max_steps": 2,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 1,
        "optim": "sgd",
    }
    context = Context(
        "align", 5, tiny_tokenizer(), [], None, 4, 8, torch.device("cpu"), "float32", Checkpoints(tmp_path, tmp_path)
    )
    seen: dict[str, Any] = {}
    data = datasets().Dataset.from_dict({"input_ids": [[1, 3, 8]] * 12, "labels": [[-100, 3, 8]] * 12})

    def make(args: Any) -> Any:
        seen.update({name: getattr(args, name) for name in (*given, "seed", "num_train_epochs")})
        return trl().SFTTrainer(tiny_model(1), args=args, train_dataset=data, processing_class=tiny_tokenizer())

    for extra, expected in (
        (given, given | {"seed": stream(5, "align", "training")}),
        ({name: given[name] for name in list(given)[:2]} | {"seed": 7, "num_train_epochs": 2}, {"seed": 7}),
    ):
        training = settings_of({"trainer": extra, "lora": None}, context)
        arguments = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
        log = train(make, trl().SFTConfig, replace(training, checkpoints=None), torch.device("cpu"), **arguments)
        assert {name: seen[name] for name in (*extra, *expected)} == {**extra, **expected}
        assert log[-1]["step"] == (2 if "max_steps" in extra else 2 * 12 / 3)


@pytest.mark.parametrize("method", METHODS)
def test_silent_and_tidy(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(method, steps=2)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", [method for method in METHODS if method != "on_policy"])
def test_bf16_trains_in_bf16_and_leaves_weights_in_fp32(method: str) -> None:
    """Not on_policy: TRL 1.16's DistillationTrainer computes outside the autocast that accelerate puts around a model."""
    moved = {}
    for dtype in ("float32", "bfloat16"):
        model, log = run(method, steps=2, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert all(math.isfinite(value) for entry in log for value in entry.values())
        moved[dtype] = weights(model)
    assert not torch.equal(moved["bfloat16"], moved["float32"])


@pytest.mark.parametrize(("dtype", "expected"), [("auto", False), ("float32", False), ("bfloat16", True)])
def test_dtype_is_the_trainers(dtype: str, expected: bool) -> None:
    """Read off the arguments of a real trainer, and off what its forward pass computes in."""
    model, seen = tiny_model(layers=2), dict[str, Any]()
    data = datasets().Dataset.from_dict({"input_ids": [[1, 3, 8]] * 8, "labels": [[-100, 3, 8]] * 8})
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.update(dtype=output.dtype))

    def make(args: Any) -> Any:
        seen["bf16"] = args.bf16
        return trl().SFTTrainer(model, args=args, train_dataset=data, processing_class=tiny_tokenizer())

    arguments = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    log = train(make, trl().SFTConfig, settings(steps=2, dtype=dtype), model.device, **arguments)
    assert len(log) == 2
    assert seen == {"bf16": expected, "dtype": torch.bfloat16 if expected else torch.float32}


def test_bf16_where_the_device_lacks_it() -> None:
    assert in_bf16("bfloat16", torch.device("cpu"))
    with pytest.raises(
        ValueError, match=r"^dtype bfloat16 is not supported on the device 'mps'; use 'auto' or 'float32'"
    ):
        in_bf16("bfloat16", torch.device("mps"))
    assert not in_bf16("auto", torch.device("mps"))


@pytest.mark.parametrize("method", ["sequence", "dpo", "rloo", "on_policy"])
def test_tiles_change_speed_and_nothing_else(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's tiles are as wide as the vocabulary while a stage trains, as they were afterwards, and weights are the same."""
    places = [(importlib.import_module(module), name) for module, name in TILES]
    before = [getattr(module, name) for module, name in places]
    with tiles(32):
        assert [getattr(module, name) for module, name in places] == [32, 32]
    assert [getattr(module, name) for module, name in places] == before
    assert min(before) > 32
    narrow, log = run(method, steps=2)
    monkeypatch.setattr("precede.stages.trainer.tiles", lambda vocabulary: nullcontext())
    wide, same = run(method, steps=2)
    assert torch.equal(weights(narrow), weights(wide))
    assert log == same


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_batches_can_be_accumulated(method: str) -> None:
    """Two batches of 8 a step: 2 × 8 × tokens of prompt and completion are sampled in each."""
    _, log = run(method, steps=2, extra={"gradient_accumulation_steps": 2})
    assert len(log) == 2
    assert 16 * (len(PROMPT) + 1) <= log[0]["num_tokens"] <= 16 * (len(PROMPT) + LENGTH)
