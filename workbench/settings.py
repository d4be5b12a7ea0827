"""Frozen, typed settings that refuse unknown keys; argument > file > environment > default."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from workbench.errors import InputError, NotFoundError, did_you_mean

ENVIRONMENT_PREFIX = "WORKBENCH_"
# A few aliases in a small file can stand for more values than a memory holds: count, then build.
MOST_BYTES = 1 << 20
MOST_VALUES = 100_000
MOST_DEPTH = 100
_MOST_TOLD = 5  # mistakes named in one error
_SHOWN = 80  # characters of a wrong key or value
# libyaml parses ten times as fast; not every build of PyYAML has it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Settings(BaseModel):
    """Base of all settings: frozen, keyword-only; an unknown key names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python takes true for 1: ``layers: yes`` would be one layer.
        if isinstance(value, bool) and info.field_name in _number_fields(cls):
            raise ValueError("Input should be a number, not true or false")
        return value

    @classmethod
    def of(cls, values: Mapping[str, Any], *, source: str = "arguments") -> Self:
        """Check ``values`` and return the settings.

        Args:
            values: Names and values.
            source: Where they come from, named in errors (a file path, ``arguments``).

        Raises:
            InputError: An unknown key, a wrong type or a value out of range.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InputError(
                f"{source}: {_sentence(error, cls)}",
                hint="Correct this key and try again.",
            ) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a YAML file into settings.

        Raises:
            NotFoundError: The file does not exist.
            InputError: It is not a YAML mapping, or a key or value is wrong.
        """
        return cls.of(read_yaml(path), source=str(path))

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Return the line under each field, by name.

        Read from the source when asked: pydantic would parse it for every class that is imported.
        """
        found: dict[str, str] = {}
        for kind in reversed(cls.__mro__):
            if issubclass(kind, Settings):
                (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
                assert isinstance(body, ast.ClassDef)
                found.update(_lines_under_fields(body.body))
        return {name: found.get(name, "") for name in cls.model_fields}

    def changed(self, **changes: Any) -> Self:
        """Return a checked copy with the given values; None means "leave as it is"."""
        given = {name: value for name, value in changes.items() if value is not None}
        return type(self).of({**self.model_dump(), **given}) if given else self


def _lines_under_fields(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield field.target.id, inspect.cleandoc(text.value)


SettingsType = TypeVar("SettingsType", bound=Settings)


@functools.cache
def _number_fields(settings: type[BaseModel]) -> frozenset[str]:
    """Return the fields that are numbers, or None, and nothing else."""
    numbers = {int, float, type(None)}
    return frozenset(
        name
        for name, field in settings.model_fields.items()
        if {*(get_args(field.annotation) or (field.annotation,))} <= numbers
    )


def _sentence(error: ValidationError, settings: type[BaseModel]) -> str:
    lines = []
    for item in error.errors()[:_MOST_TOLD]:
        path = item["loc"]
        where = ".".join(str(part) for part in path)[:_SHOWN] or "value"
        given = item["input"]
        if item["type"] == "extra_forbidden":
            known = _fields_at(settings, path[:-1])
            lines.append(f"unknown key {where!r}. {did_you_mean(str(path[-1])[:_SHOWN], known)}")
        elif item["type"] == "missing":
            lines.append(f"{where} is missing.")
        else:
            quote = " (a text needs quotes here)" if _needs_quotes(item["type"], given) else ""
            reason = item["msg"].removeprefix("Value error, ")
            lines.append(f"{where} = {_shown(given)}: {reason}{quote}.")
    more = error.error_count() - _MOST_TOLD
    return " ".join([*lines, f"And {more} more."] if more > 0 else lines)


def _needs_quotes(kind: str, given: Any) -> bool:
    """Whether YAML read a word such as ``no`` or a number where a text was meant."""
    return kind in ("string_type", "literal_error") and isinstance(given, (bool, int, float))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _fields_at(settings: type[BaseModel], path: Sequence[str | int]) -> Mapping[str, Any]:
    """Return the fields of the settings that lie at ``path`` within ``settings``."""
    place = settings
    for part in path:
        field = place.model_fields.get(str(part))
        inner = next(_settings_in(field.annotation), None) if field else None
        place = inner or place  # a number or a key within a collection: its settings were found
    return place.model_fields


def _settings_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _settings_in(inner)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        NotFoundError: The file does not exist.
        InputError: It is not valid YAML, not UTF-8, not a mapping, names a key twice, or is
            larger or deeper than settings ever are.
    """
    if not path.is_file():
        raise NotFoundError(f"The file {path} does not exist.", hint="Check its name and folder.")
    return parse_yaml(read_text(path), source=str(path))


