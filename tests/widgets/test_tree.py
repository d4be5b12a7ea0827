"""The Markdown tree on a page: the same nodes piece by piece as at once, and nothing that runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.chats import markdown
from workbench.chats.formula_tree import ATTRIBUTES, ELEMENTS
from workbench.chats.markdown import parse
from workbench.chats.markdown_stream import MarkdownStream

sys.path.insert(0, str(Path(__file__).parents[1] / "chats"))
from test_markdown import HOSTILE
from test_markdown_stream import ANSWER, Always, Seldom

pytestmark = pytest.mark.browser
SCRIPT = Path(__file__).parents[2] / "workbench" / "widgets" / "js" / "tree.js"
TAGS = {tag.upper() for tag in markdown.TAGS - {"img", "math"}} | {"DIV", "SPAN", "BUTTON"}
TAGS |= ELEMENTS | {"math"}  # in MathML's namespace names keep their case
MATHML = "http://www.w3.org/1998/Math/MathML"
DRAW = """(blocks) => {
  const root = document.createElement("div");
  document.body.replaceChildren(root);
  applyPatch(root, {keep: 0, blocks});
  return root.innerHTML;
}"""
STREAM = """(patches) => {
  const root = document.createElement("div");
  document.body.replaceChildren(root);
  for (const patch of patches) applyPatch(root, patch);
  root.normalize();
  return root.innerHTML;
}"""
LOOK = """() => [...document.body.querySelectorAll("div *")].map((node) => [
  node.tagName,
  [...node.attributes].map((each) => each.name),
  node.tagName === "A" ? node.protocol : "",
])"""

LIES: list[Any] = [
    ["script", None, "window.ran = 1"],
    ["annotation-xml", {"encoding": "text/html"}, ["img", {"src": "x", "onerror": "window.ran=1"}]],
    ["maction", {"actiontype": "statusline", "href": "javascript:window.ran=1"}, "x"],
    [
        "mi",
        {"href": "javascript:window.ran=1", "style": "color:red", "onclick": "window.ran=1"},
        "y",
    ],
    ["mspace", {"width": "999em", "height": "9em", "mathbackground": "red"}],
    ["mo", {"form": "<b>", "minsize": "1em;color:red", "__proto__": "x", "constructor": "x"}, "+"],
    5,
    None,
]


@pytest.fixture
def tree(page: Any) -> Any:
    page.set_content("<!doctype html><body></body>")
    page.add_script_tag(content=SCRIPT.read_text(encoding="utf-8"))
    return page


def patches(stream: MarkdownStream, text: str, size: int) -> list[Any]:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return [*map(stream.add, pieces), stream.done()]


def test_patches_build_what_the_whole_tree_builds(tree: Any) -> None:
    whole = tree.evaluate(DRAW, parse(ANSWER))
    assert tree.locator(".wb-table table tbody tr").count() == 2
    assert tree.locator(".wb-code > pre > code").inner_text().startswith("for i in range(10):")
    for stream in (Always, Seldom, MarkdownStream):
        for size in (1, 5):
            assert tree.evaluate(STREAM, patches(stream(), ANSWER, size)) == whole
    assert tree.said == []


def test_hostile_text_runs_nothing_and_asks_for_nothing(tree: Any) -> None:
    for text in [*HOSTILE, "\n\n".join(HOSTILE)]:
        whole = tree.evaluate(DRAW, parse(text))
        assert tree.evaluate(STREAM, patches(Always(), text[:3000], 11)) is not None
        assert tree.evaluate(STREAM, patches(MarkdownStream(), text, 97)) == whole
        for tag, names, protocol in tree.evaluate(LOOK):
            assert tag in TAGS
            assert not any(name.startswith("on") for name in names)
            assert protocol in ("", "https:", "http:")
    tree.wait_for_timeout(100)
    assert tree.evaluate("window.ran") is None
    assert tree.asked == []
    assert tree.said == []


def test_a_tree_that_lies_makes_nothing_else(tree: Any) -> None:
    deep: list[Any] = ["em", None, "end"]
    for _ in range(200):
        deep = ["em", None, deep]
    tree.evaluate(
        DRAW.replace("blocks}", "blocks: JSON.parse(blocks)}"),
        json.dumps(
            [
                ["script", None, "window.ran = 1"],
                ["iframe", {"src": "https://a.example"}],
                ["img", {"src": "javascript:window.ran=1", "alt": "no"}],
                [
                    "p",
                    {"onclick": "window.ran=1", "style": "background:url(https://a.example)"},
                    "p",
                ],
                ["a", {"href": "javascript:window.ran=1"}, "link"],
                ["a", {"href": "java\nscript:window.ran=1"}, "link"],
                ["constructor", None, ["svg", {"onload": "window.ran=1"}, "x"]],
                ["td", {"align": "left;background:url(https://a.example)"}, "x"],
                ["ol", {"start": "<b>"}, ["li", None, "x"]],
                ["math", {"tex": ["<b>"], "onclick": "window.ran=1"}, *LIES, deep],
                ["math", {"tex": "<img src=x onerror=window.ran=1>", "display": "no"}],
                deep,
                None,
                5,
            ]
        ),
    )
    seen = tree.evaluate(LOOK)
    assert {tag for tag, _, _ in seen} <= TAGS
    known = {"dir", "class", "type", "title", "aria-hidden", *ATTRIBUTES} - {"form"}
    assert all(set(names) <= known for _, names, _ in seen)
    assert "A" not in {tag for tag, _, _ in seen}
    assert tree.locator("body").inner_text().rstrip().endswith("end5")
    assert tree.evaluate("window.ran") is None
    assert tree.asked == []


def test_a_megabyte_in_one_line_is_drawn(tree: Any) -> None:
    text = "<b>&[x](javascript:1)" * 50_000
    sent = patches(MarkdownStream(), text, 2000)
    tree.evaluate(STREAM, sent)
    assert tree.evaluate("document.body.textContent.length") == len(text)


def test_links_open_elsewhere_and_pictures_wait_for_a_click(tree: Any) -> None:
    tree.evaluate(DRAW, parse("[x](https://a.example/y) ![cat](https://b.example/p.png)"))
    link = tree.locator("a")
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    assert link.get_attribute("target") == "_blank"
    assert link.get_attribute("title") == "https://a.example/y"
    assert tree.locator("img").count() == 0
    assert tree.asked == []
    button = tree.get_by_role("button", name="Load picture from b.example: cat")
    with tree.expect_event("requestfailed"):
        button.click()
    assert tree.asked == ["https://b.example/p.png"]
    assert tree.locator("img").get_attribute("referrerpolicy") == "no-referrer"
    assert tree.locator("img").get_attribute("alt") == "cat"


def test_only_what_changes_is_touched(tree: Any) -> None:
    stream = MarkdownStream()
    tree.evaluate(STREAM, [stream.add("First\n\n- one\n- two\n- thr")])
    tree.evaluate(
        """() => {
          window.root = document.body.firstChild;
          window.kept = [...root.querySelectorAll("p, ul, li")];
          window.words = root.querySelector("li:last-child").firstChild;
          getSelection().selectAllChildren(window.kept[0]);
        }"""
    )
    for text in ("ee four", "\n- **five**\n- six", "\n\n```\nx"):
        tree.evaluate("(patch) => applyPatch(window.root, patch)", stream.add(text))
    tree.evaluate("(patch) => applyPatch(window.root, patch)", stream.done())
    assert tree.evaluate("window.kept.every((node) => node.isConnected)")
    assert tree.evaluate("window.words.data") == "three four"
    assert tree.evaluate("getSelection().toString()") == "First"
    assert tree.locator("li").all_inner_texts() == ["one", "two", "three four", "five", "six"]


def test_code_has_its_language_and_is_copied(tree: Any) -> None:
    tree.evaluate(
        """() => Object.defineProperty(navigator, "clipboard", {
          value: { writeText: async (text) => void (window.copied = text) } })"""
    )
    tree.evaluate(DRAW, parse("```py\nif a < b:\n    pass\n```"))
    assert tree.locator(".wb-code-language").inner_text() == "py"
    tree.get_by_role("button", name="Copy").click()
    tree.get_by_role("button", name="Copied").wait_for()
    assert tree.evaluate("window.copied") == "if a < b:\n    pass"


def test_an_empty_patch_changes_nothing(tree: Any) -> None:
    assert tree.evaluate(STREAM, [{"keep": 0, "blocks": [["p", None, "a"]]}, {}]) == (
        '<p dir="auto">a</p>'
    )


def test_a_formula_is_mathml_with_its_source_at_hand(tree: Any) -> None:
    text = "so $\\frac{a}{b}$ and\n\n$$\\mathrm{d}x \\le \\overline{y}$$"
    tree.evaluate(DRAW, parse(text))
    spaces = "(all) => all.map((each) => each.namespaceURI)"
    assert set(tree.locator("math, math *").evaluate_all(spaces)) == {MATHML}
    assert tree.locator("math").count() == 2
    assert tree.locator("math[display=block] [data-line=over] > mi").text_content() == "y"
    fraction = tree.locator("mfrac")
    line = tree.locator("math[display=block] mo").bounding_box()["height"]
    assert fraction.bounding_box()["height"] > 1.3 * line
    upper, lower = (fraction.locator("> mi").nth(at).bounding_box() for at in (0, 1))
    assert upper["y"] + upper["height"] <= lower["y"] + 1
    assert tree.locator(".wb-formula").first.get_attribute("title") == "$\\frac{a}{b}$"
    assert tree.locator(".wb-display").count() == 1
    assert tree.said == []


def test_a_formula_that_closes_leaves_what_stands_before_it(tree: Any) -> None:
    stream = Always()
    tree.evaluate(STREAM, [stream.add("one $x_"), stream.add("1")])
    tree.evaluate("() => { window.words = document.querySelector('p').firstChild; }")
    for piece in ("$", " and ", "$y", "$."):
        patch = stream.add(piece)
        tree.evaluate("(patch) => applyPatch(document.body.firstChild, patch)", patch)
    assert tree.locator("math").count() == 2
    assert tree.locator("p > .wb-formula + .wb-formula").count() == 1
    assert tree.locator("p").evaluate("(p) => p.lastChild.data") == "."
