"""A table of rows that displays itself: as text, in a notebook and on a static page."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from workbench.errors import InputError, did_you_mean
from workbench.figures.figure import short

Format = str | Callable[[Any], str]
NOTHING = "–"
FAILED = "failed"
_SHORT = 24  # characters of a cell that should not be broken over lines


class Table:
    """Rows that display themselves; failures stay in the table as rows.

    A row with a text under ``failed`` is one: its reason is shown, and its other cells may be
    missing.

    Args:
        rows: Mappings, or a pandas DataFrame.
        columns: Names of the columns to show, in order; default is all, as they first appear. A
            mapping gives each a heading: ``{"ttft_ms": "TTFT (ms)"}``.
        caption: A line above the table.
        formats: For a column a format specification (``".1f"``) or a function of the value.

    Raises:
        InputError: A named column is in no row, or a format names no column.
    """

    def __init__(
        self,
        rows: Any,
        *,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        caption: str = "",
        formats: Mapping[str, Format] | None = None,
    ) -> None:
        records = rows.to_dict("records") if hasattr(rows, "to_dict") else rows
        self.rows: list[dict[str, Any]] = [dict(row) for row in records]
        self.caption = caption
        self.formats = dict(formats or {})
        known = list(dict.fromkeys(str(name) for row in self.rows for name in row))
        self.columns = self._headings(columns, known)
        for name in self.formats:
            if self.rows and name not in known:
                raise InputError(f"There is no column {name!r}.", hint=did_you_mean(name, known))

    def _headings(
        self, columns: Sequence[str] | Mapping[str, str] | None, known: Sequence[str]
    ) -> dict[str, str]:
        if columns is None:
            chosen = {name: name.replace("_", " ") for name in known if name != FAILED}
        elif isinstance(columns, Mapping):
            chosen = dict(columns)
        else:
            chosen = {name: name.replace("_", " ") for name in columns}
        for name in chosen:
            if self.rows and name not in known:
                raise InputError(f"There is no column {name!r}.", hint=did_you_mean(name, known))
        if any(row.get(FAILED) for row in self.rows):
            chosen.setdefault(FAILED, FAILED)
        return chosen

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def text(self, name: str, row: Mapping[str, Any]) -> str:
        """Return the cell of column ``name`` as it is shown."""
        value = row.get(name)
        if value is None or value != value:  # NaN is not equal to itself
            return "" if name == FAILED else NOTHING
        chosen = self.formats.get(name)
        if callable(chosen):
            return chosen(value)
        if chosen is not None:
            return format(value, chosen)
        return _readable(value)

    def _is_number(self, name: str) -> bool:
        values = [row.get(name) for row in self.rows if row.get(name) is not None]
        return bool(values) and all(
            hasattr(value, "__float__") and not isinstance(value, (str, bool)) for value in values
        )

    def _kind(self, name: str) -> str:
        """Return the classes of a column, by which a page can set its alignment and width."""
        if self._is_number(name):
            return "number"
        longest = max(width(line) for row in self.rows for line in self.text(name, row).split("\n"))
        return "text long" if longest > _SHORT else "text"

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.caption or 'Table'}: no rows"
        numbers = [self._is_number(name) for name in self.columns]
        lines = [list(self.columns.values())]
        lines += [[_one_line(self.text(name, row)) for name in self.columns] for row in self.rows]
        widths = [max(width(line[index]) for line in lines) for index in range(len(self.columns))]
        lines.insert(1, ["─" * size for size in widths])
        body = "\n".join(
            "  ".join(
                _padded(cell, size, right=number)
                for cell, size, number in zip(line, widths, numbers, strict=True)
            ).rstrip()
            for line in lines
        )
        return f"{self.caption}\n{body}" if self.caption else body

    __repr__ = __str__

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self.html()}

    def html(self) -> str:
        """Return the table in tags and classes that survive nbconvert's sanitiser."""
        if not self.rows:
            return f"<div>{html.escape(str(self))}</div>"
        kinds = [self._kind(name) for name in self.columns]
        head = "".join(
            _cell(f"<b>{html.escape(title)}</b>", kind)
            for title, kind in zip(self.columns.values(), kinds, strict=True)
        )
        body = "".join(self._html_row(row, kinds) for row in self.rows)
        caption = f"<div><b>{html.escape(self.caption)}</b></div>" if self.caption else ""
        return f'{caption}<table><tr class="head">{head}</tr>{body}</table>'

    def _html_row(self, row: Mapping[str, Any], kinds: Sequence[str]) -> str:
        cells = "".join(
            _cell(_lines(self.text(name, row)), kind)
            for name, kind in zip(self.columns, kinds, strict=True)
        )
        mark = ' class="failed"' if row.get(FAILED) else ""
        return f"<tr{mark}>{cells}</tr>"


def _cell(content: str, kind: str) -> str:
    """Return a cell; text says that it stands at the left, since JupyterLab sets cells right."""
    placed = content if kind == "number" else f'<div align="left">{content}</div>'
    return f'<td class="{kind}">{placed}</td>'


def width(text: str) -> int:
    """Return the columns that ``text`` takes in a terminal; wide East Asian characters take two."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def _readable(value: Any) -> str:
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bool):
        return "yes" if plain else "no"
    if isinstance(plain, float):
        return short(plain)
    if isinstance(plain, int):
        return str(plain) if abs(plain) < 10_000 else f"{plain:,}"
    if isinstance(plain, PurePath):
        return plain.as_posix()
    if isinstance(plain, (list, tuple, set)):
        return ", ".join(_readable(item) for item in plain)
    return str(plain)


def _padded(text: str, size: int, *, right: bool) -> str:
    gap = " " * (size - width(text))
    return gap + text if right else text + gap


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def _lines(text: str) -> str:
    lines = [html.escape(line) for line in text.split("\n")]
    return lines[0] if len(lines) == 1 else "".join(f"<div>{line}</div>" for line in lines)
