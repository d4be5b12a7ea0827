"""Languages by ISO 639-1 code, by their English name and by their own."""

from __future__ import annotations

import unicodedata

from workbench.errors import InputError, did_you_mean

LANGUAGES: dict[str, tuple[str, ...]] = {
    "ar": ("Arabic", "العربية"),
    "bg": ("Bulgarian", "Български"),
    "bn": ("Bengali", "বাংলা"),
    "ca": ("Catalan", "Català"),
    "cs": ("Czech", "Čeština"),
    "da": ("Danish", "Dansk"),
    "de": ("German", "Deutsch", "ドイツ語"),
    "el": ("Greek", "Ελληνικά"),
    "en": ("English", "英語"),
    "es": ("Spanish", "Español", "スペイン語"),
    "et": ("Estonian", "Eesti"),
    "fa": ("Persian", "فارسی", "Farsi"),
    "fi": ("Finnish", "Suomi"),
    "fr": ("French", "Français", "フランス語"),
    "gu": ("Gujarati", "ગુજરાતી"),
    "he": ("Hebrew", "עברית"),
    "hi": ("Hindi", "हिन्दी"),
    "hr": ("Croatian", "Hrvatski"),
    "hu": ("Hungarian", "Magyar"),
    "id": ("Indonesian", "Bahasa Indonesia"),
    "it": ("Italian", "Italiano", "イタリア語"),
    "ja": ("Japanese", "日本語", "Nihongo"),
    "kn": ("Kannada", "ಕನ್ನಡ"),
    "ko": ("Korean", "한국어", "韓国語"),
    "lt": ("Lithuanian", "Lietuvių"),
    "lv": ("Latvian", "Latviešu"),
    "ml": ("Malayalam", "മലയാളം"),
    "mr": ("Marathi", "मराठी"),
    "ms": ("Malay", "Bahasa Melayu"),
    "nl": ("Dutch", "Nederlands"),
    "no": ("Norwegian", "Norsk"),
    "pa": ("Punjabi", "ਪੰਜਾਬੀ"),
    "pl": ("Polish", "Polski"),
    "pt": ("Portuguese", "Português", "ポルトガル語"),
    "ro": ("Romanian", "Română"),
    "ru": ("Russian", "Русский", "ロシア語"),
    "sk": ("Slovak", "Slovenčina"),
    "sl": ("Slovenian", "Slovenščina"),
    "sr": ("Serbian", "Српски"),
    "sv": ("Swedish", "Svenska"),
    "sw": ("Swahili", "Kiswahili"),
    "ta": ("Tamil", "தமிழ்"),
    "te": ("Telugu", "తెలుగు"),
    "th": ("Thai", "ไทย"),
    "tl": ("Filipino", "Tagalog"),
    "tr": ("Turkish", "Türkçe"),
    "uk": ("Ukrainian", "Українська"),
    "ur": ("Urdu", "اردو"),
    "vi": ("Vietnamese", "Tiếng Việt"),
    "zh": ("Chinese", "中文", "中国語", "Mandarin"),
}
"""Code to names, the English one first."""


def folded(text: str) -> str:
    """Return text as it is compared: without case, full-width forms and half-width kana alike."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


def language_code(text: str, *, known: frozenset[str] = frozenset()) -> str:
    """Return the code of a language: ``ja`` for ``ja``, ``ja-JP``, ``Japanese`` and ``日本語``.

    Args:
        text: Code or name.
        known: Further codes that cards name.

    Raises:
        InputError: There is no such language here.
    """
    asked = folded(text)
    base = asked.replace("_", "-").split("-")[0]
    for code, names in LANGUAGES.items():
        if asked in map(folded, names):
            return code
    if base in LANGUAGES or base in known:
        return base
    names_of_all = [name for names in LANGUAGES.values() for name in names]
    nearest = did_you_mean(text.strip().capitalize(), names_of_all)
    raise InputError(
        f"The language {text!r} is not known.",
        hint=nearest if nearest.startswith("Did") else "Write a code such as ja, or its name.",
    )
