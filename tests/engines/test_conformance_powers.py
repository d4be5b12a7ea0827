"""Conformance: a session has no power but its engine's data; one that it lacks is one error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance import SUM, needs, without
from llama_server_process import KEY, llama_server
from parrot import ANSWER, ARGUMENTS, THINKING, TOOL, save_parrot
from remote_model import at_url

import workbench as wb
from workbench.catalog.capabilities import engine_facts
from workbench.engines.base import Power
from workbench.engines.demand import SAID
from workbench.engines.model import Model
from workbench.errors import UnsupportedError
from workbench.messages import Image

PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(300)
GRAMMAR = 'root ::= "yes" | "no"'
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
ASKED: dict[Power, Callable[[Model], object]] = {
    Power.TOKENIZE: lambda model: model.tokenize("a"),
    Power.RENDER: lambda model: model.render("a"),
    Power.COMPLETE: lambda model: model.complete("a"),
    Power.SCORE: lambda model: model.score([1, 2]),
    Power.ADAPTERS: lambda model: model.use_adapter("anywhere"),
    Power.LOGPROBS: lambda model: model.ask("a", top_logprobs=1),
    Power.SCHEMA: lambda model: model.ask("a", schema=SCHEMA),
    Power.GRAMMAR: lambda model: model.ask("a", grammar=GRAMMAR),
    Power.TOOLS: lambda model: model.ask("a", tools=(TOOL,)),
    Power.THINKING: lambda model: model.ask("a", think=True),
    Power.IMAGES: lambda model: model.ask(
        [{"role": "user", "content": "a", "images": [Image(PIXEL)]}]
    ),
    Power.EMBED: lambda model: model.embed("a"),
    Power.RERANK: lambda model: model.rerank("a", ["b"]),
    Power.SLEEP: lambda model: model.sleep(),
}
NO_ERROR = {
    Power.BATCH: "ask_many asks one after another.",
    Power.CONCURRENT: "Requests wait for their turn.",
}
"""Powers that are not missed: the same is done otherwise."""


def test_a_session_has_no_power_that_the_data_do_not_state(each: Model) -> None:
    assert set(each.powers) <= set(engine_facts()[each.plan.engine].powers)


def test_each_lacking_power_is_one_error_that_names_who_has_it(each: Model) -> None:
    """Over all powers there are, those that this model lacks."""
    assert {*ASKED, *NO_ERROR} == set(Power)
    own = each.plan.engine
    for power, ask in ASKED.items():
        if power in each.powers:
            continue
        with pytest.raises(UnsupportedError, match=f"cannot {SAID[power]}") as caught:
            ask(each)
        able = [name for name, facts in engine_facts().items() if power in facts.powers]
        others = ", ".join(name for name in able if name != own)
        said = f"Engines that can: {others}." if others else "No other engine here can."
        assert said in str(caught.value)
        reason = engine_facts()[own].lacks.get(power)
        assert reason is None or reason in str(caught.value)
    assert [reply.text for reply in each.ask_many([SUM, SUM], max_tokens=3)] == [
        each.ask(SUM, max_tokens=3).text
    ] * 2


def test_every_power_is_stated_or_lacks_for_a_written_reason() -> None:
    for name, facts in engine_facts().items():
        assert {*facts.powers, *facts.lacks} == {power.value for power in Power}, name
        assert not {*facts.powers} & {*facts.lacks}, name
        assert all(reason.endswith(".") for reason in facts.lacks.values()), name
        assert set(facts.powers) == set(wb.engines()[name].powers)


def test_what_kinds_of_servers_state_their_engines_state_too() -> None:
    facts = engine_facts()
    for flavour, kind in facts["openai"].flavours.items():
        assert {*kind.powers} <= {*facts["openai"].powers}, flavour
    for name, each in facts.items():
        if each.server is not None:
            kind = facts["openai"].flavours[each.server.flavour]
            assert {*kind.powers} <= {*each.powers}, name


# Schema and grammar: the embedded model is held to them


@without("llama.cpp F16", "llama.cpp Q8_0", because="The weights' form has no say in it.")
@needs(Power.SCHEMA)
def test_a_reply_follows_a_schema(each: Model, shows: Callable[..., None]) -> None:
    reply = each.ask("Is water wet?", schema=SCHEMA, max_tokens=60)
    found = json.loads(reply.text)
    assert list(found) == ["answer"]
    assert found["answer"] in ("yes", "no")
    assert reply.finish_reason == "stop"
    shows(each, Power.SCHEMA)


@without("llama.cpp F16", "llama.cpp Q8_0", because="The weights' form has no say in it.")
@needs(Power.GRAMMAR)
def test_a_reply_follows_a_grammar(each: Model, shows: Callable[..., None]) -> None:
    assert each.ask(SUM, max_tokens=8).text not in ("yes", "no")
    reply = each.ask(SUM, grammar=GRAMMAR, max_tokens=8)
    assert reply.text in ("yes", "no")
    shows(each, Power.GRAMMAR)


# Thinking and tools: a model that always thinks, answers and calls


@pytest.fixture(scope="module")
def parrots(
    tmp_path_factory: pytest.TempPathFactory, session_home: Path
) -> Iterator[Callable[[str], Model]]:
    folder = save_parrot(tmp_path_factory.mktemp("parrot") / "parrot")
    forms = {"transformers": {"dtype": "fp32"}, "mlx": {"dtype": "fp32"}}
    models: dict[str, Model] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(session_home))

        def get(name: str) -> Model:
            engine = name.removesuffix(" isolated")
            settings = forms.get(engine, {"quantization": "F32"})
            settings |= {"threads": 1, "context": 512, "isolate": name != engine}
            models[name] = wb.load(folder, engine=engine, **settings)
            return models[name]

        yield get
        for model in models.values():
            model.close()


PARROTS = [
    f"{name}{more}"
    for name in ("transformers", "llama.cpp", "mlx")
    for more in ("", " isolated")
    if "thinking" in engine_facts()[name].powers
]


@pytest.mark.parametrize("name", [*PARROTS, "llama-server"])
def test_thought_answer_and_call_are_told_apart(
    name: str, parrots: Callable[[str], Model], shows: Callable[..., None]
) -> None:
    told_apart(parrots(name), shows)


def test_a_server_at_a_url_tells_them_apart_too(
    parrots: Callable[[str], Model], session_home: Path, shows: Callable[..., None]
) -> None:
    files = parrots("llama.cpp").plan.files
    assert files is not None
    with (
        llama_server(files.path, context=512, slots=1) as url,
        at_url(url, KEY, session_home) as model,
    ):
        told_apart(model, shows)


def told_apart(model: Model, shows: Callable[..., None]) -> None:
    """Check the reply's parts, streamed and whole, with and without tools."""
    reply = model.ask("What is 1 + 1?", tools=(TOOL,), max_tokens=40)
    assert (reply.thinking.strip(), reply.text.strip()) == (THINKING, ANSWER)
    assert [(call.name, call.values()) for call in reply.tool_calls] == [("add", ARGUMENTS)]
    assert reply.finish_reason == "tool_calls"
    pieces = list(model.stream("What is 1 + 1?", tools=(TOOL,), max_tokens=40))
    assert "".join(piece.thinking for piece in pieces) == reply.thinking
    assert "".join(piece.text for piece in pieces) == reply.text
    thought = model.ask("What is 1 + 1?", think=True, max_tokens=3)
    assert thought.thinking.strip() == THINKING
    assert thought.text.strip() == ""
    shows(model, Power.THINKING, Power.TOOLS)
