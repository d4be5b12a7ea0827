"""The converter's MathML built anew: known elements, known attributes, bounded lengths.

A formula carries no address, style, colour or handler, and what shifts or stretches is held to a
few widths of a letter, so that none covers what stands beside it. What browsers (MathML Core) lack
is said by other means: alphabets by their own characters, limits below their operator, lines in,
around and through a formula as a mark for the style sheet, broken lines as rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, TypeAlias
from xml.etree.ElementTree import Element

MathNode: TypeAlias = list[Any]
"""``[element, attributes or None, *children]``, as in the tree of Markdown."""

_SCRIPTS = ("msub", "msup", "msubsup", "mover", "munder", "munderover")
_TOKENS = ("mi", "mn", "mo", "mtext")
ELEMENTS = frozenset(
    (*_TOKENS, *_SCRIPTS, "mrow", "mspace", "mfrac", "msqrt", "mroot", "mtable", "mtr", "mtd")
) | {"mstyle", "mpadded", "mphantom"}
"""Every element that stands in a formula."""

_EM, _FLAG = r"-?[0-9]{1,2}(\.[0-9]{1,3})?em", "true|false"
ATTRIBUTES = {
    "mathvariant": "normal",
    **dict.fromkeys(("accent", "displaystyle", "fence", "largeop"), _FLAG),
    **dict.fromkeys(("movablelimits", "separator", "stretchy"), _FLAG),
    "form": "prefix|infix|postfix",
    "scriptlevel": "[0-2]",
    "linethickness": "0",
    "columnalign": "left|center|right",
    "data-line": "box|over|under|through|up|down|cross",
    **dict.fromkeys(("lspace", "rspace", "width", "minsize", "maxsize"), _EM),
}
"""Every attribute that an element of a formula can have: the pattern of its whole value."""

DEEPEST = 40
"""Elements within one another beyond which a formula stays text."""

_MOST_ELEMENTS, _MOST_ROWS, _MOST_BACK = 3_000, 60, 3.0
_NUMBERED = re.compile("&#[xX]([0-9A-Fa-f]{1,8});")
_ESCAPED = re.compile(r"\\([%_&#${}])")
_LENGTH = re.compile(r"(-?[0-9]*\.?[0-9]+)\s*(em|ex|mu|pt|px|cm|mm|in)?")
_EMS = {"em": 1, "ex": 0.5, "mu": 1 / 18, "pt": 0.1, "px": 0.07, "cm": 2.8, "mm": 0.28, "in": 7.2}
_SPACES = {"thinmathspace": 0.167, "mediummathspace": 0.222, "thickmathspace": 0.278}
_BOUNDS = {"lspace": (0, 1), "rspace": (0, 1), "width": (-0.35, 4), "minsize": (0, 3),
           "maxsize": (0, 3)}  # fmt: skip
_ARITY = {"mfrac": 2, "mroot": 2, **dict.fromkeys(_SCRIPTS, 2), "msubsup": 3, "munderover": 3}
_STACKED = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
_WITH_LIMITS = frozenset("∑∏∐⋃⋂⋁⋀⨁⨂⨀⨆") | {"lim", "max", "min", "sup", "inf"}
_ORDINARY = frozenset("∞∅⊤⊥∠")
_LINES = {
    "box": "box",
    "horizontalstrike": "through",
    "updiagonalstrike": "up",
    "downdiagonalstrike": "down",
    "updiagonalstrike downdiagonalstrike": "cross",
}
_MARKS = {"~": "˜", "^": "ˆ"}
_ACCENTS = frozenset("¯ˆ˜˙¨→←↔ˇ˘´`˚\u20db\u20dc")
_ALPHABETS = {
    "bold-italic": ("BOLD ITALIC", "BOLD"),
    "fraktur": ("FRAKTUR", "BLACK-LETTER"),
    "sans-serif-italic": ("SANS-SERIF ITALIC", "SANS-SERIF"),
}
_NEWLINE: MathNode = ["mspace", None]
_THIN: MathNode = ["mspace", {"width": "0.167em"}]


class RefusedError(Exception):
    """This formula stays text."""


@dataclasses.dataclass(slots=True)
class _Spent:
    """What a formula has used of its bounds: elements, rows, and ems that it goes back."""

    display: bool
    elements: int = 0
    rows: int = 0
    back: float = 0.0


def children_of(root: Element, *, display: bool) -> list[MathNode]:
    """Return what stands in the converter's ``math`` element.

    Raises:
        RefusedError: It is too much, or something that is not known.
    """
    return _row(_children(root, 0, _Spent(display)))


def _children(element: Element, depth: int, spent: _Spent) -> list[MathNode]:
    return [_node(child, depth + 1, spent) for child in element]


def _node(element: Element, depth: int, spent: _Spent) -> MathNode:
    """Return the node of an element and all within."""
    tag = element.tag
    spent.elements += 1
    spent.rows += tag == "mtr"
    if depth > DEEPEST or spent.elements > _MOST_ELEMENTS:
        raise RefusedError
    if tag in _TOKENS and not len(element):
        return _token(tag, element, spent)
    if tag == "mspace":
        broken = "linebreak" in element.attrib
        spent.rows += broken
        return _NEWLINE if broken else ["mspace", _attributes(element, spent)]
    children = _children(element, depth, spent)
    if tag in _STACKED and len(children) > _ARITY[tag]:  # a matrix comes with its brackets
        kept = _ARITY[tag] - 1
        children = [["mrow", None, *_row(children[:-kept])], *children[-kept:]]
    if spent.rows > _MOST_ROWS or len(children) != _ARITY.get(tag, len(children)):
        raise RefusedError
    if tag in _STACKED:
        return _script(tag, children)
    if tag in _ARITY:
        return _over(tag, element, children, spent)
    if tag in ("mtable", "mtr"):
        return [tag, _attributes(element, spent), *children]
    if tag == "mpadded" and "".join(element.itertext()) != "&#x029F8;":  # only a stroke overlaps
        tag = "mrow"
    children = _row(children)
    if tag == "menclose":
        return ["mrow", {"data-line": _LINES[element.attrib["notation"]]}, *children]
    if tag == "mrow" or tag in _TOKENS:  # a token with elements in it groups them
        return children[0] if len(children) == 1 else ["mrow", None, *children]
    if tag not in ELEMENTS:
        raise RefusedError
    return [tag, _attributes(element, spent), *children]


def _attributes(element: Element, spent: _Spent) -> dict[str, str] | None:
    """Return the attributes that are known and have a value that is."""
    found = {}
    for name, value in element.attrib.items():
        kept = _length(name, value, spent) if name in _BOUNDS else value
        if name in ATTRIBUTES and re.fullmatch(ATTRIBUTES[name], kept):
            found[name] = kept
    return found or None


def _length(name: str, value: str, spent: _Spent) -> str:
    """Return a length in ems within the bounds of its attribute, or "" where it is none."""
    if value.endswith("mathspace"):
        ems = _SPACES.get(value.removeprefix("negative"), 0.0)
        ems = -ems if value.startswith("negative") else ems
    elif match := _LENGTH.fullmatch(value.strip()):
        ems = float(match[1]) * _EMS[match[2] or "em"]
    else:
        return ""
    low, high = _BOUNDS[name]
    ems = min(max(ems, low), high)
    spent.back += max(-ems, 0.0)
    if spent.back > _MOST_BACK:
        raise RefusedError
    return f"{round(ems, 3):g}em"


def _token(tag: str, element: Element, spent: _Spent) -> MathNode:
    """Return a name, number, operator or text."""
    text = _NUMBERED.sub(_character, element.text or "")
    if tag == "mtext":
        text = _ESCAPED.sub(r"\1", text)
    elif re.match(r"\\[A-Za-z]", text):  # a command that the converter does not know
        raise RefusedError
    attributes = _attributes(element, spent) or {}
    variant = element.attrib.get("mathvariant", "normal")
    if variant != "normal":
        text = "".join(_styled(character, variant) for character in text)
    if tag == "mi":
        numbered = element.text != text and len(text) == 1  # one that is written upright
        if numbered and text.isascii() and text.isalpha():
            attributes["mathvariant"] = "normal"
        tag, text = _name_or_operator(text, attributes)
    elif tag == "mo" and text in _ORDINARY:
        tag = "mi"
    elif tag == "mo" and text[:1].isalpha() and len(text) > 1:
        attributes.update(lspace="0em", rspace="0em")
    elif text in ("|", "‖") and not {"minsize", "form", "lspace"} & attributes.keys():
        attributes.update(stretchy="false", lspace="0em", rspace="0em")
    elif "minsize" in attributes:
        attributes["stretchy"] = "true"
    return [tag, attributes or None, *([text] if text else [])]


def _name_or_operator(text: str, attributes: dict[str, str]) -> tuple[str, str]:
    """Tell what a name is: the converter also calls relations and brackets names."""
    kind = unicodedata.category(text) if len(text) == 1 else ""
    if kind in ("Ps", "Pe"):
        attributes["stretchy"] = "false"
        return "mo", text
    if text == "~":
        return "mo", "\u223c"
    return ("mo" if kind == "Sm" or text in (":", ";") else "mi"), text


def _character(found: re.Match[str]) -> str:
    """Return the character of a number, or U+FFFD for one that is unseen or steers the writing."""
    code = int(found[1], 16)
    character = chr(code) if code <= 0x10FFFF else "\ufffd"
    return "\ufffd" if unicodedata.category(character)[0] == "C" else character


def _styled(character: str, variant: str) -> str:
    """Return the character of a mathematical alphabet; itself where there is none."""
    short = re.sub("LATIN |GREEK |LETTER ", "", unicodedata.name(character, ""))
    for alphabet in _ALPHABETS.get(variant, (variant.upper(),)):
        for name in (f"MATHEMATICAL {alphabet} {short}", f"{alphabet} {short}"):
            try:
                return unicodedata.lookup(name)
            except KeyError:
                continue
    return character


def _script(tag: str, children: list[MathNode]) -> MathNode:
    """Return a base with what stands at its corners, or above and below where it takes limits."""
    base = children[0]
    if base[0] == "mo" and (base[-1] in _WITH_LIMITS or "movablelimits" in (base[1] or {})):
        moving = ["mo", {**(base[1] or {}), "movablelimits": "true"}, *base[2:]]
        return [_STACKED[tag], None, moving, *children[1:]]
    return [tag, None, *children]


def _over(tag: str, element: Element, children: list[MathNode], spent: _Spent) -> MathNode:
    """Return a fraction, a root, or a base with something above or below it."""
    attributes = _attributes(element, spent) or {}
    base, mark = children[:2]
    if tag in ("mover", "munder") and mark[0] == "mo" and len(mark) > 2:
        text = _MARKS.get(mark[2], mark[2])
        if text == "―":  # a font has no bar of any width
            return ["mrow", {"data-line": "over" if tag == "mover" else "under"}, base]
        if tag == "mover" and text in _ACCENTS:
            wide = "true" if base[0] == "mrow" else "false"
            attributes["accent"] = "true"
            children = [base, ["mo", {"stretchy": (mark[1] or {}).get("stretchy", wide)}, text]]
    return [tag, attributes or None, *children]


def _row(children: Sequence[MathNode]) -> list[MathNode]:
    """Return what stands side by side, with the spaces around names; broken lines become rows."""
    if any(child is _NEWLINE for child in children):
        lines: list[list[MathNode]] = [[]]
        for child in children:
            if child is _NEWLINE:
                lines.append([])
            else:
                lines[-1].append(child)
        rows = [["mtr", None, ["mtd", None, *_row(line)]] for line in lines if line]
        return [["mtable", {"displaystyle": "true"}, *rows]]
    found: list[MathNode] = []
    for child in children:
        last = found[-1] if found else None
        if last is not None and _is_letter(child) and last[0] == "mi" and _upright(last):
            found[-1] = ["mi", None, last[2] + child[2]]
            continue
        found.append(child)
    spaced = found[:1]
    for before, after in itertools.pairwise(found):
        if _needs_space(before, after):
            spaced.append(_THIN)
        spaced.append(after)
    return spaced


def _is_letter(node: MathNode) -> bool:
    return node[0] == "mi" and (node[1] or {}).get("mathvariant") == "normal" and len(node) == 3


def _upright(node: MathNode) -> bool:
    return _is_letter(node) or (node[1] is None and len(node) == 3 and len(node[2]) > 1)


def _needs_space(before: MathNode, after: MathNode) -> bool:
    """Tell whether a name such as log stands next to what is not bracketed."""
    first, second = _core(before), _core(after)
    if _is_name(first):
        opens = second[0] == "mrow" and len(second) > 2 and second[2][0] == "mo"
        return _is_name(second) or (second[0] not in ("mo", "mspace", "mtext") and not opens)
    closing = first[0] == "mo" and first[-1] in (")", "]", "}", "!")
    return _is_name(second) and (closing or first[0] not in ("mo", "mspace", "mtext"))


def _core(node: MathNode) -> MathNode:
    """Return the base of scripts and limits."""
    while node[0] in _SCRIPTS and len(node) > 2:
        node = node[2]
    return node


def _is_name(node: MathNode) -> bool:
    text = node[-1]
    return node[0] in ("mi", "mo") and isinstance(text, str) and len(text) > 1 and text[0].isalpha()
