"""Live curves send only what is new, in order, and leave a static figure behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from workbench import notebook
from workbench.figures.live import Curve, Curves, growing
from workbench.widgets import curves as module
from workbench.widgets.curves import curves as show_curves
from workbench.widgets.curves import presented


class FrontEnd:
    """A front end in a few lines: applies messages as curves.js does, and counts their bytes."""

    def __init__(self, stage: Any) -> None:
        self._stage, self.seq, self.bytes, self.messages = stage, 0, 0, 0
        self.points: dict[str, list[float | None]] = {}
        self.tips: dict[str, Any] = {}
        self.status, self.outcome, self.lost = "", None, 0
        stage._view._widget.send = self.take

    def hello(self, view: str = "a") -> None:
        self._stage._view.receive({"type": "hello", "view": view})

    def take(self, message: dict[str, Any]) -> None:
        text = json.dumps(message, allow_nan=False)
        self.bytes += len(text)
        self.messages += 1
        message = json.loads(text)
        if message["type"] == "state":
            self.points = {c["name"]: c["points"] for p in message["panels"] for c in p["curves"]}
            self.tips = {c["name"]: c["tip"] for p in message["panels"] for c in p["curves"]}
        elif message["seq"] != self.seq + 1:
            self.lost += 1
            return
        else:
            for name, news in message.get("curves", {}).items():
                old = [] if news["whole"] else self.points[name]
                self.points[name] = [*old, *news["points"]]
                self.tips[name] = news["tip"]
        self.seq = message["seq"]
        self.status = message["status"]
        self.outcome = message.get("outcome")

    def drawn(self, name: str) -> list[tuple[float, float | None]]:
        flat = [*self.points[name], *(self.tips[name] or [])]
        return list(zip(flat[::2], flat[1::2], strict=True))


class Place:
    """Stands for an output of a cell."""

    def __init__(self) -> None:
        self.shown: list[dict[str, Any]] = []

    def show(self, bundle: dict[str, Any]) -> None:
        self.shown.append(bundle)


@pytest.fixture
def live() -> Curves:
    return Curves("Training", total=1000, units={"memory": "MB"}, names=("loss", "memory"))


@pytest.fixture
def stage(live: Curves, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(module._Stage, "_run", lambda self: None)  # the test says when
    made = module._Stage(live, Place())  # type: ignore[arg-type]
    yield made
    made._view.close()


def known(curve: Curve) -> list[tuple[float, float | None]]:
    tip = [curve.tip] if curve.tip else []
    return [*curve.points, *tip]


def test_what_is_drawn_is_what_the_kernel_has(stage: Any, live: Curves) -> None:
    front = FrontEnd(stage)
    front.hello()
    for step in range(5000):
        live.add(step, loss=1 / (step + 1))
        if step % 3 == 0:
            live.add(step, memory=None if step % 9 else 800 + step)
        if step % 13 == 0:
            stage._flush()
            assert front.drawn("loss") == known(live.curves["loss"])
    stage.end()
    assert front.drawn("memory") == known(live.curves["memory"])
    assert front.lost == 0


def test_a_hundred_thousand_points_send_little(stage: Any, live: Curves) -> None:
    front = FrontEnd(stage)
    front.hello()
    sizes = []
    for step in range(100_000):
        live.add(step, loss=1.2345 + step % 100, memory=800.123)
        if step % 10 == 9:
            stage._flush()
        if step % 25_000 == 24_999:
            sizes.append(front.bytes)
    assert front.drawn("loss") == known(live.curves["loss"])
    growth = [late - early for early, late in zip([0, *sizes], sizes, strict=False)]
    assert growth[-1] < 1.2 * growth[0]  # no worse than linear
    assert front.bytes / front.messages < 400
    whole = len(json.dumps(stage._state()))
    assert whole < 50_000


def test_a_missed_message_is_made_good_by_hello(stage: Any, live: Curves) -> None:
    front = FrontEnd(stage)
    front.hello()
    for step in range(10):
        live.add(step, loss=step)
    stage._flush()
    take, stage._view._widget.send = stage._view._widget.send, lambda message: None
    live.add(10, loss=10)
    stage._flush()
    stage._view._widget.send = take
    live.add(11, loss=11)
    stage._flush()
    assert front.lost == 1
    front.hello()
    assert front.drawn("loss") == [(step, step) for step in range(12)]


def test_a_front_end_that_cannot_speak_while_a_cell_runs_gets_everything_again(
    stage: Any, live: Curves, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    front = FrontEnd(stage)
    live.add(0, loss=1)
    for _ in range(5):
        now[0] += 0.1
        stage._flush()
    first = front.messages
    assert first == 1
    now[0] += 1.5
    live.add(1, loss=0.5)
    stage._flush()
    assert front.messages == 2
    assert front.drawn("loss") == [(0, 1), (1, 0.5)]


def test_a_quiet_curve_sends_only_its_clock(
    stage: Any, live: Curves, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [stage._began + 0.05]  # away from whole seconds, which sums of floats miss
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    front = FrontEnd(stage)
    front.hello()
    stage._view.subshell = True
    live.add(0, loss=1)
    stage._flush()  # a new curve: the whole state
    stage._flush()
    before, drawn = front.messages, front.drawn("loss")
    for _ in range(36):
        now[0] += 0.1
        stage._flush()
    assert front.messages - before in (3, 4)
    assert front.status == "step 0, 0:03"
    assert front.drawn("loss") == drawn


def test_the_state_says_how_far_it_is(stage: Any, live: Curves) -> None:
    front = FrontEnd(stage)
    live.add(250, loss=1)
    front.hello()
    assert front.status.startswith("step 250 of 1,000, 0:00")
    live.add(1234.5678, loss=1)
    assert stage._state()["status"].startswith("step 1,235 of 1,000")
    live.outcome = "done"
    stage.end()
    assert front.outcome == "done"


def test_a_reloaded_page_finds_its_view_and_is_told(stage: Any, live: Curves) -> None:
    front = FrontEnd(stage)
    live.add(1, loss=1)
    front.hello("a")
    front.hello("a")
    assert not stage._state()["reloaded"]
    live.outcome = "done"
    stage.end()
    stage.leave()
    front.hello("b")
    assert front.drawn("loss") == [(1, 1)]
    assert stage._state()["reloaded"]


def test_only_the_latest_views_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kept", [])
    stages = [module._Stage(Curves(str(n)), Place()) for n in range(5)]  # type: ignore[arg-type]
    for stage in stages:
        stage.end()
        stage.leave()
    assert [stage._view.closed for stage in stages] == [True, True, True, False, False]


def test_the_view_is_replaced_by_a_figure(live: Curves, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place()
    monkeypatch.setattr(notebook, "in_kernel", lambda: True)
    monkeypatch.setattr(notebook, "live", lambda: True)
    monkeypatch.setattr(notebook, "Display", lambda: place)
    with presented(live):
        live.add(0, loss=1, memory=5)
        live.add(1, loss=0.5, memory=6)
    first, last = place.shown
    assert "application/vnd.jupyter.widget-view+json" in first
    assert "text/html" not in first
    assert set(last) == {"application/vnd.plotly.v1+json", "image/png", "text/plain"}


def test_batch_shows_only_the_figure(live: Curves, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place()
    monkeypatch.setattr(notebook, "in_kernel", lambda: True)
    monkeypatch.setattr(notebook, "live", lambda: False)
    monkeypatch.setattr(notebook, "Display", lambda: place)

    def work() -> None:
        with presented(live):
            live.add(0, loss=1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        work()
    assert len(place.shown) == 1
    assert "image/png" in place.shown[0]


def test_a_terminal_gets_the_progress_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench import progress

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 0.5
            return self.now

    monkeypatch.delenv("WORKBENCH_QUIET", raising=False)
    monkeypatch.setattr(progress, "time", Clock())
    with show_curves("my training", total=100) as live:
        for step in range(1, 101):
            live.add(step, loss=1 / step)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("my training: 100 steps")
    assert said[-1].endswith("loss 0.01")
    assert 5 < len(said) < 15
    assert live.outcome == "done"


def test_the_thread_sends_and_ends(live: Curves) -> None:
    stage = module._Stage(live, Place())  # type: ignore[arg-type]
    front = FrontEnd(stage)
    front.hello()
    live.add(1, loss=1)
    until = time.monotonic() + 20
    while front.points.get("loss") != [] and "loss" not in front.tips and time.monotonic() < until:
        time.sleep(0.01)
    assert front.drawn("loss") == [(1, 1)]
    stage.end()
    assert not stage._thread.is_alive()


@pytest.mark.parametrize("word", ["finetune", "profile"])
def test_work_of_the_face_shows_its_curves(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import workbench as wb

    place = Place()
    monkeypatch.setattr(notebook, "in_kernel", lambda: True)
    monkeypatch.setattr(notebook, "live", lambda: False)
    monkeypatch.setattr(notebook, "Display", lambda: place)

    def work(*, amount: int) -> int:
        with growing("Work") as curves:
            curves.add(1, memory=amount)
        return amount + 1

    monkeypatch.setattr(module, f"_{word}", work)
    assert getattr(wb, word)(amount=5) == 6
    assert [set(each) for each in place.shown] == [
        {"application/vnd.plotly.v1+json", "image/png", "text/plain"}
    ]


def test_the_face_has_the_words_with_their_signatures() -> None:
    import inspect

    import workbench as wb
    from workbench.evaluate.profile import profile
    from workbench.finetune import finetune

    assert wb.curves is show_curves
    assert inspect.signature(wb.finetune) == inspect.signature(finetune)
    assert inspect.signature(wb.profile) == inspect.signature(profile)
