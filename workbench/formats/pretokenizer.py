"""Names llama.cpp's pre-tokenizer for a tokenizer.json: likely names first, tried by tokenizing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import FormatError

# One name for each behaviour of llama.cpp's BPE pre-tokenizers; those with the longest use first.
_ALL = (
    "gpt-2", "llama-bpe", "smaug-bpe", "qwen2", "gpt-4o", "tekken", "smollm", "starcoder", "qwen35",
    "deepseek-v3", "deepseek-llm", "deepseek-coder", "falcon", "command-r", "refact", "codeshell",
    "exaone", "exaone4", "exaone-moe", "minerva-7b", "mpt", "olmo", "dbrx", "jais", "jais-2",
    "trillion", "stablelm2", "megrez", "hunyuan", "hunyuan-dense", "poro-chat", "bloom",
    "gpt3-finnish", "chatglm-bpe", "glm4", "viking", "chameleon", "minimax-m2", "kimi-k2",
    "superbpe", "bailingmoe", "seed-coder", "ufakzeka", "grok-2", "afmoe", "solar-open", "minicpm5",
    "youtu", "joyai-llm", "tiny_aya", "granite-docling", "laguna", "mellum2", "sarvam-moe",
)  # fmt: skip

_THREE_DIGITS, _ONE_DIGIT = r"\p{N}{1,3}", r"\p{N}|"
_CASE_SPLIT = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_CJK = "一-龥"


def candidates(tokenizer: Mapping[str, Any]) -> list[str]:
    """Return llama.cpp's names, those that fit the structure of a tokenizer.json first.

    The order is a hint; which name is right is decided by tokenizing (``probes``).
    """
    likely = _likely(tokenizer)
    return [*likely, *(name for name in _ALL if name not in likely)]


def _likely(tokenizer: Mapping[str, Any]) -> list[str]:
    """Return the names that the pre-tokenizer's own parts speak for."""
    parts = _flat(tokenizer.get("pre_tokenizer"))
    kinds = [part.get("type") for part in parts]
    splits = " ".join(_pattern(part) for part in parts if part.get("type") == "Split")
    whole = bool(tokenizer.get("model", {}).get("ignore_merges"))
    if _CJK in splits and _THREE_DIGITS in splits:
        return ["deepseek-v3", "hunyuan-dense", "joyai-llm", "deepseek-llm"]
    if _CASE_SPLIT in splits:
        three = _THREE_DIGITS in splits
        return ["gpt-4o", "minimax-m2", "kimi-k2"] if three else ["tekken", "gpt-4o"]
    if r"[\p{L}\p{M}]+" in splits:
        return ["qwen35"]
    if _THREE_DIGITS in splits:
        return ["llama-bpe", "smaug-bpe"] if whole else ["smaug-bpe", "llama-bpe", "dbrx"]
    if _ONE_DIGIT in splits:
        return ["qwen2", "stablelm2", "hunyuan"]
    if "Digits" in kinds and "ByteLevel" in kinds:
        return ["smollm", "starcoder", "refact", "command-r"]
    if kinds == ["ByteLevel"]:
        return ["gpt-2", "exaone4", "olmo", "mpt"]
    return []


def _flat(part: Any) -> list[Mapping[str, Any]]:
    if not isinstance(part, Mapping):
        return []
    if part.get("type") == "Sequence":
        return [leaf for inner in part.get("pretokenizers", []) for leaf in _flat(inner)]
    return [part]


def _pattern(part: Mapping[str, Any]) -> str:
    pattern = part.get("pattern", {})
    return str(pattern.get("Regex") or pattern.get("String") or "")


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """Return the content of ``tokenizer.json``, or an empty mapping when there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def token_ids(tokenizer: Mapping[str, Any]) -> list[int]:
    """Return the ids of all tokens in a tokenizer.json."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    ids = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else range(len(vocabulary))
    return [*ids, *(entry["id"] for entry in tokenizer.get("added_tokens", []))]


def check_rows(folder: Path, tokens: Iterable[int], *, name: str) -> None:
    """Refuse a tokenizer with more tokens than the embedding of ``folder`` has rows.

    Raises:
        FormatError: Some token would have no row.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    needed = max(tokens, default=-1) + 1
    if rows is not None and needed > rows:
        raise FormatError(
            f"The tokenizer of {name} has {needed} tokens, but its embedding only {rows} rows.",
            hint="Resize the embedding, or take the tokenizer that belongs to the weights.",
        )


def kind_of(tokenizer: Mapping[str, Any]) -> str:
    """Return ``byte-level``, ``sentencepiece`` or ``other`` for a tokenizer.json.

    SentencePiece kinds are BPE or Unigram models with a token for each byte (``byte_fallback``) or
    blanks written as U+2581.
    """
    model = tokenizer.get("model", {})
    kinds = {part.get("type") for part in _flat(tokenizer.get("pre_tokenizer"))}
    if model.get("type") == "BPE" and "ByteLevel" in kinds and not model.get("byte_fallback"):
        return "byte-level"
    blanks = "Metaspace" in kinds or "▁" in json.dumps(
        tokenizer.get("normalizer"), ensure_ascii=False
    )
    if model.get("type") in ("BPE", "Unigram") and (model.get("byte_fallback") or blanks):
        return "sentencepiece"
    return "other"


def normalizes(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer applies a Unicode normal form, which llama.cpp does not."""
    text = json.dumps(tokenizer.get("normalizer"))
    return any(form in text for form in ('"NFC"', '"NFKC"', '"NFD"', '"NFKD"', '"Precompiled"'))
