"""A text that comes in pieces is shown as the whole text is, whatever the pieces are."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.chats import markdown_stream
from workbench.chats.markdown import parse
from workbench.chats.markdown_stream import MarkdownStream, Patch, apply_patch

PIECES = [
    "a",
    "b c",
    " ",
    "\n",
    "\n\n",
    "- ",
    "1. ",
    "2",
    ". ",
    "|",
    "|---|\n",
    "| a | b |\n",
    "```",
    "`",
    "~~~",
    "\n```\n",
    "*",
    "**",
    "_",
    "~~",
    "[",
    "]",
    "(http://x.y",
    "](https://a.b)",
    ")",
    "!",
    "#",
    "# ",
    "> ",
    ">",
    "  ",
    "    ",
    "\t",
    "---",
    "===",
    "=",
    "<b>",
    "&am",
    "p;",
    "http",
    "://",
    "ex.com",
    "日本",
    "。",
    "「",
    "\r",
    "\r\n",
    "\\",
    "10",
    "+ ",
    "\u202e",
    "\u0000",
    "word word",
    "  \n",
    "- - ",
    "* ",
    "-",
    "1) ",
    "\u3000",
    "\ud800",
    "$",
    "$$",
    "\n$$\n",
    "$x_1$",
    "$$a$$",
    "\\(",
    "\\)",
    "\\[",
    "\n\\]\n",
    "^2",
    "$5",
]
ANSWER = (
    "# A title\n\nSome **bold** text with `code`, *more*, and https://a.b/c_d here.\nA line.\n\n"
    "- one **item**\n- two\n  - nested `x`\n\n1. first\n2. second\n\n   more\n\n"
    "```python\nfor i in range(10):\n    print(i)  # `tick`\n\n```\n\n| a | b |\n|---|:--|\n"
    "| 1 | 2 |\n| *3* | four words in here |\n\n> a quote\n> of two lines\n\n"
    "日本語の**「文章」**です。\n\n"
    "It costs $5 or $6, with $x^2$ and \\(y_1\\) in it:\n$$\n\\frac{a}{b}\n- c\n$$\nand so on.\n\n"
)


class Always(MarkdownStream):
    """Parses whenever it cannot be sure, so that every state is exact."""

    def _worth_parsing(self) -> bool:
        return True


class Seldom(MarkdownStream):
    """Parses as seldom as under load."""

    def _worth_parsing(self) -> bool:
        return self._size > len(self._tail)


def streamed(stream: MarkdownStream, pieces: list[str]) -> list[Any]:
    """Return the blocks that the patches make, seen to be what the stream says they are."""
    blocks: list[Any] = []
    for piece in pieces:
        patch = stream.add(piece)
        before = copy.deepcopy(blocks)
        after = apply_patch(blocks, patch)
        assert blocks == before
        assert after == stream.blocks
        blocks = after
    return apply_patch(blocks, stream.done())


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_after_every_piece_it_is_what_the_text_so_far_is(pieces: list[str]) -> None:
    stream, blocks = Always(), []
    for index, piece in enumerate(pieces):
        blocks = apply_patch(blocks, stream.add(piece))
        if not piece.endswith("\r"):  # the line feed may follow
            assert blocks == stream.blocks == parse("".join(pieces[: index + 1]))
    assert apply_patch(blocks, stream.done()) == parse("".join(pieces))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_in_the_end_it_is_what_the_whole_text_is(pieces: list[str]) -> None:
    whole = parse("".join(pieces))
    assert streamed(Seldom(), pieces) == whole
    assert streamed(MarkdownStream(), list("".join(pieces))) == whole


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=60), st.integers(1, 7))
def test_any_text_at_all(text: str, size: int) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert streamed(Always(), pieces) == parse(text)


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_an_answer(size: int) -> None:
    pieces = [ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]
    for stream in (Always(), Seldom(), MarkdownStream()):
        assert streamed(stream, pieces) == parse(ANSWER)


FORMULAS = ["$", "$$", "x^2", "\\(", "\\)", "\\[", "\\]", "$$\n", "\n$$\n", "\n\\[\n", "$x$", "\\",
            "\\frac{a}{b}", "$5", " and ", "=", "a", "5", "\n", "\n\n", "- ", "> ", "  ", "| ",
            "|---|\n", "*", "`", "```\n", "1. ", "t", "th ", "_"]  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(FORMULAS), max_size=25))
def test_formulas_at_every_cut(pieces: list[str]) -> None:
    stream, blocks = Always(), []
    for index, piece in enumerate(pieces):
        blocks = apply_patch(blocks, stream.add(piece))
        assert blocks == parse("".join(pieces[: index + 1]))
    assert streamed(Seldom(), pieces) == parse("".join(pieces))
    assert streamed(MarkdownStream(), list("".join(pieces))) == parse("".join(pieces))


def test_a_formula_is_text_until_it_closes() -> None:
    stream = Always()
    for piece in "so $x_1":
        stream.add(piece)
    assert stream.blocks == [["p", None, "so $x_1"]]
    patch = stream.add("$")
    assert patch["depth"] == 1
    assert patch["blocks"][1][:2] == ["math", {"tex": "$x_1$"}]
    stream.add("\n$$\n1 + ")
    assert stream.blocks[1] == ["p", None, "$$", ["br", None], "1 +"]
    stream.add("1\n$$")
    assert stream.blocks[1][2][1] == {"tex": "$$\n1 + 1\n$$", "display": True}


def test_plain_growth_is_appended_and_parsed_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = MarkdownStream()
    stream.add("Some words")
    monkeypatch.setattr(markdown_stream, "parse_places", None)  # a parse would fail
    assert stream.add(" and more, here") == {"append": " and more, here"}
    assert stream.add("。日本 ") == {"append": "。日本"}
    assert stream.add("x") == {"append": " x"}


def test_code_grows_by_appending_until_its_fence_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = MarkdownStream()
    stream.add("Text\n\n```js\nlet a")
    with monkeypatch.context() as patched:
        patched.setattr(markdown_stream, "parse_places", None)
        assert stream.add(" = `x`;\n# *no* [mark](") == {"append": " = `x`;\n# *no* [mark]("}
    stream.add("\n```\n")
    stream.add("after")
    assert [block[0] for block in stream.blocks] == ["p", "pre", "p"]


def test_an_item_more_leaves_the_items_before_alone() -> None:
    stream = Always()
    for number in range(50):
        stream.add(f"- item {number}\n")
    patch = stream.add("- last")
    assert patch == {"depth": 1, "keep": 50, "blocks": [["li", None, "last"]]}


class Counted(MarkdownStream):
    """Counts the characters that are parsed, with no clock in the way."""

    parsed = 0

    def _worth_parsing(self) -> bool:
        self._parsed_at = float("inf")
        return super()._worth_parsing()

    def _parse(self) -> Patch:
        self.parsed += len(self._tail) + self._size
        return super()._parse()


UNITS = {
    "answer": ANSWER,
    "paragraph": "some **bold** words and `code` in it, *so* ",
    "items": "- item with **bold** and `code`\n",
    "nested": "  - item with **bold** and `code`\n",
    "rows": "| 1 | *2* |\n",
    "quote": "> words *and* words\n",
    "code": "    x = `a`[*b*]\n",
    "ticks": "`x\n",
    "brackets": "[a](",
}
STARTS = {"nested": "- top\n", "rows": "| a | b |\n|---|---|\n", "code": "```\n", "ticks": "```\n"}


def uneven(text: str) -> list[str]:
    """Cut a text as tokens would."""
    chance, pieces, at = random.Random(1), [], 0
    while at < len(text):
        size = chance.randint(2, 7)
        pieces.append(text[at : at + size])
        at += size
    return pieces


@pytest.mark.parametrize("kind", UNITS)
def test_parsing_and_traffic_stay_in_proportion_to_the_text(kind: str) -> None:
    costs = []
    for size in (4_000, 12_000):
        text = STARTS.get(kind, "") + UNITS[kind] * (size // len(UNITS[kind]))
        pieces = uneven(text)
        stream = Counted()
        patches = [stream.add(piece) for piece in pieces]
        patches.append(stream.done())
        traffic = sum(len(json.dumps(patch, ensure_ascii=False)) for patch in patches)
        costs.append((stream.parsed / len(text), traffic / len(text)))
    (parsed, sent), (parsed_later, sent_later) = costs
    assert parsed_later < 2 * parsed + 20
    assert parsed_later < 150
    assert sent_later < 2 * sent + 5
    assert sent_later < 40


def test_a_megabyte_in_one_line_comes_in_pieces() -> None:
    for unit in ("a", "&", "x **y** [z]("):
        text = (unit * 300_000)[:1_000_000]
        stream = Counted()
        sent = 0
        for at in range(0, len(text), 50):
            sent += len(str(stream.add(text[at : at + 50])))
        stream.done()
        assert stream.blocks == [["p", None, text.strip()]]
        assert stream.parsed < 30 * len(text)
        assert sent < 6 * len(text)
