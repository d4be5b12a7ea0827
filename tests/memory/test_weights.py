"""Bytes of weights: against live tensors, mlx-lm, saved files, and layouts written out by hand."""

from pathlib import Path
from typing import Any

import oracle_mlx
import pytest
from test_shapes import one_of_each_family, shortened

from workbench.catalog import catalog, resolve
from workbench.catalog.card import StoredForm
from workbench.catalog.header import read_header
from workbench.catalog.shapes import Shape, ShapeList, shapes
from workbench.errors import UnsupportedError
from workbench.memory.estimate import Part
from workbench.memory.weight_bytes import stored_as
from workbench.memory.weight_form import NAMES, WeightForm, weight_form
from workbench.memory.weights import stored_parts, weigh, weight_parts

GB = 1e9
NOT_IN_MLX = ("bert", "idefics3")


def weights_of(card: str, quantization: str | None = None, **given: Any):
    return weigh(shapes(catalog()[card].architecture), weight_form(quantization, **given))


def part(parts: tuple[Part, ...], name: str, place: str = "device") -> int:
    return sum(each.bytes for each in parts if each.name == name and each.place == place)


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """tiny-chat as transformers and bitsandbytes load it on the CPU."""
    pytest.importorskip("bitsandbytes")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    forms: dict[str, dict[str, Any]] = {
        "nf4": four,
        "nf4-double": {**four, "bnb_4bit_use_double_quant": True},
        "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        "int8": {"load_in_8bit": True},
    }
    folder = resolve("tiny-chat").expanded_path()
    assert folder is not None
    return {
        name: AutoModelForCausalLM.from_pretrained(
            str(Path(__file__).parents[2] / folder),
            quantization_config=BitsAndBytesConfig(**form),
            dtype=torch.bfloat16,
        )
        for name, form in forms.items()
    }


@pytest.mark.parametrize("form", ["nf4", "nf4-double", "fp4", "int8"])
def test_bitsandbytes_holds_these_bytes(form: str, loaded: dict[str, Any]):
    seen = {
        tensor.data_ptr(): tensor.numel() * tensor.element_size()
        for parameter in loaded[form].parameters()
        for tensor in _all_of(parameter)
    }
    assert sum(seen.values()) == weights_of("tiny-chat", form).bytes


def _all_of(parameter: Any) -> list[Any]:
    state = getattr(parameter, "quant_state", None)
    found = [parameter.data]
    if state is not None:
        found += [state.absmax, state.code]
        if state.nested:
            found += [state.offset, state.state2.absmax, state.state2.code]
    if getattr(parameter, "SCB", None) is not None:
        found.append(parameter.SCB)
    return found


@pytest.mark.parametrize("form", ["nf4", "nf4-double", "fp4", "int8"])
def test_a_saved_model_is_counted_as_it_is_stored(
    form: str, loaded: dict[str, Any], tmp_path: Path
):
    loaded[form].save_pretrained(tmp_path)
    header = read_header(tmp_path)
    stored = sum(each.bytes for each in stored_parts(header))
    assert stored == sum(tensor.bytes for tensor in header.tensors)
    # Each quantized matrix has its quantization described in a hundred bytes besides.
    assert 0 <= stored - weights_of("tiny-chat", form).bytes <= 35 * 200
    again = weight_form(None, dtype="bf16", stored=header.stored)
    assert weigh(shapes(resolve("tiny-chat").architecture), again).bytes == (
        weights_of("tiny-chat", form).bytes
    )
    names = {each.name for each in stored_parts(header)}
    assert {"embedding", "attention", "feed-forward"} <= names


@pytest.mark.parametrize("kind", [k for k in one_of_each_family() if k not in NOT_IN_MLX])
def test_mlx_holds_these_bytes(kind: str):
    pytest.importorskip("mlx_lm")
    facts = shortened(one_of_each_family()[kind], layers=5)
    for name, bits, group, mode in (
        ("4bit", 4, 64, "affine"),
        ("8bit", 8, 64, "affine"),
        ("mxfp4", 4, 32, "mxfp4"),
    ):
        held = oracle_mlx.quantized_bytes(facts, bits=bits, group=group, mode=mode)
        ours = weigh(shapes(facts), weight_form(name, engine="mlx"))
        # DeepSeek's balancing bias: the loader keeps it in fp32, the oracle casts all to 16 bit.
        buffers = sum(2 * s.count for s in shapes(facts) if s.role == "exp_probs_b")
        assert ours.bytes - buffers == held, name


