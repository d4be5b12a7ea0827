"""Markdown text as a small tree of whitelisted tags, which a front end builds and a page renders.

A node is a list ``[tag, attributes or None, *children]``, a child is a node or a string. The
dialect is CommonMark with tables and strikethrough, less what untrusted or streamed text must not
have: raw HTML is text, a link goes to http or https or is text, and there are no reference
definitions (one at the end would change what was shown long before). A line break stays one.
A TeX formula is ``["math", {"tex": its source, "display": True or absent}, ...]`` with the elements
of ``formula_tree`` in it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
from typing import Any, TypeAlias

from workbench.chats.formulas import formula
from workbench.chats.markdown_formulas import add_formulas, take_paragraph
from workbench.errors import MissingPackageError

Node: TypeAlias = list[Any]
"""``[tag, attributes or None, *children]``; plain data that JSON carries as it is."""

_WORDS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "em", "strong", "s", "a", "code", "math")
_PARTS = ("ul", "ol", "li", "blockquote", "pre", "table", "thead", "tbody", "tr", "th", "td")
TAGS = frozenset((*_WORDS, *_PARTS, "img", "hr", "br"))
"""Every tag that a tree can have, outside of formulas."""

LONGEST = 16_384
"""Characters of one paragraph, heading or cell beyond which it is shown as plain text."""

_DEEPEST_BLOCK, _DEEPEST_NODE, _DEEPEST_BRACKET, _MOST_BRACKETS = 24, 40, 16, 500
_TOKENS = {
    "paragraph": "p",
    "bullet_list": "ul",
    "ordered_list": "ol",
    "list_item": "li",
    "blockquote": "blockquote",
    "table": "table",
    "thead": "thead",
    "tbody": "tbody",
    "tr": "tr",
    "th": "th",
    "td": "td",
    "em": "em",
    "strong": "strong",
    "s": "s",
    "link": "a",
}
_WEB = re.compile(r"https?://[^/?#\s\\]", re.IGNORECASE)
_BARE = re.compile(r"(?<![A-Za-z0-9])https?://[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_LINE_END = re.compile(r"\r\n?")
_CJK = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a top-level block stands in its source.

    Attributes:
        start: Its first line, from 0.
        end: The line after its last.
        kind: Type of its token: ``bullet_list_open``, ``fence``, ...
        markup: Characters of a fence.
        closed: Whether a fence has its closing line.
        items: First lines of the items of a list, or of the rows of a table's body.
    """

    start: int
    end: int
    kind: str
    markup: str
    closed: bool
    items: tuple[int, ...]


def parse(text: str) -> list[Node]:
    """Return the top-level blocks of a Markdown text.

    Raises:
        MissingPackageError: markdown-it-py is not installed.
    """
    return parse_places(clean(text))[0]


def clean(text: str) -> str:
    r"""Return the text with plain line ends and with nothing unseen that steers how it is shown.

    A control that overrides, embeds or isolates the direction of writing (U+202A to U+202E, U+2066
    to U+2069) becomes visible as ``⟨U+202E⟩``, also in code, where it can make a line read as what
    it does not do. Arabic and Hebrew need none: each block finds its own direction. The marks
    U+200E and U+200F, which cannot turn other letters round, stay. Control characters become their
    pictures (U+241B for escape), lone surrogates U+FFFD.
    """
    return _UNSEEN.sub(_seen, _LINE_END.sub("\n", text))


def _seen(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code) if code else "\ufffd"
    if code == 0x7F:
        return "\u2421"
    return "\ufffd" if code < 0xA0 or code >= 0xD800 else f"\u27e8U+{code:04X}\u27e9"


def parse_places(source: str) -> tuple[list[Node], list[Place]]:
    """Return the top-level blocks of a cleaned text, and where each stands in it."""
    tokens: list[Any] = []
    parser = _parser()
    parser.block.parse(source, parser, {}, tokens)
    builder = _Builder()
    for token in tokens:
        builder.add(token)
    return builder.blocks, _places(tokens)


