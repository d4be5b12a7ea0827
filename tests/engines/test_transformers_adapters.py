"""LoRA adapters on a loaded model: switched, taken off, refused; and log-probabilities."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import open_model
from random_models import random_model, tiny_chat

from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import EngineError, FormatError, InputError, UnsupportedError, WorkbenchError
from workbench.messages import Sampling

STORY = "Tell me a story about a cat and a dog in a house."
SETTINGS = Sampling(max_tokens=24)


def write_adapter(base: Any, folder: Path, *, seed: int, rank: int = 4) -> Path:
    """Write a LoRA of strong random weights for a model in memory, which stays as it is."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=rank, lora_alpha=96, target_modules=targets, init_lora_weights=False)
    get_peft_model(copy.deepcopy(base), config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(str(tiny_chat()))
    folder = tmp_path_factory.mktemp("adapters")
    return (
        write_adapter(base, folder / "one", seed=1),
        write_adapter(base, folder / "two.v2", seed=2, rank=8),
    )


@pytest.fixture
def switching() -> Any:
    with open_model("transformers") as model:
        yield model


def answers(model: Model) -> tuple[tuple[int, ...], list[tuple[int, ...]], list[float]]:
    """What one ask, a batch and a score say."""
    many = model.ask_many([STORY, "What is 3 + 4?"], SETTINGS)
    scores = model.score(model.prompt_ids(STORY)).tolist()
    return model.ask(STORY, SETTINGS).token_ids, [reply.token_ids for reply in many], scores


def test_switched_adapters_answer_like_freshly_loaded_ones(
    switching: Model, adapters: tuple[Path, Path], shows: Callable[..., None]
) -> None:
    expected = {None: answers(switching)}
    for folder in adapters:
        with open_model("transformers", adapter=folder) as fresh:
            expected[folder] = answers(fresh)
            assert type(fresh.raw).__name__.startswith("PeftModel")
    assert len({found[0] for found in expected.values()}) == 3
    one, two = adapters
    for folder in (one, None, two, one, two, None, None, one):
        switching.use_adapter(folder)
        ids, many, scores = answers(switching)
        assert ids == expected[folder][0] == many[0]
        assert many == expected[folder][1]
        np.testing.assert_allclose(scores, expected[folder][2], atol=1e-4)
        assert switching.plan.adapter == folder
    switching.use_adapter(None)
    assert type(switching.raw).__name__ == "LlamaForCausalLM"
    shows(switching, Power.ADAPTERS)


def test_an_adapter_is_loaded_once(
    switching: Model, adapters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = adapters
    for folder in (one, two):
        switching.use_adapter(folder)
    session = switching._session
    monkeypatch.setattr(
        type(session._adapters), "_load", lambda *_: pytest.fail("it was loaded again")
    )
    switching.use_adapter(None)
    switching.use_adapter(one)
    switching.use_adapter(two)


def test_a_switch_forgets_the_kept_keys_and_values(
    switching: Model, adapters: tuple[Path, Path]
) -> None:
    base = switching.ask(STORY, SETTINGS).token_ids
    assert switching._session.prefix.tokens > 16
    switching.use_adapter(adapters[0])
    assert switching._session.prefix.tokens == 0
    adapted = switching.ask(STORY, SETTINGS).token_ids
    switching.use_adapter(None)
    assert switching.ask(STORY, SETTINGS).token_ids == base != adapted


def test_an_adapter_that_was_trained_again_is_read_again(
    switching: Model, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    import os

    own = tmp_path / "own"
    shutil.copytree(adapters[0], own)
    switching.use_adapter(own)
    first = switching.ask(STORY, SETTINGS).token_ids
    for file in adapters[1].iterdir():
        shutil.copy(file, own / file.name)
    os.utime(own / "adapter_model.safetensors", (1, 1))
    switching.use_adapter(own)
    assert switching.ask(STORY, SETTINGS).token_ids != first
    assert len(switching._session._model.peft_config) == 1


def test_what_does_not_fit_is_refused_and_changes_nothing(
    switching: Model, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    alien = write_adapter(random_model("llama"), tmp_path / "alien", seed=3)
    more = tmp_path / "more"
    shutil.copytree(adapters[0], more)
    rename(more, "layers.0.", "layers.99.")
    pickled, broken, prompt = tmp_path / "pickled", tmp_path / "broken", tmp_path / "prompt"
    for folder in (pickled, broken, prompt):
        shutil.copytree(adapters[0], folder)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    (broken / "adapter_model.safetensors").write_bytes(b"sour")
    config = json.loads((prompt / "adapter_config.json").read_text())
    (prompt / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "PROMPT_TUNING"}))
    before = switching.ask(STORY, SETTINGS).token_ids
    refused: list[tuple[Path, type[WorkbenchError], str]] = [
        (alien, InputError, "made for another model.*puts here"),
        (more, InputError, "layers.99.*not in it"),
        (pickled, FormatError, "holds no adapter_model.safetensors"),
        (broken, FormatError, "cannot be read"),
        (prompt, UnsupportedError, "PROMPT_TUNING"),
        (tmp_path / "nowhere", InputError, "holds no adapter"),
    ]
    for current in (None, adapters[0]):
        switching.use_adapter(current)
        here = switching.ask(STORY, SETTINGS).token_ids
        assert (here == before) == (current is None)
        for folder, error, reason in refused:
            with pytest.raises(error, match=reason):
                switching.use_adapter(folder)
            assert switching.ask(STORY, SETTINGS).token_ids == here
            assert switching.plan.adapter == current


def rename(folder: Path, old: str, new: str) -> None:
    from safetensors.numpy import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace(old, new): value for name, value in tensors.items()}, file)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_are_read_once_at_the_beginning(kind: str, tmp_path: Path) -> None:
    import torch

    folder = write_virtual(kind, tmp_path / kind)
    with open_model("transformers", adapter=folder) as model:
        peft = model.raw
        prompt = model.prompt_ids(STORY)
        ids, logs = list(prompt), []
        with torch.inference_mode():
            while len(ids) < len(prompt) + 12:  # all of it anew for each token
                logits = peft(input_ids=torch.tensor([ids]), use_cache=kind == "prefix").logits
                logs.append(torch.log_softmax(logits[0, -1], -1).max().item())
                ids.append(int(logits[0, -1].argmax()))
            whole = peft(input_ids=torch.tensor([prompt]), use_cache=kind == "prefix").logits[0]
        found = model.ask(STORY, max_tokens=12, ignore_end=True, top_logprobs=1)
        assert list(found.token_ids) == ids[len(prompt) :]
        np.testing.assert_allclose([each[0] for each in found.logprobs], logs, atol=1e-4)
        many = model.ask_many([STORY, "Hi."], max_tokens=12, ignore_end=True)
        assert many[0].token_ids == found.token_ids
        expected = torch.log_softmax(whole[-len(prompt) : -1], -1)
        expected = expected.gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
        np.testing.assert_allclose(model.score(prompt), expected.numpy(), atol=1e-3)
        del peft
    with open_model("transformers") as base:
        assert abs(base.ask(STORY, max_tokens=1, top_logprobs=1).logprobs[0][0] - logs[0]) > 1e-3


