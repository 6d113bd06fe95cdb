"""RLOO and GRPO by the real trainers on tiny models, against float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from precede.models.load import save
from precede.stages.reinforce import reinforce
from precede.stages.trainer import Log
from test_lm_tiny import (
    LENGTH,
    PROMPT,
    TEXT,
    doubled,
    gradient,
    one_sgd_step,
    relative_error,
    row_logps,
    rows_of,
    settings,
    stopping_model,
    tiny_folder,
    tiny_model,
    tiny_tokenizer,
    weights,
)

METHODS = ("rloo", "grpo")


def toy_reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of a completion's tokens that are even; 0.78 of them at the start."""
    return [sum(token % 2 == 0 for token in row) / len(row) for row in completion_ids]


class Recorder:
    """A reward that keeps what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []

    def __call__(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        self.batches.append([list(row) for row in completion_ids])
        return toy_reward(completion_ids)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """`stopping_model(seed)` by seed, as folders; the policy is seed 0."""
    root = tmp_path_factory.mktemp("references")
    for seed in (0, 1):
        save(stopping_model(seed), tiny_tokenizer(), root / str(seed))
    return {seed: root / str(seed) for seed in (0, 1)}


def run(method: str, policy: Any, reference: Path, training: Any, reward: Any = toy_reward, **changes: Any) -> Log:
    """`changes` are β and arguments of TRL's."""
    beta = changes.pop("beta", 0.1)
    extra = {"num_generations": training.batch_size, **(training.extra or {}), **changes}
    prompts = [TEXT] * extra.get("gradient_accumulation_steps", 1)
    given = replace(training, extra=extra)
    return reinforce(
        method, policy, reference, tiny_tokenizer(), prompts, reward, given, beta=beta, max_new_tokens=LENGTH
    )


def kl(policy: Any, reference: Any) -> float:
    """KL(policy ‖ reference), nats per completion, over the policy's own samples."""
    rows = rows_of(policy, count=256, seed=9)
    with torch.no_grad():
        own, anchored = (torch.cat(row_logps(model, rows)).sum() for model in (policy, reference))
    return float(own - anchored) / 256


@pytest.mark.parametrize("method", METHODS)
def test_kl_at_the_first_step_is_0_for_the_models_own_folder(method: str, folders: dict[int, Path]) -> None:
    log = run(method, stopping_model(), folders[0], settings(steps=1))
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_kl_at_the_first_step_is_that_of_our_scorer(method: str, folders: dict[int, Path]) -> None:
    """The reference is the folder's model. RLOO logs the mean log-ratio per token, GRPO Schulman's k3 = eʳ − 1 − r."""
    recorder, policy, reference = Recorder(), stopping_model(), stopping_model(1)
    log = run(method, policy, folders[1], settings(steps=1, batch_size=32, learning_rate=1e-9), recorder)
    (rows,) = recorder.batches
    assert len(rows) == 32
    assert {row[-1] == 2 for row in rows} == {True, False}
    assert all(2 not in row[:-1] and len(row) <= LENGTH for row in rows)
    with torch.no_grad():
        own, anchored = (torch.cat(row_logps(doubled(model), rows)) for model in (policy, reference))
    ratio = own - anchored
    per_token = ratio if method == "rloo" else (-ratio).exp() - 1 + ratio
    assert abs(float(per_token.mean())) > 0.1
    assert log[0]["kl"] == pytest.approx(float(per_token.mean()), rel=1e-5, abs=1e-4)
    assert log[0]["num_tokens"] == 32 * len(PROMPT) + sum(map(len, rows))
    assert log[0]["reward"] == pytest.approx(sum(toy_reward(rows)) / 32, rel=1e-5)


def test_rloo_step_is_the_exact_gradient(folders: dict[int, Path]) -> None:
    """SGD: Δθ = −lr·∇ of −mean(A·log π(x)), A = R − β·log(π/π_ref)(x) minus the mean of the other completions'."""
    recorder, policy, beta, count = Recorder(), stopping_model(), 0.3, 16
    start, own, anchored = weights(policy), doubled(policy), doubled(stopping_model(1))
    run("rloo", policy, folders[1], one_sgd_step(1e-1, batch_size=count), recorder, beta=beta)
    (rows,) = recorder.batches
    logps = torch.stack([part.sum() for part in row_logps(own, rows)])
    with torch.no_grad():
        reference = torch.stack([part.sum() for part in row_logps(anchored, rows)])
        values = torch.tensor(toy_reward(rows), dtype=torch.float64) - beta * (logps.detach() - reference)
        advantages = torch.stack([values[i] - (values.sum() - values[i]) / (count - 1) for i in range(count)])
    expected = -1e-1 * gradient(-(advantages * logps).mean(), own)
    assert relative_error(weights(policy) - start, expected) < 1e-4