def _places(tokens: list[Any]) -> list[Place]:
    """Return the places of the tokens at the top level."""
    found: list[Place] = []
    start = 0
    for index, token in enumerate(tokens):
        if token.level == 0 and token.nesting >= 0:
            start = index
        if token.level == 0 and token.nesting <= 0:
            found.append(_place(tokens[start : index + 1]))
    return found


def _place(tokens: list[Any]) -> Place:
    """Return the place of one top-level block, given by all its tokens."""
    first = tokens[0]
    start, end = first.map
    items: list[int] = []
    if first.type.endswith("list_open"):
        items = [t.map[0] for t in tokens if t.type == "list_item_open" and t.level == 1]
    elif first.type == "table_open":
        rows = sum(t.type == "tr_open" and t.level == 2 for t in tokens) - 1
        items = [start + 2 + row for row in range(rows)]
    lines = first.content.count("\n") + (not first.content.endswith("\n") and first.content != "")
    return Place(
        start=start,
        end=end,
        kind=first.type,
        markup=first.markup,
        closed=first.type == "fence" and end - start - 1 > lines,
        items=tuple(items),
    )


@functools.cache
def _parser() -> Any:
    if importlib.util.find_spec("markdown_it") is None:
        raise MissingPackageError(
            "Showing Markdown needs the package markdown-it-py, which is not installed.",
            hint="Install it with: pip install 'llm-workbench[lab]'.",
        )
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 100})
    parser.enable(["table", "strikethrough"]).disable("reference")
    parser.block.ruler.before("table", "too_deep", _too_deep)
    parser.inline.ruler.at("emphasis", _emphasis)
    add_formulas(parser)
    parser.validateLink = _is_web  # type: ignore[method-assign, assignment]
    return parser


def _is_web(address: str) -> bool:
    return _WEB.match(address) is not None


def _emphasis(state: Any, silent: bool) -> bool:
    """Take a run of ``*`` or ``_`` as CommonMark does, and let it stand between CJK letters.

    CommonMark's rule looks for spaces around words, so without this ``**「語」**は`` is not bold.
    """
    from markdown_it.rules_inline.state_inline import Delimiter

    source, start = state.src, state.pos
    marker = source[start]
    if silent or marker not in "*_":
        return False
    scanned = state.scanDelims(start, marker == "*")
    opens, closes, stop = scanned.can_open, scanned.can_close, start + scanned.length
    if marker == "*" and start > 0 and stop < len(source):
        before, after = source[start - 1], source[stop]
        opens = opens or (_CJK.match(before) is not None and not after.isspace())
        closes = closes or (_CJK.match(after) is not None and not before.isspace())
    for _ in range(scanned.length):
        state.push("text", "", 0).content = marker
        place = len(state.tokens) - 1
        state.delimiters.append(
            Delimiter(ord(marker), scanned.length, place, -1, open=opens, close=closes)
        )
    state.pos = stop
    return True


def _too_deep(state: Any, start: int, end: int, silent: bool) -> bool:
    """Take lines that are nested too deeply as one paragraph; the parser would drop them."""
    if silent or state.level < _DEEPEST_BLOCK:
        return False
    stop = start + 1
    while stop < end and not state.isEmpty(stop) and state.sCount[stop] >= state.blkIndent:
        stop += 1
    take_paragraph(state, start, stop)
    return True


