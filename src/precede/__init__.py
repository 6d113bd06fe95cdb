"""precede puts the stages of post-training in the right order: align first, then distil (arXiv 2509.23667)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precede.evaluate.audit import Audit
    from precede.jobs.build import Built
    from precede.jobs.compare import Comparison
    from precede.settings.recipe import Recipe

__all__ = ["audit", "build", "compare", "load_recipe"]

Source = str | PathLike[str]


def load_recipe(recipe: Source | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe: the name of one that `precede recipes` lists, the path of a YAML file, or its settings as a mapping.

    `overrides` are texts `path.to.key=value`, as `--set` takes them. Raises ValueError, in one sentence, for what is wrong.

        recipe = precede.load_recipe("mixture", ["seeds=8", "align.beta=0.2"])
    """
    from precede.settings.recipe import load_recipe as load

    return load(recipe, overrides)


def compare(
    recipe: Recipe | Source | Mapping[str, Any],
    *,
    out: Source | None = None,
    store: Source | None = None,
    workers: int | None = None,
    tell: Callable[[str], None] = print,
) -> Comparison:
    """Run every order of a recipe under every setting and seed, and say which wins; `precede compare`.

    Into `out` (default `runs/NAME`) go report.html, figures/, results.json and recipe.yaml; finished stages are kept in `store`
    (default `~/.cache/precede/stages`). `tell` hears sentences. Returns the results (docs/results.md), the report's path, and
    how many stages were run. Raises ValueError for what is wrong with the input, StageFailed for a stage that stopped.

        comparison = precede.compare("mixture")
        print(comparison.report, comparison.results["comparisons"][0]["mean_difference"])
    """
    from precede.jobs.compare import compare as job

    return job(_recipe(recipe), out=_path(out), store=_path(store), workers=workers, tell=tell)


def audit(
    models: str | Sequence[str],
    data: Source,
    *,
    out: Source | None = None,
    teacher: str | None = None,
    reward: str | Callable[..., Any] | None = None,
    reward_model: str | None = None,
    target_reward: float | None = None,
    beta: float = 0.1,
    samples: int = 4,
    max_new_tokens: int | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    device: str = "auto",
    seed: int = 0,
) -> Audit:
    """Say of references whether they can be aligned to preferences, the best first; `precede audit` (docs/audit.md).

    With `out`, audit.html, audit.json and pairs.parquet are written there. For all else see `precede.evaluate.audit.audit`.

        best = precede.audit(["student"], "pairs.jsonl", teacher="teacher", beta=0.1).candidates[0]
        print(best.verdict.level, best.numbers["recall_gap"])
    """
    arguments = dict(locals())
    from precede.jobs.audit import audit as job

    return job(**arguments | {"data": str(data), "out": _path(out)})


def build(
    recipe: Recipe | Source | Mapping[str, Any],
    *,
    out: Source,
    order: str | None = None,
    seed: int | None = None,
    store: Source | None = None,
    workers: int | None = None,
    tell: Callable[[str], None] = print,
) -> Built:
    """Make the compact aligned model in one order of a recipe; `precede build` (docs/build.md).

    `out` becomes a Hugging Face folder with card, numbers and evidence. `order` and `seed` choose among those of the recipe;
    what a comparison of it has trained is taken from `store`. Raises ValueError for what is wrong with the input.

        built = precede.build({"teacher": "teacher", "student": {"keep_layers": 3}, "data": "pairs.jsonl"}, out="my-model")
        print(built.folder, built.report["models"]["distill"])
    """
    from precede.jobs.build import build as job

    return job(_recipe(recipe), Path(out), order=order, seed=seed, store=_path(store), workers=workers, tell=tell)


def _recipe(recipe: Recipe | Source | Mapping[str, Any]) -> Recipe:
    return load_recipe(recipe) if isinstance(recipe, str | PathLike | Mapping) else recipe


def _path(path: Source | None) -> Path | None:
    return None if path is None else Path(path)
