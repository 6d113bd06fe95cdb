"""The report: one self-contained HTML file, and the same figures as SVG and PDF files."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import yaml
from markupsafe import Markup

from precede.report.figures import STYLE, Figure
from precede.report.tables import tables
from precede.report.words import sentences
from precede.results import Results


def write_report(results: Results, figures: Sequence[Figure], recipe: dict[str, Any], out: Path) -> Path:
    """Write `report.html`, `figures/NAME.svg`, `figures/NAME.pdf` and `tables/NAME.md` into `out`; returns the report's path.

    `results` are seen by role (`precede.report.view.by_role`); `recipe` is the resolved recipe as it is written.
    """
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for figure in figures:
        with matplotlib.rc_context(STYLE):
            figure.canvas.savefig(folder / f"{figure.name}.svg", metadata={"Date": None})
            figure.canvas.savefig(folder / f"{figure.name}.pdf", metadata={"CreationDate": None})
        drawn.append(
            {
                "figure": figure,
                "svg": Markup(_inline_svg((folder / f"{figure.name}.svg").read_text("utf-8"), figure.name)),
            }
        )
    made = tables(results)
    (out / "tables").mkdir(exist_ok=True)
    for table in made:
        (out / "tables" / f"{table.name}.md").write_text(table.markdown(), "utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (files("precede") / "report" / "template.html").read_text("utf-8")
    )
    recipe_text = io.StringIO()
    yaml.safe_dump(recipe, recipe_text, sort_keys=False, allow_unicode=True)
    page = template.render(
        name=results["recipe"]["recipe"],
        description=results["recipe"].get("description", ""),
        note=results["note"],
        sentences=sentences(results),
        figures=drawn,
        tables=made,
        recipe=recipe_text.getvalue(),
        versions=json.dumps(results["versions"]),
    )
    path = out / "report.html"
    path.write_text(page, "utf-8")
    return path


def _inline_svg(text: str, name: str) -> str:
    """The SVG element alone, its ids made unique on the page."""
    body = text[text.index("<svg") :]
    for mark in ('id="', 'href="#', "url(#"):
        body = body.replace(mark, f"{mark}{name}-")
    return body
