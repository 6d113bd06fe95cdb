"""The report in a real browser: figures and tables are there, tables sort, the console is clean, text is escaped."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import SMALL
from precede.jobs.compare import Comparison, compare
from precede.metrics import describe
from precede.report import figures, seeds
from precede.report.html import ORDER, whole_words
from precede.report.view import GROUPS, by_role, method_name, verdicts_of
from precede.settings.recipe import read_recipe
from precede.stats import holm

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("report")
    sweep = [
        {"align.method": ["ppo", "exact"], "align.beta": [0.1, 0.3]},
        {"align.method": ["ppo", "exact"], "distill.temperature": [0.5, 1.0], "distill.components": [5, 8]},
        {"align.steps": [20, 60, 180]},
    ]
    align = {**SMALL["align"], "steps": 60}
    recipe = read_recipe(
        {**SMALL, "align": align, "sweep": sweep, "description": "1 < 2 & <script>alert('x')</script>"}
    )
    return compare(recipe, out=folder / "out", store=folder / "store", workers=1)


@pytest.fixture(scope="module")
def report(done: Comparison) -> Path:
    return done.report


@pytest.fixture(scope="module")
def page(report: Path) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install the package `chromium` to run the report's browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on(
            "request", lambda request: page.said.append(request.url) if not request.url.startswith("file:") else None
        )
        page.goto(report.as_uri())
        yield page
        browser.close()


def columns_of_dashes(page: Any) -> list[str]:
    """Columns of tables on a page that say nothing in any row."""
    found: list[str] = page.evaluate("""() => [...document.querySelectorAll("table")].flatMap(table =>
        [...table.tHead.rows[0].cells].filter((head, i) =>
            [...table.tBodies[0].rows].every(row => ["", "–", "nan"].includes(row.cells[i].textContent.trim()))
        ).map(head => `${table.closest("section").id}: ${head.textContent}`))""")
    return found


def test_no_column_is_of_dashes_only(page: Any) -> None:
    assert columns_of_dashes(page) == []


def test_no_json_on_the_page(page: Any) -> None:
    assert not re.search(r'[{\[]"', page.locator("body").inner_text())
    assert re.search(r"Made with precede [\w.+]+, torch ", page.locator("body").inner_text())


def test_figures_and_tables_are_there(page: Any) -> None:
    for name in ("densities", "headline", "beta", "frontier", "temperature"):
        figure = page.locator(f"#fig-{name} svg")
        box = figure.bounding_box()
        assert box["width"] > 200, name
        assert box["height"] > 80, name
        assert figure.locator("path").count() > 10, name
    for name in (
        "metrics",
        "sampled-at-tau",
        "parts",
        "matched-mass",
        "matched-compute",
        "optimum",
        "costs",
        "models",
        "against",
    ):
        assert page.locator(f"#table-{name} tbody tr").count() >= 1, name
    assert page.locator(".answer p").count() == 2
    assert page.locator(".answer li").count() >= 2
    headings = " | ".join(page.locator("h2").all_inner_texts())
    for title in (
        "Every metric by order",
        "Final models sampled at τ",
        "What is sharpening, and what is recall",
        "Where the claim does not hold",
        "Cost per order",
    ):
        assert title in headings, title


def test_console_is_clean_and_nothing_is_fetched(page: Any) -> None:
    assert [text for text in page.said if not text.startswith("data:")] == []


def test_tables_sort_by_number(page: Any) -> None:
    table = page.locator("#table-models table")
    heading = table.locator("th", has_text="target mass").first
    column = heading.evaluate("th => th.cellIndex")
    for state in ("ascending", "descending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == state
        cells = [
            float(text.replace(",", ""))
            for text in table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
        ]
        assert len(set(cells)) > 1
        assert cells == sorted(cells, reverse=state == "descending")


def cells(page: Any, table: str) -> list[dict[str, str]]:
    """The rows of a table on the page, by column."""
    found: list[dict[str, str]] = page.evaluate(
        """id => { const table = document.querySelector(`#table-${id} table`);
            const heads = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
            return [...table.tBodies[0].rows].map(row => Object.fromEntries(
                [...row.cells].map((cell, i) => [heads[i], cell.textContent]))); }""",
        table,
    )
    return found


def test_a_comparison_has_one_verdict_wherever_it_is_said(page: Any, done: Comparison) -> None:
    """Adjusted by Holm in one family; and the page says so once."""
    results = by_role(done.results)
    own, told = [c for c in results["comparisons"] if c["settings"] in results["own"]], cells(page, "metrics")
    said = {(row["method"], row["metric"]): row["verdict"] for row in told}
    rewards = [c for c in own if c["metric"] == "reward"]
    others = [c for c in own if c["metric"] in GROUPS["metrics"] and c["metric"] != "reward"]
    for family in (rewards, others):
        adjusted = holm([c["p_value"] for c in family])
        for c, p_value in zip(family, adjusted, strict=True):
            verdict = said.get((method_name(c["settings"]), describe(c["metric"]).title))
            if verdict in ("wins", "loses", "higher", "lower", "undecided"):
                assert (verdict == "undecided") == (p_value is None or p_value >= 0.05), c
    for row in cells(page, "arms"):
        if row["where it departs from the recipe"] == "own setting":
            assert row["verdict"] == said[row["method"], "target mass"]
    for advice in page.locator(".answer strong").all_inner_texts():
        method, verdict = advice.split(":")[0], advice.split(": ")[1]
        assert said[method, "reward"] in ("wins", "loses") or not verdict.startswith(("Ship", "At this price"))
    assert page.locator("body").inner_text().count("Holm") == 1


def test_words_are_explained_before_they_are_needed(page: Any) -> None:
    words = page.locator(".glossary dt").all_inner_texts()
    assert {
        "align > distill",
        "distill > align",
        "β, price of KL",
        "sharpening",
        "target mass",
        "recall",
        "nat",
    } <= set(words)
    assert {"A→K", "K→A"} <= {text.split(":")[0] for text in page.locator(".glossary dd").all_inner_texts()}
    tops = [page.locator(name).first.bounding_box()["y"] for name in (".answer", ".glossary", "nav", "section h2")]
    assert tops == sorted(tops)


def test_sections_lead_from_the_answer_to_what_is_behind_it(page: Any) -> None:
    shown = page.locator("section").evaluate_all("all => all.map(one => one.id)")
    assert shown[0] == "fig-headline"
    assert shown.index("table-metrics") < shown.index("table-parts") < shown.index("fig-beta")
    assert shown.index("fig-temperature") < shown.index("table-models") < shown.index("table-sampled-at-tau")
    assert {name.partition("-")[2] for name in shown} <= {*ORDER, ""}
    links = page.locator("nav a").evaluate_all("all => all.map(one => one.getAttribute('href').slice(1))")
    assert links == [name for name in shown if "-" in name]


def test_axes_have_units(done: Comparison) -> None:
    for figure in figures.standard_figures(by_role(done.results)):
        labels = [text for axis in figure.canvas.axes for text in (axis.get_xlabel(), axis.get_ylabel()) if text]
        assert labels
        for label in labels:
            assert "(" in label or label.startswith("τ"), label  # τ is a ratio


def test_text_is_escaped(page: Any) -> None:
    assert "<script>alert('x')</script>" in page.locator("p.description").inner_text()
    assert page.locator("script").count() == 1
    assert whole_words("<b>-1 & 2") == "<span>&lt;b&gt;-1</span> &amp; 2"


def test_figures_fill_the_page_and_can_be_read(page: Any) -> None:
    """As wide as the column that they stand in; their smallest text is at least 11 px on a screen of 1200."""
    page.set_viewport_size({"width": 1200, "height": 800})
    shown = page.evaluate("""() => [...document.querySelectorAll("figure")].map(figure => ({
        name: figure.closest("section").id,
        filled: figure.querySelector("svg").getBoundingClientRect().width / figure.closest("section").clientWidth,
        least: Math.min(...[...figure.querySelectorAll("text")].map(text => {
            const m = text.getScreenCTM();
            return parseFloat(getComputedStyle(text).fontSize) * Math.sqrt(Math.abs(m.a * m.d - m.b * m.c));
        }))}))""")
    assert len(shown) == 5
    for figure in shown:
        assert figure["filled"] == pytest.approx(1), figure
        assert figure["least"] >= 11, figure


def beyond(page: Any) -> dict[str, tuple[bool, bool, bool]]:
    """Of each figure and table whether it is wider than its frame, whether it is higher, and whether the page says so."""
    sizes: dict[str, Any] = (
        page.evaluate("""() => Object.fromEntries([...document.querySelectorAll("figure, .scroll")].map(
        box => [box.closest("section").id, [box.scrollWidth > box.clientWidth + 1, box.scrollHeight > box.clientHeight + 1,
            getComputedStyle(box.closest("section").querySelector("p.hint")).display !== "none"]]))""")
    )
    return {name: tuple(size) for name, size in sizes.items()}


def test_nothing_is_cut_off(page: Any) -> None:
    """No table is wider than a screen of 1200, and none is scrolled down in but the long ones; what does not fit says so."""
    for width in (1200, 1000, 420):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function(f"innerWidth === {width}")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        shown = beyond(page)
        assert len(shown) >= 14
        for name, (wider, higher, said) in shown.items():
            rows = page.locator(f"#{name} tbody tr").count()
            assert not (wider and width == 1200), name
            assert not higher or rows > 40, name
            assert said == (wider or higher), name
    assert any(wider for wider, *_ in shown.values())
    table = page.locator(".more .scroll").first  # and the last column can be reached by keys
    table.focus()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("box => box.scrollLeft + box.clientWidth >= box.scrollWidth - 2", arg=table.element_handle())


def test_report_without_a_comparison_at_the_own_setting(tmp_path: Path) -> None:
    """Two orders at a swept point, one at the recipe's own: there is no headline, and the report is written."""
    orders = ["align > distill", "distill > align"]
    recipe = {**SMALL, "orders": orders[:1], "seeds": 2, "sweep": [{"align.beta": [0.3], "orders": orders}]}
    done = compare(read_recipe(recipe), out=tmp_path / "out", store=tmp_path / "store", workers=1)
    assert {c["settings"]["align.beta"] for c in done.results["comparisons"]} == {0.3}
    assert not (tmp_path / "out" / "figures" / "headline.svg").exists()
    assert "Alignment, and how far from optimal" in done.report.read_text("utf-8")


