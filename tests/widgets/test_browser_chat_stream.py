"""The chat's front end while an answer comes, spoken to by the test in the kernel's place."""

from __future__ import annotations

from typing import Any

import pytest
from chat_stub import Stub, answer, patches, tree, user

pytestmark = pytest.mark.browser
TEXT = (
    "First the *plain* words.\n\n"
    "| a | b |\n|---|--:|\n| 1 | 2 |\n| 3 | 4 |\n\n"
    "```python\nfor index in range(3):\n    print(index)\n```\n\n"
    "日本語の段落です。**太字**もあります。\n\n- one\n- two\n  - three\n\nThe end."
)


def pieces(text: str, size: int = 3) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def begin(stub: Stub, **values: Any) -> None:
    """Have a question asked and its answer begun."""
    stub.state(**values)
    stub.feed(
        {"type": "turn", "turn": user("1", "Tell me.")},
        {"type": "turn", "turn": {**answer("2"), "meta": None}},
        {"type": "busy", "id": "2", "blocking": False, "subshell": True},
    )


def deltas(text: str, part: str = "answer") -> list[dict[str, Any]]:
    return [
        {"type": "delta", "id": "2", "part": part, "patch": patch}
        for patch in patches(pieces(text))
        if patch
    ]


def body(page: Any) -> Any:
    return page.locator('[data-turn="2"] .wb-body')


def test_patches_draw_what_the_whole_answer_draws(page: Any) -> None:
    stub = Stub(page)
    begin(stub)
    stub.feed(*deltas(TEXT))
    stub.drawn()
    streamed = body(page).inner_html()
    stub.state(user("1", "Tell me."), answer("2", TEXT))
    assert body(page).inner_html() == streamed
    assert body(page).locator("table tr").count() == 3
    assert body(page).locator("pre").inner_text().startswith("for index in range(3):\n    print")
    assert body(page).locator("li li").inner_text() == "three"
    assert page.said == []


def test_a_change_at_the_end_leaves_the_nodes_and_the_selection_above(page: Any) -> None:
    stub = Stub(page)
    begin(stub)
    changes = deltas(TEXT)
    stub.feed(*changes[:40])
    stub.drawn()
    page.evaluate(
        """() => {
          const first = document.querySelector('[data-turn="2"] .wb-body p');
          first.mark = true;
          const range = document.createRange();
          range.selectNodeContents(first);
          const selection = getSelection();
          selection.removeAllRanges();
          selection.addRange(range);
        }"""
    )
    stub.feed(*changes[40:], {"type": "end", "id": "2", "turn": answer("2", TEXT)})
    stub.drawn()
    assert page.evaluate("""() => document.querySelector('[data-turn="2"] .wb-body p').mark""")
    assert page.evaluate("() => getSelection().toString()") == "First the plain words."


def test_many_pieces_are_drawn_once_a_frame(page: Any) -> None:
    stub = Stub(page)
    begin(stub)
    changes = deltas("word " * 400)
    page.evaluate(
        """() => {
          window.batches = 0;
          const seen = new MutationObserver(() => { window.batches += 1; });
          const all = {childList: true, characterData: true, subtree: true};
          seen.observe(document.querySelector('[data-turn="2"] .wb-body'), all);
        }"""
    )
    for at in range(0, len(changes), 100):
        stub.feed(*changes[at : at + 100])
    stub.drawn()
    assert body(page).inner_text().split() == ["word"] * 400
    assert 1 <= page.evaluate("() => window.batches") <= len(changes) // 100 + 1


ASKED_BY = """(message) => {
  const asked = () => window.sent.filter((each) => each.type === "hello").length;
  const before = asked();
  window.feed([message]);
  return asked() - before;
}"""


def test_a_kernel_that_does_not_answer_is_asked_again(page: Any) -> None:
    """The first message of a view waits behind the cells that run; later ones pass them."""
    stub = Stub(page)
    page.wait_for_function("() => window.sent.filter((m) => m.type === 'hello').length >= 2")
    stub.state()
    asked = len(stub.sent("hello"))
    page.wait_for_timeout(4000)  # longer than the next question would have waited
    assert len(stub.sent("hello")) == asked


