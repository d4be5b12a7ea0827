from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from odd_strings import odd_strings

from workbench.formats.vocabulary import Vocabulary, vocabulary


@pytest.fixture(scope="module")
def gguf(f16: Path) -> Iterator[Vocabulary]:
    """The vocabulary of the embedded model's GGUF, as llama.cpp reads it."""
    with vocabulary(f16) as opened:
        yield opened


@pytest.fixture(scope="module")
def loaded(shipped: Path) -> Any:
    """The shipped tokenizer as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shipped)


def test_ten_thousand_strings_have_the_same_ids(gguf: Vocabulary, loaded: Any) -> None:
    texts = odd_strings(10_000)
    assert len(set(texts)) > 9_000
    expected = loaded(texts, add_special_tokens=False)["input_ids"]
    differ = [
        (text, ids) for text, ids in zip(texts, expected, strict=True) if gguf.tokenize(text) != ids
    ]
    assert not differ, differ[:5]


@pytest.mark.slow
def test_every_character_has_the_same_ids(gguf: Vocabulary, loaded: Any) -> None:
    ranges = (range(0xD800), range(0xE000, 0x32000), range(0xE0000, 0xE0200))
    codes = [code for part in ranges for code in part]
    step = 64
    for start in range(0, len(codes), step):
        characters = [chr(code) for code in codes[start : start + step]]
        text = "".join(f"a{c} {c}1{c}.{c}" for c in characters)
        assert gguf.tokenize(text) == loaded(text, add_special_tokens=False)["input_ids"], start


def test_the_file_keeps_what_the_folder_says(gguf: Vocabulary, loaded: Any, shipped: Path) -> None:
    assert gguf.size == len(loaded)
    assert gguf.metadata("tokenizer.ggml.pre") == "smollm"
    assert gguf.metadata("tokenizer.ggml.add_bos_token") == "false"
    template = gguf.metadata("tokenizer.chat_template") or ""
    assert template.strip() == (shipped / "chat_template.jinja").read_text().strip()
    ends = json.loads((shipped / "generation_config.json").read_text())["eos_token_id"]
    assert [token for token in range(gguf.size) if gguf.ends(token)] == sorted(ends)


def test_llama_cpp_writes_the_same_prompts(loaded: Any, shipped: Path) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = (shipped / "chat_template.jinja").read_text()
    formatter = Jinja2ChatFormatter(
        template=template, bos_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    path = shipped.parent / "prompts" / "heldout_text.jsonl"
    for line in path.read_text("utf-8").splitlines():
        messages = json.loads(line)["messages"][:-1]
        expected = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert formatter(messages=messages).prompt == expected
