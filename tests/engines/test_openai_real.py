"""A real server of llama.cpp, spoken to by its URL, against the same file in this process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench.engines import server_xllamacpp
from workbench.engines.model import Model
from workbench.errors import ContextLengthError, EngineError

KEY = "local-0123456789abcdef"
QUESTIONS = [
    "How do you say cat in Japanese?",
    "「犬」は英語で何ですか？",
    "こんにちは",
    "Tell me a story.",
    "What is 3 + 4?",
    "Hello! 🐈",
]


@pytest.fixture(scope="module")
def served(f32: Path) -> Iterator[str]:
    """Start the server that the package xllamacpp carries, and return its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", str(f32), "--alias", "tiny-chat", "--port", str(port), "--threads", "1"]
    words += ["--ctx-size", str(16 * 512), "--parallel", "16"]
    process = subprocess.Popen(
        [sys.executable, server_xllamacpp.__file__, *words],
        env={**os.environ, "LLAMA_API_KEY": KEY},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.05)
    raise AssertionError("the server is not ready")


@pytest.fixture(scope="module")
def remote(served: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("TEST_LOCAL_KEY", KEY)
        with wb.load("tiny-chat", url=served, key_variable="TEST_LOCAL_KEY") as model:
            yield model


@pytest.fixture
def local(opened: Callable[..., Model]) -> Model:
    return opened("llama.cpp")


def test_it_is_known_for_what_it_is(remote: Model) -> None:
    assert remote.plan.engine == "openai"
    assert remote._open_session.flavour == "llama-server"
    assert remote.plan.context == 512
    assert remote._open_session.models() == ["tiny-chat"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_same_words_as_in_this_process(remote: Model, local: Model, question: str) -> None:
    there, here = remote.ask(question, max_tokens=80), local.ask(question, max_tokens=80)
    assert there.text == here.text
    assert there.finish_reason == here.finish_reason
    assert there.usage == here.usage
    assert remote.prompt_ids(question) == local.prompt_ids(question)
    assert remote.render(question) == local.render(question)


def test_a_conversation_of_several_turns(remote: Model, local: Model) -> None:
    turns = [
        {"role": "user", "content": "How do you say cat in Japanese?"},
        {"role": "assistant", "content": "猫"},
        {"role": "user", "content": "And dog?"},
    ]
    assert remote.ask(turns).text == local.ask(turns).text
    assert remote.prompt_ids(turns) == local.prompt_ids(turns)


def test_ids_and_bytes(remote: Model, local: Model) -> None:
    for text in ("猫 cat <|im_end|>", "🐈‍⬛", "", " x"):
        assert remote.tokenize(text) == local.tokenize(text)
        assert remote.detokenize(remote.tokenize(text)) == text.encode()


def test_a_raw_prompt_as_text_and_as_ids(remote: Model, local: Model) -> None:
    def text(model: Model, prompt: str | list[int]) -> str:
        return "".join(piece.text for piece in model.complete(prompt, max_tokens=24))

    prompt = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"
    assert text(remote, prompt) == text(local, prompt) != ""
    ids = local.tokenize(prompt)
    assert text(remote, ids) == text(local, ids)


@pytest.mark.parametrize("stop", ["sea", " by the", "。", ("y the s", "One day")])
def test_stop_strings(remote: Model, local: Model, stop: str | tuple[str, ...]) -> None:
    there = remote.ask("Tell me a story.", stop=stop)
    here = local.ask("Tell me a story.", stop=stop)
    assert (there.text, there.finish_reason) == (here.text, here.finish_reason)


def test_limits(remote: Model) -> None:
    reply = remote.ask("Tell me a story.", max_tokens=3)
    assert reply.finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 3
    long = remote.ask("Hi", max_tokens=40, ignore_end=True)
    assert long.usage is not None
    assert long.usage.completion_tokens == 40


def test_log_probabilities(remote: Model, local: Model) -> None:
    reply = remote.ask("Tell me a story.", max_tokens=12, top_logprobs=3, ignore_end=True)
    ids = [*remote.prompt_ids("Tell me a story."), *reply.token_ids]
    expected = local.log_probabilities(ids)[-12:]
    chosen = [logprob for logprob, _ in reply.logprobs]
    np.testing.assert_allclose(
        chosen, [row[i] for row, i in zip(expected, reply.token_ids, strict=True)], atol=2e-3
    )
    for row, (_, top) in zip(expected, reply.logprobs, strict=True):
        assert [each.token_id for each in top] == np.argsort(-row)[:3].tolist()


def test_a_seed_repeats(remote: Model) -> None:
    settings = {"temperature": 1.5, "seed": 7, "max_tokens": 30, "ignore_end": True}
    first, second = (remote.ask("Tell me a story.", **settings) for _ in range(2))
    assert first.text == second.text
    others = {remote.ask("Tell me a story.", **{**settings, "seed": n}).text for n in range(4)}
    assert len(others) > 1


def test_a_schema_and_a_grammar_hold(remote: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    found = json.loads(remote.ask("Who are you?", schema=schema, max_tokens=200).text)
    assert set(found) == {"name", "age"}
    assert remote.ask("Hi", grammar='root ::= "yes" | "no"').text in ("yes", "no")


def test_a_prompt_that_does_not_fit(remote: Model) -> None:
    with pytest.raises(ContextLengthError):
        remote.ask("cat " * 800)


def test_sixteen_at_once_never_mix(remote: Model) -> None:
    questions = [f"What is {number} + {number % 3}?" for number in range(12)] + QUESTIONS[:4]
    alone = [remote.ask(question, max_tokens=60).text for question in questions]
    replies: dict[int, str] = {}
    together = threading.Barrier(16, timeout=60)

    def ask(index: int) -> None:
        together.wait()
        replies[index] = remote.ask(questions[index], max_tokens=60).text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [replies[index] for index in range(16)] == alone
    assert [reply.text for reply in remote.ask_many(questions, max_tokens=60)] == alone
    assert len(set(alone)) > 8


def test_an_interrupted_reply_stops_there(remote: Model) -> None:
    def busy() -> int:
        slots = remote.raw.json("GET", "/slots", at_root=True)
        return sum(bool(slot["is_processing"]) for slot in slots)

    stream = remote.stream("Tell me a story.", max_tokens=450, ignore_end=True)
    next(stream)
    assert busy() == 1
    stream.close()
    until = time.monotonic() + 20
    while busy() and time.monotonic() < until:
        time.sleep(0.02)
    assert busy() == 0


def _open(url: str, **options: str) -> Model:
    return wb.load("tiny-chat", url=url, **options)


def test_another_key_is_refused(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="wants a key"), _open(served) as model:
        model.ask("Hi")
    monkeypatch.setenv("TEST_LOCAL_KEY", "wrong-key")
    with (
        pytest.raises(EngineError, match="key in TEST_LOCAL_KEY") as caught,
        _open(served, key_variable="TEST_LOCAL_KEY") as model,
    ):
        model.ask("Hi")
    assert "wrong-key" not in str(caught.value)


def test_the_environment_finds_it(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_BACKEND", "llama-server")
    monkeypatch.setenv("BACKEND_URL", served)
    monkeypatch.setenv("TEST_LOCAL_KEY", KEY)
    with wb.load("tiny-chat", key_variable="TEST_LOCAL_KEY") as model:
        assert model.plan.engine == "openai"
        assert any("BACKEND_URL" in reason for reason in model.plan.reasons)
        assert model.ask("How do you say cat in Japanese?").text == "猫"


def test_it_works_isolated_too(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_LOCAL_KEY", KEY)
    settings = {"url": served, "key_variable": "TEST_LOCAL_KEY", "isolate": True}
    with wb.load("tiny-chat", **settings) as model:
        assert model.ask("How do you say cat in Japanese?").text == "猫"
