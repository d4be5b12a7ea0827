"""What differs between two texts: spans of words, and the first place where they part."""

from __future__ import annotations

import bisect
import dataclasses
import html
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from workbench.chats.markdown import clean

Kind = Literal["same", "removed", "added"]

_WORDS = re.compile(
    r"[\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f]+"  # a run of katakana is a word
    r"|[\u2e80-\u2fdf\u3005-\u3007\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"  # kanji and hiragana, one by one
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"  # Thai, Lao, Burmese, Khmer: no spaces either
    r"|[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff66-\uff9f"
    r"\U00020000-\U0003ffff]+"
    r"|\n|[^\S\n]+|.",
    re.DOTALL,
)
_MOST_EDITS = 128  # of one piece before it is cut at words that occur once
_DEEPEST = 12
_Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A stretch of text: in both (``same``), only in the first (``removed``), or in the second."""

    kind: Kind
    text: str


def words(text: str) -> list[str]:
    """Cut a text into words, which joined are the text.

    A word is a run of letters and digits, a run of katakana, one kanji or hiragana (and one
    character of the other scripts that write no spaces), a run of spaces, or one mark.
    """
    return _WORDS.findall(text)


def first_divergence(first: Sequence[Any], second: Sequence[Any]) -> int | None:
    """Return the first index at which two texts or lists of tokens differ; None if they do not.

    Where one is the beginning of the other, it is the shorter one's length.
    """
    if first == second:
        return None
    low, high = 0, min(len(first), len(second))
    while low < high:  # the first `low` are equal, the first `high + 1` are not
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def differences(first: str, second: str) -> tuple[Span, ...]:
    """Return the spans that lead from the first text to the second, word by word.

    The texts of ``same`` and ``removed`` joined are the first text, of ``same`` and ``added`` the
    second. Few edits are found exactly, by the greedy algorithm of Myers (1986), An O(ND)
    difference algorithm, Algorithmica 1:251-266; where there are many, the texts are cut at words
    that occur once in both, and what has none of them counts as replaced whole. The time grows
    about linearly with the length.
    """
    a, b = words(first), words(second)
    pairs: list[_Pair] = []
    _match(a, b, 0, len(a), 0, len(b), pairs, 0)
    return _merged(_spans(a, b, pairs))


def differing_share(spans: Sequence[Span]) -> float:
    """Return the share of characters that are not the same, in [0, 1], over both texts."""
    same = sum(2 * len(span.text) for span in spans if span.kind == "same")
    other = sum(len(span.text) for span in spans if span.kind != "same")
    return other / (same + other) if same + other else 0.0


def shortened(spans: Sequence[Span], *, kept: int = 120, most: int = 6000) -> tuple[Span, ...]:
    """Return the spans for reading: long stretches that are the same are cut in their middle.

    Args:
        spans: From ``differences``.
        kept: Characters kept at both ends of such a stretch.
        most: Characters of all, about; what follows is counted only.
    """
    found: list[Span] = []
    shown = 0
    for index, span in enumerate(spans):
        if shown >= most:
            rest = sum(len(each.text) for each in spans[index:])
            return (*found, Span("same", f" … ({rest:,} further characters)"))
        text, longest = span.text, most - shown
        if span.kind == "same" and len(text) > 3 * kept:
            text = f"{text[:kept]} … ({len(text) - 2 * kept:,} the same) … {text[-kept:]}"
        elif len(text) > longest:
            text = f"{text[:longest]} … ({len(text) - longest:,} more)"
        found.append(Span(span.kind, text))
        shown += len(text)
    return tuple(found)


def difference_text(spans: Sequence[Span]) -> str:
    """Return the spans as one text for reading: ``[-removed-]`` and ``{+added+}``."""
    marks = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}
    return "".join(marks[span.kind].format(clean(span.text)) for span in spans)


def difference_html(spans: Sequence[Span], *, side: Literal["both", "first", "second"]) -> str:
    """Return the spans as HTML whose tags survive nbconvert's sanitiser; readable without CSS.

    Args:
        spans: From ``differences``.
        side: ``first`` shows the first text with what is only there in italics, ``second`` the
            second with what is only there bold, ``both`` marks as ``difference_text`` does.
    """
    left_out = {"first": "added", "second": "removed", "both": ""}[side]
    lines = [""]
    for span in spans:
        if span.kind == left_out:
            continue
        for index, part in enumerate(clean(span.text).split("\n")):
            if index:
                lines.append("")
            lines[-1] += _marked(span.kind, part, both=side == "both")
    return "".join(f"<div>{line or '&nbsp;'}</div>" for line in lines)


def _marked(kind: Kind, text: str, *, both: bool) -> str:
    shown = html.escape(text)
    if kind == "same" or not text:
        return shown
    if kind == "removed":
        return f'<span class="removed"><i>{f"[-{shown}-]" if both else shown}</i></span>'
    return f'<span class="added"><b>{"{+" + shown + "+}" if both else shown}</b></span>'


def _match(
    a: list[str], b: list[str], a0: int, a1: int, b0: int, b1: int, pairs: list[_Pair], depth: int
) -> None:
    """Add the pairs of equal words between a[a0:a1] and b[b0:b1], in order."""
    while a0 < a1 and b0 < b1 and a[a0] == b[b0]:
        pairs.append((a0, b0))
        a0, b0 = a0 + 1, b0 + 1
    tail: list[_Pair] = []
    while a0 < a1 and b0 < b1 and a[a1 - 1] == b[b1 - 1]:
        a1, b1 = a1 - 1, b1 - 1
        tail.append((a1, b1))
    if a0 < a1 and b0 < b1:
        found = _few_edits(a[a0:a1], b[b0:b1])
        if found is not None:
            pairs += [(a0 + i, b0 + j) for i, j in found]
        elif depth < _DEEPEST:
            cuts = _anchors(a, b, a0, a1, b0, b1)
            if cuts:
                for i, j in [*cuts, (a1, b1)]:
                    _match(a, b, a0, i, b0, j, pairs, depth + 1)
                    if i < a1:
                        pairs.append((i, j))
                    a0, b0 = i + 1, j + 1
    pairs += reversed(tail)


def _few_edits(a: list[str], b: list[str]) -> list[_Pair] | None:
    """Return the pairs of a shortest edit, or None when it takes more than ``_MOST_EDITS``."""
    furthest = {1: 0}  # diagonal (place in a less place in b) to the furthest place in a
    history: list[dict[int, int]] = []
    for edits in range(min(_MOST_EDITS, len(a) + len(b)) + 1):
        history.append(dict(furthest))
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (
                diagonal != edits
                and furthest.get(diagonal - 1, -1) < furthest.get(diagonal + 1, -1)
            )
            i = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            j = i - diagonal
            while i < len(a) and j < len(b) and a[i] == b[j]:
                i, j = i + 1, j + 1
            furthest[diagonal] = i
            if i >= len(a) and j >= len(b):
                return _walked(history, len(a), len(b))
    return None


def _walked(history: list[dict[int, int]], i: int, j: int) -> list[_Pair]:
    """Return the equal pairs on the way that ``_few_edits`` found, from its end."""
    pairs: list[_Pair] = []
    for edits in range(len(history) - 1, -1, -1):
        before, diagonal = history[edits], i - j
        down = diagonal == -edits or (
            diagonal != edits and before.get(diagonal - 1, -1) < before.get(diagonal + 1, -1)
        )
        came = diagonal + 1 if down else diagonal - 1
        start = before[came]
        begin = start if down else start + 1
        if edits == 0:
            begin = 0
        while i > begin:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        i, j = start, start - came
    return pairs[::-1]


def _anchors(a: list[str], b: list[str], a0: int, a1: int, b0: int, b1: int) -> list[_Pair]:
    """Return words that occur once in both pieces, as many as stand in the same order."""
    count_a, count_b = Counter(a[a0:a1]), Counter(b[b0:b1])
    places = {word: j for j, word in enumerate(b[b0:b1], b0) if count_b[word] == 1}
    shared = [(i, places[a[i]]) for i in range(a0, a1) if count_a[a[i]] == 1 and a[i] in places]
    ends: list[int] = []  # the least last place in b of a rising run of each length
    runs: list[int] = []
    before: list[int] = []
    for index, (_, j) in enumerate(shared):
        length = bisect.bisect_left(ends, j)
        before.append(runs[length - 1] if length else -1)
        if length == len(ends):
            ends.append(j)
            runs.append(index)
        else:
            ends[length], runs[length] = j, index
    found: list[_Pair] = []
    at = runs[-1] if runs else -1
    while at >= 0:
        found.append(shared[at])
        at = before[at]
    return found[::-1]


def _spans(a: list[str], b: list[str], pairs: list[_Pair]) -> list[Span]:
    """Return the spans between the pairs, those that follow one another joined."""
    spans: list[Span] = []
    at_a = at_b = 0
    same: list[str] = []
    for i, j in [*pairs, (len(a), len(b))]:
        if i > at_a or j > at_b:
            spans.append(Span("same", "".join(same)))
            same = []
            spans.append(Span("removed", "".join(a[at_a:i])))
            spans.append(Span("added", "".join(b[at_b:j])))
        if i < len(a):
            same.append(a[i])
        at_a, at_b = i + 1, j + 1
    spans.append(Span("same", "".join(same)))
    return [span for span in spans if span.text]


def _merged(spans: list[Span]) -> tuple[Span, ...]:
    """Join changes that only spaces part: a phrase that was replaced reads as one."""
    found: list[Span] = []
    removed = added = ""
    for index, span in enumerate(spans):
        inside = 0 < index < len(spans) - 1 and span.text.isspace() and (removed or added)
        if span.kind == "same" and not inside:
            found += [Span("removed", removed), Span("added", added), span]
            removed = added = ""
            continue
        removed += span.text if span.kind != "added" else ""
        added += span.text if span.kind != "removed" else ""
    found += [Span("removed", removed), Span("added", added)]
    return tuple(span for span in found if span.text)
