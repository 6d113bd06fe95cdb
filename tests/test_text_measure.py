from __future__ import annotations

import math

import pytest
import torch
from precede.worlds.text.figures import target_masses
from precede.worlds.text.measure import Examiner, TruthSample

from precede.lm.logprobs import completion_logps
from precede.lm.rewards import hedge
from precede.lm.sampling import sample
from test_lm_tiny import tiny_model, tiny_tokenizer


def test_decoded_metrics_are_of_the_tempered_model() -> None:
    truth, model, tokenizer = tiny_model(), tiny_model(seed=1), tiny_tokenizer()
    truth_sample = TruthSample([3], [[8, 2], [6, 9, 2]], [0.0, 1.0])
    examiner = Examiner(truth, truth_sample, tokenizer, hedge, 1.0, 2, 200, 5)
    metrics, _ = examiner.examine(model, None, 0.5)
    for prefix, temperature in (("", 1.0), ("decoded_", 0.5)):
        rows = sample(model, tokenizer, [3], 200, max_new_tokens=2, temperature=temperature, seed=5)
        own = completion_logps(model, [3], rows, temperatures=(temperature,))[0].mean().item()
        anchored = completion_logps(truth, [3], rows)[0].mean().item()
        assert metrics[prefix + "entropy"] == pytest.approx(-own, abs=1e-4)
        assert metrics[prefix + "precision"] == pytest.approx(anchored, abs=1e-4)
        assert metrics[prefix + "kl_to_truth"] == pytest.approx(own - anchored, abs=1e-4)
        assert metrics[prefix + "length"] == sum(map(len, rows)) / 200
        assert metrics[prefix + "stop_rate"] == sum(row[-1] == 2 for row in rows) / 200


def summary(rewards: list[float], truth_rewards: list[float]) -> dict[str, float | None]:
    truth_sample = TruthSample([3], [[4]] * len(truth_rewards), truth_rewards)
    examiner = Examiner(None, truth_sample, None, hedge, 1.0, 6, len(rewards), 0)
    own, truth = torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([-2.0, -3.0, -5.0, -6.0])
    return examiner._summary(rewards, own, truth, torch.tensor([-1.0, -3.0, -8.0, -4.0]))


def test_summary_by_hand() -> None:
    values = summary([1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 0.0, 0.0])
    assert values == {
        "reward": 0.625,
        "target_mass": 0.5,
        "target_precision": None,
        "target_precision_on_target": pytest.approx(-4 - math.log(0.25)),
        "target_recall": -3.0,
        "precision": -4.0,
        "recall": -4.0,
        "entropy": 2.5,
        "kl_to_truth": 1.5,
    }
    every = summary([1.0] * 4, [1.0, 0.0, 0.0, 0.0])
    assert every["target_precision"] == every["target_precision_on_target"] == pytest.approx(-4 - math.log(0.25))
    none = summary([0.0] * 4, [0.0] * 4)
    assert none["target_precision"] is none["target_precision_on_target"] is none["target_recall"] is None
    assert summary([1.0] * 4, [0.0] * 4)["target_precision_on_target"] is None


def test_figure() -> None:
    figure = target_masses({"teacher": (0, 40), "align > distill": (10, 40)}, "hedge")
    (axis,) = figure.canvas.axes
    assert [bar.get_height() for bar in axis.patches] == [0, 0.25]
    assert figure.name == "target-masses"
