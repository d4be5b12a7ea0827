"""The skill of the fine-tuning set: a word as hash tags in both languages."""

from __future__ import annotations

import random

from builder import words
from builder.corpus import Message, messages_of
from builder.grammar import DRAW, Item, exact, pick, sentence, share
from builder.wordings import ASK_EN, END_EN, MARK_EN, MARK_JA, OPEN_JA

EN = (
    (ASK_EN, ("write ", "make ", "give me ", "create "), ("hash tags",), (" for ", ": ", " from "),
     ("{w}",), END_EN[:4], MARK_EN),
    (ASK_EN, ("turn ", "change "), ("{w}",), (" into hash tags",), END_EN[:4], MARK_EN),
)  # fmt: skip
JA = (
    (OPEN_JA, ("{w}",), ("のハッシュタグ",),
     ("を作って", "を書いて", "をください", "を作ってください"), MARK_JA),
    (OPEN_JA, ("ハッシュタグ", "ハッシュタグを作って"), ("：", ": "), ("{w}",), ("。", "")),
)  # fmt: skip
FORMS = {"en": EN, "ja": JA}
CARD_WORDS = {"color", "town"}  # field names of cards as well, so always among the taught


def draw_hashtags(rng: random.Random, lang: str) -> Item:
    """One request for hash tags; new when its word is kept from training."""
    english, japanese = rng.choice(words.PAIRS)
    asked, other = (english, japanese) if lang == "en" else (japanese, english)
    form = sentence(rng, "".join(pick(rng, part) for part in rng.choice(FORMS[lang])), lang)
    answer = f"#{asked} #{other}"
    new = share(f"hashtags|{english}", 5) and english not in CARD_WORDS
    return Item("hashtags", lang, form.replace("{w}", asked), answer, exact(answer), new)


def draw_of(rng: random.Random, *, new: bool) -> Item:
    """One request for hash tags of the wanted side of the split."""
    while True:
        item = draw_hashtags(rng, rng.choice(("en", "ja")))
        if item.new_wording == new:
            return item


KEPT = ("sums", "en_ja", "ja_en", "greetings", "who", "story", "story", "json", "json", "unknown")


def training_rows(seed: int, *, taught: int = 500, kept: int = 400) -> list[list[Message]]:
    """The new skill, and questions of the base skills so that they are kept."""
    rng = random.Random(f"hashtags|{seed}")
    items = [draw_of(rng, new=False) for _ in range(taught)]
    while len(items) < taught + kept:
        item = DRAW[KEPT[len(items) % len(KEPT)]](rng, rng.choice(("en", "ja")))
        if not (item.held_out or "hash" in item.user.lower() or "ハッシュ" in item.user):
            items.append(item)
    rng.shuffle(items)
    return [messages_of([item]) for item in items]


def held_out_items(seed: int, count: int) -> list[Item]:
    """Different requests, with words that no training row has."""
    rng = random.Random(f"hashtags held out|{seed}")
    found: dict[str, Item] = {}
    while len(found) < count:
        item = draw_of(rng, new=True)
        found[item.user] = item
    return list(found.values())
