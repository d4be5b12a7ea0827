"""Safetensors headers: what the library accepts is read, all else is refused in bounded memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from header_files import refused_or_read, safetensors_bytes, safetensors_header, save, save_shards
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from workbench.catalog.header import DTYPE_BITS, check_safetensors, read_header
from workbench.errors import FormatError, NotFoundError

SMALL = safetensors_bytes(
    {
        "__metadata__": {"format": "pt"},
        **safetensors_header({"model.embed_tokens.weight": ("F16", (3, 2)), "b": ("F32", (2,))}),
    }
)


FIXTURES = [HealthCheck.function_scoped_fixture]


def read_bytes(folder: Path, data: bytes) -> Any:
    path = folder / "spoiled.safetensors"
    path.write_bytes(data)
    return check_safetensors(path)


def test_what_the_library_writes_is_read_as_it_is(tmp_path: Path) -> None:
    arrays = {
        "embed.重み": np.zeros((5, 3), np.float16),
        "a": np.zeros((), np.int64),
        "empty": np.zeros((0, 7), np.float32),
        "flags": np.zeros((4,), np.bool_),
    }
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "pt", "言語": "日本語"})
    header = read_header(tmp_path / "m.safetensors")
    assert {tensor.name: (tensor.shape, tensor.bytes) for tensor in header.tensors} == {
        name: (array.shape, array.nbytes) for name, array in arrays.items()
    }
    assert header.metadata == {"format": "pt", "言語": "日本語"}
    data = (tmp_path / "m.safetensors").read_bytes()
    flags = next(tensor for tensor in header.tensors if tensor.name == "flags")
    assert flags.start + flags.bytes <= len(data)
    assert {tensor.dtype for tensor in header.tensors} == {"F16", "I64", "F32", "BOOL"}


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_dtype_of_the_library_has_its_size(dtype: str, tmp_path: Path) -> None:
    right = safetensors_bytes(safetensors_header({"t": (dtype, (4, 8))}))
    assert deserialize(right)[0][1]["shape"] == [4, 8]
    assert read_bytes(tmp_path, right).tensors[0].bytes == DTYPE_BITS[dtype] * 4
    header = json.loads(right[8 : 8 + struct.unpack("<Q", right[:8])[0]])
    header["t"]["data_offsets"][1] += 1
    with pytest.raises(SafetensorError):
        deserialize(safetensors_bytes(header))
    with pytest.raises(FormatError, match="'t'"):
        read_bytes(tmp_path, safetensors_bytes(header))


def test_no_dtype_of_the_library_is_missing() -> None:
    header = {"t": {"dtype": "nonsense", "shape": [], "data_offsets": [0, 0]}}
    with pytest.raises(SafetensorError) as caught:
        deserialize(safetensors_bytes(header))
    named = str(caught.value).partition("expected one of")[2]
    assert {word.strip("`") for word in named.partition(" at ")[0].replace(",", " ").split()} == {
        *DTYPE_BITS
    }


def test_an_unknown_dtype_keeps_its_bytes(tmp_path: Path) -> None:
    header = {"t": {"dtype": "F2_NEW", "shape": [64], "data_offsets": [0, 16]}}
    tensor = read_bytes(tmp_path, safetensors_bytes(header)).tensors[0]
    assert (tensor.dtype, tensor.bytes, tensor.shape) == ("F2_NEW", 16, (64,))


@pytest.mark.parametrize("end", range(len(SMALL)))
def test_every_truncation_is_refused(end: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(SMALL[:end])
    with pytest.raises(FormatError, match=r"cut\.safetensors") as caught:
        read_header(path)
    assert caught.value.hint


def entry(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD = {
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, "overlaps"),
    "same place": ({"a": entry(), "b": entry()}, 8, "overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=[12, 20])}, 20, "gap"),
    "gap first": ({"a": entry(offsets=[4, 12])}, 12, "gap"),
    "beyond the end": ({"a": entry([4], [0, 16])}, 8, "describes"),
    "rest at the end": ({"a": entry()}, 12, "describes"),
    "shape": ({"a": entry([3])}, 8, "has 8 bytes"),
    "negative": ({"a": entry([-2])}, 8, "makes no sense"),
    "backwards": ({"a": entry([2], [8, 0])}, 8, "makes no sense"),
    "truth": ({"a": entry([True, 2])}, 8, "makes no sense"),
    "fraction": ({"a": entry([2.0])}, 8, "makes no sense"),
    "huge": ({"a": entry([2**40, 2**40])}, 8, "makes no sense"),
    "text": ({"a": "F32"}, 8, "makes no sense"),
    "lacking": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "makes no sense"),
    "three offsets": ({"a": entry(offsets=[0, 8, 9])}, 8, "makes no sense"),
    "odd dtype": ({"a": entry(dtype="F32\x1b[31m")}, 8, "makes no sense"),
    "twice": ('{"a":%s,"a":%s}', 8, "twice"),
    "twice inside": (
        '{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "twice",
    ),
    "metadata twice": ('{"__metadata__":{},"__metadata__":{}}', 0, "twice"),
    "metadata number": ('{"__metadata__":{"a":1}}', 0, "no text"),
    "metadata list": ('{"__metadata__":[]}', 0, "no JSON"),
    "list": ("[]", 0, "brace"),
    "blank first": (" {}", 0, "brace"),
    "tail": ("{}x", 0, "follows"),
    "half a surrogate": ('{"\\ud800":%s}', 8, "no JSON"),
    "nested": ("{" + '"a":{' * 3000, 0, "no sense"),
    "nested list": ('{"a":' + "[" * 50_000, 0, "no sense"),
    "nested shape": ('{"a":{"shape":' + "[" * 3000 + "]" * 900 + "}}", 0, "nested|no JSON"),
    "nested metadata": ('{"__metadata__":' + '{"a":' * 50_000, 0, "no text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_lies_are_refused_by_name(case: str, tmp_path: Path) -> None:
    header, size, words = BAD[case]
    if isinstance(header, str):
        header = header.replace("%s", json.dumps(entry()))
    data = safetensors_bytes(header, size)
    if case not in ("twice", "blank first"):  # the specification forbids them, the library not
        with pytest.raises(SafetensorError):
            deserialize(data)
    with pytest.raises(FormatError, match=words) as caught:
        read_bytes(tmp_path, data)
    assert "\x1b" not in str(caught.value)
    assert refused_or_read(tmp_path / "spoiled.safetensors")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, len(SMALL)])
def test_a_header_length_that_lies_takes_no_memory(length: int, tmp_path: Path) -> None:
    path = tmp_path / "lying.safetensors"
    path.write_bytes(struct.pack("<Q", length) + SMALL[8:])
    assert refused_or_read(path)


def test_a_header_over_the_specified_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_001))
        stream.truncate(100_000_100)  # sparse: takes no room on the disk
    with pytest.raises(FormatError, match="claims a header of 100000001"):
        read_header(path)
    assert refused_or_read(path, beyond=0)


@pytest.mark.parametrize("bomb", ["[]", "{}", '""', "0", '{"a":[]}'])
def test_a_bomb_of_small_values_never_becomes_objects(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(safetensors_bytes('{"a":[' + ",".join([bomb] * 300_000) + "]}", 0))
    assert refused_or_read(path, beyond=5)


def test_many_tensors_take_memory_and_time_in_proportion(tmp_path: Path) -> None:
    path = save(tmp_path / "many.safetensors", {f"t{n}": ("U8", ()) for n in range(20_000)})
    assert not refused_or_read(path)
    header = {f"t{n}": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]} for n in range(20_000)}
    path.write_bytes(safetensors_bytes(header))
    assert refused_or_read(path)


def library_reads(data: bytes) -> dict[str, Any] | None:
    try:
        return dict(deserialize(data))
    except (SafetensorError, UnicodeDecodeError):
        return None


@settings(max_examples=300, deadline=None, suppress_health_check=FIXTURES)
@given(st.data())
def test_mutations_are_judged_as_the_library_judges_them(tmp_path: Path, data: Any) -> None:
    """Where the library reads it, so do we, to the same tensors; where it refuses, so do we."""
    spoiled = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(spoiled) - 1))
        match data.draw(st.sampled_from(["flip", "insert", "remove", "digit"])):
            case "flip":
                spoiled[at] = data.draw(st.integers(0, 255))
            case "insert":
                spoiled[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case "remove":
                del spoiled[at]
            case "digit":
                spoiled[at : at + 1] = data.draw(st.sampled_from([b"9", b"0", b"{", b"]", b'"']))
    path = tmp_path / "spoiled.safetensors"
    path.write_bytes(spoiled)
    expected = library_reads(bytes(spoiled))
    refused = refused_or_read(path)
    if expected is None and not refused:  # an unknown dtype is kept, which the library cannot
        assert any(tensor.dtype not in DTYPE_BITS for tensor in read_header(path).tensors)
    elif expected is not None and not refused:
        found = {tensor.name: list(tensor.shape) for tensor in read_header(path).tensors}
        assert found == {name: value["shape"] for name, value in expected.items()}
    elif expected is not None and spoiled[8:9] == b"{":
        pytest.fail(f"refused, though the library reads it: {bytes(spoiled)!r}")


@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURES)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["a", "__metadata__", "dtype", "shape", "data_offsets"])
                | st.text(max_size=5),
                inner,
                max_size=5,
            )
        ),
    )
)
@example({"a": {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 0]}})
def test_any_json_is_refused_or_read(tmp_path: Path, value: object) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(safetensors_bytes(json.dumps(value), 0))
    refused_or_read(path)


def test_shards_are_one_model_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = save_shards(
        tmp_path / "model",
        [{"a": ("BF16", (4, 4)), "b": ("BF16", (2,))}, {"c": ("F32", (3,))}, {"d": ("I8", (5,))}],
    )
    header = read_header(folder)
    assert {tensor.name: tensor.file[6:11] for tensor in header.tensors} == {
        "a": "00001", "b": "00001", "c": "00002", "d": "00003",
    }  # fmt: skip
    assert header.weight_bytes == 32 + 4 + 12 + 5
    assert header.files == tuple(sorted(header.files))
    assert len(header.files) == 3
    assert header.notes == ()
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FormatError, match=r"lacks 'model-00002-of-00003\.safetensors'"):
        read_header(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(FormatError, match="00002"):  # the names alone tell it as well
        read_header(folder)


def test_index_and_files_are_held_against_each_other(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "model", [{"a": ("U8", (1,))}, {"b": ("U8", (1,))}])
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"'ghost' is in model-00001.*it is not"):
        read_header(folder)
    index["weight_map"] = {"a": "model-00001-of-00002.safetensors"} | {
        "b": index["weight_map"]["a"]
    }
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match="'b'"):
        read_header(folder)
    save(folder / "model-00001-of-00002.safetensors", {"a": ("U8", (1,)), "c": ("U8", (1,))})
    index["weight_map"]["b"] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(index))
    assert read_header(folder).notes == ("1 tensors are in the files but not in the index",)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/a.safetensors",
        "a/../../b.safetensors",
        "a.bin",
        "x\0.safetensors",
    ],
)
def test_an_index_cannot_lead_out_of_its_folder(name: str, tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "model", [{"a": ("U8", (1,))}])
    save(tmp_path / "secret.safetensors", {"a": ("U8", (1,))})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(FormatError, match="refused"):
        read_header(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map":[]}', '{"weight_map":{"a":1}}', "[" * 99_999]
)
def test_a_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "model", [{"a": ("U8", (1,))}])
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError):
        read_header(folder)


def test_one_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "one.safetensors", {"a": ("U8", (1,))})
    save(tmp_path / "two.safetensors", {"a": ("U8", (1,))})
    with pytest.raises(FormatError, match=r"one\.safetensors and in two\.safetensors"):
        read_header(tmp_path)
    save(tmp_path / "model.safetensors", {"a": ("U8", (2,))})  # the one that is loaded
    assert read_header(tmp_path).weight_bytes == 2


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "m.safetensors", {"a": ("U8", (1,))})
    first = check_safetensors(path)
    assert check_safetensors(path) is first
    save(path, {"a": ("U8", (2,))})
    assert check_safetensors(path).tensors[0].bytes == 2
    path.unlink()
    with pytest.raises(NotFoundError):
        check_safetensors(path)
