"""Spans rebuild both texts; first divergences are exact; long and hostile texts take no time."""

from __future__ import annotations

import itertools
import random
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.chats.difference import (
    Span,
    difference_html,
    difference_text,
    differences,
    differing_share,
    first_divergence,
    shortened,
    words,
)

TEXT = st.text(st.sampled_from("ab c\n.猫はカ<&é"), max_size=60)
SAFE = {"b", "div", "i", "span"}


def sides(spans: tuple[Span, ...]) -> tuple[str, str]:
    first = "".join(span.text for span in spans if span.kind != "added")
    second = "".join(span.text for span in spans if span.kind != "removed")
    return first, second


@settings(max_examples=400, deadline=None)
@given(TEXT, TEXT)
def test_spans_rebuild_both_texts_and_name_the_same_only_where_it_is(a: str, b: str) -> None:
    spans = differences(a, b)
    assert sides(spans) == (a, b)
    assert all(one.kind != two.kind for one, two in itertools.pairwise(spans))
    assert (differing_share(spans) == 0) == (a == b)


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT)
def test_the_first_divergence_is_the_first(a: str, b: str) -> None:
    found = first_divergence(a, b)
    expected = next((i for i, (x, y) in enumerate(itertools.zip_longest(a, b)) if x != y), None)
    assert found == expected
    assert first_divergence([*a], [*b]) == expected


def longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by the table of all prefixes."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def test_few_edits_are_found_exactly() -> None:
    chance = random.Random(3)
    for _ in range(200):
        a = [chance.choice("abcd") for _ in range(chance.randrange(25))]
        b = [chance.choice("abcd") for _ in range(chance.randrange(25))]
        spans = differences(".".join(a), ".".join(b))
        same = sum(len(words(span.text)) for span in spans if span.kind == "same")
        assert same == longest_common(words(".".join(a)), words(".".join(b)))


def test_words_are_words() -> None:
    assert words("The cat's 12  mats.\n") == [
        "The",
        " ",
        "cat",
        "'",
        "s",
        " ",
        "12",
        "  ",
        "mats",
        ".",
        "\n",
    ]
    assert words("東京のタワーは高い") == ["東", "京", "の", "タワー", "は", "高", "い"]
    assert "".join(words("สวัสดี नमस्ते 안녕하세요 🙂‍↔️")) == "สวัสดี नमस्ते 안녕하세요 🙂‍↔️"


def test_a_replaced_phrase_reads_as_one_and_japanese_is_marked_by_character() -> None:
    assert difference_text(differences("I see a red cat.", "I see one big cat.")) == (
        "I see [-a red-]{+one big+} cat."
    )
    assert difference_text(differences("猫は水が好きです。", "猫は魚が好きです。")) == (
        "猫は[-水-]{+魚+}が好きです。"
    )


def test_long_texts_are_compared_also_where_nothing_or_everything_is_alike() -> None:
    chance = random.Random(5)
    base = [str(chance.randrange(400)) for _ in range(3000)]
    edited = [word if chance.random() > 0.1 else "new" for word in base]
    hostile = {
        "edited": (" ".join(base), " ".join(edited)),
        "repeated": ("a b " * 5000, "b a c " * 3400),
        "few words": ("".join(chance.choices(["x ", "y "], k=5000)), "y " * 5000),
        "one line": ("a" * 1_000_000, "a" * 999_999 + "b"),
        "no spaces": ("猫" * 20_000, "犬" * 20_000),
    }
    for a, b in hostile.values():
        assert sides(differences(a, b)) == (a, b)
    assert differing_share(differences(*hostile["edited"])) < 0.2


def test_the_html_is_escaped_and_uses_only_what_a_sanitiser_leaves() -> None:
    spans = differences("one <b> two\n\nend", "one <script> two\n\nending")
    for side in ("first", "second", "both"):
        shown = difference_html(spans, side=side)
        assert set(re.findall(r"</?(\w+)", shown)) <= SAFE
        plain = re.sub(r"<[^>]*>", "", shown)
        assert ("&lt;script&gt;" in plain or "script" in plain) == (side != "first")
    assert "removed" not in difference_html(spans, side="second")


def test_long_stretches_are_cut_for_reading_only_where_nothing_differs() -> None:
    a = "same " * 400 + "cat" + " tail" * 400
    spans = shortened(differences(a, a.replace("cat", "dog")))
    shown = difference_text(spans)
    assert "[-cat-]{+dog+}" in shown
    assert "the same" in shown
    assert len(shown) < 1500
    flood = shortened(differences("x", "y" * 100_000))
    assert sum(len(span.text) for span in flood) < 7000


def test_nothing_unseen_steers_how_a_difference_is_shown() -> None:
    spans = differences("plain", "safe \u202egnp.exe \x1b[2J")
    for shown in (difference_text(spans), difference_html(spans, side="second")):
        assert "\u202e" not in shown
        assert "\x1b" not in shown
        assert "U+202E" in shown
