"""The tensors of a decoder by the traits of its family: norms, biases, experts, MLA, Mamba-2."""

from __future__ import annotations

import dataclasses
from typing import Literal

from workbench.catalog.architecture import Architecture, Experts
from workbench.catalog.shapes.shape import Builder, needed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What sets one family of decoders apart; the defaults are Llama.

    Attributes:
        norm_bias: LayerNorm with a bias instead of RMSNorm.
        qkv: ``split`` or ``fused`` projections of queries, keys and values.
        qkv_bias: Whether they have biases where the card does not say.
        output_bias: Whether the attention's output projection has one.
        qk_norm: Whether queries and keys are normalized where the card does not say.
        post_norms: Norms after attention and feed-forward as well (Gemma 2 and 3).
        one_norm: No norm of its own before the feed-forward part (Phi-2).
        feed_forward: ``gated`` (gate and up), ``fused`` (both in one) or ``plain`` (up only).
        feed_forward_bias: Whether its matrices have biases.
        router_bias: Whether the router of the experts has one.
        router_kind: How transformers holds the router: a bare parameter is never quantized.
        router_correction: A bias per expert for balancing (DeepSeek-V3).
        expert_bias: Whether each expert has biases.
        shared_gate: Whether the shared expert has a gate (Qwen2-MoE).
        sinks: A learned sink per head.
        head_bias: Whether the output matrix has a bias.
        positions: Rows of a learned position embedding.
    """

    norm_bias: bool = False
    qkv: Literal["split", "fused"] = "split"
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    one_norm: bool = False
    feed_forward: Literal["gated", "fused", "plain"] = "gated"
    feed_forward_bias: bool = False
    router_bias: bool = False
    router_kind: Literal["linear", "other"] = "other"
    router_correction: bool = False
    expert_bias: bool = False
    shared_gate: bool = False
    sinks: bool = False
    head_bias: bool = False
    positions: int | None = None


def decoder(facts: Architecture, traits: Traits) -> Builder:
    """Return the tensors of a decoder.

    Raises:
        UnsupportedError: A size it needs is not known.
    """
    built, kind = Builder(), facts.model_type
    hidden = needed(facts.hidden_size, "hidden_size", kind)
    ends(built, facts, hidden, norm_bias=traits.norm_bias, head_bias=traits.head_bias)
    if traits.positions:
        built.add("position_embd", None, "embedding", traits.positions, hidden)
    attending = set(facts.attention_layers or range(needed(facts.layers, "layers", kind)))
    for layer in range(needed(facts.layers, "layers", kind)):
        built.norm("attn_norm", layer, hidden, bias=traits.norm_bias)
        if layer not in attending and facts.state_space is not None:
            state_space(built, facts, layer, hidden)
        elif facts.latent_attention is not None:
            latent_attention(built, facts, layer, hidden)
        else:
            attention(built, facts, traits, layer, hidden)
        if not traits.one_norm:
            built.norm("ffn_norm", layer, hidden, bias=traits.norm_bias)
        if traits.post_norms:
            built.norm("post_attention_norm", layer, hidden)
            built.norm("post_ffw_norm", layer, hidden)
        if facts.experts is not None and layer >= (facts.experts.dense_layers or 0):
            experts(built, facts.experts, traits, layer, hidden)
        else:
            width = needed(facts.intermediate_size, "intermediate_size", kind)
            feed_forward(built, traits, layer, hidden, width)
    return built


def ends(
    built: Builder, facts: Architecture, hidden: int, *, norm_bias: bool, head_bias: bool
) -> None:
    """Add embedding, last norm and, where it is stored, the output matrix."""
    vocabulary = vocabulary_of(facts)
    built.add("token_embd", None, "embedding", vocabulary, hidden)
    built.norm("output_norm", None, hidden, bias=norm_bias)
    stored = facts.output_parameters
    if stored or (stored is None and facts.tied_embeddings is False):
        built.add("output", None, "output", vocabulary, hidden)
        if head_bias:
            built.add("output", None, "bias", vocabulary)


def vocabulary_of(facts: Architecture) -> int:
    """Return the rows of the embedding.

    Raises:
        UnsupportedError: Neither they nor the embedding's parameters are known.
    """
    if facts.vocab_size is None and facts.input_embedding_parameters and facts.hidden_size:
        return facts.input_embedding_parameters // facts.hidden_size
    return needed(facts.vocab_size, "vocab_size", facts.model_type)


def heads_of(facts: Architecture) -> tuple[int, int, int]:
    """Return query heads, key and value heads, and the width of a head."""
    kind = facts.model_type
    heads = needed(facts.attention_heads, "attention_heads", kind)
    head_dim = facts.head_dim or needed(facts.hidden_size, "hidden_size", kind) // heads
    return heads, facts.kv_heads or heads, head_dim


def attention(built: Builder, facts: Architecture, traits: Traits, layer: int, hidden: int) -> None:
    """Add the projections of grouped-query attention."""
    heads, kv_heads, head_dim = heads_of(facts)
    bias = traits.qkv_bias if facts.qkv_bias is None else facts.qkv_bias
    q, kv = heads * head_dim, kv_heads * head_dim
    if traits.qkv == "fused":
        built.linear("attn_qkv", layer, q + 2 * kv, hidden, bias=bias)
    else:
        built.linear("attn_q", layer, q, hidden, bias=bias)
        built.linear("attn_k", layer, kv, hidden, bias=bias)
        built.linear("attn_v", layer, kv, hidden, bias=bias)
    built.linear("attn_output", layer, hidden, q, bias=traits.output_bias)
    if traits.qk_norm if facts.qk_norm is None else facts.qk_norm:
        built.norm("attn_q_norm", layer, head_dim)
        built.norm("attn_k_norm", layer, head_dim)
    if traits.sinks:
        built.add("attn_sinks", layer, "other", heads)


def latent_attention(built: Builder, facts: Architecture, layer: int, hidden: int) -> None:
    """Add the projections of MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
    mla = facts.latent_attention
    assert mla is not None
    heads = needed(facts.attention_heads, "attention_heads", facts.model_type)
    queries = heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    if mla.q_lora_rank:
        built.linear("attn_q_a", layer, mla.q_lora_rank, hidden)
        built.norm("attn_q_a_norm", layer, mla.q_lora_rank)
        built.linear("attn_q_b", layer, queries, mla.q_lora_rank)
    else:
        built.linear("attn_q", layer, queries, hidden)
    built.linear("attn_kv_a_mqa", layer, mla.kv_lora_rank + mla.qk_rope_head_dim, hidden)
    built.norm("attn_kv_a_norm", layer, mla.kv_lora_rank)
    kv_rows = heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    built.linear("attn_kv_b", layer, kv_rows, mla.kv_lora_rank)
    built.linear("attn_output", layer, hidden, heads * mla.v_head_dim)


