r"""Where a formula stands in Markdown: ``$...$``, ``$$...$$``, ``\(...\)`` and ``\[...\]``.

A lone dollar is money far more often than mathematics, so ``$5 and $10`` stays text. Each rule
looks no further than one character past the closing mark: what comes later changes nothing, so a
text that grows can be shown as it comes.
"""

from __future__ import annotations

import re
from typing import Any

from workbench.chats.formulas import LONGEST_FORMULA

_INLINE = re.compile(
    r"""
    \$(?![\s$])  (?P<dollar> (?:[^\\$`\n]|\\[^`\n])++ ) (?<!\s) \$(?![0-9$])
  | \$\$(?!\$)   (?P<dollars> (?:[^\\$`]|\\[^`]|\$(?!\$))++ ) \$\$
  | \\\(         (?P<round> (?:[^\\`]|\\[^()`])++ ) \\\)
  | \\\[         (?P<square> (?:[^\\`]|\\[^\[\]`])++ ) \\\]
    """,
    re.VERBOSE,
)
_OPENING = re.compile(r"\$\$(?!\$)|\\\[")
_CLOSING = {
    "$$": re.compile(r"\\.|(\$\$)", re.DOTALL),
    r"\[": re.compile(r"\\[^\]]|(\\\])", re.DOTALL),
}
_SIGN = re.compile(r"[\\^_{}]")
_WORDS = re.compile(r"[A-Za-z]{2,}\s+[A-Za-z]{2,}")
_PRICE = re.compile(r"[0-9].*\s[A-Za-z]{2,}", re.DOTALL)
_GOES_ON = re.compile("[A-Za-z]")
_ENDS_WELL = re.compile(r".*[A-Za-z0-9)}\]']", re.DOTALL)


def add_formulas(parser: Any) -> None:
    """Teach a parser the rules; it gives tokens ``formula`` (content the source, info the TeX)."""
    parser.inline.ruler.before("escape", "formula", _inline)
    places = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.before("fence", "formula", _lines, places)


def _inline(state: Any, silent: bool) -> bool:
    """Take a formula that begins here and is closed in this paragraph."""
    source, start = state.src, state.pos
    if source[start] not in "$\\":
        return False
    found = _INLINE.match(source, start, state.posMax)
    if found is None:
        return False
    kind = str(found.lastgroup)
    before = source[start - 1] if start else ""
    if not _is_formula(kind, found[kind], before, source[found.end() : found.end() + 1]):
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.info = found[0], found[kind].strip()
        token.meta = {"display": kind in ("dollars", "square")}
    state.pos = found.end()
    return True


def _is_formula(kind: str, tex: str, before: str, after: str) -> bool:
    """Tell mathematics from money, shell variables and escaped brackets."""
    tex = tex.strip()
    if not tex or len(tex) > LONGEST_FORMULA:
        return bool(tex) and kind != "dollar"
    signed = _SIGN.search(tex) is not None
    if not signed and (_PRICE.match(tex) or ("=" not in tex and _WORDS.search(tex))):
        return False
    if kind == "square":
        return len(tex) > 1 and not tex.isdigit()
    if before == "$" or (kind == "dollar" and before.isascii() and before.isalnum()):
        return kind == "round"
    if kind == "dollar" and _GOES_ON.match(after):  # $n$th, but not $HOME/$USER
        return (signed or len(tex) == 1) and _ENDS_WELL.fullmatch(tex) is not None
    return True


def _lines(state: Any, start: int, end: int, silent: bool) -> bool:
    r"""Take the lines from one that begins with ``$$`` or ``\[`` as one paragraph.

    They end with the closing mark, at an empty line, or where a formula would be too long; whether
    it is closed does not matter, so that no line's part depends on lines that are still to come.
    """
    if state.is_code_block(start):
        return False
    begin = state.bMarks[start] + state.tShift[start]
    opening = _OPENING.match(state.src, begin, state.eMarks[start])
    if opening is None:
        return False
    place = _closed(state, opening[0], opening.end(), start)
    if place is not None and state.src[place : state.eMarks[start]].strip():
        return False  # it goes on as a sentence does
    if silent:
        return True
    stop = start + 1
    while place is None and stop < end and state.bMarks[stop] - begin < LONGEST_FORMULA:
        if state.isEmpty(stop) or state.sCount[stop] < state.blkIndent:
            break
        place = _closed(state, opening[0], state.bMarks[stop] + state.tShift[stop], stop)
        stop += 1
    take_paragraph(state, start, stop)
    return True


def take_paragraph(state: Any, start: int, stop: int) -> None:
    """Take the lines from ``start`` up to ``stop`` as one paragraph, within a rule of blocks."""
    state.line = stop
    token = state.push("paragraph_open", "p", 1)
    token.map = [start, stop]
    token = state.push("inline", "", 0)
    token.content = state.getLines(start, stop, state.blkIndent, False).strip()
    token.children = []
    state.push("paragraph_close", "p", -1)


def _closed(state: Any, opening: str, begin: int, line: int) -> int | None:
    """Return the position after the closing mark on a line, or None where there is none."""
    for found in _CLOSING[opening].finditer(state.src, begin, state.eMarks[line]):
        if found[1]:
            return int(found.end())
    return None
