"""Generated strings that try a tokenizer: English, Japanese, code, emoji, odd blanks, controls."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

BUILDER = Path(__file__).resolve().parents[2] / "data" / "tiny-chat"
if str(BUILDER) not in sys.path:
    sys.path.insert(0, str(BUILDER))

from builder.corpus import conversation  # noqa: E402

CODE = (
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < 10; i++) {", "}\n\n\n", "\t\tif a != b:",
    'print("hi")', "x = [1, 2, 3]\r\n", "# note", "/* a */", "a->b::c<d>", "'''",
    "SELECT * FROM t;",
    "<div class='x'>", "&amp;", "https://example.org/a?b=c&d=1#e", "0x1F600", "3.14159e-10", "\\n",
    "don't we'll I'M he'D they'Re it's", "__init__", "--flag=value", "$HOME/.x", "{{ y }}", "%s",
)  # fmt: skip
EMOJI = (
    "😀", "👍🏽", "👨‍👩‍👧‍👦", "🇯🇵", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "☺", "✈️", "🤖", "1️⃣", "🫠", "🧑🏿‍🚀", "©", "™",
)  # fmt: skip
BLANKS = (
    " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", " \n ", "\u00a0", "\u3000", "\u2003", "\u200b",
    "\u202f", "\u1680", "\u2028", "\u2029", "\u205f", "\ufeff", "\u180e", "\u0085", "\x0b", "\x0c",
)  # fmt: skip
ACCENTS = (
    "e\u0301", "é", "ñ", "n\u0303", "\u212b", "ﬁ", "Ω", "ß", "ǅ", "İ", "か\u3099", "が", "ｶﾞ", "ﾊﾟ",
    "Ａ１", "①", "½", "Ⅳ", "٣", "四", "㊀", "𝟘", "²", "〇", "々", "ー", "・", "～",
    "한국어", "中文",
    "Привет", "שלום", "مرحبا", "हिन्दी", "ไทย", "ελλ", "𠮷", "🀄", "\u0300", "ʼ", "’s", "＇s",
)  # fmt: skip
CONTROLS = tuple(chr(i) for i in (*range(32), *range(127, 160)))
KANA = tuple(chr(i) for i in range(0x3041, 0x30FF))
KANJI = tuple(chr(i) for i in range(0x4E00, 0x4E00 + 2000))


def _any_character(rng: random.Random) -> str:
    """Any assigned character outside of the private and surrogate areas."""
    while True:
        character = chr(rng.randrange(0x20, 0x30000))
        if unicodedata.category(character) not in ("Cs", "Co", "Cn"):
            return character


def _chat(rng: random.Random) -> str:
    """One text of the training grammar."""
    return conversation(rng)[-rng.choice((1, 2))]["content"]


KINDS: tuple[Callable[[random.Random], str], ...] = (
    _chat,
    _chat,
    lambda rng: rng.choice(CODE),
    lambda rng: rng.choice(EMOJI),
    lambda rng: rng.choice(BLANKS),
    lambda rng: rng.choice(BLANKS),
    lambda rng: rng.choice(ACCENTS),
    lambda rng: rng.choice(CONTROLS),
    lambda rng: "".join(rng.choices(KANA, k=rng.randint(1, 6))),
    lambda rng: "".join(rng.choices(KANJI, k=rng.randint(1, 4))),
    lambda rng: str(rng.randint(0, 10**9)),
    lambda rng: "".join(chr(rng.randrange(33, 127)) for _ in range(rng.randint(1, 8))),
    lambda rng: "".join(_any_character(rng) for _ in range(rng.randint(1, 3))),
)


def odd_strings(count: int, *, seed: int = 0) -> list[str]:
    """So many strings of one to six pieces of mixed kinds, the same for the same seed."""
    rng = random.Random(f"odd strings|{seed}")
    return ["".join(rng.choice(KINDS)(rng) for _ in range(rng.randint(1, 6))) for _ in range(count)]
