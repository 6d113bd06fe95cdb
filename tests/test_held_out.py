"""Measures on many held-out rows against loops in float64, and the share of a gain that is retained, where it is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from precede.data.preferences import Preference
from precede.evaluate.examiner import Examiner, Findings, Rows, TruthRows, estimates, logps_of, pair_scores, retained
from precede.metrics import METRICS
from precede.sampling import sample_prompts
from precede.scoring.logprobs import score
from test_lm_tiny import doubled, stopping_model, tiny_model, tiny_tokenizer

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
        found.append(
            Preference(number + 1, prompt, [*chosen, 2], [*rejected, 2], *texts, columns={"bonus": 10 * number})
        )
    return found


def examiner_of(truth: TruthRows = TruthRows(), seed: int = 0, **changes: Any) -> Examiner:  # noqa: B008
    values: dict[str, Any] = {
        "rows": rows(),
        "tokenizer": tiny_tokenizer(),
        "truth": truth,
        "reward": None,
        "target_reward": None,
        "samples": SAMPLES,
        "max_new_tokens": LONGEST,
        "sample_batch": 8,
        "seed": seed,
    }
    return Examiner(**(values | changes))


def drawn(model: Any, seed: int = 0, temperature: float = 1.0) -> list[list[list[int]]]:
    """What the examiner samples of each prompt, drawn again."""
    prompts = [row.prompt for row in rows() for _ in range(SAMPLES)]
    found = sample_prompts(
        model,
        tiny_tokenizer(),
        prompts,
        max_new_tokens=LONGEST,
        temperature=temperature,
        seed=seed,
        batch_size=8,
    )
    return [found[place : place + SAMPLES] for place in range(0, len(found), SAMPLES)]


@torch.no_grad()
def logp(model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0) -> float:
    """log π(completion | prompt), nats, token by token in float64."""
    total = 0.0
    for place, token in enumerate(completion):
        ids = torch.tensor([[*prompt, *completion[:place]]])
        total += float((model(input_ids=ids).logits[0, -1].double() / temperature).log_softmax(-1)[token])
    return total


def mean(values: Sequence[Sequence[float]]) -> float:
    """Mean over rows of each row's mean."""
    return sum(sum(row) / len(row) for row in values) / len(values)


def own() -> Any:
    """The model that is measured."""
    return stopping_model()


def start() -> Any:
    """The truth, and the reference."""
    return tiny_model(seed=4)


def truth_of(model: Any, seed: int = 9) -> TruthRows:
    """A model as the truth, with its samples."""
    return TruthRows(drawn(model, seed), [[] for _ in rows()], lambda prompts, ids: logps_of(model, prompts, ids))


@pytest.fixture(scope="module")
def found() -> Findings:
    return examiner_of(truth_of(start())).examine(own(), start(), 0.6)


def by_hand(temperature: float = 1.0) -> dict[str, list[list[float]]]:
    """log p of every sample under the model and the truth, of the truth's samples under the model, and lengths."""
    model, above = doubled(own()), doubled(start())
    samples, recalled = drawn(own(), temperature=temperature), drawn(start(), 9)

    def each(of: Any, ids: list[list[list[int]]], tau: float = 1.0) -> list[list[float]]:
        return [[logp(of, row.prompt, one, tau) for one in some] for row, some in zip(rows(), ids, strict=True)]

    return {
        "own": each(model, samples, temperature),
        "above": each(above, samples),
        "recalled": each(model, recalled, temperature),
        "lengths": [[float(len(ids)) for ids in some] for some in samples],
        "truth_lengths": [[float(len(ids)) for ids in some] for some in recalled],
        "stopped": [[float(ids[-1] == 2) for ids in some] for some in samples],
    }


def per_token(values: list[list[float]], lengths: list[list[float]]) -> float:
    return sum(map(sum, values)) / sum(map(sum, lengths))


