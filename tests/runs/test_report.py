"""A report opens with no network and no kernel, and shows what the run measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from small_notebooks import write_notebook

from workbench.runs import Run, report, run
from workbench.runs.exporter import ReportExporter

PICTURE = """from workbench.figures import Table, bar, line
bar({"tasks": {"fp32": 98.2, "Q4_K_M": 91.4}}, title="Accuracy 精度", unit="%")"""
CELLS = [
    "# Which form <b>keeps</b> its answers?\n\nIt *says* so.",
    "## Measure\n\nThe divergence is $D = \\sum_i p_i$.",
    PICTURE,
    'line({"loss": [(step, 1 / (step + 1)) for step in range(50)]}, title="Loss")',
    """answer = "<script>document.title = 'owned'</script><img src=x onerror=go()>"
print(answer)
Table([{"form": "fp32", "answer": answer}, {"form": "nf4", "failed": "out of memory"}])""",
    """from IPython.display import HTML, Markdown, display
display(HTML(answer + "<b>kept</b>"))
display(Markdown("**strong** " + answer))
HTML("<iframe src='https://a.example'></iframe>")""",
    """import workbench as wb
from workbench.runs import conclude
conclude("Q4_K_M keeps nearly all.")
wb.number("accuracy", 91.4, unit="%", good=True)
wb.number("mean KL", 0.0312, unit="nats", good=False)""",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(folder))
        path = write_notebook(folder / "small.ipynb", CELLS)
        yield run(path, times=5, progress=False)


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that refuses every request but for files, and keeps what it asked and said."""
    context = chromium.new_context(offline=True)
    opened = context.new_page()
    opened.asked, opened.said = [], []

    def route(route: Any) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            opened.asked.append(route.request.url)
            route.abort()

    opened.route("**/*", route)
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    yield opened
    context.close()


def test_the_file_is_self_contained(done: Run) -> None:
    assert done.report is not None
    text = done.report.read_text(encoding="utf-8")
    assert done.report.stat().st_size < 8e6
    assert not re.search(r"""<[^>]*(src|href)=["']?(https?:)?//""", text)
    assert not re.search(r"mathjax|require\.js|unpkg|cdnjs|mermaid", text, re.IGNORECASE)
    assert text.count('id="plotly"') == 1
    policy = re.search(
        r'Content-Security-Policy"? content="([^"]+)"|content="(default-src[^"]+)', text
    )
    assert policy is not None
    said = policy[1] or policy[2]
    assert "default-src 'none'" in said
    scripts = next(part for part in said.split(";") if "script-src" in part)
    assert "unsafe" not in scripts
    assert "sha256-" in scripts


@pytest.mark.browser
def test_it_opens_without_a_network(done: Run, page: Any) -> None:
    page.goto(f"file://{done.report}")
    page.wait_for_selector("html[data-drawn=true]", timeout=60_000)
    assert page.asked == []
    assert page.said == []
    assert page.locator("figure.plot.live svg.main-svg").count() >= 2
    assert page.locator("figure.plot .still").first.is_hidden()
    assert page.locator("math").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_it_shows_what_was_measured(done: Run, page: Any) -> None:
    page.goto(f"file://{done.report}")
    assert page.locator("h1").inner_text() == "Which form <b>keeps</b> its answers?"
    assert page.locator(".conclusion").inner_text() == "Q4_K_M keeps nearly all."
    tiles = page.locator(".tile").all_inner_texts()
    assert [tile.split("\n") for tile in tiles] == [
        ["accuracy", "91.4%", "within its limit"],
        ["mean KL", "0.0312nats", "outside its limit"],
    ]
    given = page.locator("tr.given").all_inner_texts()
    assert [row.split("\t") for row in given] == [
        ["times", "5", "argument", "how often, 1 or more"]
    ]
    assert page.locator("tr.failed").inner_text().split() == ["nf4", "–", "out", "of", "memory"]
    entries = page.locator(".contents a").all_inner_texts()
    assert entries == ["Parameters", "Measure", "Accuracy 精度", "Loss", "Provenance"]
    for address in page.locator(".contents a").evaluate_all("all => all.map(a => a.hash)"):
        assert page.evaluate("id => !!document.getElementById(decodeURIComponent(id))", address[1:])
    command = page.locator("#provenance ~ div code").first.inner_text()
    assert command.startswith("workbench run ")
    for name in ("notebook.ipynb", "run.json"):
        assert page.locator(f'a[href="{name}"]').count() == 1


