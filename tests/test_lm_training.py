"""Distillation and DPO by the real TRL trainers, on tiny models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from precede.lm.align import Pair, align, gap_at_start, make_pairs

from precede.lm.distil import distil
from precede.lm.logprobs import completion_logps
from precede.lm.sampling import sample
from precede.lm.training import TrainerSettings
from test_lm_tiny import tiny_model, tiny_tokenizer

PROMPT = [1, 3]


def settings(**changes: Any) -> TrainerSettings:
    values: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 8, "epochs": 1, "seed": 0, "extra": {}}
    return TrainerSettings(**(values | changes))


def rows_of(model: Any, count: int = 64, seed: int = 1) -> list[list[int]]:
    return sample(model, tiny_tokenizer(), PROMPT, count, max_new_tokens=6, seed=seed)


def pairs_of(model: Any) -> list[Pair]:
    rows = rows_of(model)
    return make_pairs(rows, [float(bool({6, 7} & set(row))) for row in rows], 32, seed=2)


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# ------------------------------------------------------------------------------------------------ distillation


def test_first_loss_is_the_mean_nats_per_completion_token() -> None:
    """Oracle: our own scorer. The prompt is not learned, every completion token is, the EOS too."""
    student, rows = tiny_model(seed=3), rows_of(tiny_model())
    expected = -completion_logps(student, PROMPT, rows).sum() / sum(map(len, rows))
    log = distil(student, tiny_tokenizer(), PROMPT, rows, settings(batch_size=64))
    assert log[0]["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_distillation_learns_the_teacher() -> None:
    student, rows = tiny_model(seed=3), rows_of(tiny_model(), count=256)
    held_out = rows_of(tiny_model(), count=128, seed=9)
    before = completion_logps(student, PROMPT, held_out).mean()
    log = distil(student, tiny_tokenizer(), PROMPT, rows, settings(epochs=3))
    assert completion_logps(student, PROMPT, held_out).mean() > before + 2
    assert len(log) == 3 * 256 / 8
    assert log[-1]["loss"] < log[0]["loss"]


def test_stopping_is_learned_though_pad_is_eos() -> None:
    student = tiny_model(seed=3)
    distil(student, tiny_tokenizer(), PROMPT, [[8, 2]] * 64, settings(epochs=6))
    assert sample(student, tiny_tokenizer(), PROMPT, 20, max_new_tokens=6, temperature=0.1, seed=1) == [[8, 2]] * 20


# ------------------------------------------------------------------------------------------------------- pairs


def test_pairs_have_a_better_chosen() -> None:
    rows = [[index] for index in range(20)]
    rewards = [0.0] * 8 + [0.5] * 8 + [1.0] * 4
    pairs = make_pairs(rows, rewards, 100, seed=0)
    assert len(pairs) == 16
    assert {pair.rejected[0] for pair in pairs} == set(range(16))
    assert all(rewards[pair.chosen[0]] > rewards[pair.rejected[0]] for pair in pairs)
    assert make_pairs(rows, rewards, 100, seed=0) == pairs
    assert make_pairs(rows, rewards, 100, seed=1) != pairs
    assert make_pairs(rows, rewards, 5, seed=0) == pairs[:5]


def test_chosen_are_drawn_evenly_from_all_that_are_better() -> None:
    rows = [[index] for index in range(3000)]
    pairs = make_pairs(rows, [0.0] * 2996 + [1.0] * 4, 3000, seed=0)
    shares = [sum(pair.chosen == [index] for pair in pairs) / len(pairs) for index in range(2996, 3000)]
    assert shares == pytest.approx([0.25] * 4, abs=4 * math.sqrt(0.25 * 0.75 / 2996))


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_no_pairs_is_one_sentence(reward: float) -> None:
    expected = rf"^no preference pairs: all 7 completions .* the same reward \({reward:g}\); raise align\.samples"
    with pytest.raises(ValueError, match=expected):
        make_pairs([[1]] * 7, [reward] * 7, 10, seed=0)


# --------------------------------------------------------------------------------------------------------- DPO


def test_dpo_starts_at_log_2_and_moves_apart() -> None:
    policy, reference = tiny_model(), tiny_model()
    pairs = pairs_of(reference)
    assert gap_at_start(policy, reference, PROMPT, pairs) == 0
    before = weights(reference)
    log = align(policy, reference, tiny_tokenizer(), PROMPT, pairs, settings(epochs=4), beta=0.1)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["rewards/margins"] > 0.2
    assert torch.equal(weights(reference), before)
    assert gap_at_start(policy, reference, PROMPT, pairs) > 0.2


def test_dpo_is_equation_7_of_our_log_probabilities() -> None:
    """A reference that is another model, one full batch: loss, rewards and log-probabilities by our own scorer."""
    policy, reference = tiny_model(seed=0), tiny_model(seed=1)
    pairs = pairs_of(reference)
    ours = {}
    for name, rows in (("chosen", [pair.chosen for pair in pairs]), ("rejected", [pair.rejected for pair in pairs])):
        ours[name] = (completion_logps(policy, PROMPT, rows)[0], completion_logps(reference, PROMPT, rows)[0])
    ratios = {name: own - anchored for name, (own, anchored) in ours.items()}
    assert gap_at_start(policy, reference, PROMPT, pairs) == pytest.approx(
        max(float(ratio.abs().max()) for ratio in ratios.values())
    )
    log = align(policy, reference, tiny_tokenizer(), PROMPT, pairs, settings(batch_size=len(pairs)), beta=0.3)
    assert len(log) == 1
    assert log[0]["loss"] == pytest.approx(-F.logsigmoid(0.3 * (ratios["chosen"] - ratios["rejected"])).mean().item())
    for name, (own, _) in ours.items():
        assert log[0][f"logps/{name}"] == pytest.approx(own.mean().item(), abs=1e-4)
        assert log[0][f"rewards/{name}"] == pytest.approx(0.3 * ratios[name].mean().item(), abs=1e-4)


# --------------------------------------------------------------------------------------------------- both of them


def run(method: str, **changes: Any) -> tuple[Any, list[dict[str, float]]]:
    model = tiny_model(seed=3 if method == "distil" else 0, attention_dropout=0.1)
    if method == "distil":
        return model, distil(model, tiny_tokenizer(), PROMPT, rows_of(tiny_model()), settings(**changes))
    pairs = pairs_of(tiny_model())
    return model, align(model, tiny_model(), tiny_tokenizer(), PROMPT, pairs, settings(**changes), beta=0.1)


@pytest.mark.parametrize("method", ["distil", "align"])
def test_same_seed_same_weights(method: str) -> None:
    torch.manual_seed(1)
    first, log = run(method)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, again = run(method)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(first), weights(second))
    assert log == again
    other, _ = run(method, seed=1)
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("method", ["distil", "align"])
def test_divergence_stops_with_step_and_metric(method: str) -> None:
    with pytest.raises(
        ValueError, match=r"^training diverged: \S+ is (nan|inf) at step \d of \d+; lower learning_rate"
    ):
        run(method, learning_rate=1e30, extra={"max_grad_norm": 0.0})


def test_a_loss_that_is_not_a_number_is_not_averaged_away() -> None:
    student = tiny_model(seed=3)
    with torch.no_grad():
        student.model.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match=r"^training diverged: loss is nan at step 1 of 8; lower learning_rate"):
        distil(student, tiny_tokenizer(), PROMPT, rows_of(tiny_model()), settings())


@pytest.mark.parametrize("method", ["distil", "align"])
def test_more_arguments_are_passed_through(method: str) -> None:
    _, log = run(method, extra={"max_steps": 2, "lr_scheduler_type": "constant"})
    assert [entry["learning_rate"] for entry in log] == [3e-3, 3e-3]
    with pytest.raises(ValueError, match=r"trainer\.learning_rate cannot be passed through"):
        run(method, extra={"learning_rate": 1.0})
    with pytest.raises(ValueError, match=r"^trainer: .*unexpected keyword argument 'no_such_thing'"):
        run(method, extra={"no_such_thing": 1})


@pytest.mark.parametrize("method", ["distil", "align"])
def test_silent_and_tidy(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(method)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
