"""Read tool calls out of what a model writes: the common formats, each as a small parser."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from workbench.messages import ToolCall

_RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.\-]+)")
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>)?\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.\-]+)(?:\[CALL_ID\]([\w\-]+))?\s*(?:\[ARGS\])?\s*(\{.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """One way of writing tool calls.

    Attributes:
        name: What it is called.
        sign: What a chat template that uses it contains.
        opening: Begins the calls.
        closing: Ends a call, or None where they reach to the end of the reply.
        whole: Whether the reply as a whole is the call, the opening being a part of it.
        separator: Stands between calls that follow one another.
        inner: Further control tokens in it.
    """

    name: str
    sign: str
    opening: str
    closing: str | None = None
    whole: bool = False
    separator: str | None = None
    inner: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks that may be control tokens."""
        return tuple(m for m in (self.opening, self.closing, *self.inner) if m and not self.whole)


CALLS = (
    CallFormat(name="hermes", sign="<tool_call>", opening="<tool_call>", closing="</tool_call>"),
    CallFormat(
        name="mistral",
        sign="[TOOL_CALLS]",
        opening="[TOOL_CALLS]",
        inner=("[ARGS]", "[CALL_ID]"),
    ),
    CallFormat(name="llama tag", sign="<|python_tag|>", opening="<|python_tag|>", separator=";"),
    CallFormat(name="llama json", sign='"parameters":', opening="{", whole=True, separator=";"),
)


def calls_of(form: CallFormat, body: str) -> list[ToolCall]:
    """Return the calls of a body, none where any part of it is no call: it stays text then."""
    if form.name == "mistral":
        found = _mistral(body)
    elif form.closing is not None and _FUNCTION.fullmatch(body):
        found = _function(body)
    else:
        found = _calls(_objects(body, form.separator))
    return found or []


def harmony_call(header: str, body: str) -> ToolCall | None:
    """Return the call of a message in harmony's format, None where it is no JSON object."""
    named = _RECIPIENT.search(header)
    if named is None or not isinstance(_loaded(body), dict):
        return None
    return ToolCall(name=named[1], arguments=body.strip())


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _objects(body: str, separator: str | None) -> list[Any] | None:
    """Return the JSON values that fill the body, None where something else is in it."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = body.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return None
        found += value if isinstance(value, list) else [value]
        rest = text[at:].lstrip()
        if separator and rest.startswith(separator):
            rest = rest[len(separator) :].lstrip()
        at = len(text) - len(rest)
    return found


def _calls(values: list[Any] | None) -> list[ToolCall] | None:
    calls = [_call(value) for value in values or ()]
    return [call for call in calls if call] if calls and all(calls) else None


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    value = value["function"] if isinstance(value.get("function"), dict) else value
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or not name:
        return None
    if isinstance(arguments, str):
        return ToolCall(name=name, arguments=arguments, id=str(value.get("id") or ""))
    if not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name=name, arguments=text, id=str(value.get("id") or ""))


def _mistral(body: str) -> list[ToolCall] | None:
    """Read ``[{...}, ...]`` of older tokenizers, and ``name[ARGS]{...}`` of newer ones."""
    if body.lstrip().startswith(("[", "{")):
        return _calls(_objects(body, None))
    calls: list[ToolCall] = []
    for part in body.split("[TOOL_CALLS]"):
        found = _NAMED.fullmatch(part.rstrip())
        if found is None or not isinstance(_loaded(found[3]), dict):
            return None
        calls.append(ToolCall(name=found[1], arguments=found[3].strip(), id=found[2] or ""))
    return calls


def _function(body: str) -> list[ToolCall] | None:
    """Read ``<function=name><parameter=key>value</parameter></function>`` (Qwen3-Coder)."""
    found = _FUNCTION.fullmatch(body)
    if found is None:
        return None
    values: dict[str, Any] = {}
    for key, text in _PARAMETER.findall(found[2]):
        value = _loaded(text)
        values[key.strip()] = text if value is None else value
    if not values and found[2].strip():
        return None
    return [ToolCall(name=found[1].strip(), arguments=json.dumps(values, ensure_ascii=False))]
