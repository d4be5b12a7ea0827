"""Unloading in a real kernel: what IPython keeps by itself does not keep a model's memory."""

from __future__ import annotations

from collections.abc import Iterator

import nbformat
import pytest
from nbclient import NotebookClient

SETUP = """
import weakref
import workbench as wb
def load():
    return wb.load("tiny-chat", engine="transformers", dtype="fp32", threads=1)
def told(found, reference):
    print(found.freed, reference() is None, "|", " ; ".join(found.holders))
"""
SHOWN = (
    "model = load(); reference = weakref.ref(model.raw); mine = [1]",
    "model",
    "model.raw",
    "[model.raw.get_input_embeddings()]",
    "mine",
    "told(model.close(), reference); print(_ is mine, Out[6] is mine, 4 in Out, 5 in Out)",
)
FAILED = (
    "model = load(); reference = weakref.ref(model.raw)",
    "def go(inner):\n    raw = inner.raw\n    raise MemoryError('full')\ngo(model)",
    "told(model.close(), reference)",
)
DEEP = (
    "model = load(); reference = weakref.ref(model.raw)",
    "model.raw(input_ids='no tensor')",
    "told(model.close(), reference)",
)
KEPT = (
    "model = load(); reference = weakref.ref(model.raw); raw = model.raw",
    "told(model.close(), reference); del raw",
)
CAUGHT = (
    "model = load(); reference = weakref.ref(model.raw)",
    "def go(inner):\n    raw = inner.raw\n    raise ValueError('no')\n"
    "try:\n    go(model)\nexcept ValueError as error:\n    kept = error",
    "told(model.close(), reference); del kept",
)
ENDING = (
    "with load() as model:\n    reference = weakref.ref(model.raw)\n    model.raw(input_ids='no')",
    "told(model.unloaded, reference)",
)
THREAD = (
    "import threading\nmodel = load(); reference = weakref.ref(model.raw)\n"
    "going = threading.Event()\ndef read():\n"
    "    for piece in model.stream('Tell me a story.', max_tokens=1500, ignore_end=True):\n"
    "        going.set()\n"
    "thread = threading.Thread(target=read); thread.start(); going.wait(60)",
    "told(model.close(), reference); thread.join()",
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """One kernel for all traps: each begins with what the one before left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        client = NotebookClient(
            nbformat.v4.new_notebook(), kernel_name="python3", allow_errors=True, timeout=300
        )
        with client.setup_kernel():
            run(client, (SETUP,))
            yield client


def run(client: NotebookClient, cells: tuple[str, ...]) -> str:
    """Run cells and return what the last one printed on standard output."""
    for source in cells:
        cell = nbformat.v4.new_code_cell(source)
        client.nb.cells.append(cell)
        client.execute_cell(cell, len(client.nb.cells) - 1)
    outputs = client.nb.cells[-1].outputs
    wrong = [each.evalue for each in outputs if each.output_type == "error"]
    assert not wrong
    return "".join(each.text for each in outputs if each.get("name") == "stdout")


def test_a_value_that_was_shown(client: NotebookClient) -> None:
    first, second = run(client, SHOWN).splitlines()
    assert first == "True True | "
    assert second == "True True False False"  # what is the user's own stays in the history


@pytest.mark.parametrize("cells", [FAILED, DEEP, ENDING, THREAD])
def test_an_error_or_a_running_stream(client: NotebookClient, cells: tuple[str, ...]) -> None:
    assert run(client, cells).strip() == "True True |"


def test_a_variable_of_the_user_stays_and_is_named(client: NotebookClient) -> None:
    assert run(client, KEPT).strip() == "False False | the variable raw in the notebook"


def test_an_error_that_the_user_keeps_is_named(client: NotebookClient) -> None:
    said = run(client, CAUGHT).strip()
    assert said.startswith("False False | the variable kept in the notebook")
    assert "keeps raw of go()" in said