def test_layouts_written_out_by_hand():
    matrix, form = Shape("attn_q", 0, (4096, 1024), "linear"), WeightForm
    count = 4096 * 1024
    groups = 4096 * (1024 // 128)

    def size(shape: Shape, **given: Any) -> int:
        return stored_as(shape, form.of(given), "llama")[1]

    assert size(matrix) == 2 * count
    assert size(matrix, dtype="fp32") == 4 * count
    assert size(matrix, kind="int8") == count + 4 * 4096
    assert size(matrix, kind="nf4") == count // 2 + 4 * count // 64 + 16 * 4
    assert size(matrix, kind="awq", group_index=False) == count // 2 + groups * 2 + groups // 2
    gptq = count + groups * 2 + groups + 1024 * 4
    assert size(matrix, kind="gptq", bits=8) == gptq
    whole = {"kind": "gptq", "bits": 4, "group_size": -1, "group_index": False}
    assert size(matrix, **whole) == count // 2 + 4096 * 2 + 4096 // 2
    assert size(matrix, kind="fp8") == count + 4
    assert size(matrix, kind="fp8", scales="row") == count + 4 * 4096
    assert size(matrix, kind="fp8", block=(128, 128)) == count + 4 * 32 * 8
    odd = Shape("attn_kv_a_mqa", 0, (576, 7168), "linear")
    assert size(odd, kind="fp8", block=(128, 128)) == 576 * 7168 + 4 * 5 * 56
    experts = Shape("ffn_up_exps", 0, (32, 2880, 2880), "expert")
    assert size(experts, kind="mxfp4") == 32 * 2880 * 2880 // 32 * 17
    assert size(experts, kind="nf4") == 2 * experts.count
    assert size(matrix, kind="mxfp4") == 2 * count
    for kept in (
        Shape("token_embd", None, (100, 64), "embedding"),
        Shape("output", None, (100, 64), "output"),
        Shape("attn_norm", 0, (64,), "norm"),
        Shape("ffn_gate_inp", 0, (8, 64), "other"),
    ):
        for kind in ("nf4", "int8", "awq", "gptq", "fp8", "mxfp4"):
            assert size(kept, kind=kind) == 2 * kept.count, (kept, kind)


def test_published_and_stored_forms():
    card = catalog()["qwen2.5-32b-instruct-awq"]
    form = weight_form(None, dtype=card.dtype, stored=card.stored)
    assert form.kind == "awq"
    assert weigh(shapes(card.architecture), form).bytes / GB == pytest.approx(19.33, abs=0.01)
    kimi = catalog()["kimi-k2-instruct"]
    form = weight_form("none", dtype="bf16", stored=kimi.stored)
    assert form.block == (128, 128)
    assert weigh(shapes(kimi.architecture), form).bytes / GB == pytest.approx(1029, abs=1)


def test_gpt_oss_is_small_as_it_is_stored_and_large_without_kernels():
    card = catalog()["gpt-oss-20b"]
    found = shapes(card.architecture)
    sizes = {
        name: weigh(found, weight_form(name, stored=card.stored)).bytes
        for name in ("none", "bf16", "F16", "MXFP4_MOE")
    }
    unpacked = weigh(found, weight_form(None, stored=card.stored, unpacked=True)).bytes
    assert sizes["none"] / GB == pytest.approx(13.76, abs=0.01)
    assert unpacked == sizes["bf16"] == 2 * found.parameters()
    assert sizes["MXFP4_MOE"] / 2**30 == pytest.approx(11.27, abs=0.01)  # as published
    assert sizes["F16"] < 14 * GB  # the converter keeps the experts in MXFP4


def test_a_tied_embedding_counts_once_and_an_untied_one_twice():
    tied, untied = weights_of("qwen3-4b"), weights_of("qwen3-8b")
    assert part(tied.parts(), "output matrix") == 0
    assert tied.output == tied.embedding == 2 * 151936 * 2560
    assert part(untied.parts(), "output matrix") == 2 * 151936 * 4096


def test_llama_cpp_keeps_the_embedding_in_ram_and_a_tied_one_twice():
    weights = weights_of("gemma-3-4b-it", "Q4_K_M")
    gpu = weights.parts()
    table = weights.embedding
    assert part(gpu, "token embedding", "host") == table
    assert part(gpu, "output matrix") == table
    assert part(weights.parts(place="host"), "output matrix") == 0
    assert part(weights.parts(unified=True), "token embedding") == table
    assert part(weights.parts(unified=True), "output matrix") == 0
    assert part(gpu, "GGUF metadata", "host") > 1_000_000
    assert sum(each.bytes for each in weights.parts(place="host")) == (
        weights.bytes + weights.metadata
    )


@pytest.mark.parametrize("gpu_layers", [0, 1, 11, 33, 99])
def test_offloaded_layers_are_the_last_and_the_output_goes_first(gpu_layers: int):
    weights = weights_of("llama-3.1-8b-instruct", "Q4_K_M")
    assert len(weights.layers) == 32
    on_device = sum(each.bytes for each in weights.parts(gpu_layers=gpu_layers)
                    if each.place == "device")  # fmt: skip
    rest = weights.bytes - sum(weights.layers) - weights.embedding
    layers = min(max(gpu_layers - 1, 0), 32)
    want = (rest if gpu_layers else 0) + sum(weights.layers[32 - layers :])
    assert on_device == want


def test_layers_of_a_mix_differ_and_add_up():
    weights = weights_of("llama-3.1-8b-instruct", "Q4_K_M")
    assert weights.layers[0] > weights.layers[4]
    ends = sum(h.bytes for h in weights.tensors if h.shape.layer is None)
    assert sum(weights.layers) + ends == weights.bytes
    assert weights.file_bytes - weights.bytes == weights.metadata


def test_what_is_quantized_is_told():
    weights = weights_of("llama-3.1-8b-instruct", "nf4")
    norms, ends = 65 * 4096, 2 * 128256 * 4096
    assert weights.quantized == 8_030_261_248 - norms - ends
    assert weights.largest_matrix == 4096 * 14336
    assert weights_of("llama-3.1-8b-instruct").quantized == 0


def test_parts_say_their_rule_and_add_up():
    parts = weight_parts(shapes(catalog()["qwen3-30b-a3b"].architecture), quantization="int8")
    assert sum(each.bytes for each in parts) == weights_of("qwen3-30b-a3b", "int8").bytes
    experts = next(each for each in parts if each.name == "experts")
    assert "bf16 (16 bits)" in experts.rule
    attention = next(each for each in parts if each.name == "attention")
    assert "int8 (8." in attention.rule
    assert {each.group for each in parts} == {"weights"}


def test_an_image_encoder_is_left_out_by_engines_that_do_not_load_it():
    names = {
        (form, engine): {each.name for each in weights_of("qwen3-vl-4b-instruct", form,
                                                          engine=engine).parts()}
        for form, engine in (("nf4", "transformers"), ("4bit", "mlx"), ("Q4_K_M", "llama.cpp"))
    }  # fmt: skip
    assert ["image encoder" in found for found in names.values()] == [True, False, False]
    vision = WeightForm.of({"kind": "gguf", "file_type": "Q8_0", "vision": True})
    weights = weigh(shapes(catalog()["qwen3-vl-4b-instruct"].architecture), vision)
    assert part(weights.parts(), "image encoder") == 2 * 415_347_712


def test_names_of_forms():
    assert weight_form("4bit", engine="mlx").bits == 4
    assert weight_form("mlx-8bit").group_size == 64
    assert weight_form("none", engine="llama.cpp", dtype="fp16").file_type == "F16"
    assert weight_form("gptq-8").bits == 8
    assert weight_form("Q4_K_M").kind == "gguf"
    assert weight_form("fp32").width == 4
    qat = StoredForm(method="gguf", quantization="Q4_0")
    assert weight_form(None, stored=qat).file_type == "Q4_0"
    assert weight_form(None, stored=StoredForm(method="gguf", detail="Q6_K")).file_type == "Q6_K"
    mlx = StoredForm(method="mlx", bits=8, group_size=32)
    assert (weight_form(None, stored=mlx).kind, weight_form(None, stored=mlx).group_size) == (
        "mlx",
        32,
    )
    nvfp4 = StoredForm(
        method="compressed-tensors", detail="nvfp4-pack-quantized", bits=4, group_size=16
    )
    matrix = Shape("attn_q", 0, (4096, 4096), "linear")
    assert stored_as(matrix, weight_form(None, stored=nvfp4), None)[1] == 4096 * 4096 // 16 * 9
    packed = StoredForm(method="compressed-tensors", bits=4, group_size=32)
    assert weight_form(None, stored=packed).group_size == 32
    for name in NAMES:
        assert weight_form(name)
    with pytest.raises(UnsupportedError, match="Did you mean 'nf4'"):
        weight_form("nf5")
    with pytest.raises(UnsupportedError, match="no dtype 'bf61'"):
        weight_form(dtype="bf61")
    with pytest.raises(UnsupportedError, match="stored as onnx"):
        weight_form(None, stored=StoredForm(method="onnx"))


def test_an_equal_list_is_not_weighed_again():
    found = shapes(catalog()["qwen3-4b"].architecture)
    assert weigh(found, weight_form("nf4")) is weigh(found, weight_form("nf4"))
    other = ShapeList(tensors=found.tensors, model_type="qwen3")
    assert weigh(other, weight_form("nf4")).bytes == weigh(found, weight_form("nf4")).bytes
