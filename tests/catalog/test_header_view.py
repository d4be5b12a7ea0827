"""The common view: embeddings as they are really stored, the table, and what is no file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from header_files import save_model

from workbench.catalog.header import check_gguf, read_header
from workbench.errors import FormatError, InputError, NotFoundError

EMBEDDINGS = {"model.embed_tokens.weight": ("F32", (9, 4))}
OUTPUT = {"lm_head.weight": ("F32", (9, 4))}


@pytest.mark.parametrize(
    ("tensors", "tied", "form", "parameters", "output"),
    [
        (EMBEDDINGS, True, "once", 36, 0),
        (OUTPUT, True, "only under lm_head", 36, 0),
        (EMBEDDINGS | OUTPUT, True, "twice", 36, 0),
        (EMBEDDINGS | OUTPUT, None, "twice", 36, 0),  # the bytes say it
        (EMBEDDINGS | OUTPUT, False, "separate", 72, 36),
        (EMBEDDINGS | {"lm_head.weight": ("F32", (8, 4))}, True, "separate", 68, 32),
        ({"w": ("F32", (36,))}, True, None, 36, None),
    ],
)
def test_tied_embeddings_are_told_as_they_are_stored(
    tensors: Any, tied: bool | None, form: str | None, parameters: int, output: int, tmp_path: Path
) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": tied}
    header = read_header(save_model(tmp_path, tensors, config))
    assert header.tied_embeddings == form
    assert header.parameters == parameters
    assert header.architecture().output_parameters == output


def test_embeddings_that_differ_are_not_tied_whatever_is_said(tmp_path: Path) -> None:
    folder = save_model(tmp_path, EMBEDDINGS | OUTPUT, {"tie_word_embeddings": True})
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    header = read_header(folder)
    assert header.tied_embeddings == "separate"
    assert header.parameters == 72
    assert header.architecture().tied_embeddings is False


def test_the_table_groups_by_role_and_dtype(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": ("BF16", (100, 8)),
        "model.layers.0.self_attn.q_proj.weight": ("BF16", (8, 8)),
        "model.layers.0.mlp.experts.0.up_proj.weight": ("F8_E4M3", (16, 8)),
        "model.layers.0.mlp.experts.1.up_proj.weight": ("F8_E4M3", (16, 8)),
        "model.layers.0.mlp.gate.weight": ("BF16", (2, 8)),
        "model.layers.0.input_layernorm.weight": ("F32", (8,)),
        "visual.blocks.0.attn.qkv.weight": ("BF16", (4, 4)),
        "x<script>": ("F32", (1,)),
    }
    header = read_header(save_model(tmp_path, tensors, {}))
    rows = {row["role"]: (row["dtype"], row["tensors"], row["bytes"]) for row in header.table()}
    assert rows == {
        "embedding": ("BF16", 1, 1600), "experts": ("F8_E4M3", 2, 256),
        "attention": ("BF16", 1, 128), "router": ("BF16", 1, 32), "norm": ("F32", 1, 32),
        "vision": ("BF16", 1, 32), "other": ("F32", 1, 4),
    }  # fmt: skip
    bundle = header._repr_mimebundle_()
    assert "1,600" in bundle["text/plain"]
    assert "<table>" in bundle["text/html"]
    assert sum(header.dtypes.values()) == header.weight_bytes == 1600 + 256 + 128 + 96 + 4


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name, words in (("pipe.gguf", "named pipe"), ("loop.gguf", "leads back to itself")):
        with pytest.raises(InputError, match=words):
            read_header(tmp_path / name)
    with pytest.raises(InputError, match="device"):
        check_gguf(Path("/dev/zero"))
    with pytest.raises(NotFoundError, match="holds no weights"):
        read_header(tmp_path / "folder.gguf")
    with pytest.raises(InputError, match="a folder"):
        check_gguf(tmp_path / "folder.gguf")
    with pytest.raises(NotFoundError, match="does not exist"):
        read_header(tmp_path / "nothing.gguf")
    with pytest.raises(NotFoundError, match="does not exist"):
        check_gguf(tmp_path / "nothing.gguf")
    (tmp_path / "text.txt").write_text("no model")
    with pytest.raises(InputError, match="no weight file"):
        read_header(tmp_path / "text.txt")
    with pytest.raises(InputError):
        read_header("a\0b.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(FormatError, match="does not begin like"):
        read_header(tmp_path / "empty.gguf")
