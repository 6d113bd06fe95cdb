"""Preference data as token ids: prompt, chosen and rejected of each row, and each row that cannot be used with its reason.

The shapes are TRL's (texts or messages, the prompt given or implicit), and so are the ids, token for token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from precede.data.sentences import did_you_mean
from precede.data.shapes import Asked, Refusal, Shaped, common, groups, shape, text_ids
from precede.data.sources import Fields, Table, read_table
from precede.libraries import quiet

NAMES = ("prompt", "chosen", "rejected")
UNUSED = ("tools", "chat_template_kwargs", "images", "image")
"""Columns that TRL hands to the chat template, or to a model that sees."""
BATCH = 512
"""Rows that are tokenised at once."""
MERGED = (
    "the end of the prompt is tokenised otherwise once an answer follows; from there on it counts as part of the answer"
)


@dataclass(frozen=True)
class Preference:
    """A usable row: token ids, none of the three empty; `chosen` and `rejected` follow `prompt`. The texts are for people.

    `turns` are the prompt's messages where the row is a conversation. `group` is the key of the row's question
    (`shapes.groups`): rows are split by it, and by nothing else, so that none is held out whose question is trained on.
    `columns` are all columns of the source but the prompt's, as they stand there and under the source's names; what a row
    lacks and others have is None.
    """

    row: int
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    prompt_text: str
    chosen_text: str
    rejected_text: str
    turns: list[dict[str, Any]] | None = None
    group: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A row that cannot be used, by its 1-based number, and why: a general reason, and after a colon its detail."""

    row: int
    reason: str


@dataclass(frozen=True)
class PreferenceData:
    """What was read: usable and refused rows, each in the order of the source, and what should be known about them.

    `content` is the SHA-256 of the data that were read (`sources.Table`). `prompts` are the prompts by which rows are grouped,
    by row; those of `implicit` rows are what their answers begin with.
    """

    source: str
    rows: list[Preference]
    refused: list[Refused]
    notes: list[str]
    content: str = ""
    prompts: Mapping[int, Asked] = field(default_factory=dict)
    implicit: Collection[int] = ()


