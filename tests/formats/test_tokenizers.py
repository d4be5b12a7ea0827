"""Tokenizers that llama.cpp's converter does not know: resolved exactly, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.catalog import ModelFiles
from workbench.errors import FormatError, UnsupportedError
from workbench.formats import convert
from workbench.formats.driver import check_range, replace_pre_tokenizer, safe_name
from workbench.formats.patches import older_keys
from workbench.formats.pretokenizer import candidates, kind_of, normalizes, read_tokenizer
from workbench.formats.probes import TEXTS, Probes
from workbench.formats.vocabulary import vocabulary

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {**byte_level, "use_regex": False},
    ]
    return {"type": "Sequence", "pretokenizers": parts}


@pytest.fixture
def changed(tiny: ModelFiles, tmp_path: Path) -> Callable[..., ModelFiles]:
    """Copy tiny-chat with changed JSON files: ``changed(tokenizer={...})``."""

    def copy(**changes: dict[str, Any]) -> ModelFiles:
        folder = tmp_path / "changed"
        shutil.copytree(tiny.path, folder, ignore=shutil.ignore_patterns("builder"))
        for name, values in changes.items():
            path = folder / f"{name}.json"
            old = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps({**old, **values}))
        weights = folder / "model.safetensors"
        return ModelFiles(path=folder, kind="safetensors", weights=(weights,))

    return copy


def test_another_pre_tokenizer_is_resolved(
    changed: Callable[..., ModelFiles], tmp_path: Path
) -> None:
    """The name comes from tokenizing, and an end token that only the source knows is kept."""
    from tokenizers import Tokenizer

    files = changed(
        tokenizer={"pre_tokenizer": split(LLAMA_3)}, generation_config={"eos_token_id": [2, 77]}
    )
    out = convert(files, tmp_path / "out.gguf", name="my phi-3")
    source = Tokenizer.from_file(str(files.path / "tokenizer.json"))
    with vocabulary(out) as opened:
        assert opened.metadata("tokenizer.ggml.pre") == "smaug-bpe"
        assert opened.metadata("general.name") == "my phi_3"
        assert opened.ends(2)
        assert opened.ends(77)
        assert not opened.ends(78)
        assert opened.metadata("tokenizer.ggml.add_bos_token") == "false"
        for text in TEXTS:
            assert opened.tokenize(text) == source.encode(text).ids


def test_an_unknown_pre_tokenizer_is_refused(
    changed: Callable[..., ModelFiles], tmp_path: Path
) -> None:
    files = changed(tokenizer={"pre_tokenizer": split("[aeiou]+|[^aeiou]{1,2}")})
    with pytest.raises(FormatError, match=r"no pre-tokenizer of llama.cpp fits.*for example"):
        convert(files, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed"]


def pieces(tmp_path: Path, *, unigram: bool) -> dict[str, Any]:
    """A SentencePiece kind of tokenizer trained here: byte fallback, blanks as U+2581."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    special = ["<unk>", "<|im_start|>", "<|im_end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    lines = [text for text in TEXTS for _ in range(4)] + ["the cat and the dog went there"] * 20
    if unigram:
        tokenizer = Tokenizer(models.Unigram(byte_fallback=True))
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=700, special_tokens=special, unk_token="<unk>"
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.train_from_iterator(lines, trainer)
    values: dict[str, Any] = json.loads(tokenizer.to_str())
    values["added_tokens"] = [entry for entry in values["added_tokens"] if entry["id"] < 3]
    return values


def test_a_missing_tokenizer_model_is_rebuilt(
    changed: Callable[..., ModelFiles], tmp_path: Path
) -> None:
    """Without it, llama.cpp's converter gives all pieces one score and most texts go wrong."""
    from transformers import AutoTokenizer

    files = changed(tokenizer=pieces(tmp_path, unigram=False))
    with pytest.warns(UserWarning, match="tokenizer.model was rebuilt"):
        out = convert(files, tmp_path / "out.gguf")
    source = AutoTokenizer.from_pretrained(files.path)
    probes = Probes.of(source, normalizes=False, keeps_leading_blank=False)
    assert len(probes.picked) > 25
    with vocabulary(out) as opened:
        found = probes.compare(opened.tokenize)
    assert found.badness == 0


