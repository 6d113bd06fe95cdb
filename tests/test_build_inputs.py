"""What users give `precede build` wrong: one sentence, exit status 2, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from build_material import (
    ALIGN,
    DATA,
    LAYERS,
    PLAIN,
    STUDENT,
    TEACHER,
    CommandLine,
    adapter,
    changed,
    material,
    other_tokenizer,
    read_rows,
    set_config,
    setting,
    write_rows,
)
from precede.models.load import load, save
from test_lm_tiny import tiny_model, tiny_tokenizer


def _pickled(path: Path) -> None:
    torch.save(load(path)[0].state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def _spoilt(path: Path) -> None:
    model, tokenizer = load(path)
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    save(model, tokenizer, path)


def _cut(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the wrong command lines name."""
    path = material(tmp_path_factory.mktemp("inputs"))
    teacher = path / "teacher"
    save(tiny_model(layers=2), other_tokenizer(), path / "other-words")
    save(tiny_model(layers=7), tiny_tokenizer(), path / "big")
    changed(teacher, path / "cut", _cut)
    changed(teacher, path / "pickled", _pickled)
    changed(teacher, path / "wide", lambda copy: set_config(copy, intermediate_size=64))
    changed(teacher, path / "shallow", lambda copy: set_config(copy, num_hidden_layers=3))
    changed(teacher, path / "nan", _spoilt)
    changed(teacher, path / "deep", lambda copy: set_config(copy, num_hidden_layers=7))
    changed(teacher, path / "no-words", lambda copy: [file.unlink() for file in copy.glob("tokenizer*")])
    adapter(path / "of-another", teacher, intermediate_size=64)
    adapter(path / "of-fewer-layers", teacher, layers=3)
    adapter(path / "of-more-layers", teacher, layers=7)
    adapter(path / "of-nobody", path / "nonesuch")
    adapter(path / "of-nothing", None)
    adapter(path / "of-teacher", teacher)
    adapter(path / "of-adapter", path / "of-teacher")
    changed(
        path / "of-teacher", path / "of-cut", lambda copy: (copy / "adapter_model.safetensors").write_bytes(b"\0" * 9)
    )
    rows = read_rows(path / "pairs.jsonl")
    write_rows(path / "no-chosen.jsonl", [{"prompt": row["prompt"], "rejected": row["rejected"]} for row in rows])
    write_rows(path / "long.jsonl", [{**row, "prompt": row["prompt"] + " sky" * 60} for row in rows])
    write_rows(path / "three.jsonl", rows[:3])
    chats = [{name: [{"role": role, "content": row[name]}] for name, role in ROLES.items()} for row in rows]
    write_rows(path / "chats.jsonl", chats)
    write_rows(path / "no-completions.jsonl", [{"prompt": row["prompt"], "answer": row["chosen"]} for row in rows])
    write_rows(path / "half-completions.jsonl", [{"prompt": "<s> The", "completion": " sky"}, {"prompt": "<s> The"}])
    write_rows(path / "long-completions.jsonl", [{"prompt": "<s>", "completion": " sky" * 70}])
    (path / "not-yaml.yaml").write_text("teacher: [", "utf-8")
    (path / "list.yaml").write_text("- teacher", "utf-8")
    return path


