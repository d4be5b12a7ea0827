"""A wrong parameter is an error before anything starts, and the error names what is near."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from workbench.errors import InputError, NotFoundError
from workbench.runs.execute import prepare
from workbench.runs.parameters import Parameter, as_text, declared, parsed, resolved

CELL = """
name = "cat"  # what to say
times: int = 2  # how often
rate = 1e-4
forms = ["fp32", "Q8_0"]  # forms # and more
limits: dict[str, float] = {"a": 1.0}
adapter: str | None = None  # folder
anything = None
flag = False
negative = -3
empty = []
long = [
    1,
    2,
]  # two numbers
"""


def notebook_of(*cells: tuple[str, list[str]]) -> Any:
    made = []
    for source, tags in cells:
        cell = nbformat.v4.new_code_cell(source)
        cell.metadata["tags"] = tags
        made.append(cell)
    return nbformat.v4.new_notebook(cells=made)


def parameters(cell: str = CELL) -> dict[str, Parameter]:
    found = declared(notebook_of((cell, ["parameters"])), where="demo")
    return {parameter.name: parameter for parameter in found}


def given(**values: Any) -> dict[str, Any]:
    found = resolved(tuple(parameters().values()), where="demo", arguments=values)
    return {name: each.value for name, each in found.items()}


def test_what_a_cell_declares() -> None:
    found = parameters()
    assert {name: str(p.kind) for name, p in found.items()} == {
        "name": "str",
        "times": "int",
        "rate": "float",
        "forms": "list[str]",
        "limits": "dict[str, float]",
        "adapter": "str | None",
        "anything": "any",
        "flag": "bool",
        "negative": "int",
        "empty": "list[any]",
        "long": "list[int]",
    }
    assert found["forms"].default == ["fp32", "Q8_0"]
    assert found["forms"].comment == "forms # and more"
    assert found["long"].comment == "two numbers"
    assert found["rate"].comment == ""


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([("x = 1", [])], "no cell tagged 'parameters'"),
        ([("x = 1", ["parameters"]), ("y = 1", ["parameters"])], "2 cells tagged"),
        ([("x = len('a')", ["parameters"])], "no literal"),
        ([("import os", ["parameters"])], "import os"),
        ([("x = 1\nx = 2", ["parameters"])], "twice"),
        ([("x = = 1", ["parameters"])], "line 1"),
        ([("x: set[int] = 1", ["parameters"])], "set[int]"),
    ],
)
def test_a_wrong_cell_is_an_error(cells: list[tuple[str, list[str]]], words: str) -> None:
    with pytest.raises(InputError) as caught:
        declared(notebook_of(*cells), where="demo.ipynb")
    assert words in str(caught.value)
    assert "demo.ipynb" in str(caught.value)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no parameter 'froms'\. Did you mean 'forms'"):
        given(froms=["fp32"])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("times", "3", "is int, not str: '3'"),
        ("times", 3.0, "is int, not float"),
        ("times", True, "is int, not bool"),
        ("name", 3, "is str, not int"),
        ("name", None, "is str, not NoneType"),
        ("flag", 1, "is bool, not int"),
        ("rate", "fast", "is float, not str"),
        ("rate", False, "is float, not bool"),
        ("forms", "fp32", "is list[str], not str"),
        ("forms", [1], "is list[str], not list"),
        ("limits", {"a": "b"}, "is dict[str, float], not dict"),
        ("adapter", 5, "is str | None, not int"),
        ("anything", object, "got a type"),
    ],
)
def test_a_wrong_type_names_both(name: str, value: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        given(**{name: value})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rate", 1, 1.0),
        ("rate", np.float32(0.5), 0.5),
        ("times", np.int64(7), 7),
        ("flag", np.bool_(True), True),
        ("forms", ("a", "b"), ["a", "b"]),
        ("long", np.array([1, 2]), [1, 2]),
        ("adapter", Path("a") / "b", "a/b"),
        ("adapter", None, None),
        ("anything", {"a": [1, None, "x"]}, {"a": [1, None, "x"]}),
        ("limits", {"a": 2}, {"a": 2.0}),
        ("empty", [1, "a"], [1, "a"]),
    ],
)
def test_values_become_plain(name: str, value: Any, expected: Any) -> None:
    found = given(**{name: value})[name]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("times", "5", 5),
        ("rate", "1e-4", 1e-4),
        ("rate", "3", 3),
        ("name", "5", "5"),
        ("name", "true", "true"),
        ("name", "", ""),
        ("flag", "true", True),
        ("flag", "False", False),
        ("forms", "[a, b]", ["a", "b"]),
        ("forms", "a, b", ["a", "b"]),
        ("forms", "7", ["7"]),
        ("long", "1,2,3", [1, 2, 3]),
        ("adapter", "null", None),
        ("adapter", "x", "x"),
        ("anything", "[1, 2]", [1, 2]),
        ("limits", "{a: 1.5}", {"a": 1.5}),
        ("times", "many", "many"),
    ],
)
def test_texts_are_read_by_type(name: str, text: str, expected: Any) -> None:
    assert parsed(parameters()[name], text) == expected


def test_what_is_printed_is_read_back() -> None:
    for name, value in given(name="5", times=3, anything={"a": None}).items():
        assert parsed(parameters()[name], as_text(value)) == value


def test_precedence_and_where_a_value_comes_from() -> None:
    found = resolved(
        tuple(parameters().values()),
        where="demo",
        texts={"times": "9"},
        file={"times": 5, "name": "dog"},
        file_name="p.yaml",
    )
    assert (found["times"].value, found["times"].source) == (9, "command line")
    assert (found["name"].value, found["name"].source) == ("dog", "file p.yaml")
    assert (found["flag"].value, found["flag"].source) == (False, "default")


def test_prepare_reads_a_file_and_starts_nothing(
    notebook: Callable[..., Path], tmp_path: Path, home: Path
) -> None:
    path = notebook(["# Say it", "print(word)"])
    values = tmp_path / "p.yaml"
    values.write_text("word: 犬\n", encoding="utf-8")
    prepared = prepare(path, file=values, arguments={"times": 3})
    assert prepared.title == "Say it"
    assert prepared.cells == 2
    assert {name: g.value for name, g in prepared.given.items()} == {"word": "犬", "times": 3}
    values.write_text("wrod: 犬\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"'wrod'\. Did you mean 'word'"):
        prepare(path, file=values)
    assert not (home / "outputs").exists()


def test_a_notebook_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="Did you mean '20_compare'"):
        prepare("20_compre")
    with pytest.raises(NotFoundError, match="does not exist"):
        prepare(tmp_path / "x.ipynb")
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="is no notebook"):
        prepare(broken)