def read_preferences(
    source: str,
    tokenizer: Any,
    *,
    columns: Mapping[str, str] = {},
    limit: int | None = None,
    split: str = "train",
    max_length: int | None = None,
    max_refused_share: float = 0.5,
) -> PreferenceData:
    """Preference pairs of a file, a folder or a data set's name, tokenised as TRL's DPOTrainer does.

    `source` and `split`: see `sources.read_table`. `columns` says what the source calls our columns, as in
    `{"prompt": "question"}`. `limit` takes the first that many rows of the source, before any is refused. A row of which
    prompt and longer answer have more than `max_length` tokens together is refused, not cut.

    A row's values are texts, or lists of messages for the tokenizer's chat template. Where the source has no column
    `prompt` (or a text there, and messages as answers), the prompt is what both answers begin with: whole messages; in
    transcripts all up to the last common "Assistant:"; in other texts all up to the first word that differs. So rows of one
    question can have prompts of several lengths; they are trained on as they are and split by their `group`. Texts get
    the tokenizer's EOS, messages what the template ends them with; no BOS or EOS is doubled. The prompt's ids are those
    it has alone, as far as both joined texts begin with them; what differs behind them belongs to the answers.

    Refused are rows with a value that is missing, empty, of another shape or not Unicode, with the same answer twice, or
    with too many tokens. Control characters and repeated rows stay. Raises ValueError with one sentence for a source that
    cannot be read, a column that it lacks, messages without a chat template, no usable row, or a share of refused rows
    above `max_refused_share`. Oracle: TRL's own preparation of the same rows.
    """
    _check(tokenizer, columns, limit, max_length, max_refused_share)
    names = {name: columns.get(name, name) for name in NAMES}
    table = read_table(source, names.values(), rest=True, split=split, limit=limit)
    _check_columns(source, names, columns, table)
    if names["prompt"] not in table.columns:
        del names["prompt"]
    others = [name for name in table.columns if name != names.get("prompt")]
    rows: list[Preference] = []
    refused: list[Refused] = []
    prompts: dict[int, Asked] = {}
    implicit: set[int] = set()
    remarks = Counter[str]()
    with quiet():
        for begin in range(0, len(table.rows), BATCH):
            shaped: dict[int, Shaped] = {}
            for row, fields in table.rows[begin : begin + BATCH]:
                try:
                    shaped[row] = _shaped(fields, names, tokenizer)
                except Refusal as refusal:
                    refused.append(Refused(row, str(refusal)))
                    continue
                prompts[row] = shaped[row].asked
                if shaped[row].implicit:
                    implicit.add(row)
            for row, joined in _token_ids(shaped, tokenizer):
                try:
                    preference, remark = _preference(row, shaped[row], joined, max_length)
                except Refusal as refusal:
                    refused.append(Refused(row, str(refusal)))
                else:
                    rows.append(preference)
                    remarks.update([*shaped[row].remarks, *remark])
    keys, fields_of = groups(prompts, implicit), dict(table.rows)
    rows = [
        replace(preference, group=keys[preference.row], columns=_columns(fields_of[preference.row], others))
        for preference in sorted(rows, key=lambda preference: preference.row)
    ]
    refused.sort(key=lambda entry: entry.row)
    _check_share(source, refused, len(table.rows), max_refused_share)
    notes = [f"{count} of {len(rows)} usable rows: {remark}" for remark, count in remarks.items()]
    notes += [
        f"the column '{name}' is not used" for name in UNUSED if name in table.columns and name not in columns.values()
    ]
    notes = [*table.notes, *notes, *_repeats(rows)]
    return PreferenceData(source, rows, refused, notes, table.content, prompts, implicit)


def row_budget(tables: Iterable[PreferenceData], parts: Sequence[str], max_length: int | None = None) -> str:
    """What becomes of the rows of a source, in a sentence: `parts` of them are used, the others refused by one of the readings
    `tables`, mostly for so many tokens, which the setting data.max_length is named for where it is `max_length`."""
    read = list(tables)
    refused = {one.row: one.reason for data in read for one in data.refused}
    rows = len({row.row for data in read for row in data.rows} | {*refused})
    kinds = Counter(reason.partition(":")[0] for reason in refused.values())
    asked = f"longer than {max_length} tokens"
    why = [f"{count} {kind}{' (data.max_length)' * (kind == asked)}" for kind, count in kinds.most_common(3)]
    why += ["others otherwise"] * (len(kinds) > 3)
    lost = [f"{len(refused)} refused: {', '.join(why)}"] * bool(refused)
    return f"{read[0].source}: {rows} rows, {', '.join([*parts, *lost])}"


def same_questions(data: PreferenceData, other: PreferenceData, numbers: Collection[int]) -> set[int]:
    """Numbers of the rows of `data` whose question is that of one of the rows `numbers` of `other`, as `shapes.groups` has it
    of both together."""
    sides = ((False, data, data.prompts.keys()), (True, other, numbers))
    prompts = {(side, row): one.prompts[row] for side, one, rows in sides for row in rows}
    implicit = {(side, row) for side, one, rows in sides for row in rows if row in one.implicit}
    keys = groups(prompts, implicit)
    theirs = {keys[True, row] for row in numbers}
    return {row for row in data.prompts if keys[False, row] in theirs}


def _columns(fields: Fields | str, names: Sequence[str]) -> Fields:
    return {} if isinstance(fields, str) else {name: fields.get(name) for name in names}


def _shaped(fields: Fields | str, names: Mapping[str, str], tokenizer: Any) -> Shaped:
    if isinstance(fields, str):
        raise Refusal(fields)
    return shape({name: fields.get(theirs) for name, theirs in names.items()}, tokenizer)