def write_virtual(kind: str, folder: Path) -> Path:
    """Write an adapter of eight random virtual tokens."""
    import torch
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    kinds = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(str(tiny_chat()))
    made = get_peft_model(base, kinds[kind](task_type="CAUSAL_LM", num_virtual_tokens=8))
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=2.0)
    made.save_pretrained(str(folder))
    return folder


def test_weights_that_are_pickled_are_never_read(tmp_path: Path) -> None:
    folder = write_virtual("prompt", tmp_path / "virtual")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FormatError, match=r"adapter_model\.bin may run code"):
        open_model("transformers", adapter=folder)


def test_candidates_are_those_of_the_raw_logits(switching: Model) -> None:
    prompt = switching.prompt_ids(STORY)
    for settings in (
        {},
        {"temperature": 1.3, "seed": 4, "top_k": 5},
        {"repetition_penalty": 3.0},
        {"ignore_end": True},
    ):
        sampling = Sampling(max_tokens=16, top_logprobs=4, **settings)
        for reply in (
            switching.ask(STORY, sampling),
            switching.ask_many(["What is 3 + 4?", STORY], sampling)[1],
        ):
            table = switching.log_probabilities([*prompt, *reply.token_ids])[len(prompt) - 1 :]
            assert len(reply.logprobs) == len(reply.token_ids) > 3
            for row, token, (own, top) in zip(table, reply.token_ids, reply.logprobs, strict=True):
                assert own == pytest.approx(row[token], abs=1e-4)
                assert [each.token_id for each in top] == np.argsort(-row)[:4].tolist()
                assert [each.logprob for each in top] == pytest.approx(
                    (-np.sort(-row)[:4]).tolist(), abs=1e-4
                )
                for each in top:
                    assert each.token_id is not None
                    shown = switching.detokenize([each.token_id]).decode("utf-8", "replace")
                    assert each.text == ("" if each.token_id in (0, 1, 2) else shown)
    plain = switching.ask(STORY, SETTINGS)
    assert plain.logprobs == ()
    assert plain.token_ids == switching.ask(STORY, SETTINGS, top_logprobs=2).token_ids
    assert Power.LOGPROBS in switching.powers


def test_a_session_without_a_token_has_no_candidates(switching: Model) -> None:
    with pytest.raises(EngineError):
        switching._session._likelihood()
