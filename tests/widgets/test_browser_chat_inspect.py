"""What a researcher opens under an answer: exact prompt, token probabilities, tool calls, JSON."""

from __future__ import annotations

import math
from typing import Any

import pytest
from chat_stub import Stub, answer, user

pytestmark = pytest.mark.browser


@pytest.fixture
def stub(page: Any) -> Any:
    stub = Stub(page)
    stub.state(user("1", "Hello"), answer("2", "Hello to you."))
    yield stub
    assert page.said == []
    assert page.asked == []


def test_the_exact_prompt_shows_every_token(stub: Stub) -> None:
    stub.button("Exact prompt and token ids").last.click()
    assert stub.sent("prompt") == [{"type": "prompt", "id": "2"}]
    pieces = [[1, "<|user|>"], [198, "\n"], [5, " Hi"], [6, "\u202e"], [7, ""]]
    stub.feed({"type": "prompt", "id": "2", "text": "<|user|>\n Hi\u202e", "pieces": pieces})
    shown = stub.page.locator(".wb-token").evaluate_all(
        "(all) => all.map((n) => [...n.children].map((c) => c.textContent))"
    )
    assert shown == [
        ["<|user|>", "1"],
        ["⏎", "198"],
        ["·Hi", "5"],
        ["⟨U+202E⟩", "6"],
        ["∅", "7"],
    ]
    stub.button("Text").click()
    plain = stub.page.locator(".wb-plain").inner_text()
    assert plain == "<|user|>\n Hi⟨U+202E⟩"
    stub.button("Text").press("Escape")
    assert stub.page.locator(".wb-panel").count() == 0


def test_a_long_prompt_comes_in_portions(stub: Stub) -> None:
    stub.button("Exact prompt and token ids").last.click()
    pieces = [[index, "x"] for index in range(4000)]
    stub.feed({"type": "prompt", "id": "2", "text": "x" * 4000, "pieces": pieces})
    assert stub.page.locator(".wb-token").count() == 1500
    stub.button("Show more (2,500 left)").click()
    assert stub.page.locator(".wb-token").count() == 3000


def token(index: int, text: str, odds: float) -> dict[str, Any]:
    said = {"id": index, "text": text, "logprob": math.log(odds)}
    other = {"id": 90, "text": " other", "logprob": math.log((1 - odds) / 2)}
    return {**said, "top": [other, said]}


def test_probabilities_are_read_by_colour_by_words_and_by_keys(stub: Stub) -> None:
    stub.button("Token probabilities").click()
    assert stub.sent("probabilities") == [{"type": "probabilities", "id": "2"}]
    tokens = [token(10, "Hello", 0.9), token(11, " to", 0.05), token(12, " you.", 0.5)]
    stub.feed({"type": "probabilities", "id": "2", "tokens": tokens})
    options = stub.page.get_by_role("option")
    assert options.evaluate_all("(all) => all.map((n) => n.ariaLabel)") == [
        "Hello, 90 %",
        "·to, 5.0 %",
        "·you., 50 %",
    ]
    colours = options.evaluate_all("(all) => all.map((n) => getComputedStyle(n).backgroundColor)")
    assert len(set(colours)) == 3
    assert options.evaluate_all("(all) => all.filter((n) => n.tabIndex === 0).length") == 1
    detail = stub.page.locator(".wb-detail")
    assert "5.0 %, rank 2" in detail.inner_text(), "the least likely token is chosen first"
    options.nth(1).focus()
    stub.page.keyboard.press("ArrowRight")
    assert "50 %, rank 1" in detail.inner_text()
    assert detail.locator("tbody tr").count() == 2
    options.first.click()
    assert "90 %, rank 1" in detail.inner_text()
    assert "perplexity 3.54" in stub.page.locator(".wb-panel").inner_text()


def test_tools_and_json_are_shown_indented_and_exact(stub: Stub) -> None:
    call = {"name": "weather", "id": "c", "arguments": '{"city":"Kyoto","at":[1.50,{}]}'}
    exact = '{"rain": 0.80, "big": 12345678901234567890, "say": "a, {b}: \\"c\\""}'
    stub.state(user("1", "Rain?"), answer("2", "", tools=[call]), answer("3", exact))
    shown = stub.page.locator('[data-turn="2"] pre').inner_text()
    assert shown == '{\n  "city": "Kyoto",\n  "at": [\n    1.50,\n    {}\n  ]\n}'
    wanted = '{\n  "rain": 0.80,\n  "big": 12345678901234567890,\n  "say": "a, {b}: \\"c\\""\n}'
    assert stub.page.locator('[data-turn="3"] pre').inner_text() == wanted


def test_what_another_view_asked_for_opens_nothing_here(stub: Stub) -> None:
    stub.feed({"type": "prompt", "id": "2", "text": "Hi", "pieces": [], "note": None})
    assert stub.page.locator(".wb-panel").count() == 0
