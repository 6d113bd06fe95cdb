"""DPO of mixtures: against the tilt that is its optimum, its labels against Bradley–Terry, its loss against TRL."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import truth_of
from precede.worlds.mixture import align, density, measure, oracle


def test_dpo_optimum_is_the_tilt() -> None:
    """With Bradley–Terry labels of scale s and coefficient β/s, DPO at convergence is close to π_ref e^{R/β}.

    20 000 pairs; in KL, less than a tenth of the distance that the optimum lies from the reference.
    """
    truth = truth_of(target_weight=0.2)
    reference, generator = truth.parameters, torch.Generator().manual_seed(7)
    beta = torch.tensor([0.4], dtype=torch.float64)
    points = density.sample(reference, density.draw_noise([generator], 40_000))
    uniforms = torch.rand(1, 2, 20_000, generator=generator, dtype=torch.float64)
    chosen, rejected = align.label(
        points[..., :20_000], points[..., 20_000:], truth.reward, uniforms, scale=0.2, flip_rate=0.0
    )
    coefficient = align.dpo_coefficient(beta, 0.2)
    assert float(coefficient) == pytest.approx(2.0)
    result = align.dpo(
        reference, reference, chosen, rejected, coefficient, steps=300, learning_rate=0.05, variance_floor=1e-3
    )
    reward = measure.measure(result, truth, None)["reward"]
    optimum = oracle.optimum(reference, truth, beta, 1e-12)
    metrics = measure.measure_alignment(result, reference, reward, beta, optimum, truth.ridge_width)
    from_optimum = float(metrics["regret"]) / 0.4
    own_reward = measure.measure(reference, truth, None)["reward"]
    unmoved = measure.measure_alignment(reference, reference, own_reward, beta, optimum, truth.ridge_width)
    apart = float(unmoved["regret"]) / 0.4
    assert apart > 0.1
    assert from_optimum < 0.1 * apart


def test_labels_follow_bradley_terry_and_flips() -> None:
    """Share of first-chosen among 100 000 equal pairs against σ(ΔR/s) and its flip; 4 standard errors."""
    truth, generator = truth_of(), torch.Generator().manual_seed(8)
    count = 100_000
    first = truth.target[0, :, 1:3].T.unsqueeze(0).expand(1, 2, count) + 0.3
    second = truth.target[0, :, 1:3].T.unsqueeze(0).expand(1, 2, count)
    gap = float((truth.reward(first) - truth.reward(second))[0, 0])
    uniforms = torch.rand(1, 2, count, generator=generator, dtype=torch.float64)
    for flip in (0.0, 0.2):
        chosen, rejected = align.label(first, second, truth.reward, uniforms, scale=0.5, flip_rate=flip)
        plain = 1 / (1 + np.exp(-gap / 0.5))
        expected = plain * (1 - flip) + (1 - plain) * flip
        share = float((chosen == first).all(1).double().mean())
        assert abs(share - expected) < 4 * np.sqrt(0.25 / count)
        assert torch.equal(chosen + rejected, first + second)
    hard, _ = align.label(first, second, truth.reward, uniforms, scale=0.0, flip_rate=0.0)
    assert torch.equal(hard, second)


def test_dpo_loss_slope_against_finite_differences() -> None:
    logps = [torch.tensor([value], dtype=torch.float64) for value in (-3.0, -4.0, -3.5, -3.9)]
    _, slope = align.dpo_loss(*logps, 0.7)
    step = 1e-6
    for index, sign in ((0, 1.0), (1, -1.0)):
        moved = [[value.clone() for value in logps] for _ in range(2)]
        moved[0][index] += step
        moved[1][index] -= step
        change = align.dpo_loss(*moved[0], 0.7)[0] - align.dpo_loss(*moved[1], 0.7)[0]
        assert float(change) / (2 * step) == pytest.approx(sign * float(slope), rel=1e-6)


def test_dpo_loss_against_trl(tmp_path: Path) -> None:
    """The loss that TRL's trainer computes of a real model's log-probs, against ours of the same log-probs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import Whitespace
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        from trl import DPOConfig, DPOTrainer

        words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "a", "b", "c", "d", "e"])}
        raw = Tokenizer(WordLevel(words, unk_token="<pad>"))
        raw.pre_tokenizer = Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape)
        policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
        for name, model in (("policy", policy), ("reference", reference)):
            model.save_pretrained(tmp_path / name)
        pairs = Dataset.from_dict({"prompt": ["a b", "c"], "chosen": [" c d", " a"], "rejected": [" e", " b b a"]})
        args = DPOConfig(
            output_dir=str(tmp_path / "out"),
            beta=0.3,
            per_device_train_batch_size=2,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(
            LlamaForCausalLM.from_pretrained(tmp_path / "policy"),
            LlamaForCausalLM.from_pretrained(tmp_path / "reference"),
            args=args,
            train_dataset=pairs,
            processing_class=tokenizer,
        )
        batch = next(iter(trainer.get_train_dataloader()))
        theirs = float(trainer.compute_loss(trainer.model.eval(), dict(batch)))

    def logps(model: Any) -> torch.Tensor:
        ids = batch["input_ids"]
        with torch.no_grad():
            scores = model.eval()(input_ids=ids, attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
        taken = scores[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
        return (taken * batch["completion_mask"][:, 1:]).sum(-1)

    ours, _ = align.dpo_loss(*logps(trainer.model).chunk(2), *logps(trainer.ref_model).chunk(2), coefficient=0.3)
    assert float(ours.mean()) == pytest.approx(theirs, rel=1e-5)
    assert theirs != pytest.approx(np.log(2), abs=1e-3)
