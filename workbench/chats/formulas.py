"""TeX formulas as a small tree of MathML, read by latex2mathml within bounds.

What the converter refuses, does not know, or would need long for is no formula: it stays text. A
formula may not define commands (one that doubles itself never ends) and is short and shallow.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from workbench.chats.formula_tree import DEEPEST, RefusedError, children_of

LONGEST_FORMULA = 2_000
"""Characters of one formula beyond which it stays text."""

_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_COMMAND = re.compile(r"\\(?:([A-Za-z]+)|.)", re.DOTALL)
_OWN = re.compile(r"(?:re|provide)?newcommand|[egx]?def|let|DeclareMathOperator|newenvironment")
_NAMED = {
    "langle": "\u27e8",
    "rangle": "\u27e9",
    "lfloor": "\u230a",
    "rfloor": "\u230b",
    "lceil": "\u2308",
    "rceil": "\u2309",
    "arg": r"\operatorname{arg}",
    "tag": r"\qquad\tag",
    "nonumber": "",
    "notag": "",
}
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([A-Za-z]+)\*?\}")
_ENVIRONMENTS = {
    **dict.fromkeys(("aligned", "align", "eqnarray", "split", "flalign"), "align*"),
    **dict.fromkeys(("gathered", "gather", "multline"), "matrix"),
    **dict.fromkeys(("equation", "displaymath", "math"), ""),
    "dcases": "cases",
}
_OPERATOR = re.compile(
    r"\\operatorname\s*(\*?)\s*\{([^{}]*)\}"
    r"|\\mathop\s*\{\s*\\(?:mathrm|text|rm)\s*\{([^{}]*)\}\s*\}"
)
_LABEL = re.compile(r"\\label\s*\{[^{}]*\}")
_UNEQUAL = re.compile(r"\\not\s*=")
_ROW_GAP = re.compile(r"(?<!\\)(\\\\)\s*\[\s*-?[0-9.]+\s*[a-z]{2}\s*\]")


@functools.cache
def formula_style() -> str:
    """Return the CSS of formulas; the class ``wb-formula`` is on them, or on what holds them."""
    return Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


@functools.lru_cache(maxsize=128)  # the end of an answer that grows is parsed many times
def formula(source: str, tex: str, display: bool) -> list[Any] | None:
    """Return the node of a formula, or None where it must stay text.

    Args:
        source: It as written, with its delimiters; the node carries it.
        tex: What stands between the delimiters.
        display: Whether it stands on lines of its own.

    Returns:
        ``["math", {"tex": source}, *children]``, with ``"display": True`` where it is one. Nobody
        may change it: equal formulas share it.
    """
    if len(tex) > LONGEST_FORMULA or _brace_depth(tex) > DEEPEST:
        return None
    try:
        from latex2mathml.converter import convert_to_element

        root = convert_to_element(_prepared(tex), display="block" if display else "inline")
        children = children_of(root, display=display)
    except Exception:  # the converter raises many kinds, and a formula must not cost the answer
        return None
    if not children:
        return None
    return ["math", {"tex": source, **({"display": True} if display else {})}, *children]


def _brace_depth(tex: str) -> int:
    depth = deepest = 0
    for brace in _BRACES.findall(tex):
        depth += (brace == "{") - (brace == "}")
        deepest = max(deepest, depth)
    return deepest


def _prepared(tex: str) -> str:
    """Return TeX of the same meaning in the words that the converter knows."""
    if any(_OWN.fullmatch(found[1] or "") for found in _COMMAND.finditer(tex)):
        raise RefusedError
    tex = _ROW_GAP.sub(r"\1 ", _UNEQUAL.sub(r"\\neq ", _LABEL.sub("", tex)))
    tex = _OPERATOR.sub(_operator, tex)
    tex = _COMMAND.sub(lambda found: _NAMED.get(found[1] or "", found[0]), tex)
    return _ENVIRONMENT.sub(_environment, tex).strip()


def _operator(found: re.Match[str]) -> str:
    name = found[2] if found[3] is None else found[3]
    name = re.sub(r"(?:\\[,;:! ]|~|\s)+", "\u2009", name.strip())  # plain spaces would be lost
    if not re.fullmatch("[A-Za-z\u2009]+", name):
        return rf"\mathrm{{{name}}}"
    star = "*" if found[3] is not None else found[1]
    return rf"\operatorname{star}{{{name}}}"


def _environment(found: re.Match[str]) -> str:
    name = _ENVIRONMENTS.get(found[2])
    if name is None:
        return found[0]
    return f"\\{found[1]}{{{name}}}" if name else ""
