"""The command line. Each verb owns its flags; heavy libraries are imported only by the verb that runs."""

from __future__ import annotations

from typing import Annotated

import typer

from precede.cli.audit import audit
from precede.cli.build import build
from precede.cli.compare import compare
from precede.cli.doctor import doctor
from precede.cli.recipes import recipes

app = typer.Typer(
    name="precede",
    help="Puts the stages of post-training in the right order: align first, then distil (arXiv 2509.23667).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (compare, audit, build, doctor, recipes):
    app.command()(verb)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"precede {installed('precede')}")
        raise typer.Exit


def main() -> None:
    app(prog_name="precede")


if __name__ == "__main__":
    main()
