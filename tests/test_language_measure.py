"""What is measured of a language model, by hand and by enumeration-like oracles, with a truth made for the purpose."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from precede.sampling import sample
from precede.scoring.logprobs import completion_logps
from precede.worlds.language.figures import target_masses
from precede.worlds.language.measure import Examiner, distinct
from precede.worlds.language.truth import Rows
from test_lm_tiny import stopping_model, tiny_model, tiny_tokenizer


@dataclass
class HandTruth:
    """A truth whose values are tables by row; a model's rows may be anything where `model` is given."""

    scores: dict[tuple[int, ...], tuple[float, float, float]]
    """Row → reward, log p*, log p_T."""
    model: Any = None
    data: bool = False
    no_target: bool = False
    target_reward: float = 1.0

    prompt = [3]  # noqa: RUF012

    def sample(self, count: int, seed: int) -> list[list[int]]:
        raise AssertionError

    target_sample = sample

    def logps(self, rows: Rows) -> torch.Tensor | None:
        if self.model is not None:
            return completion_logps(self.model, [3], rows)[0]
        return None if self.data else torch.tensor([self.scores[tuple(row)][1] for row in rows])

    def target_logps(self, rows: Rows) -> torch.Tensor | None:
        if self.data or self.no_target or self.model is not None:
            return None
        return torch.tensor([self.scores[tuple(row)][2] for row in rows])

    def rewards(self, rows: Rows) -> list[float]:
        if self.model is not None:
            return [float(6 in row) for row in rows]
        return [self.scores[tuple(row)][0] for row in rows]


def examiner_of(
    truth: HandTruth, truth_rows: Rows, target_rows: Rows, length: int, samples: int, batch: int
) -> Examiner:
    return Examiner(
        truth=truth,
        truth_rows=truth_rows,
        target_rows=target_rows,
        tokenizer=tiny_tokenizer(),
        max_new_tokens=length,
        samples=samples,
        batch_size=batch,
        seed=5,
    )


def test_every_number_is_of_the_model_as_it_was_sampled() -> None:
    """At τ = 1 and, decoded, at τ = 0.5: computed again from the same draws."""
    truth, model, anchor, tokenizer = tiny_model(), stopping_model(seed=1), stopping_model(seed=2), tiny_tokenizer()
    truth_rows, target_rows = [[8, 2], [6, 9], [6, 2]], [[6, 9], [6, 2], [9, 6]]
    examiner = examiner_of(HandTruth({}, truth), truth_rows, target_rows, 2, 200, 64)
    metrics, shown = examiner.examine(model, anchor, 0.5)
    for prefix, temperature in (("", 1.0), ("decoded_", 0.5)):
        rows = sample(model, tokenizer, [3], 200, max_new_tokens=2, temperature=temperature, seed=5, batch_size=64)
        own = completion_logps(model, [3], rows, temperatures=(temperature,))[0].sum().item()
        found = completion_logps(truth, [3], rows)[0]  # and p_T = p*/m*, with three target rows to three of the truth
        anchored = found.sum().item()
        recall, target_recall = (
            completion_logps(model, [3], some, temperatures=(temperature,))[0] for some in (truth_rows, target_rows)
        )
        hits, tokens = sum(6 in row for row in rows), sum(map(len, rows))
        on_target = found[[6 in row for row in rows]]
        expected = {
            "reward": hits / 200,
            "target_mass": hits / 200,
            "target_log_odds": math.log((hits + 0.5) / (200 - hits + 0.5)),
            "target_precision": None,
            "target_precision_per_token": None,
            "target_precision_on_target": on_target.mean().item(),
            "target_precision_on_target_per_token": on_target.sum().item() / sum(len(row) for row in rows if 6 in row),
            "target_recall": target_recall.mean().item(),
            "target_recall_per_token": target_recall.sum().item() / 6,
            "precision": anchored / 200,
            "precision_per_token": anchored / tokens,
            "recall": recall.mean().item(),
            "recall_per_token": recall.sum().item() / 6,
            "entropy": -own / 200,
            "entropy_per_token": -own / tokens,
            "kl_to_truth": (own - anchored) / 200,
            "kl_to_truth_per_token": (own - anchored) / tokens,
            "distinct_1": len({token for row in rows for token in row}) / tokens,
            "distinct_2": len({tuple(row) for row in rows if len(row) == 2}) / sum(len(row) == 2 for row in rows),
            "length": tokens / 200,
            "stop_rate": sum(row[-1] == 2 for row in rows) / 200,
        }
        assert 0 < hits < 200
        assert {name for name in metrics if name.startswith("decoded_") == bool(prefix)} == {
            prefix + name for name in expected
        } | (set() if prefix else {"kl_to_reference", "kl_to_reference_per_token"})
        for name, value in expected.items():
            assert metrics[prefix + name] == (None if value is None else pytest.approx(value, abs=1e-4)), name
        assert [row["reward"] for row in shown[prefix + "completions"]] == [float(6 in row) for row in rows[:100]]
        if not prefix:
            gap = own - completion_logps(anchor, [3], rows)[0].sum().item()
            assert metrics["kl_to_reference"] == pytest.approx(gap / 200, abs=1e-4)
            assert metrics["kl_to_reference_per_token"] == pytest.approx(gap / tokens, abs=1e-4)


