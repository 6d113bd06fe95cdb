"""A tiny random Llama with a word-level tokenizer whose pad is its EOS, as SmolLM2's is; shared by the tests of `lm`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from precede.lm.models import load, save

WORDS = ["<unk>", "<s>", "</s>", "The", "answer", "is", "may", "likely", "sky", "sea", "a", "blue", "green", "was", "."]
WORDS += [f"w{number}" for number in range(17)]


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
        config = LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=scale,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            tie_word_embeddings=True,
            **more,
        )
        return LlamaForCausalLM(config).eval()


def tiny_folder(path: Path, **more: Any) -> Path:
    save(tiny_model(**more), tiny_tokenizer(), path)
    return path


def test_tiny_folder_loads(tmp_path: Path) -> None:
    model, tokenizer = load(tiny_folder(tmp_path / "teacher"))
    assert tokenizer("The sky")["input_ids"] == [3, 8]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model.dtype == torch.float32
    assert not model.training
