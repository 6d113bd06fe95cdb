"""Log-probabilities of completions. The only place that shifts labels and masks padding.

Ids are scored, never text: the prompt's ids (with BOS where the tokenizer gave one) are joined with the completion's,
so nothing is tokenised twice. Oracle in the tests: a float64 loop over one row at a time without padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from precede.lm.heads import Head, body_of, head_of, moments
from precede.lm.packing import Segment, packed_attention


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
    """One completion under one prompt: sums over its tokens, nats. Without tokens all are 0.

    With H_t and V_t the entropy and the varentropy (variance of −log π) of the model's distribution at step t, `entropy` is
    Σ H_t and `varentropy` Σ V_t.
    """

    tokens: int
    logp: float
    entropy: float
    varentropy: float

    @property
    def typicality(self) -> float:
        """z = Σ_t (−log π(y_t) − H_t) / √(Σ_t V_t), near N(0, 1) for the model's own samples; NaN where Σ V_t is 0.

        The analytic form of Fast-DetectGPT's conditional probability curvature (Bao et al. 2024), its sign turned.
        """
        return (-self.logp - self.entropy) / math.sqrt(self.varentropy) if self.varentropy > 0 else math.nan


def score(
    model: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    tokens_per_batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Score]]:
    """Log-probability, entropy and varentropy of `completions[i]` (any number) under `prompts[i]`, in the order given.

    A completion's EOS is scored where it is among its ids. A prompt that several completions share is computed once, and
    many prompts stand in one row without padding; where a model cannot do that (`scoring_path`), rows are padded on the
    right. `tokens_per_batch` bounds the tokens of one forward pass (a longer prompt with its completions is one pass), and
    logits exist for some thousand tokens of the vocabulary at a time. `progress` hears how many prompts are done.

    The model should be fp32. Raises ValueError for a prompt without tokens, and for a row that is longer than a model with
    a table of positions can read. Oracle in the tests: a float64 loop over one row at a time.
    """
    assert len(prompts) == len(completions)
    progress = progress or (lambda count: None)
    _check_rows(model, prompts, completions)
    first = [0, *accumulate(map(len, completions))]
    groups = [
        _Group(prompt, [(row, first[place] + index) for index, row in enumerate(rows) if len(row)])
        for place, (prompt, rows) in enumerate(zip(prompts, completions, strict=True))
    ]
    totals = torch.zeros(3, first[-1], dtype=torch.float64)
    with _evaluating(model):
        way = _examine(model)
        budget = tokens_per_batch or _budget(model, way)
        if idle := sum(not group.rows for group in groups):
            progress(idle)
        for batch, packed in _batches([group for group in groups if group.rows], way.packed, budget, _turn(model)):
            states, labels, owners = _states(model, way, batch, packed)
            head = head_of(model, way.scale) if way.body else Head(None, states.shape[-1])
            values = moments(head, states, labels.to(states.device))
            totals.index_add_(1, owners, values.cpu().double())
            progress(sum(group.done for group in batch))
    rows = [row for group in completions for row in group]
    scores = [Score(len(row), *sums) for row, sums in zip(rows, totals.T.tolist(), strict=True)]
    return [scores[begin:end] for begin, end in pairwise(first)]


def scoring_path(model: Any) -> str:
    """How `score` runs this model: `packed`, or `padded` where a self-check found that packing changes its numbers.

    The check runs once per model, on short random rows: the packed path against the model's own forward, a row at a time.
    """
    with _evaluating(model):
        return "packed" if _examine(model).packed else "padded"


@dataclass(frozen=True)
class _Group:
    prompt: Sequence[int]
    rows: list[tuple[Sequence[int], int]]
    """Completions, none empty, and which result each of them is."""
    done: int = 1
    """How many prompts are finished with it."""

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(len(row) for row, _ in self.rows)

    @property
    def size(self) -> int:
        return len(self.prompt) + sum(len(row) - 1 for row, _ in self.rows)


@dataclass(frozen=True)
class _Way:
    """How a model is run: `body` and head apart, or whole; packed or padded."""

    body: bool = False
    scale: float = 1.0
    packed: bool = False


_ways: WeakKeyDictionary[Any, tuple[Any, _Way]] = WeakKeyDictionary()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _batches(groups: list[_Group], packed: bool, budget: int, turn: float) -> Iterator[tuple[list[_Group], bool]]:
    """Groups by falling length, as many at a time as the budget holds, and whether they are to be packed.

    A row longer than `turn` is alone: its length chooses the angles of every position that is computed with it.
    """
    for group in sorted((group for group in groups if group.longest > turn), key=lambda group: group.longest):
        for row in group.rows:
            yield [_Group(group.prompt, [row], group.done if row is group.rows[-1] else 0)], False
    batch: list[_Group] = []
    tokens = rows = 0
    short = [group for group in groups if group.longest <= turn]
    for group in sorted(short, key=lambda group: (group.longest, len(group.prompt)), reverse=True):
        rows += len(group.rows)
        tokens = tokens + group.size if packed else rows * (batch or [group])[0].longest
        if batch and tokens > budget:
            yield batch, packed
            batch, rows, tokens = [], len(group.rows), group.size if packed else len(group.rows) * group.longest
        batch.append(group)
    if batch:
        yield batch, packed


def _states(model: Any, way: _Way, groups: list[_Group], packed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What predicts each completion token, its id and its result: (n, size), (n,), (n,).

    States of the body, or logits where the model is run whole.
    """
    ids, given, places, attention = _packed(model, groups) if packed else _padded(model, groups)
    run = body_of(model) if way.body else model
    with attention:
        found = run(input_ids=ids, use_cache=False, **given)
    values = found.last_hidden_state if way.body else found.logits
    assert values.shape[:2] == ids.shape
    labels = [token for group in groups for row, _ in group.rows for token in row]
    owners = [owner for group in groups for row, owner in group.rows for _ in row]
    rows = values.flatten(0, 1).index_select(0, torch.tensor(places, device=values.device))
    return rows, torch.tensor(labels), torch.tensor(owners)