def test_a_tokenizer_that_would_go_wrong_is_refused(
    changed: Callable[..., ModelFiles], tmp_path: Path
) -> None:
    """llama.cpp merges by score where a Unigram tokenizer looks for the best whole path."""
    files = changed(tokenizer=pieces(tmp_path, unigram=True))
    with pytest.raises(FormatError, match="cannot be written to GGUF faithfully"):
        convert(files, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_more_tokens_than_rows_is_refused(
    changed: Callable[..., ModelFiles], tmp_path: Path
) -> None:
    files = changed(config={"vocab_size": 2000})
    with pytest.raises(FormatError, match=r"has 2816 tokens, but its embedding only 2000 rows"):
        convert(files, tmp_path / "out.gguf")


def test_a_quantized_checkpoint_is_refused(
    changed: Callable[..., ModelFiles], tmp_path: Path
) -> None:
    files = changed(config={"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(UnsupportedError, match=r"already quantized \(bitsandbytes\)"):
        convert(files, tmp_path / "out.gguf")


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(4), "b": torch.tensor([1.0, -70000.0])}, tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match=r"b holds 70000, more than float16 can \(65504\)"):
        check_range(tmp_path)
    save_file({"a": torch.tensor([65504.0])}, tmp_path / "m.safetensors")
    check_range(tmp_path)
    save_file({"a": torch.tensor([float("nan")])}, tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match="a holds nan"):
        check_range(tmp_path)


def test_structure_gives_the_likely_names(tiny: ModelFiles) -> None:
    tokenizer = read_tokenizer(tiny.path)
    assert candidates(tokenizer)[0] == "smollm"
    model = {"type": "BPE", "ignore_merges": True}
    assert candidates({"pre_tokenizer": split(LLAMA_3), "model": model})[0] == "llama-bpe"
    assert candidates({"pre_tokenizer": split(LLAMA_3), "model": {}})[0] == "smaug-bpe"
    assert candidates({"pre_tokenizer": split(LLAMA_3.replace("{1,3}", ""))})[0] == "qwen2"
    assert candidates({"pre_tokenizer": {"type": "ByteLevel"}})[0] == "gpt-2"
    assert len(candidates({})) == len(set(candidates({}))) > 40
    assert kind_of(tokenizer) == "byte-level"
    assert kind_of({"model": {"type": "BPE", "byte_fallback": True}}) == "sentencepiece"
    assert kind_of({}) == "other"
    assert normalizes({"normalizer": {"type": "NFC"}})
    assert not normalizes(tokenizer)


def test_older_configuration_keys() -> None:
    moved = older_keys(
        {"n_positions": 64, "rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.25}}
    )
    assert (moved["n_ctx"], moved["rope_theta"], moved["rotary_pct"]) == (64, 5.0, 0.25)
    assert (
        older_keys({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 5.0}})["rope_theta"] == 7.0
    )
    assert older_keys({"a": 1}) == {"a": 1}


def test_names_that_llama_cpp_takes_for_a_vocabulary() -> None:
    assert safe_name("My-Phi3-tune", {}) == "My-phi_3-tune"
    assert safe_name("phi-3", {"model": {"vocab": {"</s>": 0}}}) == "phi-3"


def test_the_pre_tokenizer_name_is_replaced(tmp_path: Path) -> None:
    key = b"tokenizer.ggml.pre"
    text = b"head" + key + (8).to_bytes(4, "little") + (3).to_bytes(8, "little") + b"oldtail"
    path = tmp_path / "v.gguf"
    path.write_bytes(text)
    replace_pre_tokenizer(path, "longer")
    assert path.read_bytes() == (
        b"head" + key + (8).to_bytes(4, "little") + (6).to_bytes(8, "little") + b"longertail"
    )
