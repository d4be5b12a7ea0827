"""vLLM on the CPU as a supervised server: it agrees with transformers, and it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from engine_models import open_model
from vllm_environment import CONTEXT, need_vllm, vllm_model

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import ChildDiedError, ContextLengthError, EngineError, InputError
from workbench.paths import shipped

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
QUESTIONS = (
    "How do you say cat in Japanese?",
    "What is 7 + 5?",
    "Tell me a story.",
    "こんにちは",
    "Hello! Who are you?",
    "「水」は英語で何ですか。",
    "What is 31 + 4?",
    "How do you say dog in Japanese?",
)
NEAR = 0.05
"""Two engines may part where the likeliest two tokens are closer than this in log-probability."""
TOLERANCE = 0.005
"""Most that a token's log-probability may differ in 32 bit, natural log."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    need_vllm()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("vllm")))
        yield vllm_model()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("reference")))
        with open_model("transformers") as model:
            yield model


def agree(reference: Model, question: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    """Hold two greedy replies against each other by the logit-gap rule."""
    place = next(
        (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if len({*pair}) > 1), -1
    )
    if place < 0:
        assert len(ours) == len(theirs)
        return
    prompt = reference.prompt_ids(question)
    row = np.sort(
        reference.log_probabilities([*prompt, *ours[: place + 1]])[len(prompt) + place - 1]
    )
    assert row[-1] - row[-2] < NEAR, f"{question!r} parts at token {place} without a near tie"


def test_the_prompt_is_the_same(served: Model, reference: Model) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi 猫"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "And now?"},
    ]
    for conversation in (*QUESTIONS, talk):
        assert served.prompt_ids(conversation) == reference.prompt_ids(conversation)
        assert served.render(conversation) == reference.render(conversation)
    text = "A 🐈‍⬛ cat <|im_end|> と 猫。"
    assert served.tokenize(text) == reference.tokenize(text)
    assert served.detokenize(served.tokenize(text)).decode() == text


def test_greedy_replies_are_those_of_transformers(served: Model, reference: Model) -> None:
    for question in QUESTIONS:
        ours, theirs = (each.ask(question, max_tokens=40) for each in (reference, served))
        agree(reference, question, ours.token_ids, theirs.token_ids)
        assert theirs.usage is not None
        assert theirs.usage.prompt_tokens == len(reference.prompt_ids(question))
        if ours.token_ids == theirs.token_ids:
            assert ours.text == theirs.text
            assert ours.finish_reason == theirs.finish_reason


def test_a_stream_is_the_whole_reply_and_obeys_stop_and_limit(served: Model) -> None:
    pieces = list(served.stream("Tell me a story.", max_tokens=16))
    whole = served.ask("Tell me a story.", max_tokens=16)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert len(pieces) > 8, "it came in pieces"
    assert whole.finish_reason == "length"
    assert len(whole.token_ids) == 16
    cut = whole.text[10:14]
    stopped = served.ask("Tell me a story.", max_tokens=16, stop=[cut])
    assert stopped.text == whole.text[: whole.text.index(cut)]
    assert stopped.finish_reason == "stop"


def test_every_character_arrives_whole(served: Model) -> None:
    for question in QUESTIONS:
        for piece in served.stream(question, max_tokens=30):
            assert "\ufffd" not in piece.text


def test_sixteen_at_once_do_not_mix(served: Model, reference: Model) -> None:
    questions = [*QUESTIONS, *(f"What is {n} + {n + 1}?" for n in range(8))]
    alone = [served.ask(question, max_tokens=16) for question in questions]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda text: served.ask(text, max_tokens=16), questions))
    for question, one, other in zip(questions, alone, together, strict=True):
        agree(reference, question, one.token_ids, other.token_ids)
    many = served.ask_many(questions, max_tokens=16)
    assert [reply.text for reply in many] == [reply.text for reply in together]


def test_scores_are_those_of_transformers(served: Model, reference: Model) -> None:
    for question in QUESTIONS:
        reply = reference.ask(question, max_tokens=20)
        ids = [*reference.prompt_ids(question), *reply.token_ids]
        np.testing.assert_allclose(served.score(ids), reference.score(ids), atol=TOLERANCE)


