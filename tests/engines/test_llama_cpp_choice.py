"""Log-probabilities, JSON schemas and grammars in llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from workbench.engines.llama_cpp_grammar import from_schema
from workbench.engines.model import Model
from workbench.errors import EngineError, InputError
from workbench.messages import Sampling

SUM = "What is 3 + 4?"
HOT = {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 5}


@pytest.fixture
def model(opened: Callable[[str, bool], Model]) -> Model:
    return opened("llama.cpp", False)


@pytest.mark.parametrize("settings", [{}, HOT], ids=["greedy", "sampled"])
def test_log_probabilities_are_those_of_the_raw_logits(model: Model, settings: Any) -> None:
    prompt = model.prompt_ids(SUM)
    reply = model.ask(SUM, max_tokens=9, top_logprobs=5, **settings)
    table = model.log_probabilities([*prompt, *reply.token_ids])[len(prompt) - 1 :]
    assert len(reply.logprobs) == len(reply.token_ids)
    for row, token, (logprob, top) in zip(table, reply.token_ids, reply.logprobs, strict=True):
        assert logprob == pytest.approx(float(row[token]), abs=2e-3)
        assert [entry.token_id for entry in top] == np.argsort(-row)[:5].tolist()
        for entry in top:
            assert entry.token_id is not None
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=2e-3)
            assert entry.text == model._session.words.text_of(entry.token_id)


def test_tokens_are_the_same_with_and_without_log_probabilities(model: Model) -> None:
    for settings in ({}, HOT):
        plain = model.ask("Tell me a story.", max_tokens=20, **settings)
        told = model.ask("Tell me a story.", max_tokens=20, top_logprobs=1, **settings)
        assert plain.token_ids == told.token_ids
        assert plain.logprobs == ()


NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "count": {"type": "integer", "minimum": 1},
        "kinds": {"type": "array", "items": {"enum": ["猫", 'a "b" \\ c\n', "🐈"]}, "maxItems": 3},
        "inner": {"$ref": "#/$defs/Inner"},
        "either": {"type": ["null", "boolean"]},
    },
    "required": ["name", "age", "count", "inner", "kinds"],
    "$defs": {
        "Inner": {
            "type": "object",
            "title": "Inner",
            "properties": {"ok": {"type": "boolean"}, "number": {"type": "number"}},
            "required": ["ok"],
            "additionalProperties": {"type": "string"},
        }
    },
}
TREE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "value": {"enum": [1, 2]},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Node"}]},
            },
            "required": ["value", "next"],
        }
    },
}
SCHEMAS = [
    NESTED,
    TREE,
    {"enum": ["yes", "no", 3, None]},
    {"const": {"a": [1, "é😀\t"]}},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": "^\\d{3}-[a-f]{2}.?$"},
    {"type": "string", "minLength": 2, "maxLength": 6},
    {"type": "object", "properties": {"名前": {"type": "string", "maxLength": 5}}},
    {"type": "array", "prefixItems": [{"const": "a"}, {"type": "null"}]},
    {"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {"const": 2}}, "required": ["b"]}],
     "$defs": {"A": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}}},
    {},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: str(schema)[:40])
def test_a_reply_follows_its_schema(model: Model, schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator

    validator, ended = Draft202012Validator(schema), 0
    tries = [{}, *({**HOT, "seed": seed, "temperature": 3.0, "top_p": 1.0} for seed in range(5))]
    for settings in tries:
        reply = model.ask("Tell me about a cat.", schema=schema, max_tokens=150, **settings)
        if reply.finish_reason == "length":
            continue
        validator.validate(json.loads(reply.text))
        ended += 1
    assert ended


def test_a_free_string_never_holds_a_raw_control_character(model: Model) -> None:
    for seed in range(12):
        reply = model.ask(
            "a", schema={"type": "string", "minLength": 30, "maxLength": 40},
            max_tokens=100, temperature=30.0, seed=seed,
        )  # fmt: skip
        assert reply.finish_reason == "length" or 30 <= len(json.loads(reply.text)) <= 40


def test_a_reply_cut_by_max_tokens_says_so(model: Model) -> None:
    reply = model.ask("Hi!", schema=NESTED, max_tokens=4)
    assert (reply.finish_reason, len(reply.token_ids)) == ("length", 4)
    assert reply.text.startswith("{")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "strin"}, "unknown type 'strin'"),
        ({"type": "string", "pattern": "a"}, "not anchored"),
        ({"type": "string", "pattern": '^[^"]$'}, "cannot hold the pattern"),
        ({"type": "number", "multipleOf": 3}, "multipleOf"),
        ({"type": "integer", "minimum": -5}, "minimum"),
        ({"type": "object", "patternProperties": {}}, "patternProperties"),
        ({"$ref": "#/$defs/Nobody"}, "leads to nothing"),
        ({"$ref": "https://example.com/schema"}, "leaves the schema"),
        ({"enum": []}, "lists nothing"),
        ({"properties": 3}, "grammar"),
        ({"type": "array", "items": {}, "maxItems": 10**9}, "maxItems"),
        ({"anyOf": [{"type": "null"}], "properties": {"a": {}}}, "beside properties"),
        ({"type": "string", "default": {1, 2}}, "plain JSON"),
        ({"enum": [float("nan")]}, "plain JSON"),
        ({"const": "\ud800"}, "plain JSON"),
        ({"type": "string", "pattern": "^a|b$"}, "in some of its ways only"),
        ({"type": "string", "pattern": "^[ -~]+$"}, "cannot hold the pattern"),
        ({"type": "string", "pattern": "^[A-z]+$"}, "cannot hold the pattern"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "above its maxLength"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "above its maxItems"),
        ({"type": "integer", "const": "x"}, "no value of its own type"),
        ({"type": "string", "anyOf": [{"type": "null"}]}, "anyOf beside another type"),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 9}, "of True"),
        ({"type": "object", "required": "abc"}, "no list"),
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_held_is_one_error(model: Model, schema: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.ask("Hi!", schema=schema)
    assert model.ask(SUM, max_tokens=2).text


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        ({"type": "string", "enum": ["a", None, 1]}, ["a"]),
        ({"type": ["string", "null"], "enum": ["a", None, 1]}, ["a", "null"]),
        ({"type": "number", "enum": [1, 2.5, True]}, ["1", "2.5"]),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": 7, "maximum": 9}, ["8", "9"]),
        ({"type": "string", "pattern": "^(a|b)$"}, ["a", "b"]),
        ({"type": "string", "anyOf": [{"const": "a"}, {"pattern": "^b$"}]}, ["a", "b"]),
    ],
    ids=str,
)
def test_keywords_beside_one_another_all_count(model: Model, schema: Any, texts: list[str]) -> None:
    from jsonschema import Draft202012Validator

    for seed in range(8):
        settings = {"temperature": 20.0, "seed": seed, "max_tokens": 30}
        reply = model.ask("Hi!", schema=schema, **settings)
        assert reply.text.strip().strip('"') in texts
        Draft202012Validator(schema).validate(json.loads(reply.text))


def test_a_deep_schema_is_refused_and_not_fatal() -> None:
    depth = 3000
    text = '{"type": "array", "items":' * depth + "{}" + "}" * depth
    with pytest.raises(InputError, match="too deeply"):
        from_schema(text)


def test_a_reply_follows_its_grammar(model: Model) -> None:
    free = model.ask(SUM, max_tokens=20)
    assert free.text not in ("はい", "いいえ")
    for settings in ({}, {"temperature": 5.0, "seed": 2}):
        reply = model.ask(SUM, grammar='root ::= "はい" | "いいえ"', max_tokens=20, **settings)
        assert reply.text in ("はい", "いいえ")
        assert reply.finish_reason == "stop"
    wide = model.ask(SUM, grammar="root ::= [^あ]*", max_tokens=20)
    assert wide.token_ids == free.token_ids  # a grammar that forbids nothing changes nothing


def test_an_end_token_can_be_ignored_behind_a_grammar(model: Model) -> None:
    reply = model.ask(SUM, grammar='root ::= "ok"', ignore_end=True, max_tokens=9)
    assert (reply.text, len(reply.token_ids)) == ("ok", 9)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ('root ::= "a', "unexpected end of input"),
        ('x ::= "a"', "root"),
        ('root ::= root "a" | "b"', "left recursion"),
        ("root ::= nobody", "nobody"),
        ("root ::= " + "(" * 200_000, "breaks llama.cpp's parser"),
        ("", "GBNF text"),
        ('root ::= "\0"', "GBNF text"),
        ('root ::= "\ud800"', "GBNF text"),
    ],
    ids=lambda text: text[:20],
)
def test_a_wrong_grammar_is_one_error(
    model: Model, grammar: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=said):
        model.ask(SUM, grammar=grammar)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_check_that_fails_by_itself_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.engines import llama_cpp_grammar

    def broken(*_: Any, **more: Any) -> None:
        raise EngineError("ImportError: no module named llama_cpp")

    monkeypatch.setattr(llama_cpp_grammar, "call", broken)
    with pytest.raises(InputError, match="grammar: ImportError: no module named llama_cpp"):
        llama_cpp_grammar.grammar_of(Sampling(grammar='root ::= "never seen before"'), None)


def test_the_check_of_a_schema_needs_no_process_of_its_own() -> None:
    """A plain schema costs no start of a child: the module that starts them is not even asked."""
    code = (
        "import importlib\n"
        "made = importlib.import_module('workbench.engines.llama_cpp_grammar')\n"
        "made.call = None\n"
        "print(made.from_schema('{\"enum\": [1]}'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "root ::=" in found.stdout