def test_every_number_is_that_of_a_loop(found: Findings) -> None:
    hand, model = by_hand(), doubled(own())
    pairs = [(logp(model, row.prompt, row.chosen), logp(model, row.prompt, row.rejected)) for row in rows()]
    gaps = [[a - b for a, b in zip(*both, strict=True)] for both in zip(hand["own"], hand["above"], strict=True)]
    expected = {
        "chosen_logp": mean([[chosen] for chosen, _ in pairs]),
        "rejected_logp": mean([[rejected] for _, rejected in pairs]),
        "chosen_logp_per_token": mean([[p[0] / len(row.chosen)] for p, row in zip(pairs, rows(), strict=True)]),
        "margin": mean([[chosen - rejected] for chosen, rejected in pairs]),
        "ranking_accuracy": mean([[float(chosen > rejected)] for chosen, rejected in pairs]),
        "entropy": -mean(hand["own"]),
        "entropy_per_token": -per_token(hand["own"], hand["lengths"]),
        "length": mean(hand["lengths"]),
        "stop_rate": mean(hand["stopped"]),
        "recall": mean(hand["recalled"]),
        "recall_per_token": per_token(hand["recalled"], hand["truth_lengths"]),
        "kl_to_truth": mean(gaps),
        "kl_to_truth_per_token": per_token(gaps, hand["lengths"]),
        "kl_to_reference": mean(gaps),
    }
    intervals = estimates(found.per_prompt, SAMPLES)
    for name, value in expected.items():
        assert found.metrics[name] == pytest.approx(value, abs=2e-5), name
        estimate = intervals[name]
        assert estimate.value == pytest.approx(value, abs=2e-5), name
        assert estimate.low <= value + 2e-5, name
        assert estimate.high >= value - 2e-5, name
        assert estimate.count == len(rows()) * (SAMPLES if name in ("target_mass", "stop_rate") else 1)
    assert found.metrics["precision"] == pytest.approx(mean(hand["above"]), abs=2e-5)
    assert set(intervals) <= set(METRICS)
    assert all(found.metrics[name] == pytest.approx(one.value, abs=1e-9) for name, one in intervals.items())
    assert {name.removeprefix("decoded_") for name in found.metrics} <= set(METRICS)
    assert len({length for some in hand["lengths"] for length in some}) > 1
    assert 0 < expected["stop_rate"] < 1
    assert expected["kl_to_truth"] > 0.5
    assert not np.isclose(expected["recall"], -expected["entropy"], atol=0.1)


def test_decoded_numbers_are_those_of_a_loop_at_the_temperature(found: Findings) -> None:
    hand = by_hand(0.6)
    expected = {
        "entropy": -mean(hand["own"]),
        "recall": mean(hand["recalled"]),
        "precision": mean(hand["above"]),
        "kl_to_truth": mean(hand["own"]) - mean(hand["above"]),
        "length": mean(hand["lengths"]),
        "stop_rate": mean(hand["stopped"]),
    }
    for name, value in expected.items():
        assert found.metrics[f"decoded_{name}"] == pytest.approx(value, abs=2e-5), name
        assert found.metrics[f"decoded_{name}"] != pytest.approx(found.metrics[name], abs=1e-3), name


def test_columns_are_the_prompts_own(found: Findings) -> None:
    """One entry for each row, in its order; a number is the mean of its column."""
    hand, columns = by_hand(), found.per_prompt
    assert columns["row"] == [row.row for row in rows()]
    assert {len(values) for values in columns.values()} == {len(rows())}
    model = doubled(own())
    expected = {
        "entropy": [-sum(some) / SAMPLES for some in hand["own"]],
        "recall": [sum(some) / SAMPLES for some in hand["recalled"]],
        "recall_tokens": [sum(some) / SAMPLES for some in hand["truth_lengths"]],
        "length": [sum(some) / SAMPLES for some in hand["lengths"]],
        "stop_rate": [sum(some) / SAMPLES for some in hand["stopped"]],
        "kl_to_truth": [(sum(a) - sum(b)) / SAMPLES for a, b in zip(hand["own"], hand["above"], strict=True)],
        "kl_to_reference": [(sum(a) - sum(b)) / SAMPLES for a, b in zip(hand["own"], hand["above"], strict=True)],
        "chosen_logp": [logp(model, row.prompt, row.chosen) for row in rows()],
        "rejected_logp": [logp(model, row.prompt, row.rejected) for row in rows()],
        "chosen_tokens": [float(len(row.chosen)) for row in rows()],
        "rejected_tokens": [float(len(row.rejected)) for row in rows()],
    }
    for name, values in expected.items():
        assert columns[name] == pytest.approx(values, abs=4e-5), name
    scores = score(own(), [row.prompt for row in rows()], [[row.chosen, row.rejected] for row in rows()])
    assert pair_scores(columns) == scores


