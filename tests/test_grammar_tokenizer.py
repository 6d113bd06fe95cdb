"""The tokenizer of the grammar world: its words, its ids, and the way through a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer

from precede.worlds.grammar.chains import EOS, make_chains, tokenizer
from test_grammar_chains import DEFAULT


def test_tokenizer(tmp_path: Path, generator: torch.Generator) -> None:
    made = tokenizer(32)
    made.save_pretrained(tmp_path)
    rows, _ = make_chains(DEFAULT, 0).sample(200, generator)
    rows = [[token for token in row if token > EOS] for row in rows]
    for ours in (made, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(ours) == 32
        assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.unk_token_id) == (0, 1, 1, 1)
        assert ours("")["input_ids"] == [0]
        assert ours("a c")["input_ids"] == [0, 2, 4]
        assert ours("a c", add_special_tokens=False)["input_ids"] == [2, 4]
        assert ours("a word c")["input_ids"] == [0, 2, 1, 4]
        assert ours.decode([2, 4]) == "a c"
        assert ours.decode([0, 2, 4, 1]) == "<s> a c </s>"
        assert ours.decode([0, 2, 4, 1], skip_special_tokens=True) == "a c"
        padded = ours(["b", "z A D"], padding=True)
        assert padded["input_ids"] == [[1, 1, 0, 3], [0, 27, 28, 31]]
        assert padded["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]
        assert [ours(ours.decode(row))["input_ids"] for row in rows] == [[0, *row] for row in rows]


def test_words_of_a_large_vocabulary() -> None:
    ours = tokenizer(100)
    assert len(ours) == len(ours.get_vocab()) == 100
    assert ours.convert_ids_to_tokens([2, 27, 28, 53, 54, 99]) == ["a", "z", "A", "Z", "t52", "t97"]
