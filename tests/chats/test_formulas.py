"""TeX becomes a small tree of MathML; prices, code and what is hostile stay text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_markdown import depth, tags, words

from workbench.chats.dialogue import Dialogue
from workbench.chats.formula_tree import ATTRIBUTES, DEEPEST, ELEMENTS
from workbench.chats.formulas import LONGEST_FORMULA, formula
from workbench.chats.markdown import parse
from workbench.chats.markup import markup

HOSTILE_TEX = [
    r"\href{javascript:window.ran=1}{x}",
    r"\style{background:url(https://a.example)}{x}",
    r"\class{wb-button}{x}",
    r"\color{red}x \textcolor{white}{y} \colorbox{red}{z} \rule{99em}{99em}",
    r"\text{<img src=x onerror=window.ran=1>}",
    r"<script>window.ran=1</script>",
    r"\text{&#x202E;&#x3c;script&#x3e;}\unicode{x202E}\unicode{xFFFFFFF}",
    r"\raise{99em}{x}\lower{99em}{y}\smash{x}\rlap{xxxx}\hspace{99em}\Huge\Huge\Huge x",
    r"\verb|<b>| \tag{<b>} \label{x} x",
]
REFUSED_TEX = [
    r"\def\a{\a\a}\a",
    r"\newcommand{\a}{\a\a}\a",
    r"\DeclareMathOperator{\a}{b}\a",
    r"\unknowncommand{x}",
    r"\frac{a}",
    r"x^a^b",
    r"\left( x",
    r"\begin{cases} x",
    r"\kern-5em" * 20 + "x",
    r"x \\" * 100 + "x",
    r"\sqrt" * 300 + "x",
    "{" * 100_000 + "x" + "}" * 100_000,
    "{" * (DEEPEST + 1) + "x" + "}" * (DEEPEST + 1),
    r"\frac{" * 1_000,
    "x" * (LONGEST_FORMULA + 1),
]


def found(text: str) -> list[tuple[str, bool]]:
    """Return the source of every formula in a text, and whether each is a display."""
    every = tags(["p", None, *parse(text)])
    return [(facts["tex"], "display" in facts) for tag, facts in every if tag == "math"][::-1]


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("so $x^2$ is", [("$x^2$", False)]),
        ("$a$, ($b$) and $n$th, $x$は", [(f"${x}$", False) for x in "abnx"]),
        (r"so \(x\) and \[y = 1\] here", [(r"\(x\)", False), (r"\[y = 1\]", True)]),
        ("so\n$$\na\n- b\n= c\n$$\nis", [("$$\na\n- b\n= c\n$$", True)]),
        ("\\[\n# a \\\\[4pt]\n> b\n\\]", [("\\[\n# a \\\\[4pt]\n> b\n\\]", True)]),
        ("- $$a$$\n  $$\n  b\n  $$", [("$$a$$", True), ("$$\nb\n$$", True)]),
        ("> $$\n> a\n> $$", [("$$\na\n$$", True)]),
        ("**$a$** [$b$](https://a.b)\n\n|$c$|\n|-|\n|$d$|", [(f"${x}$", False) for x in "abcd"]),
        (r"$\$5 + x_1$", [(r"$\$5 + x_1$", False)]),
        (r"\\$x$", [("$x$", False)]),
        ("$2x + 3y$ $10$ $AB + BC$", [("$2x + 3y$", False), ("$10$", False), ("$AB + BC$", False)]),
    ],
)
def test_a_formula_is_found_with_its_source(text: str, sources: list[tuple[str, bool]]) -> None:
    assert sorted(found(text)) == sorted(sources)


@pytest.mark.parametrize(
    "text",
    [
        "$5 and $10",
        "from $5-$10, or $5/$10, or US$5 and A$6",
        "It is $5, paid in US$, or 5$ or 6$.",
        "costs $5M now\nand $6M then",
        "echo $HOME/$USER and $PATH:$HOME, $foo['$bar'], $x=$y",
        "kill $$ and then echo $$",
        "`$x$` and ``\\(x\\)``",
        "```\n$$\nx\n$$\n```",
        "    $$x$$\n",
        "$`a`$ $a `b$` c",
        r"\$x$ and $x\$",
        "$x\n\ny$",
        "$$\nx\n\ny\n$$",
        "$ x$ and $x $",
        "$x$5",
        "$$$x$$$",
        r"\[1\] and \[x\] and \(see below\)",
        r"\\(x\\) \\[x+y\\]",
        "$x",
        "$$\nx",
        r"\(x",
        "$$ $$",
        "x" * 17_000 + "$x$",
    ],
)
def test_what_is_no_formula_stays_text(text: str) -> None:
    assert found(text) == []


def test_prices_and_a_formula_in_one_line() -> None:
    assert parse("It costs $5 and $10, with $x_1$.") == [
        ["p", None, "It costs $5 and $10, with ", ["math", {"tex": "$x_1$"},
         ["msub", None, ["mi", None, "x"], ["mn", None, "1"]]], "."]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        (r"\frac{a}{b}", '["mfrac",null,["mi",null,"a"],["mi",null,"b"]]'),
        (r"\mathbf{W}\mathbb{R}", '["mi",null,"𝐖"]'),
        (r"\mathcal{LN}", '["mi",null,"ℒ"],["mi",null,"𝒩"]'),
        (r"\mathrm{KL}", '["mi",null,"KL"]'),
        (r"n \log n", '["mspace",{"width":"0.167em"}]'),
        (r"\lim_{x} y", '["munder",null,["mo",'),
        (r"\operatorname*{arg\,max}_x", '"arg\u2009max"'),
        (r"\begin{pmatrix} a & b \end{pmatrix}^T", '["msup",null,["mrow",null,["mo",'),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", '["mtd",{"columnalign":"right"}'),
        (r"a \\ b", '["mtr",null,["mtd",null,["mi",null,"b"]]]'),
        (r"\boxed{42}", '["mrow",{"data-line":"box"},["mn",null,"42"]]'),
        (r"x \sim p", '["mo",null,"∼"]'),
        (r"\alpha \le \infty", '["mi",null,"∞"]'),
    ],
)
def test_what_tex_becomes(tex: str, expected: str) -> None:
    made = formula(tex, tex, True)
    assert expected in json.dumps(made, ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("tex", HOSTILE_TEX)
def test_hostile_tex_makes_only_what_is_known(tex: str) -> None:
    made = formula(tex, tex, False)
    shown = words([made] if made else [])
    assert "\u202e" not in shown
    for tag, attributes in tags(made)[1:] if made else ():
        assert tag in ELEMENTS
        for name, value in (attributes or {}).items():
            assert re.fullmatch(ATTRIBUTES[name], value)
            if value.endswith("em"):
                assert -0.4 < float(value[:-2]) <= 4


@pytest.mark.parametrize("tex", REFUSED_TEX)
def test_what_is_refused_stays_as_its_source(tex: str) -> None:
    assert formula(tex, tex, True) is None
    if len(tex) <= LONGEST_FORMULA:
        blocks = parse(f"so \\({tex}\\) is")
        assert "math" not in dict(tags(["p", None, *blocks]))
        assert words(blocks) == f"so \\({tex}\\) is"


def test_deep_and_long_text_of_marks_is_no_trouble() -> None:
    for unit in ("$", "$$", "$a ", "$a", r"\(", r"\[", "$$a\n", "\\[\n", r"\)", "$x^{"):
        text = unit * (100_000 // len(unit))
        assert parse(text) is not None
        assert parse(text[:16_000]) is not None
    assert depth(formula("x", "{" * 30 + "x" + "}" * 30, True)) < DEEPEST


def test_the_converter_is_loaded_with_the_first_formula_only() -> None:
    code = (
        "import sys\nfrom workbench.chats.markdown import parse\nparse('$5 and `$x$`')\n"
        "assert 'latex2mathml' not in sys.modules\n"
        "parse('$x$')\nassert 'latex2mathml' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_converter_a_formula_is_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    assert parse("so $q_{17}$") == [["p", None, "so $q_{17}$"]]
    formula.cache_clear()


def test_a_static_copy_shows_the_source() -> None:
    shown = markup(parse("so $a<b_1$ and\n$$\na\n$$\n\n- \\(x\\)"))
    assert "<code>$a&lt;b_1$</code>" in shown
    assert "<pre>$$\na\n$$</pre>" in shown
    assert "<code>\\(x\\)</code>" in shown
    assert "<m" not in shown


def test_equal_formulas_share_a_tree_that_nobody_changes() -> None:
    text = "$x_1$ https://a.b $x_1$"
    before: Any = json.dumps(parse(text))
    assert json.dumps(parse(text)) == before


@pytest.mark.parametrize("name", ["talk.jsonl", "talk.md"])
def test_what_is_kept_is_the_source(tmp_path: Path, name: str) -> None:
    text = "so $x_1$, \\(y\\) and\n$$\n\\frac{a}{b}\n$$"
    dialogue = Dialogue()
    dialogue.say(text)
    assert parse(text)[0][3][0] == "math"
    dialogue.save(tmp_path / name)
    loaded = Dialogue.load(tmp_path / name)
    assert [each.content for each in loaded.messages()] == [text]
    assert [each.content for each in dialogue.messages()] == [text]