def test_without_reference_and_without_distillation_their_numbers_are_none() -> None:
    examiner = examiner_of(HandTruth({}, tiny_model()), [[8, 2]], [], 2, 20, 20)
    metrics, shown = examiner.examine(stopping_model(), None, None)
    none = {name for name, value in metrics.items() if value is None}
    assert {name for name in metrics if name.startswith("decoded_")} | {
        "kl_to_reference",
        "kl_to_reference_per_token",
    } <= none
    assert none - {name for name in metrics if name.startswith("decoded_")} == {
        "kl_to_reference",
        "kl_to_reference_per_token",
        *(
            name + ending
            for name in ("target_precision", "target_precision_on_target", "target_recall")
            for ending in ("", "_per_token")
        ),
    }
    assert set(shown) == {"completions"}


def test_kl() -> None:
    """Of two models over the first one's own samples, 256 at most; of one model twice exactly 0."""
    examiner = examiner_of(HandTruth({}), [], [], 3, 1000, 100)
    one, other = stopping_model(), stopping_model(seed=1)
    assert examiner.kl(one, stopping_model()) == 0
    rows = sample(one, tiny_tokenizer(), [3], 256, max_new_tokens=3, seed=5, batch_size=100)
    expected = (completion_logps(one, [3], rows) - completion_logps(other, [3], rows)).mean().item()
    assert examiner.kl(one, other) == pytest.approx(expected, abs=1e-5)
    assert expected > 0.5


ROWS = [[4, 2], [5, 4, 2], [5], [4, 5, 4, 5]]
TRUTH_ROWS = [[4], [5, 2], [4, 4, 4], [5, 5]]


def summary(rewards: list[float], target_rows: Rows = (), **more: Any) -> dict[str, float | None]:
    own, truth, target = [-1.0, -2.0, -3.0, -4.0], [-2.0, -3.0, -5.0, -6.0], [-1.0, -2.0, -math.inf, -6.5]
    scores = {tuple(row): (r, p, t) for row, r, p, t in zip(ROWS, rewards, truth, target, strict=True)}
    examiner = examiner_of(HandTruth(scores, **more), TRUTH_ROWS, target_rows, 6, 4, 4)
    return examiner._summary(ROWS, rewards, torch.tensor(own), torch.tensor([-1.0, -3.0, -8.0, -4.0]))


def test_summary_by_hand() -> None:
    values = summary([1.0, 0.0, 0.5, 1.0])
    assert values == {
        "reward": 0.625,
        "target_mass": 0.5,
        "target_log_odds": 0.0,
        "target_precision": None,  # one sample has p_T = 0
        "target_precision_per_token": None,
        "target_precision_on_target": (-1 - 6.5) / 2,
        "target_precision_on_target_per_token": (-1 - 6.5) / 6,
        "precision": -4.0,
        "precision_per_token": -1.6,
        "recall": -4.0,
        "recall_per_token": -2.0,
        "entropy": 2.5,
        "entropy_per_token": 1.0,
        "kl_to_truth": 1.5,
        "kl_to_truth_per_token": 0.6,
        "distinct_1": 3 / 10,
        "distinct_2": 3 / 6,  # 42; 54, 42; 45, 54, 45
        "length": 2.5,
    }


def test_summary_at_the_edges() -> None:
    every = summary([1.0] * 4, target_reward=0.5)
    assert every["target_log_odds"] == pytest.approx(math.log(4.5 / 0.5))
    assert every["target_precision_on_target"] is None  # −∞ among them
    none = summary([0.0] * 4)
    assert none["target_log_odds"] == pytest.approx(math.log(0.5 / 4.5))
    assert none["target_precision_on_target"] is None
    exactly = summary([0.5, 0.49, 0.0, 0.0], target_reward=0.5)
    assert (exactly["target_mass"], exactly["target_precision_on_target"]) == (0.25, -1)


def test_a_truth_that_knows_no_target_has_the_truth_over_its_mass() -> None:
    """log p_T = log p* − log m* on the target, m* being the truth's own share of target samples, here 1 of 4."""
    values = summary([1.0, 0.0, 0.5, 1.0], [[5, 2]], no_target=True)
    assert values["target_precision"] is None
    assert values["target_precision_on_target"] == pytest.approx(-4 - math.log(0.25))
    every = summary([1.0] * 4, [[5, 2]], no_target=True)
    assert every["target_precision"] == every["target_precision_on_target"] == pytest.approx(-4 - math.log(0.25))
    none = summary([1.0] * 4, [], no_target=True)
    assert none["target_precision"] is none["target_precision_on_target"] is None


def test_a_truth_that_is_data_has_no_precision() -> None:
    values = summary([1.0, 0.0, 0.5, 1.0], [[5, 2]], data=True)
    missing = {name for name, value in values.items() if value is None}
    undefined = ("precision", "kl_to_truth", "target_precision", "target_precision_on_target")
    assert missing == {name + ending for name in undefined for ending in ("", "_per_token")}
    assert values["recall"] == -4.0


def test_distinct() -> None:
    assert distinct([[1, 2, 1], [2, 1]], 1) == 2 / 5
    assert distinct([[1, 2, 1], [2, 1]], 2) == 2 / 3
    assert distinct([[1, 2, 1], [2, 1]], 3) == 1
    assert distinct([[1, 2, 1], [2, 1]], 4) is None


def test_figure() -> None:
    figure = target_masses({"teacher": (0, 40), "align > distill": (10, 40)})
    (axis,) = figure.canvas.axes
    assert [bar.get_height() for bar in axis.patches] == [0, 0.25]
    assert figure.name == "target-masses"
