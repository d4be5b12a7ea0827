"""All runs: a table that displays itself, and a page with links to their reports."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from workbench.errors import WorkbenchError
from workbench.figures import Table
from workbench.paths import atomic_file
from workbench.progress import duration
from workbench.runs import record
from workbench.runs.parameters import as_text

INDEX = "index.html"
_MOST_NUMBERS = 3


class Shelf(Sequence[record.Run]):
    """The runs, newest first; displays itself as a table."""

    def __init__(self, runs: Sequence[record.Run]) -> None:
        self._runs = list(runs)

    def __len__(self) -> int:
        return len(self._runs)

    @overload
    def __getitem__(self, index: int) -> record.Run: ...
    @overload
    def __getitem__(self, index: slice) -> Shelf: ...
    def __getitem__(self, index: int | slice) -> record.Run | Shelf:
        if isinstance(index, slice):
            return Shelf(self._runs[index])
        return self._runs[index]

    def __iter__(self) -> Iterator[record.Run]:
        return iter(self._runs)

    def table(self) -> Table:
        """Return one row for each run."""
        rows = [
            {
                "id": run.id,
                "notebook": run.notebook,
                "started": run.data["started"][:16].replace("T", " "),
                "outcome": run.outcome,
                "took": duration(run.data["duration_s"]) if run.data["duration_s"] else None,
                "key numbers": key_numbers(run),
                "failed": run.trouble(),
            }
            for run in self._runs
        ]
        return Table(rows, caption=f"{len(rows)} runs in {record.runs_folder().name}/")

    def __str__(self) -> str:
        return str(self.table())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def runs() -> Shelf:
    """Return all runs, newest first."""
    return Shelf(read_all(record.runs_folder()))


def read_all(folder: Path) -> list[record.Run]:
    """Return the runs below a folder, newest first; what is no run is passed over."""
    found = []
    for path in folder.glob(f"*/{record.RUN_FILE}"):
        try:
            found.append(record.read(path.parent))
        except WorkbenchError:
            continue
    return sorted(found, key=lambda run: (run.data["started"], run.folder.name), reverse=True)


def key_numbers(run: record.Run) -> str:
    """Return the first key numbers of a run in one line."""
    return "; ".join(run.said()[:_MOST_NUMBERS])


def write_index() -> Path:
    """Write ``outputs/runs/index.html``: every run, newest first, with links that can be moved."""
    from workbench.runs.exporter import styles, template_text, with_policy

    folder = record.runs_folder()
    rows = "\n".join(_row(run) for run in read_all(folder))
    heads = ("started", "notebook", "outcome", "took", "key numbers", "parameters", "files")
    head = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in heads)
    page = template_text("runs.html")
    for mark, text in (
        ("<!--styles-->", f"<style>\n{styles()}\n</style>"),
        ("<!--head-->", head),
        ("<!--rows-->", rows),
        ("<!--scripts-->", f"<script>{template_text('runs.js')}</script>"),
    ):
        page = page.replace(mark, text, 1)
    with atomic_file(folder / INDEX) as partial:
        partial.write_text(with_policy(page), encoding="utf-8")
    return folder / INDEX


def _row(run: record.Run) -> str:
    data = run.data
    given = [
        f"{name} = {as_text(value['value'])}"
        for name, value in data["parameters"].items()
        if value["source"] != "default"
    ]
    took = data["duration_s"]
    name = html.escape(run.folder.name)
    title = html.escape(run.notebook)
    link = f'<a href="{name}/{record.REPORT}">{title}</a>' if run.report else title
    trouble = f'<div class="trouble">{html.escape(run.trouble())}</div>' if run.trouble() else ""
    cells = (
        ("", f"{html.escape(data['started'][:16].replace('T', ' '))}"),
        ("", link),
        ("", f'<span class="outcome {run.outcome}">{run.outcome}</span>{trouble}'),
        (f"{took or 0}", duration(took) if took else ""),
        ("", html.escape(key_numbers(run))),
        ("", f"<code>{html.escape(', '.join(given))}</code>" if given else "defaults"),
        ("", f'<a href="{name}/{record.RUN_FILE}">run.json</a>'),
    )
    return (
        "<tr>"
        + "".join(
            f'<td data-key="{key}">{text}</td>' if key else f"<td>{text}</td>"
            for key, text in cells
        )
        + "</tr>"
    )
