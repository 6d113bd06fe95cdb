"""precede puts the stages of post-training in the right order: align first, then distil (arXiv 2509.23667).

The verbs of the command line, for scripts and notebooks. Wherever a recipe or an argument has the path of rows it may be a list
of mappings or a `datasets.Dataset`; wherever it has a model, a loaded pair `(model, tokenizer)`; wherever it has a reward, a
function of an imported module. Rows and loaded models are written to the cache once. Progress is shown on stderr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

    from precede.evaluate.audit import Audit
    from precede.jobs.build import Built
    from precede.jobs.compare import Comparison
    from precede.settings.recipe import Recipe

__all__ = ["__version__", "audit", "build", "compare", "load_recipe"]
__version__ = version("precede")

Source = str | PathLike[str]
Model = Source | tuple[Any, Any]


def load_recipe(recipe: Source | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe: the name of one that `precede recipes` lists, the path of a YAML file, or its settings as a mapping.

    `overrides` are texts `path.to.key=value`, as `--set` takes them. Raises ValueError, in one sentence, for what is wrong.

        recipe = precede.load_recipe("mixture", ["seeds=8", "align.beta=0.2"])
    """
    from precede.settings.recipe import load_recipe as load

    if isinstance(recipe, Mapping):
        from precede.jobs import given

        recipe = given.settings(recipe)
    return load(recipe, overrides)


def compare(
    recipe: Recipe | Source | Mapping[str, Any],
    *,
    out: Source | None = None,
    store: Source | None = None,
    workers: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Comparison:
    """Run every order of a recipe under every setting and seed, and say which wins; `precede compare`.

    Into `out` (default a folder in `runs` that no other recipe has) go report.html, figures/, results.json and recipe.yaml;
    finished stages are kept in `store` (default `~/.cache/precede/stages`). With `tell`, it hears what is said on the way, and
    nothing is shown. Returns the results (docs/results.md), the report's path, and how many stages were run. Raises ValueError
    for what is wrong with the input, StageFailed for a stage that stopped.

        comparison = precede.compare("mixture")
        print(comparison.report, comparison.results["comparisons"][0]["mean_difference"])
    """
    from precede.jobs.compare import compare as job

    read = _recipe(recipe)
    with _progress(f"{read.name}: stages", tell) as heard:
        return job(read, out=_path(out), store=_path(store), workers=workers, **heard)


def audit(
    models: Model | Sequence[Model],
    data: Source | Sequence[Mapping[str, Any]] | datasets.Dataset,
    *,
    out: Source | None = None,
    teacher: Model | None = None,
    reward: str | Callable[..., Any] | None = None,
    reward_model: Source | None = None,
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

        pairs = [{"prompt": "the sky is", "chosen": " blue", "rejected": " green"}]
        best = precede.audit(["student"], pairs, teacher="teacher", beta=0.1).candidates[0]
        print(best.verdict.level, best.numbers["recall_gap"])
    """
    arguments = dict(locals())
    from precede.evaluate.audit import audit as judge
    from precede.jobs import given
    from precede.jobs.audit import audit as job
    from precede.jobs.audit import shelf

    plain = {"models": given.models(models), "data": given.rows(data), "teacher": given.model(teacher)}
    asked = arguments | plain | {"reward_model": given.model(reward_model)}
    del asked["out"]
    with _progress("", None) as heard:
        if out is None:
            return judge(**asked, progress=heard["progress"], tell=heard["tell"], store=shelf())
        return job(**asked, out=Path(out), progress=heard["progress"], tell=heard["tell"]).audit


def build(
    recipe: Recipe | Source | Mapping[str, Any],
    *,
    out: Source,
    order: str | None = None,
    seed: int | None = None,
    store: Source | None = None,
    workers: int | None = None,
    tell: Callable[[str], None] | None = None,
) -> Built:
    """Make the compact aligned model in one order of a recipe; `precede build` (docs/build.md).

    `out` becomes a Hugging Face folder with card, numbers and evidence. `order` and `seed` choose among those of the recipe;
    what a comparison of it has trained is taken from `store`. `tell` as in `compare`. Raises ValueError for what is wrong with
    the input, AuditRefused where `fail_on` asks for it, StageFailed for a stage that stopped.

        built = precede.build({"teacher": "teacher", "student": {"keep_layers": 3}, "data": "pairs.jsonl"}, out="my-model")
        print(built.folder, built.report["models"]["distill"])
    """
    from precede.jobs.build import build as job

    read = _recipe(recipe)
    with _progress(f"{read.name}: stages", tell) as heard:
        return job(read, Path(out), order=order, seed=seed, store=_path(store), workers=workers, **heard)


def _recipe(recipe: Recipe | Source | Mapping[str, Any]) -> Recipe:
    return load_recipe(recipe) if isinstance(recipe, str | PathLike | Mapping) else recipe


def _path(path: Source | None) -> Path | None:
    return None if path is None else Path(path)


@contextmanager
def _progress(name: str, tell: Callable[[str], None] | None) -> Iterator[dict[str, Any]]:
    """What a job tells while it runs: to `tell`, or to bars."""
    if tell is not None:
        yield {"tell": tell}
        return
    from precede.progress import Bars

    with Bars(name) as bars:
        yield bars.heard
