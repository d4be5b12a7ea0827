"""Frozen, typed settings that refuse unknown keys; argument > file > environment > default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.errors import InputError, NotFoundError, did_you_mean

ENVIRONMENT_PREFIX = "WORKBENCH_"


class Settings(BaseModel):
    """Base of all settings: frozen, keyword-only; an unknown key names the nearest known one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

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
                f"{source}: {_sentence(error, cls.model_fields)}",
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

    def changed(self, **changes: Any) -> Self:
        """Return a checked copy with the given values; None means "leave as it is"."""
        given = {name: value for name, value in changes.items() if value is not None}
        return type(self).of({**self.model_dump(), **given}) if given else self


SettingsType = TypeVar("SettingsType", bound=Settings)


def _sentence(error: ValidationError, known: Mapping[str, Any]) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "value"
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}. {did_you_mean(where.split('.')[-1], known)}")
        elif item["type"] == "missing":
            lines.append(f"{where} is missing.")
        else:
            lines.append(f"{where} = {item['input']!r}: {item['msg']}.")
    return " ".join(lines)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        NotFoundError: The file does not exist.
        InputError: It is not valid YAML or not a mapping.
    """
    if not path.is_file():
        raise NotFoundError(f"The file {path} does not exist.", hint="Check its name and folder.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(
            f"{path} is not valid YAML: {error}.", hint="Correct it and try again."
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds a {type(values).__name__}, not a mapping of names to values."
        )
    return values


def environment(name: str) -> str | None:
    """Return the value of ``WORKBENCH_<NAME>``, or None when it is unset or empty."""
    return os.environ.get(ENVIRONMENT_PREFIX + name.upper()) or None
