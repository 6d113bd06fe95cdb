"""Settings of `precede build` that cannot be: one sentence, exit status 2, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_material import DATA, PLAIN, CommandLine, material, setting


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return material(tmp_path_factory.mktemp("settings"))


WRONG: dict[str, tuple[list[str], str]] = {
    "unknown key": ([*PLAIN, *setting("studnt.model=x")], "there is no block 'studnt' in 'studnt.model'"),
    "unknown word": ([*PLAIN, *setting("teachr=x")], "unknown key 'teachr'; did you mean 'teacher'?"),
    "unknown setting of a stage": (
        [*PLAIN, *setting("align.bta=1")],
        "unknown setting 'align.bta'; did you mean 'beta'?",
    ),
    "unknown setting of the data": ([*PLAIN, *setting("data.splt=x")], "'data.splt'; did you mean 'split'?"),
    "unknown setting of the evaluation": (
        [*PLAIN, *setting("evaluation.pair=3")],
        "'evaluation.pair'; did you mean 'pairs'?",
    ),
    "unknown setting of an adapter": (
        [*PLAIN, *setting("align.lora={rnk: 4}")],
        "'align.lora.rnk'; did you mean 'rank'?",
    ),
    "unknown argument of the trainer": (
        [*PLAIN, *setting("align.trainer.learning_ratee=1e-6")],
        "align.trainer.learning_ratee is no argument of TRL's DPOConfig; did you mean 'learning_rate'?",
    ),
    "argument of the trainer that is ours": (
        [*PLAIN, *setting("align.trainer.output_dir=x")],
        "align.trainer.output_dir cannot be passed through",
    ),
    "argument of the trainer that is a word": (
        [*PLAIN, *setting("align.trainer.learning_rate=fast")],
        "align.trainer.learning_rate is 'fast': input should be a valid number",
    ),
    "optimiser that there is not": ([*PLAIN, *setting("distill.trainer.optim=adamant")], "distill.trainer: "),
    "no epochs": ([*PLAIN, *setting("align.trainer.num_train_epochs=0")], "align.trainer.num_train_epochs"),
    "no rows per step": (
        [*PLAIN, *setting("align.trainer.per_device_train_batch_size=0")],
        "align.trainer: per_device_train_batch_size must be a whole number from 1 to 10,000,000, not 0",
    ),
    "argument of the trainer that is no number": (
        [*PLAIN, *setting("align.trainer.weight_decay=.nan")],
        "align.trainer: weight_decay must be a finite number below 2**32, not nan",
    ),
    "seed below 0": (
        [*PLAIN, *setting("align.trainer.seed=-1")],
        "align.trainer: seed must be a whole number from 0 to 4,294,967,295, not -1",
    ),
    "evaluation within a stage": (
        [*PLAIN, *setting("align.trainer.eval_strategy=steps")],
        "align.trainer.eval_strategy cannot be passed through; a stage has no rows to evaluate on",
    ),
    "another end of a text": (
        [*PLAIN, *setting("distill.trainer.eos_token=sky")],
        "distill.trainer.eos_token cannot be passed through; a model keeps the tokenizer that it has",
    ),
    "layer that is not there": (
        [*PLAIN, *setting("align.lora={target_modules: [q_proj, query]}")],
        "align.lora.target_modules names 'query', but the model's linear layers are down_proj, gate_proj, up_proj, k_proj",
    ),
    "layer that no adapter trains": (
        [*PLAIN, *setting("distill.lora={target_modules: [lm_head]}")],
        "distill.lora.target_modules names 'lm_head', but the model's linear layers are",
    ),
    "no layers": (
        [*PLAIN, *setting("align.lora={target_modules: []}")],
        "align.lora.target_modules is []: list should",
    ),
    "beta of 0": ([*PLAIN, "--beta", "0"], "align.beta must be at least 1e-09, not 0"),
    "beta that is a word": ([*PLAIN, *setting("align.beta=small")], "align.beta is 'small'"),
    "unknown method": (
        [*PLAIN, *setting("align.method=ppo")],
        "align.method: 'ppo' is not known; the methods are dpo, kto, rloo, grpo",
    ),
    "unknown stage": ([*PLAIN, "--order", "align > distil"], "names an unknown stage 'distil'; the stages are"),
    "order with a hole": ([*PLAIN, "--order", "align >"], "the order 'align >' has an empty place"),
    "order that names a stage twice": (
        [*PLAIN, "--order", "align > align"],
        "the order 'align > align' names a stage twice",
    ),
    "stage of no kind": (
        [*PLAIN, *setting("warm={kind: cool}")],
        "warm.kind is 'cool', but stages of the text world are",
    ),
    "tasks without lm-eval": (
        [*PLAIN, *setting("evaluation.tasks=[hellaswag]")],
        "evaluation.tasks needs the package 'lm_eval'; run `pip install 'precede[eval]'`",
    ),
    "unknown tracker": ([*PLAIN, *setting("report_to=[comet]")], "report_to names 'comet', but the trackers are"),
    "tracker that is not installed": (
        [*PLAIN, *setting("report_to=[wandb]")],
        "report_to wandb needs the package 'wandb'; run `pip install wandb`",
    ),
    "device that is not here": ([*PLAIN, *setting("world.device=mps")], "device 'mps' is not available here"),
    "repository without an owner": ([*PLAIN, "--push-to-hub", "model"], "push_to_hub is 'model'"),
    "nothing to set": ([*PLAIN, "--set", "beta"], "--set takes path.to.key=value, not 'beta'"),
    "reference that is not there": (
        ["--student", "student", *DATA, "--order", "align", *setting("align.reference=teacher")],
        "align.reference is 'teacher', but there is no teacher; name one with --teacher",
    ),
    "seeds that are not there": (
        ["--student", "student", *DATA, "--order", "align", "--reward", "colours:blue", *setting("align.pairs=seeded")],
        "align.pairs is 'seeded', but there is no teacher; name one with --teacher",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_setting_gets_one_sentence_and_leaves_nothing(case: str, given: Path, command_line: CommandLine) -> None:
    arguments, words = WRONG[case]
    assert words in command_line.refused(given, *arguments)
