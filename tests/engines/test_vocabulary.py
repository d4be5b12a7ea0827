"""Exact bytes of tokens for each kind of Hugging Face tokenizer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workbench.engines.vocabulary import TokenBytes
from workbench.paths import shipped

CORPUS = ["the cat sat on the mat", "猫は小さい", "a  b\n\tc", "naïve café 🐈"] * 20


@pytest.fixture(scope="module")
def byte_level() -> TokenBytes:
    return TokenBytes(AutoTokenizer.from_pretrained(shipped("data", "tiny-chat")))


@pytest.fixture(scope="module")
def sentence_piece() -> tuple[PreTrainedTokenizerFast, TokenBytes]:
    """A BPE with byte fallback and ``▁`` for a blank, as Llama 2 and Gemma have."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    learned.train_from_iterator(CORPUS, trainer)
    model = json.loads(learned.to_str())["model"]
    vocabulary = model["vocab"]  # byte tokens are ordinary ones, not added as special
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in model["merges"]]
    raw = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    return tokenizer, TokenBytes(tokenizer)


@settings(max_examples=200)
@given(text=st.text(max_size=40))
def test_byte_level_tokens_join_to_the_text(text: str, byte_level: TokenBytes) -> None:
    text = text.encode("utf-8", "ignore").decode()
    ids = byte_level._tokenizer(text, add_special_tokens=False)["input_ids"]
    assert byte_level.joined(ids) == text.encode()


def test_every_byte_has_a_token_of_its_own(byte_level: TokenBytes) -> None:
    single = {byte_level(index) for index in range(2816) if len(byte_level(index)) == 1}
    assert single == {bytes([byte]) for byte in range(256)}


def test_special_tokens_are_text_in_bytes_and_nothing_in_a_reply(byte_level: TokenBytes) -> None:
    assert byte_level(1) == b"<|im_start|>"
    assert byte_level.visible(1) == b""
    assert byte_level.special == {0, 1, 2}
    assert byte_level(5000) == byte_level(-1) == b""


@pytest.mark.parametrize("text", ["the cat sat", " two  blanks", "猫 🐈 é", "unseen: ☃ Ж \x01"])
def test_sentence_pieces_join_to_the_text(
    text: str, sentence_piece: tuple[PreTrainedTokenizerFast, TokenBytes]
) -> None:
    tokenizer, bytes_of = sentence_piece
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in ids:
        pytest.fail(f"{text!r} has unknown tokens: {ids}")
    assert bytes_of.joined(ids) == text.encode()
    assert bytes_of.joined(ids).decode() == tokenizer.decode(ids)
