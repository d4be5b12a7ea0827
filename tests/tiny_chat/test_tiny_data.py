from __future__ import annotations

import hashlib
import json
import random
import re
from functools import cache
from pathlib import Path

import pytest
from builder import grammar, heldout, words
from builder.corpus import FIRST_CHANGE, LAST_CHANGE, conversations, rows
from builder.grammar import DRAW, is_new_pair, story_pattern, tell_story
from builder.hashtags import held_out_items, training_rows
from builder.scoring import is_right


def digest(value: object) -> str:
    """The SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def test_data_are_the_same_to_the_byte_for_the_same_seed() -> None:
    assert (
        digest(rows(0, 500)) == "ec7aa068ddea415b589ce7628c1c2ae5f35fbc2cedac1e1e3163abbdf9832050"
    )
    assert (
        digest(training_rows(0))
        == "08ba78ab63025e1e1e5a169dc48c1feec141e6be2339058a60a3bb034be2fdf7"
    )


def test_another_seed_or_step_gives_other_data() -> None:
    assert rows(0, 50) != rows(1, 50)
    first, second = conversations(0, 1), conversations(0, 2)
    assert [next(first) for _ in range(20)] != [next(second) for _ in range(20)]


def test_shipped_sets_are_what_the_builder_writes(data: Path, tmp_path: Path) -> None:
    heldout.write_sets(tmp_path)
    written = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.jsonl"))
    assert len(written) == 16
    for path in written:
        assert (data / path).read_bytes() == (tmp_path / path).read_bytes(), path


def test_every_word_has_one_translation_each_way() -> None:
    assert len({english for english, _ in words.PAIRS}) == len(words.PAIRS)
    assert len({japanese for _, japanese in words.PAIRS}) == len(words.PAIRS)


@cache
def trained_questions() -> frozenset[str]:
    """Questions of blocks early and late in the training, single and in later turns."""
    found: set[str] = set()
    for block in (
        *range(6),
        *range(FIRST_CHANGE, FIRST_CHANGE + 4),
        *range(LAST_CHANGE, LAST_CHANGE + 6),
    ):
        for turns in ((1,), (1, 2, 3, 4)):
            stream = conversations(0, block, turns=turns)
            for _ in range(320):
                found |= {m["content"] for m in next(stream) if m["role"] == "user"}
    return frozenset(found)


def test_training_never_asks_a_held_out_question(data: Path) -> None:
    seen = trained_questions()
    assert len(seen) > 5000
    asked = set()
    for path in sorted((data / "prompts").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            asked |= {m["content"] for m in json.loads(line)["messages"] if m["role"] == "user"}
    assert len(asked) > 300
    assert not seen & asked


def test_training_never_adds_a_held_out_pair() -> None:
    pairs = set()
    for question in trained_questions():
        numbers = [int(n) for n in re.findall(r"\d+", question)]
        sum_asked = re.search(r"\d ?(\+|plus|足す|たす) ?\d", question)
        if sum_asked and len(numbers) == 2:
            pairs.add((numbers[0], numbers[1]))
    assert len(pairs) > 1000
    assert not [pair for pair in pairs if is_new_pair(*pair)]
    operands = range(grammar.LARGEST_OPERAND + 1)
    new = sum(is_new_pair(a, b) for a in operands for b in operands)
    assert 0.08 < new / len(operands) ** 2 < 0.17


def test_prompt_sets_have_the_promised_form(data: Path) -> None:
    total, ids = 0, set()
    for skill in heldout.SKILLS:
        for lang in heldout.LANGUAGES:
            text = (data / "prompts" / f"{skill}.{lang}.jsonl").read_text("utf-8")
            lines = [json.loads(line) for line in text.splitlines()]
            total += len(lines)
            for line in lines:
                assert list(line) == ["id", "skill", "lang", "messages", "scorer"]
                assert (line["skill"], line["lang"]) == (skill, lang)
                assert line["scorer"]["type"] in ("exact", "contains", "regex", "json")
                ids.add(line["id"])
    assert len(ids) == total == 240


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_story_pattern_takes_every_story_and_refuses_wrong_ones(lang: str) -> None:
    rng = random.Random(1)
    for pair in words.HEROES:
        hero = pair[lang == "ja"]
        pattern = story_pattern(lang, hero)
        for _ in range(40):
            story = tell_story(rng, lang, hero)
            assert re.fullmatch(pattern, story), story
            assert not re.fullmatch(pattern, story[:-1])
            assert not re.fullmatch(pattern, f"{story} {story}")
            assert not re.fullmatch(pattern, story.replace(hero, "dragon"))
        assert not re.fullmatch(pattern, tell_story(rng, lang, "dragon"))


def test_english_stories_use_the_right_article() -> None:
    pattern = story_pattern("en", "cat")
    right = "An old cat lived by the sea. One day, it saw a red umbrella and went home."
    assert re.fullmatch(pattern, right)
    assert not re.fullmatch(pattern, right.replace("An old", "A old"))
    assert not re.fullmatch(pattern, right.replace("a red", "an red"))


@pytest.mark.parametrize("skill", sorted(DRAW))
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_scorers_take_the_right_answer_and_refuse_others(skill: str, lang: str) -> None:
    rng = random.Random(2)
    items = [DRAW[skill](rng, lang) for _ in range(200)]
    for item in items:
        assert "{" not in item.user, item.user
        assert is_right(f" {item.answer}\n", item.scorer)
        assert not is_right(item.answer[:-1], item.scorer)
        assert not is_right("", item.scorer)


def test_scorer_types() -> None:
    assert is_right("it is 7.", {"type": "contains", "answers": ["8", "7"]})
    assert not is_right("it is 9.", {"type": "contains", "answers": ["8", "7"]})
    assert is_right('{"b": 1, "a": "x"}', {"type": "json", "answer": {"a": "x", "b": 1}})
    assert not is_right('{"a": "x"}', {"type": "json", "answer": {"a": "x", "b": 1}})
    assert not is_right('{"a": ', {"type": "json", "answer": {}})
    with pytest.raises(ValueError, match="unknown scorer type 'near'"):
        is_right("x", {"type": "near"})


def test_fine_tuning_items_are_apart() -> None:
    trained = {m["content"] for row in training_rows(0) for m in row if m["role"] == "assistant"}
    held_out = {item.answer for item in held_out_items(0, 100)}
    assert sum(answer.startswith("#") for answer in trained) > 150
    assert len(held_out) > 30
    assert not trained & held_out
