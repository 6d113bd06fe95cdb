"""The chains of the grammar world: likelihoods by enumeration and by hand, samples against them.

A statistical test here rejects at p < 10⁻⁶ or beyond 5 standard errors (p < 6·10⁻⁷ each); the seeds are fixed, so it
passes or fails for good, and a fresh seed would fail one of them by chance less than once in 10⁴ runs.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from precede.worlds.grammar.chains import EOS, Chains, make_chains

DEFAULT: dict[str, Any] = {
    "vocabulary": 32,
    "length": 12,
    "modes": 10,
    "subset": 16,
    "starts": 8,
    "successors": 5,
    "noise": 0.03,
    "zipf_exponent": 1.0,
    "target_modes": [9],
    "target_weight": 0.02,
}
TINY = DEFAULT | {
    "vocabulary": 5,
    "length": 3,
    "modes": 3,
    "subset": 3,
    "starts": 2,
    "successors": 2,
    "noise": 0.3,
    "target_modes": [0, 2],
    "target_weight": 0.4,
}


def every_string(vocabulary: int, length: int) -> list[list[int]]:
    """All strings of the world: those that end early, and those of full length with an EOS at most at their end."""
    others = [token for token in range(vocabulary) if token != EOS]
    ended = [[*body, EOS] for size in range(length) for body in itertools.product(others, repeat=size)]
    return ended + [list(body) for body in itertools.product(others, repeat=length)]


def by_hand(chains: Chains, row: list[int], mode: int) -> float:
    """p_k(x) as a product of probabilities, one token at a time."""
    product = math.exp(chains.log_starts[mode, row[0]])
    for previous, token in itertools.pairwise(row):
        product *= math.exp(chains.log_transitions[mode, previous, token])
    return product


@pytest.fixture(scope="module")
def tiny() -> Chains:
    return make_chains(TINY, 3)


@pytest.fixture(scope="module")
def default() -> Chains:
    return make_chains(DEFAULT, 0)


@pytest.mark.parametrize("modes", [2, 3])
def test_probabilities_of_all_strings_sum_to_one(modes: int) -> None:
    chains = make_chains(TINY | {"modes": modes, "target_modes": [1]}, 0)
    rows = every_string(5, 3)
    assert len(rows) == 1 + 4 + 4**2 + 4**3
    total = chains.mode_logps(rows).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(modes, dtype=torch.float64), rtol=0, atol=1e-12)
    assert abs(chains.logps(rows).exp().sum().item() - 1) < 1e-12
    assert abs(chains.target_logps(rows).exp().sum().item() - 1) < 1e-12


def test_likelihoods_and_posteriors_by_hand(tiny: Chains) -> None:
    rows = every_string(5, 3)
    weights = [math.exp(weight) for weight in tiny.log_weights]
    modes = [[by_hand(tiny, row, mode) for mode in range(3)] for row in rows]
    joint = [[w * p for w, p in zip(weights, row, strict=True)] for row in modes]
    mixture = [sum(row) for row in joint]
    targets = [(row[0] + row[2]) / (weights[0] + weights[2]) for row in joint]
    shares = [[part / sum(row) for part in row] for row in joint]
    for ours, theirs in (
        (tiny.mode_logps(rows), np.log(modes)),
        (tiny.logps(rows), np.log(mixture)),
        (tiny.target_logps(rows), np.log(targets)),
        (tiny.posterior(rows), shares),
        (tiny.target_posterior(rows), [row[0] + row[2] for row in shares]),
    ):
        assert ours.dtype == torch.float64
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12, atol=1e-13)


def test_rows_of_the_default_world_by_hand(default: Chains, generator: torch.Generator) -> None:
    rows, _ = default.sample(300, generator)
    rows += [[EOS], [0, EOS], [0] * 12, [5] * 11 + [EOS]]
    expected = [[math.log(by_hand(default, row, mode)) for mode in range(10)] for row in rows]
    np.testing.assert_allclose(default.mode_logps(rows).numpy(), expected, rtol=1e-12)
    shares = default.posterior(rows).sum(1)
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0, atol=1e-12)
    target = default.target_posterior(rows)
    assert target.min() >= 0
    assert target.max() <= 1
    torch.testing.assert_close(default.target_logps(rows), default.mode_logps(rows)[:, 9])


def test_target_posterior_never_exceeds_one(generator: torch.Generator) -> None:
    """Nine targets of ten: without a bound, some sums of their shares round to just above 1."""
    chains = make_chains(DEFAULT | {"target_modes": list(range(9)), "target_weight": 0.9}, 0)
    rows, _ = chains.sample(2000, generator)
    assert chains.target_posterior(rows).max() <= 1


def test_rows_do_not_change_each_other(default: Chains, generator: torch.Generator) -> None:
    rows, _ = default.sample(40, generator)
    rows += [[7, EOS], [EOS]]
    together = default.logps(rows)
    alone = torch.cat([default.logps([tuple(row)]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=0)
    assert default.mode_logps([]).shape == (0, 10)
    assert default.target_logps([]).shape == (0,)


def test_string_frequencies(tiny: Chains, generator: torch.Generator) -> None:
    """χ² over the 85 strings, rejected at p < 10⁻⁶."""
    count = 40_000
    rows, _ = tiny.sample(count, generator)
    strings = every_string(5, 3)
    seen = Counter(map(tuple, rows))
    assert set(seen) <= set(map(tuple, strings))
    expected = count * tiny.logps(strings).exp().numpy()
    assert expected.min() > 5
    observed = [seen[tuple(row)] for row in strings]
    assert stats.chisquare(observed, expected * count / expected.sum()).pvalue > 1e-6


def test_each_mode_draws_its_own_strings(tiny: Chains, generator: torch.Generator) -> None:
    """Contingency of mode and string against π_k p_k(x): χ² over the cells with at least five expected, p < 10⁻⁶."""
    count = 60_000
    rows, drawn = tiny.sample(count, generator)
    strings = every_string(5, 3)
    place = {tuple(row): index for index, row in enumerate(strings)}
    table = np.zeros((85, 3))
    for row, mode in zip(rows, drawn.tolist(), strict=True):
        table[place[tuple(row)], mode] += 1
    expected = count * (tiny.log_weights + tiny.mode_logps(strings)).exp().numpy()
    large = expected >= 5
    observed = [*table[large], table[~large].sum()]
    cells = [*expected[large], expected[~large].sum()]
    assert stats.chisquare(observed, np.array(cells) * count / np.sum(cells)).pvalue > 1e-6


def test_mode_frequencies(default: Chains, generator: torch.Generator) -> None:
    """Each mode's share within 5 standard errors of its weight."""
    count = 20_000
    _, drawn = default.sample(count, generator)
    assert drawn.shape == (count,)
    weights = default.log_weights.exp().numpy()
    shares = np.bincount(drawn.numpy(), minlength=10) / count
    assert (abs(shares - weights) < 5 * np.sqrt(weights * (1 - weights) / count)).all()


