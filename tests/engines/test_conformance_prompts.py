"""Conformance: every engine makes the same prompt of a conversation, and continues a raw one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conformance import QUESTIONS, SUM, TALK, needs, same_or_near, without

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    UnsupportedError,
)
from workbench.messages import Message, Sampling
from workbench.paths import shipped

NO_WEIGHTS = "A script has a prompt and a vocabulary of its own."
TEXTS = ("plain", "猫🐈‍⬛ é", "  two  blanks\n\n", "a\tb", "12345 + 67", "", " x")


@without("scripted", because=NO_WEIGHTS)
@needs(Power.RENDER)
def test_prompts_and_their_ids_are_the_same(
    each: Model, reference: Model, shows: Callable[..., None]
) -> None:
    for conversation in (*QUESTIONS, TALK):
        assert each.prompt_ids(conversation) == reference.prompt_ids(conversation)
        assert each.render(conversation) == reference.render(conversation)
    text = each.render(TALK)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert not each.render(TALK, add_generation_prompt=False).endswith("assistant\n")
    assert each.prompt_ids(TALK) == each.tokenize(text)
    shows(each, Power.RENDER)


@without("scripted", because=NO_WEIGHTS)
@needs(Power.TOKENIZE)
def test_texts_have_the_same_ids_and_their_bytes_come_back(
    each: Model, reference: Model, shows: Callable[..., None]
) -> None:
    for text in (*TEXTS, "A 🐈‍⬛ cat <|im_end|> と 猫。", *QUESTIONS):
        ids = each.tokenize(text)
        assert ids == reference.tokenize(text)
        assert all(isinstance(index, int) for index in ids)
        assert each.detokenize(ids) == text.encode()
    assert each.tokenize("<|im_start|>user") == [1, *each.tokenize("user")]
    shows(each, Power.TOKENIZE)


def test_ids_of_a_script_are_its_bytes(
    opened: Callable[..., Model], shows: Callable[..., None]
) -> None:
    for isolated in (False, True):
        scripted = opened("scripted", isolated)
        for text in (*TEXTS, "a\x00c"):
            assert scripted.tokenize(text) == list(text.encode())
            assert scripted.detokenize(scripted.tokenize(text)) == text.encode()
        assert scripted.render([Message("user", "Hi")]) == "user: Hi\nassistant: "
        assert scripted.prompt_ids("Hi") == list(b"user: Hi\nassistant: ")
        shows(scripted, Power.TOKENIZE, Power.RENDER)


def test_half_a_surrogate_pair_is_a_question_mark(real: Model) -> None:
    assert real.tokenize("猫\ud83d犬") == real.tokenize("猫?犬")
    assert real.prompt_ids("猫\ud83d犬") == real.prompt_ids("猫?犬")
    assert real.ask("猫\ud83d犬", max_tokens=2).token_ids


def test_bytes_are_exact_within_a_character(real: Model) -> None:
    """A server tells text, not bytes: it cannot be asked for half a character."""
    ids = real.tokenize("猫🐈‍⬛")
    assert b"".join(real.detokenize([index]) for index in ids) == "猫🐈‍⬛".encode()
    assert real.tokenize("a\x00c") == real.tokenize("a") + real.tokenize("\x00c")
    assert real.detokenize([1, 2, 0]) == b"<|im_start|><|im_end|><|endoftext|>"
    assert real.detokenize([10**6, -5]) == b""


@without("scripted", because=NO_WEIGHTS)
@needs(Power.COMPLETE)
def test_a_raw_prompt_is_continued_as_text_and_as_ids(
    each: Model, reference: Model, form: object, shows: Callable[..., None]
) -> None:
    text, ids = reference.render(SUM), reference.prompt_ids(SUM)
    chat = each.ask(SUM, max_tokens=10)
    for prompt in (text, ids):
        pieces = list(each.complete(prompt, max_tokens=10))
        assert "".join(piece.text for piece in pieces) == chat.text
        assert pieces[-1].finish_reason == chat.finish_reason
        found = [piece.token_id for piece in pieces if piece.token_id is not None]
        if found and chat.token_ids:
            same_or_near(reference, ids, chat.token_ids, found, form.gap)  # type: ignore[attr-defined]
    plain = "One day, a cat"
    shown = "".join(piece.text for piece in each.complete(plain, max_tokens=6))
    by_ids = each.complete(each.tokenize(plain), max_tokens=6)
    assert shown == "".join(piece.text for piece in by_ids) != ""
    shows(each, Power.COMPLETE)


def test_a_raw_prompt_of_a_script_is_a_user_turn(
    opened: Callable[..., Model], shows: Callable[..., None]
) -> None:
    for isolated in (False, True):
        scripted = opened("scripted", isolated)
        shown = "".join(piece.text for piece in scripted.complete("Greet.", max_tokens=99))
        assert shown == scripted.ask("Greet.").text
        shows(scripted, Power.COMPLETE)


@without("scripted", because="A script continues any prompt.")
@without("url of llama-server", "url of vllm", because="The files are the server's own affair.")
@without("vllm", because="Its start takes most of a minute; its template is transformers' own.")
@without("llama.cpp F16", "llama.cpp Q8_0", because="The weights' form has no say in it.")
@without("transformers isolated", "mlx isolated", because="As llama.cpp isolated.")
def test_a_model_without_a_template_completes_and_does_not_chat(
    each: Model, form: object, bare: Path
) -> None:
    plan = each.plan
    settings = {"engine": plan.engine, "threads": 1, "context": 256}
    if plan.engine in ("transformers", "mlx"):
        settings |= {"dtype": "fp32"}
    else:
        settings |= {"quantization": "F32"}
    with wb.load(bare, isolate=each.isolated, **settings) as model:
        text = each.render(SUM)
        assert Power.RENDER not in model.powers
        shown = "".join(piece.text for piece in model.complete(text, max_tokens=10))
        assert shown == each.ask(SUM, max_tokens=10).text
        for refused in (
            lambda: model.ask(SUM),
            lambda: model.render(SUM),
            lambda: model.prompt_ids(SUM),
        ):
            with pytest.raises(UnsupportedError, match=r"chat template|render a prompt"):
                refused()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's folder without its chat template, as base models come."""
    import json

    folder = tmp_path_factory.mktemp("base") / "bare"
    shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=lambda *_: ["builder"])
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config.pop("chat_template", None)
    file.write_text(json.dumps(config))
    return folder