class _Builder:
    """Makes the tree from the parser's tokens, block and inline."""

    def __init__(self) -> None:
        self.blocks: list[Node] = []
        self._stack: list[Node] = [self.blocks]
        self._links = 0

    def add(self, token: Any) -> None:
        """Take the next token."""
        if token.nesting == 1:
            self._open(token)
        elif token.nesting == -1:
            self._close()
        elif token.type == "inline":
            self._inline(token.content)
        else:
            self._leaf(token)

    def _open(self, token: Any) -> None:
        name = token.type.removesuffix("_open")
        tag = token.tag if name == "heading" else _TOKENS[name]
        top = self._stack[-1]
        first = tag == "p" and len(top) == 2 and top is not self.blocks and top[0] == "li"
        if first or len(self._stack) > _DEEPEST_NODE:
            # An item's first paragraph is the item's text, so a later blank line changes nothing.
            self._stack.append(top)
            return
        node: Node = [tag, _attributes(tag, token)]
        self._links += tag == "a"
        top.append(node)
        self._stack.append(node)

    def _close(self) -> None:
        node = self._stack.pop()
        if node is not self._stack[-1]:
            self._find_links(node)
            self._links -= node[0] == "a"

    def _inline(self, content: str) -> None:
        top = self._stack[-1]
        if len(content) > LONGEST or _bracket_depth(content) > _DEEPEST_BRACKET:
            self._text(content)
            return
        children: list[Any] = []
        parser = _parser()
        parser.inline.parse(content, parser, {}, children)
        for child in children:
            self.add(child)
        self._find_links(top)

    def _leaf(self, token: Any) -> None:
        top = self._stack[-1]
        if token.type in ("text", "text_special"):
            self._text(token.content)
        elif token.type == "formula":
            self._formula(token)
        elif token.type in ("softbreak", "hardbreak"):
            top.append(["br", None])
        elif token.type == "hr":
            top.append(["hr", None])
        elif token.type == "code_inline":
            top.append(["code", None, token.content])
        elif token.type == "image":
            top.append(["img", {"src": token.attrs["src"], "alt": _alternative(token)}])
        else:  # a fence or indented lines
            language = token.info.split(maxsplit=1)[0][:40] if token.info.strip() else ""
            code: Node = ["code", None, *([token.content] if token.content else [])]
            top.append(["pre", {"lang": language} if language else None, code])

    def _formula(self, token: Any) -> None:
        node = formula(token.content, token.info, token.meta["display"])
        if node is not None:
            self._stack[-1].append(node)
            return
        for index, line in enumerate(token.content.split("\n")):
            if index:
                self._stack[-1].append(["br", None])
            self._text(line)

    def _text(self, text: str) -> None:
        top = self._stack[-1]
        if not text:
            return
        if len(top) > 2 and isinstance(top[-1], str):
            top[-1] += text
        else:
            top.append(text)

    def _find_links(self, node: Node) -> None:
        """Make links of the bare web addresses in a finished node's own text."""
        if self._links or node is self.blocks:
            return
        if not any(isinstance(child, str) and "://" in child for child in node[2:]):
            return
        children: list[Any] = []
        for child in node[2:]:
            children.extend(_linked(child) if isinstance(child, str) else [child])
        node[2:] = children


def _attributes(tag: str, token: Any) -> dict[str, Any] | None:
    if tag == "a":
        return {"href": token.attrs["href"]}
    if tag == "ol" and token.attrs.get("start", 1) != 1:
        return {"start": token.attrs["start"]}
    if tag in ("th", "td") and token.attrs.get("style"):
        return {"align": str(token.attrs["style"]).removeprefix("text-align:")}
    return None


def _alternative(image: Any) -> str:
    """Return the text of an image's description, without its marks."""
    waiting, found = list(image.children or ())[::-1], []
    while waiting:
        token = waiting.pop()
        if token.type == "image":
            waiting.extend((token.children or ())[::-1])
        else:
            found.append(" " if token.type.endswith("break") else token.content)
    return "".join(found)


def _bracket_depth(text: str) -> int:
    """Return how many square brackets are open at once: what costs the parser its time.

    More than 500 in all count as if they were.
    """
    if text.count("[") <= _DEEPEST_BRACKET:
        return 0
    if text.count("[") > _MOST_BRACKETS:
        return _MOST_BRACKETS
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]]", text):
        depth = depth + 1 if bracket == "[" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def _linked(text: str) -> list[Any]:
    """Return text with its bare web addresses as links, less the punctuation that ends them."""
    found: list[Any] = []
    position = 0
    for match in _BARE.finditer(text):
        address = match[0].rstrip(".,:;!?'*~")
        while address.endswith((")", "]")) and address.count("(") + address.count("[") < (
            address.count(")") + address.count("]")
        ):
            address = address[:-1].rstrip(".,:;!?'*~")
        if not _is_web(address):
            continue
        if match.start() > position:
            found.append(text[position : match.start()])
        found.append(["a", {"href": address}, address])
        position = match.start() + len(address)
    if position < len(text):
        found.append(text[position:])
    return found