ROLES = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
WRONG: dict[str, tuple[list[str], str]] = {
    # what is there
    "no data": (
        LAYERS,
        "world.kind is missing; it is one of mixture, grammar, text, or `text` where there are data (--data)",
    ),
    "no model": ([*DATA, "--order", "align"], "there is no model to train; give --teacher or --student"),
    "no teacher": (["--student", "student", *DATA], "there is no teacher; name one with --teacher"),
    "no student": ([*TEACHER, *DATA], "distill needs a student; give --student, or --keep-layers"),
    "two students": ([*STUDENT, *DATA, "--keep-layers", "3"], "give one of model, keep_layers and config"),
    "missing teacher": (["--teacher", "nonesuch", "--keep-layers", "3", *DATA], "the model 'nonesuch' was not found"),
    "missing student": ([*TEACHER, "--student", "nonesuch", *DATA], "the model 'nonesuch' was not found"),
    "missing recipe": (
        ["nonesuch.yaml"],
        "there is no recipe nonesuch.yaml; give a YAML file or one of audit-grammar, ",
    ),
    "recipe that is no YAML": (["not-yaml.yaml"], "recipe not-yaml.yaml is not valid YAML in line 1"),
    "recipe that is a list": (["list.yaml"], "recipe list.yaml must be a mapping of settings, not a list"),
    "output that is there": ([*PLAIN, "--out", "teacher"], "teacher is there already; name another folder with --out"),
    "output below a file": ([*PLAIN, "--out", "pairs.jsonl/out"], "pairs.jsonl/out cannot be written"),
    "store that is a file": ([*PLAIN, "--store", "pairs.jsonl"], "the store pairs.jsonl cannot be written"),
    # weights and sizes
    "weights cut short": (["--teacher", "cut", "--keep-layers", "3", *DATA], "cut/model.safetensors cannot be read"),
    "weights that are no numbers": (
        ["--teacher", "nan", "--keep-layers", "3", *DATA],
        "nan/model.safetensors is damaged: model.norm.weight has numbers that are not finite",
    ),
    "fewer layers than weights": (
        ["--teacher", "shallow", "--keep-layers", "3", *DATA],
        "the weights of shallow are not those of its config.json: there is no place for model.layers.3",
    ),
    "student's weights cut short": ([*TEACHER, "--student", "cut", *DATA], "cut/model.safetensors cannot be read"),
    "pickled weights": (
        ["--teacher", "pickled", "--keep-layers", "3", *DATA],
        "pickled has no safetensors weights; other formats are not read, as they can run code",
    ),
    "weights of another width": (
        ["--teacher", "wide", "--keep-layers", "3", *DATA],
        "the weights of wide are not those of its config.json: model.layers.0.mlp.down_proj.weight is (32, 48) and should be "
        "(32, 64)",
    ),
    "weights of fewer layers": (
        ["--teacher", "deep", "--keep-layers", "3", *DATA],
        "the weights of deep are not those of its config.json: model.layers.5.input_layernorm.weight is missing",
    ),
    "no tokenizer": (
        ["--teacher", "no-words", "--keep-layers", "3", *DATA],
        "no-words cannot be read as a model",
    ),
    "teacher the smaller one": (
        ["--teacher", "teacher", "--student", "big", *DATA],
        "a student is the smaller one: are they the wrong way round?",
    ),
    "too many layers": ([*TEACHER, "--keep-layers", "6", *DATA], "keep_layers is 6, but the teacher has 5 layers"),
    "one layer": ([*TEACHER, "--keep-layers", "1", *DATA], "student.keep_layers must be at least 2, not 1"),
    "unknown configuration": (
        [*TEACHER, *DATA, *setting("student={config: {width: 8}}")],
        "student.config.width is no setting of LlamaConfig",
    ),
    "configuration of too few words": (
        [*TEACHER, *DATA, *setting("student={config: {vocab_size: 5}}")],
        "student.config has ids up to 31, but the model has embeddings for 5 tokens only",
    ),
    "configuration that reads too little": (
        [*TEACHER, *DATA, *setting("student={config: {max_position_embeddings: 5}}")],
        "tokens in the 5 that student.config reads; lower world.max_new_tokens",
    ),
    "configuration of a million layers": (
        [*TEACHER, *DATA, *setting("student={config: {num_hidden_layers: 1000000}}")],
        "student.config: num_hidden_layers must be a whole number from 1 to 1,000, not 1000000",
    ),
    "configuration that makes no model": (
        [*TEACHER, *DATA, *setting("student={config: {num_attention_heads: 5}}")],
        "student.config makes no model",
    ),
    # tokenizers
    "token with two tokenizers": (
        [*TEACHER, "--student", "other-words", *DATA, *setting("distill.method=token")],
        "distill.method token needs one tokenizer, and those of other-words and teacher differ (their vocabularies differ: ",
    ),
    "on_policy with two tokenizers": (
        [*TEACHER, "--student", "other-words", *DATA, *setting("distill.method=on_policy")],
        "distill.method on_policy needs one tokenizer, and those of other-words and teacher differ (their vocabularies ",
    ),
    "reference of other words": (
        [
            *TEACHER,
            "--student",
            "other-words",
            *DATA,
            "--order",
            "distill > align",
            *setting("align.reference=teacher"),
        ],
        "align takes the teacher as reference or samples it, and the tokenizers of other-words and teacher differ",
    ),
    # adapters
    "adapter of another base": (
        ["--teacher", "of-another", "--keep-layers", "3", *DATA],
        "the adapter of-another does not fit",
    ),
    "adapter of fewer layers": (["--teacher", "of-fewer-layers", *DATA, "--order", "align"], "the adapter lacks "),
    "adapter of more layers": (
        ["--teacher", "of-more-layers", *DATA, "--order", "align"],
        "the model has no place for ",
    ),
    "student's adapter of another base": ([*TEACHER, "--student", "of-another", *DATA], "of-another does not fit"),
    "adapter whose base is missing": (
        ["--teacher", "of-nobody", "--keep-layers", "3", *DATA],
        "the adapter of-nobody cannot be merged: the model '",
    ),
    "adapter that names no base": (
        ["--teacher", "of-nothing", "--keep-layers", "3", *DATA],
        "of-nothing/adapter_config.json names no base model (base_model_name_or_path)",
    ),
    "adapter of an adapter": (
        ["--teacher", "of-adapter", *DATA, "--order", "align"],
        "is an adapter itself; merge the two",
    ),
    "adapter cut short": (
        ["--teacher", "of-cut", *DATA, "--order", "align"],
        "adapter_model.safetensors cannot be read",
    ),
    "adapter kept in the middle": (
        [*PLAIN, *setting("align.lora={adapter: keep}")],
        "align.lora.adapter is 'keep', but only the last stage of an order can keep its adapter",
    ),
    "adapter kept in another dtype": (
        [*STUDENT, *DATA, *setting("distill.lora={adapter: keep}", "save_dtype=bfloat16")],
        "save_dtype is bfloat16, but distill keeps its adapter, which is saved in float32, as it is trained",
    ),
    "adapter with another's reference": (
        [*ALIGN, "--reward", "colours:blue", *setting("align={method: grpo, reference: teacher, lora: {}}")],
        "align with an adapter and method grpo can only be anchored to the model itself",
    ),
    "4bit without its package": (
        [*ALIGN, *setting("align.lora={quantization: 4bit}")],
        "align.lora.quantization 4bit needs the package 'bitsandbytes'; run `pip install bitsandbytes`",
    ),
    # rows
    "data without chosen": ([*LAYERS, "--data", "no-chosen.jsonl"], "no-chosen.jsonl has no column 'chosen'"),
    "missing data": ([*LAYERS, "--data", "nonesuch.jsonl"], "there is no file or folder nonesuch.jsonl"),
    "long rows": ([*LAYERS, "--data", "long.jsonl"], "rows cannot be used; most often, 48 times"),
    "no room behind the prompts": (
        [*PLAIN, *setting("world.max_new_tokens=61")],
        "the longest prompt leaves no room for 61 tokens in the 64 that teacher reads; lower world.max_new_tokens",
    ),
    "no room behind the one prompt": (
        [*LAYERS, "--order", "distill", *setting("world={kind: text, prompt: <s> The, max_new_tokens: 63}")],
        "the longest prompt leaves no room for 63 tokens in the 64 that teacher reads; lower world.max_new_tokens",
    ),
    "too few held out": ([*LAYERS, "--data", "three.jsonl"], "are held out; raise data.held_out or give more"),
    "nothing left to train on": ([*PLAIN, *setting("data.held_out=0.999")], "no row to train on beside those held out"),
    "held_out of 0": ([*PLAIN, *setting("data.held_out=0")], "data.held_out must be at least 1e-09, not 0"),
    "chats without a template": ([*LAYERS, "--data", "chats.jsonl"], "no chat template"),
    "completions without their column": (
        [*STUDENT, *DATA, "--order", "distill", *setting("distill.completions=no-completions.jsonl")],
        "no-completions.jsonl has no column 'completion'; its columns are 'prompt', 'answer'",
    ),
    "completions with a hole": (
        [*STUDENT, *DATA, "--order", "distill", *setting("distill.completions=half-completions.jsonl")],
        "half-completions.jsonl, row 2: completion is missing",
    ),
    "completions that are too long": (
        [*STUDENT, *DATA, "--order", "distill", *setting("distill.completions=long-completions.jsonl")],
        "long-completions.jsonl has a row of 72 tokens, and student reads 64; leave long rows out",
    ),
    "completions that are missing": (
        [*STUDENT, *DATA, "--order", "distill", *setting("distill.completions=nonesuch.jsonl")],
        "there is no file or folder nonesuch.jsonl",
    ),
    "completions after a stage": (
        [*STUDENT, *DATA, *setting("distill.completions=no-completions.jsonl")],
        "distill.completions holds what a teacher wrote already, so no stage can come before distill",
    ),
    # rewards
    "reward that is not a number": (
        [*PLAIN, "--reward", "colours:nan"],
        "the reward 'colours:nan' returns nan for the",
    ),
    "reward that tells nothing": (
        [*PLAIN, "--reward", "colours:always"],
        "every completion of the data has a reward of at least 1, so nothing tells the desirable from the rest",
    ),
    "reward of too few values": ([*PLAIN, "--reward", "colours:too_few"], "the reward 'colours:too_few' returns "),
    "reward that fails": (
        [*PLAIN, "--reward", "colours:raising"],
        "the reward 'colours:raising' failed: KeyError: 'colour'",
    ),
    "reward in no module": ([*PLAIN, "--reward", "colourz:blue"], "the reward 'colourz:blue' cannot be imported"),
    "reward not in its module": ([*PLAIN, "--reward", "colours:red"], "the reward 'colours:red' cannot be imported"),
    "reward that is a number": ([*PLAIN, "--reward", "colours:number"], "the reward 'colours:number' is a int"),
    "reward without a module": (
        [*PLAIN, "--reward", "blue"],
        "the reward 'blue' is neither module:function nor one of",
    ),
    "two rewards": (
        [*PLAIN, "--reward", "colours:blue", "--reward-model", "x/y"],
        "give reward or reward_model, not both",
    ),
    "reward model that is none": ([*PLAIN, "--reward-model", "teacher"], "the reward model 'teacher' lacks weights"),
    "rloo without a reward": (
        [*PLAIN, *setting("align.method=rloo")],
        "align with method rloo ranks samples by a reward; give --reward or --reward-model",
    ),
    "seeded pairs without a reward": (
        [*PLAIN, *setting("align.pairs=seeded")],
        "align with pairs: seeded ranks samples",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_sentence_and_leaves_nothing(case: str, given: Path, command_line: CommandLine) -> None:
    arguments, words = WRONG[case]
    assert words in command_line.refused(given, *arguments)
