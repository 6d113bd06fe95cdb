from __future__ import annotations

import copy
import math

import pytest
import torch

from precede.sampling import sample
from precede.scoring.logprobs import completion_logps, completion_token_logps
from test_lm_tiny import tiny_model, tiny_tokenizer

PROMPT = [1, 3]


def loop(model: torch.nn.Module, prompt: list[int], row: list[int], temperature: float) -> list[float]:
    """The oracle: float64, one row, no padding, one position at a time, softmax written out."""
    double = copy.deepcopy(model).double()
    values = []
    for position, token in enumerate(row):
        ids = torch.tensor([prompt + row[:position]])
        logits = [value / temperature for value in double(input_ids=ids, use_cache=False).logits[0, -1].tolist()]
        top = max(logits)
        values.append(logits[token] - top - math.log(sum(math.exp(value - top) for value in logits)))
    return values


@pytest.mark.parametrize("prompt", [[3], [1, 3, 8]])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_against_a_float64_loop(prompt: list[int], batch_size: int) -> None:
    model = tiny_model()
    drawn = sample(model, tiny_tokenizer(), prompt, 12, max_new_tokens=7, seed=4)
    rows = [row[: 1 + index % 7] for index, row in enumerate(drawn)]
    result = completion_token_logps(model, prompt, rows, temperatures=(1.0, 0.6), batch_size=batch_size)
    assert result.shape == (2, 12, max(map(len, rows)))
    assert result.dtype == torch.float32
    for number, temperature in enumerate((1.0, 0.6)):
        for index, row in enumerate(rows):
            expected = torch.tensor(loop(model, prompt, row, temperature))
            assert torch.allclose(result[number, index, : len(row)], expected, atol=2e-5, rtol=0)
            assert torch.equal(result[number, index, len(row) :], torch.zeros(result.shape[2] - len(row)))
    totals = completion_logps(model, prompt, rows, temperatures=(1.0, 0.6), batch_size=batch_size)
    assert torch.allclose(totals, result.sum(-1), atol=1e-5)


def test_probabilities_of_all_completions_sum_to_one() -> None:
    """Every completion of at most two tokens: the end, or any other token followed by any token."""
    model = tiny_model()
    size = model.config.vocab_size
    rows = [[2]] + [[a, b] for a in range(size) if a != 2 for b in range(size)]
    assert completion_logps(model, PROMPT, rows, batch_size=256).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_scores_do_not_depend_on_company() -> None:
    model = tiny_model()
    alone = completion_logps(model, PROMPT, [[8, 2]])
    together = completion_logps(model, PROMPT, [[8, 2], [4, 5, 6, 7, 8, 9, 10], [9]])
    assert together[0, 0].item() == pytest.approx(alone[0, 0].item(), abs=1e-5)


def test_no_rows_and_empty_rows() -> None:
    model = tiny_model()
    assert completion_logps(model, PROMPT, []).shape == (1, 0)
    assert completion_logps(model, PROMPT, [[], [4]])[0, 0].item() == 0


def test_dropout_and_mode_are_left_as_they_were() -> None:
    model = tiny_model(attention_dropout=0.5).train()
    first = completion_logps(model, PROMPT, [[4, 5, 6]])
    assert torch.equal(completion_logps(model, PROMPT, [[4, 5, 6]]), first)
    assert model.training
