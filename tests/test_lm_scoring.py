from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from precede.sampling import sample
from precede.scoring import heads, logprobs, packing
from precede.scoring.heads import Head, moments
from precede.scoring.logprobs import Score, score, scoring_path
from test_lm_scoring_families import FAMILIES, VOCABULARY, family, texts, worst
from test_lm_tiny import PROMPT, tiny_model, tiny_tokenizer

PACKED_AND_PADDED = pytest.mark.parametrize("name", ["gemma3", "mamba"])


def numbers(scores: list[list[Score]]) -> torch.Tensor:
    return torch.tensor([[s.tokens, s.logp, s.entropy, s.varentropy] for group in scores for s in group])


def random_texts(seed: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    """1 to 6 prompts of 1 to 12 tokens, each with 0 to 4 completions of 0 to 12."""
    draw = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=draw))

    def tokens(low: int) -> list[int]:
        return torch.randint(VOCABULARY, (number(low, 12),), generator=draw).tolist()

    prompts = [tokens(1) for _ in range(number(1, 6))]
    return prompts, [[tokens(0) for _ in range(number(0, 4))] for _ in prompts]


@pytest.mark.parametrize("seed", range(6))
@PACKED_AND_PADDED
def test_any_number_of_completions(name: str, seed: int) -> None:
    model = family(name)
    prompts, completions = random_texts(seed)
    assert worst(model, prompts, completions, score(model, prompts, completions)) < 2e-5


