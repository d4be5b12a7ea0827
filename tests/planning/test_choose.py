"""Plans for machines that one does not have: what is taken, what is kept, which rules hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import workbench as wb
from workbench.catalog import Card, locate, resolve
from workbench.engines.server_command import command_for
from workbench.errors import InputError
from workbench.paths import shipped
from workbench.planning import Plan
from workbench.planning.policy import rules


def planned(model: str | Card, machine: str, **given: Any) -> Plan:
    return wb.plan(model, machine=machine, **given)


def check(found: Plan) -> Plan:
    """Check what holds of every plan that fits."""
    assert found.fits, str(found)
    assert found.estimate is not None
    assert all(need.needed_bytes <= need.usable_bytes for need in found.needs)
    assert found.changes == ()
    assert found.reasons
    return found


# Expert judgements


def test_32b_on_a_gpu_of_24_gb_is_4_bit_whole_on_the_gpu() -> None:
    found = check(planned("qwen2.5-32b-instruct", "24GB-cuda"))
    assert (found.engine, found.quantization, found.gpu_layers) == ("llama.cpp", "Q4_K_M", -1)
    assert found.device == "cuda"
    assert found.context == 8192
    assert found.repository == "bartowski/Qwen2.5-32B-Instruct-GGUF"
    assert any("bf16" in said for said in found.considered)
    assert any("Q5_K_M" in said for said in found.considered)


def test_70b_is_shared_by_two_gpus() -> None:
    found = check(planned("llama-3.3-70b-instruct", "2x24GB-cuda"))
    assert found.tensor_parallel == 2
    assert found.gpu_layers == -1
    assert rules().rank(found.quantization) == rules().rank("Q4_K_M")
    if found.engine == "transformers":
        assert set(found.max_memory) == {"0", "1"}


def test_gpt_oss_on_a_mac_of_16_gb_keeps_its_own_4_bit() -> None:
    found = check(planned("gpt-oss-20b", "16GB-mac"))
    assert (found.engine, found.device) == ("llama.cpp", "mps")
    assert found.quantization == "MXFP4"
    ram = next(need for need in found.needs if need.place == "RAM")
    assert ram.needed_bytes > 11 * 2**30  # what the GPU holds counts as RAM too: one memory


def test_7b_on_a_cpu_reads_no_more_bytes_than_are_worth_it() -> None:
    found = check(planned("qwen2.5-7b-instruct", "cpu-32GB"))
    assert (found.engine, found.quantization, found.device) == ("llama.cpp", "Q8_0", "cpu")
    assert found.gpu_layers == 0
    assert found.flash_attention is None


def test_a_trillion_parameters_do_not_fit_and_three_ways_out_are_named() -> None:
    found = planned("kimi-k2-instruct", "1x141GB-cuda")
    assert found.fits is False
    assert len(found.changes) == 3
    assert any(need.short_bytes for need in found.needs)


def test_a_small_model_on_a_large_gpu_is_not_quantized() -> None:
    found = check(planned("qwen2.5-7b-instruct", "24GB-cuda"))
    assert (found.engine, found.quantization, found.dtype) == ("transformers", "none", "bf16")
    assert found.considered == ()


def test_dense_layers_go_to_the_ram_only_where_nothing_good_fits_whole() -> None:
    found = check(planned("qwen2.5-32b-instruct", "12GB-cuda+64GB-ram"))
    assert found.engine == "llama.cpp"
    assert found.quantization == "Q4_K_M"
    layers = 64
    assert 0 < found.gpu_layers < layers
    more = planned(
        "qwen2.5-32b-instruct",
        "12GB-cuda+64GB-ram",
        engine="llama.cpp",
        quantization="Q4_K_M",
        gpu_layers=found.gpu_layers + 1,
        context=found.context,
        cache_type="f16",
    )
    assert more.fits is False  # as many layers on the GPU as it holds


def test_experts_go_to_the_ram_before_layers_do() -> None:
    found = check(planned("qwen3-30b-a3b", "12GB-cuda+64GB-ram", engine="llama.cpp"))
    assert found.experts_on_cpu > 0
    assert found.gpu_layers == -1
    fewer = planned(
        "qwen3-30b-a3b",
        "12GB-cuda+64GB-ram",
        engine="llama.cpp",
        quantization=found.quantization,
        experts_on_cpu=found.experts_on_cpu - 1,
        context=found.context,
        cache_type="f16",
    )
    assert fewer.fits is False


def test_below_the_floor_only_where_nothing_above_it_fits() -> None:
    found = check(planned("qwen2.5-32b-instruct", "cpu-16GB"))
    assert rules().rank(found.quantization) > rules().rank("Q4_K_M")
    larger = check(planned("qwen2.5-32b-instruct", "cpu-32GB"))
    assert found.estimate.total(None) < larger.estimate.total(None)
    assert rules().rank(larger.quantization) <= rules().rank("Q4_K_M")


# Rules of dtypes and packed weights


def test_a_gpu_without_bf16_computes_in_fp16() -> None:
    old = check(planned("qwen2.5-7b-instruct", "24GB-cuda-turing"))
    new = check(planned("qwen2.5-7b-instruct", "24GB-cuda-ampere"))
    assert (old.dtype, new.dtype) == ("fp16", "bf16")
    assert any("has no bf16" in said for said in old.reasons)
    four = planned(
        "qwen2.5-7b-instruct", "24GB-cuda-turing", engine="transformers", quantization="nf4"
    )
    assert four.dtype == "fp16"


def test_awq_computes_in_fp16_and_says_what_it_needs() -> None:
    found = check(planned("qwen2.5-32b-instruct-awq", "24GB-cuda"))
    assert (found.engine, found.quantization, found.dtype) == ("transformers", "none", "fp16")
    assert any("gptqmodel" in said for said in found.reasons)
    assert any("AWQ" in said for said in found.reasons)


def test_mxfp4_computes_in_bf16_only() -> None:
    found = check(planned("gpt-oss-20b", "24GB-cuda", engine="transformers"))
    assert found.dtype == "bf16"
    packed = found.estimate.weights
    assert packed < 15e9
    with pytest.raises(wb.WorkbenchError, match="mxfp4 weights do not compute in fp16"):
        planned("gpt-oss-20b", "24GB-cuda", engine="transformers", dtype="fp16")


def test_packed_weights_are_not_packed_on_metal() -> None:
    found = check(planned("gpt-oss-20b", "128GB-mac", engine="transformers"))
    assert found.estimate.weights > 41e9  # 20.9 billion parameters of 2 bytes
    assert any("unpacked to 16 bit" in said for said in found.reasons)
    calibrated = check(planned("qwen2.5-32b-instruct-awq", "128GB-mac"))
    assert calibrated.device == "mps"
    assert calibrated.estimate.weights > 65e9
    assert planned("qwen2.5-32b-instruct-awq", "32GB-mac", device="mps").fits is False


def test_older_engines_and_gpus_get_no_bf16_for_packed_weights() -> None:
    from workbench.catalog.capabilities import EngineFacts
    from workbench.planning.forms import packed_dtype
    from workbench.planning.room import room_of

    facts = EngineFacts(
        name="vllm", formats=("safetensors",), dtypes=("bf16", "fp16"), devices=("cuda",)
    )
    room = room_of("24GB-cuda", rules=rules())
    assert packed_dtype(facts, "awq", room, rules()) == "fp16"
    for version, dtypes in (("0.32.0", {"bf16", "fp16"}), ("0.31.2", {"fp16"})):
        machine = room.machine.model_copy(update={"versions": {"vllm": version}})
        there = dataclasses.replace(room, machine=machine)
        assert packed_dtype(facts, "awq", there, rules()) in dtypes
    old = room_of("24GB-cuda-turing", rules=rules())
    assert packed_dtype(facts, "mxfp4", old, rules()) is None


# The policy by size


@pytest.mark.parametrize(
    ("model", "quantization", "dtype"),
    [
        ("qwen2.5-32b-instruct", "nf4", "fp16"),
        ("calm3-22b-chat", "int8", "bf16"),
        ("qwen2.5-14b-instruct", "int8", "fp16"),
        ("llama-3.2-3b-instruct", "none", "bf16"),
    ],
)
def test_by_size(model: str, quantization: str, dtype: str) -> None:
    found = check(planned(model, "80GB-cuda", policy="by-size", engine="transformers"))
    assert (found.quantization, found.dtype, found.policy) == (quantization, dtype, "by-size")


def test_by_size_takes_gptq_where_there_is_such_a_form_and_an_engine_for_it() -> None:
    found = check(
        planned("qwen2.5-14b-instruct", "80GB-cuda", engine="transformers", quantization="gptq-8")
    )
    assert found.repository == "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int8"
    assert found.dtype == "fp16"
    half = planned("qwen2.5-14b-instruct", "80GB-cuda", engine="transformers", quantization="gptq")
    assert half.repository == "Qwen/Qwen2.5-14B-Instruct-GPTQ-Int4"
    assert half.estimate.weights < 0.65 * found.estimate.weights


def test_by_size_has_a_counterpart_in_gguf() -> None:
    found = planned("qwen2.5-32b-instruct", "24GB-cuda", policy="by-size", engine="llama.cpp")
    assert found.quantization == "Q4_K_M"


# What the user gives is kept


@pytest.mark.parametrize(
    "given",
    [
        {"engine": "transformers"},
        {"engine": "llama.cpp"},
        {"quantization": "Q6_K"},
        {"quantization": "nf4"},
        {"dtype": "fp16", "engine": "transformers"},
        {"context": 3000},
        {"batch": 3},
        {"device": "cpu"},
        {"gpu_layers": 7, "engine": "llama.cpp"},
        {"experts_on_cpu": 5, "engine": "llama.cpp"},
        {"cache_type": "q4_0", "engine": "llama.cpp"},
        {"tensor_parallel": 2},
        {"threads": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("machine", ["2x24GB-cuda", "8GB-cuda"])
def test_what_is_given_is_kept(given: dict[str, Any], machine: str) -> None:
    model = "qwen3-30b-a3b" if "experts_on_cpu" in given else "qwen2.5-7b-instruct"
    found = planned(model, machine, **given)
    for name, value in given.items():
        assert getattr(found, name) == value, name
    assert found.fits is not None


def test_the_context_shrinks_only_where_none_was_given() -> None:
    wide = planned("calm3-22b-chat", "16GB-cuda+16GB-ram")
    assert wide.context <= 8192
    kept = planned("calm3-22b-chat", "16GB-cuda+16GB-ram", context=8192)
    assert kept.context == 8192


def test_a_larger_margin_never_takes_more() -> None:
    sizes = []
    for margin in (0.0, 0.1, 0.3):
        found = planned("qwen2.5-14b-instruct", "16GB-cuda", margin=margin)
        sizes.append(found.estimate.total("device"))
        assert found.estimate.total("device") <= 16 * 2**30 * (1 - margin)
    assert sizes == sorted(sizes, reverse=True)


def test_a_plan_for_this_machine_needs_installed_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from workbench.planning import forms

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else original(name)
    )
    assert wb.plan("tiny-chat").engine == "transformers"
    with pytest.raises(wb.WorkbenchError, match=r"llm-workbench\[llama\]"):
        wb.plan("tiny-chat", engine="llama.cpp")
    assert planned("qwen2.5-32b-instruct", "24GB-cuda").engine == "llama.cpp"
    assert not forms.is_gpu_built()


def test_a_server_is_chosen_by_name_only() -> None:
    assert planned("qwen2.5-7b-instruct", "24GB-cuda").engine in ("transformers", "llama.cpp")
    found = check(planned("qwen2.5-7b-instruct", "24GB-cuda", engine="vllm"))
    assert (found.engine, found.quantization) == ("vllm", "none")
    # what its server is told as kv_cache_memory_bytes: a share would count what others hold
    assert found.estimate.cache >= 8192 * 57344
    two = check(planned("qwen2.5-32b-instruct", "2x80GB-cuda", engine="vllm", tensor_parallel=2))
    one = check(planned("qwen2.5-32b-instruct", "2x80GB-cuda", engine="vllm"))
    assert two.tensor_parallel == 2
    assert two.estimate.weights < 0.6 * one.estimate.weights
    assert two.needs[0].needed_bytes > one.needs[0].needed_bytes  # two runtimes beside the halves


def test_each_slot_of_llama_server_has_a_whole_context() -> None:
    given: dict[str, Any] = {"quantization": "Q4_K_M", "context": 4096, "machine": "24GB-cuda"}

    def served(**more: Any) -> Plan:
        return wb.plan("qwen2.5-7b-instruct", engine="llama-server", **given, **more)

    one = wb.plan("qwen2.5-7b-instruct", engine="llama.cpp", **given).estimate
    assert one is not None
    for more, slots in (({}, 4), ({"parallel": 1}, 1), ({"parallel": 6}, 6), ({"batch": 7}, 7)):
        found = served(**more)
        assert found.estimate is not None
        assert found.estimate.cache == slots * one.cache
        assert found.estimate.weights == one.weights
        assert found.batch == more.get("batch", 1)
        assert any(f"(parallel={slots})" in said for said in found.reasons)
        files = locate(resolve("tiny-chat"))
        words = command_for(dataclasses.replace(found, files=files)).words
        assert words[words.index("--parallel") + 1] == str(slots)
        assert words[words.index("--ctx-size") + 1] == str(slots * 4096)
    much = served(parallel=200, device="cuda")
    assert not much.fits
    assert "parallel=50 instead of 200." in much.changes
    assert served(parallel=50, device="cuda").fits
    assert not served(parallel=100, device="cuda").fits
    with pytest.raises(InputError, match="parallel must be 1 or more"):
        served(parallel=0)


def test_sliding_layers_of_llama_server_hold_their_window_only() -> None:
    given: dict[str, Any] = {"quantization": "Q4_K_M", "context": 8192, "machine": "24GB-cuda"}
    served = wb.plan("gemma-3-4b-it", engine="llama-server", parallel=1, **given).estimate
    whole = wb.plan("gemma-3-4b-it", engine="llama.cpp", **given).estimate
    small = wb.plan("gemma-3-4b-it", engine="llama.cpp", swa_full=False, **given).estimate
    assert served is not None
    assert whole is not None
    assert small is not None
    assert served.cache == small.cache < whole.cache


def test_a_gguf_under_transformers_needs_the_ram_that_it_is_unpacked_in() -> None:
    given: dict[str, Any] = {"engine": "transformers", "quantization": "Q4_K_M", "context": 2048}
    found = planned("llama-3.1-8b-instruct", "24GB-cuda+16GB-ram", **given)
    (ram,) = [need for need in found.needs if need.place == "RAM"]
    assert ram.needed_bytes > 2 * 8.03e9  # 16 bits of every weight, in RAM and on the device
    assert found.fits is False
    assert found.estimate is not None
    part = found.estimate.part("unpacking in RAM")
    assert part is not None
    assert part.place == "host"
    assert check(planned("llama-3.1-8b-instruct", "24GB-cuda+32GB-ram", **given)).device == "cuda"
    for machine, plain in (("32GB-cpu", given), ("24GB-cuda", {**given, "quantization": "none"})):
        other = planned("llama-3.1-8b-instruct", machine, **plain).estimate
        assert other is not None
        assert other.part("unpacking in RAM") is None


def test_a_card_that_only_names_a_folder_is_planned_like_the_folder() -> None:
    folder = shipped("data", "tiny-chat")
    told = wb.plan(Card(id="x", path=str(folder), tasks=("chat",)))
    found = wb.plan(folder)
    assert (told.quantization, told.dtype, told.context) == ("none", found.dtype, found.context)
