"""The exact bytes of each token of a Hugging Face tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_BYTE_TOKEN_LENGTH = len("<0x00>")


class TokenBytes:
    """Bytes of token ids, looked up one by one and kept: joined, they are the exact text.

    Knows byte-level BPE and the SentencePiece style (``▁`` for a blank, ``<0x0A>`` for a byte). A
    tokenizer of another kind is asked to decode each id by itself.

    Attributes:
        special: Ids of control tokens: they belong to the format and add nothing to a reply.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._added = {index: str(token).encode() for index, token in added.items()}
        self.special = frozenset(tokenizer.all_special_ids) | {
            index for index, token in added.items() if token.special
        }
        decoder = _decoder(tokenizer)
        self._byte_level = _mentions(decoder, "ByteLevel")
        self._sentence_piece = _replaces_blank(decoder)
        self._known: dict[int, bytes] = {}
        self._size = len(tokenizer)

    def __call__(self, index: int) -> bytes:
        """Return the bytes of one id; those of a special token are its text."""
        found = self._known.get(index)
        if found is None:
            found = self._known[index] = self._look_up(index)
        return found

    def visible(self, index: int) -> bytes:
        """Return what the id adds to a reply: its bytes, or none for a special token."""
        return b"" if index in self.special else self(index)

    def joined(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""
        return b"".join(self(index) for index in ids)

    def _look_up(self, index: int) -> bytes:
        if index in self._added:
            return self._added[index]
        if not 0 <= index < self._size:
            return b""  # rows of the embedding that pad it to a round number have no token
        token = self._tokenizer.convert_ids_to_tokens(index)
        if token is None:
            return b""
        if self._byte_level:
            return _from_byte_level(token)
        if self._sentence_piece:
            return _from_sentence_piece(token)
        return str(self._tokenizer.decode([index])).encode()


def _decoder(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return {}
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    return state


def _parts(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return list(decoder.get("decoders") or [decoder])


def _mentions(decoder: dict[str, Any], kind: str) -> bool:
    return any(part.get("type") == kind for part in _parts(decoder))


def _replaces_blank(decoder: dict[str, Any]) -> bool:
    return any(
        part.get("type") == "Metaspace"
        or (part.get("type") == "Replace" and part.get("pattern", {}).get("String") == "▁")
        for part in _parts(decoder)
    )


def _byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for.

    Printable bytes stand for themselves, the others for the code points from 256 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + position): byte for position, byte in enumerate(others)})
    return table


_BYTES = _byte_of_character()


def _from_byte_level(token: str) -> bytes:
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode()


def _from_sentence_piece(token: str) -> bytes:
    if len(token) == _BYTE_TOKEN_LENGTH and token.startswith("<0x") and token.endswith(">"):
        return bytes((int(token[3:5], 16),))
    return token.replace("▁", " ").encode()
