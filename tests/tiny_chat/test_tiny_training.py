from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builder.tokenizer import train_tokenizer
from builder.train import Encoder, Plan, Shape, block, packed, train

SMALL = Shape(hidden=64, layers=2, heads=1, kv_heads=1, head_dim=64, intermediate=64)
PLAN = Plan(steps=14, rows=16, warmup=4, peak=5e-3, save_every=4)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_loss_falls_and_a_cut_changes_nothing(tokenizer: Any, tmp_path: Path) -> None:
    whole, losses = train(tokenizer, PLAN, shape=SMALL, checkpoint=tmp_path / "whole.pt")
    assert len(losses) == 14
    assert losses[-1] < 0.8 * losses[0]

    cut = tmp_path / "cut.pt"
    _, first = train(tokenizer, PLAN, shape=SMALL, checkpoint=cut, stop_at=6)
    (tmp_path / "cut.part").write_bytes(b"left over from a kill")
    resumed, rest = train(tokenizer, PLAN, shape=SMALL, checkpoint=cut)
    assert first + rest == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_finished_training_is_not_trained_again(tokenizer: Any, tmp_path: Path) -> None:
    short = replace(PLAN, steps=3)
    model, _ = train(tokenizer, short, shape=SMALL, checkpoint=tmp_path / "c.pt")
    again, losses = train(tokenizer, short, shape=SMALL, checkpoint=tmp_path / "c.pt")
    assert losses == []
    assert torch.equal(model.state_dict()["lm_head.weight"], again.state_dict()["lm_head.weight"])


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    plan = Plan(steps=1000, warmup=100, peak=1.0, decay=0.3)
    rates = [plan.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99:700] == [1.0] * 601
    assert all(a > b for a, b in itertools.pairwise(rates[700:]))
    assert 0 < rates[-1] < 0.01


def test_blocks_hold_short_rows_and_rows_of_512_tokens(tokenizer: Any) -> None:
    encode = Encoder(tokenizer)
    batches = block(encode, 0, 0, 64)
    longest = sorted(max(len(ids) for ids, _ in batch) for batch in batches)
    assert longest[-3:] == [256, 256, 512]
    assert longest[0] < 40
    ids, weights = packed(
        iter([[{"role": "user", "content": "Hi."}]] * 99), encode, rows=1, length=64
    )[0]
    assert len(ids) == len(weights) == 64
    assert encode.pad in ids
