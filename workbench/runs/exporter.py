"""Render an executed notebook as one HTML file that asks nothing of any network."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from traitlets import default

from workbench.chats.formulas import formula_style
from workbench.errors import NotFoundError
from workbench.paths import atomic_file
from workbench.runs import page, record
from workbench.runs.grammar import grammar_when_asked_for

with grammar_when_asked_for():
    from nbconvert.exporters.html import HTMLExporter

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS, _POLICY = "<!--scripts-->", "<!--policy-->"


class ReportExporter(HTMLExporter):  # type: ignore[misc]
    """A self-contained report: ``jupyter nbconvert --to workbench NOTEBOOK``.

    A run.json beside the notebook gives key numbers, parameters, outcome and provenance.
    """

    export_from_notebook = "Workbench report"

    @default("template_name")  # type: ignore[untyped-decorator]
    def _template_name_default(self) -> str:
        return "workbench"

    @default("extra_template_basedirs")  # type: ignore[untyped-decorator]
    def _extra_template_basedirs_default(self) -> list[str]:
        return [str(_TEMPLATES)]

    def from_notebook_node(
        self, nb: Any, resources: Any = None, **keywords: Any
    ) -> tuple[str, dict[str, Any]]:
        """Render a notebook; returns the HTML and nbconvert's resources."""
        resources = resources or {}
        where = resources.get("metadata", {}).get("path") or None
        folder = Path(where) if where else None
        run = resources.get("workbench_run") or _run_beside(folder)
        built = page.build(nb, run, folder=folder)
        resources["page"] = built
        resources["styles"] = styles()
        text, resources = super().from_notebook_node(nb, resources, **keywords)
        return _closed(text, figures=built["figures"] > 0), resources


def write_report(run: record.Run) -> Path:
    """Render a run, whatever its outcome, into its folder, and return the path of report.html."""
    import nbformat

    source = run.folder / record.NOTEBOOK
    notebook = (
        nbformat.read(source, as_version=4)
        if source.is_file()
        else nbformat.v4.new_notebook()  # it ended before a cell was saved: the banner is all
    )
    resources = {"metadata": {"path": str(run.folder)}, "workbench_run": run}
    text, _ = ReportExporter().from_notebook_node(notebook, resources)
    with atomic_file(run.folder / record.REPORT) as partial:
        partial.write_text(text, encoding="utf-8")
    return run.folder / record.REPORT


def _run_beside(folder: Path | None) -> record.Run | None:
    try:
        return None if folder is None else record.read(folder)
    except NotFoundError:
        return None


def policy(text: str) -> str:
    """Return the content policy of a page: its own scripts by their hashes, and no network."""
    sources = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    hashes = [_hash(source) for source in sources]
    if 'id="plotly"' in text:
        hashes.append(_hash(_plotly()))
    return (
        f"default-src 'none'; script-src {' '.join(hashes) or chr(39) + 'none' + chr(39)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def with_policy(text: str) -> str:
    """Return a page whose mark for the policy is replaced by it."""
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy(text)}">'
    return text.replace(_POLICY, meta, 1)


def _closed(text: str, *, figures: bool) -> str:
    """Put scripts and policy into the page, after nbconvert has had its hands on it."""
    scripts = f"<script>{template_text('report.js')}</script>"
    if figures and importlib.util.find_spec("plotly") is not None:
        packed = base64.b64encode(gzip.compress(_plotly().encode(), 9, mtime=0)).decode("ascii")
        scripts = f'<script type="text/plain" id="plotly">{packed}</script>{scripts}'
    return with_policy(text.replace(_SCRIPTS, scripts, 1)).rstrip() + "\n"


def _hash(source: str) -> str:
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


@functools.cache
def _plotly() -> str:
    import plotly.offline

    return str(plotly.offline.get_plotlyjs())


def template_text(name: str) -> str:
    """Return a file of the template folder."""
    return (_TEMPLATES / "workbench" / name).read_text(encoding="utf-8")


def styles() -> str:
    """Return the style sheet with the colours of code, light and dark."""
    from pygments.formatters import HtmlFormatter

    sheet = f"{template_text('report.css')}\n{formula_style()}"
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    both = re.sub(
        r"^[^{]*\{ background: [^}]*\}.*$", "", f"{light}\n@@\n{dark}", flags=re.MULTILINE
    )
    light, dark = both.split("@@")
    return f"{sheet}\n{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
