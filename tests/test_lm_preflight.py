"""What is checked before training: a tokenizer against its model, and how texts and turns begin and end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from precede.models.load import load_tokenizer
from precede.models.tokenizers import preflight
from test_lm_tiny import tiny_model, tiny_tokenizer

CHAT = (
    "{% for message in messages %}{{ '<s> ' + message['role'] + ' ' + message['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


def chatty(template: str | None = CHAT, bos: bool = False, **more: Any) -> Any:
    """The tiny tokenizer with a chat template; `bos` puts <s> before every text; pads with a word of its own."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "w16"
    tokenizer.chat_template = template
    if bos:
        around = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        tokenizer.backend_tokenizer.post_processor = around
    for name, value in more.items():
        setattr(tokenizer, name, value)
    return tokenizer


def stopping_at(*ids: int) -> Any:
    model = tiny_model()
    model.generation_config.eos_token_id = list(ids) if len(ids) > 1 else ids[0]
    return model


@pytest.mark.parametrize("conversations", [False, True])
def test_what_fits_has_no_notes(conversations: bool) -> None:
    assert preflight(tiny_model(), chatty(), "tiny", conversations) == []
    assert preflight(tiny_model().config, chatty(), "tiny", conversations) == []
    assert preflight(stopping_at(5, 2), chatty(), "tiny", conversations) == []


def test_no_eos() -> None:
    with pytest.raises(ValueError, match=r"^the tokenizer of tiny has no end-of-sequence token; set eos_token in its"):
        preflight(tiny_model(), chatty(eos_token=None), "tiny", False)


@pytest.mark.parametrize("part", [lambda model: model, lambda model: model.config])
def test_ids_beyond_the_embeddings(part: Callable[[Any], Any]) -> None:
    with pytest.raises(
        ValueError, match=r"tiny has ids up to 31, but the model has embeddings for 31 tokens only; take"
    ):
        preflight(part(tiny_model(vocab_size=31)), chatty(), "tiny", False)
    assert preflight(part(tiny_model(vocab_size=64)), chatty(), "tiny", False) == []  # padded embeddings are fine


def test_the_model_counts_not_its_configuration() -> None:
    model = tiny_model()
    model.resize_token_embeddings(16)
    model.config.vocab_size = 32
    with pytest.raises(ValueError, match="embeddings for 16 tokens only"):
        preflight(model, chatty(), "tiny", False)


def test_padding(tmp_path: Path) -> None:
    equal = "the tokenizer of tiny pads with its EOS '</s>', which is harmless here: padding is never scored"
    assert preflight(tiny_model(), tiny_tokenizer(), "tiny", False) == [equal]
    missing = (
        "the tokenizer of tiny has no padding token, so its EOS pads: '</s>', which is harmless here: padding is never"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="</s>")
    tokenizer.save_pretrained(tmp_path)
    for made in (tokenizer, load_tokenizer(tmp_path)):
        (note,) = preflight(tiny_model(), made, "tiny", False)
        assert note.startswith(missing)
    assert load_tokenizer(tmp_path).pad_token == "</s>"


def test_conversations_without_a_template() -> None:
    with pytest.raises(ValueError, match=r"conversations, but the tokenizer of tiny has no chat template; take the"):
        preflight(tiny_model(), chatty(None), "tiny", True)
    assert preflight(tiny_model(), chatty(None), "tiny", False) == []


def test_a_template_that_fails() -> None:
    with pytest.raises(
        ValueError, match=r"^the chat template of tiny fails for a user's .*: only the system; mend it$"
    ):
        preflight(tiny_model(), chatty("{{ raise_exception('only the system') }}"), "tiny", True)
    with pytest.raises(ValueError, match=r"^the chat template of tiny leaves out what the assistant says; mend it$"):
        preflight(tiny_model(), chatty("{{ messages[0]['content'] }} </s>"), "tiny", True)


def test_bos_twice() -> None:
    (note,) = preflight(tiny_model(), chatty(bos=True), "tiny", True)
    assert note.startswith("the tokenizer of tiny puts '<s>' before every text, and its chat template writes it too: ")
    assert preflight(tiny_model(), chatty(bos=True), "tiny", False) == []
    assert preflight(tiny_model(), chatty(CHAT.replace("<s>", "The"), bos=True), "tiny", True) == []


def test_a_turn_without_an_end() -> None:
    for template in (CHAT.replace("</s>", "."), CHAT.replace(" </s>", "")):
        (note,) = preflight(stopping_at(7), chatty(template.replace("<s>", "The")), "tiny", True)
        assert note.startswith("the chat template of tiny ends what the assistant says with no special token, so that ")
        assert note.endswith("let it write '</s>' there")


def test_a_turn_may_end_with_another_special_token() -> None:
    tokenizer = chatty(CHAT.replace("</s>", ". <end> </s>"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    model = tiny_model(vocab_size=64)
    end = tokenizer.convert_tokens_to_ids("<end>")
    (note,) = preflight(model, tokenizer, "tiny", True)
    assert note == (
        f"tiny stops at '</s>' (2), but an assistant's turn ends with '<end>' ({end}): it would not stop there; "
        f"add {end} to eos_token_id in its generation_config.json"
    )
    model.generation_config.eos_token_id = [2, end]
    assert preflight(model, tokenizer, "tiny", True) == []


def test_an_added_word_is_no_end() -> None:
    tokenizer = chatty(CHAT.replace("</s>", "blue </s>"))
    tokenizer.add_tokens(["blue"])
    assert preflight(tiny_model(), tokenizer, "tiny", True) == []


def test_generation_stops_elsewhere() -> None:
    for model in (stopping_at(5, 6), tiny_model(eos_token_id=[5, 6]).config):
        (note,) = preflight(model, chatty(), "tiny", False)
        assert note.startswith(
            "tiny stops at 'is' (5), 'may' (6), but a text ends with '</s>' (2): it would not stop there"
        )
        (note,) = preflight(model, chatty(), "tiny", True)
        assert note.startswith("tiny stops at 'is' (5), 'may' (6), but an assistant's turn ends with '</s>' (2): ")


def test_a_model_that_names_no_end_takes_the_tokenizer_s() -> None:
    model = tiny_model(eos_token_id=None)
    assert model.generation_config.eos_token_id is None
    assert preflight(model, chatty(), "tiny", True) == []


def test_ends_that_are_no_tokens() -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = "two"
    with pytest.raises(
        ValueError, match=r"^eos_token_id of the model is 'two'; let generation_config\.json have a token"
    ):
        preflight(model, tiny_tokenizer(), "tiny", False)
