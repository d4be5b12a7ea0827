"""The arena on the embedded model: two forms side by side, an adapter against its base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import workbench as wb
from workbench.catalog import locate, resolve
from workbench.engines.model import Model

QUESTION = "Tell me a story about a cat."
FORMS = [
    {"engine": "llama.cpp", "threads": 1, "context": 256},
    {"engine": "transformers", "dtype": "fp32", "threads": 1, "context": 256},
]


@pytest.fixture
def held() -> Callable[[], list[Model]]:
    """What has been loaded since the test began; other tests may hold models of their own."""
    before = {id(model) for model in wb.loaded()}
    return lambda: [model for model in wb.loaded() if id(model) not in before]


def test_two_forms_are_loaded_answer_and_are_freed(held: Callable[[], list[Model]]) -> None:
    arena = wb.arena("tiny-chat", forms=FORMS, sampling={"max_tokens": 24})
    assert held() == []
    with arena:
        round = arena.ask(QUESTION)
        assert arena.contestants == ["llama.cpp", "transformers:fp32"]
        assert {model.plan.engine for model in held()} == {"llama.cpp", "transformers"}
        ids = [reply.token_ids for reply in round.replies.values()]
        parting = round.parting(0, 1)
        common = sum(1 for _ in _same(*ids))
        assert parting is not None
        # One tokenizer made both: where the text parts, the token is known.
        assert parting.token == (None if parting.character is None else common)
        for reply in round.replies.values():
            assert reply.usage.completion_tokens == len(reply.token_ids)
            assert reply.timings.ttft > 0
    assert held() == []
    made = {name: dialogue.made_by["engine"] for name, dialogue in arena.dialogues.items()}
    assert made == {"llama.cpp": "llama.cpp", "transformers:fp32": "transformers"}


def _same(one: tuple[int, ...], two: tuple[int, ...]) -> list[int]:
    found = []
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        found.append(a)
    return found


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with random weights, large enough to change every answer."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(str(locate(resolve("tiny-chat")).path))
    config = peft.LoraConfig(
        r=4, lora_alpha=24, target_modules="all-linear", init_lora_weights=False
    )
    folder = tmp_path_factory.mktemp("adapters") / "cats"
    peft.get_peft_model(base, config).save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "base_model_name_or_path": "data/tiny-chat"}))
    return folder


def test_an_adapter_against_its_base_is_one_call_and_one_model(
    adapter: Path, held: Callable[[], list[Model]]
) -> None:
    with wb.arena(adapter=adapter, sampling={"max_tokens": 16}) as arena:
        round = arena.ask(QUESTION)
        assert len(held()) == 1
        base, tuned = arena.contestants
        assert tuned == f"{base} + cats"
        plain = held()[0].plan
    with wb.load("tiny-chat", engine=plain.engine, context=plain.context) as alone:
        assert round.replies[base].token_ids == alone.ask(QUESTION, max_tokens=16).token_ids
    assert round.replies[tuned].token_ids != round.replies[base].token_ids
    assert arena.dialogues[base].made_by["adapter"] is None
    assert "cats" in arena.dialogues[tuned].made_by["adapter"]
    assert arena.dialogues[tuned]["2"].model.endswith("+ cats")


def test_a_model_of_ones_own_has_its_adapter_back_after_a_round(adapter: Path) -> None:
    with wb.load("tiny-chat", engine="transformers", dtype="fp32", context=256) as model:
        expected = model.ask(QUESTION, max_tokens=8).token_ids
        arena = wb.arena(model, adapter=adapter, sampling={"max_tokens": 8})
        first, second = arena.ask(QUESTION), arena.ask(QUESTION)
        base, tuned = arena.contestants
        assert first.replies[base].token_ids == expected
        assert first.replies[tuned].token_ids == second.replies[tuned].token_ids != expected
        assert model.plan.adapter is None
        assert model.ask(QUESTION, max_tokens=8).token_ids == expected
        arena.close()
        assert not model.closed
