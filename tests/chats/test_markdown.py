"""Markdown becomes a tree of few tags; what is hostile in it becomes text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workbench.chats.formula_tree import ATTRIBUTES, ELEMENTS
from workbench.chats.markdown import LONGEST, TAGS, clean, parse

HOSTILE = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror=window.ran=1>",
    "<a href='javascript:window.ran=1'>x</a>",
    "[x](javascript:window.ran=1)",
    "[x](JaVaScRiPt:window.ran=1)",
    "[x](java&#x09;script:window.ran=1)",
    "[x](&#106;avascript:window.ran=1)",
    "[x](data:text/html,<script>window.ran=1</script>)",
    "[x](vbscript:window.ran=1)",
    "[x](//a.example/x)",
    "[x](\\\\a.example/x)",
    "<javascript:window.ran=1>",
    "![x](javascript:window.ran=1)",
    "![x](data:image/svg+xml,<svg/onload=window.ran=1>)",
    '![x](https://a.example/x.png"onerror="window.ran=1)',
    '[x](https://a.example/"onclick="window.ran=1)',
    "```<script>window.ran=1</script>\nx\n```",
    '```"><img/src=x/onerror=window.ran=1>\nx\n```',
    "| <script>window.ran=1</script> |\n|---|\n| <svg onload=window.ran=1> |",
    "# <iframe src=https://a.example></iframe>",
    "- <style>@import 'https://a.example'</style>",
    "<https://a.example/x>",
    "![remote](https://a.example/pixel.png) ![](http://b.example/p)",
    "**unclosed *broken `marks [here](",
    "``` \n unclosed",
    "| a | b\n|--",
    "\u202egnp.exe\u202c \u2066x\u2069",
    "\x00\x1b[31mred\x07",
    "\ud800 \udc00",
    "> " * 300 + "x",
    "[" * 10_000 + "x",
    "![" * 5_000,
    ">" * 10_000,
    "- " * 5_000,
    "".join("  " * level + "- x\n" for level in range(300)),
    "*" * 5_000 + "x" + "*" * 5_000,
    "&lt;script&gt;window.ran=1&lt;/script&gt;",
    "$\\href{javascript:window.ran=1}{x} \\style{color:red}{x}$",
    "$$\\text{<img src=x onerror=window.ran=1>}$$",
    "\\[<script>window.ran=1</script>_1\\] \\(\\unicode{x202E}\\)",
    "$" + "{" * 300 + "$ $\\def\\a{\\a\\a}\\a$",
    "$\\frac{" * 100,
]


def tags(node: Any) -> list[tuple[str, Any]]:
    """Return tag and attributes of a node and all within."""
    found, waiting = [], [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            found.append((each[0], each[1]))
            waiting.extend(each[2:])
    return found


def words(node: Any) -> str:
    """Return the text of a list of nodes."""
    return "".join(n if isinstance(n, str) else words(n[2:]) for n in node)


def depth(node: Any) -> int:
    return 1 + max((depth(n) for n in node[2:]), default=0) if isinstance(node, list) else 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a *b* **c** ~~d~~ `e`", '[["p",null,"a ",["em",null,"b"]," ",["strong",null,"c"]," ",'
         '["s",null,"d"]," ",["code",null,"e"]]]'),
        ("one\ntwo  \nthree", '[["p",null,"one",["br",null],"two",["br",null],"three"]]'),
        ("## T\n---", '[["h2",null,"T"],["hr",null]]'),
        ("3. a\n4. b\n   - c", '[["ol",{"start":3},["li",null,"a"],["li",null,"b",'
         '["ul",null,["li",null,"c"]]]]]'),
        ("- a\n\n- b\n\n  c", '[["ul",null,["li",null,"a"],["li",null,"b",["p",null,"c"]]]]'),
        ("> q", '[["blockquote",null,["p",null,"q"]]]'),
        ("```py x\nif a:\n```", '[["pre",{"lang":"py"},["code",null,"if a:\\n"]]]'),
        ("```\nopen", '[["pre",null,["code",null,"open"]]]'),
        ("|a|b|\n|-|:-:|\n|1|2|", '[["table",null,["thead",null,["tr",null,["th",null,"a"],'
         '["th",{"align":"center"},"b"]]],["tbody",null,["tr",null,["td",null,"1"],'
         '["td",{"align":"center"},"2"]]]]]'),
        ("[x](https://a.b/c)", '[["p",null,["a",{"href":"https://a.b/c"},"x"]]]'),
        ("<http://a.b>", '[["p",null,["a",{"href":"http://a.b"},"http://a.b"]]]'),
        ("![d *e*](https://a.b/c.png)",
         '[["p",null,["img",{"src":"https://a.b/c.png","alt":"d e"}]]]'),
        ("[r]\n\n[r]: http://a.b/", None),
        ("これは**「強調」**です", '[["p",null,"これは",["strong",null,"「強調」"],"です"]]'),
        ("**重要。**次に*「語」*を", '[["p",null,["strong",null,"重要。"],"次に",'
         '["em",null,"「語」"],"を"]]'),
        ("**太字**、2 * 3 * 4", '[["p",null,["strong",null,"太字"],"、2 * 3 * 4"]]'),
        ("", "[]"),
        (" \n\n", "[]"),
    ],
)  # fmt: skip
def test_the_tree_of(text: str, expected: str | None) -> None:
    if expected is None:  # a definition at the end changes nothing that stands before it
        assert parse(text)[0] == ["p", None, "[r]"]
    else:
        assert parse(text) == json.loads(expected)


@pytest.mark.parametrize(
    ("text", "address", "rest"),
    [
        ("see https://a.b/c_d. Then", "https://a.b/c_d", ". Then"),
        ("(https://a.b/c_(d)) x", "https://a.b/c_(d)", ") x"),
        ("https://a.bを見る", "https://a.b", "を見る"),
        ("**https://a.b/**", "https://a.b/", ""),
    ],
)
def test_a_bare_address_is_a_link_without_what_ends_it(text: str, address: str, rest: str) -> None:
    assert ("a", {"href": address}) in tags(["p", None, *parse(text)])
    assert words(parse(text)).endswith(address + rest)


@pytest.mark.parametrize("text", ["xhttps://a.b", "https://", "ftp://a.b", "`https://a.b`"])
def test_what_is_no_bare_address_is_no_link(text: str) -> None:
    assert "a" not in dict(tags(["p", None, *parse(text)]))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_makes_no_other_tag_nor_address(text: str) -> None:
    blocks = parse(text)
    json.dumps(blocks).encode()
    for tag, attributes in tags(["p", None, *blocks]):
        assert tag in TAGS | ELEMENTS
        known = {"lang", "href", "src", "alt", "align", "start", "tex", "display"}
        for name, value in (attributes or {}).items():
            assert name in (known if tag in TAGS else ATTRIBUTES)
            if name in ("href", "src"):
                assert value.startswith(("https://", "http://"))
    assert max(map(depth, blocks)) <= 48


@pytest.mark.parametrize("text", HOSTILE[:13])
def test_what_is_refused_stays_readable(text: str) -> None:
    assert "window.ran" in words(parse(text)) or "a.example" in words(parse(text))


def test_deep_nesting_keeps_its_words() -> None:
    text = "".join("  " * level + f"- w{level}\n" for level in range(100))
    shown = words(parse(text))
    assert all(f"w{level}" in shown for level in range(100))
    assert words(parse(">" * 10_000 + "end")).endswith("end")


def test_what_turns_the_direction_of_writing_is_seen() -> None:
    assert words(parse("a\u202eb `\u2066` \u061c\u200e")) == "a⟨U+202E⟩b ⟨U+2066⟩ \u061c\u200e"
    assert words(parse("```\n\u202e\n```")) == "⟨U+202E⟩\n"
    assert words(parse("مرحبا بالعالم")) == "مرحبا بالعالم"


def test_controls_and_halves_of_characters_are_shown_and_can_be_sent() -> None:
    assert clean("a\x00\x1b\x7f\x85\ud83d\r\nb\rc\td") == "a\ufffd␛␡\ufffd\ufffd\nb\nc\td"


def test_a_megabyte_in_one_line_is_text() -> None:
    for unit in ("a", "&", "word **b** ", "[x](", "`a``", "<a "):
        text = (unit * 1_000_000)[:1_000_000].strip()
        assert parse(text) == [["p", None, text]]


def test_a_long_paragraph_is_marked_up_to_its_limit() -> None:
    text = "**b** " + "x" * (LONGEST - 6)
    assert parse(text)[0][2] == ["strong", None, "b"]
    assert parse(text + "x") == [["p", None, text + "x"]]
