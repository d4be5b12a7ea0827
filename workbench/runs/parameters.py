"""Read a notebook's parameters without running it, and check what is given for them."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import math
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from workbench.errors import InputError, did_you_mean
from workbench.runs.kinds import Kind, fitted, inferred, read_kind

TAG = "parameters"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of a notebook, as its parameters cell declares it.

    Attributes:
        name: Its name.
        kind: Its type: as annotated, else that of the default.
        default: Its default.
        comment: What the trailing comment says.
    """

    name: str
    kind: Kind
    default: Any
    comment: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The value a parameter has in a run.

    Attributes:
        value: Plain data.
        source: ``default``, ``argument``, ``command line``, ``step NAME`` or ``file PATH``.
    """

    value: Any
    source: str


def declared(notebook: Mapping[str, Any], *, where: str) -> tuple[Parameter, ...]:
    """Return the parameters of a notebook, read from its cell tagged ``parameters``.

    Args:
        notebook: The notebook as nbformat reads it.
        where: What errors call it.

    Raises:
        InputError: No cell or more than one is tagged, or the cell holds more than literals.
    """
    cells = [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and TAG in cell.get("metadata", {}).get("tags", [])
    ]
    if len(cells) != 1:
        count = "no cell" if not cells else f"{len(cells)} cells"
        raise InputError(
            f"{where} has {count} tagged {TAG!r}; exactly one is needed.",
            hint="Tag the first code cell in JupyterLab's property inspector.",
        )
    source = cells[0]["source"]
    return _read("".join(source) if isinstance(source, list) else source, where=where)


def _read(source: str, *, where: str) -> tuple[Parameter, ...]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise InputError(
            f"The parameters cell of {where} is not Python: {error.msg} in line {error.lineno}.",
            hint="Correct it and try again.",
        ) from None
    comments = _comments(source)
    found: dict[str, Parameter] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        parameter = _parameter(statement, comments, where=where)
        if parameter.name in found:
            raise InputError(f"{where} declares the parameter {parameter.name!r} twice.")
        found[parameter.name] = parameter
    return tuple(found.values())


def _parameter(statement: ast.stmt, comments: Mapping[int, str], *, where: str) -> Parameter:
    annotation: ast.expr | None = None
    value: ast.expr | None = None
    target: ast.expr | None = None
    if isinstance(statement, ast.AnnAssign):
        target, annotation, value = statement.target, statement.annotation, statement.value
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value = statement.targets[0], statement.value
    if not isinstance(target, ast.Name) or value is None:
        raise InputError(
            f"Line {statement.lineno} of the parameters cell of {where} does not give a name a "
            f"default: {ast.unparse(statement).splitlines()[0]!r}.",
            hint="Write NAME = LITERAL there, and all else in a later cell.",
        )
    try:
        default = plain(ast.literal_eval(value), name=target.id)
    except ValueError:
        raise InputError(
            f"The default of {target.id!r} in {where} is no literal: {ast.unparse(value)!r}.",
            hint="Derive values in a later cell: given ones arrive after this one.",
        ) from None
    kind = inferred(default) if annotation is None else read_kind(annotation, where=where)
    comment = comments.get(statement.end_lineno or statement.lineno, "")
    return Parameter(name=target.id, kind=kind, default=default, comment=comment)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def resolved(
    parameters: Sequence[Parameter],
    *,
    where: str,
    arguments: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    file: Mapping[str, Any] | None = None,
    file_name: str = "",
    argument_source: str = "argument",
) -> dict[str, Given]:
    """Return every parameter's value and where it comes from: argument or text > file > default.

    Args:
        parameters: What the notebook declares.
        where: What errors call the notebook.
        arguments: Values given in Python.
        texts: Values given on the command line, read by the type of their parameter.
        file: Values read from a YAML file.
        file_name: What errors and the run file call that file.
        argument_source: What the run file says of ``arguments``.

    Raises:
        InputError: A name is not a parameter, or a value has another type.
    """
    known = {parameter.name: parameter for parameter in parameters}
    found = {p.name: Given(value=p.default, source="default") for p in parameters}
    for source, values in (
        (f"file {file_name}", file or {}),
        (argument_source, arguments or {}),
        ("command line", texts or {}),
    ):
        for name, value in values.items():
            if name not in known:
                raise InputError(
                    f"{where} has no parameter {name!r}.", hint=did_you_mean(name, known)
                )
            read = parsed(known[name], value) if source == "command line" else value
            found[name] = Given(value=checked(known[name], read, where=where), source=source)
    return found


def checked(parameter: Parameter, value: Any, *, where: str) -> Any:
    """Return ``value`` as plain data of the parameter's type; an int passes for a float.

    Raises:
        InputError: It has another type; the message names both.
    """
    data = plain(value, name=parameter.name)
    fits, result = fitted(parameter.kind, data)
    if not fits:
        raise InputError(
            f"The parameter {parameter.name!r} of {where} is {parameter.kind}, "
            f"not {type(value).__name__}: {_cut(repr(value))}.",
            hint=f"Its default is {_cut(repr(parameter.default))}.",
        )
    return result


def parsed(parameter: Parameter, text: str) -> Any:
    """Read a text of the command line by the type of its parameter.

    A list also takes ``a,b,c``; ``null`` is None where that is allowed. A text that cannot be read
    so is returned as it is, and refused by ``checked`` with both types named.
    """
    kind = parameter.kind
    if kind.allows("None") and text.strip().lower() in ("null", "none", "~"):
        return None
    if kind.allows("str") and not kind.allows("any"):
        return text
    if kind.allows("list") and not text.lstrip().startswith("["):
        if kind.of and kind.of[0].name == "str":
            return [item.strip() for item in text.split(",")]
        text = f"[{text}]"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str) and (kind.allows("float") or kind.allows("int")):
        return _number(value)  # YAML takes 1e-4 for a string
    return value


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def plain(value: Any, *, name: str) -> Any:
    """Return ``value`` as what a notebook can be given: numpy, tuples and paths become plain.

    Raises:
        InputError: It is or holds an object with no plain form.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, name=name) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, name=name) for item in value]
    for convert in ("tolist", "item"):  # numpy arrays and scalars, torch tensors
        if hasattr(value, convert):
            return plain(getattr(value, convert)(), name=name)
    raise InputError(
        f"The parameter {name!r} got a {type(value).__name__}: {_cut(repr(value))}.",
        hint="Give numbers, strings, booleans, None, or lists and mappings of them.",
    )


def as_text(value: Any) -> str:
    """Return a value as it is written on the command line, the reverse of ``parsed``."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": ".inf", "-inf": "-.inf"}.get(str(value), ".nan")
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