_Input = tuple[Tensor, dict[str, Tensor], list[int], Any]
"""Ids, what goes with them, the places that predict the completions' tokens, and a context to run in."""


def _packed(model: Any, groups: list[_Group]) -> _Input:
    """One row: prompt and first completion as they follow each other, then the further completions.

    A completion's last token is not fed: nothing that follows it is scored.
    """
    ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    segments: list[Segment] = []
    for group in groups:
        start, before = len(ids), len(group.prompt)
        ids += group.prompt
        positions += range(before)
        for index, (row, _) in enumerate(group.rows):
            begin = len(ids)
            ids += row[:-1]
            positions += range(before, before + len(row) - 1)
            places += [start + before - 1, *range(begin, len(ids))]
            if index == 0:
                segments.append(Segment(start, len(ids)))
            elif len(row) > 1:
                segments.append(Segment(begin, len(ids), start, before))
    row_ids = torch.tensor([ids], device=model.device)
    given = {"attention_mask": torch.ones_like(row_ids), "position_ids": torch.tensor([positions], device=model.device)}
    return row_ids, given, places, packed_attention(model, segments)


def _padded(model: Any, groups: list[_Group]) -> _Input:
    """A row for each completion, padded on the right, behind every token that is scored."""
    rows = [[*group.prompt, *row] for group in groups for row, _ in group.rows]
    starts = [len(group.prompt) - 1 for group in groups for _ in group.rows]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    places = [
        number * width + place
        for number, (row, start) in enumerate(zip(rows, starts, strict=True))
        for place in range(start, len(row) - 1)
    ]
    return ids, {"attention_mask": mask}, places, nullcontext()


