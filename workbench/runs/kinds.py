"""The types that a notebook's parameters can have, read from an annotation or a default."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable
from typing import Any

from workbench.errors import InputError, did_you_mean

NAMES = ("any", "bool", "dict", "float", "int", "list", "None", "str", "union")


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """A type: a name, and the types of what it holds.

    Attributes:
        name: One of ``NAMES``.
        of: Item type of a list, value type of a dict, members of a union.
    """

    name: str
    of: tuple[Kind, ...] = ()

    def __str__(self) -> str:
        if self.name == "union":
            return " | ".join(str(kind) for kind in self.of)
        if self.name == "dict" and self.of:
            return f"dict[str, {self.of[0]}]"
        return f"{self.name}[{self.of[0]}]" if self.of else self.name

    def allows(self, name: str) -> bool:
        """Return True when this type or a member of this union has that name."""
        return self.name == name or (
            self.name in ("any", "union") and any(kind.allows(name) for kind in self.of)
        )


ANY = Kind("any")


def read_kind(node: ast.expr, *, where: str) -> Kind:
    """Return the type that an annotation states.

    Raises:
        InputError: It is none that a parameter can have.
    """
    if isinstance(node, ast.Constant) and node.value is None:
        return Kind("None")
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return read_kind(ast.parse(node.value, mode="eval").body, where=where)
    if isinstance(node, ast.Name) and node.id in ("bool", "dict", "float", "int", "list", "str"):
        return Kind(node.id, (ANY,) if node.id in ("dict", "list") else ())
    if isinstance(node, ast.Name) and node.id in ("object", "Any"):
        return ANY
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return union(read_kind(side, where=where) for side in (node.left, node.right))
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "list":
            return Kind("list", (read_kind(node.slice, where=where),))
        if node.value.id == "dict" and isinstance(node.slice, ast.Tuple):
            return Kind("dict", (read_kind(node.slice.elts[-1], where=where),))
    text = ast.unparse(node)
    raise InputError(
        f"A parameter of {where} has the type {text!r}, which cannot be given from outside.",
        hint=did_you_mean(text, (*NAMES[1:6], "list[str]", "dict[str, float]", "str | None")),
    )


def inferred(value: Any) -> Kind:
    """Return the type of a default; None allows any plain value."""
    if value is None:
        return ANY
    if isinstance(value, list):
        return Kind("list", (union(inferred(item) for item in value),))
    if isinstance(value, dict):
        return Kind("dict", (union(inferred(item) for item in value.values()),))
    return Kind(type(value).__name__)


def union(kinds: Iterable[Kind]) -> Kind:
    """Return one type for several; of nothing known, any."""
    members: list[Kind] = []
    for kind in kinds:
        members += [k for k in (kind.of if kind.name == "union" else (kind,)) if k not in members]
    if not members or ANY in members:
        return ANY
    return members[0] if len(members) == 1 else Kind("union", tuple(members))


def fitted(kind: Kind, value: Any) -> tuple[bool, Any]:
    """Return whether a plain value has this type, and the value (an int as float where due)."""
    if kind.name == "any":
        return True, value
    if kind.name == "union":
        for member in sorted(kind.of, key=lambda k: k.name != type(value).__name__):
            fits, result = fitted(member, value)
            if fits:
                return True, result
        return False, value
    if kind.name == "None":
        return value is None, value
    if kind.name == "float" and type(value) is int:
        return True, float(value)
    if kind.name == "list" and isinstance(value, list):
        items = [fitted(kind.of[0], item) for item in value]
        return all(fits for fits, _ in items), [item for _, item in items]
    if kind.name == "dict" and isinstance(value, dict):
        pairs = {name: fitted(kind.of[0], item) for name, item in value.items()}
        return all(fits for fits, _ in pairs.values()), {n: item for n, (_, item) in pairs.items()}
    return type(value).__name__ == kind.name, value
