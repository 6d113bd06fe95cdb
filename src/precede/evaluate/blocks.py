"""What an audit asks a model: scores of pairs, and samples for a goal. They are kept block by block: an audit that was stopped
goes on, and one that asks for another β, threshold or reward begins with what is there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from precede.data.preferences import Preference
from precede.evaluate.examiner import rewards_of, sample_rows, score_pairs
from precede.evaluate.signals import Sampled
from precede.models.facts import fingerprint
from precede.models.load import load, load_tokenizer
from precede.rewards import Reward
from precede.scoring.logprobs import Score, scoring_path
from precede.seeding import stream
from precede.store import Store, key_of

Progress = Callable[[str, int, int], None]
"""Hears what is done: the model's name, rows finished of it, rows in all."""
SAMPLED_AT_ONCE = 64
ROWS = 64
"""Rows of a block."""
_FILE = "block.json"

Rows = Sequence[Preference]
Advance = Callable[[int], None]
Make = Callable[[Rows, Mapping[str, Any], Advance], dict[str, Any]]
"""Makes the value of a block (JSON values) of some rows, with its settings; tells how much of it is done."""


@dataclass(frozen=True)
class Block:
    """Rows of a model that were scored or sampled, as the store knows them: by what they are, not by where they lie."""

    model: str
    what: Mapping[str, Any]

    @property
    def key(self) -> str:
        return key_of(self.description())

    def description(self) -> Mapping[str, Any]:
        return {"kind": "audit block", "version": 1, **self.what}

    def label(self) -> str:
        return f"{self.what['done']} of {self.model}"


class Blocks:
    """The blocks of one model on one kind of device, in a store; without one nothing is kept. `advance` hears what is done."""

    def __init__(self, model: str, device: str, store: Store | None, advance: Advance) -> None:
        self._model, self._store, self._advance = model, store, advance
        self._content = {} if store is None else {"model": fingerprint(model), "device": device}

    def of(self, rows: Rows, times: int, settings: Callable[[int], Mapping[str, Any]], make: Make) -> Iterator[Any]:
        """The values of all blocks of `rows`, out of the store or made. `settings` are those of a block by its number, with
        what is `done` to it; a row counts `times` times towards what is done."""
        for number in range(-(-len(rows) // ROWS)):
            some, what = rows[number * ROWS : (number + 1) * ROWS], settings(number)
            heard = 0

            def advance(count: int) -> None:
                nonlocal heard
                heard += count
                self._advance(count)

            asked = [[row.prompt, row.chosen, row.rejected] for row in some]
            block = Block(self._model, {**self._content, **what, "rows": asked})
            yield self._kept(block, lambda some=some, what=what, advance=advance: make(some, what, advance))  # type: ignore[misc]
            self._advance(len(some) * times - heard)

    def _kept(self, block: Block, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self._store is None:
            return make()
        with self._store.claimed([block]):
            if self._store.has(block) and self._store.damage(block) is not None:
                self._store.discard(block)
            if self._store.has(block):
                return dict(json.loads((self._store.folder(block) / _FILE).read_text("ascii")))
            with self._store.writing(block) as writer:
                value = make()
                (writer.folder / _FILE).write_text(json.dumps(value), "ascii")
        return value


@dataclass(frozen=True)
class Goal:
    """The reward, what counts as desirable, and how the models are sampled for it."""

    reward: Reward
    target_reward: float
    samples: int
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Measured:
    """A model under the audit: its scores of the pairs, and what it samples for the goal."""

    scores: list[list[Score]]
    sampled: Sampled | None
    path: str
    """How it was scored: `packed` or `padded` (`precede.scoring.logprobs.scoring_path`)."""


def measure(
    name: str,
    rows: list[Preference],
    goal: Goal | None,
    device: torch.device,
    progress: Progress,
    store: Store | None = None,
) -> Measured:
    """Score the pairs and sample for the goal, but for what `store` has. ValueError where scores are not finite."""
    network = cache(partial(_network, name, rows, device))
    total, done = len(rows) * (1 if goal is None else 1 + goal.samples), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(name, done, total)

    def score_block(some: Sequence[Preference], what: Mapping[str, Any], advance: Advance) -> dict[str, Any]:
        scores = score_pairs(network(), some, advance)
        return {"path": scoring_path(network()), "scores": [[astuple(one) for one in both] for both in scores]}

    advance(0)
    blocks, scores, path = Blocks(name, device.type, store, advance), list[list[Score]](), ""
    for value in blocks.of(rows, 1, lambda number: {"done": "scores"}, score_block):
        path, scores = value["path"], scores + [[Score(*one) for one in both] for both in value["scores"]]
    for row, both in zip(rows, scores, strict=True):
        if not all(math.isfinite(one.logp + one.entropy + one.varentropy) for one in both):
            raise ValueError(
                f"{name} gives scores that are not finite, first for row {row.row}; are its weights damaged?"
            )
    return Measured(scores, None if goal is None else _sampled(name, rows, goal, network, blocks), path)


def _sampled(name: str, rows: list[Preference], goal: Goal, network: Callable[[], Any], blocks: Blocks) -> Sampled:
    """Samples of the model for the goal, and their rewards. The seed of a block is its own."""
    tokenizer = load_tokenizer(name)

    def settings(number: int) -> dict[str, Any]:
        seed = goal.seed if number == 0 else stream(goal.seed, "audit", str(number))
        return {"done": "samples", "samples": goal.samples, "max_new_tokens": goal.max_new_tokens, "seed": seed}

    def sample_block(some: Sequence[Preference], what: Mapping[str, Any], advance: Advance) -> dict[str, Any]:
        drawn = sample_rows(
            network(),
            tokenizer,
            some,
            goal.samples,
            max_new_tokens=goal.max_new_tokens,
            sample_batch=SAMPLED_AT_ONCE,
            seed=what["seed"],
            reward=None,
            progress=advance,
        )
        return {"ids": drawn.drawn, "written": drawn.written, "stopped": drawn.stopped}

    values = list(blocks.of(rows, goal.samples, settings, sample_block))
    ids, written, stopped = ([one for value in values for one in value[name]] for name in ("ids", "written", "stopped"))
    rewards = rewards_of(goal.reward, [row for row in rows for _ in range(goal.samples)], written, ids)
    shape, lengths = (len(rows), goal.samples), [float(len(row)) for row in ids]
    columns = [np.array(values).reshape(shape) for values in (rewards, lengths, stopped)]
    chosen = np.array([_stops(row.chosen, goal.max_new_tokens, tokenizer) for row in rows])
    return Sampled(columns[0], columns[1], columns[2], chosen)


def _network(name: str, rows: Sequence[Preference], device: torch.device) -> Any:
    """The model, loaded. ValueError where it has no embedding of a token of the rows."""
    model, _ = load(name, device)
    largest = max(max(ids) for row in rows for ids in (row.prompt, row.chosen, row.rejected))
    if largest >= len(model.get_input_embeddings().weight):
        raise ValueError(f"the tokenizer of {name} has the token {largest}, for which its model has no embedding")
    return model


def _stops(completion: Sequence[int], longest: int, tokenizer: Any) -> bool:
    """Whether a completion of the data ends within `longest` tokens; one of just so many without EOS was cut there."""
    return len(completion) < longest or (len(completion) == longest and completion[-1] == tokenizer.eos_token_id)
