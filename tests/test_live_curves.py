"""Curves that grow stay bounded, keep their spikes and end as one figure without scripts."""

from __future__ import annotations

import base64
import json
import math
import random
import struct
from typing import Any

import numpy as np
import pytest

from workbench.errors import InputError
from workbench.figures import Figure, Panels, line
from workbench.figures.live import MOST, Curve, Curves, growing, presented_by


def test_a_long_curve_stays_bounded_and_keeps_every_spike() -> None:
    curve = Curve("loss")
    spikes = {12_345: 99.0, 77_777: -50.0, 99_998: 42.0}
    for step in range(100_000):
        curve.add(step, spikes.get(step, 1.0 + step % 7 / 100))
    kept = curve.all()
    assert len(curve.points) < MOST
    assert {y for _, y in kept if abs(y or 0) > 2} == set(spikes.values())
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert kept[-1] == (99_999, 1.0 + 99_999 % 7 / 100)
    assert kept[0][0] == 0


@pytest.mark.parametrize("count", [1, 2, 3, 999, 1000, 1001, 4321])
def test_least_and_greatest_of_any_length_are_there(count: int) -> None:
    source = random.Random(count)
    values = [source.gauss(0, 1) for _ in range(count)]
    curve = Curve("loss")
    for step, value in enumerate(values):
        curve.add(step, value)
    kept = [y for _, y in curve.all()]
    assert max(kept) == max(values)
    assert min(kept) == min(values)
    assert kept[-1] == values[-1]
    if count < MOST:
        assert kept == values


def test_points_are_only_appended_until_the_generation_grows() -> None:
    curve, before, generation = Curve("loss"), [], 0
    for step in range(5000):
        curve.add(step, math.sin(step))
        if curve.generation == generation:
            assert curve.points[: len(before)] == before
        before, generation = list(curve.points), curve.generation
    assert generation > 1


def test_a_gap_is_no_value_and_hides_none() -> None:
    curves = Curves("t")
    for step in range(3000):
        curves.add(step, loss=math.nan if step % 2 else float(step))
    kept = [y for _, y in curves.curves["loss"].all()]
    assert kept[-1] is None
    assert max(y for y in kept if y is not None) == 2998
    assert 0.0 in kept
    curves.add(3000, loss=float("inf"), other=None)
    assert curves.curves["loss"].last == (3000, None)
    assert Curves("t", units={"loss": "nats"}).brief() == ""
    assert curves.brief() == "loss none, other none"
    json.dumps(curves.figure()._repr_mimebundle_(), allow_nan=False)


def test_values_with_the_same_last_word_share_an_axis() -> None:
    curves = Curves("Training", units={"memory": "MB"}, names=("training loss", "held-out loss"))
    curves.add(1, {"training loss": 2.0}, memory=800, learning_rate=1e-4)
    curves.add(2, {"held-out loss": 1.5}, memory=801.5)
    panels = [(panel.title, panel.unit, len(panel.curves)) for panel in curves.panels()]
    assert panels == [("loss", "", 2), ("memory", "MB", 1), ("rate", "", 1)]
    assert curves.brief() == (
        "training loss 2, held-out loss 1.5, memory 802 MB, learning rate 0.0001"
    )
    assert curves.step == 2


def test_values_may_share_one_panel_under_their_own_names() -> None:
    names = ("llama.cpp:Q8_0", "transformers:fp32")
    curves = Curves("Memory", units={"memory": "MB"}, names=names, panel="memory")
    curves.add(0.5, {"transformers:fp32": 20})
    curves.add(1.5, {"llama.cpp:Q8_0": 8})
    (panel,) = curves.panels()
    assert (panel.title, panel.unit) == ("memory", "MB")
    assert [curve.label for curve in panel.curves] == list(names)
    assert curves.brief() == "llama.cpp:Q8_0 8 MB, transformers:fp32 20 MB"
    figure = curves.figure()
    assert isinstance(figure, Figure)
    assert figure.value_title == "memory (MB)"
    assert [series.name for series in figure.series] == list(names)


def test_the_end_is_one_figure_of_all_panels() -> None:
    curves = Curves("Training", units={"memory": "MB"})
    for step in range(50):
        curves.add(step, training_loss=3 / (step + 1), held_out_loss=3.2, memory=500 + step)
    figure = curves.figure()
    assert isinstance(figure, Panels)
    bundle = figure._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "image/png", "text/plain"}
    assert "Memory in MB: 500 at 0, 549 at 49" in bundle["text/plain"]
    json.dumps(bundle, allow_nan=False)
    made = figure.plotly().to_plotly_json()
    assert [trace["yaxis"] for trace in made["data"]] == ["y", "y", "y2"]
    domains = [made["layout"][axis]["domain"] for axis in ("yaxis", "yaxis2")]
    assert domains[0][0] > domains[1][1]
    assert len({trace["line"]["color"] for trace in made["data"]}) == 3
    assert made["layout"]["xaxis"]["anchor"] == "y2"


def test_the_picture_of_panels_is_drawn_from_their_data() -> None:
    def picture(value: float) -> bytes:
        parts = [line({name: [(0, value), (1, 2)]}, title=name) for name in ("a", "b")]
        drawn = Panels(title="t", figures=tuple(parts)).picture()
        assert drawn is not None
        return drawn

    assert picture(1.0) == picture(1.0) != picture(1.5)
    width, height = struct.unpack(">II", picture(1.0)[16:24])
    assert width == 760
    assert height > 420


def test_one_panel_is_an_ordinary_figure() -> None:
    curves = Curves("Training")
    curves.add(0, loss=1)
    curves.add(1, loss=np.float32(0.25))
    figure = curves.figure()
    assert isinstance(figure, Figure)
    assert figure.series[0].y == (1, 0.25)
    png = base64.b64decode(curves._repr_mimebundle_()["image/png"])
    assert png.startswith(b"\x89PNG")


def test_nothing_yet() -> None:
    curves = Curves("Training", names=("loss",))
    assert curves._repr_mimebundle_() == {"text/plain": "Training: no values yet"}
    with pytest.raises(InputError, match="no values yet"):
        curves.figure()


@pytest.mark.parametrize("bad", ["0.3", [1.0], object()])
def test_what_is_no_number_is_refused_and_adds_nothing(bad: Any) -> None:
    curves = Curves("t")
    with pytest.raises(InputError, match="no number"):
        curves.add(1, memory=5, loss=bad)
    assert curves.step is None
    with pytest.raises(InputError, match="no finite number"):
        curves.add(math.nan, loss=1)


def test_panels_need_lines() -> None:
    from workbench.figures import bar

    with pytest.raises(InputError, match="has no panel"):
        Panels(title="t", figures=())
    with pytest.raises(InputError, match="made of lines"):
        Panels(title="t", figures=(bar({"a": 1}, title="bars"),))


def test_work_is_shown_only_by_who_asked_for_it() -> None:
    import contextlib
    from collections.abc import Iterator

    seen: list[Any] = []

    @contextlib.contextmanager
    def presenter(curves: Curves) -> Iterator[None]:
        seen.append(curves)
        try:
            yield
        finally:
            seen.append(curves.outcome)

    def work(**settings: Any) -> None:
        with growing("Work", **settings) as curves:
            curves.add(1, loss=2)
            if settings.get("total") == 3:
                raise KeyboardInterrupt

    work()
    assert seen == []
    with presented_by(presenter):
        work(quiet=True)
        assert seen == []
        work()
        with pytest.raises(KeyboardInterrupt):
            work(total=3)
    work()
    assert [each for each in seen if not isinstance(each, Curves)] == ["done", "interrupted"]
