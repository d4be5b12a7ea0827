"""Split GGUF files: any part leads to the whole, and parts that do not belong are named."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from header_files import save_gguf

from workbench.catalog.header import gguf_parts, read_header
from workbench.errors import FormatError, InputError


def split_model(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    save_gguf(
        folder / "m.gguf",
        {f"blk.{n}.x": np.zeros((4,), np.float32) for n in range(5)},
        {"block_count": 5},
        splits=2,
    )
    return sorted(folder.glob("*.gguf"))


def test_any_part_leads_to_the_whole_model(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "m")
    assert [part.name for part in parts] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for model in (*parts, tmp_path / "m"):
        header = read_header(model)
        assert header.files == tuple(part.name for part in parts)
        assert [tensor.name for tensor in header.tensors] == [f"blk.{n}.x" for n in range(5)]
        assert header.architecture().layers == 5  # the first part alone says it
    assert gguf_parts(parts[2]) == tuple(parts)


def test_parts_that_miss_or_do_not_belong_are_named(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "m")
    second = parts[1].read_bytes()
    parts[1].unlink()
    for model in (parts[0], tmp_path / "m"):
        with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf is missing"):
            read_header(model)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(FormatError, match=r"not part 2 of 3"):
        read_header(parts[0])
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(second)
    with pytest.raises(FormatError, match="one of 3 parts"):
        read_header(alone)
    other = tmp_path / "m-00007-of-00003.gguf"
    other.write_bytes(second)
    with pytest.raises(FormatError, match="part 7 of 3"):
        read_header(other)
    whole = save_gguf(tmp_path / "w-00001-of-00001.gguf", {"x": np.zeros((4,), np.float32)})
    assert len(read_header(whole).tensors) == 1


def test_parts_count_their_tensors_together(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "m")
    data = parts[0].read_bytes()
    at = data.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    parts[0].write_bytes(data[:at] + struct.pack("<i", 6) + data[at + 4 :])
    with pytest.raises(FormatError, match="have 6 tensors, they have 5"):
        read_header(parts[1])


def test_a_folder_of_one_model_and_its_projector_is_that_model(tmp_path: Path) -> None:
    for name in ("m-Q8_0.gguf", "mmproj-m.gguf"):
        save_gguf(tmp_path / name, {"x": np.zeros((4,), np.float32)})
    assert read_header(tmp_path).files == ("m-Q8_0.gguf",)
    save_gguf(tmp_path / "m-Q4_0.gguf", {"x": np.zeros((4,), np.float32)})
    with pytest.raises(InputError, match=r"holds 2 models.*m-Q4_0\.gguf, m-Q8_0\.gguf"):
        read_header(tmp_path)
