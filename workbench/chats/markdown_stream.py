"""Markdown that is still being written: each added piece gives the change of the tree.

Only the end of the text is parsed again: from the last block, list item or table row that later
text can still change. Text and code that merely grow are appended without any parsing.
"""

from __future__ import annotations

import re
import time
from typing import Any, TypedDict

from workbench.chats.markdown import LONGEST, Node, Place, clean, parse_places


class Patch(TypedDict, total=False):
    """A change of a list of blocks; an empty one changes nothing.

    Keys:
        append: Text to add to the last text of the last block, or else:
        depth: How many times to step into the last child first; 0 where it is absent.
        keep: How many children there stay.
        blocks: What follows them.
    """

    append: str
    depth: int
    keep: int
    blocks: list[Any]


_PLAIN = re.compile("[A-Za-z0-9 ,.?'\"(:%@{}^\u00a1-\U0010ffff-]+")
_SETTLED = re.compile("[A-Za-z0-9\u00a1-\U0010ffff]")
_SHORT, _HUGE, _SHARE, _REST = 32, 65_536, 8, 20
_MAYBE_CLOSING = re.compile(" {0,3}[`~]")
_MAYBE_LIST = re.compile(r"\d*[.)]")
_MOST_COLUMNS, _MOST_CELLS = 64, 60_000
_TEXT_TAGS = frozenset(("p", "li", "h1", "h2", "h3", "h4", "h5", "h6"))


