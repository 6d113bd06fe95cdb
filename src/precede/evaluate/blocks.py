"""What an audit scored and sampled of a model, kept block by block: one that was stopped goes on, and one that asks for another
β, threshold or reward begins with what is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precede.data.preferences import Preference
from precede.models.facts import fingerprint
from precede.store import Store, key_of

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
