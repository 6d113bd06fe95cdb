"""Whether two tokenizers are one: every difference that changes ids is named, and no other counts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from precede.models.load import load_tokenizer
from precede.models.tokenizers import PROBES, same_tokenizer
from test_lm_tiny import WORDS

TEXTS = ["the answer is forty-two", "naïve café, straße", "答案是四十二。ответ: нет", "x = 1,234.5  # 🙂", "a b c"] * 3
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def trained() -> dict[str, Any]:
    """The file of a byte-level BPE trained on TEXTS."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        TEXTS, BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    loaded: dict[str, Any] = json.loads(tokenizer.to_str())
    return loaded


FILE = trained()


def bpe(change: Callable[[dict[str, Any]], Any] = lambda file: None, **more: Any) -> Any:
    """That tokenizer, its file changed in place by `change`."""
    file = json.loads(json.dumps(FILE))
    change(file)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(file)), **(SPECIAL | more))


def with_backend(**parts: Any) -> Any:
    tokenizer = bpe()
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


def one_more(file: dict[str, Any]) -> None:
    file["added_tokens"].append({**file["added_tokens"][0], "id": 300, "content": "<x>"})


def swapped_merges(file: dict[str, Any]) -> None:
    merges = file["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def swapped_ids(file: dict[str, Any]) -> None:
    vocabulary = file["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def renamed(file: dict[str, Any]) -> None:
    vocabulary = file["model"]["vocab"]
    vocabulary["Ġunheard"] = vocabulary.pop(list(vocabulary)[-1])
    file["model"]["merges"].pop()


BOS_FIRST = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])

DIFFERENT = {
    "their vocabularies differ: 300 and 301 tokens": bpe(one_more),
    "their vocabularies differ: only the first has ": bpe(renamed),
    "their vocabularies differ: '[ab]' is ": bpe(swapped_ids),
    r"their added tokens differ: '</s>' \(2\) is not found in a text in": bpe(
        lambda f: f["added_tokens"][2].update(rstrip=True)
    ),
    "only one of them splits special tokens": bpe(split_special_tokens=True),
    "their merges differ$": bpe(swapped_merges),
    r"their merges differ: \d+ and \d+$": bpe(lambda f: f["model"]["merges"].pop()),
    "their BPE models differ in ignore_merges": bpe(lambda f: f["model"].update(ignore_merges=True)),
    "their normalizers differ: none and NFC": with_backend(normalizer=normalizers.NFC()),
    "their pre-tokenizers differ: ByteLevel and Sequence": with_backend(pre_tokenizer=DIGITS),
    r"their pre-tokenizers differ in their settings \(ByteLevel\)": bpe(
        lambda f: f["pre_tokenizer"].update(add_prefix_space=True)
    ),
    "EOS is 2 and 0": bpe(eos_token="<unk>"),
    "BOS is 1 and none": bpe(bos_token=None),
    "what they put around a text differs, and so do the ids of ": with_backend(post_processor=BOS_FIRST),
}


@pytest.mark.parametrize("clause", DIFFERENT)
def test_a_difference_is_named(clause: str) -> None:
    other = DIFFERENT[clause]
    assert re.match(clause, same_tokenizer(bpe(), other) or "")
    assert same_tokenizer(other, bpe()) is not None
    assert same_tokenizer(other, other) is None


TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None}
PADDING |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
NO_DIFFERENCE = {
    "padding": bpe(lambda f: f.update(padding=PADDING)),
    "truncation": bpe(lambda f: f.update(truncation=TRUNCATION)),
    "decoder": with_backend(decoder=decoders.Fuse()),
    "offsets": bpe(lambda f: f["pre_tokenizer"].update(trim_offsets=False)),
    "around nothing": with_backend(post_processor=processors.ByteLevel(trim_offsets=False)),
    "pad": bpe(pad_token="<unk>"),
    "template": bpe(chat_template="{{ messages }}"),
}
SAME = bpe()


@pytest.mark.parametrize("name", NO_DIFFERENCE)
def test_what_leaves_ids_alone_is_no_difference(name: str) -> None:
    assert same_tokenizer(bpe(), NO_DIFFERENCE[name]) is None


def test_kinds_of_models_differ() -> None:
    words = {word: index for index, word in enumerate(WORDS)}
    made = []
    for model in (WordLevel(words, unk_token="<unk>"), BPE(words, [], unk_token="<unk>")):
        backend = Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        made.append(PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL))
    assert same_tokenizer(*made) == "their models differ: WordLevel and BPE"


class Letters(PreTrainedTokenizer):
    """A tokenizer without a backend: one token for each letter."""

    def __init__(self, lower: bool = False, **settings: Any) -> None:
        self.lower = lower
        self.letters = {letter: index for index, letter in enumerate("?abcABC\N{END OF TEXT}")}
        super().__init__(unk_token="?", eos_token="\N{END OF TEXT}", **settings)

    @property
    def vocab_size(self) -> int:
        return len(self.letters)

    def get_vocab(self) -> dict[str, int]:
        return self.letters

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(text.lower() if self.lower else text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.letters.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.letters)[index]


def test_tokenizers_without_a_backend_are_probed() -> None:
    assert same_tokenizer(Letters(), Letters()) is None
    assert re.match(r"they differ in the ids of 'naïve café", same_tokenizer(Letters(), Letters(lower=True)) or "")


def test_a_folder_keeps_the_tokenizer(tmp_path: Path) -> None:
    bpe().save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert same_tokenizer(bpe(), loaded) is None
    assert bpe()(list(PROBES))["input_ids"] == loaded(list(PROBES))["input_ids"]


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_what_is_ignored_leaves_ids_alone(text: str) -> None:
    for other in NO_DIFFERENCE.values():
        assert other(text)["input_ids"] == SAME(text)["input_ids"]
