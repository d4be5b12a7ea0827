"""Scorers judge right, wrong and hostile replies, and never hang."""

from __future__ import annotations

import threading
import time

import pytest

from workbench.errors import InputError
from workbench.evaluate import scorers
from workbench.evaluate.scorers import check_scorer, judge

EXACT = {"type": "exact", "answer": "7"}
CONTAINS = {"type": "contains", "answers": ["seven", "七"]}
REGEX = {"type": "regex", "pattern": r"A (?:cat|dog)\. [a-z ]+"}
JSON = {"type": "json", "answer": {"name": "ユイ", "age": 84, "tags": ["a", None, True]}}


@pytest.mark.parametrize(
    ("reply", "scorer", "right"),
    [
        (" 7\n", EXACT, True),
        ("7.", EXACT, False),
        ("", EXACT, False),
        ("That is seven!", CONTAINS, True),
        ("七です", CONTAINS, True),
        ("Seven", CONTAINS, False),
        ("A cat. it sleeps", REGEX, True),
        ("  A dog. it runs ", REGEX, True),
        ("A cat. it sleeps!", REGEX, False),
        ("Once: A cat. it sleeps", REGEX, False),
        ('{"age": 84, "name": "ユイ", "tags": ["a", null, true]}', JSON, True),
        ('{"age": 84.0, "name": "ユイ", "tags": ["a", null, true]}', JSON, True),
        ('Here:\n```json\n{"age": 84, "name": "ユイ", "tags": ["a", null, true]}\n```', JSON, True),
        ('{"age": 84, "name": "ユイ", "tags": ["a", null, 1]}', JSON, False),
        ('{"age": 84, "name": "ユイ", "tags": ["a", null]}', JSON, False),
        ('{"age": "84", "name": "ユイ", "tags": ["a", null, true]}', JSON, False),
        ('{"age": 84, "name": "ユイ", "tags": ["a", null, true], "x": 1}', JSON, False),
        ('{"age": 1, "age": 84, "name": "ユイ", "tags": ["a", null, true]}', JSON, False),
        ('{"age": 84, "name": "ユイ", "tags": ["a", null, true]', JSON, False),
        ("[" * 15_000, JSON, False),
        ("9" * 15_000, JSON, False),
        ("NaN", {"type": "json", "answer": None}, False),
        ("null", {"type": "json", "answer": None}, True),
        (" " * 30_000 + "A cat. it sleeps", REGEX, True),
        ("A cat. " + "a" * 30_000, REGEX, False),
    ],
)
def test_a_reply_is_judged(reply: str, scorer: dict, right: bool) -> None:
    check_scorer(scorer)
    (judgement,) = judge([reply], [scorer])
    assert judgement.right is right
    assert judgement.why


def test_many_replies_are_judged_in_order() -> None:
    found = judge(
        ["A cat. it", "7", "A cow. it", "A dog. it", "seven"],
        [REGEX, EXACT, REGEX, REGEX, CONTAINS],
    )
    assert [judgement.right for judgement in found] == [True, True, False, True, True]


def test_a_catastrophic_pattern_costs_its_own_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "PATIENCE", 0.5)
    hostile = {"type": "regex", "pattern": "(a+)+b"}
    result: list[scorers.Judgement] = []
    worker = threading.Thread(  # outside the main thread, where no alarm signal would help
        target=lambda: result.extend(
            judge(["A cat. it", "a" * 60, "A dog. it", "aab"], [REGEX, hostile, REGEX, hostile])
        )
    )
    worker.start()
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert [judgement.right for judgement in result] == [True, False, True, True]
    assert "took more than 0.5 s" in result[1].why


def test_the_matcher_is_gone_after_judging() -> None:
    import psutil

    before = {child.pid for child in psutil.Process().children()}
    judge(["A cat. it"], [REGEX])
    time.sleep(0.05)
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"type": "exakt", "answer": "7"}, "Did you mean 'exact'"),
        ({"answer": "7"}, "no scorer None"),
        ("exact", "not an object"),
        ({"type": "exact"}, "needs 'answer'"),
        ({"type": "exact", "answer": 7}, "non-empty string, not 7"),
        ({"type": "exact", "answer": "7", "anwser": "8"}, "no key 'anwser'"),
        ({"type": "contains", "answers": []}, "list of non-empty strings"),
        ({"type": "contains", "answers": ["a", ""]}, "list of non-empty strings"),
        ({"type": "contains", "answers": "a"}, "list of non-empty strings"),
        ({"type": "regex", "pattern": "(a"}, "no regular expression"),
        ({"type": "regex", "pattern": ""}, "non-empty string"),
    ],
)
def test_a_scorer_that_could_not_judge_is_refused(scorer: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_scorer(scorer)
