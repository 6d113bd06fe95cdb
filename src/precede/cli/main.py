"""The command line. Heavy libraries are imported only by the verb that needs them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="precede",
    help="Puts the stages of post-training in the right order: align first, then distil (arXiv 2509.23667).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"precede {installed('precede')}")
        raise typer.Exit


@app.command()
def compare(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe that `precede recipes` lists, or the path of a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. --set align.beta=0.1."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report, figures and results; default runs/RECIPE.")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Folder of finished stages, shared by all runs; default ~/.cache/precede/stages."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that run stages; default: what the cores allow.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the stages and their estimated cost; run nothing.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print results.json to stdout instead of a table.")
    ] = False,
) -> None:
    """Run the orders of a recipe against one another: which wins, by how much, how surely, at what cost.

    Finished stages are kept in the store: the same command again, after a kill or a change of the sweep, runs only what
    is missing. Writes report.html, figures (SVG and PDF), results.json and the resolved recipe.
    """
    from precede.cli.compare import run_compare

    _guarded(lambda: run_compare(recipe, overrides or [], out, store, workers, dry_run, json_output))


@app.command()
def audit(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="References to judge: folders, Hugging Face ids, or bundled:smollm2-135m-instruct."
        ),
    ],
    data: Annotated[
        str, typer.Option(help="Preferences: a .jsonl, .jsonl.gz or .parquet file, a folder, or a `datasets` name.")
    ],
    teacher: Annotated[
        str | None, typer.Option(help="The model that the references were distilled from; adds the recall gap.")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="f(prompts, completions) → numbers; adds target mass by sampling."
        ),
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar="ID", help="A sequence classifier with one output, in place of --reward.")
    ] = None,
    target_reward: Annotated[
        float | None,
        typer.Option(help="Reward from which a completion is desirable; default: the median of the chosen ones."),
    ] = None,
    beta: Annotated[float, typer.Option(help="Price of KL that alignment will pay.")] = 0.1,
    samples: Annotated[int, typer.Option(help="Completions sampled per prompt where there is a reward.")] = 4,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Length at which they are cut, tokens; default: what 95 % of the chosen ones fit in."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first N rows of the data only.")] = None,
    map_columns: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="OURS=THEIRS", help="Name a column, e.g. --map prompt=question; may be repeated."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a `datasets` name or folder.")] = "train",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps; arithmetic is fp32.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for audit.html, audit.json, pairs.parquet.")] = Path("runs/audit"),
    json_output: Annotated[bool, typer.Option("--json", help="Print audit.json to stdout instead of a table.")] = False,
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="risky|trapped", help="Exit with status 1 if the best reference is this or worse."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that comes with a model; otherwise none is run.")
    ] = False,
) -> None:
    """Say before any training whether a reference can be aligned to these preferences, and what to do if not.

    Scores every pair under every model, in fp32: how typical the chosen completions are of the reference, what distillation
    lost of them (--teacher), how often the reference does what is wanted (--reward). Verdict: ready, risky or trapped.
    """
    from precede.cli.audit import run_audit

    options = {"teacher": teacher, "reward": reward, "reward_model": reward_model, "target_reward": target_reward}
    options |= {"beta": beta, "samples": samples, "max_new_tokens": max_new_tokens, "limit": limit}
    options |= {"split": split, "device": device}
    _guarded(
        lambda: run_audit(models, data, map_columns or [], options, out, json_output, fail_on, trust_remote_code),
        "nothing was written",
    )


@app.command()
def build(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A YAML file; without it, the flags say what to build.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder, Hugging Face id, or bundled:smollm2-135m-instruct.")
    ] = None,
    student: Annotated[str | None, typer.Option(help="Folder or Hugging Face id of the small model.")] = None,
    keep_layers: Annotated[
        int | None, typer.Option(metavar="N", help="In place of --student: the teacher with N of its layers.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Preferences: a .jsonl, .jsonl.gz or .parquet file, a folder, or a `datasets` name."),
    ] = None,
    order: Annotated[str | None, typer.Option(help="Stages in order; default 'align > distill'.")] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="f(prompts, completions) → numbers, as TRL calls it.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar="ID", help="A sequence classifier with one output, in place of --reward.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Price of KL; default 0.1.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first N rows of the data only.")] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="audit", help="Leave out the audit before alignment.")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="risky|trapped", help="Stop before an alignment whose reference is this or worse."),
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the result; a new repository is private.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. --set align.trainer.learning_rate=1e-6."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the model; must not be there yet.")] = Path("model"),
    store: Annotated[
        Path | None, typer.Option(help="Folder of finished stages and checkpoints; default ~/.cache/precede/stages.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print build.json to stdout instead of a table.")] = False,
) -> None:
    """Make the compact aligned model from your models and data: audit, stages in order, evidence, model card.

    Leaves a Hugging Face folder. The same command again, after a kill, goes on from the last checkpoint. With several GPUs
    start it by `accelerate launch --config_file CONFIG -m precede build`.
    """
    from precede.cli.build import run_build

    flags: dict[str, Any] = {
        "teacher": teacher,
        "student.model": student,
        "student.keep_layers": keep_layers,
        "data.source": data,
    }
    flags |= {"order": order, "reward": reward, "reward_model": reward_model, "align.beta": beta, "data.limit": limit}
    flags |= {"skip": skip, "fail_on": fail_on, "push_to_hub": push_to_hub}
    given = {key: value for key, value in flags.items() if value is not None}
    _guarded(lambda: run_build(recipe, overrides or [], given, out, store, json_output), KEPT_STEPS)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A build's YAML file: also say what it needs.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the recipe.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Report versions, devices, optional parts, and what a build would need; exit with 1 if something is missing."""
    from precede.cli.doctor import run_doctor

    _guarded(lambda: run_doctor(recipe, overrides or [], json_output), "nothing was changed")


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Print this recipe, to copy and change.")] = None,
) -> None:
    """List the recipes that come with the package, or print one."""
    from precede.cli.recipes import run_recipes

    _guarded(lambda: run_recipes(name))


KEPT_STEPS = "finished stages and checkpoints are kept, run the same command again to go on"
KEPT = "finished stages are kept, run the same command again to go on"


def _guarded(work: Callable[[], None], interrupted: str = KEPT) -> None:
    """Turn what users give wrong into one sentence and exit status 2, and a failed stage into one and status 1."""
    try:
        work()
    except ValueError as error:
        _say(f"precede: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _say(f"precede: interrupted; {interrupted}")
        raise typer.Exit(130) from None
    except OSError as error:
        _say(f"precede: {error}")
        raise typer.Exit(2) from None
    except RuntimeError as error:
        if type(error).__name__ != "StageFailed":
            raise
        _say(f"precede: {error}")
        raise typer.Exit(1) from None


def _say(line: str) -> None:
    """To stderr; of several processes that `accelerate launch` started, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(line, err=True)


def main() -> None:
    app(prog_name="precede")


if __name__ == "__main__":
    main()