def _token_ids(shaped: Mapping[int, Shaped], tokenizer: Any) -> Iterator[tuple[int, list[list[int]]]]:
    """For each row the ids of prompt, prompt + chosen, prompt + rejected; texts first, then conversations."""
    for is_chat in (False, True):
        rows = [row for row, one in shaped.items() if one.is_chat == is_chat]
        if not rows:
            continue
        texts = [text for row in rows for text in shaped[row].joined]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if is_chat else text_ids(texts, tokenizer)
        for index, row in enumerate(rows):
            yield row, ids[3 * index : 3 * index + 3]


def _preference(
    row: int, shaped: Shaped, joined: Sequence[list[int]], max_length: int | None
) -> tuple[Preference, list[str]]:
    """The row, and a remark where the boundary is not the end of the prompt."""
    alone, chosen, rejected = joined
    end = min(common(alone, chosen), common(alone, rejected))
    if max_length is not None and max(len(chosen), len(rejected)) > max_length:
        raise Refusal(f"longer than {max_length} tokens")
    if end == 0:
        raise Refusal("prompt has no tokens")
    if chosen == rejected:
        raise Refusal("chosen and rejected are identical as tokens")
    if min(len(chosen), len(rejected)) == end:
        raise Refusal("an answer has no tokens")
    ids = alone[:end], chosen[end:], rejected[end:]
    return Preference(row, *ids, *shaped.plain, shaped.turns), [MERGED] * (end < len(alone))


def _repeats(rows: Sequence[Preference]) -> list[str]:
    seen: dict[tuple[str, str, str], int] = {}
    again = []
    for one in rows:
        first = seen.setdefault((one.prompt_text, one.chosen_text, one.rejected_text), one.row)
        if first != one.row:
            again.append((one.row, first))
    if not again:
        return []
    row, first = again[0]
    said = f"an earlier row says the same, first row {row} the same as row {first}"
    return [f"{len(again)} of {len(rows)} usable rows: {said}"]


def _check(
    tokenizer: Any, columns: Mapping[str, str], limit: int | None, max_length: int | None, max_refused_share: float
) -> None:
    for name in columns:
        if name not in NAMES:
            raise ValueError(f"'{name}' is no column that can be mapped{did_you_mean(name, NAMES)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, but at least one row must be read; leave it out to read all")
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length is {max_length}, but prompt and answer have at least one token each; raise it")
    if not 0 <= max_refused_share <= 1:
        raise ValueError(f"max_refused_share must be from 0 to 1, not {max_refused_share}")
    if tokenizer.eos_token is None:
        raise ValueError("the tokenizer has no end-of-sequence token; set eos_token in its folder")


def _check_columns(source: str, names: Mapping[str, str], columns: Mapping[str, str], table: Table) -> None:
    for name, theirs in names.items():
        if table.columns and theirs not in table.columns and (name != "prompt" or name in columns):
            there = ", ".join(repr(column) for column in [*table.columns][:20])
            more = f" and {len(table.columns) - 20} more" if len(table.columns) > 20 else ""
            todo = "correct the mapping" if name in columns else f"map one of them, as in {name}=answer"
            raise ValueError(f"{source} has no column {theirs!r}; its columns are {there}{more}; {todo}")


def _check_share(source: str, refused: Sequence[Refused], count: int, max_refused_share: float) -> None:
    if len(refused) < count and len(refused) <= max_refused_share * count:
        return
    kinds = Counter(entry.reason.partition(":")[0] for entry in refused)
    kind, often = kinds.most_common(1)[0]
    first = next(entry for entry in refused if entry.reason.partition(":")[0] == kind)
    raise ValueError(
        f"{source}: {len(refused)} of {count} rows cannot be used; most often, {often} times, first in row {first.row}: "
        f"{first.reason}; mend the rows, or map other columns"
    )