def read_text(path: Path, *, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a small UTF-8 file.

    Raises:
        InputError: It is larger than ``most_bytes``, not UTF-8, or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file that can be read.")
    try:
        with path.open("rb") as stream:
            data = stream.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) > most_bytes:
        raise InputError(f"{path} is larger than {most_bytes / 1e6:.1f} MB: this is no such file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}.",
            hint="Save it as UTF-8 and try again.",
        ) from None


def parse_yaml(text: str, *, source: str) -> dict[str, Any]:
    """Return the mapping in a YAML text; plain values only, no code can come from it.

    Args:
        text: The YAML.
        source: Where it is from, named in errors.

    Raises:
        InputError: It is not valid YAML, not a mapping, names a key twice, or is larger or
            deeper than settings ever are.
    """
    if _too_deep(text):
        raise InputError(f"{source} nests more than {MOST_DEPTH} levels deep.")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _check_size(node, source)
            values = loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(
            f"{source} is not valid YAML: {_problem(error)}.", hint="Correct it and try again."
        ) from None
    finally:
        loader.dispose()
    if node is None or values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"{source} holds a {type(values).__name__}, not a mapping of names to values."
        )
    return values


def _problem(error: Exception) -> str:
    """Return what is wrong with a YAML text, and where, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())


def _too_deep(text: str) -> bool:
    """Whether a YAML text nests too deep; libyaml's own recursion would end the process."""
    open_brackets = text.count("[") + text.count("{")
    if open_brackets <= MOST_DEPTH and not re.search(r"(?m)^[ \-?:]{100,}", text):
        return False
    depth = 0
    try:
        for event in yaml.parse(text, _Loader):
            if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                depth += 1
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                depth -= 1
            if depth > MOST_DEPTH:
                return True
    except yaml.YAMLError:
        return False  # the reader names the place
    return False


def _check_size(root: yaml.Node, source: str) -> None:
    """Refuse aliases that expand beyond measure, aliases to themselves, and a key given twice."""
    sizes: dict[int, int] = {}
    underway: set[int] = set()

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in underway:
            raise InputError(f"{source} holds an alias to itself.")
        if id(node) not in sizes:
            underway.add(id(node))
            if isinstance(node, yaml.MappingNode):
                _check_keys(node, source)
                parts = [part for pair in node.value for part in pair]
            else:
                parts = node.value
            sizes[id(node)] = 1 + sum(size(part) for part in parts)
            underway.discard(id(node))
        return sizes[id(node)]

    if size(root) > MOST_VALUES:
        raise InputError(f"{source} expands to more than {MOST_VALUES:,} values.")


def _check_keys(node: yaml.MappingNode, source: str) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                line = key.start_mark.line + 1
                raise InputError(
                    f"{source}, line {line}: the key {_shown(key.value)} is given twice.",
                    hint="Keep one of them.",
                )
            seen.add(key.value)


def environment(name: str) -> str | None:
    """Return the value of ``WORKBENCH_<NAME>``, or None when it is unset or empty."""
    return os.environ.get(ENVIRONMENT_PREFIX + name.upper()) or None
