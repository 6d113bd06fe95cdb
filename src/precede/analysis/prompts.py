"""Where prompts are many: two models compared prompt by prompt, what k samples of a prompt reach; and examples side by side.

These are numbers of the models that one seed made. They say nothing of the procedures, which only seeds can (design of
`precede.analysis.collect`), and are never pooled with those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import gammaln

from precede import stats
from precede.analysis.outcomes import Array, Outcome, Pair, Reader, json_list, json_value
from precede.analysis.results import Example, PromptComparison, Support
from precede.plan import Node

COLUMNS = ("reward", "target_mass", "chosen_logp")
"""What is compared prompt by prompt, beside the margin of the pairs."""
KEYS = ("row", "prompt")
QUANTILES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of the differences in reward over prompts: where examples are taken."""
FIRST = 5
"""Completions of one prompt that stand as examples."""


def per_prompt(reader: Reader, model: Node) -> dict[str, Array]:
    """What was measured of a model at each row, (rows,) by name, `prompt` telling which rows are of one question; nothing where
    there is one prompt, or none."""
    folder = reader.measured(model)
    if folder is None or not (folder / "measures.parquet").exists():
        return {}
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(folder / "measures.parquet").to_pydict()
    if len(columns["row"]) < 2:
        return {}
    values = {name: np.array(columns[name], float) for name in (*KEYS, *COLUMNS) if name in columns}
    if "chosen_logp" in columns:
        values["margin"] = values["chosen_logp"] - np.array(columns["rejected_logp"], float)
    return values


def prompt_comparisons(reader: Reader, pair: Pair, seeds: Sequence[int]) -> Iterator[PromptComparison]:
    """The final models of two orders, compared over the prompts that were kept from training, for each seed."""
    a, b = pair
    for seed, first, second in _ends(reader, pair, seeds):
        left, right = (per_prompt(reader, model) for model in (first, second))
        if not left or left["row"].tolist() != right["row"].tolist():
            continue
        for name in left:
            if name in KEYS:
                continue
            result = stats.paired(left[name][None], right[name][None], left["prompt"].tolist())
            difference = _by_prompt(left["prompt"], left[name] - right[name]) / _by_prompt(left["prompt"])
            yield {
                "a": str(a.arm.order),
                "b": str(b.arm.order),
                "settings": dict(a.arm.settings),
                "seed": seed,
                "metric": name,
                "mean_a": json_value(result.a.mean[0]),
                "mean_b": json_value(result.b.mean[0]),
                "mean_difference": json_value(result.difference.mean[0]),
                "ci95": json_list(result.difference.ci95[0]),
                "p_value": json_value(result.difference.p_values()[0]),
                "n_prompts": int(result.difference.replicates[0]),
                "higher": int((difference > 0).sum()),
                "lower": int((difference < 0).sum()),
                "equal": int((difference == 0).sum()),
            }


def _ends(reader: Reader, pair: Pair, seeds: Sequence[int]) -> Iterator[tuple[int, Node, Node]]:
    """For each seed the final models of both orders, where a model holds one seed."""
    blocks = [outcome.arm.blocks for outcome in pair]
    if len(blocks[0]) == len(seeds):
        yield from ((seed, *(chains[n][-1] for chains in blocks)) for n, seed in enumerate(seeds))  # type: ignore[misc]


def _by_prompt(prompts: Array, values: Array | None = None) -> Array:
    """Sums of values (rows,) over the rows of each question, (questions,); without values, how many rows each has."""
    return np.bincount(np.unique(prompts, return_inverse=True)[1], values).astype(float)


def pass_at(hits: Array, samples: Array | int, k: int) -> float:
    """Share of prompts with a desirable completion among k samples: mean over prompts of 1 − C(n−c, k)/C(n, k).

    `hits` (prompts,) are the c desirable ones of n = `samples`, a number or one for each prompt; unbiased for k ≤ n (Chen et
    al. 2021, arXiv 2107.03374, eq. 1). Raises ValueError for a k outside of 1 … the least n.
    """
    if not 1 <= k <= np.min(samples):
        raise ValueError(f"k must lie between 1 and the number of samples, {np.min(samples)}, not {k}")
    rest = samples - hits
    with np.errstate(invalid="ignore"):
        log_miss = gammaln(rest + 1) - gammaln(rest - k + 1) - gammaln(samples + 1) + gammaln(samples - k + 1)
    return float(np.where(rest < k, 1.0, 1 - np.exp(log_miss)).mean())