def test_mean_log_likelihood_is_the_entropy(tiny: Chains, generator: torch.Generator) -> None:
    """The mean of −log p* over samples within 5 standard errors of the enumerated entropy."""
    exact = tiny.logps(every_string(5, 3))
    entropy = -(exact.exp() * exact).sum()
    values = -tiny.logps(tiny.sample(20_000, generator)[0])
    assert abs(values.mean() - entropy) < 5 * values.std() / math.sqrt(20_000)


def test_sampling_of_some_modes(default: Chains, generator: torch.Generator) -> None:
    """Shares of two modes within 5 standard errors of their weights scaled to sum to 1."""
    rows, drawn = default.sample(4000, generator, modes=[9, 2, 9])
    assert set(drawn.tolist()) == {2, 9}
    weights = default.log_weights.exp()
    share = (weights[9] / (weights[2] + weights[9])).item()
    found = (drawn == 9).double().mean().item()
    assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / 4000)
    assert default.posterior(rows)[:, [2, 9]].sum(1).mean() > 0.99
    assert set(default.sample(50, generator, modes=default.target_modes)[1].tolist()) == {9}


def test_samples_end_with_their_first_eos(default: Chains, generator: torch.Generator) -> None:
    rows, _ = default.sample(5000, generator)
    assert all(1 <= len(row) <= 12 for row in rows)
    assert all(EOS not in row[:-1] for row in rows)
    assert all(row[-1] == EOS for row in rows if len(row) < 12)
    assert any(len(row) < 12 for row in rows)
    assert any(0 in row for row in rows)
    assert default.sample(0, generator)[0] == []


def test_a_world_and_its_rows_are_functions_of_their_seeds() -> None:
    state, numpys = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, same, other = make_chains(DEFAULT, 5), make_chains(DEFAULT, 5), make_chains(DEFAULT, 6)
    rows = [world.sample(100, torch.Generator().manual_seed(1))[0] for world in (one, same, other)]
    again = one.sample(100, torch.Generator().manual_seed(2))[0]
    assert torch.equal(one.log_starts, same.log_starts)
    assert torch.equal(one.log_transitions, same.log_transitions)
    assert not torch.equal(one.log_transitions, other.log_transitions)
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]
    assert rows[0] != again
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002


