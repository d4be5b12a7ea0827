"""The arena in a real kernel: asked and stopped from the front end; in batch a transcript."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from kernel_driver import Kernel, kernel
from nbclient import NotebookClient

ARENA = """
import workbench as wb
story = " ".join(f"word{n}" for n in range(2000))

def one(label, **options):
    return {"model": "scripted", "engine": "scripted", "label": label, "tokens": "words",
            "context": 100_000, **options}

entrants = [one("quick", script="Done."), one("slow", script=story, tokens_per_second=200)]
arena = wb.arena(entrants, blind=True, seed=1, sampling={"max_tokens": 5000})
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with kernel(tmp_path_factory.mktemp("home")) as running:
        running.run(ARENA)
        yield running


def test_a_round_is_asked_stopped_and_voted_on_from_the_front_end(found: Kernel) -> None:
    widget = found.shown("arena", entry="arena")
    widget.send(type="hello", view="one")
    _, state = widget.wait("state")
    assert state["rounds"] == []
    assert state["busy"] is None
    widget.send(type="ask", text="Go.", follow=False)
    widget.wait("delta", lambda _: len(widget.messages("delta")) > 10)
    widget.send(type="stop")
    _, ended = widget.wait("round", lambda message: not message["round"]["running"])
    round = ended["round"]
    assert sorted(column["state"] for column in round["columns"]) == ["done", "stopped"]
    assert [column["name"] for column in round["columns"]] == [None, None]
    told = len(widget.said)
    place = [column["state"] for column in round["columns"]].index("done")
    widget.send(type="vote", round=1, choice=place)
    _, after = widget.wait("round", lambda message: bool(message["round"]["vote"]), after=told)
    assert after["round"]["columns"][place]["name"] == "quick"
    _, votes = widget.wait("votes", after=told)
    assert votes["votes"]["rows"][0]["contestant"] == "quick"
    assert not widget.messages("delta", after=told)
    numbers = [message["seq"] for message in widget.messages()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not widget.messages("error")
    # The static copy below the view holds the round, and the mark that hides it.
    shown = [out for out in found.outputs if "text/html" in out.get("data", {})]
    assert "quick" in shown[-1]["data"]["text/html"]
    assert state["live"] in shown[-1]["data"]["text/html"]
    widget.send(type="vote", round=1, choice=5)
    _, error = widget.wait("error")
    assert "none of the answers" in error["message"]


def test_in_batch_the_cell_shows_the_transcript_and_no_widget(
    monkeypatch: pytest.MonkeyPatch, home: Any
) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(home))
    source = ARENA + "\nround = arena.ask('Go.', max_tokens=5)\narena.vote('a')\narena"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    outputs = notebook.cells[0].outputs
    shown = [out.data for out in outputs if "data" in out]
    assert shown
    assert not any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    whole = "".join(data.get("text/html", "") for data in shown)
    assert "word4" in whole
    assert "Votes" in whole
    assert "widgets" not in notebook.metadata
