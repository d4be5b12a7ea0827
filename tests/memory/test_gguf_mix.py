"""Types and bytes of GGUF tensors, held against llama.cpp's own quantizer and real files."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from empty_gguf import gguf_name
from empty_gguf import tensors as tensors_llama_cpp_loads
from oracle_quantize import dry_runs, write_sparse
from test_shapes import MIXTRAL, one_of_each_family

from workbench.catalog import catalog, locate, resolve
from workbench.catalog.architecture import Architecture
from workbench.catalog.header import read_header
from workbench.catalog.shapes import shapes
from workbench.errors import InputError, UnsupportedError
from workbench.memory.ggml import BLOCKS, row_bytes
from workbench.memory.gguf_form import gguf_tensors
from workbench.memory.gguf_mix import (
    FILE_TYPES,
    NEEDS_IMATRIX,
    fallback,
    gguf_mix,
    mix_bytes,
    mixed,
)

MIB = 2**20
# Q1_0 has no second choice for rows that its blocks do not divide: llama.cpp refuses.
QUANTIZED = ("Q8_0", "Q6_K", "Q4_K_M")
WITH_MATRIX = ("grouped queries", "eight experts", "gpt_oss-moe", "gemma3")
MIXES = [name for name in FILE_TYPES if name not in ("F32", "F16", "BF16", "Q1_0")]
EIGHTY_LAYERS = Architecture(
    model_type="qwen2", layers=80, hidden_size=8192, intermediate_size=29568, attention_heads=64,
    kv_heads=8, head_dim=128, vocab_size=152064, tied_embeddings=False,
)  # fmt: skip


def kinds() -> dict[str, Architecture]:
    """Return an architecture of each family, and those that rules of their own are for."""
    found = one_of_each_family()
    cards = catalog()
    more = {
        "eight experts": MIXTRAL,
        "eighty layers of qwen2": EIGHTY_LAYERS,
        "eighty layers of llama": cards["llama-3.1-70b-instruct"].architecture,
        "rows of 960": cards["smollm2-360m-instruct"].architecture,
        "grouped queries": cards["llama-3.1-8b-instruct"].architecture,
    }
    return {**found, **more}


# The other list does not know two families, and keeps the padding of Gemma 3's vocabulary.
LOADED = [
    kind
    for kind, facts in kinds().items()
    if facts.model_type not in ("moondream1", "mixtral", "gemma3")
]
Answers = dict[str, dict[str, dict[str, str]]]


def asked(folder: Path, names: list[str], *, imatrix: bool) -> Answers:
    """Return what llama.cpp says of each kind, for each mix."""
    pytest.importorskip("llama_cpp")
    paths = []
    for number, name in enumerate(names):
        facts = kinds()[name]
        path = folder / f"{number}.gguf"
        paths.append(write_sparse(path, facts, mixed(shapes(facts), "BF16")))
    return dict(zip(names, dry_runs(paths, MIXES, imatrix=imatrix), strict=True))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return asked(tmp_path_factory.mktemp("sparse"), list(kinds()), imatrix=False)


@pytest.fixture(scope="module")
def answers_with_matrix(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return asked(tmp_path_factory.mktemp("sparse"), list(WITH_MATRIX), imatrix=True)


@pytest.mark.parametrize("kind", list(kinds()))
def test_every_tensor_has_the_type_that_llama_cpp_gives_it(kind: str, answers: Answers):
    found = shapes(kinds()[kind])
    for file_type, types in answers[kind].items():
        mix = mixed(found, file_type, imatrix=False)
        given = {shape.name: to for shape, to in mix}
        assert given == {name: to for name, to in types.items() if name != "MiB"}, file_type
        assert mix_bytes(mix) / MIB == pytest.approx(float(types["MiB"]), abs=0.006), file_type


@pytest.mark.parametrize("kind", WITH_MATRIX)
def test_an_importance_matrix_changes_the_mix_as_it_does_in_llama_cpp(
    kind: str, answers_with_matrix: Answers
):
    found = shapes(kinds()[kind])
    for file_type, types in answers_with_matrix[kind].items():
        given = gguf_mix(found, file_type, imatrix=True)
        assert given == {name: to for name, to in types.items() if name != "MiB"}, file_type
    without, with_one = (gguf_mix(found, "IQ3_XXS", imatrix=given) for given in (False, True))
    assert without != with_one
    assert gguf_mix(found, "IQ3_XXS") == with_one
    assert "IQ3_XXS" in NEEDS_IMATRIX


@pytest.mark.parametrize("kind", LOADED)
def test_the_tensors_are_those_that_llama_cpp_loads(kind: str):
    facts = kinds()[kind]
    ours = {shape.name: shape.shape for shape in gguf_tensors(shapes(facts))}
    theirs = dict(tensors_llama_cpp_loads(gguf_name(facts), facts))
    flat = {"ssm_a", "ssm_d", "ssm_norm.weight"}  # written with a dimension of one more
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if ours[n] != theirs[n] and n.split(".", 2)[-1] not in flat} == set()


def test_block_sizes_are_ggmls_own():
    llama_cpp = pytest.importorskip("llama_cpp")
    from workbench.catalog.gguf_header import GGML_TYPES

    ggml = ctypes.CDLL(_library(Path(llama_cpp.__file__).parent))
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    for number, kind in GGML_TYPES.items():
        own = ggml.ggml_blck_size(number), ggml.ggml_type_size(number)
        assert BLOCKS[kind.name] == own, kind.name


def _library(folder: Path) -> str:
    found = [path for path in folder.rglob("*ggml-base*") if path.suffix in (".so", ".dylib")]
    return str(found[0])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """tiny-chat as GGUF files, by the converter that the user's cache already holds."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("torch")
    from workbench.formats import ensure_gguf, quantize
    from workbench.formats.converter import converter

    folder = tmp_path_factory.mktemp("cache")
    (folder / "llama.cpp").symlink_to(converter().folder.parent)
    before = os.environ.get("WORKBENCH_CACHE")
    os.environ["WORKBENCH_CACHE"] = str(folder)
    tiny = locate(resolve("tiny-chat"))
    try:
        whole = ensure_gguf(tiny, "F16")
        made = {kind: quantize(whole, folder / f"{kind}.gguf", kind) for kind in QUANTIZED}
        yield {"F16": whole, **made}
    finally:
        if before is None:
            del os.environ["WORKBENCH_CACHE"]
        else:
            os.environ["WORKBENCH_CACHE"] = before


