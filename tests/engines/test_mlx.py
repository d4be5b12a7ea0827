"""The engine mlx: what it loads, quantizes and refuses, its prefix reuse and its threads."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import open_model

import workbench as wb
from workbench.engines.mlx_choice import MlxChoice
from workbench.engines.mlx_config import with_old_names
from workbench.engines.mlx_prefix import KeptPrompt
from workbench.engines.model import Model
from workbench.errors import FormatError, InputError, UnsupportedError
from workbench.messages import Sampling
from workbench.paths import shipped

mx = pytest.importorskip("mlx.core")
STORY = "Tell me a story."


@pytest.fixture
def mlx(opened: Callable[..., Model]) -> Model:
    return opened("mlx", False)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """Copy the embedded model with changes to its config; None removes a key."""

    def make(name: str = "copied", **changes: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=lambda *_: ["builder"])
        file = folder / "config.json"
        config = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        return folder

    return make


def test_greedy_replies_and_scores_equal_those_of_transformers(
    mlx: Model, opened: Callable[..., Model]
) -> None:
    exact = opened("transformers", False)
    text = "A happy cat lived in a house. What is 12 + 7? 12 + 7 = 19 こんにちは。" * 3
    assert mlx.tokenize(text) == exact.tokenize(text)
    ids = exact.tokenize(text)
    np.testing.assert_allclose(mlx.log_probabilities(ids), exact.log_probabilities(ids), atol=2e-3)
    for question in ("What is 3 + 4?", STORY, "こんにちは", "How do you say cat in Japanese?"):
        assert mlx.prompt_ids(question) == exact.prompt_ids(question)
        one, other = mlx.ask(question, max_tokens=32), exact.ask(question, max_tokens=32)
        assert (one.token_ids, one.text) == (other.token_ids, other.text)
        assert one.finish_reason == other.finish_reason


def test_candidates_are_those_of_the_raw_logits(mlx: Model) -> None:
    prompt = mlx.prompt_ids(STORY)
    settings = {"max_tokens": 4, "temperature": 2.0, "seed": 5, "top_logprobs": 3}
    pieces = [piece for piece in mlx.stream(STORY, **settings) if piece.token_id is not None]
    table = mlx.log_probabilities([*prompt, *[piece.token_id for piece in pieces]])
    for place, piece in enumerate(pieces):
        row = table[len(prompt) - 1 + place]
        assert piece.logprob == pytest.approx(row[piece.token_id], abs=2e-3)
        assert [each.token_id for each in piece.top] == np.argsort(-row)[:3].tolist()
        assert [each.logprob for each in piece.top] == pytest.approx(sorted(row)[:-4:-1], abs=2e-3)


# Choosing


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.8},
    ],
    ids=str,
)
def test_the_cut_is_that_of_transformers(settings: dict[str, Any]) -> None:
    import torch

    from workbench.engines.choice import _processors

    logits = np.random.default_rng(0).normal(0, 3, 200).astype(np.float32)
    sampling, prompt = Sampling(**settings), [3, 3, 50, int(logits.argmax())]
    processed = _processors(sampling)(torch.tensor([prompt]), torch.tensor(logits)[None])
    expected = torch.softmax(processed[0], -1).numpy()
    choice = MlxChoice(sampling, prompt, len(logits))
    drawn: list[Any] = []
    keep = choice._cut
    choice._cut = lambda scores: drawn.append(keep(scores)) or drawn[-1]  # type: ignore[method-assign]
    choice(mx.array(logits))
    np.testing.assert_allclose(np.array(mx.softmax(drawn[0])), expected, atol=1e-6)
    assert (expected == 0).sum() == np.isneginf(np.array(drawn[0])).sum()


def test_the_penalty_counts_what_was_chosen() -> None:
    choice = MlxChoice(Sampling(repetition_penalty=2.0), [0], 4)
    logits = mx.array([1.9, 1.8, 1.2, -3.0])
    assert [int(choice(logits)) for _ in range(3)] == [1, 2, 0]


def test_a_seed_draws_alike_past_a_row_of_keys_and_whatever_else_draws() -> None:
    logits = mx.zeros(1000)

    def draw(seed: int) -> list[int]:
        choice = MlxChoice(Sampling(temperature=1.0, seed=seed), [], 1000)
        return [int(choice(logits)) for _ in range(300)]

    first = draw(7)
    mx.random.uniform(shape=(5,))
    assert draw(7) == first
    assert draw(8) != first
    assert len(set(first[256:])) > 30  # the second row of keys is not one key


# Forms


@pytest.mark.parametrize(("name", "bits", "share"), [("4bit", 4, 0.3), ("8bit", 8, 0.01)])
def test_quantized_on_load_it_stays_close_and_is_small(
    name: str, bits: int, share: float, opened: Callable[..., Model]
) -> None:
    exact = opened("transformers", False)
    ids = exact.prompt_ids(STORY) + exact.tokenize("A happy cat lived in a house.")
    expected = exact.log_probabilities(ids).astype(np.float64)
    with open_model("mlx", quantization=name, dtype="bf16") as model:
        assert _packing(model) == (bits, 64, "affine")
        found = model.log_probabilities(ids)
        assert (np.exp(expected) * (expected - found)).sum(-1).mean() < share
        assert model.ask("What is 3 + 4?", max_tokens=8).text.startswith("3 + 4 = 7")
        held = sum(array.nbytes for _, array in _flat(model.raw.parameters()))
        assert held == _weights(model.plan)


def test_mxfp4_on_load(opened: Callable[..., Model]) -> None:
    with open_model("mlx", quantization="mxfp4", dtype="bf16") as model:
        assert _packing(model) == (4, 32, "mxfp4")
        assert model.ask("What is 3 + 4?", max_tokens=8).token_ids
        held = sum(array.nbytes for _, array in _flat(model.raw.parameters()))
        assert held == _weights(model.plan)


def _packing(model: Model) -> tuple[int, int, str]:
    layer = model.raw.model.layers[0].self_attn.q_proj
    return layer.bits, layer.group_size, layer.mode


def _flat(tree: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    return list(tree_flatten(tree))


def _weights(plan: Any) -> int:
    return sum(part.bytes for part in plan.estimate.parts if part.group == "weights")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision(dtype: str) -> None:
    with open_model("mlx", dtype=dtype) as model:
        wanted = {"bf16": mx.bfloat16, "fp16": mx.float16}[dtype]
        assert {array.dtype for _, array in _flat(model.raw.parameters())} == {wanted}
        assert model.ask("What is 3 + 4?", max_tokens=8).text == "3 + 4 = 7"


def test_a_folder_that_mlx_quantized_is_found_by_its_config(tmp_path: Path) -> None:
    from mlx_lm.utils import load, quantize_model, save

    source = shipped("data", "tiny-chat")
    model, tokenizer, config = load(str(source), return_config=True)
    model, config = quantize_model(model, config, 64, 8)
    folder = tmp_path / "no-hint-in-this-name"
    save(folder, str(source), model, tokenizer, config)
    with wb.load(folder, engine="mlx") as packed, open_model("mlx", quantization="8bit") as made:
        assert packed.raw.model.layers[0].self_attn.q_proj.bits == 8
        ids = made.prompt_ids(STORY)
        assert packed.prompt_ids(STORY) == ids
        np.testing.assert_allclose(packed.score(ids), made.score(ids), atol=0.6)
        assert packed.ask("What is 3 + 4?", max_tokens=8).text == "3 + 4 = 7"
    with pytest.raises((InputError, UnsupportedError), match=r"mlx|already"):
        wb.load(folder, engine="mlx", quantization="4bit")


def test_layers_that_the_group_does_not_divide_are_told(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    def made(name: str, hidden: int, wide: int) -> Path:
        folder = tmp_path / name
        shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=lambda *_: ["builder"])
        config = LlamaConfig(
            hidden_size=hidden, intermediate_size=wide, num_hidden_layers=1, vocab_size=2816,
            num_attention_heads=2, num_key_value_heads=2, head_dim=48,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        return folder

    odd = made("odd", 96, 128)
    with pytest.warns(UserWarning, match=r"8 of 9 layers of odd .* 64 does not divide"):
        model = wb.load(odd, engine="mlx", quantization="4bit")
    with model:
        assert model.raw.model.layers[0].mlp.down_proj.bits == 4
        assert not hasattr(model.raw.model.layers[0].mlp.up_proj, "bits")
    with pytest.raises(UnsupportedError, match=r"No layer of none .* 64 does not divide"):
        wb.load(made("none", 96, 96), engine="mlx", quantization="4bit")


# What it refuses


def test_an_architecture_that_mlx_lm_lacks_is_named(copy: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="does not know the architecture 'nonesuch'"):
        wb.load(copy(model_type="nonesuch"), engine="mlx", force=True)


def test_code_of_the_models_own_is_not_run(copy: Callable[..., Path]) -> None:
    folder = copy(model_file="own.py")
    (folder / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UnsupportedError, match=r"own\.py.*trust_remote_code"):
        wb.load(folder, engine="mlx")


def test_damaged_and_missing_weights_are_format_errors(copy: Callable[..., Path]) -> None:
    from safetensors.numpy import load_file, save_file

    folder = copy("short")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=r"model\.norm\.weight"):
        wb.load(folder, engine="mlx")


def test_the_import_leaves_the_limit_of_open_files() -> None:
    import subprocess
    import sys

    script = (
        "import resource; before = resource.getrlimit(resource.RLIMIT_NOFILE);"
        "from workbench.engines.registry import engine; engine('mlx');"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == before;"
        "assert resource.setrlimit.__module__ == 'resource'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


# Configs


def test_rotary_settings_of_transformers_5_are_found() -> None:
    llama = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}
    assert with_old_names({"rope_parameters": llama}) == {
        "rope_theta": 5e5,
        "rope_scaling": {**llama, "type": "llama3"},
    }
    assert with_old_names({"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 9.0}) == {}
    layered = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    found = with_old_names({"text_config": {"rope_parameters": layered, "model_type": "g"}})
    assert found["text_config"]["rope_theta"] == 1e6
    assert found["text_config"]["rope_local_base_freq"] == 1e4
    assert found["text_config"]["rope_scaling"]["factor"] == 8.0
    assert found["text_config"]["model_type"] == "g"


def test_another_base_of_rotation_is_honoured(copy: Callable[..., Path]) -> None:
    rope = {"rope_type": "default", "rope_theta": 777.0}
    folder = copy(rope_theta=None, rope_parameters=rope)
    with (
        wb.load(folder, engine="mlx", dtype="fp32") as one,
        wb.load(folder, engine="transformers", dtype="fp32", threads=1) as two,
    ):
        ids = one.prompt_ids(STORY) + one.tokenize("A happy cat lived in a house by the sea.")
        np.testing.assert_allclose(one.score(ids), two.score(ids), atol=2e-3)


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
    read = session._read

    def counted(ids: list[int], cache: Any) -> Any:
        fed.append(len(ids))
        return read(ids, cache)

    monkeypatch.setattr(session, "_read", counted)
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
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path / "gemma"
    shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=lambda *_: ["builder"])
    config = Gemma3TextConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, vocab_size=2816, head_dim=32,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=window, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=2048, sliding_window_pattern=2, query_pre_attn_scalar=32,
    )  # fmt: skip
    Gemma3ForCausalLM(config).save_pretrained(folder)
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


def test_private_arrays_of_layers_are_computed_on_load(copy: Callable[..., Path]) -> None:
    """Those of scaled rotary embeddings are no parameters, and were left to the loading thread."""
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 512}  # fmt: skip
    folder = copy(rope_theta=None, rope_parameters=rope)
    models: list[Model] = []
    thread = threading.Thread(
        target=lambda: models.append(wb.load(folder, engine="mlx", dtype="fp32"))
    )
    thread.start()
    thread.join(300)
    with models[0] as one, wb.load(folder, engine="transformers", dtype="fp32", threads=1) as two:
        ids = one.prompt_ids(STORY)
        np.testing.assert_allclose(one.score(ids), two.score(ids), atol=2e-3)


# Closing


def test_closing_gives_back_what_mlx_holds() -> None:
    before = mx.get_active_memory()
    model = open_model("mlx")
    model.ask(STORY, max_tokens=4)
    assert mx.get_active_memory() > before + 15_000_000
    model.close()
    assert mx.get_active_memory() <= before + 1_000_000
    assert mx.get_cache_memory() <= 1_000_000