def _examine(model: Any) -> _Way:
    """How this model is run, found once: the fastest way that agrees with its own forward on short random rows."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    state = (model.device, None if weight is None else weight.shape)
    if model not in _ways or _ways[model][0] != state:
        _ways[model] = (state, _find_way(model))
    return _ways[model][1]


def _find_way(model: Any) -> _Way:
    draw = torch.Generator().manual_seed(0)
    count = len(model.get_input_embeddings().weight)

    def tokens(length: int) -> list[int]:
        return torch.randint(count, (length,), generator=draw).tolist()

    shapes = ((5, (7, 4, 9)), (1, (6, 1)), (8, (3,)))
    groups = [_Group(tokens(before), [(tokens(length), 0) for length in after]) for before, after in shapes]
    alone = [_Group(group.prompt, [row]) for group in groups for row in group.rows]
    truth = torch.cat([_states(model, _Way(), [row], False)[0] for row in alone])
    way = _Way()
    try:
        raw = _logits(model, _Way(body=True), groups, False)
        scale = 1.0 if head_of(model).cap else float((raw * truth).sum() / raw.square().sum())
        for packed in (False, True):
            other = _Way(True, 1.0 if abs(scale - 1) < 1e-5 else scale, packed)
            if not _agree(_logits(model, other, groups, packed), truth):
                break
            way = other
    except Exception:  # whatever a model of another kind raises, it can be run in the way found so far
        pass
    return way


def _logits(model: Any, way: _Way, groups: list[_Group], packed: bool) -> Tensor:
    states = _states(model, way, groups, packed)[0]
    head = head_of(model, way.scale)
    return head.logits(states, 0, head.width, torch.empty(len(states), head.width, device=states.device))


def _agree(found: Tensor, truth: Tensor) -> bool:
    """Whether log-probabilities, (n, vocabulary), agree to 1e-4 nats and to 3e-4 of their own spread."""
    if found.shape != truth.shape:
        return False
    found, truth = (logits.cpu().double().log_softmax(-1) for logits in (found, truth))
    gap = (found - truth).abs()
    return bool((gap.mean(-1) <= 1e-4).all() and (gap.amax(-1) <= 3e-4 * truth.std(-1)).all())


def _budget(model: Any, way: _Way) -> int:
    """Tokens of one pass: a layer's widest values fit a CPU's caches (8 MiB), or a part of another device's free memory."""
    vocabulary = len(model.get_input_embeddings().weight)
    if not way.body:
        return max(2**26 // vocabulary, 1)
    shapes = [parameter.shape[-2:] for parameter in model.parameters() if parameter.ndim > 1]
    widest = max((max(shape) for shape in shapes if vocabulary not in shape), default=vocabulary)
    if model.device.type == "cuda":
        return min(max(torch.cuda.mem_get_info(model.device)[0] // (128 * widest), 512), 2**15)
    return min(max(2**21 // widest, 512), 8192)


def _turn(model: Any) -> float:
    """The length from which on a row's own length changes how its positions are turned; most models have none."""
    config = model.config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or {}
    parts = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    own = getattr(config, "original_max_position_embeddings", None) or getattr(config, "max_position_embeddings", None)
    lengths = [
        part.get("original_max_position_embeddings") or own or math.inf
        for part in parts
        if part.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(lengths, default=math.inf)


def _check_rows(model: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]) -> None:
    limit = _table(model)
    for place, (prompt, rows) in enumerate(zip(prompts, completions, strict=True)):
        if not len(prompt):
            raise ValueError(f"row {place}: its prompt has no tokens; give it one at least, such as the BOS")
        length = len(prompt) + max(map(len, rows), default=0)
        if length > limit:
            raise ValueError(
                f"row {place}: it has {length} tokens, and the model has positions for {limit}; shorten it"
            )


def _table(model: Any) -> float:
    """How many positions the model has where it looks them up in a table; other models compute them."""
    tables = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings()
    ]
    leaves = [name.rpartition(".")[2] for name in [*tables, *dict(model.named_buffers())]]
    learned = any(leaf == "wpe" or ("pos" in leaf and "emb" in leaf) for leaf in leaves)
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if learned and found else math.inf
