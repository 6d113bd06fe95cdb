"""What is measured of a language model on one prompt, by hand, with truths made for the purpose."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from precede.data.preferences import Preference
from precede.evaluate.examiner import SHOWN, Examiner, Findings, Rows, TruthRows, distinct, logps_of
from precede.models.load import save
from precede.report.language_figures import target_masses
from precede.sampling import sample, sample_prompts
from precede.stages.context import ROWS, Context, Models
from precede.stages.running import kl_at_start
from precede.stages.trainer import Checkpoints
from test_lm_tiny import doubled, stopping_model, tiny_model, tiny_tokenizer

PROMPT = [3]
ROW = Preference(0, PROMPT, [], [], "The", "", "")
Value = Callable[[Sequence[int]], float]


def log_p(model: Any, rows: Rows, temperature: float = 1.0) -> list[float]:
    """log p of each completion of the prompt in float64, one row at a time and without padding."""
    double, found = doubled(model), []
    for row in rows:
        with torch.no_grad():
            logits = double(input_ids=torch.tensor([[*PROMPT, *row]]), use_cache=False).logits[0, :-1]
        logps = (logits / temperature).log_softmax(-1)
        found.append(float(logps.gather(1, torch.tensor([row]).T).sum()))
    return found


def examiner_of(truth: TruthRows, reward: Value, length: int = 2, samples: int = 200, **changes: Any) -> Examiner:
    def judge(
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Rows | None = None,
        columns: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[float]:
        assert completion_ids is not None
        return [reward(row) for row in completion_ids]

    values: dict[str, Any] = {
        "rows": [ROW],
        "tokenizer": tiny_tokenizer(),
        "truth": truth,
        "reward": judge,
        "target_reward": 1.0,
        "samples": samples,
        "max_new_tokens": length,
        "sample_batch": 64,
        "seed": 5,
    }
    return Examiner(**(values | changes))


def blue(row: Sequence[int]) -> float:
    return float(6 in row)


def drawn(model: Any, length: int = 2, count: int = 200, temperature: float = 1.0) -> list[list[int]]:
    """What the examiner samples, drawn again."""
    more: dict[str, Any] = {"max_new_tokens": length, "seed": 5, "batch_size": 64}
    return sample(model, tiny_tokenizer(), PROMPT, count, temperature=temperature, **more)


def test_every_number_is_of_the_model_as_it_was_sampled() -> None:
    """At τ = 1 and, decoded, at τ = 0.5: computed again from the same draws, in float64."""
    truth, model, anchor = tiny_model(), stopping_model(seed=1), stopping_model(seed=2)
    truth_rows, target_rows = [[8, 2], [6, 9], [6, 2]], [[6, 9], [6, 2], [9, 6]]
    given = TruthRows([truth_rows], [target_rows], lambda prompts, rows: logps_of(truth, prompts, rows))
    found = examiner_of(given, blue).examine(model, anchor, 0.5)
    metrics = found.metrics
    for prefix, temperature in (("", 1.0), ("decoded_", 0.5)):
        rows = drawn(model, temperature=temperature)
        own, of_truth = log_p(model, rows, temperature), log_p(truth, rows)
        recall, target_recall = (log_p(model, some, temperature) for some in (truth_rows, target_rows))
        hits, tokens = sum(6 in row for row in rows), sum(map(len, rows))
        # p_T = p*/m*, with three target rows to three of the truth
        on_target = [value for value, row in zip(of_truth, rows, strict=True) if 6 in row]
        expected = {
            "reward": hits / 200,
            "target_mass": hits / 200,
            "target_log_odds": math.log((hits + 0.5) / (200 - hits + 0.5)),
            "target_precision": None,
            "target_precision_per_token": None,
            "target_precision_on_target": sum(on_target) / hits,
            "target_precision_on_target_per_token": sum(on_target) / sum(len(row) for row in rows if 6 in row),
            "target_recall": sum(target_recall) / 3,
            "target_recall_per_token": sum(target_recall) / 6,
            "precision": sum(of_truth) / 200,
            "precision_per_token": sum(of_truth) / tokens,
            "recall": sum(recall) / 3,
            "recall_per_token": sum(recall) / 6,
            "entropy": -sum(own) / 200,
            "entropy_per_token": -sum(own) / tokens,
            "kl_to_truth": (sum(own) - sum(of_truth)) / 200,
            "kl_to_truth_per_token": (sum(own) - sum(of_truth)) / tokens,
            "distinct_1": len({token for row in rows for token in row}) / tokens,
            "distinct_2": len({tuple(row) for row in rows if len(row) == 2}) / sum(len(row) == 2 for row in rows),
            "length": tokens / 200,
            "stop_rate": sum(row[-1] == 2 for row in rows) / 200,
        }
        assert 0 < hits < 200
        assert {name for name in metrics if name.startswith("decoded_") == bool(prefix)} == {
            prefix + name for name in expected
        } | (set() if prefix else {"kl_to_reference", "kl_to_reference_per_token"})
        for name, value in expected.items():
            assert metrics[prefix + name] == (None if value is None else pytest.approx(value, abs=2e-5)), name
        assert [row["reward"] for row in found.completions[prefix + "completions"]] == [blue(row) for row in rows[:100]]
        if not prefix:
            gap = sum(own) - sum(log_p(anchor, rows))
            assert metrics["kl_to_reference"] == pytest.approx(gap / 200, abs=2e-5)
            assert metrics["kl_to_reference_per_token"] == pytest.approx(gap / tokens, abs=2e-5)


def test_what_is_kept_of_the_one_prompt_is_its_numbers() -> None:
    """One entry in each column, equal to the number; nothing about pairs, of which there are none."""
    truth, model = tiny_model(), stopping_model(seed=1)
    given = TruthRows([[[8, 2]]], [[]], lambda prompts, rows: logps_of(truth, prompts, rows))
    found = examiner_of(given, blue, samples=SHOWN + 20).examine(model, truth, 0.5)
    assert found.per_prompt.pop("row") == found.per_prompt.pop("prompt") == [0]
    assert found.per_prompt.pop("recall_tokens") == found.per_prompt.pop("decoded_recall_tokens") == [2.0]
    one = {"reward", "target_mass", "entropy", "length", "stop_rate", "recall", "kl_to_truth"}
    assert set(found.per_prompt) == one | {f"decoded_{name}" for name in one} | {"kl_to_reference"}
    for name, (value,) in found.per_prompt.items():
        assert value == pytest.approx(found.metrics[name], abs=1e-9), name
    assert len(found.completions["completions"]) == len(found.completions["decoded_completions"]) == SHOWN


def test_without_reference_and_without_distillation_their_numbers_are_none() -> None:
    truth = tiny_model()
    given = TruthRows([[[8, 2]]], [[]], lambda prompts, rows: logps_of(truth, prompts, rows))
    found = examiner_of(given, blue, samples=20).examine(stopping_model(), None, None)
    metrics = found.metrics
    none = {name for name, value in metrics.items() if value is None}
    decoded = {name for name in metrics if name.startswith("decoded_")}
    undefined = {
        "kl_to_reference",
        "kl_to_reference_per_token",
        *(
            name + ending
            for name in ("target_precision", "target_precision_on_target", "target_recall")
            for ending in ("", "_per_token")
        ),
    }
    assert none == decoded | undefined
    assert decoded == {f"decoded_{name}" for name in set(metrics) - decoded if not name.startswith("kl_to_reference")}
    assert set(found.completions) == {"completions"}


def test_without_a_reward_nothing_is_said_of_it() -> None:
    for changes in ({"reward": None}, {"target_reward": None}):
        examiner = replace(examiner_of(TruthRows(), blue, samples=20), **changes)
        metrics = examiner.examine(stopping_model()).metrics
        assert not {name for name in metrics if name.startswith(("target_mass", "target_log_odds", "target_precision"))}
        assert ("reward" in metrics) == ("reward" not in changes)
        assert metrics["recall"] is metrics["target_recall"] is metrics["precision"] is None
        assert metrics["entropy"] is not None


@pytest.mark.parametrize("rows", [1, 300])
def test_kl_at_start(rows: int, tmp_path: Path) -> None:
    """Of two models over the first one's own samples: 256 of one prompt, or one of each of the first 256 prompts."""
    one, other = stopping_model(), stopping_model(seed=1)
    for name, model in (("one", one), ("other", other)):
        save(model, tiny_tokenizer(), tmp_path / name)
    prompts = [[3]] * 256 if rows == 1 else [[3] if n % 2 else [1, 3, 8] for n in range(rows)][:256]
    given = [Preference(n, prompt, [], [], "", "", "") for n, prompt in enumerate(prompts)] if rows > 1 else [ROW]
    keep = Checkpoints(tmp_path / "work", tmp_path)
    keep.folder.mkdir()
    context = Context("align", 7, tiny_tokenizer(), given, None, 3, 100, torch.device("cpu"), "float32", keep)
    found = kl_at_start(Models(tmp_path / "one", tmp_path / "other"), {"beta": 0.1}, context, [{"loss": 0.0}])
    seed, words = context.stream("start"), tiny_tokenizer()
    drawn = sample_prompts(one, words, prompts, max_new_tokens=3, seed=seed, batch_size=100)
    assert json.loads((keep.folder / "samples-start" / "000000" / ROWS).read_text()) == drawn
    doubles, gaps = (doubled(one), doubled(other)), []
    for prompt, row in zip(prompts, drawn, strict=True):
        ids = torch.tensor([[*prompt, *row]])
        with torch.no_grad():
            both = [model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for model in doubles]
        own, theirs = (logps.gather(1, torch.tensor([row]).T).sum() for logps in both)
        gaps.append(float(own - theirs))
    assert found == pytest.approx(sum(gaps) / 256, abs=2e-5)
    assert found > 0.5