def test_more_modes_leave_the_first_chains_as_they_were(default: Chains) -> None:
    more = make_chains(DEFAULT | {"modes": 12, "target_weight": 0.3, "zipf_exponent": 0.0}, 0)
    assert torch.equal(more.log_starts[:10], default.log_starts)
    assert torch.equal(more.log_transitions[:10], default.log_transitions)


def test_weights() -> None:
    chains = make_chains(DEFAULT | {"modes": 5, "target_modes": [3, 1], "target_weight": 0.1, "zipf_exponent": 2.0}, 0)
    scale = 0.9 / (1 + 1 / 4 + 1 / 9)
    expected = [scale, 0.05, scale / 4, 0.05, scale / 9]
    np.testing.assert_allclose(chains.log_weights.exp().numpy(), expected, rtol=1e-14)
    assert chains.target_modes == (3, 1)
    even = make_chains(DEFAULT | {"zipf_exponent": 0, "target_weight": 0.1}, 0).log_weights.exp()
    np.testing.assert_allclose(even.numpy(), 0.1, rtol=1e-14)


def test_shape_of_the_chains(default: Chains) -> None:
    """Rows sum to 1, noise is ε/V everywhere, and each mode's real tokens are its own subset of the symbols."""
    starts, transitions = default.log_starts.exp(), default.log_transitions.exp()
    assert starts.shape == (10, 32)
    assert transitions.shape == (10, 32, 32)
    subsets = set()
    for table, count in ((starts, 8), (transitions, 5)):
        assert table.dtype == torch.float64
        np.testing.assert_allclose(table.sum(-1).numpy(), 1, rtol=1e-13)
        np.testing.assert_allclose(table.min().item(), 0.03 / 32, rtol=1e-13)
        assert ((table > 0.03 / 32 * (1 + 1e-9)).sum(-1) == count).all()
    for mode in range(10):
        used = torch.cat([starts[mode : mode + 1], transitions[mode]]).amax(0) > 0.03 / 32 * (1 + 1e-9)
        symbols = used.nonzero().flatten().tolist()
        assert min(symbols) >= 2
        assert len(symbols) == 16
        subsets.add(tuple(symbols))
    assert len(subsets) == 10


def test_a_string_tells_its_mode(default: Chains, generator: torch.Generator) -> None:
    """Posteriors are close to 0 or 1: 99.8 % of samples above 0.99, and 99.9 % come from the likeliest mode."""
    rows, drawn = default.sample(20_000, generator)
    best, mode = default.posterior(rows).max(1)
    assert (best > 0.99).double().mean() > 0.995
    assert (mode == drawn).double().mean() > 0.998


def test_noise_alone_forgets_the_mode() -> None:
    """With ε = 1 all modes are the uniform distribution: the posterior is the prior, and p* is known."""
    chains = make_chains(DEFAULT | {"noise": 1.0}, 0)
    rows = [[EOS], [4, 9, EOS], list(range(2, 14))]
    sizes = torch.tensor([1, 3, 12], dtype=torch.float64)
    torch.testing.assert_close(chains.logps(rows), -sizes * math.log(32), rtol=1e-13, atol=0)
    torch.testing.assert_close(chains.posterior(rows), chains.log_weights.exp().expand(3, -1), rtol=1e-12, atol=0)
    np.testing.assert_allclose(chains.target_posterior(rows).numpy(), 0.02, rtol=1e-12)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "row 2 has no tokens or more than 12"),
        ([3] * 13, "row 2 has no tokens or more than 12"),
        ([3] * 12 + [EOS], "row 2 has no tokens or more than 12"),
        ([3, 32, EOS], r"row 2 has a token that is not in 0 … 31"),
        ([-1, EOS], r"row 2 has a token that is not in 0 … 31"),
        ([3, EOS, 4, EOS], "row 2 has tokens behind its end token"),
        ([3] * 10 + [EOS, EOS], "row 2 has tokens behind its end token"),
        ([3] * 11, "row 2 has neither an end token nor 12 tokens"),
    ],
)
def test_rows_that_are_no_strings_are_refused(default: Chains, row: list[int], message: str) -> None:
    rows = [[3, EOS], [3] * 12, row, [3] * 11 + [EOS]]
    for method in ("mode_logps", "logps", "posterior", "target_posterior", "target_logps"):
        with pytest.raises(ValueError, match=message):
            getattr(default, method)(rows)


@pytest.mark.parametrize("modes", [[], [10], [-1, 2]])
def test_unknown_modes_are_refused(default: Chains, generator: torch.Generator, modes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"name some of 0 … 9"):
        default.sample(5, generator, modes=modes)


@pytest.mark.parametrize("change", [{"subset": 31}, {"starts": 17}, {"successors": 17}])
def test_more_tokens_than_there_are_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="larger sample than population"):
        make_chains(DEFAULT | change, 0)