class MarkdownStream:
    """Turns pieces of a growing text into patches; joined they give ``parse`` of the whole.

    So that the cost stays proportional to the text, an end that is long for one block is parsed
    again when it has grown by an eighth, or when parsing it has taken less than a twentieth of the
    time since; until then what is added shows as the plain text it is. ``done`` settles all.
    """

    def __init__(self) -> None:
        self._blocks: list[Node] = []
        self._base = 0  # blocks that nothing can change any more
        self._kept: Node | None = None  # the block at base, with its unchangeable items or rows
        self._tail = ""  # the source from there, as parsed last
        self._new: list[str] = []  # what was added since
        self._size = 0
        self._grown: list[str] = []  # of that, what the last text has grown by
        self._mode = ""  # "text" or "code" while the last text may grow without a parse
        self._gap = ""  # spaces at the end, which show only when something follows
        self._last = ""  # the last character, or in a fence how the last line begins
        self._leaf = 0  # length of the last text; 0 where the tree ends with something else
        self._closing: re.Pattern[str] | None = None  # in a fence: the line that ends it
        self._parsed_at = self._parsing = 0.0  # seconds: end and length of the last parse
        self._return = ""  # a carriage return whose line feed may follow

    @property
    def blocks(self) -> list[Node]:
        """The top-level blocks shown so far."""
        self._settle()
        return list(self._blocks)

    def add(self, text: str) -> Patch:
        """Take the next piece, and return what changes; an empty patch where nothing does."""
        text, self._return = self._return + text, ""
        if text.endswith("\r"):
            text, self._return = text[:-1], "\r"
        return self._take(clean(text))

    def done(self) -> Patch:
        """Return the last change; afterwards the blocks are ``parse`` of the whole text."""
        rest, self._return = clean(self._return), ""
        if rest:
            self._new.append(rest)
        return self._parse() if self._new else {}

    def _take(self, text: str) -> Patch:
        if not text:
            return {}
        self._new.append(text)
        self._size += len(text)
        closed = False
        if self._mode == "text" and self._grows_text(text):
            shown = (self._gap + text).rstrip()
            if not shown:
                self._gap += text
                return {}
            self._gap = (self._gap + text)[len(shown) :]
            self._last = shown[-1]
            return self._grow(shown)
        if self._closing is not None:
            lines = (self._last + text).split("\n")
            self._last = lines[-1][:80]
            if self._mode == "code" and not any(map(_MAYBE_CLOSING.match, lines)):
                text = self._gap + text
                blank = lines[-1].strip(" \t") == ""  # such a line shows when it is complete
                shown = text.rstrip(" \t") if blank else text
                self._gap = text[len(shown) :]
                return self._grow(shown) if shown else {}
            closed = any(map(self._closing.fullmatch, lines[:-1]))
        if closed or self._worth_parsing():
            return self._parse()
        self._mode = ""
        text, self._gap = self._gap + text, ""
        return self._grow(text) if self._leaf else {}

    def _worth_parsing(self) -> bool:
        """Tell whether the end is short, has grown enough, or its last parse is long past."""
        size = len(self._tail) + (len(self._kept[-1]) + len(self._kept) if self._kept else 0)
        share = _SHARE if size < _HUGE else 1
        return (
            self._size * share >= size - _SHORT
            or time.monotonic() >= self._parsed_at + _REST * self._parsing
        )

    def _grows_text(self, text: str) -> bool:
        if _PLAIN.fullmatch(text) is None:
            return False
        if self._last.isdigit() and _MAYBE_LIST.match(text):
            return False
        return self._leaf > LONGEST or len(self._tail) + self._size <= LONGEST

    def _grow(self, text: str) -> Patch:
        self._grown.append(text)
        return {"append": text}

    def _settle(self) -> None:
        """Put what the last text has grown by into the tree; the nodes handed out stay as are."""
        if self._grown:
            self._blocks = apply_patch(self._blocks, {"append": "".join(self._grown)})
            self._grown = []

    def _parse(self) -> Patch:
        started = time.monotonic()
        self._settle()
        tail = self._tail + "".join(self._new)
        self._new, self._size = [], 0
        live, places = parse_places(tail)
        shown = _merged(self._kept, live)
        patch = _difference(self._blocks[self._base :], shown, self._base)
        self._blocks[self._base :] = shown
        self._tail = tail
        if places:
            self._commit(shown, places)
        self._mode, self._gap, self._leaf, self._closing = "", "", 0, None
        if places:
            self._look_at_end(places[-1], tail)
        self._parsed_at = time.monotonic()
        self._parsing = self._parsed_at - started
        return patch

    def _commit(self, shown: list[Node], places: list[Place]) -> None:
        """Leave behind what no later text can change.

        How a block, item or row begins is settled when its first line and the next (a table's
        second line) are complete; what stands before it is settled then.
        """
        settled = self._tail.count("\n") - 2
        index = max((i for i, place in enumerate(places) if place.start <= settled), default=0)
        place, line = places[index], places[index].start
        kept = self._kept if index == 0 else None
        header = ""
        known = [i for i, start in enumerate(place.items) if i > 0 and start <= settled]
        if places[-1].closed and places[-1].end < settled + 3:
            index, line, kept = len(places), places[-1].end, None
        elif known and place.kind.endswith("list_open"):
            line = place.items[known[-1]]
            kept = shown[index][: len(shown[index]) - (len(place.items) - known[-1])]
        elif known and place.kind == "table_open" and _may_cut(shown[index]):
            line = place.items[known[-1]]
            body = shown[index][3]
            kept = [*shown[index][:3], body[: len(body) - (len(place.items) - known[-1])]]
        elif index == 0:
            return
        if place.kind == "table_open" and kept is not None:
            lines = self._tail.split("\n", place.start + 2)
            header = "\n".join(lines[place.start : place.start + 2]) + "\n"
        self._base += index
        self._kept = kept
        self._tail = header + _from_line(self._tail, line)

    def _look_at_end(self, place: Place, tail: str) -> None:
        """Find out whether the last text may grow without a parse."""
        node: Any = self._blocks[-1]
        parent: Node = []
        while isinstance(node, list) and len(node) > 2:
            parent, node = node, node[-1]
            if parent[0] == "math":  # what follows does not grow it
                return
        if not isinstance(node, str) or place.closed:
            return
        self._leaf = len(node)
        if place.kind == "fence":
            self._look_at_code(place, tail, node)
            return
        shown = tail.rstrip()
        word = shown[max(shown.rfind(space) for space in (" ", "\n", "\t")) + 1 :]
        if (
            (parent[0] in _TEXT_TAGS or (parent[0] == "td" and self._in_cell(place, shown)))
            and _SETTLED.fullmatch(shown[-1])  # "1." or "--" may begin something else
            and node[-1] == shown[-1]
            and "://" not in word
            and _PLAIN.sub("", tail[len(shown) :]) == ""
        ):
            self._mode, self._last, self._gap = "text", shown[-1], tail[len(shown) :]

    def _in_cell(self, place: Place, shown: str) -> bool:
        """Tell whether the last line's end is in a cell that is shown; surplus ones are not."""
        if place.kind != "table_open":
            return False
        line = shown[shown.rfind("\n") + 1 :].lstrip()
        return line.count("|") - line.startswith("|") < len(self._blocks[-1][2][2]) - 2

    def _look_at_code(self, place: Place, tail: str, code: str) -> None:
        first, _, rest = _from_line(tail, place.start).partition("\n")
        last = rest.rpartition("\n")[2]
        mark, length = place.markup[0], len(place.markup)
        self._closing = re.compile(rf" {{0,3}}{mark}{{{length},}}[ \t]*")
        self._last = last[:80]
        shown = rest if last.strip(" \t") else rest.rstrip(" \t")
        if shown == code and first.startswith(mark) and not _MAYBE_CLOSING.match(last):
            self._mode, self._gap = "code", rest[len(shown) :]