def test_kl_at_start_of_a_model_to_itself_is_what_the_first_step_logged(tmp_path: Path) -> None:
    """RLOO and GRPO log `kl`, DPO the chosen ones' β times log-ratio; where nothing was trained it is 0."""
    context: Any = None
    same = Models("model", "model")
    assert kl_at_start(same, {"beta": 0.5}, context, [{"kl": -0.03}, {"kl": 9.0}]) == pytest.approx(0.03)
    assert kl_at_start(same, {"beta": 0.5}, context, [{"rewards/chosen": 0.01}]) == pytest.approx(0.02)
    assert kl_at_start(same, {"beta": 0.5}, context, []) == 0


# -------------------------------------------------------------------------------------- truths that are tables


def table_reward(row: Sequence[int]) -> float:
    return [1.0, 0.0, 0.5][sum(row) % 3]


def table_truth(row: Sequence[int]) -> float:
    return -1.25 * len(row) - 0.01 * sum(row)


def table_target(row: Sequence[int]) -> float:
    """Off the target for every row whose sum is odd, also where the reward is 1."""
    return -math.inf if sum(row) % 2 else -0.5 * len(row) - 0.02 * sum(row)


def table(of: Value) -> Callable[[Rows], torch.Tensor]:
    return lambda rows: torch.tensor([of(row) for row in rows], dtype=torch.float64)


