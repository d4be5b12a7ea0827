"""Texts that show whether two tokenizers agree: hand-picked cases and strings made of tokens."""

from __future__ import annotations

import dataclasses
import random
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

TEXTS: tuple[str, ...] = (
    "Hello, world!",
    "The quick brown fox jumps over 13 lazy dogs.",
    "I'm sure you're right; we've said they'll see it, he'd agree. DON'T! IT'S WE'LL",
    "0 1 12 123 1234 12345 123456 1234567 3.14 1,000,000 2026-11-20 0x1F 1e-10",
    "3+4=7 12*12=144 x^2 a_b __init__ foo.bar(baz)[0]",
    "def add(a: int, b: int) -> int:\n    return a + b\n\n\nclass A:\n\tpass\n",
    "if (a && b || !c) { return a->b::c<d>(); } // comment\r\n/* block */\r\n",
    '{"name": "x", "list": [1, 2.5, -3e4, null, true], "t": "\\n\\u00e9"}',
    "<html><body class='a'>&nbsp;&amp;</body></html> https://example.org/a?b=c&d=%20#e",
    " leading", "  two leading", "trailing ", "trailing  ", " ", "  ", "   ", "        ",
    "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n", "\n ", " \n \n", "\r\n", "\r",
    "a\n\n b", "a \n\tb",
    "word   word    word     word",
    "tab\tseparated\t\tvalues\nnew line \n  indented\n\t\ttabs and   blanks",
    "CamelCaseWords and ALLCAPS and snake_case and kebab-case",
    "!!!???...---===+++***///\\\\\\|||###@@@$$$%%%^^^&&&((()))[[[]]]{{{}}}",
    "'quoted' \"double\" `back` «guillemets» “curly” ‘single’ – — …",
    "こんにちは、世界。ねこは英語でcatです。カタカナとひらがなと漢字123",
    "今日は良い天気ですね！「3たす4は？」『7』です。ＡＢＣ１２３",
    "你好，世界！我想在apple工作1314151天～",
    "안녕하세요 세계 123",
    "Привет, мир! Ёлка и Щука 2026",
    "مرحبا بالعالم ١٢٣", "שלום עולם", "नमस्ते दुनिया १२३", "สวัสดีชาวโลก", "Γειά σου Κόσμε",
    "Tiếng Việt có dấu, Çağrı, Łódź, naïve café, ÅÄÖ, ß, œuvre, Ĳ, ﬁ",
    "emoji: 🚀 😀😀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ✅ ❤️ 🇯🇵",
    "½ ² ³ № ™ © ® ∑ ∫ √ ∞ ≠ ≤ → ⇒ α β γ",
    "zero\u200bwidth\u200djoiner\ufeffbom non\u00a0breaking\u3000ideographic\u2003em",
    "control \x01\x02\x1b[0m \x7f end",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "================================",
    "a" * 3 + " " * 40 + "b", "\n" * 12 + "x", "x" + " " * 17 + "\n" * 3 + " y",
)  # fmt: skip
"""Contractions, digits, blanks, line ends, code, scripts, emoji, controls, long runs."""

DECOMPOSED: tuple[str, ...] = (
    "cafe\u0301 re\u0301sume\u0301 A\u030a o\u0308",
    "か\u3099き\u3099く\u3099 は\u309a",
)
"""Accents as characters of their own; llama.cpp has no NFC, so a tokenizer with NFC differs."""

MADE = 400
MOST_MADE_DIFFERENCES = 0.01
"""Share of made strings that may differ: rare characters whose Unicode class changed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far two tokenizers agree.

    Attributes:
        texts: Hand-picked texts and texts with special tokens.
        differing: Those tokenized differently.
        made: Strings made of the vocabulary's own tokens.
        made_differing: Those tokenized differently.
    """

    texts: int
    differing: tuple[str, ...]
    made: int
    made_differing: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether every picked text agrees, and made strings but for rare characters."""
        return not self.differing and len(self.made_differing) <= MOST_MADE_DIFFERENCES * self.made

    @property
    def badness(self) -> int:
        """Number of all strings that differ."""
        return len(self.differing) + len(self.made_differing)


def probe_texts(tokenizer: Any, *, normalizes: bool, keeps_leading_blank: bool) -> list[str]:
    """Return the texts to compare for a Hugging Face tokenizer.

    Args:
        tokenizer: Its special tokens are tried within texts.
        normalizes: It has NFC or NFKC; decomposed accents are then left out.
        keeps_leading_blank: False for SentencePiece kinds, whose rule for a leading blank llama.cpp
            does not share; texts that begin with one are then left out.
    """
    special = [str(token) for token in tokenizer.all_special_tokens[:8]]
    special += [token for token in list(tokenizer.get_added_vocab())[:24] if token not in special]
    texts = [*TEXTS, *(() if normalizes else DECOMPOSED)]
    texts += [f"one{token}two" for token in special]
    if special:
        texts.append("".join(f"{token}user\nhi" for token in special[:8]))
    if normalizes:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    if not keeps_leading_blank:
        texts = [text for text in texts if text.strip() == text]
    return texts


def made_texts(tokenizer: Any, *, keeps_leading_blank: bool, count: int = MADE) -> list[str]:
    """Return strings joined from random tokens of the vocabulary, the same on every call."""
    rng = random.Random(0)
    added = set(tokenizer.get_added_vocab().values())
    usable = []
    for token in range(len(tokenizer)):
        text = "" if token in added else tokenizer.decode([token])
        if text and "\ufffd" not in text and unicodedata.is_normalized("NFC", text):
            usable.append(text)
    made = []
    for _ in range(count if usable else 0):
        text = "".join(rng.choices(usable, k=rng.randint(2, 8)))
        text = unicodedata.normalize("NFC", text)
        made.append(text if keeps_leading_blank else text.strip() or "x")
    return made


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Strings with the ids that the source's tokenizer gives them.

    Attributes:
        picked: Hand-picked texts and texts with special tokens, each with its ids.
        made: Strings made of tokens, each with its ids.
    """

    picked: tuple[tuple[str, list[int]], ...]
    made: tuple[tuple[str, list[int]], ...]

    @classmethod
    def of(cls, tokenizer: Any, *, normalizes: bool, keeps_leading_blank: bool) -> Probes:
        """Tokenize everything with a Hugging Face tokenizer; see ``probe_texts``."""
        picked = probe_texts(
            tokenizer, normalizes=normalizes, keeps_leading_blank=keeps_leading_blank
        )
        made = made_texts(tokenizer, keeps_leading_blank=keeps_leading_blank)
        return cls(picked=_with_ids(tokenizer, picked), made=_with_ids(tokenizer, made))

    def compare(self, found: Callable[[str], Sequence[int]]) -> Comparison:
        """Tokenize every string with ``found`` and return where it differs."""
        return Comparison(
            texts=len(self.picked),
            differing=tuple(text for text, ids in self.picked if list(found(text)) != ids),
            made=len(self.made),
            made_differing=tuple(text for text, ids in self.made if list(found(text)) != ids),
        )


def _with_ids(tokenizer: Any, texts: Sequence[str]) -> tuple[tuple[str, list[int]], ...]:
    return tuple((text, list(tokenizer.encode(text, add_special_tokens=False))) for text in texts)
