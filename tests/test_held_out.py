"""What is measured before and after a stage, against a plain float64 loop; and the share of alignment that is retained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from precede.audit.held_out import HeldOut, examine, retained
from precede.lm.data import Preference
from precede.lm.models import load, save
from test_lm_tiny import stopping_model, tiny_tokenizer

ROWS = [
    Preference(1, [1, 3], [11, 12, 2], [20, 21, 2], "<s> The", " a b", " c d"),
    Preference(2, [1, 3, 4], [13, 2], [22, 23, 24, 2], "<s> The answer", " a", " c d e"),
    Preference(3, [1, 3, 8, 9], [6, 7, 14, 2], [25, 2], "<s> The sky sea", " a b c", " c"),
]


def logp(model: Any, prompt: list[int], row: list[int]) -> float:
    """Σ log π(token), a token at a time, in float64."""
    total, given = 0.0, list(prompt)
    for token in row:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([given])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        given.append(token)
    return total


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out")
    for seed in (0, 1):
        save(stopping_model(seed), tiny_tokenizer(), folder / str(seed))
    return folder


def test_every_number_is_that_of_a_plain_loop(folder: Path) -> None:
    def reward(prompts: Any, completions: Any) -> list[float]:
        return [float(len(text.split())) for text in completions]

    held = HeldOut(4, 5, 0, reward, 2.0, "cpu")
    first = examine(str(folder / "0"), ROWS, held)
    found = examine(str(folder / "1"), ROWS, held, start=str(folder / "0"), start_samples=first.samples)
    own, start = (load(folder / name)[0] for name in ("1", "0"))
    numbers = {name: one.value for name, one in found.numbers.items()}
    chosen = [logp(own, row.prompt, row.chosen) for row in ROWS]
    rejected = [logp(own, row.prompt, row.rejected) for row in ROWS]
    assert numbers["chosen_logp"] == pytest.approx(np.mean(chosen), rel=1e-5)
    assert found.margins == pytest.approx(np.subtract(chosen, rejected), rel=1e-4)
    assert numbers["ranking_accuracy"] == np.mean(np.greater(chosen, rejected))
    recalled = [[logp(own, r.prompt, ids) for ids in ids_of] for r, ids_of in zip(ROWS, first.samples, strict=True)]
    assert numbers["recall"] == pytest.approx(np.mean([np.mean(row) for row in recalled]), rel=1e-5)
    samples = list(zip(ROWS, found.samples, strict=True))
    scores = [[logp(own, row.prompt, ids) for ids in drawn] for row, drawn in samples]
    above = [[logp(start, row.prompt, ids) for ids in drawn] for row, drawn in samples]
    assert numbers["entropy"] == pytest.approx(-np.mean(scores), rel=1e-5)
    assert numbers["kl_to_start"] == pytest.approx(np.mean(scores) - np.mean(above), rel=1e-4)
    flat = [ids for _, drawn in samples for ids in drawn]
    assert numbers["stop_rate"] == np.mean([ids[-1] == 2 for ids in flat])
    assert numbers["sampled_tokens"] == pytest.approx(np.mean([len(ids) for ids in flat]))
    words = np.array([[float(len(text.split())) for text in row] for row in found.written])
    assert numbers["reward"] == pytest.approx(words.mean())
    assert numbers["target_mass"] == pytest.approx((words >= 2).mean())


def test_the_start_has_no_kl_and_no_recall_of_itself(folder: Path) -> None:
    found = examine(str(folder / "0"), ROWS, HeldOut(1, 4, 0, None, None, "cpu"))
    assert not {"kl_to_start", "recall", "reward"} & set(found.numbers)
    assert found.rewards is None


def test_retained_is_the_share_of_the_gain() -> None:
    start = np.arange(40) % 7 / 7
    share = retained(start.tolist(), (start + 2).tolist(), (start + 0.5).tolist())
    assert (share.value, share.low, share.high) == pytest.approx((0.25, 0.25, 0.25))


def test_retained_says_nothing_of_a_gain_that_may_be_none() -> None:
    """A gain that is 0, below 0, or above 0 by its mean alone."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=50)
    for aligned in (np.zeros(50), np.full(50, -1.0), noise - noise.mean() + 0.05):
        assert math.isnan(retained(np.zeros(50).tolist(), aligned.tolist(), np.ones(50).tolist()).value)


def test_the_interval_of_retained_covers() -> None:
    """100 draws of 60 rows with a share of 0.6: a 95 % interval misses it more than 15 times with probability < 1e-4."""
    missed = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        start = draw.normal(size=60)
        aligned, final = start + 1 + draw.normal(size=60), start + 0.6 + draw.normal(size=60)
        share = retained(start.tolist(), aligned.tolist(), final.tolist(), seed=seed)
        missed += not share.low <= 0.6 <= share.high
    assert missed <= 15
