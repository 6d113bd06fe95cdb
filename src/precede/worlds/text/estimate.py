"""What a stage of the text world will cost, from configurations alone: no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from precede.lm.libraries import quiet, transformers
from precede.lm.models import BUNDLED, bundled_file, kept_layers, parameter_count, pick_device, read_config, shorter
from precede.store import Stage
from precede.worlds.world import Cost

FLOPS_PER_SECOND = {"cpu": 1.6e11, "mps": 1.0e12, "cuda": 1.0e13}
"""Rates in the FLOPs of `Cost`; the CPU's was measured on two cores in fp32, the others are guesses."""
SECONDS_PER_STAGE = 15.0
"""Loading, saving and checksums of a model of 135 M parameters."""
BYTES_PER_TRAINED = 16
"""Weights, gradients and Adam's two moments, fp32."""
BUNDLED_LAYERS, BUNDLED_PER_LAYER, BUNDLED_REST = 30, 3_540_096, 28_312_128
"""SmolLM2-135M: layers, parameters in each, parameters outside of them."""


@cache
def parameters_of(model: str, keep: int | None) -> int:
    """Parameters of the teacher, or of the student with `keep` of its layers. ValueError where either cannot be."""
    if model == BUNDLED:
        bundled_file()
        layers = BUNDLED_LAYERS if keep is None else len(kept_layers(BUNDLED_LAYERS, keep))
        return BUNDLED_REST + layers * BUNDLED_PER_LAYER
    config = read_config(model)
    if keep is not None:
        config = shorter(config, kept_layers(config.num_hidden_layers, keep))
    with quiet(), torch.device("meta"):
        return parameter_count(transformers().AutoModelForCausalLM.from_config(config))


def estimate(stage: Stage, world: Mapping[str, Any]) -> Cost:
    """Expected cost per seed, as if every completion ran to its full length. Its wall time has the measuring too."""
    length = world["max_new_tokens"] + 1 + len(world["prompt"]) // 4
    distilled = [ancestor for ancestor in stage.lineage() if ancestor.kind == "distill"]
    teacher = stage.root().config["model"]
    keep = distilled[-1].config["keep_layers"] if distilled else None
    largest, own = parameters_of(teacher, None), parameters_of(teacher, keep)
    cost = Cost()
    memory = 4 * largest
    if stage.kind == "distill":
        earlier = [ancestor.config["keep_layers"] for ancestor in distilled[:-1]]
        parent = parameters_of(teacher, earlier[-1] if earlier else None)
        distillation_cost(cost, stage.config, stage.config["samples"] * length, teacher=parent, student=own)
    elif stage.kind == "align":
        original = stage.before_distillation() if stage.config["reference"] == "teacher" else None
        reference = own if original is None else largest
        pairs = min(stage.config["pair_count"], stage.config["samples"])
        alignment_cost(
            cost, stage.config, stage.config["samples"] * length, 2 * pairs * length, reference=reference, policy=own
        )
        memory += 4 * reference
    if stage.kind != "teacher":
        memory += BYTES_PER_TRAINED * own
    cost.peak_memory_bytes = float(memory)
    decodings = 1 if stage.distill_temperature() is None else 2
    measured = world["evaluation_samples"] * length
    measuring = Cost()
    measuring.sample(own, decodings * measured)
    measuring.score(own, (decodings + 1) * measured)
    measuring.score(largest, (decodings + 1) * measured)
    rate = FLOPS_PER_SECOND[pick_device(world["device"]).type]
    cost.wall_seconds = SECONDS_PER_STAGE + (cost.flops + measuring.flops) / rate
    return cost


def distillation_cost(cost: Cost, config: Mapping[str, Any], tokens: float, *, teacher: int, student: int) -> None:
    """`tokens` sampled from the teacher and learned by the student every epoch; parameters of both."""
    cost.sample(teacher, tokens)
    cost.train(student, tokens * config["epochs"])


def alignment_cost(
    cost: Cost, config: Mapping[str, Any], pool: float, paired: float, *, reference: int, policy: int
) -> None:
    """`pool` tokens sampled from the reference; `paired` tokens scored by it and learned every epoch."""
    cost.sample(reference, pool)
    cost.score(reference, paired * config["epochs"])
    cost.train(policy, paired * config["epochs"])
