"""Write a GGUF of an architecture that has all metadata and tensor infos but no weights.

The file is sparse: as long as a real one, a few hundred kilobytes on disk. llama.cpp opens it with
``no_alloc``, and quantizes it with ``dry_run``; so it tells its own sizes without any weights.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import gguf

from workbench.catalog.architecture import Architecture

Tensor = tuple[str, tuple[int, ...]]

NAMES = {
    "llama": "llama",
    "mistral": "llama",
    "idefics3": "llama",
    "mistral3": "mistral3",
    "ministral3": "mistral3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "qwen3_vl": "qwen3vl",
    "qwen3_vl_moe": "qwen3vlmoe",
    "phi3": "phi3",
    "phimoe": "phimoe",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gemma3n": "gemma3n",
    "gpt_oss": "gpt-oss",
    "seed_oss": "seed_oss",
    "granitemoehybrid": "granitehybrid",
    "kimi_k2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "gpt2": "gpt2",
    "stablelm": "stablelm",
    "stablelm_epoch": "stablelm",
    "bert": "bert",
}
_QKV_BIAS = ("qwen2", "phimoe", "gpt-oss", "seed_oss", "bert")
_LAYER_NORM = ("gpt2", "stablelm", "bert", "phimoe")
_QK_NORM = ("qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "gemma3", "gemma3n")


def gguf_name(a: Architecture) -> str:
    """Return the name that llama.cpp has for the architecture."""
    if a.model_type == "granitemoehybrid" and a.state_space is None:
        return "granite"
    return NAMES[a.model_type or ""]


def write_empty(
    path: Path, a: Architecture, *, context: int, matrices: str = "F16", extra: bool = True
) -> Path:
    """Write the file.

    Args:
        path: Where to.
        a: The architecture, with all facts that its family needs.
        context: ``context_length`` of the metadata.
        matrices: ggml type of the matrices; vectors are F32.
        extra: Lengthen the file to what its tensors need.
    """
    name = gguf_name(a)
    writer = gguf.GGUFWriter(path, name)
    _metadata(writer, name, a, context)
    kind = gguf.GGMLQuantizationType[matrices]
    full = gguf.GGMLQuantizationType.F32
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = 0
    for tensor, shape in tensors(name, a):
        count = 1
        for length in shape:
            count *= length
        vector = (
            len(shape) == 1
            or shape[-1] % per_block
            or "ffn_gate_inp" in tensor
            or "ssm_conv1d" in tensor
        )
        size = 4 * count if vector else count // per_block * block_bytes
        writer.add_tensor_info(tensor, shape, None, size, raw_dtype=full if vector else kind)
        data += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    if extra:
        os.truncate(path, -(-path.stat().st_size // 32) * 32 + data)
    return path


def _metadata(writer: gguf.GGUFWriter, name: str, a: Architecture, context: int) -> None:
    head = a.head_dim or a.hidden_size // a.attention_heads
    writer.add_context_length(context)
    writer.add_embedding_length(a.hidden_size)
    writer.add_block_count(a.layers)
    writer.add_feed_forward_length(a.intermediate_size or 16)
    writer.add_head_count(a.attention_heads)
    writer.add_vocab_size(a.vocab_size)
    writer.add_tokenizer_model("none")
    if name in _LAYER_NORM:
        writer.add_layer_norm_eps(1e-5)
    if name not in ("gpt2", "stablelm", "bert"):
        writer.add_layer_norm_rms_eps(1e-5)
    if name == "bert":
        writer.add_token_type_count(2)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.CLS)
    if name in ("granite", "granitehybrid"):
        writer.add_logit_scale(8.0)
    if name in ("qwen3vl", "qwen3vlmoe"):
        writer.add_rope_dimension_sections([24, 20, 20, 0])
        writer.add_num_deepstack_layers(a.vision.deepstack_layers or 0 if a.vision else 0)
    if name == "gemma3n":
        writer.add_altup_active_idx(0)
        writer.add_altup_num_inputs(a.altup_inputs or 4)
        writer.add_embedding_length_per_layer_input(a.per_layer_input_dim or 256)
        writer.add_shared_kv_layers(a.layers - (a.kv_layers or a.layers))
    if name == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    if a.sliding_window and name != "phimoe":
        writer.add_sliding_window(a.sliding_window.size)
    _experts_and_state(writer, name, a)
    if a.latent_attention:
        mla = a.latent_attention
        writer.add_head_count_kv(1)
        writer.add_q_lora_rank(mla.q_lora_rank or 0)
        writer.add_kv_lora_rank(mla.kv_lora_rank)
        writer.add_key_length(mla.kv_lora_rank + mla.qk_rope_head_dim)
        writer.add_value_length(mla.kv_lora_rank)
        writer.add_key_length_mla(mla.qk_nope_head_dim + mla.qk_rope_head_dim)
        writer.add_value_length_mla(mla.v_head_dim)
        writer.add_rope_dimension_count(mla.qk_rope_head_dim)
        return
    if name != "granitehybrid":
        writer.add_head_count_kv(a.kv_heads or a.attention_heads)
    if name not in ("gpt2", "bert"):
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(head)


def _experts_and_state(writer: gguf.GGUFWriter, name: str, a: Architecture) -> None:
    if a.experts:
        writer.add_expert_count(a.experts.experts)
        writer.add_expert_used_count(a.experts.experts_per_token)
        writer.add_expert_feed_forward_length(a.experts.intermediate_size)
        if name == "deepseek2":
            writer.add_leading_dense_block_count(a.experts.dense_layers or 0)
            writer.add_expert_shared_count(a.experts.shared_experts or 0)
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        if a.experts.shared_intermediate_size:
            writer.add_expert_shared_feed_forward_length(a.experts.shared_intermediate_size)
    if a.state_space:
        state = a.state_space
        attends = a.attention_layers or ()
        writer.add_head_count_kv([a.kv_heads if i in attends else 0 for i in range(a.layers)])
        writer.add_ssm_conv_kernel(state.conv_kernel)
        writer.add_ssm_inner_size(state.inner_size)
        writer.add_ssm_state_size(state.state_size)
        writer.add_ssm_time_step_rank(state.heads)
        writer.add_ssm_group_count(state.groups)


def tensors(name: str, a: Architecture) -> Iterator[Tensor]:
    """Return every tensor, with its shape as torch has it."""
    h, v = a.hidden_size, a.vocab_size
    yield "token_embd.weight", (v, h)
    if name == "bert":
        yield from _norm("token_embd_norm", h, bias=True)
        yield "token_types.weight", (2, h)
        yield "position_embd.weight", (512, h)
    else:
        yield from _norm("output_norm", h, bias=name in _LAYER_NORM)
        tied = a.tied_embeddings if a.output_parameters is None else a.output_parameters == 0
        if not tied:
            yield "output.weight", (v, h)
        if name == "phimoe":
            yield "output.bias", (v,)
        if name == "gpt2":
            yield "position_embd.weight", (1024, h)
        if name == "gemma3n":
            yield from _per_layer_inputs(a)
    for layer in range(a.layers):
        for tensor, shape in (*_attention(name, a, layer), *_feed_forward(name, a, layer)):
            yield f"blk.{layer}.{tensor}", shape


def _norm(name: str, width: int, *, bias: bool = False) -> Iterator[Tensor]:
    yield f"{name}.weight", (width,)
    if bias:
        yield f"{name}.bias", (width,)


def _per_layer_inputs(a: Architecture) -> Iterator[Tensor]:
    h, inputs, width = a.hidden_size, a.altup_inputs, a.per_layer_input_dim
    yield "altup_proj.weight", (inputs - 1, h, h)
    yield "altup_unembd_proj.weight", (inputs - 1, h, h)
    yield "per_layer_token_embd.weight", (a.vocab_size, width * a.layers)
    yield "per_layer_model_proj.weight", (width * a.layers, h)
    yield "per_layer_proj_norm.weight", (width,)


def _attention(name: str, a: Architecture, layer: int) -> Iterator[Tensor]:
    h = a.hidden_size
    if name != "bert":
        yield from _norm("attn_norm", h, bias=name in _LAYER_NORM)
    if a.state_space and layer not in (a.attention_layers or ()):
        yield from _state_space(a)
        return
    if a.latent_attention:
        yield from _latent(a)
        return
    head = a.head_dim or h // a.attention_heads
    query, key = a.attention_heads * head, (a.kv_heads or a.attention_heads) * head
    bias = name in _QKV_BIAS or name == "gpt2"
    widths = {"q": query, "k": key, "v": key}
    if name in ("gpt2", "phi3"):
        widths = {"qkv": query + 2 * key}
    for each, width in widths.items():
        yield f"attn_{each}.weight", (width, h)
        if bias:
            yield f"attn_{each}.bias", (width,)
    yield "attn_output.weight", (h, query)
    if name in ("gpt2", "phimoe", "gpt-oss", "bert"):
        yield "attn_output.bias", (h,)
    if name in _QK_NORM:
        yield "attn_q_norm.weight", (head,)
        yield "attn_k_norm.weight", (head,)
    if name == "gpt-oss":
        yield "attn_sinks.weight", (a.attention_heads,)


def _latent(a: Architecture) -> Iterator[Tensor]:
    mla, h, heads = a.latent_attention, a.hidden_size, a.attention_heads
    width = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    if mla.q_lora_rank:
        yield "attn_q_a.weight", (mla.q_lora_rank, h)
        yield "attn_q_a_norm.weight", (mla.q_lora_rank,)
        yield "attn_q_b.weight", (width, mla.q_lora_rank)
    else:
        yield "attn_q.weight", (width, h)
    yield "attn_kv_a_mqa.weight", (mla.kv_lora_rank + mla.qk_rope_head_dim, h)
    yield "attn_kv_a_norm.weight", (mla.kv_lora_rank,)
    yield "attn_k_b.weight", (heads, mla.kv_lora_rank, mla.qk_nope_head_dim)
    yield "attn_v_b.weight", (heads, mla.v_head_dim, mla.kv_lora_rank)
    yield "attn_output.weight", (h, heads * mla.v_head_dim)


def _state_space(a: Architecture) -> Iterator[Tensor]:
    state, h = a.state_space, a.hidden_size
    channels = state.inner_size + 2 * state.groups * state.state_size
    yield "ssm_in.weight", (state.inner_size + channels + state.heads, h)
    yield "ssm_conv1d.weight", (channels, state.conv_kernel)
    yield "ssm_conv1d.bias", (channels,)
    yield "ssm_dt.bias", (state.heads,)
    yield "ssm_a", (state.heads, 1)
    yield "ssm_d", (state.heads, 1)
    yield "ssm_norm.weight", (state.groups, state.inner_size // state.groups)
    yield "ssm_out.weight", (h, state.inner_size)


def _feed_forward(name: str, a: Architecture, layer: int) -> Iterator[Tensor]:
    h, f = a.hidden_size, a.intermediate_size
    if name == "bert":
        yield from _norm("attn_output_norm", h, bias=True)
        yield from _norm("layer_output_norm", h, bias=True)
    elif name in ("gpt-oss", "seed_oss"):
        yield from _norm("post_attention_norm", h)
    else:
        yield from _norm("ffn_norm", h, bias=name in _LAYER_NORM)
    if name.startswith("gemma"):
        yield from _norm("post_attention_norm", h)
        yield from _norm("post_ffw_norm", h)
    if name == "gemma3n":
        yield from _alternating(a)
    experts = a.experts
    if experts and layer >= (experts.dense_layers or 0):
        yield from _expert_tensors(name, a)
        return
    if name == "phi3":
        yield "ffn_up.weight", (2 * f, h)
    elif name in ("gpt2", "bert"):
        yield "ffn_up.weight", (f, h)
        yield "ffn_up.bias", (f,)
        yield "ffn_down.bias", (h,)
    else:
        yield "ffn_gate.weight", (f, h)
        yield "ffn_up.weight", (f, h)
    yield "ffn_down.weight", (h, f)


def _expert_tensors(name: str, a: Architecture) -> Iterator[Tensor]:
    experts, h = a.experts, a.hidden_size
    count, f = experts.experts, experts.intermediate_size
    yield "ffn_gate_inp.weight", (count, h)
    yield "ffn_gate_exps.weight", (count, f, h)
    yield "ffn_up_exps.weight", (count, f, h)
    yield "ffn_down_exps.weight", (count, h, f)
    if name == "gpt-oss":
        yield "ffn_gate_inp.bias", (count,)
        yield "ffn_gate_exps.bias", (count, f)
        yield "ffn_up_exps.bias", (count, f)
        yield "ffn_down_exps.bias", (count, h)
    if name == "deepseek2":
        yield "exp_probs_b.bias", (count,)
    shared = experts.shared_intermediate_size or (experts.shared_experts or 0) * f
    if shared:
        yield "ffn_gate_shexp.weight", (shared, h)
        yield "ffn_up_shexp.weight", (shared, h)
        yield "ffn_down_shexp.weight", (h, shared)


def _alternating(a: Architecture) -> Iterator[Tensor]:
    h, inputs, rank = a.hidden_size, a.altup_inputs, a.laurel_rank
    yield "inp_gate.weight", (a.per_layer_input_dim, h)
    yield "proj.weight", (h, a.per_layer_input_dim)
    yield "post_norm.weight", (h,)
    yield "altup_correct_coef.weight", (inputs, inputs)
    yield "altup_correct_scale.weight", (h,)
    yield "altup_predict_coef.weight", (inputs * inputs, inputs)
    yield "altup_router.weight", (inputs, h)
    yield "altup_router_norm.weight", (h,)
    yield "laurel_l.weight", (rank, h)
    yield "laurel_r.weight", (h, rank)
    yield "laurel_post_norm.weight", (h,)
