"""GGUF headers: read without loading, and cut-off or damaged files refused before any engine."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import workbench as wb
from workbench.catalog import resolve
from workbench.catalog.header import _BLOCKS, GgufArray, check_gguf, read_gguf_header
from workbench.engines.model import Model
from workbench.errors import FormatError


def test_the_header_says_what_the_model_is(f32: Path) -> None:
    header = check_gguf(f32)
    assert header.version == 3
    assert header.metadata["general.architecture"] == "llama"
    assert header.fact("context_length") == 2048
    assert header.fact("no_such_fact") is None
    assert header.metadata["tokenizer.ggml.tokens"] == GgufArray(2816)
    assert "im_start" in header.metadata["tokenizer.chat_template"]
    last = max(header.tensors, key=lambda tensor: tensor.offset)
    assert last.size is not None
    assert header.data_start + last.offset + last.size <= f32.stat().st_size
    assert f32.stat().st_size - (header.data_start + last.offset + last.size) < 32


def test_a_card_of_a_gguf_has_its_facts(f32: Path) -> None:
    card = resolve(f32)
    assert card.context_length == 2048
    assert card.architecture.layers == 5
    assert card.architecture.vocab_size == 2816
    assert wb.plan(f32).context == 2048


def test_the_table_of_types_is_that_of_gguf() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    library = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    for kind, sizes in _BLOCKS.items():
        if kind in library:
            assert library[kind] == sizes, kind


def test_a_file_cut_off_anywhere_is_refused(f32: Path, tmp_path: Path) -> None:
    data = f32.read_bytes()
    start = check_gguf(f32).data_start
    chance = random.Random(5)
    cuts = [0, 1, 4, 7, 8, 12, 23, 24, 25, start - 1, start, start + 1, len(data) // 2]
    cuts += [chance.randrange(start) for _ in range(60)]
    cuts += [chance.randrange(start, len(data) - 64) for _ in range(20)]
    cut_off = tmp_path / "cut.gguf"
    for size in cuts:
        cut_off.write_bytes(data[:size])
        with pytest.raises(FormatError) as caught:
            wb.load(cut_off)
        assert "cut.gguf" in str(caught.value)
        assert caught.value.hint


def test_a_damaged_header_is_refused_or_read_but_never_crashes(f32: Path, tmp_path: Path) -> None:
    data = f32.read_bytes()[: check_gguf(f32).data_start]
    chance = random.Random(6)
    damaged = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(150):
        spoiled = bytearray(data)
        for _ in range(3):
            spoiled[chance.randrange(8, 2000)] = chance.randrange(256)
        damaged.write_bytes(spoiled)
        try:
            read_gguf_header(damaged)
        except FormatError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("tensors", "values", "words"),
    [(2**63, 0, "claims"), (0, 2**40, "claims"), (1, 0, "ends within its header")],
)
def test_absurd_counts_do_not_take_memory(
    tensors: int, values: int, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "absurd.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, values))
    with pytest.raises(FormatError, match=words):
        read_gguf_header(path)


def test_a_string_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + b"key")
    with pytest.raises(FormatError, match="ends within its header"):
        read_gguf_header(path)


def test_llama_cpp_gives_its_own_reason_when_it_refuses(
    f32: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The header is whole, yet names an architecture that does not exist."""
    data = f32.read_bytes()
    at = data.index(b"general.architecture") + len(b"general.architecture") + 4 + 8
    assert data[at : at + 5] == b"llama"
    path = tmp_path / "strange.gguf"
    path.write_bytes(data[:at] + b"lemur" + data[at + 5 :])
    for isolate in (False, True):
        with pytest.raises(wb.WorkbenchError, match="lemur"):
            wb.load(path, threads=1, isolate=isolate)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_nothing_is_printed_while_loading_and_answering(
    f32: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with wb.load(f32, threads=1) as model:
        model.ask("Hi!", max_tokens=4)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_tokens_longer_than_32_bytes_are_not_lost(opened: Callable[..., Model]) -> None:
    """The wrapper drops them on the way to text; the embedded model has none: one is lent."""
    session = opened("llama.cpp", False)._session
    original = session._c

    class Lending:
        def __getattr__(self, name: str) -> object:
            return getattr(original, name)

        def llama_token_to_piece(self, vocab, token, buffer, size, left, special):
            text = b"#" * 200
            if size < len(text):
                return -len(text)
            buffer[: len(text)] = text
            return len(text)

    session._c, kept = Lending(), dict(session._pieces)
    session._pieces.clear()
    try:
        assert session.detokenize([77]) == b"#" * 200
    finally:
        session._c = original
        session._pieces.clear()
        session._pieces.update(kept)