@pytest.mark.slow
def test_real_files_have_these_tensors_types_and_bytes(files: dict[str, Path]):
    found = shapes(resolve("tiny-chat").architecture)
    for file_type, path in files.items():
        header = read_header(path)
        mix = mixed(found, file_type, source="F16")
        assert {t.name: (t.shape, t.dtype) for t in header.tensors} == {
            shape.name: (shape.shape, kind) for shape, kind in mix
        }
        assert mix_bytes(mix) == header.weight_bytes


def test_a_published_size_is_met():
    # Qwen/Qwen3-0.6B-GGUF, Qwen3-0.6B-Q8_0.gguf: 639,447,744 bytes with its tokenizer.
    found = shapes(catalog()["qwen3-0.6b"].architecture)
    assert 639_447_744 - mix_bytes(mixed(found, "Q8_0")) == pytest.approx(5.9e6, rel=0.05)


def test_overrides_go_before_the_mix_and_unknown_types_are_refused():
    found = shapes(catalog()["llama-3.1-8b-instruct"].architecture)
    mix = gguf_mix(found, "Q4_K_M", overrides={"^(output|token_embd)": "Q8_0", "attn_v": "F16"})
    assert mix["output.weight"] == mix["token_embd.weight"] == "Q8_0"
    assert mix["blk.3.attn_v.weight"] == "F16"
    assert mix["blk.3.attn_q.weight"] == "Q4_K"
    with pytest.raises(InputError, match="Did you mean 'Q4_K_"):
        gguf_mix(found, "Q4_K_N")
    with pytest.raises(InputError, match="no ggml type"):
        row_bytes("Q4_K_M", 256)
    with pytest.raises(InputError, match="does not divide"):
        row_bytes("Q4_K", 960)


def test_rows_that_no_block_divides_fall_back():
    assert fallback("Q4_K", 960) == "Q5_0"
    assert fallback("Q4_K", 1000) == "F16"
    with pytest.raises(UnsupportedError, match="Q1_0 of rows of 576"):
        fallback("Q1_0", 576)