@pytest.mark.browser
def test_what_a_model_wrote_does_not_run(done: Run, page: Any) -> None:
    page.goto(f"file://{done.report}")
    page.wait_for_selector("html[data-drawn=true]", timeout=60_000)
    assert page.title().startswith("Which form")
    assert page.locator("main img[onerror], iframe").count() == 0
    assert page.locator("main script:not([type])").count() == 0
    assert page.get_by_text("<script>document.title").count() >= 2  # it is shown as text
    assert page.locator("b", has_text="kept").count() == 1
    assert page.locator("strong", has_text="strong").count() == 1


@pytest.mark.browser
def test_an_injected_script_would_be_refused(done: Run, page: Any, tmp_path: Path) -> None:
    assert done.report is not None
    text = done.report.read_text(encoding="utf-8")
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text(
        text.replace("<main", "<script>document.title = 'owned'</script><main", 1).replace(
            "<h1>", '<img src="https://a.example/x.png" onerror="document.title=1"><h1>', 1
        ),
        encoding="utf-8",
    )
    page.goto(f"file://{spoiled}")
    page.wait_for_selector("html[data-drawn=true]", timeout=60_000)
    assert page.title().startswith("Which form")
    assert page.asked == []  # refused by the page's own policy, before any request


@pytest.mark.browser
def test_the_code_is_folded_and_reachable(done: Run, page: Any) -> None:
    page.goto(f"file://{done.report}")
    code = page.locator("details.code .highlight")
    assert code.count() == 5
    assert not code.first.is_visible()
    page.get_by_role("button", name="Show code").click()
    assert all(code.nth(index).is_visible() for index in range(5))
    page.get_by_role("button", name="Hide code").click()
    assert not code.first.is_visible()


@pytest.mark.browser
def test_without_scripts_the_pictures_stand(done: Run, chromium: Any) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{done.report}")
    stills = page.locator("figure.plot img.still")
    assert stills.count() == 2
    assert all(stills.nth(index).is_visible() for index in range(2))
    assert page.locator("figcaption").first.inner_text() == "Value in %: fp32 98.2, Q4_K_M 91.4."
    assert page.locator(".tile").count() == 2
    page.locator("details.code summary").first.click()
    assert page.locator("details.code .highlight").first.is_visible()
    context.close()


@pytest.mark.browser
def test_on_paper_the_pictures_stand(done: Run, page: Any) -> None:
    page.goto(f"file://{done.report}")
    page.wait_for_selector("html[data-drawn=true]", timeout=60_000)
    page.emulate_media(media="print")
    assert page.locator("figure.plot img.still").first.is_visible()
    assert not page.locator("figure.plot .canvas").first.is_visible()
    assert not page.locator(".contents").is_visible()


@pytest.mark.browser
def test_the_index_sorts(done: Run, page: Any) -> None:
    page.goto(f"file://{done.folder.parent / 'index.html'}")
    page.get_by_role("button", name="took").click()
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("took")
    page.locator("tbody a").first.click()
    assert page.title().startswith("Which form")
    assert (page.asked, page.said) == ([], [])


def test_it_is_rendered_again(done: Run) -> None:
    assert done.report is not None
    before = done.report.read_bytes()
    done.report.unlink()
    assert report(done.folder) == done.folder / "report.html"
    assert done.report.read_bytes() == before


def test_a_notebook_on_its_own_is_rendered(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "own.ipynb", ["print(1)"])
    text, _ = ReportExporter().from_filename(str(path))
    assert "word" in text
    assert "Provenance" not in text
    assert 'id="plotly"' not in text
    assert len(text) < 60_000


def test_private_words_do_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("MY_API_KEY", "correct-horse")
    path = write_notebook(
        tmp_path / "own.ipynb", ["# T /home/alice\n\ncorrect-horse", "x = '/home/alice/y'"]
    )
    book = nbformat.read(path, as_version=4)
    book.cells[2].outputs = [
        nbformat.v4.new_output("stream", text="saved in /home/alice/z, key correct-horse"),
        nbformat.v4.new_output(
            "display_data", {"text/html": "<b>/home/alice</b>", "text/plain": ""}
        ),
    ]
    text, _ = ReportExporter().from_notebook_node(book)
    assert "alice" not in text
    assert "correct-horse" not in text
    assert "~/z" in text
