"""The engine mlx from turn to turn: what of a prompt is reused, and from which thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import open_model
from tiny_copy import tiny_copy, windowed

import workbench as wb
from workbench.engines.mlx_prefix import KeptPrompt
from workbench.engines.model import Model
from workbench.messages import Sampling

mx = pytest.importorskip("mlx.core")
STORY = "Tell me a story."


@pytest.fixture
def mlx(opened: Callable[..., Model]) -> Model:
    return opened("mlx", False)


# Prefix reuse


def _talk(model: Model) -> tuple[list[dict[str, str]], list[int]]:
    turns = [{"role": "user", "content": STORY}]
    first = model.ask(turns, max_tokens=24)
    more = [*turns, {"role": "assistant", "content": first.text}]
    return [*more, {"role": "user", "content": "Who is it about?"}], list(first.token_ids)


def test_a_second_turn_reads_only_what_is_new_and_says_the_same(
    mlx: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, _ = _talk(mlx)
    session, fed = mlx._session, []
    read = session.read

    def counted(ids: list[int], cache: Any) -> Any:
        fed.append(len(ids))
        return read(ids, cache)

    monkeypatch.setattr(session, "read", counted)
    reused = mlx.ask(turns, max_tokens=16)
    session.prefix.drop()
    whole = mlx.ask(turns, max_tokens=16)
    assert reused.token_ids == whole.token_ids
    assert fed[0] < fed[1] // 2
    assert fed[1] == len(mlx.prompt_ids(turns))
    # another question after the same beginning: the cache is cut
    other = [*turns[:-1], {"role": "user", "content": "What is 2 + 2?"}]
    cut = mlx.ask(other, max_tokens=12)
    session.prefix.drop()
    assert mlx.ask(other, max_tokens=12).token_ids == cut.token_ids
    assert fed[2] < fed[3] // 2


def test_what_was_interrupted_is_reused_only_as_far_as_it_was_read(mlx: Model) -> None:
    session = mlx._session
    stream = mlx.stream(STORY, max_tokens=60)
    shown = [next(stream).token_id for _ in range(5)]
    stream.close()
    ids = [*mlx.prompt_ids(STORY), *shown]
    assert session.prefix.tokens == len(ids)
    reused = [piece.token_id for piece in mlx.complete([*ids, 445], max_tokens=8)]
    session.prefix.drop()
    assert [piece.token_id for piece in mlx.complete([*ids, 445], max_tokens=8)] == reused


class _Layer:
    def __init__(self, offset: int, trimmable: bool = True) -> None:
        self.offset, self.trimmable = offset, trimmable

    def is_trimmable(self) -> bool:
        return self.trimmable

    def trim(self, removed: int) -> int:
        self.offset -= removed
        return removed


def test_states_that_cannot_be_cut_are_only_continued() -> None:
    ids, kept = list(range(40)), KeptPrompt()
    kept.keep(ids, [_Layer(40), _Layer(40, trimmable=False)])
    assert kept.take([*ids[:30], 99, 98]) == (None, 0)
    kept.keep(ids, [_Layer(40, trimmable=False)])
    assert kept.take([*ids, 99])[1] == 40
    assert kept.take([*ids, 99]) == (None, 0)  # taken is no longer kept
    kept.keep(ids, [_Layer(39)])
    assert kept.tokens == 0  # it does not hold what it should
    layer = _Layer(40)
    kept.keep(ids, [layer])
    assert kept.take(ids)[1] == 39  # the last id is left, for its logits
    assert layer.offset == 39


@pytest.mark.parametrize("window", [24, 512])
def test_sliding_windows_are_reused_where_it_is_exact(tmp_path: Path, window: int) -> None:
    folder = windowed(tmp_path, window)
    with wb.load(folder, engine="mlx", dtype="fp32") as model:
        turns, _ = _talk(model)
        reused = model.ask(turns, max_tokens=12).token_ids
        model._session.prefix.drop()
        assert model.ask(turns, max_tokens=12).token_ids == reused


# Threads


def test_a_stream_may_be_read_piece_by_piece_from_several_threads(mlx: Model) -> None:
    settings = {"max_tokens": 10, "temperature": 1.0, "seed": 3, "repetition_penalty": 1.2}
    expected = mlx.ask(STORY, **settings).token_ids
    stream = mlx._session.stream(wb.messages.as_messages(STORY), Sampling(**settings))
    found: list[int | None] = []
    for _ in range(len(expected)):
        thread = threading.Thread(target=lambda: found.append(next(stream).token_id))
        thread.start()
        thread.join(60)
    stream.close()
    assert tuple(found) == expected


def test_a_model_loaded_in_another_thread_answers_here() -> None:
    models: list[Model] = []
    thread = threading.Thread(target=lambda: models.append(open_model("mlx")))
    thread.start()
    thread.join(300)
    with models[0] as model:
        assert model.ask("What is 3 + 4?", max_tokens=8).text == "3 + 4 = 7"
        assert model.score([1, 5, 6]).shape == (2,)


def test_private_arrays_of_layers_are_computed_on_load(tmp_path: Path) -> None:
    """Those of scaled rotary embeddings are no parameters, and were left to the loading thread."""
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 512}  # fmt: skip
    folder = tiny_copy(tmp_path, rope_theta=None, rope_parameters=rope)
    models: list[Model] = []
    thread = threading.Thread(
        target=lambda: models.append(wb.load(folder, engine="mlx", dtype="fp32"))
    )
    thread.start()
    thread.join(300)
    with models[0] as one, wb.load(folder, engine="transformers", dtype="fp32", threads=1) as two:
        ids = one.prompt_ids(STORY)
        np.testing.assert_allclose(one.score(ids), two.score(ids), atol=2e-3)