def test_completions_are_what_was_sampled_of_each_prompt(found: Findings) -> None:
    """As many of each row as was asked, all of them, of at most the length, and written as the tokenizer writes them."""
    words = tiny_tokenizer()
    for name, temperature in (("completions", 1.0), ("decoded_completions", 0.6)):
        ids = [one for some in drawn(own(), temperature=temperature) for one in some]
        shown = found.completions[name]
        assert [one["row"] for one in shown] == [row.row for row in rows() for _ in range(SAMPLES)]
        assert [one["text"].split() for one in shown] == [
            words.decode(i, skip_special_tokens=True).split() for i in ids
        ]
        assert {one["reward"] for one in shown} == {None}
        assert max(map(len, ids)) == LONGEST


def test_a_model_that_is_its_own_truth() -> None:
    """KL to itself is 0; it recalls its very samples with its entropy, and other samples of its own with it in expectation."""
    model = own()
    same = examiner_of(truth_of(model, seed=0)).examine(model)
    assert abs(same.metrics["kl_to_truth"]) < 1e-6
    assert same.metrics["recall"] == pytest.approx(-same.metrics["entropy"], abs=1e-6)
    assert same.metrics["precision"] == pytest.approx(same.metrics["recall"], abs=1e-6)
    many = {"rows": rows() * 40, "sample_batch": 64}  # 480 prompts with 3 samples each, of other seeds
    prompts = [row.prompt for row in rows() * 40 for _ in range(SAMPLES)]
    more: dict[str, Any] = {"max_new_tokens": LONGEST, "seed": 9, "batch_size": 64}
    ids = sample_prompts(model, tiny_tokenizer(), prompts, **more)
    truth = TruthRows(
        [ids[n : n + SAMPLES] for n in range(0, len(ids), SAMPLES)],
        [[] for _ in range(480)],
        lambda prompts, ids: logps_of(model, prompts, ids),
    )
    other = examiner_of(truth, seed=1, **many).examine(model)
    assert abs(other.metrics["kl_to_truth"]) < 1e-6
    gaps = np.array(other.per_prompt["recall"]) + np.array(other.per_prompt["entropy"])
    # a mean within 4 standard errors of 0; a false alarm once in 16,000
    assert abs(gaps.mean()) < 4 * gaps.std() / math.sqrt(len(gaps))
    assert gaps.std() > 0


def test_without_a_truth_nothing_is_said_of_it() -> None:
    found = examiner_of().examine(own())
    for name in ("recall", "precision", "kl_to_truth", "target_recall"):
        assert found.metrics[name] is found.metrics[f"{name}_per_token"] is None
    assert not {"recall", "kl_to_truth", "kl_to_reference"} & set(found.per_prompt)
    assert not {"recall", "kl_to_truth", "kl_to_reference"} & set(estimates(found.per_prompt, SAMPLES))


def test_rewards_are_those_of_the_samples() -> None:
    """A reward that counts words, looks up its prompt and a column of the data: every sample is judged with its own row."""

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Rows | None = None,
        columns: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[float]:
        assert columns is not None
        return [
            len(text.split()) + 1000.0 * len(prompt.split()) + given["bonus"]
            for prompt, text, given in zip(prompts, completions, columns, strict=True)
        ]

    words = tiny_tokenizer()
    found = examiner_of(reward=reward, target_reward=4043.0).examine(own())
    values = [
        [
            len(words.decode(ids, skip_special_tokens=True).split())
            + 1000 * len(row.prompt_text.split())
            + row.columns["bonus"]
            for ids in some
        ]
        for row, some in zip(rows(), drawn(own()), strict=True)
    ]
    assert found.per_prompt["reward"] == pytest.approx([sum(row) / SAMPLES for row in values])
    assert found.metrics["reward"] == pytest.approx(mean(values))
    hits = [[float(value >= 4043) for value in row] for row in values]
    assert found.metrics["target_mass"] == pytest.approx(mean(hits))
    assert found.per_prompt["target_mass"] == pytest.approx([sum(row) / SAMPLES for row in hits])
    assert 0 < mean(hits) < 1
    assert [one["reward"] for one in found.completions["completions"]] == [value for row in values for value in row]
    assert estimates(found.per_prompt, SAMPLES)["target_mass"].value == pytest.approx(mean(hits))


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


def test_a_share_without_a_hit_has_an_upper_bound() -> None:
    """15 samples without a hit leave at least 22 % possible (Clopper–Pearson), and nothing but hits at most 78 %."""
    none, every = (estimates({"row": [1.0] * 5, "target_mass": [rate] * 5}, 3)["target_mass"] for rate in (0.0, 1.0))
    bound = 1 - 0.025 ** (1 / 15)
    assert (none.value, none.low, every.value, every.high) == (0.0, 0.0, 1.0, 1.0)
    assert none.high >= bound
    assert every.low <= 1 - bound