def state_space(built: Builder, facts: Architecture, layer: int, hidden: int) -> None:
    """Add a Mamba-2 mixer (arXiv 2405.21060)."""
    space = facts.state_space
    assert space is not None
    mixed = space.inner_size + 2 * space.groups * space.state_size
    built.linear("ssm_in", layer, space.inner_size + mixed + space.heads, hidden)
    built.add("ssm_conv1d", layer, "conv", mixed, space.conv_kernel)
    built.add("ssm_conv1d", layer, "bias", mixed)
    built.add("ssm_dt", layer, "bias", space.heads)
    built.add("ssm_a", layer, "other", space.heads)
    built.add("ssm_d", layer, "other", space.heads)
    built.norm("ssm_norm", layer, space.inner_size)
    built.linear("ssm_out", layer, hidden, space.inner_size)


def feed_forward(built: Builder, traits: Traits, layer: int, hidden: int, width: int) -> None:
    """Add a dense feed-forward part."""
    bias = traits.feed_forward_bias
    if traits.feed_forward == "gated":
        built.linear("ffn_gate", layer, width, hidden, bias=bias)
    rows = 2 * width if traits.feed_forward == "fused" else width
    built.linear("ffn_up", layer, rows, hidden, bias=bias)
    built.linear("ffn_down", layer, hidden, width, bias=bias)


def experts(built: Builder, facts: Experts, traits: Traits, layer: int, hidden: int) -> None:
    """Add router, stacked experts and what every token passes besides."""
    count, width = facts.experts, facts.intermediate_size
    built.add("ffn_gate_inp", layer, traits.router_kind, count, hidden)
    if traits.router_bias:
        built.add("ffn_gate_inp", layer, "bias", count)
    if traits.router_correction:
        built.add("exp_probs_b", layer, "bias", count)
    for role, rows, columns in (
        ("ffn_gate_exps", width, hidden),
        ("ffn_up_exps", width, hidden),
        ("ffn_down_exps", hidden, width),
    ):
        built.add(role, layer, "expert", count, rows, columns)
        if traits.expert_bias:
            built.add(role, layer, "bias", count, rows)
    shared = facts.shared_intermediate_size or width * (facts.shared_experts or 0)
    if shared:
        built.linear("ffn_gate_shexp", layer, shared, hidden)
        built.linear("ffn_up_shexp", layer, shared, hidden)
        built.linear("ffn_down_shexp", layer, hidden, shared)
        if traits.shared_gate:
            built.add("ffn_gate_inp_shexp", layer, "linear", 1, hidden)
