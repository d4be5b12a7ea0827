"""Formulas in the chat: laid out by the browser, legible, scrolled where wide, copied as TeX."""

from __future__ import annotations

from typing import Any

import pytest
from chat_stub import Stub, answer, patches, picture, user
from test_browser_chat_pictures import LEGIBLE

pytestmark = pytest.mark.browser
ANSWER = r"""Attention weighs the values $V$ by how well each key fits the query:

$$
\mathrm{Attention}(Q,K,V)=\operatorname{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right)V
$$

With $Q \in \mathbb{R}^{n \times d_k}$ this costs \(\mathcal{O}(n^2 d_k)\). It is learned by

\[
\begin{aligned}
\mathcal{L}(\theta) &= -\sum_{t=1}^{T} \log p_\theta(x_t \mid x_{<t}) \\
\hat\theta &= \operatorname*{arg\,min}_{\theta} \mathcal{L}(\theta)
  + \lambda \lVert \theta \rVert_2^2
\end{aligned}
\]

- $|x| = \begin{cases} x & \text{if } x \ge 0 \\ -x & \text{otherwise} \end{cases}$
- $\begin{pmatrix} a & b \\ c & d \end{pmatrix}^{-1} = \frac{1}{ad-bc}
\begin{pmatrix} d & -b \\ -c & a \end{pmatrix}$
- prices such as $5 and $10 stay text, so does `$x$`; the answer is $\boxed{42}$
""".replace("bc}\n", "bc} ")
WIDE = "$$" + " + ".join(rf"\frac{{x_{{{n}}}}}{{y_{{{n}}}}}" for n in range(60)) + "$$"


@pytest.fixture
def stub(page: Any) -> Stub:
    page.set_viewport_size({"width": 760, "height": 1000})
    stub = Stub(page)
    stub.state(user("1", "How does attention work?"), answer("2", ANSWER))
    stub.drawn()
    return stub


def test_formulas_are_drawn_and_legible(stub: Stub) -> None:
    page = stub.page
    assert page.locator("math").count() == 8
    assert page.locator("math[display=block]").count() == 2
    line = page.locator(".wb-markdown p").first.bounding_box()["height"]
    assert page.locator("mfrac").first.bounding_box()["height"] > line
    rights = page.locator("mtd[columnalign=right] > :last-child").evaluate_all(
        "(all) => all.map((each) => Math.round(each.getBoundingClientRect().right))"
    )
    assert max(rights) - min(rights) <= 2, "the equals signs stand under one another"
    for display in page.locator(".wb-display").all():  # the source takes no room
        drawn = display.locator("math").bounding_box()["height"]
        assert display.bounding_box()["height"] < drawn + 30
    assert page.evaluate(LEGIBLE) == []
    picture(page, "formulas")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(LEGIBLE) == []
    assert page.said == []
    assert page.asked == []


def test_what_is_selected_is_copied_as_tex(stub: Stub) -> None:
    copied = stub.page.evaluate(
        """() => {
          getSelection().selectAllChildren(document.querySelector(".wb-markdown p:has(mi)"));
          return getSelection().toString();
        }"""
    )
    words = "Attention weighs the values $V$ by how well each key fits the query:"
    assert copied.split() == words.split()


def test_a_wide_formula_scrolls_in_its_place(stub: Stub) -> None:
    inline = WIDE[1:-1]
    for width in (760, 360):
        stub.page.set_viewport_size({"width": width, "height": 900})
        stub.state(user("1", "?"), answer("2", f"{WIDE}\n\nor {inline} so"))
        stub.drawn()
        for place in (".wb-display", ".wb-wide"):
            holder = stub.page.locator(place)
            assert holder.evaluate("(each) => each.scrollWidth > each.clientWidth + 100")
            holder.focus()
            assert holder.evaluate("(each) => each === document.activeElement")
        page = "() => document.documentElement.scrollWidth - innerWidth"
        assert stub.page.evaluate(page) <= 0


def test_a_formula_comes_when_it_closes(stub: Stub) -> None:
    stub.state(user("1", "?"))
    stub.feed(
        {"type": "turn", "turn": {**answer("2"), "meta": None}},
        {"type": "busy", "id": "2", "blocking": False, "subshell": True},
    )
    seen = []
    for patch in patches(["It is $x_1", " + 1", "$", " so $5", " each"]):
        if patch:
            stub.feed({"type": "delta", "id": "2", "part": "answer", "patch": patch})
            stub.drawn()
        seen.append(stub.page.locator("math").count())
    assert seen == [0, 0, 1, 1, 1, 1]
    shown = stub.page.locator(".wb-markdown").last.inner_text()
    assert shown.endswith("so $5 each")
