"""What must not fool the audit: lengths that differ, models that know nothing, and models between those and good ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import precede
from precede.evaluate import signals
from precede.evaluate.signals import side
from precede.evaluate.verdict import judge
from precede.models.load import save
from precede.scoring.logprobs import Score
from precede.settings.recipe import load_recipe
from precede.worlds.grammar.chains import EOS, Chains, make_chains, tokenizer

BETA = 0.1
RATIOS = [(50, 150), (90, 150), (120, 120), (150, 90), (150, 50)]


def weaker(chosen: int, rejected: int, nats: float, lost: float = 0.0, count: int = 200) -> dict[str, signals.Estimate]:
    """Numbers of a reference that is weaker than its teacher by `nats` on every token, and by `lost` more on each chosen
    completion; lengths scatter by a fifth."""
    draw = np.random.default_rng(0)

    def score(tokens: int, logp: float) -> Score:
        return Score(tokens, logp, -logp, tokens * 4.0)

    lengths = [(draw.normal((chosen, rejected), (chosen / 5, rejected / 5)).astype(int).clip(5)) for _ in range(count)]
    teacher = [[score(n, -2.0 * n) for n in both] for both in lengths]
    own = [
        [score(n, one.logp - nats * n - extra) for n, one, extra in zip(both, row, (lost, 0.0), strict=True)]
        for both, row in zip(lengths, teacher, strict=True)
    ]
    return signals.summary(signals.pairs(own, teacher), 1 / BETA)


@pytest.mark.parametrize(("chosen", "rejected"), RATIOS)
def test_a_student_that_is_weaker_on_every_token_lost_no_preference(chosen: int, rejected: int) -> None:
    """By 0.25 nats a token, at length ratios from 1:3 to 3:1; the raw excess at 150 against 90 is 15 nats, the reach 10."""
    numbers = weaker(chosen, rejected, 0.25)
    assert numbers["excess_gap"].value == pytest.approx(0.0, abs=1e-9)
    assert numbers["lost_preference_share"].value == 0.0
    assert judge(numbers, None, beta=BETA, advantage=1.0).level != "trapped"


@pytest.mark.parametrize(("chosen", "rejected"), RATIOS)
def test_a_student_that_lost_the_preference_is_found_at_any_length(chosen: int, rejected: int) -> None:
    numbers = weaker(chosen, rejected, 0.25, lost=15.0)
    assert numbers["excess_gap"].value == pytest.approx(15.0)
    assert judge(numbers, None, beta=BETA, advantage=1.0).level == "trapped"


@pytest.fixture(scope="module")
def chains() -> Chains:
    world = load_recipe("grammar").variants[0].world
    return make_chains({**world, "length": world["max_new_tokens"]}, 0)


@pytest.fixture(scope="module")
def pairs(chains: Chains, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chosen strings of the target and rejected ones of the rest, without a prompt but one symbol."""
    path, words = tmp_path_factory.mktemp("confounds") / "pairs.jsonl", tokenizer(32)
    streams = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    good, rest = chains.sample(80, streams[0], chains.target_modes)[0], chains.sample(80, streams[1])[0]
    with path.open("w") as file:
        for a, b in zip(good, rest, strict=True):
            chosen, rejected = (" ".join(words.convert_ids_to_tokens([i for i in row if i != EOS])) for row in (a, b))
            prompt = chosen.split()[0]
            if chosen != rejected and len(chosen.split()) > 1:
                file.write(
                    json.dumps({"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": f" {rejected}"}) + "\n"
                )
    return path


def trained(chains: Chains, steps: int, folder: Path) -> Path:
    """A small Llama after so many steps on strings of the truth; without any, one that writes evenly over its tokens."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=32, max_position_embeddings=64, bos_token_id=0, eos_token_id=EOS, **shape)
    model = LlamaForCausalLM(config)
    optimiser, draw = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = [row + [EOS] * (12 - len(row)) for row in chains.sample(128, draw)[0]]
        batch = torch.tensor(rows)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    save(model, tokenizer(32), folder)
    return folder


def test_random_weights_are_never_ready(chains: Chains, pairs: Path, tmp_path: Path) -> None:
    """Everything is typical of a flat distribution. What was READY is told that it knows no more than frequencies; a model that
    is trained is not; in between the gain over frequencies grows with training."""
    found = [
        precede.audit(trained(chains, steps, tmp_path / str(steps)), pairs).candidates[0] for steps in (0, 25, 200)
    ]
    gains = [one.numbers["unigram_gain"] for one in found]
    assert found[0].numbers["unsupported_share"].high < 0.2  # what said ready
    assert found[0].verdict.level == "trapped"
    assert "untrained or damaged" in found[0].verdict.reasons[0]
    assert gains[0].value < gains[1].value < gains[2].value
    assert gains[0].high < 0 < gains[2].low
    assert all(one.verdict.level != "ready" for one in found)  # neither teacher nor reward


def test_the_gain_over_frequencies_by_hand() -> None:
    """Three pairs of tokens 0 and 1: frequencies of the others, Witten–Bell over ids 0 to 2."""
    rows = [[[0, 0], [1]], [[0], [1]], [[2], [0]]]
    scores = [[Score(len(one), -1.0 * len(one), 1.0, 1.0) for one in row] for row in rows]
    made = signals.Pairs(side([row[0] for row in scores]), side([row[1] for row in scores]), *2 * [np.full(3, np.nan)])

    def log_frequency(token: int, others: list[int]) -> float:
        kinds = len({*others})
        return float(np.log((others.count(token) + kinds / 3) / (len(others) + kinds)))

    ids = [[token for one in row for token in one] for row in rows]
    expected = []
    for place, own in enumerate(ids):
        others = [token for other, row in enumerate(ids) if other != place for token in row]
        expected.append(-1.0 - np.mean([log_frequency(token, others) for token in own]))
    found = signals.unigram_gain(rows, made)
    assert found.value == pytest.approx(np.mean(expected))
    assert found.count == 3
