"""Figures and tables are plain data that show themselves everywhere, the same numbers each time."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench import figures
from workbench.errors import InputError
from workbench.figures import Figure, Table, bar, heatmap, line, scatter, stacked
from workbench.figures.figure import short

SCORES = {"tasks": {"fp32": 98.23456, "Q4_K_M": 91.4, "nf4": None}, "翻訳": {"fp32": 95}}
POINTS = [{"form": "a", "mb": 19.5, "acc": 98}, {"form": "b", "mb": float("nan"), "acc": 1}]


def every_kind() -> list[Figure]:
    return [
        bar(SCORES, title="Accuracy", x_title="form", y_title="accuracy", unit="%"),
        bar({"a": 1, "b": 2.5}, title="One series"),
        stacked(SCORES, title="Stacked", y_title="memory", unit="MB"),
        line({"loss": [(0, 3.0), (10, 0.5)]}, title="Loss", y_title="loss", log_y=True),
        scatter(POINTS, x="mb", y="acc", label="form", title="Size", log_x=True),
        heatmap({"sums": {"fp32": 1, "Q4": 0.8}, "語": {"fp32": None}}, title="Heat", unit="share"),
    ]


@pytest.mark.parametrize("figure", every_kind(), ids=lambda figure: figure.title)
def test_a_figure_shows_itself_interactive_static_and_in_words(figure: Figure) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle = figure._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/png", "text/plain"}
    png = base64.b64decode(bundle["image/png"])
    assert png.startswith(b"\x89PNG")
    assert 5_000 < len(png) < 150_000
    json.dumps(bundle, allow_nan=False)
    assert bundle["text/plain"].startswith(f"{figure.title}. ")


@pytest.mark.parametrize("figure", every_kind(), ids=lambda figure: figure.title)
def test_plotly_accepts_what_was_made_without_it(figure: Figure) -> None:
    made = figure.plotly().to_plotly_json()
    assert made["layout"]["title"]["text"] == figure.title
    assert [trace["type"] for trace in made["data"]] == [
        trace["type"] for trace in figure.as_plotly()["data"]
    ]


def test_bars_hold_the_numbers_and_name_what_is_missing() -> None:
    figure = bar(SCORES, title="Accuracy", y_title="accuracy", unit="%")
    data = figure.as_plotly()["data"]
    assert [trace["name"] for trace in data] == ["tasks", "翻訳"]
    assert data[0]["y"] == [98.235, 91.4, None]
    assert data[1]["y"] == [95, None, None]
    assert figure.as_plotly()["layout"]["barmode"] == "group"
    assert stacked(SCORES, title="x").as_plotly()["layout"]["barmode"] == "stack"
    assert "fp32 98.2, Q4_K_M 91.4" in figure.summary
    assert "No value: nf4" in figure.summary


def test_the_picture_is_drawn_from_the_same_data() -> None:
    small = bar({"a": 1.0, "b": 2.0}, title="t").picture()
    assert small == bar({"a": 1.0, "b": 2.0}, title="t").picture()
    assert small != bar({"a": 1.0, "b": 3.0}, title="t").picture()


def test_a_long_curve_keeps_its_spike_and_its_ends() -> None:
    points = [(step, 1.0) for step in range(100_000)]
    points[54_321] = (54_321, 99.0)
    series = line({"loss": points}, title="Loss").series[0]
    assert len(series.x) <= 1500
    assert 99.0 in series.y
    assert (series.x[0], series.x[-1]) == (0, 99_999)
    assert list(series.x) == sorted(series.x)


def test_a_curve_with_gaps() -> None:
    figure = line({"loss": [(0, 1.0), (1, float("nan")), (2, 0.5)]}, title="Loss")
    assert figure.series[0].y == (1.0, None, 0.5)
    assert figure.picture()


def test_points_without_values_are_named_not_drawn() -> None:
    figure = scatter(POINTS, x="mb", y="acc", label="form", title="Size")
    assert figure.series[0].labels == ("a",)
    assert "No value: b" in figure.summary


def test_numpy_values_become_plain() -> None:
    figure = bar({"a": np.float32(1 / 3), "b": np.int64(4), "c": np.inf}, title="t")
    assert figure.series[0].y == (0.33333, 4, None)


def test_markup_in_labels_stays_text() -> None:
    figure = bar({"<b>x</b>": 1}, title="<script>alert(1)</script>")
    text = json.dumps(figure.as_plotly())
    assert "<script" not in text
    assert "<b>x" not in text


@pytest.mark.parametrize(
    "make",
    [
        lambda: bar({}, title="Empty"),
        lambda: line({}, title="Empty"),
        lambda: line({"a": []}, title="Empty"),
        lambda: scatter([], x="a", y="b", label="c", title="Empty"),
        lambda: heatmap({"a": {"b": None}}, title="Empty"),
    ],
)
def test_nothing_to_draw_is_an_error(make: Any) -> None:
    with pytest.raises(InputError, match=r"Empty.* has no data"):
        make()


def test_heavy_libraries_stay_out() -> None:
    script = (
        "import sys, workbench.figures as f; f.bar({'a': 1}, title='t').as_plotly();"
        "print([m for m in ('plotly', 'matplotlib', 'pandas', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_japanese_labels_are_drawn_not_boxed() -> None:
    from workbench.figures.picture import _families

    if len(_families()) == 1:
        assert bar({"猫": 1}, title="t").picture()  # no such font here: boxes, but no failure
        return
    assert bar({"猫": 1}, title="t").picture() != bar({"犬": 1}, title="t").picture()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (98.23456, "98.2"),
        (0.0123456, "0.0123"),
        (12345.6, "12,346"),
        (1e-7, "1.00e-07"),
        (-2.5, "-2.5"),
        (4, "4"),
        (1000, "1,000"),
    ],
)
def test_short_numbers(value: float, expected: str) -> None:
    assert short(value) == expected


ROWS = [
    {"form": "fp32", "accuracy": 98.23456, "n": 12345, "ok": True},
    {"form": "日本語", "accuracy": 3.0, "n": 2, "ok": False},
    {"form": "nf4", "failed": "out of <memory>"},
]


def test_a_table_is_aligned_also_with_wide_characters() -> None:
    assert str(Table(ROWS, caption="Forms")).splitlines() == [
        "Forms",
        "form    accuracy       n  ok   failed",
        "──────  ────────  ──────  ───  ───────────────",
        "fp32        98.2  12,345  yes",
        "日本語         3       2  no",
        "nf4            –       –  –    out of <memory>",
    ]


def test_a_table_uses_tags_that_survive() -> None:
    text = Table(ROWS, caption="Forms <1>").html()
    assert set(re.findall(r"</?(\w+)", text)) == {"div", "b", "table", "tr", "td"}
    assert "Forms &lt;1&gt;" in text
    assert '<tr class="failed"><td class="text"><div align="left">nf4</div></td>' in text
    assert '<td class="text long">' in Table([{"said": "a" * 40}]).html()
    assert "out of &lt;memory&gt;" in text
    assert "style=" not in text


class Seen(HTMLParser):
    """The text of every cell of a table, and all other text of a page that is seen."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.rest, self._open = "", [""]
        self.feed(page[page.index("<body") :])
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th"):
            self.cells.append("")
        if tag in ("td", "th", "script", "style"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open[-1]:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open[-1] in ("td", "th"):
            self.cells[-1] += data
        elif not self._open[-1]:
            self.rest += data

    @property
    def words(self) -> list[str]:
        return self.rest.split()


DISPLAYED = """
import workbench as wb
from workbench.figures import Table, bar
rows = [{"form": "fp32", "n": 12345}, {"form": "日本語\\n<b>", "failed": "out of <memory>"}]
wb.show(Table(rows, caption="Forms <1>"), {"name": 2}, bar({"a": 1, "b": count}, title="Bars"))
wb.show(wb.engines(), wb.machine())
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a notebook that displays tables and a figure."""
    import nbformat

    from workbench.runs import run

    folder = tmp_path_factory.mktemp("displayed")
    cells = [nbformat.v4.new_code_cell(source) for source in ("count = 2  # of bars", DISPLAYED)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "displayed.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(folder))
        return run(folder / "displayed.ipynb", progress=False).folder


def exported(folder: Path, **settings: Any) -> Seen:
    import nbformat
    from nbconvert import HTMLExporter

    book = nbformat.read(folder / "notebook.ipynb", as_version=4)
    return Seen(HTMLExporter(**settings).from_notebook_node(book)[0])


def test_nbconvert_with_our_cleaner_shows_tables_as_they_are(executed: Path) -> None:
    ours = {"clean_html": "workbench.runs.untrusted.clean_html"}
    plain, cleaned = exported(executed), exported(executed, sanitize_html=True, filters=ours)
    assert cleaned.cells == plain.cells
    assert cleaned.words == plain.words
    assert "out of <memory>" in cleaned.cells
    assert "日本語<b>" in cleaned.cells  # two lines are two divs
    assert [cell for cell in cleaned.cells if cell.startswith("torch")]


def test_nbconverts_own_sanitiser_shows_one_tag_that_its_parser_adds(executed: Path) -> None:
    plain, sanitised = exported(executed), exported(executed, sanitize_html=True)
    assert sanitised.cells == plain.cells
    added = ("<tbody>", "</tbody>")
    assert re.sub("|".join(added), " ", sanitised.rest).split() == plain.words
    assert [sanitised.rest.count(tag) for tag in added] == [4, 4]  # one of each of the four tables


def test_the_report_has_the_cells_of_the_tables(executed: Path) -> None:
    report = Seen((executed / "report.html").read_text(encoding="utf-8"))
    wanted = exported(executed).cells
    at = report.cells.index(wanted[0])
    assert report.cells[at : at + len(wanted)] == wanted
    assert "<tbody>" not in report.rest


def test_a_figure_of_a_run_has_a_picture_and_no_html(executed: Path) -> None:
    import nbformat

    book = nbformat.read(executed / "notebook.ipynb", as_version=4)
    bundles = [set(out.data) for out in book.cells[-1].outputs if "data" in out]
    drawn = [bundle for bundle in bundles if "application/vnd.plotly.v1+json" in bundle]
    assert drawn == [{"application/vnd.plotly.v1+json", "image/png", "text/plain"}]


def test_columns_and_formats() -> None:
    table = Table(ROWS, columns={"accuracy": "accuracy (%)"}, formats={"accuracy": ".3f"})
    assert "98.235" in str(table)
    assert "accuracy (%)" in str(table)
    assert "12,345" not in str(table)
    assert len(table) == 3
    assert table[0]["n"] == 12345
    with pytest.raises(InputError, match="Did you mean 'accuracy'"):
        Table(ROWS, columns=["acuracy"])
    with pytest.raises(InputError, match="no column 'speed'"):
        Table(ROWS, formats={"speed": ".1f"})


def test_a_table_of_a_frame_and_of_nothing() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, float("nan")]})
    assert str(Table(frame)).splitlines()[-1].split() == ["2", "–"]
    assert str(Table([], caption="Runs")) == "Runs: no rows"


def test_show_outside_a_notebook_prints(capsys: pytest.CaptureFixture[str]) -> None:
    figures.show([{"a": 1}], {"x": 2}, bar({"a": 1}, title="Bars"), "text")
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "a"
    assert "name  value" in out
    assert "Bars. " in out
    assert out.endswith("text\n")
    words = figures._shown("<b> it's")._repr_mimebundle_()
    assert words == {"text/plain": "<b> it's", "text/html": "<div>&lt;b&gt; it&#x27;s</div>"}


def test_the_face_has_the_words() -> None:
    import workbench as wb

    assert wb.show is figures.show
