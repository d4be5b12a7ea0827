"""The Markdown tree as HTML of the few tags that every viewer of a saved notebook keeps.

nbconvert's sanitiser keeps ``a b blockquote code div em i li ol pre span strong ul`` with ``class``
and ``id``, and turns all else into visible text; so a paragraph is a ``div``, a heading is bold, a
line break begins a new ``div``, a formula is its source, and a picture is told of, never loaded. It
keeps ``table`` too, but its parser puts in the ``tbody`` that every table has, which it then shows
as text: so a table is preformatted text in columns.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from workbench.chats.markdown import Node
from workbench.figures.table import width

GAP = "<div>&nbsp;</div>"
"""An empty line: no margin of a style sheet can be counted on."""

_LINE, _TAG = "\n", re.compile("<[^>]*>")
_SAME = {"em": "em", "strong": "strong", "ul": "ul", "blockquote": "blockquote"}
_SPACED = frozenset(("p", "h1", "h2", "h3", "h4", "h5", "h6", "hr"))


def markup(blocks: Sequence[Node]) -> str:
    """Return the HTML of top-level blocks; all text is escaped."""
    found: list[str] = []
    for index, block in enumerate(blocks):
        if index and block[0] in _SPACED and blocks[index - 1][0] in _SPACED:
            found.append(GAP)
        found.append(_node(block))
    return "".join(found)


def escaped(text: str) -> str:
    """Return text for use between tags."""
    return html.escape(text, quote=False)


def _node(node: Node | str) -> str:
    """Return the HTML of one node; a tag that is not known leaves what it holds."""
    if isinstance(node, str):
        return escaped(node)
    tag, attributes, *children = node
    if tag in _SAME:
        return f"<{tag}>{_inside(children)}</{tag}>"
    if tag == "p":
        return _lines(children)
    if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
        return f"<div><b>{_inside(children)}</b></div>"
    if tag == "li":
        return f"<li>{_item(children)}</li>"
    if tag == "ol":
        return _numbered(children, (attributes or {}).get("start", 1))
    if tag == "table":
        return _table([row for part in children for row in part[2:]])
    return _leaf(tag, attributes or {}, children)


def _leaf(tag: str, attributes: dict[str, Any], children: list[Any]) -> str:
    if tag == "pre":
        language = escaped(str(attributes.get("lang", "")))
        label = f"<div><i>{language}</i></div>" if language else ""
        return f"{label}<pre>{_inside(children)}</pre>"
    if tag == "math":  # sanitisers drop MathML
        return _source(str(attributes.get("tex", "")))
    if tag == "code":
        return f"<code>{_inside(children)}</code>"
    if tag == "s":  # no tag for it is kept
        return f"<span>~~{_inside(children)}~~</span>"
    if tag == "a":
        return _link(str(attributes.get("href", "")), _inside(children))
    if tag == "img":
        source = str(attributes.get("src", ""))
        name = escaped(str(attributes.get("alt", "")))
        host = escaped(urlsplit(source).netloc)
        told = f"picture{f' “{name}”' if name else ''} at {host}, not loaded"
        return f"<i>[{_link(source, told)}]</i>"
    if tag == "br":
        return " "
    if tag == "hr":
        return "<div>⁂</div>"
    return _inside(children)


def _source(tex: str) -> str:
    tag = "pre" if _LINE in tex else "code"
    return f"<{tag}>{escaped(tex)}</{tag}>"


def _table(rows: Sequence[Node]) -> str:
    """Return rows as lines whose columns stand under one another in a fixed-width font."""
    cells = [[(_inside(cell[2:]), width(_words(cell))) for cell in row[2:]] for row in rows]
    sizes = [max(size for _, size in column) for column in zip(*cells, strict=True)]
    rights = [(cell[1] or {}).get("align") == "right" for cell in rows[0][2:]]
    lines = []
    for row in cells:
        line = []
        for (inner, size), widest, right in zip(row, sizes, rights, strict=True):
            gap = " " * (widest - size)
            line.append(gap + inner if right else inner + gap)
        lines.append("  ".join(line).rstrip())
    lines[0] = f"<b>{lines[0]}</b>"
    lines.insert(1, "  ".join("─" * size for size in sizes))
    return f"<pre>{_LINE.join(lines)}</pre>"


def _words(node: Node) -> str:
    """Return what a cell shows, for its width."""
    source = _inside(node[2:])
    return html.unescape(_TAG.sub("", source))


def _link(address: str, inner: str) -> str:
    if not address.lower().startswith(("http://", "https://")):
        return inner
    quoted = html.escape(address)
    return f'<a href="{quoted}" title="{quoted}">{inner}</a>'


def _inside(children: Sequence[Any]) -> str:
    return "".join(map(_node, children))


def _lines(children: Sequence[Any]) -> str:
    """Return a paragraph: one ``div`` a line."""
    lines: list[str] = [""]
    for child in children:
        if isinstance(child, list) and child[0] == "br":
            lines.append("")
        else:
            lines[-1] += _node(child)
    return "".join(f"<div>{line}</div>" for line in lines)


def _item(children: Sequence[Any]) -> str:
    """Return what an item holds: its text, and a ``div`` for each further line of it."""
    if not any(isinstance(child, list) and child[0] == "br" for child in children):
        return _inside(children)
    text = [c for c in children if isinstance(c, str) or c[0] not in _BLOCKS]
    return _lines(text) + _inside(children[len(text) :])


_BLOCKS = frozenset(("p", "ul", "ol", "blockquote", "pre", "table", "hr"))


def _numbered(items: Sequence[Any], start: int) -> str:
    """Return a numbered list; one that does not begin at 1 has its numbers as text."""
    if start == 1:
        return f"<ol>{_inside(items)}</ol>"
    lines = [f"<li>{number}. {_item(item[2:])}</li>" for number, item in enumerate(items, start)]
    return f"<ul>{''.join(lines)}</ul>"