def test_log_probabilities_come_with_the_tokens(served: Model, reference: Model) -> None:
    question = "What is 7 + 5?"
    reply = served.ask(question, max_tokens=8, top_logprobs=3, temperature=0)
    prompt = reference.prompt_ids(question)
    rows = reference.log_probabilities([*prompt, *reply.token_ids])[len(prompt) - 1 :]
    assert len(reply.logprobs) == len(reply.token_ids)
    for row, token, (logprob, top) in zip(rows, reply.token_ids, reply.logprobs, strict=True):
        assert logprob == pytest.approx(row[token], abs=TOLERANCE)
        best = np.sort(row)[::-1][:3]
        assert [each.logprob for each in top[:3]] == pytest.approx(best, abs=TOLERANCE)


def test_a_reply_follows_a_schema(served: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    reply = served.ask("Is water wet?", schema=schema, max_tokens=60)
    assert json.loads(reply.text)["answer"] in ("yes", "no")


def test_a_prompt_is_completed_and_too_long_a_one_refused(served: Model, reference: Model) -> None:
    ids = reference.prompt_ids("What is 7 + 5?")
    ours = "".join(piece.text for piece in reference.complete(ids, max_tokens=10))
    assert "".join(piece.text for piece in served.complete(ids, max_tokens=10)) == ours
    with pytest.raises(ContextLengthError):
        served.ask("cat " * CONTEXT, max_tokens=4)
    assert served.ask("What is 7 + 5?", max_tokens=10).text == ours


def test_an_interrupted_stream_leaves_the_server_free(served: Model) -> None:
    stream = served.stream("Tell me a story.", max_tokens=400, ignore_end=True)
    next(stream)
    stream.close()
    assert served.ask("What is 2 + 2?", max_tokens=8).text


def test_an_adapter_is_switched_on_and_off(served: Model, tmp_path: Path) -> None:
    base = served.ask("Tell me a story.", max_tokens=12)
    served.use_adapter(adapter(tmp_path / "adapter"))
    adapted = served.ask("Tell me a story.", max_tokens=12)
    served.use_adapter(None)
    assert adapted.token_ids != base.token_ids
    assert served.ask("Tell me a story.", max_tokens=12).token_ids == base.token_ids
    with pytest.raises(InputError, match="not a LoRA adapter"):
        served.use_adapter(tmp_path)
    assert Power.SLEEP not in served.powers, "a CPU has no memory to give back for a while"


def adapter(folder: Path) -> Path:
    """Write a LoRA adapter of random weights that changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(shipped("data", "tiny-chat"), dtype="float32")
    settings = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"], bias="none")
    changed = get_peft_model(model, settings)
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    changed.save_pretrained(folder)
    return folder


def test_closing_ends_every_process(served: Model) -> None:
    session = served._session
    processes = session.server.processes()
    assert len(processes) >= 4, "launcher, server, engine and worker"
    served.close()
    vllm_model.cache_clear()
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    freed = session.freed
    assert freed.before.rss_bytes > 1e9
    assert freed.after.processes == 0
    assert not freed.forced


def test_heads_that_vllm_cannot_do_are_named(tmp_path: Path) -> None:
    need_vllm()
    folder = model_with_heads_of(24, tmp_path / "heads-of-24")
    with wb.load(folder, engine="vllm", dtype="fp32", context=128, threads=1) as model:
        processes = model._session.server.processes()
        with pytest.raises(ChildDiedError, match="no attention for heads of 24 values"):
            model.ask("Hello", max_tokens=4)
        with pytest.raises(EngineError, match="heads of 24"):
            model.ask("Again", max_tokens=4)
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def model_with_heads_of(size: int, folder: Path) -> Path:
    """Write a Llama of random weights with the embedded model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=2816,
        hidden_size=2 * size,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=size,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    for path in shipped("data", "tiny-chat").iterdir():
        if path.name.startswith(("token", "special", "chat_template")):
            shutil.copy(path, folder / path.name)
    return folder
