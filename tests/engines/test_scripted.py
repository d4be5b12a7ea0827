"""The scripted engine: rules, order, speed, words."""

from __future__ import annotations

import time

import pytest

import workbench as wb
from workbench.engines.model import Model
from workbench.errors import EngineError, InputError


def scripted(script: object = None, **settings: object) -> Model:
    return wb.load("anything", engine="scripted", script=script, **settings)


def test_replies_come_in_order_and_then_again() -> None:
    model = scripted(["one", "two"])
    assert [model.ask("x").text for _ in range(5)] == ["one", "two", "one", "two", "one"]


def test_rules_come_before_the_replies_in_order() -> None:
    model = scripted(
        [
            {"exact": "ping", "say": "pong"},
            {"regex": r"^\d+$", "say": lambda messages: f"number {messages[-1].content}"},
            "else",
        ]
    )
    asked = [model.ask(text).text for text in ("ping", "12", "pinging", "12a")]
    assert asked == ["pong", "number 12", "else", "else"]


def test_functions_texts_and_echo() -> None:
    assert scripted(lambda messages: messages[0].role).ask("x").text == "user"
    assert scripted("always").ask("x").text == "always"
    assert scripted().ask([{"role": "user", "content": "echo"}]).text == "echo"


def test_a_script_without_an_answer_says_so() -> None:
    with pytest.raises(EngineError, match="no answer to 'what'"):
        scripted([{"exact": "other", "say": "x"}]).ask("what")


def test_unknown_rules_and_options_name_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'regex'"):
        scripted([{"regexp": "x"}])
    with pytest.raises(InputError, match="'bytes' or 'words'"):
        scripted("x", tokens="letters")
    with pytest.raises(InputError, match="replies and rules, not a int"):
        scripted([3])


def test_words_are_tokens_with_exact_bytes() -> None:
    model = scripted("the cat  saw 猫\n", tokens="words")
    pieces = list(model.stream("x"))
    assert [piece.text for piece in pieces[:3]] == ["the", " cat", "  saw"]
    assert "".join(piece.text for piece in pieces) == "the cat  saw 猫\n"
    assert model.detokenize(model.tokenize(" a  b a\n")) == b" a  b a\n"
    one, _, again = model.tokenize("a b a")
    assert model.detokenize([one]) + b"|" + model.detokenize([again]) == b"a| a"


def test_the_speed_is_kept() -> None:
    model = scripted("x" * 30, tokens_per_second=200)
    began = time.monotonic()
    model.ask("x")
    assert time.monotonic() - began >= 0.14  # 29 pauses of 5 ms: never faster than asked for


def test_it_needs_no_card_and_takes_the_context_of_one() -> None:
    assert scripted("x").card.id == "anything"
    assert scripted("x", context=64).plan.context == 64
    assert wb.load("tiny-chat", engine="scripted").plan.context == 2048
