"""The report: one self-contained HTML file, and the same figures as SVG and PDF files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup

from precede.analysis.results import Results
from precede.files import write
from precede.report.answer import answer
from precede.report.extrapolation import extrapolation_tables
from precede.report.figures import STYLE, Figure
from precede.report.glossary import glossary
from precede.report.tables import Table, tables

ORDER = [
    *(
        "headline",
        "metrics",
        "densities",
        "target-masses",
        "examples",
        "prompts",
        "support",
        "parts",
        "costs",
        "against",
    ),
    *("beta", "frontier", "temperature", "laws", "extrapolation", "phase", "matched-mass", "matched-compute"),
    *("models", "optimum", "arms", "sampled-at-tau", "details"),
]
"""Figures and tables of a comparison, from the answer at the recipe's own setting to the sweep, and to what is behind them."""


def write_report(results: Results, figures: Sequence[Figure], recipe: str, out: Path, ship: str = "") -> Path:
    """Write `report.html`, `figures/NAME.svg`, `figures/NAME.pdf` and `tables/NAME.md` into `out`; returns the report's path.

    `results` are seen by role (`precede.report.view.by_role`); `recipe` is the resolved recipe as YAML, `ship` the
    command that makes the better order's model a folder of its own.
    """
    report_tables, settings = [*tables(results), *extrapolation_tables(results)], results["recipe"]
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for table in report_tables:
        write(out / "tables" / f"{table.name}.md", table.markdown())
    values = {
        "name": settings["recipe"],
        "description": settings.get("description", ""),
        "note": results["note"],
        "ship": ship,
    }
    values |= {
        "answer": answer(results),
        "recipe": recipe,
        "versions": results["versions"],
        "glossary": glossary(results),
    }
    return render("report.html", out, figures, report_tables, **values)


def render(template: str, out: Path, figures: Sequence[Figure], tables: Sequence[Table], **values: Any) -> Path:
    """Write the page `template` into `out` with the figures inside it, and the figures as files; returns its path."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    sections: list[dict[str, Any]] = []
    for figure in figures:
        with matplotlib.rc_context(STYLE):
            svg, pdf = (_drawn(figure, *kind) for kind in (("svg", "Date"), ("pdf", "CreationDate")))
        write(folder / f"{figure.name}.svg", svg)
        write(folder / f"{figure.name}.pdf", pdf)
        shown = Markup(_inline_svg(svg.decode("utf-8"), figure.name))
        sections.append({"kind": "fig", "shown": figure, "svg": shown})
    sections += [{"kind": "table", "shown": table} for table in tables]
    loader = jinja2.PackageLoader("precede", "report")
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, loader=loader)
    pages.filters["whole_words"] = whole_words
    path = out / template
    write(path, pages.get_template(template).render(sections=sorted(sections, key=_place), **values))
    return path


def _drawn(figure: Figure, kind: str, date: str) -> bytes:
    """The figure as a file of a kind, without the date that would make each file another."""
    with io.BytesIO() as file:
        figure.canvas.savefig(file, format=kind, metadata={date: None})
        return file.getvalue()


def _place(section: Mapping[str, Any]) -> int:
    name = section["shown"].name
    return ORDER.index(name) if name in ORDER else len(ORDER)


def whole_words(cell: str) -> Markup:
    """A short cell whose words with hyphens, such as −4.2e-09, are not broken at them."""
    return Markup(" ").join(Markup("<span>{}</span>").format(word) if "-" in word else word for word in cell.split(" "))


def _inline_svg(text: str, name: str) -> str:
    """The SVG element alone, its ids made unique on the page."""
    body = text[text.index("<svg") :]
    for mark in ('id="', 'href="#', "url(#"):
        body = body.replace(mark, f"{mark}{name}-")
    return body
