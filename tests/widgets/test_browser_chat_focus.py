"""Where focus and page go while a chat changes: a lost focus would type into the notebook."""

from __future__ import annotations

from typing import Any

import pytest
from chat_stub import Stub, answer, patches, user

pytestmark = pytest.mark.browser
HELLO = (user("1", "Hello"), answer("2", "Hello to you."))
KEPT = "/home/me/outputs/chats/one.jsonl"


@pytest.fixture
def stub(page: Any) -> Any:
    stub = Stub(page)
    stub.state(*HELLO, kept=KEPT)
    yield stub
    assert page.said == []
    assert page.asked == []


def held(stub: Stub) -> str:
    """Return the name of what has the focus, once the page had time to move it."""
    for _ in range(2):
        stub.drawn()
    return str(stub.page.evaluate("() => document.activeElement.ariaLabel"))


def begin(stub: Stub, turn: str, *siblings: str) -> None:
    """Tell of a new answer in progress after the question."""
    stub.feed(
        {"type": "turn", "turn": answer(turn, "", siblings=list(siblings or (turn,)), meta={})},
        {"type": "path", "ids": ["1", turn]},
        {"type": "busy", "id": turn, "blocking": False, "subshell": True, "note": None},
    )


def test_a_button_that_goes_away_leaves_the_focus_in_the_chat(stub: Stub) -> None:
    stub.button("Answer again").click()
    begin(stub, "3", "2", "3")
    assert held(stub) == "Your turn"
    stub.page.keyboard.press("Escape")
    assert stub.sent("stop") == [{"type": "stop"}]


def test_a_message_that_is_dismissed_leaves_the_focus_in_the_chat(stub: Stub) -> None:
    stub.feed({"type": "error", "message": "It does not fit.", "hint": None})
    stub.button("Dismiss").click()
    assert held(stub) == "Your turn"


def test_the_focus_of_another_place_is_left_there(stub: Stub) -> None:
    stub.page.evaluate(
        """() => {
          const field = Object.assign(document.createElement("input"), {ariaLabel: "Elsewhere"});
          document.body.append(field);
          field.focus();
        }"""
    )
    begin(stub, "3", "2", "3")
    assert held(stub) == "Elsewhere"


def test_versions_are_leafed_through_by_one_key(stub: Stub) -> None:
    three = ["2", "3", "4"]
    stub.state(HELLO[0], answer("4", "Third.", siblings=three))
    stub.button("Earlier version").focus()
    for turn, text in (("3", "Second."), ("2", "First.")):
        stub.page.keyboard.press("Enter")
        assert stub.sent("show")[-1] == {"type": "show", "id": turn}
        stub.feed(
            {"type": "turn", "turn": HELLO[0]},
            {"type": "turn", "turn": answer(turn, text, siblings=three)},
            {"type": "path", "ids": ["1", turn]},
        )
        assert stub.page.locator(".wb-assistant .wb-body").inner_text() == text
        assert held(stub) == ("Earlier version" if turn == "3" else "Later version")


def test_a_kernel_that_goes_away_keeps_draft_focus_and_the_way_back(stub: Stub) -> None:
    field = stub.page.get_by_role("textbox", name="Your turn")
    field.fill("half a thought")
    stub.page.evaluate("() => { window.gone = true; }")
    stub.page.keyboard.press("Enter")
    stub.page.keyboard.type("dd")
    assert held(stub) == "Your turn"
    assert stub.page.get_by_role("textbox", name="Your turn").is_disabled()
    said = stub.page.locator(".wb-status").inner_text()
    assert f'wb.chat(model, dialogue="{KEPT}")' in said
    for name in ("Answer again", "Edit and ask again", "Token probabilities"):
        assert stub.button(name).first.is_disabled(), "a button that would do nothing"
    assert stub.button("Copy the text").first.is_enabled()


def test_earlier_turns_keep_their_nodes_while_another_is_answered(stub: Stub) -> None:
    names = ("Answer again", "Edit and ask again", "Token probabilities")
    for name in names:
        stub.button(name).evaluate("(node) => { node.dataset.same = '1'; }")
    busy = {"type": "busy", "blocking": False, "subshell": True, "note": None}
    for id, shut in (("4", True), (None, False)):
        stub.feed({**busy, "id": id})
        found = [stub.button(name) for name in names]
        assert [each.get_attribute("data-same") for each in found] == ["1", "1", "1"]
        assert [each.is_disabled() for each in found] == [shut, shut, False]


def test_an_empty_conversation_leads_back_to_the_earlier_one(stub: Stub) -> None:
    back = stub.button("Back to the earlier conversation")
    assert back.count() == 0
    stub.button("New conversation (this one stays as a branch)").click()
    stub.feed({"type": "path", "ids": []})
    back.click()
    assert stub.sent("show") == [{"type": "show", "id": "1"}]
    stub.state(earlier="7")
    back.click()
    assert stub.sent("show")[-1] == {"type": "show", "id": "7"}, "also after a reload"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "The answer is empty."),
        ({"meta": {"finish": "cancelled"}}, "Stopped before the first word."),
        ({"thinking": [["p", {}, "Hm."]]}, None),
        ({"meta": {"finish": "error", "error": "It broke."}}, None),
    ],
)
def test_an_answer_without_a_word_says_so(stub: Stub, values: Any, said: str | None) -> None:
    stub.state(HELLO[0], answer("2", "", **values))
    hint = stub.page.locator(".wb-assistant > .wb-hint")
    assert hint.is_visible() == (said is not None)
    if said:
        assert hint.inner_text() == said


def grown(stub: Stub) -> None:
    """Let an answer grow from nothing to many paragraphs."""
    begin(stub, "2")
    for patch in patches([f"Paragraph {number}.\n\n" for number in range(30)]):
        stub.feed({"type": "delta", "id": "2", "part": "answer", "patch": patch})
        stub.drawn()
    stub.drawn()


def lead(stub: Stub) -> Any:
    """Put cells before and after the chat; return how far the composer ends below the window."""
    stub.page.set_viewport_size({"width": 900, "height": 700})
    stub.page.evaluate(
        """() => {
          for (const where of ["afterbegin", "beforeend"]) {
            document.body.insertAdjacentHTML(where, "<div style='height: 360px'>cells</div>");
          }
        }"""
    )
    below = "(node) => node.getBoundingClientRect().bottom - innerHeight"
    return lambda: stub.page.locator(".wb-composer").evaluate(below)


def test_the_page_goes_along_with_an_answer_that_grows(stub: Stub) -> None:
    stub.state(HELLO[0])
    below = lead(stub)
    stub.page.get_by_role("textbox", name="Your turn").focus()
    stub.drawn()
    assert below() <= 0
    grown(stub)
    assert below() <= 1, "the composer with Stop stays in sight"
    log = stub.page.locator(".wb-log")
    assert log.evaluate("(n) => n.scrollHeight - n.scrollTop - n.clientHeight") < 2


def test_the_page_stays_where_a_reader_went(stub: Stub) -> None:
    stub.state(HELLO[0])
    below = lead(stub)
    stub.page.get_by_role("textbox", name="Your turn").focus()
    stub.page.evaluate(
        "() => document.body.insertAdjacentHTML('beforeend', '<div style=height:900px>')"
    )
    stub.page.evaluate("() => scrollTo(0, 0)")
    stub.page.set_viewport_size({"width": 900, "height": 420})
    for _ in range(2):
        stub.drawn()
    assert below() > 0
    grown(stub)
    assert stub.page.evaluate("() => scrollY") == 0
