from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builder.corpus import conversations, messages_of, rows
from builder.hashtags import held_out_items, training_rows
from builder.tokenizer import train_tokenizer
from builder.train import Encoder
from odd_strings import odd_strings
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def raw(shipped: Path) -> Any:
    """The shipped tokenizer as the tokenizers library reads it."""
    return Tokenizer.from_file(str(shipped / "tokenizer.json"))


@pytest.fixture(scope="module")
def loaded(shipped: Path) -> Any:
    """The shipped tokenizer as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shipped)


def test_training_it_again_gives_the_shipped_one(raw: Any) -> None:
    assert json.loads(train_tokenizer().to_str()) == json.loads(raw.to_str())


def test_vocabulary_size_is_that_of_the_model(loaded: Any, shipped: Path) -> None:
    config = json.loads((shipped / "config.json").read_text())
    assert len(loaded) == config["vocab_size"]
    assert config["vocab_size"] % 256 == 0
    assert sorted(loaded.get_vocab().values()) == list(range(len(loaded)))


def test_no_token_is_longer_than_32_bytes(raw: Any) -> None:
    texts = [raw.decode([i], skip_special_tokens=False) for i in range(raw.get_vocab_size())]
    assert max(len(text.encode()) for text in texts) <= 32


def test_digits_stand_alone(raw: Any) -> None:
    assert raw.encode("12345").tokens == list("12345")
    for token in raw.get_vocab():
        assert len(token) == 1 or not set(token) & set("0123456789"), token


def test_any_text_comes_back(raw: Any) -> None:
    for text in odd_strings(2000, seed=1):
        assert raw.decode(raw.encode(text).ids, skip_special_tokens=False) == text


def test_transformers_gives_the_same_ids(raw: Any, loaded: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    loaded.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in odd_strings(1000, seed=2):
        ids = raw.encode(text).ids
        assert loaded(text)["input_ids"] == ids
        assert again(text)["input_ids"] == ids


def test_special_tokens(loaded: Any) -> None:
    assert loaded.eos_token == "<|im_end|>"
    assert loaded.pad_token == "<|endoftext|>"
    assert loaded("<|im_end|>")["input_ids"] == [loaded.eos_token_id]


def test_training_reads_conversations_as_the_template_writes_them(raw: Any, loaded: Any) -> None:
    encode = Encoder(raw)
    for messages in rows(3, 200):
        templated = loaded.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, weights = encode(messages)
        assert templated["input_ids"] == ids
        assert templated["assistant_masks"] == [int(weight == 1.0) for weight in weights]


def test_template_without_and_with_a_system_message(loaded: Any) -> None:
    user = [{"role": "user", "content": "1 + 2?"}]
    asked = "<|im_start|>user\n1 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert loaded.apply_chat_template(user, tokenize=False, add_generation_prompt=True) == asked
    system = [{"role": "system", "content": "Be brief."}, *user]
    assert loaded.apply_chat_template(system, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n" + asked
    )


def test_template_says_what_it_is(shipped: Path) -> None:
    template = (shipped / "chat_template.jinja").read_text()
    assert template.startswith("{#")
    assert template.index("#}") > 150


def test_every_token_of_the_new_skill_was_trained(raw: Any) -> None:
    encode = Encoder(raw)
    wanted = {
        token
        for item in (*held_out_items(0, 100), *held_out_items(1, 100))
        for token in encode(messages_of([item]))[0]
    }
    wanted |= {
        token for row in training_rows(0) if "#" in row[1]["content"] for token in encode(row)[0]
    }
    for block in range(200):
        stream = conversations(0, block)
        for _ in range(200):
            wanted -= set(encode(next(stream))[0])
        if not wanted:
            break
    assert not [raw.id_to_token(token) for token in wanted]