TRUTH_ROWS = [[4], [5, 2], [4, 4, 4], [5, 5]]


def measured(reward: Value, target_rows: Rows = (), *, kind: str = "both", **changes: Any) -> Findings:
    """40 completions of at most 4 tokens; `kind` of truth: `both` likelihoods, p* alone, or `data` without any."""
    logps = {} if kind == "data" else {"logps": lambda prompts, rows: table(table_truth)(rows)}
    target = {"target_logps": table(table_target)} if kind == "both" else {}
    truth = TruthRows([TRUTH_ROWS], [list(target_rows)], **logps, **target)
    return examiner_of(truth, reward, length=4, samples=40, **changes).examine(stopping_model(seed=1))


def rows_drawn() -> list[list[int]]:
    return drawn(stopping_model(seed=1), length=4, count=40)


def test_numbers_of_a_table_by_hand() -> None:
    values, rows = measured(table_reward).metrics, rows_drawn()
    tokens, model = sum(map(len, rows)), stopping_model(seed=1)
    good = [row for row in rows if sum(row) % 3 == 0]
    pairs = [pair for row in rows for pair in itertools.pairwise(row)]
    assert 0 < len(good) < 40
    assert any(sum(row) % 2 for row in good)
    expected = {
        "reward": (len(good) + 0.5 * sum(sum(row) % 3 == 2 for row in rows)) / 40,
        "target_mass": len(good) / 40,
        "target_log_odds": math.log((len(good) + 0.5) / (40.5 - len(good))),
        "precision": sum(map(table_truth, rows)) / 40,
        "precision_per_token": sum(map(table_truth, rows)) / tokens,
        "recall": sum(log_p(model, TRUTH_ROWS)) / 4,
        "recall_per_token": sum(log_p(model, TRUTH_ROWS)) / 8,
        "entropy": -sum(log_p(model, rows)) / 40,
        "entropy_per_token": -sum(log_p(model, rows)) / tokens,
        "kl_to_truth": (sum(log_p(model, rows)) - sum(map(table_truth, rows))) / 40,
        "distinct_1": len({token for row in rows for token in row}) / tokens,
        "distinct_2": len(set(pairs)) / len(pairs),
        "length": tokens / 40,
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=2e-5), name
    for name in ("target_precision", "target_precision_on_target"):  # some have p_T = 0, also among the good
        assert values[name] is values[f"{name}_per_token"] is None