def _from_line(text: str, line: int) -> str:
    position = 0
    for _ in range(line):
        position = text.index("\n", position) + 1
    return text[position:]


def _merged(kept: Node | None, live: list[Node]) -> list[Node]:
    """Return the blocks that were parsed, the first of them with the items it had before."""
    if kept is None:
        return live
    first = live[0]
    if kept[0] == "table":
        whole = [*kept[:3], [*kept[3], *(first[3][2:] if len(first) > 3 else ())]]
    else:
        whole = [*kept, *first[2:]]
    return [whole, *live[1:]]


def _may_cut(table: Node) -> bool:
    """Tell whether rows may be left behind: the parser stops a huge table by counting its cells."""
    columns = len(table[2][2]) - 2
    return columns <= _MOST_COLUMNS and columns * len(table[3]) < _MOST_CELLS


def _difference(old: list[Any], new: list[Any], base: int) -> Patch:
    """Return the patch from the old blocks to the new; both follow ``base`` blocks that stay."""
    depth, first, offset = 0, 0, base
    while True:
        keep = first
        for before, after in zip(old[first:], new[first:], strict=False):
            if before is not after and before != after:
                break
            keep += 1
        if keep == len(old) == len(new):
            return {}
        if keep == len(old) - 1 == len(new) - 1:
            before, after = old[keep], new[keep]
            if isinstance(before, str) and isinstance(after, str) and after.startswith(before):
                return {"append": after[len(before) :]}
            if isinstance(before, list) and isinstance(after, list) and before[:2] == after[:2]:
                old, new, first, offset, depth = before, after, 2, -2, depth + 1
                continue
        patch: Patch = {"keep": keep + offset, "blocks": new[keep:]}
        if depth:
            patch["depth"] = depth
        return patch


def apply_patch(blocks: list[Node], patch: Patch) -> list[Node]:
    """Return the blocks with a patch applied; the given ones are not changed."""
    if not patch:
        return list(blocks)
    if "append" in patch:
        return _appended(blocks, patch["append"])
    return _replaced(blocks, patch.get("depth", 0), 0, patch)


def _appended(node: list[Any], text: str) -> list[Any]:
    last = node[-1]
    return [*node[:-1], last + text if isinstance(last, str) else _appended(last, text)]


def _replaced(node: list[Any], depth: int, first: int, patch: Patch) -> list[Any]:
    if depth:
        return [*node[:-1], _replaced(node[-1], depth - 1, 2, patch)]
    return [*node[: first + patch["keep"]], *patch["blocks"]]
