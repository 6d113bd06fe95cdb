from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from precede.sampling import prompt_ids, sample, sample_prompts, texts
from precede.seeding import seeded, stream
from test_lm_tiny import stopping_model, tiny_model, tiny_tokenizer

PROMPT = [3]


def test_rows_end_with_their_eos_or_at_the_length() -> None:
    rows = sample(tiny_model(), tiny_tokenizer(), PROMPT, 200, max_new_tokens=6, seed=1, batch_size=64)
    assert len(rows) == 200
    assert all(2 not in row[:-1] for row in rows)
    assert all(len(row) == 6 or row[-1] == 2 for row in rows)
    assert 0 < sum(row[-1] == 2 for row in rows) < 200
    assert len({len(row) for row in rows}) > 3


def test_a_function_of_its_seed_that_leaves_other_randomness_alone() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = (torch.rand(3).tolist(), random.random(), np.random.random())  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    first = sample(model, tokenizer, PROMPT, 20, max_new_tokens=6, seed=1)
    assert (torch.rand(3).tolist(), random.random(), np.random.random()) == expected  # noqa: NPY002
    assert sample(model, tokenizer, PROMPT, 20, max_new_tokens=6, seed=1) == first
    assert sample(model, tokenizer, PROMPT, 20, max_new_tokens=6, seed=2) != first


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_first_tokens_follow_the_tempered_softmax(temperature: float) -> None:
    """χ² of 4,000 first tokens against softmax(logits/τ) in float64; a false alarm in 1,000 runs, but seeded."""
    model = tiny_model()
    rows = sample(
        model, tiny_tokenizer(), PROMPT, 4000, max_new_tokens=1, temperature=temperature, seed=3, batch_size=4000
    )
    logits = model(input_ids=torch.tensor([PROMPT])).logits[0, -1].double()
    expected = 4000 * torch.softmax(logits / temperature, -1).detach().numpy()
    counts = Counter(row[0] for row in rows)
    observed = np.array([counts[token] for token in range(len(expected))], dtype=float)
    rare = expected < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_the_models_own_generation_settings_are_off() -> None:
    """A folder may ask for greedy decoding, top-k, penalties; the model's distribution has none of them."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    plain = sample(model, tokenizer, PROMPT, 50, max_new_tokens=6, seed=1)
    own = model.generation_config
    own.top_k, own.top_p, own.temperature, own.repetition_penalty, own.min_p = 1, 0.1, 0.1, 5.0, 0.9
    own.suppress_tokens, own.no_repeat_ngram_size = list(range(10, 30)), 1
    assert sample(model, tokenizer, PROMPT, 50, max_new_tokens=6, seed=1) == plain
    assert model.generation_config is own
    assert own.top_k == 1


def test_several_end_tokens() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [2, 14]
    rows = sample(model, tiny_tokenizer(), PROMPT, 200, max_new_tokens=6, seed=1)
    assert {row[-1] for row in rows if len(row) < 6} == {2, 14}
    assert all(not {2, 14} & set(row[:-1]) for row in rows)


def test_texts_follow_the_prompt() -> None:
    assert texts(tiny_tokenizer(), PROMPT, [[8, 5, 11, 2], [2], [14]]) == [" sky is blue", "", " ."]


def test_prompt_ids_have_bos_once() -> None:
    tokenizer = tiny_tokenizer()
    assert prompt_ids(tokenizer, "The") == [3]
    with pytest.raises(ValueError, match=r"the prompt ' ' has no tokens"):
        prompt_ids(tokenizer, " ")


def test_streams_differ_by_what_they_are_for() -> None:
    names = [(0, "align", "samples"), (1, "align", "samples"), (0, "distill", "samples"), (0, "align", "pairs")]
    assert len({stream(*name) for name in names}) == 4
    assert stream(0, "align", "samples") == 2_243_267_674
    assert all(0 <= stream(*name) < 2**32 for name in names)


def test_seeded_restores_after_an_error() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError), seeded(9):
        raise RuntimeError
    assert torch.equal(torch.rand(1), expected)


def test_prompts_of_every_length_are_sampled_as_alone() -> None:
    """The first token's distribution does not depend on what stands in the batch: total variation over 4,000 draws of each."""
    model, tokenizer = stopping_model(seed=3), tiny_tokenizer()
    prompts = [[1, 3], [1, 3, 8, 5, 11, 4], [1]]
    heard: list[int] = []
    rows = sample_prompts(
        model, tokenizer, prompts * 4000, max_new_tokens=1, seed=5, batch_size=1000, progress=heard.append
    )
    assert sum(heard) == len(rows) == 12_000
    for place, prompt in enumerate(prompts):
        first = torch.tensor([row[0] for row in rows[place::3]])
        shares = torch.bincount(first, minlength=32) / 4000
        expected = model(torch.tensor([prompt])).logits[0, -1].detach().softmax(-1)
        assert 0.5 * (shares - expected).abs().sum() < 0.06  # expected about 0.035 with 32 tokens


def test_prompts_are_sampled_by_the_seed_and_end_where_they_end() -> None:
    model, tokenizer = stopping_model(seed=3), tiny_tokenizer()
    prompts = [[1, 3], [1, 3, 8, 5], [1]] * 20
    first, again, other = (sample_prompts(model, tokenizer, prompts, max_new_tokens=6, seed=s) for s in (1, 1, 2))
    assert first == again != other
    for row in first:
        assert 1 <= len(row) <= 6
        assert 2 not in row[:-1]
    assert {len(row) for row in first} >= {1, 6}