def test_target_precision_by_hand() -> None:
    """On the target alone it is defined where all of those have p_T above 0."""
    values = measured(lambda row: float(sum(row) % 2 == 0)).metrics
    good = [row for row in rows_drawn() if sum(row) % 2 == 0]
    assert values["target_precision"] is None
    assert values["target_precision_on_target"] == pytest.approx(sum(map(table_target, good)) / len(good))
    assert values["target_precision_on_target_per_token"] == pytest.approx(
        sum(map(table_target, good)) / sum(map(len, good))
    )


def test_numbers_at_the_edges() -> None:
    every = measured(lambda row: 1.0, target_reward=0.5).metrics
    assert every["target_log_odds"] == pytest.approx(math.log(40.5 / 0.5))
    assert every["target_precision_on_target"] is None  # −∞ among them
    none = measured(lambda row: 0.0).metrics
    assert none["target_log_odds"] == pytest.approx(math.log(0.5 / 40.5))
    assert none["target_precision_on_target"] is None
    exactly = measured(lambda row: [0.5, 0.49][sum(row) % 2], target_reward=0.5).metrics
    good = [row for row in rows_drawn() if sum(row) % 2 == 0]
    assert exactly["target_mass"] == len(good) / 40
    assert exactly["target_precision_on_target"] == pytest.approx(sum(map(table_target, good)) / len(good))


def test_a_truth_that_knows_no_target_has_the_truth_over_its_mass() -> None:
    """log p_T = log p* − log m* on the target, m* being the truth's own share of target samples, here 1 of 4."""
    values = measured(table_reward, [[5, 2]], kind="truth").metrics
    rows = rows_drawn()
    good = [row for row in rows if sum(row) % 3 == 0]
    assert values["target_precision"] is None
    on_target = sum(map(table_truth, good)) / len(good) - math.log(0.25)
    assert values["target_precision_on_target"] == pytest.approx(on_target)
    every = measured(lambda row: 1.0, [[5, 2]], kind="truth").metrics
    whole = sum(map(table_truth, rows)) / 40 - math.log(0.25)
    assert every["target_precision"] == every["target_precision_on_target"] == pytest.approx(whole)
    none = measured(lambda row: 1.0, [], kind="truth").metrics
    assert none["target_precision"] is none["target_precision_on_target"] is None


def test_a_truth_that_is_data_has_no_precision() -> None:
    found = measured(table_reward, [[5, 2]], kind="data")
    missing = {name for name, value in found.metrics.items() if value is None and not name.startswith("decoded_")}
    undefined = ("precision", "kl_to_truth", "target_precision", "target_precision_on_target", "kl_to_reference")
    assert missing == {name + ending for name in undefined for ending in ("", "_per_token")}
    assert found.metrics["recall"] == pytest.approx(sum(log_p(stopping_model(seed=1), TRUTH_ROWS)) / 4, abs=2e-5)
    assert "kl_to_truth" not in found.per_prompt


def test_distinct() -> None:
    assert distinct([[1, 2, 1], [2, 1]], 1) == 2 / 5
    assert distinct([[1, 2, 1], [2, 1]], 2) == 2 / 3
    assert distinct([[1, 2, 1], [2, 1]], 3) == 1
    assert distinct([[1, 2, 1], [2, 1]], 4) is None


def test_figure() -> None:
    figure = target_masses({"teacher": (0.0, 0.0, 0.09), "align > distill": (0.25, 0.13, 0.41)})
    (axis,) = figure.canvas.axes
    assert [bar.get_height() for bar in axis.patches] == [0, 0.25]
    assert figure.name == "target-masses"
