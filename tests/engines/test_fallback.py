"""Falling back along a card's chain: what leads on, what is told, and what is raised."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

import workbench as wb
from workbench.catalog.shelf import user_folder
from workbench.errors import EngineError, FormatError, InputError, WorkbenchError
from workbench.paths import shipped


def card(name: str, **values: str) -> None:
    folder = user_folder()
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"id: {name}", *(f"{key}: {json.dumps(value)}" for key, value in values.items())]
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def chain(tmp_path: Path) -> None:
    """Two cards whose files fail, then the embedded model."""
    broken = tmp_path / "broken"
    broken.mkdir()
    source = shipped("data", "tiny-chat")
    for path in source.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes()[:1_000_000])
    card("first", path=str(tmp_path / "nowhere"), fallback="second")
    card("second", path=str(broken), fallback="tiny-chat")


def load(name: str = "first", **settings: object) -> wb.engines.Model:  # type: ignore[name-defined]
    return wb.load(name, engine="llama.cpp", quantization="F16", threads=1, **settings)


@pytest.mark.usefixtures("chain")
def test_the_first_that_loads_is_taken_and_says_what_failed() -> None:
    with pytest.warns(UserWarning, match="Not loaded") as told:
        model = load(fallback=True)
    with model:
        assert model.card.id == "tiny-chat"
        assert [each.card for each in model.fallbacks] == ["first", "second"]
        assert "nowhere" in model.fallbacks[0].reason
        assert [str(each.message).split(":")[1].strip() for each in told] == ["first", "second"]
        assert all(each.filename == __file__ for each in told)
        reply = model.ask("Hi!", max_tokens=3)
        assert reply.fallback_from == ("first", "second")
        assert "instead of first, second" in reply.summary()
        assert model.ask_many(["Hi!"], max_tokens=3)[0].fallback_from == ("first", "second")
        assert model.receipt is not None
        kept = json.loads(model.receipt.read_text())["parameters"]["fallback_from"]
        assert [each["card"] for each in kept] == ["first", "second"]
        assert "nowhere" in kept[0]["reason"]


@pytest.mark.usefixtures("chain")
def test_without_the_word_the_first_error_is_raised() -> None:
    with pytest.raises(WorkbenchError, match="nowhere"):
        load()
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        load("second")


@pytest.mark.usefixtures("chain")
def test_when_all_fail_the_first_error_lists_the_others(tmp_path: Path) -> None:
    card("third", path=str(tmp_path / "lost"), fallback="fourth")
    card("fourth", path=str(tmp_path / "gone"))
    with pytest.warns(UserWarning, match="Not loaded"), pytest.raises(WorkbenchError) as caught:
        load("third", fallback=True)
    with pytest.raises(WorkbenchError) as alone:
        load("third")
    assert type(caught.value) is type(alone.value)
    text = str(caught.value)
    assert text.index("lost") < text.index("fourth: ")
    assert "gone" in text
    card("single", path=str(tmp_path / "lost"))
    with (
        pytest.warns(UserWarning, match="Not loaded"),
        pytest.raises(WorkbenchError, match="names no fallback"),
    ):
        load("single", fallback=True)


@pytest.mark.usefixtures("chain")
def test_wrong_input_does_not_lead_on() -> None:
    card("fine", path=str(shipped("data", "tiny-chat")), fallback="tiny-chat")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="Did you mean"):
            wb.load("second", engine="lama.cpp", fallback=True)
        with pytest.raises(InputError, match="context must be"):
            wb.load("fine", engine="llama.cpp", context=0, fallback=True)


@pytest.mark.usefixtures("chain")
def test_a_finished_plan_and_an_engine_error_lead_on() -> None:
    planned = wb.plan("second", engine="scripted", fails="the engine is tired", context=64)
    with pytest.raises(EngineError, match="tired"):
        wb.load(planned)
    with pytest.warns(UserWarning, match="second: the engine is tired"):
        model = wb.load(planned, fallback=True)
    with model:
        assert model.card.id == "tiny-chat"
        assert model.plan.engine != "scripted"


def test_a_model_that_loads_at_once_fell_back_from_nothing() -> None:
    with load("tiny-chat", fallback=True) as model:
        assert model.fallbacks == ()
        reply = model.ask("Hi!", max_tokens=2)
        assert reply.fallback_from == ()
        assert "instead of" not in reply.summary()
