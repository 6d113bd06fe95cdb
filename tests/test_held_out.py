"""Measures on held-out rows against loops in float64, and the share of a gain that is retained on values that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from precede.data.preferences import Preference
from precede.evaluate.held_out import Findings, HeldOut, examine, retained
from precede.metrics import METRICS
from precede.models.load import load, save
from test_lm_tiny import stopping_model, tiny_model, tiny_tokenizer

SAMPLES, LONGEST = 3, 5


def rows(count: int = 12) -> list[Preference]:
    """Prompts, chosen and rejected completions of random words and lengths; completions end with EOS."""
    draw, words = np.random.default_rng(5), tiny_tokenizer()

    def ids(many: int) -> list[int]:
        return [int(one) for one in draw.integers(3, 32, many)]

    found = []
    for number in range(count):
        prompt, chosen, rejected = [1, 3, *ids(draw.integers(1, 4))], ids(draw.integers(1, 5)), ids(draw.integers(1, 5))
        texts = [words.decode(part) for part in (prompt, chosen, rejected)]
        found.append(Preference(number + 1, prompt, [*chosen, 2], [*rejected, 2], *texts))
    return found


def held(**changes: Any) -> HeldOut:
    values: dict[str, Any] = {
        "samples": SAMPLES,
        "max_new_tokens": LONGEST,
        "seed": 0,
        "reward": None,
        "target_reward": None,
        "device": "cpu",
    }
    return HeldOut(**(values | changes))


@torch.no_grad()
def logp(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """log π(completion | prompt), nats, token by token in float64."""
    total = 0.0
    for place, token in enumerate(completion):
        ids = torch.tensor([[*prompt, *completion[:place]]])
        total += float(model(input_ids=ids).logits[0, -1].double().log_softmax(-1)[token])
    return total


def mean(values: Sequence[Sequence[float]]) -> float:
    """Mean over rows of each row's mean."""
    return sum(sum(row) / len(row) for row in values) / len(values)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The model that is measured, and the one that the build began with."""
    path = tmp_path_factory.mktemp("models")
    save(stopping_model(), tiny_tokenizer(), path / "own")
    save(tiny_model(seed=4), tiny_tokenizer(), path / "start")
    return str(path / "own"), str(path / "start")


@pytest.fixture(scope="module")
def first(folders: tuple[str, str]) -> Findings:
    return examine(folders[1], rows(), held(seed=9))


@pytest.fixture(scope="module")
def found(folders: tuple[str, str], first: Findings) -> Findings:
    return examine(folders[0], rows(), held(), start=folders[1], start_samples=first.samples)


def test_every_number_is_that_of_a_loop(folders: tuple[str, str], first: Findings, found: Findings) -> None:
    own, start = (load(folder)[0].double() for folder in folders)
    pairs = [(logp(own, row.prompt, row.chosen), logp(own, row.prompt, row.rejected)) for row in rows()]
    samples = [[logp(own, row.prompt, ids) for ids in drawn] for row, drawn in zip(rows(), found.samples, strict=True)]
    above = [[logp(start, row.prompt, ids) for ids in drawn] for row, drawn in zip(rows(), found.samples, strict=True)]
    recalled = [[logp(own, row.prompt, ids) for ids in drawn] for row, drawn in zip(rows(), first.samples, strict=True)]
    lengths = [[len(ids) for ids in drawn] for drawn in found.samples]

    def per_token(values: list[list[float]], drawn: list[list[list[int]]]) -> float:
        return sum(map(sum, values)) / sum(len(ids) for row in drawn for ids in row)

    expected = {
        "chosen_logp": mean([[chosen] for chosen, _ in pairs]),
        "rejected_logp": mean([[rejected] for _, rejected in pairs]),
        "chosen_logp_per_token": mean([[p[0] / len(row.chosen)] for p, row in zip(pairs, rows(), strict=True)]),
        "margin": mean([[chosen - rejected] for chosen, rejected in pairs]),
        "ranking_accuracy": mean([[float(chosen > rejected)] for chosen, rejected in pairs]),
        "entropy": -mean(samples),
        "entropy_per_token": -per_token(samples, found.samples),
        "length": mean(lengths),
        "stop_rate": sum(ids[-1] == 2 for drawn in found.samples for ids in drawn) / (SAMPLES * len(samples)),
        "recall": mean(recalled),
        "recall_per_token": per_token(recalled, first.samples),
        "kl_to_truth": mean([[a - b for a, b in zip(*both, strict=True)] for both in zip(samples, above, strict=True)]),
    }
    for name, value in expected.items():
        estimate = found.numbers[name]
        assert estimate.value == pytest.approx(value, abs=2e-5), name
        assert estimate.low <= value + 2e-5, name
        assert estimate.high >= value - 2e-5, name
    assert set(found.numbers) <= set(METRICS)
    assert len({len(ids) for drawn in found.samples for ids in drawn}) > 1
    assert found.margins == pytest.approx([chosen - rejected for chosen, rejected in pairs], abs=2e-5)
    assert 0 < expected["stop_rate"] < 1
    assert expected["kl_to_truth"] > 0.5
    assert not np.isclose(expected["recall"], -expected["entropy"], atol=0.1)


def test_samples_are_of_their_prompts(found: Findings) -> None:
    """As many of each row as was asked, of at most the length, and written as the tokenizer writes them."""
    assert [len(drawn) for drawn in found.samples] == [SAMPLES] * len(rows())
    assert max(len(ids) for drawn in found.samples for ids in drawn) == LONGEST
    words = tiny_tokenizer()
    for drawn, written in zip(found.samples, found.written, strict=True):
        assert [text.split() for text in written] == [
            words.decode(ids, skip_special_tokens=True).split() for ids in drawn
        ]


def test_a_model_has_no_kl_to_itself_and_recalls_its_samples_with_its_entropy(folders: tuple[str, str]) -> None:
    one = examine(folders[0], rows(), held())
    two = examine(folders[0], rows(), held(), start=folders[0], start_samples=one.samples)
    assert two.samples == one.samples
    assert abs(two.numbers["kl_to_truth"].value) < 1e-6
    assert two.numbers["recall"].value == pytest.approx(-one.numbers["entropy"].value, abs=1e-5)
    assert "kl_to_truth" not in one.numbers
    assert "recall" not in one.numbers


def test_rewards_are_those_of_the_samples(folders: tuple[str, str]) -> None:
    """A reward that counts words and looks up its prompt: every sample is judged with its own prompt."""

    def reward(prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
        return [
            len(text.split()) + 100.0 * len(prompt.split()) for prompt, text in zip(prompts, completions, strict=True)
        ]

    found = examine(folders[0], rows(), held(reward=reward, target_reward=403.0))
    by_hand = [
        [len(text.split()) + 100 * len(row.prompt_text.split()) for text in written]
        for row, written in zip(rows(), found.written, strict=True)
    ]
    assert found.rewards == pytest.approx([sum(row) / SAMPLES for row in by_hand])
    assert found.numbers["reward"].value == pytest.approx(mean(by_hand))
    mass = mean([[float(value >= 403) for value in row] for row in by_hand])
    assert found.numbers["target_mass"].value == pytest.approx(mass)
    assert 0 < mass < 1


# ------------------------------------------------------------------------------------------------ what is retained


@pytest.mark.parametrize("share", [1.0, 0.6, 0.0, -0.5, 1.3])
def test_a_share_that_is_the_same_in_every_row_is_found_exactly(share: float) -> None:
    draw = np.random.default_rng(0)
    start, gain = draw.normal(size=200), 2 + draw.normal(size=200)
    found = retained(start, start + gain, start + share * gain)
    assert (found.value, found.low, found.high) == pytest.approx((share, share, share))
    assert found.count == 200


def test_the_share_is_of_means_and_not_the_mean_of_shares() -> None:
    assert retained([0, 0, 0], [1, 1, 4], [1, 1, 1]).value == pytest.approx(0.5)


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_no_gain_has_no_share(gain: float) -> None:
    draw = np.random.default_rng(1)
    start = draw.normal(size=100)
    found = retained(start, start + gain + draw.normal(size=100), start)
    assert np.isnan([found.value, found.low, found.high]).all()


def test_a_gain_by_its_mean_alone_has_no_share() -> None:
    noise = np.random.default_rng(0).normal(size=50)
    assert np.isnan(retained(np.zeros(50), noise - noise.mean() + 0.05, np.ones(50)).value)


def test_one_row_has_no_share() -> None:
    assert np.isnan(retained([0.0], [1.0], [1.0]).value)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """60 draws of 80 rows with noise of their own: at 95 %, fewer than 51 of 60 covered have a chance of 1 in 1,000."""
    draw, truth, covered = np.random.default_rng(2), 0.7, 0
    for seed in range(60):
        start = draw.normal(size=80)
        gain = 1.5 + draw.normal(size=80)
        final = start + truth * gain + draw.normal(size=80)
        found = retained(start, start + gain, final, seed=seed)
        covered += found.low <= truth <= found.high
    assert covered >= 51
