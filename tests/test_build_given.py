"""What `precede build` makes of unusual inputs that are right, and of a disk that is full."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from build_material import DATA, CommandLine, adapter, material, other_tokenizer, run, setting
from conftest import PRECEDE
from precede.models.adapters import merged
from precede.models.load import load, parameter_count, save
from test_lm_tiny import PROMPT, tiny_model, tiny_tokenizer

NOT_TRAINED = {"learning_rate": 1e-30}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = material(tmp_path_factory.mktemp("given"))
    save(tiny_model(layers=2), other_tokenizer(pad=False), path / "other-words")
    adapter(path / "adapter", path / "teacher")
    return path


def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([PROMPT])).logits.detach()
    return found


def test_without_a_pad_token_eos_pads(given: Path) -> None:
    made = run(given, "no-pad", student={"model": str(given / "other-words")})
    assert AutoTokenizer.from_pretrained(made.folder).pad_token == "</s>"
    assert made.report["models"]["distill"]["chosen_logp"][0] < 0


def test_alignment_above_a_student_of_other_words_looks_at_its_own_teacher(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's words are of no matter to a stage that comes before it."""
    monkeypatch.syspath_prepend(given)
    made = run(
        given,
        "above",
        student={"model": str(given / "other-words")},
        world__reward="colours:blue",
        align={"pairs": "seeded", "reference": "teacher"},
        skip=["audit"],
    )
    assert [stage["name"] for stage in made.report["stages"]] == ["align", "distill"]


def test_an_adapter_as_teacher_is_merged_with_its_base(given: Path, command_line: CommandLine) -> None:
    """Without training the result is the adapter's own model; the store moved to another place has it all."""
    arguments = ["--teacher", "adapter", *DATA, "--order", "align", *setting("align.trainer.learning_rate=1e-30")]
    status, output, errors = command_line(given, *arguments, "--store", "one", "--out", "from-adapter")
    assert status == 0, errors
    assert "1 stages run, 0 taken from the store" in output
    made, _ = load(given / "from-adapter")
    torch.testing.assert_close(logits(made), logits(merged(given / "teacher", given / "adapter")), rtol=0, atol=1e-20)
    assert (logits(made) - logits(load(given / "teacher")[0])).abs().max() > 0.1
    assert json.loads((given / "from-adapter" / "build.json").read_text("utf-8"))["teacher"] == "adapter"
    assert "merged" in [
        json.loads(file.read_text("utf-8"))["entry"]["kind"] for file in given.glob("one/*/*/manifest.json")
    ]
    (given / "one").rename(given / "two")
    status, output, errors = command_line(given, *arguments, "--store", "two", "--out", "again")
    assert status == 0, errors
    assert "0 stages run, 1 taken from the store" in output


def test_an_adapter_as_student_is_merged_with_its_base(given: Path) -> None:
    small = adapter(given / "small-adapter", given / "student", layers=2)
    shutil.copy(given / "student" / "tokenizer.json", small)
    shutil.copy(given / "student" / "tokenizer_config.json", small)
    made = run(given, "from-small", student={"model": str(small)}, distill__trainer=NOT_TRAINED)
    model, _ = load(made.folder)
    torch.testing.assert_close(logits(model), logits(merged(given / "student", small)), rtol=0, atol=1e-20)


def test_a_changed_base_is_noticed(given: Path) -> None:
    base, one = given / "base", given / "of-base"
    shutil.copytree(given / "teacher", base)
    adapter(one, base)
    settings = {"teacher": str(one), "student": None, "orders": "align", "align__trainer": NOT_TRAINED}
    before = run(given, "before", **settings)
    save(tiny_model(seed=7), tiny_tokenizer(), base)
    after = run(given, "after", **settings)
    assert after.stages_run == 1
    assert (logits(load(before.folder)[0]) - logits(load(after.folder)[0])).abs().max() > 0.1