def support(reader: Reader, outcomes: Sequence[Outcome], seeds: Sequence[int]) -> Iterator[Support]:
    """What k samples of a prompt reach, of every model of the orders, each once, and what each stage kept, lost and gained.

    A behaviour is there at a prompt if one of the samples is desirable (cf. arXiv 2507.14843, 2608.11829).
    """
    seen: set[str] = set()
    for outcome in outcomes:
        if len(outcome.arm.blocks) != len(seeds):
            return
        for seed, chain in zip(seeds, outcome.arm.blocks, strict=True):
            before: Array | None = None
            for node in chain:
                values, measure = per_prompt(reader, node), reader.plan.measures.get(node.key)
                if "target_mass" not in values or measure is None:
                    break
                prompts = values["prompt"]
                drawn = _by_prompt(prompts) * measure.config["samples_per_prompt"]
                samples = int(drawn.min())
                hits = np.round(_by_prompt(prompts, values["target_mass"]) * measure.config["samples_per_prompt"])
                changes: dict[str, float | None] = dict.fromkeys(("kept", "lost", "gained"))
                if before is not None and len(before) == len(hits):
                    was, there = before > 0, hits > 0
                    changes = {
                        "kept": _share(was & there),
                        "lost": _share(was & ~there),
                        "gained": _share(~was & there),
                    }
                ks = sorted({2**power for power in range(samples.bit_length()) if 2**power <= samples} | {samples})
                if f"{seed} {node.key}" not in seen:
                    seen.add(f"{seed} {node.key}")
                    yield {
                        "settings": dict(outcome.arm.settings),
                        "model": " > ".join(one.name for one in node.lineage()),
                        "seed": seed,
                        "n_prompts": len(hits),
                        "samples": samples,
                        "pass_at": {str(k): pass_at(hits, drawn, k) for k in ks},
                        **changes,  # type: ignore[typeddict-item]
                    }
                before = hits


def _share(where: Any) -> float:
    return float(where.mean())


def examples(reader: Reader, pair: Pair) -> Iterator[Example]:
    """What both final models of the first seed wrote, chosen by rule: of one prompt, the first `FIRST` completions of each in
    the order they were drawn; of many, the first completion at the prompts at the quantiles of the difference in mean reward.

    Without a reward there is no such rule for many prompts, and no example.
    """
    models = [outcome.arm.blocks[0][-1] for outcome in pair]
    written = [_written(reader.measured(model)) for model in models]
    columns = [per_prompt(reader, model) for model in models]
    if not all(written):
        return
    if not any(columns):
        means = [outcome.metrics["reward"][0] if "reward" in outcome.metrics else np.nan for outcome in pair]
        chosen = [(a, b, float(means[0] - means[1])) for a, b in zip(*written, strict=False)][:FIRST]
    elif all("reward" in one for one in columns) and columns[0]["row"].tolist() == columns[1]["row"].tolist():
        difference = columns[0]["reward"] - columns[1]["reward"]
        ranked = np.argsort(difference, kind="stable")
        indices = dict.fromkeys(int(ranked[round(q * (len(ranked) - 1))]) for q in QUANTILES)
        firsts = [{one["row"]: one for one in reversed(each)} for each in written]
        rows = [(int(columns[0]["row"][index]), float(difference[index])) for index in indices]
        chosen = [(firsts[0][row], firsts[1][row], size) for row, size in rows]
    else:
        return
    for a, b, size in chosen:
        yield {
            "a": str(pair[0].arm.order),
            "b": str(pair[1].arm.order),
            "settings": dict(pair[0].arm.settings),
            "row": a["row"],
            "prompt": a["prompt"],
            "difference": json_value(size),
            "completion_a": a["text"],
            "completion_b": b["text"],
            "reward_a": a["reward"],
            "reward_b": b["reward"],
        }


def _written(folder: Path | None) -> list[dict[str, Any]]:
    """The completions of a model that were kept, in the order they were drawn; none where a world writes no text."""
    path = None if folder is None else folder / "completions.json"
    if path is None or not path.exists():
        return []
    kept: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["completions"]
    return kept
