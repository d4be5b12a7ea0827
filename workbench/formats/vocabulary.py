"""The vocabulary of a GGUF file as llama.cpp sees it: tokenize, end tokens, metadata."""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.errors import FormatError

_LOG: deque[str] = deque(maxlen=40)
_callback: Any = None  # llama.cpp keeps the pointer for the life of the process


def keep_log(on_line: Any = None) -> deque[str]:
    """Send llama.cpp's log to a short memory (and to ``on_line``) and not to the terminal."""
    global _callback
    import llama_cpp

    def remember(level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", errors="replace").rstrip("\n")
        if line.strip(" ."):
            _LOG.append(line)
            if on_line is not None:
                on_line(line)

    _callback = llama_cpp.llama_log_callback(remember)
    llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
    return _LOG


class Vocabulary:
    """The vocabulary of an open GGUF file; run it in a child: llama.cpp aborts on a bad file."""

    def __init__(self, model: Any) -> None:
        import llama_cpp

        self._api, self._model = llama_cpp, model
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocabulary)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``, special tokens in it parsed, none added."""
        data = text.encode("utf-8")
        room = len(data) + 16
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self._api.llama_tokenize(
                self._vocabulary, data, len(data), ids, room, False, True
            )
            if count >= 0:
                return list(ids[:count])
            room = -count

    def ends(self, token: int) -> bool:
        """Return whether generation stops at ``token``."""
        return bool(self._api.llama_vocab_is_eog(self._vocabulary, token))

    def metadata(self, key: str) -> str | None:
        """Return a metadata value as text, or None."""
        room = 1 << 12
        while True:
            buffer = ctypes.create_string_buffer(room)
            needed = self._api.llama_model_meta_val_str(self._model, key.encode(), buffer, room)
            if needed < 0:
                return None
            if needed < room:
                return buffer.value.decode("utf-8")
            room = needed + 1


@contextlib.contextmanager
def vocabulary(path: Path) -> Iterator[Vocabulary]:
    """Open only the vocabulary of a GGUF file.

    Raises:
        FormatError: llama.cpp refuses it; the message carries its reason.
    """
    import llama_cpp

    log = keep_log()
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise FormatError(f"llama.cpp cannot read {path.name}: {' / '.join(list(log)[-3:])}")
    try:
        yield Vocabulary(model)
    finally:
        llama_cpp.llama_model_free(model)
