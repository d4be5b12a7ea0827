"""GGUF headers: read without loading, and cut-off or damaged files refused before any engine."""

from __future__ import annotations

import ctypes
import importlib
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from header_files import refused_or_read, save_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.catalog import locate, resolve
from workbench.catalog.header import (
    FILE_TYPES,
    GGML_TYPES,
    GgufArray,
    check_gguf,
    read_gguf_header,
    read_header,
)
from workbench.errors import FormatError
from workbench.formats import ensure_gguf
from workbench.paths import shipped


@pytest.fixture(scope="session")
def f32(f16: Path) -> Path:
    """The embedded model as a GGUF file of 32 bits, made once, beside that of 16 bits."""
    return ensure_gguf(locate(resolve("tiny-chat")), "F32")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A whole file of a few hundred bytes, with an array of each sort."""
    return save_gguf(
        tmp_path / "small.gguf",
        {"token_embd.weight": np.zeros((3, 32), np.float32), "blk.0.x": ("Q8_0", (2, 32))},
        {
            "block_count": 2,
            "embedding_length": 32,
            "attention.head_count_kv": [4, 0],
            "tokenizer.ggml.tokens": ["a", "b", "ねこ"],
            "tokenizer.ggml.scores": [0.5, 1.5, 2.5],
        },
    )


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


def test_the_converted_model_says_the_same_as_its_source(f32: Path) -> None:
    source, converted = read_header(shipped("data", "tiny-chat")), read_header(f32)
    assert converted.parameters == source.parameters
    assert converted.context_length == source.context_length
    assert converted.tied_embeddings == source.tied_embeddings == "once"
    assert (converted.file_type, converted.stored) == ("F32", None)
    said = source.architecture()
    assert converted.architecture().changed(classes=said.classes) == said


def test_the_table_of_types_is_that_of_ggml() -> None:
    folder = Path(importlib.import_module("llama_cpp").__file__ or "").parent / "lib"
    ggml = ctypes.CDLL(str(next(folder.glob("*ggml-base*"))))
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_type_name.restype = ctypes.c_char_p
    for number, known in GGML_TYPES.items():
        sizes = ggml.ggml_blck_size(number), ggml.ggml_type_size(number)
        assert (known.values, known.bytes) == sizes, known
        assert known.name == ggml.ggml_type_name(number).decode().upper()


def test_the_tables_of_types_are_those_of_the_library() -> None:
    library = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    library[9] = ("Q8_1", 32, 36)  # gguf 0.19 says 40; ggml, which reads the files, says 36
    assert {number: tuple(GGML_TYPES[number]) for number in library} == library
    names = {
        int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for kind in gguf.LlamaFileType
        if kind.name != "GUESSED"
    }
    assert names == FILE_TYPES


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


def test_shapes_are_turned_and_dtypes_named(tmp_path: Path) -> None:
    path = save_gguf(
        tmp_path / "m.gguf",
        {
            "token_embd.weight": ("Q4_K", (6, 256)),
            "blk.0.ffn_up_exps.weight": ("MXFP4", (5, 3, 64)),
            "blk.0.attn_qkv.weight": np.zeros((9, 4), np.float16),
            "scalar": np.zeros((1,), np.float32),
        },
        {"general.file_type": 15},
    )
    header = read_header(path)
    assert {t.name: (t.shape, t.dtype, t.bytes) for t in header.tensors} == {
        "token_embd.weight": ((6, 256), "Q4_K", 6 * 144),
        "blk.0.ffn_up_exps.weight": ((5, 3, 64), "MXFP4", 5 * 3 * 2 * 17),
        "blk.0.attn_qkv.weight": ((9, 4), "F16", 72),
        "scalar": ((1,), "F32", 4),
    }  # fmt: skip
    reader = gguf.GGUFReader(path)
    assert {tensor.name: tensor.start for tensor in header.tensors} == {
        tensor.name: tensor.data_offset for tensor in reader.tensors
    }
    assert header.parameters == 6 * 256 + 5 * 3 * 64 + 36 + 1
    assert header.file_type == "Q4_K_M"
    assert header.stored is not None
    assert (header.stored.method, header.stored.detail) == ("gguf", "Q4_K_M")
    quantized = 6 * 256 + 5 * 3 * 64
    assert header.stored.bytes_per_parameter == (6 * 144 + 5 * 3 * 34) / quantized


def test_small_arrays_are_kept_and_long_ones_counted(tmp_path: Path) -> None:
    words = [f"t{n}" for n in range(300_000)]
    path = save_gguf(
        tmp_path / "m.gguf",
        {"x": np.zeros((1,), np.float32)},
        {
            "attention.head_count_kv": [4, 0, 8],
            "tokenizer.ggml.tokens": words,
            "tokenizer.ggml.scores": [0.0] * 5000,
            "general.languages": ["en", "ja"],
        },
    )
    metadata = read_header(path).metadata
    assert metadata["llama.attention.head_count_kv"].values == (4, 0, 8)
    assert metadata["general.languages"].values == ("en", "ja")
    assert metadata["tokenizer.ggml.tokens"] == GgufArray(300_000)
    assert metadata["tokenizer.ggml.tokens"].values == ()
    assert metadata["tokenizer.ggml.scores"] == GgufArray(5000)
    assert metadata["tokenizer.ggml.scores"].values == ()
    assert not refused_or_read(path, beyond=0)


def test_version_2_is_read_and_others_are_told_apart(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(data[:4] + struct.pack("<I", 2) + data[8:])
    assert check_gguf(other).version == 2
    assert check_gguf(other).tensors == check_gguf(small).tensors
    for version, words in (
        (struct.pack("<I", 1), "version 1"),
        (struct.pack(">I", 3), "big-endian"),
    ):
        other.write_bytes(data[:4] + version + data[8:])
        with pytest.raises(FormatError, match=words):
            read_header(other)
    other.write_bytes(data[:4] + struct.pack("<I", 9) + data[8:])
    with pytest.raises(FormatError, match="does not begin like"):
        read_header(other)


def test_a_big_endian_file_of_the_library_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x", np.zeros((4,), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match="big-endian"):
        read_header(tmp_path / "b.gguf")


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_the_files_own_alignment_counts(alignment: int, tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_tensor("a", np.zeros((3,), np.float32))
    writer.add_tensor("b", np.ones((3,), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    second = read_header(path).tensors[1]
    assert second.start % alignment == 0
    assert (
        path.read_bytes()[second.start : second.start + 12] == np.ones((3,), np.float32).tobytes()
    )


def test_every_truncation_is_refused(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    last = max(tensor.start + tensor.bytes for tensor in read_header(small).tensors)
    path = tmp_path / "cut.gguf"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        if end < last:
            with pytest.raises(FormatError, match=r"cut\.gguf") as caught:
                read_header(path)
            assert caught.value.hint
        else:  # only padding is lost
            read_header(path)


def test_overlaps_and_odd_rows_are_refused(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    at = data.index(b"blk.0.x") + len(b"blk.0.x")
    path = tmp_path / "odd.gguf"
    assert struct.unpack_from("<IQQIQ", data, at) == (2, 32, 2, 8, 384)
    for shape, kind, offset, words in (
        ((32, 2), 8, 352, "overlap"),
        ((32, 2), 8, 383, "not aligned"),
        ((33, 2), 8, 384, "blocks of 32"),
        ((2**40, 2**40), 8, 384, "claims the shape"),
        ((32, 2), 8, 2**63, "claims the shape"),
        ((32, 200), 8, 384, "ends at byte"),
    ):
        spoiled = bytearray(data)
        struct.pack_into("<IQQIQ", spoiled, at, 2, *shape, kind, offset)
        path.write_bytes(spoiled)
        with pytest.raises(FormatError, match=words):
            read_header(path)
    spoiled = bytearray(data)
    struct.pack_into("<IQQIQ", spoiled, at, 2, 32, 2, 77, 384)
    path.write_bytes(spoiled)
    tensor = read_header(path).tensors[1]
    assert (tensor.dtype, tensor.bytes) == ("type 77", len(data) - tensor.start)


def test_the_same_name_or_key_twice_is_refused(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "m.gguf", {"aa": np.zeros(8), "bb": np.zeros(8)}, {"x": 1, "y": 2})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"bb", b"aa"))
    with pytest.raises(FormatError, match="same name"):
        read_header(path)
    path.write_bytes(data.replace(b"llama.y", b"llama.x"))
    with pytest.raises(FormatError, match="twice"):
        read_header(path)


def huge_head(tensors: int, values: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values) + rest


KEY = struct.pack("<Q", 1) + b"k"
FIXTURES = [HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize(
    "data",
    [
        huge_head(2**64 - 1, 0, b""),
        huge_head(999_999, 0, b"\0" * 4000),
        huge_head(0, 999_999, b"\0" * 4000),
        huge_head(0, 1, struct.pack("<Q", 2**64 - 1)),
        huge_head(0, 1, KEY + struct.pack("<IIQ", 9, 4, 2**62)),
        huge_head(0, 1, KEY + struct.pack("<IIQ", 9, 8, 2**60) + b"\0" * 4000),
        huge_head(0, 1, KEY + struct.pack("<IIQ", 9, 8, 100) + struct.pack("<Q", 2**63) * 100),
        huge_head(0, 1, KEY + struct.pack("<IIQ", 9, 9, 1) * 1000),
        huge_head(0, 1, KEY + struct.pack("<I", 99)),
        huge_head(1, 0, KEY + struct.pack("<I", 2**31) + b"\0" * 4000),
    ],
    ids=range(10),
)
def test_huge_claims_take_no_memory(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "claims.gguf"
    path.write_bytes(data)
    assert refused_or_read(path)


def test_a_huge_sparse_file_is_refused_before_its_end(tmp_path: Path) -> None:
    """A hole of a terabyte costs nothing to make, and would take hours to go through."""
    path = tmp_path / "hole.gguf"
    with path.open("wb") as stream:
        stream.write(huge_head(0, 1, KEY + struct.pack("<IIQ", 9, 8, 2**36)))
        stream.truncate(1 << 40)
    with pytest.raises(FormatError, match="longer than 256 MiB"):
        read_header(path)


@settings(max_examples=400, deadline=None, suppress_health_check=FIXTURES)
@given(st.data())
def test_mutations_end_in_an_error_or_in_other_facts(small: Path, data: Any) -> None:
    spoiled = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(spoiled) - 1))
        match data.draw(st.sampled_from(["flip", "insert", "remove", "count"])):
            case "flip":
                spoiled[at] = data.draw(st.integers(0, 255))
            case "insert":
                spoiled[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case "remove":
                del spoiled[at : at + data.draw(st.integers(1, 9))]
            case "count":
                spoiled[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
    path = small.with_name("spoiled.gguf")
    path.write_bytes(spoiled)
    refused_or_read(path)


def test_a_gguf_under_another_name_is_known_by_its_first_bytes(small: Path) -> None:
    blob = small.rename(small.with_name("sha256-0123"))
    assert read_header(blob).kind == "gguf"
