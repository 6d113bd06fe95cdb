"""Which rows are trained on and which are held out."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from build_material import make_inputs, recipe
from precede.evaluate.verdict import FEW_PAIRS
from precede.jobs.build import build
from precede.settings.recipe import read_recipe
from precede.worlds.text.rows import LEAST_HELD_OUT, Inputs
from test_lm_tiny import WORDS


def write(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    names = ("prompt", "chosen", "rejected")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows), "utf-8")
    return path


def pairs(count: int, seed: int = 0, questions: int | None = None) -> list[tuple[str, str, str]]:
    """Rows of as many questions, by default a question each; no question has two words in a row that are the same."""
    draw, words = random.Random(seed), WORDS[3:]
    asked = [f"<s> {draw.choice(words)} {one} {other}" for one in words for other in words if one != other]
    asked = draw.sample(asked, questions or count)
    return [(asked[row % len(asked)], f" {words[row % 11]} w1", f" {words[11 + row % 7]} w2") for row in range(count)]


def inputs_of(folder: Path, **data: Any) -> Inputs:
    data = {f"data__{name}": value for name, value in data.items()}
    return Inputs(recipe(folder, **data).variants[0].world, [str(folder / "teacher")])


def sides(inputs: Inputs) -> tuple[list[str], list[str]]:
    """Prompts that are trained on, and those that are held out."""
    rows = (inputs.training_rows(inputs.models[0]), inputs.held_out_rows(inputs.models[0], 1000))
    trained, held = ([row.prompt_text for row in some] for some in rows)
    return trained, held


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    make_inputs(folder, rows=20)
    return folder


@pytest.mark.parametrize(
    ("count", "least", "most"), [(12, 4, 4), (60, 20, 20), (90, 30, 30), (200, 30, 30), (370, 30, 60)]
)
def test_thirty_questions_are_held_out_where_there_are_three_times_as_many(
    count: int, least: int, most: int, folder: Path, tmp_path: Path
) -> None:
    """A third of few, 30 of more, a tenth of many: 370 questions leave 37 ± 6; 200 by a share of a tenth left 20 ± 4."""
    source = write(tmp_path / "rows.jsonl", pairs(count))
    trained, held = sides(inputs_of(folder, source=str(source)))
    assert least <= len(held) <= most
    assert len(trained) + len(held) == count
    assert not {*trained} & {*held}
    share = sides(inputs_of(folder, source=str(source), held_out=0.1))[1]
    assert {*share} <= {*held}  # the tenth is among them
    assert len(share) < 60


def test_all_rows_of_a_question_stand_on_one_side(folder: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", pairs(300, questions=100))
    trained, held = sides(inputs_of(folder, source=str(source)))
    assert (len({*held}), len(held)) == (30, 90)
    assert not {*trained} & {*held}


def test_implicit_prompts_of_one_question_stand_on_one_side(folder: Path, tmp_path: Path) -> None:
    """Implicit prompts of one question, cut at different words, are split together."""
    source = tmp_path / "implicit.jsonl"
    with source.open("w") as file:
        for first in WORDS[12:]:
            for second, chosen, rejected in (
                ("is", "blue .", "green ."),
                ("is blue", "was", "may"),
                ("is", "a .", "w1 ."),
            ):
                text = f"<s> The {first} {second}"
                file.write(json.dumps({"chosen": f"{text} {chosen}", "rejected": f"{text} {rejected}"}) + "\n")
    inputs = inputs_of(folder, source=str(source), held_out=0.5)
    model = inputs.models[0]
    sides = [
        {row.prompt_text.split()[2] for row in rows}
        for rows in (inputs.training_rows(model), inputs.held_out_rows(model, 1000))
    ]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_held_out_rows_have_a_source_of_their_own(folder: Path, tmp_path: Path) -> None:
    """All of it is held out and none of its questions is trained on; nothing else is kept from training."""
    rows = pairs(60)
    source = write(tmp_path / "train.jsonl", rows)
    mine = write(tmp_path / "mine.jsonl", [*[(asked, " was", " may") for asked, _, _ in rows[:7]], *pairs(12, seed=1)])
    inputs = inputs_of(folder, source=str(source), held_out_source=str(mine))
    trained, held = sides(inputs)
    again = {asked for asked, _, _ in rows} & {*held}
    assert len(held) == 19
    assert again >= {asked for asked, _, _ in rows[:7]}
    assert sorted(trained) == sorted(asked for asked, _, _ in rows if asked not in again)
    assert {row.chosen_text for row in inputs.held_out_rows(inputs.models[0], 7)} == {" was"}


def test_a_question_is_known_across_sources_by_what_its_answers_begin_with(folder: Path, tmp_path: Path) -> None:
    """Implicit prompts: "The sky is" is held out, so rows that go on with "is blue" are not trained on."""

    def implicit(name: str, *rows: tuple[str, str]) -> str:
        lines = [json.dumps({"chosen": f"<s> {one}", "rejected": f"<s> {other}"}) for one, other in rows]
        (tmp_path / name).write_text("\n".join(lines), "utf-8")
        return str(tmp_path / name)

    train = implicit("train.jsonl", ("The sky is blue .", "The sky is blue was"), ("The sun was a", "The sun was w1"))
    mine = implicit("mine.jsonl", ("The sky is green", "The sky is a"), ("A w1 w2", "A w1 w3"))
    trained, held = sides(inputs_of(folder, source=train, held_out_source=mine))
    assert [text.split()[-3:] for text in trained] == [["The", "sun", "was"]]
    assert len(held) == 2


def test_a_build_is_measured_on_rows_of_their_own(folder: Path, tmp_path: Path) -> None:
    """The budget is said, measures are of the held-out rows, other ones train nothing anew, and too few are said."""
    quick = {"trainer": {"max_steps": 1}, "kind": "align"}
    source, mine = write(tmp_path / "train.jsonl", pairs(24)), write(tmp_path / "mine.jsonl", pairs(9, seed=3))
    data = {"source": str(source), "held_out_source": str(mine)}
    raw = {
        "teacher": str(folder / "teacher"),
        "data": data,
        "align": quick,
        "skip": ["audit"],
    }
    raw |= {"orders": "align", "world": {"device": "cpu"}, "evaluation": {"samples_per_prompt": 2}}
    told: list[str] = []

    def made(name: str) -> Any:
        return build(read_recipe(raw), tmp_path / name, store=tmp_path / "store", tell=told.append)

    first = made("one")
    shared = len({asked for asked, _, _ in pairs(24)} & {asked for asked, _, _ in pairs(9, seed=3)})
    assert first.report["data"]["held_out_pairs"] == 9
    assert first.report["data"]["training_pairs"] == 24 - shared
    used = f", {shared} not used, whose question is held out" if shared else ""
    assert f"{source}: 24 rows, {24 - shared} to train on{used}" in told
    assert f"{mine}: 9 rows, 9 held out (data.held_out_source)" in told
    measures = pyarrow.parquet.read_table(tmp_path / "one" / "evidence" / "align" / "measures.parquet").to_pydict()
    assert sorted({*measures["row"]}) == [*range(1, 10)]
    write(mine, pairs(8, seed=3))
    assert (made("two").stages_run, shared) == (0, shared)
    write(mine, pairs(1, seed=3))
    with pytest.raises(
        ValueError, match=r"mine.jsonl has 1 usable rows \(data.held_out_source\), and two are the least"
    ):
        made("three")
    raw["data"] = {**data, "held_out": 0.2}
    with pytest.raises(ValueError, match=r"held_out is a share of the source, and held_out_source has rows of its own"):
        made("four")


def test_the_example_has_rows_enough_for_its_audit() -> None:
    """With nothing set as many are held out as the audit of a build asks for."""
    example = Path(__file__).parents[1] / "examples" / "preferences.jsonl"
    rows = [json.loads(line) for line in example.read_text("utf-8").splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) >= 3 * FEW_PAIRS
    assert LEAST_HELD_OUT == FEW_PAIRS
