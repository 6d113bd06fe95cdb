"""KTO: what it does to pairs, and that it came as one file and one line of the registry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from build_material import make_inputs, recipe
from precede.jobs.build import build
from precede.models.load import load
from precede.plan import make_plan
from precede.scoring.logprobs import score
from precede.settings.recipe import read_recipe
from precede.stages.kto import kto
from precede.stages.preferences import Pair
from precede.stages.registry import METHODS
from precede.worlds.world import load_world
from test_grammar_tiny import changed
from test_lm_tiny import PROMPT, settings, tiny_folder, tiny_tokenizer

SOURCE = Path(__file__).parents[1] / "src" / "precede"
PAIRS = [Pair([5, 8, 11, 2], [9, 6, 7, 2]), Pair([5, 10, 11, 2], [9, 12, 2])] * 8


def logps(model: Any, side: str) -> torch.Tensor:
    rows = [[getattr(pair, side)] for pair in PAIRS]
    return torch.tensor([one.logp for (one,) in score(model, [PROMPT] * len(PAIRS), rows)])


def test_chosen_rise_and_rejected_fall_against_the_reference(tmp_path: Path) -> None:
    place = tiny_folder(tmp_path / "model")
    policy, reference = load(place)[0], load(place)[0]
    log = kto(policy, reference, tiny_tokenizer(), [PROMPT] * len(PAIRS), PAIRS, settings(steps=20), beta=0.1)
    assert log[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert log[0]["loss"] == pytest.approx(0.5, abs=1e-6)  # 1 − σ(0) of every row
    gains = {side: (logps(policy, side) - logps(reference, side)).mean() for side in ("chosen", "rejected")}
    assert gains["chosen"] > 0.5
    assert gains["rejected"] < -0.5


def test_its_loss_is_that_of_the_paper(tmp_path: Path) -> None:
    """One step on one batch, the reference another model: the mean of 1 − σ(±(β·log-ratio − β·z)), written out."""
    policy, reference = load(tiny_folder(tmp_path / "one"))[0], load(tiny_folder(tmp_path / "other", seed=3))[0]
    ratios = {side: logps(policy, side) - logps(reference, side) for side in ("chosen", "rejected")}
    pairs, beta = PAIRS[:4], 0.3
    given = settings(steps=1, batch_size=8)
    log = kto(policy, reference, tiny_tokenizer(), [PROMPT] * 4, pairs, given, beta=beta)
    # all rows follow one prompt, so that the KL rows are the rows themselves, in another order
    z = max(0.0, float(torch.cat([ratios["chosen"][:4], ratios["rejected"][:4]]).mean()))
    expected = torch.cat(
        [1 - torch.sigmoid(beta * (ratios["chosen"][:4] - z)), 1 - torch.sigmoid(beta * (z - ratios["rejected"][:4]))]
    ).mean()
    assert log[0]["loss"] == pytest.approx(float(expected), abs=1e-4)


def test_given_pairs_need_no_reward(tmp_path: Path) -> None:
    make_inputs(tmp_path)
    trainer = {"learning_rate": 3e-3, "max_steps": 6}
    read = recipe(tmp_path, orders="align", student=None, skip=["audit"], align__method="kto", align__trainer=trainer)
    (stage,) = build(read, tmp_path / "out", store=tmp_path / "store").report["stages"]
    assert stage["pairs"] > 0
    assert stage["first"]["kl"] == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(ValueError, match=r"^align with pairs: on_policy ranks samples by a reward"):
        recipe(tmp_path, orders="align", student=None, align__method="kto", align__pairs="on_policy")


def test_nobody_takes_it_for_a_tilt() -> None:
    read = read_recipe(changed(align__method="kto"))
    world = load_world(read, read.variants[0])
    aligned = [node for node in make_plan(read, [world] * len(read.variants)).nodes if node.kind == "align"]
    assert aligned
    assert not any(world.tilts(node.config) for node in aligned)
    assert not METHODS["kto"].needs_reward({"pairs": "given"})
    assert "samples_per_prompt" in METHODS["kto"].reads


def test_it_is_known_in_two_files_only() -> None:
    named = [path for path in SOURCE.rglob("*.py") if re.search(r"\bkto\b", path.read_text("utf-8"), re.IGNORECASE)]
    assert sorted(path.relative_to(SOURCE).as_posix() for path in named) == ["stages/kto.py", "stages/registry.py"]
