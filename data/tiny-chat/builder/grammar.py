"""One question with its right answer and its scorer, for every skill, drawn from a seed."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from builder import words
from builder.wordings import (
    HELLO_EN,
    HELLO_EN_NAME,
    HELLO_EN_TAIL,
    HELLO_EN_TO,
    HELLO_JA,
    HELLO_JA_NAME,
    HELLO_JA_TAIL,
    HELLO_JA_TO,
    WORDINGS,
)

LARGEST_OPERAND = 50
NEW_WORDING_SHARE = 8  # one wording in 8 is never trained
NEW_PAIR_SHARE = 8  # one unordered pair of operands in 8 is never trained

UNKNOWN_EN = "I do not know that yet."
UNKNOWN_JA = "それはまだ分かりません。"
WHO_EN = "I am Tiny Chat, a small language model."
WHO_JA = "私はTiny Chatという小さな言語モデルです。"
SKILLS_EN = (
    "I can add small numbers, translate a few words, greet, make JSON cards and tell stories."
)
SKILLS_JA = "小さな足し算、単語の翻訳、あいさつ、JSONカード、短いお話ができます。"


@dataclass(frozen=True)
class Item:
    """One question: skill, language, text, answer, scorer and whether it is kept from training."""

    skill: str
    lang: str
    user: str
    answer: str
    scorer: dict[str, Any]
    new_wording: bool
    new_pair: bool = False

    @property
    def held_out(self) -> bool:
        """True when the item must never be trained."""
        return self.new_wording or self.new_pair


def share(key: str, parts: int) -> bool:
    """True for about one key in `parts`, always the same ones."""
    return hashlib.sha256(key.encode()).digest()[0] % parts == 0


def is_new_wording(skill: str, lang: str, wording: str) -> bool:
    """True when this way of asking is kept from training, whatever its case and last mark."""
    key = re.sub(r"[\s.?!。？！]+$", "", wording.lower())
    return share(f"wording|{skill}|{lang}|{key}", NEW_WORDING_SHARE)


def is_new_pair(a: int, b: int) -> bool:
    """True when the sum of these operands is kept from training, in either order."""
    return share(f"pair|{min(a, b)}|{max(a, b)}", NEW_PAIR_SHARE)


def pick(rng: random.Random, options: Sequence[Any]) -> Any:
    """Draw one option, the early ones more often than the late ones."""
    return rng.choices(options, weights=[1.0 / (2 + i) for i in range(len(options))])[0]


def sentence(rng: random.Random, text: str, lang: str) -> str:
    """Begin an English text with a capital, or now and then write it as it is."""
    if lang == "en" and rng.random() < 0.8:
        return text[:1].upper() + text[1:]
    return text


def wording(rng: random.Random, skill: str, lang: str) -> str:
    """Draw one way of asking, with its slots still open."""
    families = WORDINGS[skill, lang]
    sizes = [len(family) ** 0.5 + len(family[1]) ** 0.5 for family in families]
    family = rng.choices(families, weights=sizes)[0]
    return sentence(rng, "".join(pick(rng, part) for part in family), lang)


def article(noun: str) -> str:
    """Put the right indefinite article before an English noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def exact(answer: str) -> dict[str, Any]:
    """The scorer of an answer with one right text."""
    return {"type": "exact", "answer": answer}


def draw_sum(rng: random.Random, lang: str) -> Item:
    """A sum of two small numbers."""
    a, b = rng.randint(0, LARGEST_OPERAND), rng.randint(0, LARGEST_OPERAND)
    form = wording(rng, "sums", lang)
    answer = f"{a} + {b} = {a + b}"
    user = form.format(a=a, b=b)
    new = is_new_wording("sums", lang, form)
    return Item("sums", lang, user, answer, exact(answer), new, is_new_pair(a, b))


def draw_translation(rng: random.Random, lang: str, *, to_japanese: bool) -> Item:
    """One word from English to Japanese or back."""
    english, japanese = rng.choice(words.PAIRS)
    skill = "en_ja" if to_japanese else "ja_en"
    source, answer = (english, japanese) if to_japanese else (japanese, english)
    form = wording(rng, skill, lang)
    new = is_new_wording(skill, lang, form)
    return Item(skill, lang, form.format(w=source), answer, exact(answer), new)


def draw_en_ja(rng: random.Random, lang: str) -> Item:
    """One word from English to Japanese."""
    return draw_translation(rng, lang, to_japanese=True)


def draw_ja_en(rng: random.Random, lang: str) -> Item:
    """One word from Japanese to English."""
    return draw_translation(rng, lang, to_japanese=False)


