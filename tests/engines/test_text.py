"""Whole characters, stop strings and ends, however bytes are split over tokens."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engines.text import TextAssembler, pieces

TEXTS = st.text(alphabet="abcあいう猫🐈👩‍👩‍👧é\n ", max_size=40)
ANY_BYTES = st.one_of(
    TEXTS.map(str.encode),
    st.binary(max_size=40),
    st.tuples(TEXTS.map(str.encode), st.binary(max_size=4), TEXTS.map(str.encode)).map(b"".join),
)
STOPS = st.lists(st.text(alphabet="abcあ猫", min_size=1, max_size=4), min_size=1, max_size=3)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def assembled(parts: list[bytes], stop: tuple[str, ...] = ()) -> list[str]:
    assembler = TextAssembler(stop)
    shown = []
    for part in parts:
        shown.append(assembler.feed(part))
        if assembler.stopped:
            break
    return [*shown, assembler.finish()]


def expected_with_stops(text: str, stops: list[str]) -> str:
    """Cut before the stop that is complete first, character by character: the plain definition."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(data=ANY_BYTES, cuts=st.lists(st.integers(0, 60), max_size=20))
def test_joined_pieces_equal_the_whole_for_any_bytes_and_any_split(
    data: bytes, cuts: list[int]
) -> None:
    assert "".join(assembled(split(data, cuts))) == data.decode("utf-8", "replace")


@given(text=TEXTS)
def test_no_piece_of_valid_text_shows_a_broken_character(text: str) -> None:
    shown = assembled([bytes([byte]) for byte in text.encode()])
    assert "�" not in "".join(shown)
    assert "".join(shown) == text


def test_a_character_comes_as_soon_as_it_is_whole() -> None:
    assembler = TextAssembler()
    cat = "猫".encode()
    assert [assembler.feed(cat[:1]), assembler.feed(cat[1:2]), assembler.feed(cat[2:])] == [
        "",
        "",
        "猫",
    ]


def test_bytes_that_cannot_become_a_character_are_shown_at_once() -> None:
    assembler = TextAssembler()
    assert assembler.feed(b"\xe7\x8c") == ""
    assert assembler.feed(b"a") == "�a"
    assert assembler.feed(b"\xff") == "�"


@settings(max_examples=400)
@given(
    text=st.text(alphabet="abcあ猫", max_size=30),
    stops=STOPS,
    cuts=st.lists(st.integers(0, 90), max_size=30),
)
def test_stop_strings_cut_the_same_place_however_the_text_is_split(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    data = text.encode()
    expected = expected_with_stops(text, stops)
    for parts in (split(data, cuts), [data], [bytes([byte]) for byte in data]):
        shown = assembled(parts, tuple(stops))
        assert "".join(shown) == expected
        for index in range(len(shown)):  # nothing is ever shown that would have to be taken back
            assert expected.startswith("".join(shown[: index + 1]))


def test_text_that_only_begins_like_a_stop_string_is_given_at_the_end() -> None:
    assembler = TextAssembler(("###",))
    assert assembler.feed(b"a##") == "a"
    assert assembler.finish() == "##"
    assert not assembler.stopped


def taken(
    tokens: list[int], *, limit: int = 99, stop: tuple[str, ...] = ()
) -> tuple[str, list[int | None], str | None]:
    found = list(
        pieces(
            iter(tokens),
            prompt_tokens=3,
            limit=limit,
            ends=(0,),
            to_bytes=lambda token: bytes([token]),
            stop=stop,
            began=0.0,
        )
    )
    assert [piece.finish_reason for piece in found[:-1]] == [None] * (len(found) - 1)
    last = found[-1]
    assert last.usage is not None
    assert last.timings is not None
    ids = [piece.token_id for piece in found]
    assert last.usage.completion_tokens == sum(index is not None for index in ids)
    return "".join(piece.text for piece in found), ids, last.finish_reason


def test_one_piece_for_each_token_and_the_last_says_why_it_ended() -> None:
    assert taken([97, 98, 0, 99]) == ("ab", [97, 98, 0], "stop")
    assert taken([97, 98, 99], limit=2) == ("ab", [97, 98], "length")
    assert taken([97, 98, 99, 100], stop=("bc",)) == ("a", [97, 98, 99], "stop")
    assert taken([0]) == ("", [0], "stop")


def test_no_token_is_computed_that_is_not_asked_for() -> None:
    asked = []

    def tokens():
        for token in (97, 98, 99):
            asked.append(token)
            yield token

    stream = pieces(
        tokens(),
        prompt_tokens=1,
        limit=2,
        ends=(),
        to_bytes=lambda token: bytes([token]),
        began=0.0,
    )
    next(stream)
    assert asked == [97]
    next(stream)
    assert asked == [97, 98]
    assert list(stream) == []
    assert asked == [97, 98]
