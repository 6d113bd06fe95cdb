"""A tiny random Llama with a word-level tokenizer whose pad is its EOS, as SmolLM2's is, and what the tests of `lm` share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from precede.models.load import load, save
from precede.sampling import prompt_ids, sample
from precede.scoring.logprobs import score
from precede.stages.trainer import TrainerSettings

WORDS = ["<unk>", "<s>", "</s>", "The", "answer", "is", "may", "likely", "sky", "sea", "a", "blue", "green", "was", "."]
WORDS += [f"w{number}" for number in range(17)]
TEXT = "<s> The"
PROMPT = [1, 3]
"""The token ids of TEXT."""
LENGTH = 6
"""Longest completion, tokens."""


def tiny_tokenizer() -> Any:
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def tiny_model(layers: int = 5, seed: int = 0, scale: float = 0.3, **more: Any) -> Any:
    """Random weights; a larger `scale` makes its distributions less even."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        values: dict[str, Any] = {
            "vocab_size": len(WORDS),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": scale,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "tie_word_embeddings": True,
        }
        config = LlamaConfig(**(values | more))
        return LlamaForCausalLM(config).eval()


def stopping_model(seed: int = 0) -> Any:
    """A tiny model whose completions are ragged: about two of three end with EOS, at every length.

    The others have an EOS of logit 0, the embedding of the padding token being 0 and tied to the head.
    """
    model = tiny_model(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.get_input_embeddings().weight[2] = 0.6 * torch.randn(32, generator=generator)
    return model


def tiny_folder(path: Path, **more: Any) -> Path:
    save(tiny_model(**more), tiny_tokenizer(), path)
    return path


def settings(**changes: Any) -> TrainerSettings:
    values: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 8, "steps": 8, "seed": 0}
    return TrainerSettings(**(values | changes))


def one_sgd_step(learning_rate: float, **changes: Any) -> TrainerSettings:
    """One step that moves the weights by exactly −learning_rate · gradient."""
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    return settings(learning_rate=learning_rate, steps=1, extra=plain, **changes)


def rows_of(model: Any, count: int = 64, seed: int = 1, length: int = LENGTH, temperature: float = 1.0) -> Any:
    """Completions of PROMPT, ragged: some end with EOS, some are cut."""
    tokenizer = tiny_tokenizer()
    return sample(model, tokenizer, PROMPT, count, max_new_tokens=length, temperature=temperature, seed=seed)


def weights(model: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).double()


def exact_logps(model: Any, rows: Sequence[Sequence[int]], temperature: float = 1.0) -> list[torch.Tensor]:
    """log softmax(logits/τ) at each completion token in float64, row by row without padding: (tokens, vocabulary) each.

    The model is taken as it is (pass a float64 one); gradients flow.
    """
    found = []
    for row in rows:
        logits = model(input_ids=torch.tensor([[*PROMPT, *row]]), use_cache=False).logits[0, len(PROMPT) - 1 : -1]
        found.append((logits.double() / temperature).log_softmax(-1))
    return found


def logps(model: Any, prompt: Sequence[int], rows: Sequence[Sequence[int]], temperature: float = 1.0) -> torch.Tensor:
    """log p of each completion of one prompt by the package's scorer, nats, float64: (n,)."""
    (found,) = score(model, [prompt], [rows], temperature=temperature)
    return torch.tensor([one.logp for one in found], dtype=torch.float64)


def row_logps(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """log p of each completion token in float64, (tokens,) each; gradients flow."""
    return [
        logps.gather(1, torch.tensor([row]).T)[:, 0] for logps, row in zip(exact_logps(model, rows), rows, strict=True)
    ]


def doubled(model: Any) -> Any:
    """A float64 copy."""
    return copy.deepcopy(model).double()


def gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_completions_are_ragged() -> None:
    rows = rows_of(stopping_model())
    assert {(len(row), row[-1] == 2) for row in rows} == {
        (LENGTH, False),
        *((size + 1, True) for size in range(LENGTH)),
    }


def test_text_is_prompt() -> None:
    assert prompt_ids(tiny_tokenizer(), TEXT) == PROMPT


def test_tiny_folder_loads(tmp_path: Path) -> None:
    model, tokenizer = load(tiny_folder(tmp_path / "teacher"))
    assert tokenizer("The sky")["input_ids"] == [3, 8]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model.dtype == torch.float32
    assert not model.training
