"""vLLM on the CPU with models that think and call, see, embed and rerank, each at a reference.

The models are tiny and their weights random or written by hand; the reference is what the weights
say by construction, or transformers with the same files. Heads of 32 or 64 values, for vLLM on the
CPU has no others that are as small.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parrot import ANSWER, TEMPLATE, THINKING, TOOL, save_parrot
from random_bert import save_bert, save_reranker
from random_projector import save_seeing
from remote_model import at_url
from test_conformance_powers import told_apart
from test_transformers_images import ASK, picture, turn
from vllm_environment import need_vllm

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import ContextLengthError, UnsupportedError
from workbench.messages import Image, Reply

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

Shows = Callable[..., None]
WIDTH = {"hidden_size": 128, "num_attention_heads": 4}
QUERY = "the cat"
TEXTS = [
    "the cat sat on the mat",
    "a dog",
    "red house one two three water is blue",
    "garden " * 20,
    "The Cat",
]


@pytest.fixture(autouse=True)
def _here() -> None:
    need_vllm()


def served(folder: Path, **settings: Any) -> Model:
    given = {"context": 256, "threads": 1, "parallel": 4, "dtype": "fp32", **settings}
    return wb.load(folder, engine="vllm", **given)


def plain(folder: Path) -> Model:
    """The reference."""
    return wb.load(folder, engine="transformers", dtype="fp32", threads=1)


def by_url(model: Model, home: Path) -> Model:
    """The same server, as if somebody else had started it."""
    command = model._session.server.command  # type: ignore[union-attr]
    return at_url(f"{command.url}/v1", command.key, home, model.card)


# Thinking and tools: a model whose weights say a thought, an answer and a call


def test_the_servers_parsers_tell_thought_answer_and_call_apart(
    tmp_path: Path, session_home: Path, shows: Shows
) -> None:
    folder = save_parrot(tmp_path / "parrot")
    with served(folder, reasoning_parser="deepseek_r1") as model:
        words = model._session.server.command.words
        assert "--tool-call-parser=hermes" in words, "taken by the chat template"
        assert "--reasoning-parser=deepseek_r1" in words
        told_apart(model, shows)
        untold = model.ask("What is 1 + 1?", think=False, max_tokens=40)
        assert (untold.thinking, untold.text[: len(ANSWER)]) == ("", ANSWER)
        assert untold.tool_calls == (), "without tools a call is text"
        with by_url(model, session_home) as other:
            told_apart(other, shows)


def test_a_thought_that_the_template_begins_is_told_apart_without_a_parser(tmp_path: Path) -> None:
    folder = save_parrot(tmp_path / "parrot")
    ending = "<think></think>{% endif %}"
    assert ending in TEMPLATE
    begun = TEMPLATE.replace(ending, "<think></think>{% else %}<think>{% endif %}")
    (folder / "chat_template.jinja").write_text(begun)
    with served(folder, tool_parser=None) as model:
        assert model.render("What is 1 + 1?").endswith("<think>")
        for think in (None, True):
            reply = model.ask("What is 1 + 1?", think=think, max_tokens=4)
            assert (reply.thinking, reply.text) == (THINKING, "y")
        assert model.ask("What is 1 + 1?", think=False, max_tokens=2).text == ANSWER
        assert Power.TOOLS not in model.powers
        with pytest.raises(UnsupportedError, match=r"cannot call tools.*name one by tool_parser="):
            model.ask("What is 1 + 1?", tools=(TOOL,))


# Images: a random vision tower before a Llama, as transformers computes it


def test_replies_about_images_are_those_of_transformers(tmp_path: Path, shows: Shows) -> None:
    folder = tmp_path / "seeing"
    save_seeing(folder, head_dim=32)
    asked = [(), (picture(1),), (picture(2),), (picture(3), picture(4))]
    with plain(folder) as model:
        expected = [model.ask(turn(*images), ASK) for images in asked]
        prompts = [model.prompt_ids(turn(*images)) for images in asked]
    assert len({reply.token_ids for reply in expected}) == len(asked)
    with served(folder) as model:
        for images, reply, prompt in zip(asked, expected, prompts, strict=True):
            same(model.ask(turn(*images), ASK), reply)
            assert model.prompt_ids(turn(*images)) == prompt
        shows(model, Power.IMAGES)
        again = model.ask_many([turn(*images) for images in asked], ASK)
        for found, reply in zip(again, expected, strict=True):
            same(found, reply)
        broken = model.ask_many([turn(Image(b"\x89PNG\r\n\x1a\n" + bytes(300)))])[0]
        assert broken.finish_reason == "error"
        same(model.ask(turn(picture(1)), ASK), expected[1])


def same(found: Reply, expected: Reply) -> None:
    """Check ids, log-probabilities and the count of the prompt's tokens."""
    assert found.token_ids == expected.token_ids
    assert found.usage.prompt_tokens == expected.usage.prompt_tokens
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-3)


# Vectors and relevance


def test_vectors_are_those_of_transformers(
    tmp_path: Path, session_home: Path, shows: Shows
) -> None:
    folder = tmp_path / "bert"
    save_bert(folder, **WIDTH)
    with plain(folder) as model:
        raw, scaled = model.embed(TEXTS, normalize=False), model.embed(TEXTS)
        query = model.embed(QUERY)[0]
    lengths = np.linalg.norm(raw, axis=1)
    assert lengths.min() > 2, "so that what is normalized and what is not differ"
    first_token = tmp_path / "first"
    shutil.copytree(folder, first_token)
    (first_token / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with plain(first_token) as model:
        assert np.abs(model.embed(TEXTS) - scaled).max() > 0.05, "pooling makes a difference"
    with served(folder, context=64) as model, by_url(model, session_home) as remote:
        assert model.powers == {Power.EMBED, Power.RERANK, Power.TOKENIZE, Power.CONCURRENT}
        for each in (model, remote):
            np.testing.assert_allclose(each.embed(TEXTS, normalize=False), raw, atol=5e-5)
            np.testing.assert_allclose(each.embed(TEXTS), scaled, atol=1e-5)
            np.testing.assert_allclose(each.embed(TEXTS[1])[0], scaled[1], atol=1e-5)
            shows(each, Power.EMBED)
        relevance = model.rerank(QUERY, TEXTS)
        np.testing.assert_allclose(relevance, scaled @ query, atol=1e-5)
        with pytest.raises(ContextLengthError, match="64 tokens"):
            model.embed(["short", "cat " * 100])
        with pytest.raises(UnsupportedError, match="does not chat"):
            model.ask("Hello?")


def test_relevances_are_those_of_transformers(
    tmp_path: Path, session_home: Path, shows: Shows
) -> None:
    folder = tmp_path / "judge"
    save_reranker(folder, **WIDTH)
    with plain(folder) as model:
        expected = model.rerank(QUERY, TEXTS)
        turned = [model.rerank(text, [QUERY])[0] for text in TEXTS]
    assert np.ptp(expected) > 0.3
    assert np.abs(expected - turned).max() > 0.01, "the order of query and document counts"
    with served(folder, context=128) as model, by_url(model, session_home) as remote:
        assert model.powers == {Power.RERANK, Power.TOKENIZE, Power.CONCURRENT}
        for each in (model, remote):
            np.testing.assert_allclose(each.rerank(QUERY, TEXTS), expected, atol=5e-5)
            backwards = each.rerank(QUERY, TEXTS[::-1])
            np.testing.assert_allclose(backwards, expected[::-1], atol=5e-5)
            shows(each, Power.RERANK)
        with pytest.raises(UnsupportedError, match="does not chat"):
            model.ask("Hello?")
