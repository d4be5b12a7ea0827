"""Grammars for llama.cpp: made of JSON schemas by the library's converter, repaired, and checked.

The Python converter of llama-cpp-python 0.3.36 makes grammars whose replies are not always JSON
(raw line breaks in strings, broken quotes in constants, a missing comma before additional keys),
and drops keywords that it does not know. Here a schema is first brought into the part that it
converts rightly, and what a grammar cannot hold is refused instead of dropped.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.engines.child import call
from workbench.engines.llama_cpp_schema import ANYTHING, plain_schema
from workbench.errors import ChildDiedError, EngineError, InputError
from workbench.messages import Sampling

_CHECK_SECONDS = 60.0
_LONGEST = 1_000_000
_SAID = re.compile(r"error parsing grammar: (.*)")
_CHARACTER = (
    r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] '
    '| "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])'
)
"""One character inside a JSON string: the library's own rule lets raw control characters pass."""
_ANY_CHARACTER = r'[^"\\\x7F\x00-\x1F]'


def grammar_of(sampling: Sampling, model: Path | None) -> str | None:
    """Return the GBNF that a reply must follow, checked, or None where it is free.

    Args:
        sampling: Holds a schema or a grammar, or neither.
        model: The GGUF file, whose vocabulary a grammar may name tokens of.

    Raises:
        InputError: The schema or the grammar is wrong, or asks for what cannot be held.
    """
    if sampling.grammar is not None:
        return _checked(sampling.grammar, str(model) if model and "<" in sampling.grammar else "")
    if sampling.schema is not None:
        try:
            text = json.dumps(sampling.schema, ensure_ascii=False, allow_nan=False)
            text.encode()  # half of a surrogate pair is no text
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"The schema is not plain JSON: {error}.") from None
        return from_schema(text)
    return None


@functools.lru_cache(maxsize=64)
def from_schema(text: str) -> str:
    """Return the GBNF of a JSON schema, given as JSON text.

    Raises:
        InputError: It is no schema, or one that a grammar cannot hold.
    """
    try:
        schema = plain_schema(json.loads(text))
        made = _converted(schema)
    except RecursionError:
        raise InputError(
            "The schema is nested too deeply, or refers to nothing but itself."
        ) from None
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        said = str(error) or type(error).__name__
        raise InputError(f"The schema cannot be made a grammar: {said[:300]}.") from None
    return _checked(made, "") if '"pattern"' in text else made


def _converted(schema: Mapping[str, Any]) -> str:
    """Run the library's converter with its faulty rules replaced."""
    from llama_cpp import llama_grammar as library

    class Repaired(library.SchemaConverter):  # type: ignore[misc]
        def _format_literal(self, literal: str) -> str:
            return _literal(json.dumps(json.loads(literal), ensure_ascii=False))

        def _generate_constant_rule(self, value: Any) -> str:
            return f"{_literal(json.dumps(value, ensure_ascii=False))} space"

        def _add_rule(self, name: str, rule: str) -> str:
            if name == "char":
                rule = _CHARACTER
            elif name == "dot":
                rule = _ANY_CHARACTER
            return str(super()._add_rule(name, rule))

        def _resolve_ref(self, ref: str) -> str:
            name = f"reference--{sorted(self._refs).index(ref)}"
            if name in self._rules or ref in self._refs_being_resolved:
                return name
            self._refs_being_resolved.add(ref)
            found = self.visit(self._refs[ref], name)
            self._refs_being_resolved.remove(ref)
            return name if found == name else str(self._add_rule(name, found))

        def visit(self, schema: Mapping[str, Any], name: str) -> str:
            rule = _own_rule(schema)
            if rule is None:
                return str(super().visit(schema, name))
            if "char" in rule:
                self._add_primitive("char", library.PRIMITIVE_RULES["char"])
            if rule == "value":
                self._add_primitive("value", library.PRIMITIVE_RULES["value"])
            reserved = name in library.RESERVED_NAMES
            return str(self._add_rule(f"{name}-" if reserved else name or "root", rule))

    converter = Repaired(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    converter.visit(converter.resolve_refs(schema, "schema"), "")
    return str(converter.format_grammar())


def _own_rule(schema: Mapping[str, Any]) -> str | None:
    """Return the rule of a schema that the library's converter has none for."""
    if {**schema, "$defs": 0} == {**ANYTHING, "$defs": 0}:
        return "value"
    if schema.get("type") == "integer" and "minimum" in schema:
        first = "[0-9] | " if schema["minimum"] == 0 else ""
        return f"({first}[1-9] [0-9]{{0,15}}) space"
    if schema.get("type") == "string" and {"minLength", "maxLength"} & {*schema}:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        return rf'"\"" char{{{least},{most}}} "\"" space'
    return None


def _literal(text: str) -> str:
    """Return a text as a GBNF literal."""
    found = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + found.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


@functools.lru_cache(maxsize=64)
def _checked(grammar: str, model: str) -> str:
    """Return the grammar once llama.cpp took it in a process of its own.

    In this one its parser would print, and a deep nesting end the process.

    Raises:
        InputError: llama.cpp does not take it.
    """
    broken = grammar.encode("utf-8", "replace") != grammar.encode("utf-8", "surrogatepass")
    if broken or not grammar.strip() or "\0" in grammar or len(grammar) > _LONGEST:
        raise InputError(
            "A grammar is GBNF text of at most a million characters.",
            hint='For example: root ::= "yes" | "no"',
        )
    try:
        reason = call(
            f"{__name__}:refusal",
            {"grammar": grammar, "model": model},
            timeout=_CHECK_SECONDS,
        )
    except ChildDiedError:
        reason = "it breaks llama.cpp's parser"
    except EngineError as error:
        reason = error.message.rstrip(".")
    if reason:
        raise InputError(
            f"llama.cpp does not take the grammar: {reason}.",
            hint="A grammar is GBNF with a rule named root.",
        )
    return grammar


def refusal(grammar: str, model: str) -> str:
    """Return why llama.cpp refuses a grammar, "" when it takes it (child side).

    The parser prints its reason, so what the process prints goes to a file meanwhile.
    """
    from workbench.engines.llama_cpp_library import last_words, library

    module = library()
    vocab = None
    if model:
        settings = module.llama_model_default_params()
        settings.vocab_only = True
        loaded = module.llama_model_load_from_file(model.encode(), settings)
        vocab = module.llama_model_get_vocab(loaded)
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            sampler = module.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
        finally:
            os.dup2(before, 2)
            os.close(before)
        if sampler:
            return ""
        kept.seek(0)
        printed = kept.read().decode("utf-8", "replace")
    found = _SAID.search(printed)
    said = found[1] if found else last_words()
    return said.strip()[:300] or "it gives no reason"
