"""What a report shows, in the order of reading, from an executed notebook and its run file."""

from __future__ import annotations

import copy
import datetime as dt
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.figures.figure import short
from workbench.progress import duration
from workbench.redact import redacted
from workbench.runs import record
from workbench.runs.finish import clean_output
from workbench.runs.notes import Number
from workbench.runs.parameters import TAG
from workbench.runs.untrusted import Headings, clean_html, markdown, tex

PLOTLY = "application/vnd.plotly.v1+json"
_LONG = 40  # lines of text shown before the rest is folded away
_HIDDEN = {TAG, "injected-parameters"}  # the page shows a table of the parameters instead
_WIDGETS = "application/vnd.jupyter.widget-view+json"


def build(
    notebook: Mapping[str, Any], run: record.Run | None, *, folder: Path | None
) -> dict[str, Any]:
    """Return all that the template shows; its HTML parts are safe.

    Args:
        notebook: The executed notebook.
        run: Its run file, or None for a notebook on its own.
        folder: Where images that Markdown cells name lie.
    """
    headings = Headings()
    failed = run.data["cells"]["reached"] if run and run.outcome not in ("done", "running") else 0
    cells = copy.deepcopy(list(notebook["cells"]))
    title, lead = _head(cells)
    blocks = []
    count = 0
    for cell in cells:
        tags = set(cell.get("metadata", {}).get("tags", []))
        own = cell["cell_type"] == "code" and "injected-parameters" not in tags
        count += own
        if tags & _HIDDEN and run is not None:
            if TAG in tags:
                blocks.append({"kind": "parameters"})
            continue
        if cell["cell_type"] == "code":
            blocks.append(_code(cell, headings, number=count, failed=failed == count and own))
        elif cell["cell_type"] == "markdown":
            blocks.append(_text(cell, headings, folder))
    chosen = [title, redacted(run.data["title"]) if run else "", "Notebook"]
    return {
        "title": next(name for name in chosen if name),
        "lead": markdown(redacted(lead), folder=folder) if lead.strip() else "",
        "blocks": blocks,
        "contents": [entry for entry in headings.found if entry[0] in (2, 3)],
        "figures": sum(block.get("figures", 0) for block in blocks),
        "has_parameters": any(block["kind"] == "parameters" for block in blocks),
        "run": None if run is None else _run(run),
    }


def _head(cells: list[Any]) -> tuple[str, str]:
    """Take the first cell off when it is a title; return the title and what stands below it."""
    if not cells or cells[0]["cell_type"] != "markdown":
        return "", ""
    first, _, rest = cells[0]["source"].strip().partition("\n")
    if not first.startswith("# "):
        return "", ""
    del cells[0]
    return str(redacted(re.sub(r"[*`_]", "", first[2:].strip()))), rest


def _text(cell: Mapping[str, Any], headings: Headings, folder: Path | None) -> dict[str, Any]:
    attachments = dict(cell.get("attachments", {}))
    source = redacted(cell["source"])
    body = markdown(source, headings=headings, folder=folder, attachments=attachments)
    return {"kind": "text", "html": body}


def _code(
    cell: Mapping[str, Any], headings: Headings, *, number: int, failed: bool
) -> dict[str, Any]:
    source = redacted(cell["source"])
    ran = cell.get("execution_count") is not None or bool(cell["outputs"])
    outputs = [_output(clean_output(output)) for output in cell["outputs"]]
    for output in outputs:
        if output.get("figure"):  # listed in the contents, as a heading is
            address = headings.add(3, html.escape(output["figure"]))
            output["html"] = output["html"].replace("<figure ", f'<figure id="{address}" ', 1)
    return {
        "kind": "code",
        "number": number,
        "failed": failed,
        "ran": ran or not source.strip(),
        "html": _highlighted(source),
        "lines": len(source.splitlines()),
        "took": _took(cell),
        "outputs": [output["html"] for output in outputs if output["html"]],
        "figures": sum("figure" in output for output in outputs),
    }


def _took(cell: Mapping[str, Any]) -> str:
    said = cell.get("metadata", {}).get("papermill", {}).get("duration")
    return duration(said) if isinstance(said, (int, float)) and said >= 0.05 else ""