@PACKED_AND_PADDED
def test_scores_do_not_depend_on_order_batches_or_company(name: str) -> None:
    model = family(name)
    prompts, completions = texts()
    expected = numbers(score(model, prompts, completions))
    for budget in (1, 30, 60, 10_000):
        found = numbers(score(model, prompts, completions, tokens_per_batch=budget))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    turned = score(model, prompts[::-1], [rows[::-1] for rows in completions[::-1]])
    torch.testing.assert_close(numbers(turned).flip(0), expected, atol=1e-5, rtol=0)
    pairs = [(prompt, row) for prompt, rows in zip(prompts, completions, strict=True) for row in rows]
    alone = score(model, [prompt for prompt, _ in pairs], [[row] for _, row in pairs])
    torch.testing.assert_close(numbers(alone), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@PACKED_AND_PADDED
def test_a_temperature_divides_the_logits(name: str, temperature: float) -> None:
    """After a cap on them, if the model has one; whichever path scores it."""
    model = family(name)
    prompts, completions = texts()
    scores = score(model, prompts, completions, temperature=temperature)
    assert worst(model, prompts, completions, scores, temperature) < 2e-5
    assert scoring_path(model) == FAMILIES[name][2]


def test_nothing_to_score() -> None:
    model = tiny_model()
    assert score(model, [], []) == []
    heard: list[int] = []
    assert score(model, [[1], [3, 4]], [[], [[], []]], progress=heard.append) == [[], [Score(0, 0, 0, 0)] * 2]
    assert sum(heard) == 2
    assert math.isnan(Score(0, 0, 0, 0).typicality)
    with pytest.raises(ValueError, match=r"^row 1: its prompt has no tokens; give it one at least, such as the BOS$"):
        score(model, [[1], []], [[[4]], [[4]]])


@pytest.mark.parametrize("name", ["llama", "mamba", "phi3 longrope"])
def test_progress_adds_up(name: str) -> None:
    model = family(name)
    prompts, completions = texts()
    heard: list[int] = []
    score(model, [*prompts, [5]], [*completions, []], tokens_per_batch=40, progress=heard.append)
    assert sum(heard) == len(prompts) + 1
    assert len(heard) > 2


def test_batches_keep_to_the_budget_and_repeat_no_row() -> None:
    groups = [
        logprobs.Group([1] * (1 + n % 5), [([2] * (1 + n * 7 % 11), n), ([2] * (n % 4 + 1), n)]) for n in range(40)
    ]
    for packed in (True, False):
        made = list(logprobs.batches(groups, packed, 50, 14.0))
        assert sorted(owner for batch, _ in made for group in batch for _, owner in group.rows) == sorted(
            2 * [*range(40)]
        )
        assert sum(group.done for batch, _ in made for group in batch) == 40
        for batch, how in made:
            rows = [group.longest for group in batch for _ in group.rows]
            cost = sum(group.size for group in batch) if packed else len(rows) * max(rows)
            assert cost <= 50
            assert max(rows) <= 14 or (len(rows) == 1 and not how)


@PACKED_AND_PADDED
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = family(name).train()
    next(iter(model.modules())).get_submodule("backbone" if name == "mamba" else "model").eval()
    flags = [module.training for module in model.modules()]
    attention = model.config._attn_implementation
    prompts, completions = texts()
    first = score(model, prompts, completions)
    assert score(model, prompts, completions) == first
    with pytest.raises(IndexError):
        score(model, [[VOCABULARY]], [[[3, 4]]])
    assert [module.training for module in model.modules()] == flags
    assert model.config._attn_implementation == attention
    assert packing._segments.get(None) is None
    model.eval()
    assert model(input_ids=torch.tensor([[3, 4]])).logits.isfinite().all()


def test_dropout_is_off() -> None:
    model = tiny_model(attention_dropout=0.5).train()
    assert score(model, [PROMPT], [[[4, 5, 6]]]) == score(model.eval(), [PROMPT], [[[4, 5, 6]]])


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_the_self_check_finds_a_wrong_attention(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = packing._attention

    def attention(*arguments: Any, **more: Any) -> Any:
        if fault == "raises":
            raise RuntimeError("no such kernel")
        return right(*arguments, **more)[0].roll(1, 1), None

    monkeypatch.setattr(packing, "_attention", attention)
    model = family("llama")
    prompts, completions = texts()
    assert worst(model, prompts, completions, score(model, prompts, completions)) < 2e-5
    assert scoring_path(model) == "padded"


@pytest.mark.parametrize(
    "more", [{"dropout": 0.1}, {"is_causal": False}, {"position_bias": torch.zeros(1)}, {"attention_mask": None}]
)
def test_what_packed_attention_cannot_do_raises(more: dict[str, Any]) -> None:
    query = torch.zeros(1, 2, 3, 4)
    given = {"attention_mask": packing.Rule([packing.Segment(0, 3)], None), "sliding_window": 5, "position_bias": None}
    assert packing._attention(nn.Module(), query, query, query, **given)[0].shape == (1, 3, 2, 4)
    with pytest.raises(NotImplementedError, match=r"^Module needs more than packed attention can do"):
        packing._attention(nn.Module(), query, query, query, **(given | more))


def test_the_self_check_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    right = logprobs._find_way
    monkeypatch.setattr(logprobs, "_find_way", lambda model: found.append(model) or right(model))
    models = [family("llama"), family("gpt2")]
    for model in models * 2:
        score(model, [[1]], [[[4]]])
        scoring_path(model)
    assert found == models


class OddHead(LlamaForCausalLM):
    """Adds to its logits what no scorer can know of, and rules tokens out."""

    def forward(self, *arguments: Any, **more: Any) -> Any:
        found = super().forward(*arguments, **more)
        found.logits = found.logits + torch.linspace(0, 3, found.logits.shape[-1], dtype=found.logits.dtype)
        found.logits[..., :2] = -torch.inf
        return found


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_model_with_a_head_of_its_own_is_run_whole(temperature: float) -> None:
    model = OddHead(tiny_model().config).eval()
    prompts, completions = [PROMPT, [5]], [[[4, 5, 6], [7]], [[8] * 9]]
    found = numbers(score(model, prompts, completions, temperature=temperature))
    assert not logprobs._examine(model).body
    for place, (prompt, row) in enumerate([(PROMPT, [4, 5, 6]), (PROMPT, [7]), ([5], [8] * 9)]):
        ids = torch.tensor([[*prompt, *row]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
        expected = (logits / temperature).log_softmax(-1)
        assert found[place, 1] == pytest.approx(float(expected.gather(1, torch.tensor([row]).T).sum()), abs=1e-4)
        kept = expected[:, 2:]
        assert found[place, 2] == pytest.approx(-float((kept.exp() * kept).sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "change"),
    [("logits", {}), ("logits", {"temperature": 0.7})]
    + [
        (kind, change)
        for kind in ("plain", "bias", "bfloat16", "hook")
        for change in ({}, {"cap": 4.0}, {"scale": 0.5}, {"cap": 4.0, "temperature": 0.7})
    ],
)
def test_moments_over_many_tiles(kind: str, change: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is cut into 5 tiles and the states into 4 blocks; the largest logit is in any of them."""
    monkeypatch.setattr(heads, "COLUMNS", 64)
    monkeypatch.setattr(heads, "TILE", {"cpu": 64 * 8})
    draw = torch.Generator().manual_seed(0)
    layer = nn.Linear(12, 300, bias=kind == "bias")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=draw))
        states = torch.randn(30, 12, generator=draw) * torch.linspace(0, 2, 30)[:, None]
        labels = torch.randint(300, (30,), generator=draw)
        if kind == "bfloat16":
            layer, states = layer.bfloat16(), states.bfloat16()
        if kind == "hook":
            layer.register_forward_hook(lambda module, given, logits: logits + torch.arange(300) / 100)
        logits = layer(states).double() * change.get("scale", 1)
        head = Head(layer, 300, **change)
        if kind == "logits":
            head, states = Head(None, 300, **change), layer(states)
    sizes: list[int] = []

    class Watched(Head):
        def logits(self, states: torch.Tensor, low: int, high: int, out: torch.Tensor) -> torch.Tensor:
            sizes.append(len(states) * (high - low))
            return super().logits(states, low, high, out)

    head = Watched(head.module, head.width, head.scale, head.cap, head.temperature)
    if "cap" in change:
        logits = change["cap"] * (logits / change["cap"]).tanh()
    logits = logits / change.get("temperature", 1)
    with torch.inference_mode():
        found = moments(head, states, labels)
    assert (max(sizes), sum(sizes)) == (300 if kind in ("bfloat16", "hook") else 64 * 8, 30 * 300)
    logps = logits.log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    varentropy = (logps.exp() * (logps + entropy[:, None]).square()).sum(-1)
    expected = torch.stack([logps.gather(1, labels[:, None])[:, 0], entropy, varentropy])
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)


def test_moments_of_nothing() -> None:
    assert moments(Head(nn.Linear(4, 9), 9), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).shape == (3, 0)


def test_own_samples_are_typical() -> None:
    """z of 600 samples of 12 tokens: a mean within 4 standard errors of 0, a false alarm in 16,000 were z normal."""
    model = tiny_model()
    rows = sample(model, tiny_tokenizer(), PROMPT, 600, max_new_tokens=12, seed=1)
    z = torch.tensor([entry.typicality for entry in score(model, [PROMPT], [rows])[0]])
    assert abs(z.mean()) < 4 / 600**0.5
    assert z.std() == pytest.approx(1, abs=0.15)