@without("scripted", because="A script says what it says.")
def test_prompts_longer_than_the_context_are_refused(each: Model) -> None:
    limit = each.plan.context
    with pytest.raises(ContextLengthError):
        each.ask("cat " * limit, max_tokens=2)
    ids = [445] * (limit + 50)
    with pytest.raises(ContextLengthError):
        next(iter(each.complete(ids, max_tokens=1)))
    if Power.SCORE in each.powers:
        with pytest.raises(ContextLengthError):
            each.score(ids)
    assert each.ask(SUM, max_tokens=3).text


def test_both_numbers_are_named_where_the_length_is_known_here(real: Model) -> None:
    ids = [445] * 3000
    for refused in (
        lambda: next(iter(real.complete(ids, max_tokens=1))),
        lambda: real.score(ids),
        lambda: real.log_probabilities(ids),
    ):
        with pytest.raises(ContextLengthError, match=r"3000.*2048"):
            refused()
    with pytest.raises(ContextLengthError, match=r"2048 tokens.*2048"):
        next(iter(real.complete(ids[:2048], max_tokens=1)))


def test_ids_outside_the_vocabulary_are_refused(real: Model) -> None:
    for ids in ([1, 99_999], [-1, 5]):
        with pytest.raises(InputError, match="vocabulary"):
            real.score(ids)
        with pytest.raises(InputError, match="vocabulary"):
            next(iter(real.complete(ids)))
    with pytest.raises(InputError, match="no token ids"):
        real.score([])
    with pytest.raises(InputError, match="prompt is empty"):
        next(iter(real.complete([])))


def test_wrong_arguments_are_refused_before_anything_runs(each: Model) -> None:
    with pytest.raises(InputError, match="Did you mean 'temperature'"):
        each.stream(SUM, temperatur=1)
    with pytest.raises(InputError, match="role"):
        each.ask([{"role": "robot", "content": "x"}])
    with pytest.raises(InputError, match="max_tokens"):
        each.ask(SUM, max_tokens=0)
    with pytest.raises((InputError, EngineError), match="empty"):
        next(iter(each.complete([])))
    assert each.ask(SUM, Sampling(max_tokens=2)).finish_reason == "length"
    assert each.ask(SUM, Sampling(max_tokens=9), max_tokens=1).usage.completion_tokens == 1