def _highlighted(source: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    return str(highlight(source, get_lexer_by_name("python"), HtmlFormatter()))


def _output(output: Mapping[str, Any]) -> dict[str, Any]:
    kind = output["output_type"]
    if kind == "stream":
        return {"html": _stream(_joined(output["text"]), output["name"])}
    if kind == "error":
        return {"html": _error(output)}
    data = output.get("data", {})
    for name, show in _SHOWN.items():
        if name in data:
            made: dict[str, Any] = show(data)
            if made["html"].strip():
                return made
    return {"html": ""}


def _joined(text: str | Sequence[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _stream(text: str, name: str) -> str:
    from nbconvert.filters import ansi2html

    text = re.sub(r"[^\n]*\r(?!\n)", "", text).strip("\n")  # a line rewritten shows its last state
    lines = text.split("\n")
    if not text.strip():
        return ""
    shown = f'<pre class="{name}">{ansi2html(text)}</pre>'
    if len(lines) <= _LONG:
        return shown
    start = ansi2html("\n".join(lines[:5]))
    return (
        f'<pre class="{name}">{start}</pre><details class="more">'
        f"<summary>all {len(lines)} lines</summary>{shown}</details>"
    )


def _error(output: Mapping[str, Any]) -> str:
    from nbconvert.filters import ansi2html

    head = f"<b>{html.escape(output['ename'])}</b>: {html.escape(output['evalue'])}"
    trace = ansi2html("\n".join(output["traceback"]))
    return (
        f'<div class="error"><div class="what">{head}</div><details class="more">'
        f"<summary>traceback</summary><pre>{trace}</pre></details></div>"
    )


def _figure(data: Mapping[str, Any]) -> dict[str, Any]:
    plot = data[PLOTLY]
    title = _title(plot)
    caption = _caption(title, _joined(data.get("text/plain", "")))
    picture = data.get("image/png")
    still = (
        f'<img class="still" alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{_joined(picture).strip()}">'
        if picture
        else '<p class="still">This figure is drawn by a script.</p>'
    )
    text = json.dumps({"data": plot.get("data", []), "layout": plot.get("layout", {})})
    safe = text.replace("<", "\\u003c")  # nothing in it can end the script element
    note = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return {
        "html": f'<figure class="plot"><div class="canvas"></div>{still}'
        f'<script type="application/json">{safe}</script>{note}</figure>',
        "figure": title,
    }


def _title(plot: Mapping[str, Any]) -> str:
    title = plot.get("layout", {}).get("title", "")
    text = title.get("text", "") if isinstance(title, Mapping) else title
    return html.unescape(re.sub(r"<[^>]+>", "", str(text)))


def _caption(title: str, plain: str) -> str:
    if plain.startswith(("Figure(", "FigureWidget(")) or len(plain) > 800:
        return ""  # how plotly's own figures describe themselves
    return plain.removeprefix(f"{title}. ") if title else plain


def _picture(kind: str) -> Any:
    def show(data: Mapping[str, Any]) -> dict[str, Any]:
        import base64

        content = _joined(data[kind]).strip()
        if kind == "image/svg+xml":  # as an image, where no script in it runs
            content = base64.b64encode(content.encode()).decode("ascii")
        elif not re.fullmatch(r"[A-Za-z0-9+/=\s]+", content):
            return {"html": ""}
        plain = _joined(data.get("text/plain", ""))
        alt = "" if plain.startswith("<") else plain
        return {"html": f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{content}">'}

    return show


def _html(data: Mapping[str, Any]) -> dict[str, Any]:
    source = _joined(data["text/html"])
    cleaned = clean_html(source)
    readable = re.sub(r"<[^>]+>", "", cleaned).strip() or "<img" in cleaned
    return {"html": f'<div class="html">{cleaned}</div>' if readable else ""}


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    if _WIDGETS in data and "text/html" in data:
        return {"html": ""}  # a widget whose static copy is another output
    text = _joined(data["text/plain"])
    if re.fullmatch(r"<[\w.]+ object( at \w+)?>", text.strip()) and len(data) > 1:
        return {"html": '<p class="left-out">An output that only scripts can show is left out.</p>'}
    return {"html": _stream(text, "result") if text.strip() else ""}


_SHOWN: dict[str, Any] = {  # the first kind that an output has, and that can be shown
    PLOTLY: _figure,
    "text/html": _html,
    "text/markdown": lambda data: {"html": markdown(_joined(data["text/markdown"]))},
    "image/svg+xml": _picture("image/svg+xml"),
    "image/png": _picture("image/png"),
    "image/jpeg": _picture("image/jpeg"),
    "text/latex": lambda data: {"html": tex(_joined(data["text/latex"]).strip("$ "), block=True)},
    "text/plain": _plain,
}


def _run(run: record.Run) -> dict[str, Any]:
    data = run.data
    error = data.get("error") or {}
    return {
        "id": run.id,
        "notebook": run.notebook,
        "outcome": run.outcome,
        "trouble": run.trouble(),
        "traceback": "\n".join(error.get("traceback", [])),
        "cell": data["cells"]["reached"],
        "result": data.get("conclusion") or _result(run),
        "when": _when(data["started"]),
        "took": duration(data["duration_s"]) if data["duration_s"] is not None else "",
        "numbers": [
            {**number, "shown": short(number["value"]), "verdict": _verdict(number["good"])}
            for number in data["numbers"]
        ],
        "parameters": [
            {"name": name, "value": _value(given["value"]), **_without_value(given)}
            for name, given in data["parameters"].items()
        ],
        "outputs": dict(data["outputs"]),
        "provenance": _provenance(run),
        "machine": _machine(data["machine"]),
        "log": (run.folder / record.LOG).is_file(),
        "has_notebook": (run.folder / record.NOTEBOOK).is_file(),
    }


def _result(run: record.Run) -> str:
    """Return the result in a sentence, where the notebook concludes nothing itself."""
    numbers = ", ".join(str(Number(**number)) for number in run.data["numbers"])
    took = run.data["duration_s"]
    if run.outcome != "done" or took is None:
        return ""
    said = f"{numbers[:1].upper()}{numbers[1:]}. " if numbers else ""
    return f"{said}Measured in {duration(took)} on {_machine(run.data['machine'])}."


def _verdict(good: bool | None) -> str:
    return {True: "good", False: "bad", None: "plain"}[good]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _without_value(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in given.items() if name != "value"}


def _when(stamp: str) -> str:
    return dt.datetime.fromisoformat(stamp).strftime("%-d %B %Y, %H:%M UTC")


def _machine(machine: Mapping[str, Any]) -> str:
    devices = ", ".join(device["name"] for device in machine.get("devices", ())) or "no GPU"
    memory = machine["ram_bytes"] / 2**30
    return f"{machine['processor']}, {machine['cores']} cores, {memory:.0f} GiB RAM, {devices}"


def _provenance(run: record.Run) -> list[tuple[str, str]]:
    data = run.data
    git = data.get("git")
    machine = data["machine"]
    rows = [
        ("Command", data["command"]),
        ("Run", f"{run.id}, code cell {data['cells']['reached']} of {data['cells']['total']}"),
        ("Started", f"{_when(data['started'])}, took {duration(data['duration_s'] or 0)}"),
        ("Machine", f"{_machine(machine)}, {machine['system']}"),
        ("Python", machine["python"]),
        ("Versions", ", ".join(f"{name} {v}" for name, v in machine["versions"].items())),
        ("Workbench", data["workbench"]),
    ]
    if data.get("memory"):
        peak = data["memory"]
        rows.append(("Peak memory", f"{peak['peak_bytes'] / 1e9:.2f} GB, {peak['source']}"))
    if git:
        changed = " with uncommitted changes" if git["dirty"] else ""
        rows.append(("Git commit", f"{git['commit'][:12]}{changed}"))
    if data.get("chain"):
        chain = data["chain"]
        rows.append(
            ("Step", f"{chain['step']}, {chain['index']} of {chain['of']} of {chain['file']}")
        )
    if data["receipts"]:
        rows.append(("Receipts", ", ".join(data["receipts"])))
    return [(name, str(value)) for name, value in rows if value]
