"""Log-probabilities of completions. The only place that shifts labels and masks padding.

Ids are scored, never text: the prompt's ids (with BOS where the tokenizer gave one) are joined with the completion's,
so nothing is tokenised twice. Oracle in the tests: a float64 loop over one row at a time without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def completion_token_logps(
    model: Any,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    *,
    temperatures: Sequence[float] = (1.0,),
    batch_size: int = 32,
) -> Tensor:
    """log softmax(logits/τ) of each completion token, nats: (temperatures, n, longest completion), fp32, on the CPU.

    Entries behind a completion's end are 0. The completion's EOS is scored as the token it is. One forward pass serves
    all temperatures. `prompt` must have at least one id.
    """
    assert len(prompt) > 0
    width = max((len(row) for row in completions), default=0)
    result = torch.zeros(len(temperatures), len(completions), width)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for begin in range(0, len(completions), batch_size):
            rows = completions[begin : begin + batch_size]
            part = _batch(model, prompt, rows, temperatures)
            result[:, begin : begin + len(rows), : part.shape[-1]] = part
    model.train(was_training)
    return result


def completion_logps(
    model: Any,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    *,
    temperatures: Sequence[float] = (1.0,),
    batch_size: int = 32,
) -> Tensor:
    """Summed nats of each completion, (len(temperatures), n), fp32; see `completion_token_logps`."""
    tokens = completion_token_logps(model, prompt, completions, temperatures=temperatures, batch_size=batch_size)
    return tokens.sum(-1)


def _batch(model: Any, prompt: Sequence[int], rows: Sequence[Sequence[int]], temperatures: Sequence[float]) -> Tensor:
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), len(prompt) + width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        joined = torch.tensor([*prompt, *row])
        ids[index, : len(joined)] = joined
        mask[index, : len(joined)] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    # Padding stands on the right, behind every token that is scored; the logits at t predict the token at t + 1.
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, len(prompt) - 1 : -1].float()
    labels, keep = ids[:, len(prompt) :], mask[:, len(prompt) :].bool()
    parts = []
    for temperature in temperatures:
        scaled = logits if temperature == 1.0 else logits / temperature
        chosen = scaled.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        parts.append((chosen - scaled.logsumexp(-1)).masked_fill(~keep, 0.0))
    return torch.stack(parts).cpu()


@dataclass(frozen=True)
class Score:
    tokens: int
    logp: float
    entropy: float
    varentropy: float


def score(model: Any, prompts: Any, completions: Any, *, progress: Any = lambda count: None) -> list[list[Score]]:
    out = []
    with torch.inference_mode():
        for prompt, group in zip(prompts, completions, strict=True):
            found = []
            for row in group:
                ids = torch.tensor([[*prompt, *row]], device=model.device)
                logps = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                own = logps.gather(-1, ids[0, len(prompt) :, None]).sum()
                p = logps.exp()
                h = -(p * logps).sum(-1)
                v = (p * logps**2).sum(-1) - h**2
                found.append(Score(len(row), float(own), float(h.sum()), float(v.sum())))
            out.append(found)
            progress(1)
    return out