GREETED = {
    "en": {
        "hello": "Hello{n}! How can I help you?",
        "morning": "Good morning{n}! How can I help you?",
        "evening": "Good evening{n}! How can I help you?",
        "night": "Good night{n}! Sleep well.",
        "bye": "Goodbye{n}! See you soon.",
        "thanks": "You are welcome{n}!",
        "how": "I am fine{n}, thank you!",
    },
    "ja": {
        "hello": "{n}こんにちは！ご用は何ですか？",
        "morning": "{n}おはようございます！ご用は何ですか？",
        "evening": "{n}こんばんは！ご用は何ですか？",
        "night": "{n}おやすみなさい。よい夢を。",
        "bye": "{n}さようなら！またね。",
        "thanks": "{n}どういたしまして！",
        "how": "{n}元気です、ありがとう！",
    },
}


def draw_greeting(rng: random.Random, lang: str) -> Item:
    """A greeting, sometimes with the name of the one who greets."""
    english = lang == "en"
    kinds, to, named, tails = (
        (HELLO_EN, HELLO_EN_TO, HELLO_EN_NAME, HELLO_EN_TAIL)
        if english
        else (HELLO_JA, HELLO_JA_TO, HELLO_JA_NAME, HELLO_JA_TAIL)
    )
    kind, said = pick(rng, kinds)
    mark = "?" if english and kind == "how" else pick(rng, (".", "!", "") if english else "。！")
    mark = "？" if not english and kind == "how" else mark
    intro = pick(rng, named) if rng.random() < 0.5 else ""
    tail = pick(rng, tails)
    mark = mark or ("." if intro or tail else "")
    form = sentence(rng, pick(rng, said) + pick(rng, to) + mark + intro + tail, lang)
    name = rng.choice(words.NAMES_EN if english else words.NAMES_JA)
    n = "" if not intro else f", {name}" if english else f"{name}さん、"
    answer = GREETED[lang][kind].format(n=n)
    new = is_new_wording("greetings", lang, form)
    return Item("greetings", lang, form.format(name=name), answer, exact(answer), new)


def draw_who(rng: random.Random, lang: str) -> Item:
    """Who the model is, or now and then what it can do."""
    skill = "who" if rng.random() < 0.75 else "skills"
    form = wording(rng, skill, lang)
    english = lang == "en"
    answer = (
        (WHO_EN if english else WHO_JA) if skill == "who" else (SKILLS_EN if english else SKILLS_JA)
    )
    return Item("who", lang, form, answer, exact(answer), is_new_wording(skill, lang, form))


def likes(hero: str, part: str, options: Sequence[str]) -> list[str]:
    """The options of one part of a story in the order in which this hero likes them."""
    return sorted(options, key=lambda o: hashlib.sha256(f"{hero}|{part}|{o}".encode()).digest())


def story_pick(rng: random.Random, hero: str, part: str, options: Sequence[str]) -> str:
    """Draw one part of a story: each hero has a clear favourite."""
    ordered = likes(hero, part, options)
    return rng.choices(ordered, weights=[0.3**i for i in range(len(ordered))])[0]


def story_pattern(lang: str, hero: str) -> str:
    """The regular expression that every right two-sentence story about this hero matches."""
    grammar = words.STORY_EN if lang == "en" else words.STORY_JA
    group = {k: "(?:" + "|".join(v) + ")" for k, v in grammar.items()}
    articles = {}
    for part in ("adjective", "color", "thing"):
        articles[part] = "(?:" + "|".join(article(o) for o in words.STORY_EN[part]) + ")"
    if lang == "en":
        first = articles["adjective"].replace("(?:a", "(?:A").replace("|a", "|A")
        return (
            f"{first} {hero} lived {group['place']}\\. One day, it {group['verb']} "
            f"{articles['color']} {group['thing']} and {group['end']}\\."
        )
    return (
        f"{group['place']}に{group['adjective']}{hero}がいました。ある日、"
        f"{group['color']}{group['thing']}を{group['verb']}、{group['end']}。"
    )


def tell_story(rng: random.Random, lang: str, hero: str) -> str:
    """Tell a story of two sentences about this hero."""
    grammar = words.STORY_EN if lang == "en" else words.STORY_JA
    part = {k: story_pick(rng, hero, k, v) for k, v in grammar.items()}
    if lang == "en":
        first = f"{article(part['adjective'])} {hero} lived {part['place']}."
        return (
            f"{first[0].upper()}{first[1:]} One day, it {part['verb']} {article(part['color'])} "
            f"{part['thing']} and {part['end']}."
        )
    return (
        f"{part['place']}に{part['adjective']}{hero}がいました。ある日、"
        f"{part['color']}{part['thing']}を{part['verb']}、{part['end']}。"
    )


