"""Conversion and quantization: the same model, the same tokens, whole files or none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from math import prod
from pathlib import Path

import numpy as np
import psutil
import pytest

from workbench.catalog import ModelFiles
from workbench.catalog.capabilities import engine_facts
from workbench.catalog.header import GgufHeader, check_gguf
from workbench.errors import DiskSpaceError, FormatError, InputError, UnsupportedError
from workbench.evaluate.agreement import divergences
from workbench.formats import convert, ensure_gguf, gguf, quantize
from workbench.formats.cache import entries, prune
from workbench.formats.vocabulary import vocabulary
from workbench.formats.weights import compare_weights

TEXT = (
    "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n3 + 4 = 7<|im_end|>\n"
    "<|im_start|>user\nねこは英語で何ですか。<|im_end|>\n<|im_start|>assistant\ncat<|im_end|>\n"
)
KINDS = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


def tensors(path: Path) -> dict[str, np.ndarray]:
    """All float tensors of a GGUF file, as float32."""
    header: GgufHeader = check_gguf(path)
    data = path.read_bytes()
    found = {}
    for tensor in header.tensors:
        start = header.data_start + tensor.offset
        count = prod(tensor.shape)
        if tensor.kind == 30:  # bfloat16: the upper half of a float32
            half = np.frombuffer(data, "<u2", count, start).astype(np.uint32) << 16
            found[tensor.name] = half.view(np.float32)
        else:
            found[tensor.name] = np.frombuffer(data, KINDS[tensor.kind], count, start).astype("f4")
    return found


def hugging_face(folder: Path, ids: list[int]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0]
        return torch.log_softmax(logits.double(), -1).numpy()


def llama_cpp(path: Path, ids: list[int]) -> np.ndarray:
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=512, logits_all=True, verbose=False)
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)], dtype=np.float64)
    model.close()
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - (logits.max(-1, keepdims=True))
    )


@pytest.fixture(scope="module")
def ids(tiny: ModelFiles) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(tiny.path / "tokenizer.json")).encode(TEXT).ids)


@pytest.mark.parametrize(("quantization", "limit"), [("F32", 1e-6), ("F16", 1e-4), ("BF16", 1e-3)])
def test_the_same_logits(
    tiny: ModelFiles, f16: Path, ids: list[int], quantization: str, limit: float
) -> None:
    expected = hugging_face(tiny.path, ids)
    found = llama_cpp(ensure_gguf(tiny, quantization), ids)
    assert divergences(expected, found).mean() < limit
    assert (expected.argmax(-1) == found.argmax(-1)).mean() > 0.95


def test_the_same_weights(tiny: ModelFiles, f16: Path) -> None:
    """Float formats made from one another hold the stored values, to the bit where they can."""
    from safetensors.numpy import load_file

    source = load_file(tiny.path / "model.safetensors")
    written = tensors(f16)
    embedding = source["model.embed_tokens.weight"].astype(np.float32)
    assert np.array_equal(written["token_embd.weight"], embedding.ravel())
    down = source["model.layers.0.mlp.down_proj.weight"].astype(np.float32)
    assert np.array_equal(written["blk.0.ffn_down.weight"], down.ravel())
    wide, brain = tensors(ensure_gguf(tiny, "F32")), tensors(ensure_gguf(tiny, "BF16"))
    assert all(np.array_equal(wide[name], values) for name, values in written.items())
    assert (
        np.abs(brain["token_embd.weight"] - embedding.ravel()).max()
        <= 2**-8 * np.abs(embedding).max()
    )
    assert check_gguf(ensure_gguf(tiny, "F32")).tensors[0].kind == 0


@pytest.mark.parametrize("quantization", ["F16", "F32", "BF16"])
def test_weights_are_compared(
    tiny: ModelFiles, f16: Path, tmp_path: Path, quantization: str
) -> None:
    path = ensure_gguf(tiny, quantization)
    found = compare_weights(path, tiny)
    assert (found.equal, found.differing) == (found.total, ())
    assert found.total == len(check_gguf(path).tensors) > 40
    data = bytearray(path.read_bytes())
    tensor = next(t for t in check_gguf(path).tensors if t.name == "blk.1.attn_q.weight")
    data[check_gguf(path).data_start + tensor.offset] ^= 1
    flipped = tmp_path / "flipped.gguf"
    flipped.write_bytes(data)
    found = compare_weights(flipped, tiny)
    assert (found.differing, found.ok) == (("blk.1.attn_q.weight",), False)


def test_the_same_tokens(tiny: ModelFiles, f16: Path) -> None:
    from tokenizers import Tokenizer

    source = Tokenizer.from_file(str(tiny.path / "tokenizer.json"))
    lines = [
        *TEXT.splitlines(keepends=True),
        "  def f(x):\r\n\treturn x*2\n",
        "🚀 ½ 1234５６ がぎ　。",
    ]
    lines += json.loads(json.dumps(lines))[::-1]
    with vocabulary(f16) as opened:
        for text in [*lines, "".join(lines)]:
            assert opened.tokenize(text) == source.encode(text).ids
        template = (tiny.path / "chat_template.jinja").read_text(encoding="utf-8")
        assert opened.metadata("tokenizer.chat_template") == template
        assert [opened.ends(token) for token in (0, 1, 2, 100)] == [True, False, True, False]
        assert opened.metadata("general.name") == "tiny-chat"


@pytest.mark.parametrize("quantization", engine_facts()["llama.cpp"].quantizations)
def test_every_quantization(tiny: ModelFiles, f16: Path, ids: list[int], quantization: str) -> None:
    path = ensure_gguf(tiny, quantization)
    assert check_gguf(path).metadata["general.architecture"] == "llama"
    parameters = sum(prod(tensor.shape) for tensor in check_gguf(path).tensors)
    assert path.stat().st_size < gguf.file_bytes(parameters, quantization)
    expected, found = llama_cpp(f16, ids), llama_cpp(path, ids)
    assert divergences(expected, found).mean() < 1.0
    assert (expected.argmax(-1) == found.argmax(-1)).mean() > 0.5


def test_a_second_call_does_nothing(
    tiny: ModelFiles, f16: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = ensure_gguf(tiny, "Q8_0")
    before = first.stat()

    def no_child(*_: object, **__: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(gguf, "run_child", no_child)
    copied = shutil.copytree(
        tiny.path, tmp_path / "other-name", ignore=shutil.ignore_patterns("builder")
    )
    again = ModelFiles(path=copied, kind="safetensors", weights=(copied / "model.safetensors",))
    for files in (tiny, again):  # the same content under another name is the same entry
        found = ensure_gguf(files, "q8_0")
        assert found == first
        assert (found.stat().st_ino, found.stat().st_size) == (before.st_ino, before.st_size)
    (copied / "tokenizer_config.json").write_text("{}")
    with pytest.raises(AssertionError, match="a child"):
        ensure_gguf(again, "Q8_0")


def test_one_of_many_callers_makes_it(
    tiny: ModelFiles, f16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    run = gguf.run_child

    def counted(module: str, *arguments: object, **options: object) -> object:
        started.append(module)
        return run(module, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gguf, "run_child", counted)
    (ensure_gguf(tiny, "Q5_0")).unlink()
    started.clear()
    threads = [threading.Thread(target=ensure_gguf, args=(tiny, "Q5_0")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert started == ["workbench.formats.quantizer"]


KILLED = """
import sys
from pathlib import Path
from workbench.formats import quantize
quantize(Path(sys.argv[1]), Path(sys.argv[2]), "Q4_K_M", threads=1)
"""


def test_a_killed_quantization_leaves_nothing(f16: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    parent = subprocess.Popen([sys.executable, "-c", KILLED, str(f16), str(out)])
    children: list[psutil.Process] = []
    while not (children and list(tmp_path.glob(".partial-*"))):
        assert parent.poll() is None
        children = psutil.Process(parent.pid).children()
        time.sleep(0.005)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert not out.exists()
    quantize(f16, out, "Q4_K_M")
    check_gguf(out)


def test_an_interrupted_quantization_leaves_nothing(
    f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_show", interrupt)
    before = set(psutil.Process().children())  # models that other tests share live on
    with pytest.raises(KeyboardInterrupt):
        quantize(f16, tmp_path / "out.gguf", "Q4_K_M")
    assert list(tmp_path.iterdir()) == []
    assert set(psutil.Process().children()) <= before


def test_no_room_on_the_disk(
    tiny: ModelFiles, f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskSpaceError, match=r"The GGUF F16 of tiny-chat needs .* nothing was"):
        convert(tiny, folder / "a.gguf")
    with pytest.raises(DiskSpaceError, match="Quantizing"):
        quantize(f16, folder / "b.gguf", "Q4_K_M")
    assert list(folder.iterdir()) == []


def test_truncated_sources(tiny: ModelFiles, f16: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes((tiny.path / weights.name).read_bytes()[:-1000])
    shutil.copy(tiny.path / "config.json", tmp_path)
    cut = ModelFiles(path=tmp_path, kind="safetensors", weights=(weights,))
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        convert(cut, tmp_path / "a.gguf")
    half = tmp_path / "half.gguf"
    half.write_bytes(f16.read_bytes()[: f16.stat().st_size // 2])
    with pytest.raises(FormatError, match="not a whole GGUF file"):
        quantize(half, tmp_path / "b.gguf", "Q8_0")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "gone.safetensors"}}'
    )
    with pytest.raises(FormatError, match="lacks 1 of its weight files"):
        convert(cut, tmp_path / "a.gguf")
    assert list(tmp_path.glob("[ab].gguf")) == []


def test_refused_requests(tiny: ModelFiles, f16: Path, tmp_path: Path) -> None:
    small = ensure_gguf(tiny, "Q8_0")
    with pytest.raises(UnsupportedError, match="already quantized"):
        quantize(small, tmp_path / "a.gguf", "Q4_K_M")
    with pytest.raises(InputError, match="Q4_K_M"):
        quantize(f16, tmp_path / "a.gguf", "Q4_KM")
    with pytest.raises(InputError, match="does not exist"):
        quantize(tmp_path / "none.gguf", tmp_path / "a.gguf", "Q4_0")
    with pytest.raises(InputError, match="F32, F16 or BF16"):
        convert(tiny, tmp_path / "a.gguf", dtype="Q8_0")  # type: ignore[arg-type]
    file = ModelFiles(path=f16, kind="gguf", weights=(f16,))
    with pytest.raises(UnsupportedError, match="only safetensors"):
        convert(file, tmp_path / "a.gguf")
    assert ensure_gguf(file, "none") == f16


def test_cached_files_are_listed_and_pruned(
    f16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    file = ModelFiles(path=f16, kind="gguf", weights=(f16,))
    made = [ensure_gguf(file, name) for name in ("Q8_0", "Q4_0")]
    assert {(e.path, e.source) for e in entries()} == {(path, "F16.gguf") for path in made}
    os.utime(made[0], (1, 1))
    assert [e.path for e in prune(keep_bytes=made[1].stat().st_size)] == [made[0]]
    assert [e.path for e in entries()] == [made[1]]
    prune()
    assert entries() == []
