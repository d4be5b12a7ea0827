"""Conformance: a model closes twice, and says that it is closed instead of answering."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import SUM, without
from llama_server_process import KEY
from remote_model import at_url

from workbench.engines.model import Model
from workbench.errors import EngineError, UnsupportedError


@without("vllm", because="One vLLM serves all tests; test_server_vllm.py closes it.")
@without("openai", because="A server of somebody else goes on: the next test closes what is ours.")
def test_closing_twice_is_safe_and_use_afterwards_is_one_error(each: Model) -> None:
    """The last of the suite: models that are needed again are opened again."""
    stream = each.stream(SUM, max_tokens=40)
    next(stream)
    session = each._session
    proof = each.close()
    assert each.closed
    assert each.close() is proof is not None
    session.close()  # the session's own is safe to call twice too
    assert [piece.finish_reason for piece in stream][-1:] in ([], ["cancelled"])
    for used in (
        lambda: each.ask(SUM),
        lambda: next(each.stream(SUM)),
        lambda: each.ask_many([SUM]),
        lambda: each.complete("a"),
        lambda: each.tokenize("a"),
        lambda: each.prompt_ids("a"),
        lambda: each.score([1, 2]),
        lambda: each.raw,
        lambda: each.powers,
    ):
        with pytest.raises(EngineError, match="is closed") as caught:
            used()
        assert not isinstance(caught.value, UnsupportedError)
    each.stop()
    assert "closed" in repr(each)


@pytest.mark.parametrize(
    "way",
    ["llama-server", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(600)])],
)
def test_closing_what_is_at_a_url_leaves_the_server(
    way: str, request: pytest.FixtureRequest, session_home: Path
) -> None:
    other = request.getfixturevalue(way.replace("-", "_") + "_at_url")
    url, key = other._session.http.url, KEY
    if way == "vllm":
        key = request.getfixturevalue("vllm")._session.server.command.key
    model = at_url(url, key, session_home)
    assert model.ask(SUM, max_tokens=3).text
    proof = model.close()
    assert model.close() is proof
    with pytest.raises(EngineError, match="is closed"):
        model.ask(SUM)
    assert other.ask(SUM, max_tokens=3).text