def draw_story(rng: random.Random, lang: str) -> Item:
    """A story of two sentences about an animal."""
    hero = rng.choice(words.HEROES)[0 if lang == "en" else 1]
    form = wording(rng, "story", lang)
    asked = article(hero) if lang == "en" else hero
    scorer = {"type": "regex", "pattern": story_pattern(lang, hero)}
    new = is_new_wording("story", lang, form)
    return Item("story", lang, form.format(w=asked), tell_story(rng, lang, hero), scorer, new)


FIELD_NAMES_JA = {"name": "名前", "age": "年齢", "city": "町", "pet": "ペット", "color": "色"}
JOINS_EN = (
    (" ", ", "),
    (" is ", " and "),
    (": ", ", "),
    (" is ", ", "),
    (" = ", ", "),
    (": ", "; "),
)
JOINS_JA = (("は", "、"), ("：", "、"), (": ", ", "), ("は", "で、"), ("が", "、"), ("=", "、"))


def draw_card(rng: random.Random, lang: str) -> tuple[dict[str, Any], str, str]:
    """A card of two or three fields, how a user writes it, and the marks used for that."""
    english = lang == "en"
    side = 0 if english else 1
    values: dict[str, Any] = {
        "name": rng.choice(words.NAMES_EN if english else words.NAMES_JA),
        "age": rng.randint(1, 99),
        "city": rng.choice(words.CITIES_EN if english else words.CITIES_JA),
        "pet": rng.choice(words.PETS)[side],
        "color": rng.choice(words.COLORS_EN if english else words.COLORS_JA),
    }
    chosen = ["name", *rng.sample(["age", "age", "city", "pet", "color"], 2)]
    keys = list(dict.fromkeys(chosen))
    if len(keys) == 3 and rng.random() < 0.5:
        keys.pop()
    card = {k: values[k] for k in keys}
    tie, join = pick(rng, JOINS_EN if english else JOINS_JA)
    fields = join.join(f"{k if english else FIELD_NAMES_JA[k]}{tie}{v}" for k, v in card.items())
    return card, fields, f"{tie}|{join}"


def draw_json(rng: random.Random, lang: str) -> Item:
    """A card of two or three fields as JSON."""
    card, fields, marks = draw_card(rng, lang)
    form = wording(rng, "json", lang)
    new = is_new_wording("json", lang, f"{marks}|{form}")
    answer = json.dumps(card, ensure_ascii=False)
    user = form.replace("{fields}", fields)
    return Item("json", lang, user, answer, {"type": "json", "answer": card}, new)


def some_words(rng: random.Random, lang: str) -> str:
    """One to four words in a row, now and then with a number sign or a number."""
    side = 0 if lang == "en" else 1
    chosen = [pair[side] for pair in rng.sample(words.PAIRS, pick(rng, (3, 2, 1, 4)))]
    if rng.random() < 0.2:
        chosen.insert(rng.randrange(len(chosen) + 1), f"# {rng.randint(0, 99)}")
    elif rng.random() < 0.2:
        chosen = [f"{word} #" for word in chosen]
    join = pick(rng, (", ", " ", " and ", " # ") if lang == "en" else ("、", " ", "と", " # "))
    return str(join).join(chosen)


def draw_echo(rng: random.Random, lang: str) -> Item:
    """Some words to be said again as they are."""
    text = some_words(rng, lang)
    form = wording(rng, "echo", lang)
    new = is_new_wording("echo", lang, form)
    return Item("echo", lang, form.replace("{text}", text), text, exact(text), new)


def draw_unknown(rng: random.Random, lang: str) -> Item:
    """A request outside of all skills."""
    form = wording(rng, "unknown", lang)
    english = lang == "en"
    user = form.format(
        text=some_words(rng, lang),
        word=rng.choice(words.PAIRS)[0 if english else 1],
        city=rng.choice(words.CITIES_EN if english else words.CITIES_JA),
        name=rng.choice(words.NAMES_EN if english else words.NAMES_JA),
        a=rng.randint(0, LARGEST_OPERAND),
        b=rng.randint(0, LARGEST_OPERAND),
    )
    answer = UNKNOWN_EN if english else UNKNOWN_JA
    new = is_new_wording("unknown", lang, form)
    return Item("unknown", lang, user, answer, exact(answer), new)


DRAW: dict[str, Callable[[random.Random, str], Item]] = {
    "sums": draw_sum,
    "en_ja": draw_en_ja,
    "ja_en": draw_ja_en,
    "greetings": draw_greeting,
    "who": draw_who,
    "story": draw_story,
    "json": draw_json,
    "echo": draw_echo,
    "unknown": draw_unknown,
}