def singles(axis: Any) -> list[tuple[float, float]]:
    """The points of single seeds on an axis."""
    lines = [line for line in axis.lines if line.get_markersize() == seeds.SIZE and line.get_linestyle() == "None"]
    return [(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)]


def test_seeds_are_drawn_where_means_over_them_are(done: Comparison) -> None:
    """Every seed's number, from the runs, stands on each figure; the mean of the points is the mean that is drawn."""
    results = by_role(done.results)
    drawn = {figure.name: figure for figure in figures.standard_figures(results)}
    assert set(drawn) == {"headline", "beta", "frontier", "temperature"}
    for figure in drawn.values():
        assert "Small points are single seeds." in figure.caption
        for axis in figure.canvas.axes:
            assert len(singles(axis)) >= 4, figure.name
    runs = {(run["order"], str(run["settings"]), run["seed"]): run["metrics"] for run in done.results["runs"]}
    rewards = [c for c in done.results["comparisons"] if c["metric"] == "reward"]
    own = next(c for c in rewards if c["settings"] == done.results["own"][0])
    at = str(own["settings"])
    first = [runs[own["a"], at, n]["reward"] - runs[own["b"], at, n]["reward"] for n in range(4)]
    points = [x for x, y in singles(drawn["headline"].canvas.axes[0]) if -1 < y < 0]
    assert sorted(points) == pytest.approx(sorted(first))
    assert sum(points) / 4 == pytest.approx(own["mean_difference"])
    parts = next(
        d for d in done.results["decomposition"] if d["settings"] == own["settings"] and d["metric"] == "reward"
    )
    for row, part in ((-1, "sharpening"), (-2, "recall")):
        points = [x for x, y in singles(drawn["headline"].canvas.axes[0]) if row - 1 < y < row]
        assert sum(points) / 4 == pytest.approx(parts[part], abs=1e-9), part  # type: ignore[literal-required]
    masses = {run["metrics"]["target_mass"] for run in done.results["runs"]}
    for x, _ in singles(drawn["frontier"].canvas.axes[0]):
        assert x in masses
    columns: dict[float, list[float]] = {}
    for x, y in singles(drawn["temperature"].canvas.axes[0]):
        columns.setdefault(x, []).append(y)
    gaps = [gap["measured"] for gap in done.results["order_gap"]]
    assert len(columns) == 4  # two methods at two temperatures
    for column in columns.values():
        assert any(np.nanmean(column) == pytest.approx(gap) for gap in gaps)


