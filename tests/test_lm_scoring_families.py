"""The fast scorer on small random models of many families, against float64 and one row at a time, and which path it takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from precede.scoring.logprobs import score, scoring_path

VOCABULARY = 83
PROMPTS, LENGTHS = (5, 1, 20, 3), ((7, 12, 1), (9,), (15, 0, 4, 15), (7, 12))
"""Tokens of the prompts and of their completions; sliding windows below are shorter than most of them."""

BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OLD = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GEMMA = {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 5}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 16,
    "factor": 8.0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("Llama", BASE, "packed"),
    "llama tied": ("Llama", BASE | {"tie_word_embeddings": True}, "packed"),
    "gpt2": ("GPT2", OLD | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}, "packed"),
    "qwen2": ("Qwen2", BASE | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "packed"),
    "qwen3": ("Qwen3", BASE | {"head_dim": 16}, "packed"),
    "gemma2": ("Gemma2", BASE | GEMMA | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}, "packed"),
    "gemma3": ("Gemma3Text", BASE | GEMMA | {"num_hidden_layers": 7, "final_logit_softcapping": 5.0}, "packed"),
    "mistral": ("Mistral", BASE | {"sliding_window": 5}, "packed"),
    "mixtral": ("Mixtral", BASE | {"num_local_experts": 4}, "packed"),
    "phi": ("Phi", BASE, "packed"),
    "phi3 longrope": ("Phi3", BASE | {"rope_parameters": LONG, "original_max_position_embeddings": 16}, "packed"),
    "llama dynamic": (
        "Llama",
        BASE
        | {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
            "max_position_embeddings": 16,
        },
        "packed",
    ),
    "llama4 chunks": (
        "Llama4Text",
        BASE | {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "attention_chunk_size": 8},
        "",
    ),
    "gpt-oss sinks": (
        "GptOss",
        BASE
        | {"head_dim": 8, "num_local_experts": 4, "sliding_window": 5}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "packed",
    ),
    "gpt-neox": ("GPTNeoX", BASE, "packed"),
    "opt": (
        "OPT",
        BASE | {"ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 40, "init_std": 0.3},
        "packed",
    ),
    "cohere": ("Cohere", BASE | {"logit_scale": 0.25}, "packed"),
    "granite": ("Granite", BASE | {"logits_scaling": 3.0, "attention_multiplier": 0.2}, "packed"),
    "gpt-j": ("GPTJ", OLD | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "rotary_dim": 4}, ""),
    "bloom": ("Bloom", OLD | {"hidden_size": 32, "n_layer": 3, "n_head": 4}, "padded"),
    "mamba": ("Mamba", OLD | {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 3}, "padded"),
}


def family(name: str) -> Any:
    kind, values, _ = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**values)
        config._experts_implementation = "eager"  # the other ones know no float64
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def texts() -> tuple[list[list[int]], list[list[list[int]]]]:
    draw = torch.Generator().manual_seed(3)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=draw).tolist()

    return [tokens(count) for count in PROMPTS], [[tokens(count) for count in counts] for counts in LENGTHS]


def loop(model: Any, prompt: list[int], row: list[int], temperature: float = 1.0) -> list[float]:
    """The oracle: log p, entropy and varentropy in float64, from the model's own forward on this row alone."""
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = double(input_ids=torch.tensor([[*prompt, *row]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    sums = [0.0, 0.0, 0.0]
    for scores, token in zip(logits.double() / temperature, row, strict=True):
        p = scores.exp() / scores.exp().sum()
        entropy = -float((p * p.log()).sum())
        for place, value in enumerate(
            (float(p[token].log()), entropy, float((p * (p.log() + entropy).square()).sum()))
        ):
            sums[place] += value
    return sums


def worst(model: Any, prompts: Any, completions: Any, scores: Any, temperature: float = 1.0) -> float:
    """The largest difference to the oracle in any of the three sums, nats a token."""
    gaps = [0.0]
    for prompt, rows, found in zip(prompts, completions, scores, strict=True):
        assert [entry.tokens for entry in found] == [len(row) for row in rows]
        for row, entry in zip(rows, found, strict=True):
            sums = zip(
                (entry.logp, entry.entropy, entry.varentropy), loop(model, prompt, row, temperature), strict=True
            )
            gaps += [abs(a - b) / max(len(row), 1) for a, b in sums]
    return max(gaps)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_against_a_float64_loop(name: str) -> None:
    model = family(name)
    untouched = copy.deepcopy(model)  # some keep the angles of the longest row that they have seen
    prompts, completions = texts()
    scores = score(model, prompts, completions)
    assert worst(untouched, prompts, completions, scores) < 2e-5
    assert scoring_path(model) == (FAMILIES[name][2] or scoring_path(model))


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt-j"])
def test_a_row_beyond_the_table_of_positions_is_named(name: str) -> None:
    model = family(name)
    exact = [[3] * 30], [[[4] * 10]]
    assert worst(model, *exact, score(model, *exact)) < 2e-5
    with pytest.raises(ValueError, match=r"^row 1: it has 41 tokens, and the model has positions for 40; shorten it$"):
        score(model, [[3], [3] * 30], [[[4]], [[4], [4] * 11]])


def test_computed_positions_have_no_limit() -> None:
    model = family("llama")
    text = [[3] * 70], [[[4] * 70, [5]]]
    assert worst(model, *text, score(model, *text)) < 2e-5


def test_a_longer_row_of_before_leaves_no_trace() -> None:
    model = family("llama dynamic")
    text = [[3] * 10], [[[4] * 12]]
    fresh = score(model, *text)
    score(model, [[3] * 10], [[[4] * 50]])
    assert score(model, *text) == fresh
