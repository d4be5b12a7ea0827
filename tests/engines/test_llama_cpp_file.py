"""Files that llama.cpp itself refuses, its silence, and tokens that are long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import workbench as wb
from workbench.engines.model import Model
from workbench.errors import EngineError


def test_llama_cpp_gives_its_own_reason_when_it_refuses(
    f32: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The header is whole, yet names an architecture that does not exist."""
    data = f32.read_bytes()
    at = data.index(b"general.architecture") + len(b"general.architecture") + 4 + 8
    assert data[at : at + 5] == b"llama"
    path = tmp_path / "strange.gguf"
    path.write_bytes(data[:at] + b"lemur" + data[at + 5 :])
    monkeypatch.setenv("WORKBENCH_QUIET", "1")  # our own bar speaks after a second
    for isolate in (False, True):
        with pytest.raises(wb.WorkbenchError, match="lemur"):
            wb.load(path, threads=1, isolate=isolate)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_nothing_is_printed_while_loading_and_answering(
    f32: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_QUIET", "1")
    with wb.load(f32, threads=1) as model:
        model.ask("Hi!", max_tokens=4)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_tokens_longer_than_32_bytes_are_not_lost(opened: Callable[..., Model]) -> None:
    """The wrapper drops them on the way to text; the embedded model has none: one is lent."""
    words = opened("llama.cpp", False)._session.words
    original = words._c

    class Lending:
        def __getattr__(self, name: str) -> object:
            return getattr(original, name)

        def llama_token_to_piece(self, vocab, token, buffer, size, left, special):
            text = b"#" * 200
            if size < len(text):
                return -len(text)
            buffer[: len(text)] = text
            return len(text)

    words._c, kept = Lending(), dict(words._bytes)
    words._bytes.clear()
    try:
        session = opened("llama.cpp", False)._session
        assert session.detokenize([77]) == b"#" * 200
    finally:
        words._c = original
        words._bytes.clear()
        words._bytes.update(kept)


def test_a_file_that_llama_cpp_aborts_on_is_refused_before(f32: Path, tmp_path: Path) -> None:
    """A hundred thousand layers: an assertion, which would end this process."""
    data = bytearray(f32.read_bytes())
    at = data.index(b"llama.block_count") + len(b"llama.block_count") + 4
    data[at : at + 4] = (100_000).to_bytes(4, "little")
    path = tmp_path / "tall.gguf"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"breaks on tall\.gguf.*GGML_ASSERT"):
        wb.load(path, threads=1, force=True)
    with pytest.raises(wb.WorkbenchError, match="GGML_ASSERT"):
        wb.load(path, threads=1, force=True, isolate=True)