@pytest.mark.parametrize(("count", "there"), [(20, True), (21, False)])
def test_many_seeds_are_a_cloud_and_are_not_drawn(count: int, there: bool, tmp_path: Path) -> None:
    align = {**SMALL["align"], "method": "exact"}
    recipe = read_recipe({**SMALL, "align": align, "seeds": count, "sweep": [{"align.beta": [0.1, 0.3]}]})
    results = by_role(compare(recipe, out=tmp_path / "out", store=tmp_path / "store", workers=1).results)
    for figure in figures.standard_figures(results):
        assert bool(singles(figure.canvas.axes[0])) is there
        assert ("Small points are single seeds" in figure.caption) is there


def test_a_verdict_does_not_depend_on_what_it_is_told_beside() -> None:
    """p = 0.012 is told apart from 0 among four at once, not among five; a table of one metric says what that of all says."""
    metrics = ["target_mass", "precision", "recall", "kl_to_truth", "entropy"]
    common = {"a": "align > distill", "b": "distill > align", "ci95": [0.1, 0.5], "n_seeds": 5, "n_replicates": 5}
    common |= {"mean_a": 1.0, "mean_b": 0.7, "mean_difference": 0.3}
    rows = [
        {**common, "settings": {"align.beta": beta}, "metric": metric, "p_value": p_value}
        for beta in (0.1, 0.2)
        for metric, p_value in [
            ("reward", 0.04),
            *((name, 0.012 if name == "target_mass" else 0.9) for name in metrics),
        ]
    ]
    results: Any = {"comparisons": rows, "own": [{"align.beta": 0.1}]}
    assert verdicts_of(rows[:2], results) == ["wins", "undecided"]  # 0.04 alone; 5 × 0.012 > 0.05
    assert verdicts_of(rows[1:2], results) == ["undecided"]
    assert verdicts_of(rows[6:8], results) == ["wins", "wins"]  # over the rest of the sweep every metric is a family
    assert verdicts_of([rows[1]], {**results, "comparisons": [row for row in rows if row["metric"] != "entropy"]}) == [
        "wins"
    ]