def test_a_missing_number_asks_for_the_whole_state(page: Any) -> None:
    stub = Stub(page)
    begin(stub)
    assert len(stub.sent("hello")) == 1
    changes = deltas("one two three four")
    stub.feed(changes[0])
    stub.number += 1  # lost on the way
    stub.feed(changes[2])
    stub.drawn()
    assert len(stub.sent("hello")) == 2
    stub.number += 1
    more = page.evaluate(ASKED_BY, {"seq": stub.number, **changes[3]})
    stub.drawn()
    assert body(page).inner_text().strip() == "one", "nothing is drawn on top of a hole"
    assert more == 0, "it asks once, not for each message behind the hole"
    stub.state(user("1", "Tell me."), {**answer("2", "one two three f"), "meta": None}, busy="2")
    stub.feed({"type": "delta", "id": "2", "part": "answer", "patch": {"append": "our"}})
    stub.drawn()
    assert body(page).inner_text().strip() == "one two three four"


def test_it_follows_the_end_unless_the_reader_went_up(page: Any) -> None:
    stub = Stub(page)
    begin(stub)
    log = page.locator(".wb-log")
    left = "(log) => log.scrollHeight - log.scrollTop - log.clientHeight"
    lines = "\n\n".join(f"Paragraph {index}." for index in range(60))
    changes = deltas(lines)
    half = len(changes) // 2
    stub.feed(*changes[:half])
    stub.drawn()
    assert log.evaluate(left) < 2
    log.evaluate("(log) => { log.scrollTop = 40; }")
    stub.drawn()
    stub.feed(*changes[half:-5])
    stub.drawn()
    assert log.evaluate("(log) => log.scrollTop") == 40
    page.get_by_role("button", name="Go to the newest text").click()
    stub.feed(*changes[-5:])
    stub.drawn()
    assert log.evaluate(left) < 2


def test_thinking_is_folded_and_stays_open_when_opened(page: Any) -> None:
    stub = Stub(page)
    begin(stub)
    stub.feed(*deltas("Let me see. 6 times 7.", "thinking"))
    stub.drawn()
    thinking = page.locator('[data-turn="2"] details')
    assert thinking.get_attribute("open") is None
    assert "Thinking …" in thinking.inner_text()
    thinking.locator("summary").click()
    stub.feed(*deltas("42"))
    ended = answer("2", "42", thinking=tree("Let me see. 6 times 7."))
    stub.feed({"type": "end", "id": "2", "turn": ended})
    stub.drawn()
    assert thinking.get_attribute("open") is not None
    assert "Let me see. 6 times 7." in thinking.inner_text()
    assert body(page).inner_text().strip() == "42"


def test_the_same_state_again_keeps_every_node(page: Any) -> None:
    stub = Stub(page)
    turns = (user("1", "Tell me."), answer("2", TEXT))
    stub.state(*turns)
    page.evaluate("() => document.querySelectorAll('.wb-body > *').forEach((n) => n.mark = true)")
    stub.state(*turns)
    kept = "() => [...document.querySelectorAll('.wb-body > *')].every((node) => node.mark)"
    assert page.evaluate(kept)


def test_figures_stand_under_an_answer(page: Any) -> None:
    stub = Stub(page)
    stub.state(user("1", "Hi"), answer("2", "Hello.", meta={"finish": "length", "ttft": 1.25}))
    said = page.locator('[data-turn="2"] .wb-figures').inner_text()
    for part in ("TTFT 1.25 s", "41.3 tokens/s", "38 → 174 tokens", "cut off at the token limit"):
        assert part in said


def test_busy_tells_how_to_stop_where_the_button_cannot(page: Any) -> None:
    stub = Stub(page)
    begin(stub)
    stub.feed({"type": "busy", "id": "2", "blocking": True, "subshell": False})
    assert "press ■" in page.locator(".wb-status").inner_text()
    stub.feed({"type": "busy", "id": "2", "blocking": True, "subshell": True})
    assert not page.locator(".wb-status").is_visible()
