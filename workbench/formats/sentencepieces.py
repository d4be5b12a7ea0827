"""Rebuild ``tokenizer.model`` from tokenizer.json, for checkpoints saved without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def write_tokenizer_model(tokenizer: Mapping[str, Any], path: Path) -> None:
    """Write a SentencePiece model with the pieces of ``tokenizer`` (a tokenizer.json).

    The score of a piece is the negative rank of the merge that makes it, as SentencePiece trains
    BPE; a Unigram model keeps its own scores. Without the file, llama.cpp's converter would give
    all pieces one score and the GGUF would tokenize most texts wrongly.

    Args:
        tokenizer: Content of tokenizer.json, kind ``sentencepiece``.
        path: Where to write.
    """
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = tokenizer["model"]
    added = {entry["id"]: entry for entry in tokenizer.get("added_tokens", [])}
    pieces = _pieces(model)
    for token, entry in added.items():
        pieces.setdefault(token, (entry["content"], 0.0))
    unknown = model.get("unk_token") or (
        pieces[model["unk_id"]][0] if model.get("unk_id") is not None else None
    )
    built = proto.ModelProto()
    built.trainer_spec.model_type = (
        proto.TrainerSpec.BPE if model["type"] == "BPE" else proto.TrainerSpec.UNIGRAM
    )
    built.trainer_spec.byte_fallback = any(_BYTE.fullmatch(text) for text, _ in pieces.values())
    built.normalizer_spec.add_dummy_prefix = adds_blank(tokenizer)
    built.normalizer_spec.remove_extra_whitespaces = False
    built.normalizer_spec.name = "identity"
    for token in range(max(pieces) + 1):
        text, score = pieces.get(token, (f"[PAD{token}]", 0.0))
        piece = built.pieces.add()
        piece.piece, piece.score = text, score
        piece.type = _type(proto, text, unknown=unknown, entry=added.get(token))
    path.write_bytes(built.SerializeToString())


def _pieces(model: Mapping[str, Any]) -> dict[int, tuple[str, float]]:
    """Return id -> (piece, score)."""
    if model["type"] == "Unigram":
        return {token: (text, float(score)) for token, (text, score) in enumerate(model["vocab"])}
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    last = len(model["merges"])
    # Single characters are no merge: they come after all merges, so they never win one.
    return {
        token: (text, -float(ranks.get(text, last + token)))
        for text, token in model["vocab"].items()
    }


def _type(proto: Any, text: str, *, unknown: str | None, entry: Mapping[str, Any] | None) -> Any:
    kinds = proto.ModelProto.SentencePiece
    if text == unknown:
        return kinds.UNKNOWN
    if _BYTE.fullmatch(text):
        return kinds.BYTE
    if entry is not None:
        return kinds.CONTROL if entry.get("special") else kinds.USER_DEFINED
    return kinds.NORMAL


def adds_blank(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer puts a blank before the text."""
    before = tokenizer.get("pre_tokenizer") or {}
    if before.get("type") == "Metaspace":
        return bool(before.get("prepend_scheme", "always") != "never")
    steps = (tokenizer.get("normalizer") or {}).get("normalizers", [tokenizer.get("normalizer")])
    return any(bool(step) and step.get("type") == "Prepend" for step in steps)
