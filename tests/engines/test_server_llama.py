"""llama-server, by the package xllamacpp: it agrees with llama.cpp in this process, and ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_llama_cpp_adapters import write_adapter

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import ContextLengthError, EngineError, UnsupportedError

QUESTIONS = [
    "How do you say cat in Japanese?",
    "What is 7 + 5?",
    "Tell me a story.",
    "こんにちは",
]
NEAR = 0.05
SLOTS, CONTEXT = 4, 256


@pytest.fixture(scope="module")
def served(f32: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        settings = {"context": CONTEXT, "threads": 1, "parallel": SLOTS}
        with wb.load(f32, engine="llama-server", **settings) as model:
            yield model


@pytest.fixture(scope="module")
def here(f32: Path) -> Iterator[Model]:
    with wb.load(f32, engine="llama.cpp", context=CONTEXT, threads=1) as model:
        yield model


def test_it_is_a_second_opinion_on_prompts(served: Model, here: Model) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi 猫"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And now?"},
    ]
    for conversation in (*QUESTIONS, talk):
        assert served.render(conversation) == here.render(conversation)
        assert served.prompt_ids(conversation) == here.prompt_ids(conversation)


def test_greedy_replies_are_those_of_llama_cpp(served: Model, here: Model) -> None:
    for question in QUESTIONS:
        ours, theirs = (each.ask(question, max_tokens=24) for each in (here, served))
        if ours.text == theirs.text:
            assert ours.finish_reason == theirs.finish_reason
            continue
        prompt = here.prompt_ids(question)
        rows = np.sort(here.log_probabilities([*prompt, *ours.token_ids]), axis=1)[
            len(prompt) - 1 :
        ]
        assert (rows[:, -1] - rows[:, -2]).min() < NEAR, question


def test_each_slot_has_the_whole_context(served: Model) -> None:
    session = served._session
    slots = session.http.json("GET", "/slots", at_root=True)
    assert len(slots) == SLOTS
    assert {slot["n_ctx"] for slot in slots} == {CONTEXT}
    long = "cat " * (CONTEXT // 2 - 20)
    assert len(served.prompt_ids(long)) > CONTEXT // SLOTS
    assert served.ask(long, max_tokens=2).usage.prompt_tokens > CONTEXT // SLOTS
    with pytest.raises(ContextLengthError):
        served.ask("cat " * CONTEXT, max_tokens=4)


def test_sixteen_at_once_do_not_mix(served: Model) -> None:
    assert Power.CONCURRENT in served.powers
    questions = QUESTIONS * 4
    alone = [served.ask(question, max_tokens=12).text for question in QUESTIONS] * 4
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda text: served.ask(text, max_tokens=12).text, questions))
    assert [text[:6] for text in together] == [text[:6] for text in alone]


def test_a_reply_follows_a_schema(served: Model) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    reply = served.ask("What is 7 + 5?", schema=schema, max_tokens=40)
    assert isinstance(json.loads(reply.text)["n"], int)


def test_its_key_is_asked_for(served: Model) -> None:
    import urllib.error
    import urllib.request

    url = served._session.server.command.url
    assert url.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{url}/v1/models", timeout=10)
    assert caught.value.code == 401
    caught.value.close()


def test_an_architecture_it_does_not_know_is_named(tmp_path: Path, f32: Path) -> None:
    strange = tmp_path / "strange.gguf"
    data = f32.read_bytes()
    place = data.index(b"llama", data.index(b"general.architecture"))
    strange.write_bytes(data[:place] + b"lluma" + data[place + 5 :])
    with pytest.raises(EngineError, match="does not know the architecture lluma"):
        wb.load(strange, engine="llama-server", context=CONTEXT, threads=1)


def test_an_adapter_it_was_not_started_with_is_refused(served: Model, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="started without the adapter"):
        served.use_adapter(tmp_path)


def test_an_adapter_is_switched_as_in_llama_cpp(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", r=4, lora_alpha=24)
    settings = {"quantization": "F32", "context": CONTEXT, "threads": 1, "adapter": folder}
    with wb.load("tiny-chat", engine="llama.cpp", **settings) as model:
        adapted = model.ask("Tell me a story.", max_tokens=8).text
        model.use_adapter(None)
        base = model.ask("Tell me a story.", max_tokens=8).text
    assert adapted != base
    with wb.load("tiny-chat", engine="llama-server", **settings) as model:
        assert model.ask("Tell me a story.", max_tokens=8).text == adapted
        model.use_adapter(None)
        assert model.ask("Tell me a story.", max_tokens=8).text == base
        model.use_adapter(folder)
        assert model.ask("Tell me a story.", max_tokens=8).text == adapted


def test_closing_ends_it(f32: Path) -> None:
    model = wb.load(f32, engine="llama-server", context=CONTEXT, threads=1)
    session = model._session
    processes = session.server.processes()
    assert len(processes) == 2
    model.close()
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert session.freed.before.rss_bytes > 20_000_000
    assert session.freed.after.rss_bytes == 0