def test_grpo_step_is_the_exact_gradient(folders: dict[int, Path]) -> None:
    """SGD: −mean over completions of Σ_t [A·ρ_t − β·ρ_t·k3_t], A = R − mean R, over the longest length; no other division.

    ρ_t = π/π_old is 1 in value; in the gradient it makes ρ·k3 an unbiased estimate of that of the token's reverse KL.
    """
    recorder, policy, beta, count = Recorder(), stopping_model(), 0.3, 16
    start, own, anchored = weights(policy), doubled(policy), doubled(stopping_model(1))
    run("grpo", policy, folders[1], one_sgd_step(1e-1, batch_size=count), recorder, beta=beta)
    (rows,) = recorder.batches
    rewards = torch.tensor(toy_reward(rows), dtype=torch.float64)
    with torch.no_grad():
        references = row_logps(anchored, rows)
    losses = []
    for logps, reference, advantage in zip(row_logps(own, rows), references, rewards - rewards.mean(), strict=True):
        ratio, gap = (logps - logps.detach()).exp(), reference - logps
        losses.append(-(ratio * (advantage - beta * (gap.exp() - 1 - gap))).sum())
    expected = -1e-1 * gradient(torch.stack(losses).mean() / LENGTH, own)
    assert relative_error(weights(policy) - start, expected) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_reward_rises_and_beta_is_the_price_of_kl(method: str, folders: dict[int, Path]) -> None:
    """A low price lets the model go where the reward is, a high one holds it at the reference."""
    reference, moved = stopping_model(), {}
    for beta in (0.02, 5.0):
        policy = stopping_model()
        log = run(method, policy, folders[0], settings(learning_rate=3e-4, steps=30, batch_size=64), beta=beta)
        rows = rows_of(policy, count=256, seed=9)
        moved[beta] = kl(policy, reference), sum(toy_reward(rows)) / 256
        assert all(abs(entry["reward"]) <= 1 for entry in log)
    start = sum(toy_reward(rows_of(reference, count=256, seed=9))) / 256
    assert moved[0.02][1] > start + 0.12
    assert moved[0.02][0] > 0.5
    assert moved[5.0][0] < 0.05
    assert abs(moved[5.0][1] - start) < 0.05


def test_a_reference_behind_a_distillation_is_a_pull_towards_it(folders: dict[int, Path]) -> None:
    """At a huge price and with a reward that tells nothing, the policy goes towards a reference that is another model."""
    policy, reference = stopping_model(), stopping_model(1)
    before = kl(policy, reference)
    run(
        "rloo",
        policy,
        folders[1],
        settings(steps=40, batch_size=16),
        lambda completion_ids, **_: [0.0] * len(completion_ids),
        beta=10.0,
    )
    assert kl(policy, reference) < 0.7 * before


@pytest.mark.parametrize("method", METHODS)
def test_epochs_take_more_steps_on_the_same_completions(method: str, folders: dict[int, Path]) -> None:
    recorder = Recorder()
    log = run(method, stopping_model(), folders[0], settings(steps=6), recorder, num_iterations=2)
    assert len(log) == 6
    assert [len(batch) for batch in recorder.batches] == [8, 8, 8]
    assert [entry["learning_rate"] for entry in log] == pytest.approx([3e-3 * (6 - step) / 6 for step in range(6)])


@pytest.mark.parametrize("method", METHODS)
def test_clip_binds_on_the_second_pass_alone(method: str, folders: dict[int, Path]) -> None:
    training = settings(steps=2, learning_rate=1e-4)
    for clip, binds in ((1e-6, True), (0.5, False)):
        log = run(method, stopping_model(), folders[0], training, num_iterations=2, epsilon=clip)
        shares = [entry["clip_ratio/region_mean"] for entry in log]
        assert shares[0] == 0
        assert (shares[1] > 0.3) == binds


@pytest.mark.parametrize("method", METHODS)
def test_the_models_name_is_given_back(method: str, folders: dict[int, Path]) -> None:
    """Also after a reward that raises."""
    policy = stopping_model()
    policy.config._name_or_path = "mine"
    run(method, policy, folders[0], settings(steps=1))
    assert policy.config._name_or_path == "mine"

    def broken(completion_ids: list[list[int]], **_: Any) -> list[float]:
        raise ValueError(f"no reward for {len(completion_ids)}")

    with pytest.raises(ValueError, match="no reward for 8"):
        run(method, policy, folders[0], settings(steps=1), broken)
    assert policy.config._name_or_path == "mine"


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_dropout_is_sampled_and_scored_without_it(method: str, tmp_path: Path) -> None:
    """Else the log-ratio to the reference is not 0 at the start, and the ratio to the sampling policy is noise."""
    folder = tiny_folder(tmp_path / "model", attention_dropout=0.2)
    log = run(method, tiny_model(attention_dropout=0.2), folder, settings(steps=1))
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
