"""Loading by a plan: what cannot fit is refused before it is loaded, what fits is measured."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.engines import plain
from workbench.errors import MemoryShortError
from workbench.machine import Machine
from workbench.machine import machine as this_machine
from workbench.memory import Estimate, Part
from workbench.planning import Plan, check, require_memory, room
from workbench.receipts import receipts

GIB = 2**30


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine with 10 MB of free memory."""

    def machine(description: Any = None) -> Machine:
        if description is not None:
            return this_machine(description)
        return this_machine().model_copy(update={"ram_available_bytes": 10_000_000})

    monkeypatch.setattr(room, "this_machine", machine)


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_what_cannot_fit_is_refused_before_it_is_loaded(
    engine: str, little: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.engines import registry

    opened: list[str] = []
    original = registry.engine
    load = __import__("importlib").import_module("workbench.engines.load")
    monkeypatch.setattr(load, "engine_named", lambda name: opened.append(name) or original(name))
    monkeypatch.setattr(load, "_here", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(MemoryShortError) as caught:
        wb.load("tiny-chat", engine=engine)
    error = caught.value
    assert error.needed > error.free == 10_000_000
    assert "nothing was loaded" in str(error)
    assert "force=True" in str(error)
    (kept,) = receipts(what="load", outcome="failed")
    assert "nothing was loaded" in str(kept.reason)


def test_force_loads_all_the_same(little: None) -> None:
    with wb.load("tiny-chat", engine="llama.cpp", force=True, threads=1) as model:
        assert model.ask("Hi!", max_tokens=2).token_ids


def test_the_error_names_changes_that_were_computed(little: None) -> None:
    with pytest.raises(MemoryShortError) as caught:
        wb.load("tiny-chat", engine="transformers", context=2048)
    assert 1 <= len(caught.value.changes) <= 3
    assert all(said in str(caught.value) for said in caught.value.changes)
    again = plain.to_error(plain.from_error(caught.value))
    assert isinstance(again, MemoryShortError)
    assert str(again) == str(caught.value)


def test_a_container_with_little_free_memory_still_loads_a_small_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = this_machine().model_copy(update={"ram_available_bytes": 60_000_000})
    monkeypatch.setattr(room, "this_machine", lambda description=None: small)
    planned = wb.plan("tiny-chat", engine="transformers", context=256)
    require_memory(planned)  # the interpreter and its libraries are there already


def needing(size: int, *, uncertain: str | None = None) -> Plan:
    found = Estimate(
        label="x",
        parts=(Part(name="weights", bytes=size, rule="", place="host"),),
        uncertain=uncertain,
    )
    return dataclasses.replace(wb.plan("tiny-chat"), estimate=found)


def test_only_what_surely_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free = this_machine().model_copy(update={"ram_available_bytes": GIB})
    monkeypatch.setattr(room, "this_machine", lambda description=None: free)
    require_memory(needing(GIB))
    require_memory(needing(int(1.1 * GIB), uncertain="too little is known"))
    require_memory(dataclasses.replace(needing(5 * GIB), estimate=None))
    for short in (needing(GIB + 1), needing(int(1.2 * GIB), uncertain="x")):
        with pytest.raises(MemoryShortError):
            require_memory(short)
    assert check._needs(needing(GIB), needing(GIB).estimate, room.room_of(None, rules=rules()))


def rules() -> Any:
    from workbench.planning.policy import rules as read

    return read()


def test_no_free_memory_at_all_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    none = this_machine().model_copy(update={"ram_available_bytes": 0, "ram_bytes": 0})
    monkeypatch.setattr(room, "this_machine", lambda description=None: none)
    found = wb.plan("tiny-chat", engine="transformers")
    assert found.fits is False
    assert all(need.usable_bytes == 0 for need in found.needs)
    with pytest.raises(MemoryShortError, match=r"0\.00 GiB are free"):
        require_memory(found)


@pytest.mark.parametrize(
    ("engine", "isolate"), [("transformers", False), ("llama.cpp", False), ("llama.cpp", True)]
)
def test_a_load_leaves_its_estimate_beside_the_measurement(engine: str, isolate: bool) -> None:
    with wb.load("tiny-chat", engine=engine, isolate=isolate, threads=1, context=512) as model:
        assert model.receipt is not None
        receipt = json.loads(Path(model.receipt).read_text())
    compared = receipt["result"]["ledger"]
    assert compared["moment"] == "load"
    assert compared["device"] == "cpu"
    assert compared["measured_bytes"] == receipt["result"]["rss_growth_bytes"]
    weights = sum(
        part["bytes"] for part in receipt["plan"]["estimate"]["parts"] if part["group"] == "weights"
    )
    assert 0 < weights <= compared["estimated_bytes"] < weights + 2 * 512 * 5 * 2 * 64 * 2 * 2
    (entry,) = wb.ledger()
    assert (entry.model, entry.engine) == ("tiny-chat", engine)
    assert entry.error == pytest.approx(compared["error"], abs=1e-3)


def test_the_band_of_a_plan_comes_from_earlier_loads() -> None:
    assert wb.plan("tiny-chat", engine="llama.cpp").estimate.band is None
    for _ in range(3):
        with wb.load("tiny-chat", engine="llama.cpp", threads=1, isolate=True):
            pass
    found = wb.plan("tiny-chat", engine="llama.cpp")
    low, high = found.estimate.band
    assert 0 < low <= high
    assert "3 measurements here of tiny-chat" in str(found)
    other = wb.plan("qwen2.5-7b-instruct", machine="cpu-32GB")
    assert other.estimate.band is None


def test_a_scripted_engine_needs_no_memory(little: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), wb.load("x", engine="scripted") as model:
        assert model.ask("Hi!").text
    assert len(wb.ledger()) == 0