def test_a_changed_teacher_is_noticed_by_an_alignment_that_looks_at_it(given: Path) -> None:
    """The student is aligned, the teacher its reference: neither alignment nor audit may come from the store afterwards."""
    teacher = given / "reference"
    shutil.copytree(given / "teacher", teacher)
    settings = {
        "teacher": str(teacher),
        "student": {"model": str(given / "student")},
        "orders": "align",
        "align": {"reference": "teacher"},
    }
    run(given, "first", **settings)
    assert run(given, "same", **settings).stages_run == 0
    save(tiny_model(seed=7), tiny_tokenizer(), teacher)
    again = run(given, "second", **settings)
    assert again.stages_run == 1
    audits = [
        json.loads((given / name / "build.json").read_text("utf-8"))["stages"][0]["audit"]
        for name in ("first", "second")
    ]
    assert audits[0]["numbers"]["recall_gap"] != audits[1]["numbers"]["recall_gap"]


def test_a_changed_reward_is_noticed(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same name, but another function."""
    monkeypatch.syspath_prepend(given)
    (given / "taste.py").write_text(
        "def like(prompts, completions, **_):\n    return [len(text) for text in completions]\n"
    )
    settings = {
        "student": None,
        "orders": "align",
        "world__reward": "taste:like",
        "skip": ["audit"],
        "align": {"pairs": "on_policy"},
    }
    run(given, "liked", **settings)
    assert run(given, "liked-again", **settings).stages_run == 0
    with (given / "taste.py").open("a") as file:
        file.write("\n# otherwise\n")
    assert run(given, "liked-otherwise", **settings).stages_run == 1


def test_an_adapter_is_kept_beside_a_student_that_is_there(given: Path) -> None:
    made = run(given, "kept", student={"model": str(given / "student")}, distill__lora={"rank": 2, "adapter": "keep"})
    assert json.loads((made.folder / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"] == str(
        given / "student"
    )
    assert not (made.folder / "config.json").exists()


def test_completions_need_no_teacher(given: Path) -> None:
    rows = [{"prompt": "<s> The", "completion": " sky is blue"}, {"prompt": "<s> The sea", "completion": " was green"}]
    (given / "completions.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    made = run(
        given,
        "without-teacher",
        teacher=None,
        student={"model": str(given / "student")},
        orders="distill",
        distill={"completions": str(given / "completions.jsonl")},
    )
    assert list(made.report["models"]) == ["start", "distill"]
    assert made.report["stages"][0]["cost"]["flops"] > 0


@pytest.mark.parametrize("blocks", [4, 120, 400])
def test_a_full_disk_is_said_in_one_sentence(blocks: int, given: Path) -> None:
    """Files may not pass so many blocks: of what is measured, of weights, of the optimiser's state."""
    words = " ".join([*PRECEDE, "build", "--teacher", "teacher", "--keep-layers", "3", *DATA, "--skip", "audit"])
    words += f" --out full --store full-{blocks}"
    done = subprocess.run(
        f"ulimit -f {blocks}; {words}", shell=True, cwd=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    *notes, last = done.stderr.strip().splitlines()
    assert last.startswith(f"precede: a file could not be written to full-{blocks} (")
    assert "make room and run the same command again: finished stages are kept" in last
    known = ("pairs.jsonl: ", "the tokenizer of teacher pads with its EOS", "the machine is busy")
    assert all(note.startswith(known) for note in notes), notes
    assert not [path for path in given.iterdir() if path.name in ("full", "model") or path.name.startswith(".")]
    assert not list((given / f"full-{blocks}" / "unfinished").iterdir())


def test_a_model_for_which_there_is_no_room_is_refused_first(
    given: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with a byte less than training needs, and one that has just that: of 4 bytes a weight the model, and three times
    weights and both moments of Adam, for a new checkpoint is written before the oldest goes."""
    need = 4 * 10 * parameter_count(load(given / "teacher")[0])
    room = {"free": need - 1}
    usage = shutil.disk_usage(given)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(**room))
    asked = ["--teacher", "teacher", *DATA, "--order", "align", "--skip", "audit"]
    said = command_line.refused(given, *asked)
    assert f"GB free, and this needs about {need / 1e9:.1f} GB for checkpoints and models" in said
    assert "name another place with --store, or train adapters (lora)" in said
    room["free"] = need
    status, _, errors = command_line(given, *asked, "--store", "enough", "--out", "fits")
    assert status == 0, errors
