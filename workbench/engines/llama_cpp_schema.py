"""Bring a JSON schema into the part that llama.cpp's converter turns into a grammar rightly."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from workbench.errors import InputError

ANYTHING = {"title": "anything"}
"""Stands for ``{}``, which the converter takes for no schema at all."""
_NOTES = {
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
    "examples", "deprecated", "readOnly", "writeOnly", "format",
}  # fmt: skip
_KNOWN = {
    "type", "enum", "const", "properties", "required", "additionalProperties", "items",
    "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "anyOf", "oneOf",
    "allOf", "$ref", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_MOST_REPEATED = 200
_MOST_LISTED = 1000
_CLASSES = {"d": "[0-9]", "w": "[a-zA-Z0-9_]", "s": "[ ]"}


def plain_schema(schema: Any) -> dict[str, Any]:
    """Return an equal or narrower schema of few keywords.

    A list of types becomes ``anyOf``; parts of ``allOf`` are merged; small integer ranges become a
    list; an object that names its keys gets no others, which its schema allows.

    Raises:
        InputError: It is no schema, or it asks for what a grammar cannot hold.
    """
    root = copy.deepcopy(schema)
    plain = _Rewriting(root).of(root, "the schema")
    if "$ref" in plain:  # the converter would leave the references below unresolved
        plain = {"anyOf": [plain]}
    for key in ("$defs", "definitions"):
        if key in root:
            plain[key] = {
                name: _Rewriting(root).of(part, f"{key}/{name}") for name, part in root[key].items()
            }
    return plain


class _Rewriting:
    """Rewrites one schema, whose root holds what references mean."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def of(self, schema: Any, where: str) -> dict[str, Any]:
        """Return the plain form of a part of the schema."""
        if schema is True:
            return dict(ANYTHING)
        if not isinstance(schema, Mapping):
            raise InputError(f"In the schema, {where} is no schema: {str(schema)[:60]!r}.")
        kept = {name: value for name, value in schema.items() if name not in _NOTES}
        unknown = sorted({*kept} - _KNOWN)
        if unknown:
            raise self._refused(unknown[0], where)
        for alone in ("$ref", "const", "enum", "anyOf", "oneOf", "allOf"):
            if alone in kept:
                return self._alone(alone, kept, where)
        return self._typed(kept, schema, where)

    def _refused(self, keyword: str, where: str) -> InputError:
        return InputError(
            f"llama.cpp's grammars cannot hold {keyword!r} ({where}).",
            hint="Leave it out of the schema, and check the reply for it.",
        )

    def _alone(self, keyword: str, kept: dict[str, Any], where: str) -> dict[str, Any]:
        """Rewrite a part that one keyword decides."""
        value = kept.pop(keyword)
        if keyword == "allOf":
            return self._merged([*value, *([kept] if kept else [])], where)
        kinds = kept.pop("type", _TYPES)
        if kept:
            raise self._refused(f"{keyword} beside {sorted(kept)[0]}", where)
        parts = [value] if keyword in ("$ref", "const") else value
        if not isinstance(parts, list) or not parts:
            raise InputError(f"In the schema, {keyword!r} of {where} lists nothing.")
        if keyword in ("const", "enum"):
            fitting = [each for each in parts if _is_of(each, kinds)]
            if not fitting:
                raise InputError(f"In the schema, {where} allows no value of its own type.")
            return {"const": value} if keyword == "const" else {"enum": fitting}
        if keyword == "$ref":
            parts = [self._target(value, where)]
        if kinds is not _TYPES and not all(self._agrees(part, kinds, where) for part in parts):
            raise self._refused(f"{keyword} beside another type", where)
        if keyword == "$ref":
            return {"$ref": value}
        return {"anyOf": [self.of(part, f"{where}/{keyword}") for part in parts]}

    def _agrees(self, part: Any, kinds: Any, where: str) -> bool:
        """Return whether all that a part of the schema allows is of these types."""
        if isinstance(part, Mapping) and "$ref" in part:
            part = self._target(part["$ref"], where)
        if not isinstance(part, Mapping):
            return False
        listed = [part["const"]] if "const" in part else part.get("enum")
        if listed is not None:
            return all(_is_of(each, kinds) for each in listed)
        given = part.get("type") or _implied(dict(part))
        return given is not None and {*_listed(given)} <= _named(kinds)

    def _target(self, reference: Any, where: str) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise InputError(f"The reference {reference!r} ({where}) leaves the schema.")
        found = self._root
        steps = reference[2:].split("/")
        for step in steps:
            if not isinstance(found, Mapping) or step not in found:
                raise InputError(f"The reference {reference!r} ({where}) leads to nothing.")
            found = found[step]
        if steps[0] not in ("$defs", "definitions") or len(steps) != 2:
            raise self._refused("a $ref to anything but $defs", where)
        return found

    def _merged(self, parts: list[Any], where: str) -> dict[str, Any]:
        """Merge the objects of ``allOf``; any other single part stands for itself."""
        if len(parts) == 1:
            return self.of(parts[0], where)
        merged: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
        for part in parts:
            while isinstance(part, Mapping) and "$ref" in part:
                part = self._target(part["$ref"], where)
            counted = {*part} - _NOTES if isinstance(part, Mapping) else {"that"}
            if (
                counted - {"type", "properties", "required"}
                or part.get("type", "object") != "object"
            ):
                raise self._refused("allOf of anything but objects", where)
            twice = {*merged["properties"]} & {*part.get("properties", {})}
            if twice:
                raise self._refused(f"allOf with {sorted(twice)[0]!r} twice", where)
            merged["properties"].update(part.get("properties", {}))
            merged["required"] += part.get("required", [])
        return self.of(merged, where)

    def _typed(self, kept: dict[str, Any], schema: Mapping[str, Any], where: str) -> dict[str, Any]:
        kind = kept.get("type") or _implied(kept)
        if isinstance(kind, list):
            return {"anyOf": [self.of(_only_for(each, schema), where) for each in kind]}
        if kind is None:
            if kept:
                raise self._refused(f"{sorted(kept)[0]} without a type", where)
            return dict(ANYTHING)
        if kind not in _TYPES:
            raise InputError(f"In the schema, {where} has the unknown type {kind!r}.")
        if kind == "object":
            return self._object(kept, where)
        if kind == "array":
            return self._array(kept, where)
        if kind == "string":
            return self._string(kept, schema.get("format"), where)
        if kind in ("integer", "number"):
            return self._number(kind, kept, where)
        return self._no_more(kept, {"type"}, {"type": kind}, where)

    def _no_more(
        self, kept: Mapping[str, Any], used: set[str], made: dict[str, Any], where: str
    ) -> dict[str, Any]:
        extra = sorted({*kept} - used)
        if extra:
            raise self._refused(extra[0], where)
        return made

    def _object(self, kept: dict[str, Any], where: str) -> dict[str, Any]:
        required = kept.get("required", [])
        if not isinstance(required, list):
            raise InputError(f"In the schema, 'required' of {where} is no list.")
        named = dict(kept.get("properties", {}))
        for name in required:
            named.setdefault(name, {})
        made: dict[str, Any] = {"type": "object"}
        if named:
            made["properties"] = {
                name: self.of(part, f"{where}/{name}") for name, part in named.items()
            }
            made |= {"required": required, "additionalProperties": False}
        elif kept.get("additionalProperties") is False:
            made |= {"properties": {}, "additionalProperties": False}
        elif isinstance(kept.get("additionalProperties"), Mapping):
            made["additionalProperties"] = self.of(kept["additionalProperties"], f"{where}/*")
        used = {"type", "properties", "required", "additionalProperties"}
        return self._no_more(kept, used, made, where)

    def _array(self, kept: dict[str, Any], where: str) -> dict[str, Any]:
        if "prefixItems" in kept:
            parts = [self.of(part, f"{where}[{at}]") for at, part in enumerate(kept["prefixItems"])]
            used = {"type", "prefixItems", "items"}
            return self._no_more(kept, used, {"type": "array", "prefixItems": parts}, where)
        made: dict[str, Any] = {
            "type": "array",
            "items": self.of(kept.get("items", {}), f"{where}[]"),
        }
        for name in ("minItems", "maxItems"):
            if name in kept:
                made[name] = self._count(kept[name], name, where)
        _check_order(made, "minItems", "maxItems", where)
        return self._no_more(kept, {"type", "items", "minItems", "maxItems"}, made, where)

    def _count(self, value: Any, name: str, where: str) -> int:
        if not isinstance(value, int) or not 0 <= value <= _MOST_REPEATED:
            raise InputError(f"{name} of {where} is {value!r}, not in [0, {_MOST_REPEATED}].")
        return value

    def _string(self, kept: dict[str, Any], kind: Any, where: str) -> dict[str, Any]:
        if "pattern" in kept:
            made = {"type": "string", "pattern": _json_pattern(kept["pattern"], where)}
            return self._no_more(kept, {"type", "pattern"}, made, where)
        made = {"type": "string"}
        for name in ("minLength", "maxLength"):
            if name in kept:
                made[name] = self._length(kept[name], name, where)
        _check_order(made, "minLength", "maxLength", where)
        if len(made) == 1 and kind in ("date", "time", "date-time", "uuid"):
            made["format"] = kind
        return self._no_more(kept, {"type", "minLength", "maxLength"}, made, where)

    def _length(self, value: Any, name: str, where: str) -> Any:
        if not isinstance(value, int) or not 0 <= value <= _MOST_LISTED:
            raise InputError(f"{name} of {where} is {value!r}, not in [0, {_MOST_LISTED}].")
        return value

    def _number(self, kind: str, kept: dict[str, Any], where: str) -> dict[str, Any]:
        used = {"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
        bounds = {*kept} - {"type"}
        if not bounds or kind != "integer":
            return self._no_more(kept, {"type"}, {"type": kind}, where)
        low, high = [], []
        for name in sorted(used & bounds):
            if not _is_of(kept[name], "integer"):
                raise self._refused(f"{name} of {kept[name]!r}", where)
            apart = int(name.startswith("exclusive"))
            if name.endswith("inimum"):
                low.append(int(kept[name]) + apart)
            else:
                high.append(int(kept[name]) - apart)
        lower, upper = bool(low), bool(high)
        least, most = max(low, default=0), min(high, default=0)
        if lower and upper and 0 <= most - least < _MOST_LISTED:
            return {"enum": list(range(least, most + 1))}
        if lower and not upper and least in (0, 1):
            return {"type": "integer", "minimum": least}
        name = sorted(bounds & used)[0]
        raise self._refused(f"{name} of {kept[name]!r}", where)


def _check_order(made: Mapping[str, Any], least: str, most: str, where: str) -> None:
    if least in made and most in made and made[least] > made[most]:
        raise InputError(f"{least} of {where} is {made[least]}, above its {most} {made[most]}.")


def _listed(kinds: Any) -> list[Any]:
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _named(kinds: Any) -> set[Any]:
    """Return the names of types that these allow: every integer is a number."""
    found = {*_listed(kinds)}
    return found | {"integer"} if "number" in found else found


def _is_of(value: Any, kinds: Any) -> bool:
    """Return whether a JSON value is of one of these types."""
    if isinstance(value, bool):
        kind = "boolean"
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        kind = "integer"
    else:
        pairs = ((str, "string"), (float, "number"), (list, "array"), (type(None), "null"))
        kind = next((name for each, name in pairs if isinstance(value, each)), "object")
    return kind in _named(kinds)


def _implied(kept: Mapping[str, Any]) -> str | None:
    """Return the type that keywords without one speak of."""
    for kind, names in (
        ("object", ("properties", "required", "additionalProperties")),
        ("array", ("items", "prefixItems", "minItems", "maxItems")),
        ("string", ("pattern", "minLength", "maxLength")),
    ):
        if any(name in kept for name in names):
            return kind
    return None


def _only_for(kind: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a schema that speak of one of its types."""
    speaks = {
        "object": ("properties", "required", "additionalProperties"),
        "array": ("items", "prefixItems", "minItems", "maxItems"),
        "string": ("pattern", "minLength", "maxLength", "format"),
        "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    }
    known = {name for names in speaks.values() for name in names}
    wanted = {*speaks.get(str(kind), ())}
    kept = {name: value for name, value in schema.items() if name not in known or name in wanted}
    return {**kept, "type": kind}


def _json_pattern(pattern: Any, where: str) -> str:
    r"""Return a pattern whose matches are the inside of a JSON string.

    ``\d``, ``\w`` and ``\s`` become classes, which the converter does not know.
    """
    if not isinstance(pattern, str) or not (pattern.startswith("^") and pattern.endswith("$")):
        raise InputError(
            f"The pattern {pattern!r} ({where}) is not anchored.",
            hint="Begin it with ^, end with $.",
        )
    if '"' in pattern or "[^" in pattern or "(?" in pattern or _breaks_strings(pattern):
        raise InputError(
            f"llama.cpp's grammars cannot hold the pattern {pattern!r} ({where}).",
            hint="Leave out quotes and ranges over them, negated classes and look-around.",
        )
    if _has_ways(pattern):
        raise InputError(
            f"The pattern {pattern!r} ({where}) is anchored in some of its ways only.",
            hint="Put brackets around them: ^(a|b)$.",
        )
    made, at = "", 0
    while at < len(pattern):
        if pattern[at] != "\\":
            made, at = made + pattern[at], at + 1
            continue
        following = pattern[at + 1 : at + 2]
        if following in _CLASSES and made.count("[") == made.count("]"):
            made += _CLASSES[following]
        elif following in set("[](){}|*+?"):
            made += "\\" + following
        elif following in set("-/"):
            made += following
        elif following == ".":
            made += "[.]"
        else:
            raise InputError(
                f"llama.cpp's grammars cannot hold {pattern[at : at + 2]!r} in a pattern ({where})."
            )
        at += 2
    return made


def _breaks_strings(pattern: str) -> bool:
    """Whether a range takes in a quote, a backslash or a control character, as ``[ -~]`` does."""
    for inside in re.findall(r"\[((?:\\.|[^\]\\])*)\]", pattern):
        for first, last in re.findall(r"([^\\])-([^\\])", inside):
            if any(first <= each <= last for each in '"\\\x1f\x7f'):
                return True
    return False


def _has_ways(pattern: str) -> bool:
    """Whether a pattern has ``|`` outside of all brackets."""
    depth, inside, at = 0, False, 0
    while at < len(pattern):
        each = pattern[at]
        if inside:
            inside = each != "]"
        elif each == "[":
            inside = True
        elif each in "()":
            depth += 1 if each == "(" else -1
        elif each == "|" and depth == 0:
            return True
        at += 2 if each == "\\" else 1
    return False
