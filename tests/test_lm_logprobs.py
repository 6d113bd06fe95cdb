from __future__ import annotations

import copy
import math

import pytest
import torch

from precede.sampling import sample
from precede.scoring.logprobs import score
from test_lm_tiny import logps, tiny_model, tiny_tokenizer

PROMPT = [1, 3]


def loop(model: torch.nn.Module, prompt: list[int], row: list[int], temperature: float) -> tuple[float, float, float]:
    """The oracle: float64, one row, no padding, one position at a time, softmax written out; log p, entropy, varentropy."""
    double = copy.deepcopy(model).double()
    sums = [0.0, 0.0, 0.0]
    for position, token in enumerate(row):
        ids = torch.tensor([prompt + row[:position]])
        logits = [value / temperature for value in double(input_ids=ids, use_cache=False).logits[0, -1].tolist()]
        top = max(logits)
        total = top + math.log(sum(math.exp(value - top) for value in logits))
        shares = [(math.exp(value - total), value - total) for value in logits]
        entropy = -sum(p * logp for p, logp in shares)
        sums[0] += logits[token] - total
        sums[1] += entropy
        sums[2] += sum(p * (logp + entropy) ** 2 for p, logp in shares)
    return sums[0], sums[1], sums[2]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("prompt", [[3], [1, 3, 8]])
@pytest.mark.parametrize("budget", [1, 40, None])
def test_against_a_float64_loop(prompt: list[int], budget: int | None, temperature: float) -> None:
    model = tiny_model()
    drawn = sample(model, tiny_tokenizer(), prompt, 12, max_new_tokens=7, seed=4)
    rows = [row[: 1 + index % 7] for index, row in enumerate(drawn)]
    (found,) = score(model, [prompt], [rows], temperature=temperature, tokens_per_batch=budget)
    assert [one.tokens for one in found] == [len(row) for row in rows]
    for one, row in zip(found, rows, strict=True):
        expected = loop(model, prompt, row, temperature)
        assert (one.logp, one.entropy, one.varentropy) == pytest.approx(expected, abs=2e-5 * len(row))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_probabilities_of_all_completions_sum_to_one(temperature: float) -> None:
    """Every completion of at most two tokens: the end, or any other token followed by any token."""
    model = tiny_model()
    size = model.config.vocab_size
    rows = [[2]] + [[a, b] for a in range(size) if a != 2 for b in range(size)]
    assert logps(model, PROMPT, rows, temperature).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_scores_do_not_depend_on_company() -> None:
    model = tiny_model()
    alone = logps(model, PROMPT, [[8, 2]])
    together = logps(model, PROMPT, [[8, 2], [4, 5, 6, 7, 8, 9, 10], [9]])
    assert together[0].item() == pytest.approx(alone[0].item(), abs=1e-5)


def test_no_rows_and_empty_rows() -> None:
    model = tiny_model()
    assert score(model, [PROMPT], [[]]) == [[]]
    assert logps(model, PROMPT, [[], [4]])[0].item() == 0


def test_dropout_and_mode_are_left_as_they_were() -> None:
    model = tiny_model(attention_dropout=0.5).train()
    first = logps(model, PROMPT, [[4, 5, 6]])
    assert torch.equal(logps(model, PROMPT, [[4, 5, 6]]), first)
    assert model.training
