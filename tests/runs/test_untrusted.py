"""Nothing that a model or a notebook wrote can run, load or hide in a report."""

from __future__ import annotations

import re

import pytest

from workbench.runs.exporter import styles
from workbench.runs.untrusted import Headings, clean_html, markdown, tex

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)></svg>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table>",
    "<iframe src='https://a.example'></iframe>",
    "<a href='javascript:alert(1)'>x</a>",
    "<a href='JaVa\tScript:alert(1)'>x</a>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
    "<link rel=stylesheet href=https://a.example/x.css>",
    "<style>body { background: url(https://a.example) }</style>",
    "<div style='background: url(https://a.example)'>x</div>",
    "<img src='https://a.example/x.png'>",
    "<form action='https://a.example'><input name=x></form>",
    "<meta http-equiv=refresh content='0; url=https://a.example'>",
    "<base href='https://a.example'>",
    "<object data='https://a.example'></object>",
    "<table background='https://a.example'><tr><td>x</td></tr></table>",
    "<script>alert(1)",
    "<scr<script></script>ipt>alert(1)</script>",
    "<h2 id='plotly'>x</h2>",
    r"$\href{javascript:alert(1)}{x}$",
    r"\href{javascript:alert(1)}{x}",
    r"\style{color:red}{x}",
]
HARM = re.compile(
    r"<(script|svg|style|iframe|form|input|meta|base|object|link)\b|\son\w+\s*=|"
    r"<[^>]*(javascript:|https://a\.example|data:text|style=|id=\"plotly)",
    re.IGNORECASE,
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_harm_is_taken_out(attack: str) -> None:
    for shown in (clean_html(attack), markdown(attack), markdown(f"a {attack} b"), tex(attack)):
        assert not HARM.search(shown), shown


def test_what_is_harmless_stays() -> None:
    table = '<table><tbody><tr class="head"><td class="number">1</td></tr></tbody></table>'
    assert clean_html(table) == table
    picture = '<img alt="x" src="data:image/png;base64,iVBORw0KGgo=">'
    assert clean_html(picture) == picture
    assert clean_html('<a href="report.html#s-x">x</a>') == '<a href="report.html#s-x">x</a>'
    assert "<details>" in clean_html("<details><summary>more</summary>x</details>")


def test_math_becomes_mathml() -> None:
    shown = markdown("The loss is $\\frac{a}{b} < 1$.\n\n$$\\sum_i p_i$$\n")
    assert shown.count("<math ") == 2
    assert "<mfrac>" in shown
    assert 'display="block"' in shown
    assert "$" not in shown


def test_a_formula_keeps_what_it_says_without_its_address() -> None:
    assert re.fullmatch(r"<math [^>]*>(<mrow>)*<mi>x</mi>(</mrow>)*</math>", tex(r"\href{a:b}{x}"))
    assert tex("x" * 3000) == f"<code>{'x' * 3000}</code>"


def test_a_formula_has_the_style_that_the_chat_gives_it() -> None:
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" class="wb-formula"' in tex("x")
    assert '.wb-formula [data-line="box"] {' in styles()
    assert 'data-line="box"' in tex(r"\boxed{42}")


def test_dollars_are_no_math() -> None:
    assert markdown("It costs $5 and $6.").strip() == "<p>It costs $5 and $6.</p>"


def test_a_formula_that_cannot_be_read_stays_text() -> None:
    assert tex("<b>\\frac") == "<code>&lt;b&gt;\\frac</code>"
    assert "<b>" not in tex("<b> + 1")


def test_headings_have_addresses_and_are_kept() -> None:
    headings = Headings()
    shown = markdown("## 日本語 *here*\n\n## 日本語 here\n\n### C++\n", headings=headings)
    assert headings.found == [
        (2, "日本語 here", "s-日本語-here"),
        (2, "日本語 here", "s-日本語-here-2"),
        (3, "C++", "s-c"),
    ]
    assert 'id="s-日本語-here-2"' in shown
