"""Architecture facts of a model; a value that nobody sourced stays None."""

from __future__ import annotations

from pydantic import Field

from workbench.settings import Settings


class SlidingWindow(Settings):
    """Attention that sees only the latest tokens, in some or all layers."""

    size: int = Field(ge=1)
    """Tokens that a sliding layer sees."""
    sliding_layers: int | None = Field(default=None, ge=0)
    """Layers that slide, counted."""
    full_layers: int | None = Field(default=None, ge=0)
    """Layers that see the whole context, counted."""
    pattern: str | None = None
    """How the two kinds alternate, in words."""


class Experts(Settings):
    """A mixture of experts in the feed-forward part."""

    experts: int = Field(ge=1)
    """Experts of one layer, shared ones not counted."""
    experts_per_token: int = Field(ge=1)
    """Experts that the router picks for a token."""
    intermediate_size: int = Field(ge=1)
    """Width of one expert."""
    shared_experts: int | None = Field(default=None, ge=0)
    """Experts that every token passes."""
    shared_intermediate_size: int | None = Field(default=None, ge=1)
    """Width of the shared part, where it is not that of one expert."""
    dense_layers: int | None = Field(default=None, ge=0)
    """First layers with a plain feed-forward part instead."""


class LatentAttention(Settings):
    """Multi-head latent attention (MLA) of DeepSeek-V2 and its successors."""

    kv_lora_rank: int = Field(ge=1)
    """Width of the shared latent of keys and values."""
    q_lora_rank: int | None = Field(default=None, ge=1)
    """Width of the latent of the queries."""
    qk_nope_head_dim: int = Field(ge=1)
    """Part of a head without rotary position."""
    qk_rope_head_dim: int = Field(ge=1)
    """Part of a head with rotary position, shared by all heads in the cache."""
    v_head_dim: int = Field(ge=1)
    """Width of a value head."""


class StateSpace(Settings):
    """Mamba-2 layers of a hybrid."""

    heads: int = Field(ge=1)
    """Heads of the state-space part."""
    head_dim: int = Field(ge=1)
    """Width of one head."""
    state_size: int = Field(ge=1)
    """State per channel."""
    conv_kernel: int = Field(ge=1)
    """Taps of the causal convolution."""
    groups: int = Field(default=1, ge=1)
    """Groups that share B and C."""
    inner_size: int = Field(ge=1)
    """heads times head_dim."""
    layer_state_bytes_32bit: int | None = Field(default=None, ge=1)
    """Bytes of one layer's state and convolution buffer for one sequence, at 32 bit."""


class Vision(Settings):
    """The image encoder and its projector."""

    tower: str | None = None
    """What it is, in words."""
    parameters: int | None = Field(default=None, ge=1)
    """Parameters of encoder and projector."""
    text_parameters: int | None = Field(default=None, ge=1)
    """Parameters of the language part."""
    depth: int | None = Field(default=None, ge=1)
    """Encoder layers."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of the encoder."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Width of its feed-forward part."""
    patch: int | None = Field(default=None, ge=1)
    """Pixels along a side of one patch."""
    merge: int | None = Field(default=None, ge=1)
    """Patches along a side that become one token."""
    deepstack_layers: int | None = Field(default=None, ge=0)
    """Encoder layers whose features enter the language part directly."""


class Architecture(Settings):
    """Architecture facts; a value nobody sourced stays None."""

    model_type: str | None = None
    """``model_type`` of config.json, for example ``llama``."""
    classes: tuple[str, ...] = ()
    """``architectures`` of config.json."""
    parameters: int | None = Field(default=None, ge=1)
    """All parameters, tied ones counted once."""
    active_parameters: int | None = Field(default=None, ge=1)
    """Parameters that one token passes, the input embedding included."""
    input_embedding_parameters: int | None = Field(default=None, ge=0)
    """Parameters of the input embedding."""
    output_parameters: int | None = Field(default=None, ge=0)
    """Parameters of a stored output matrix; 0 where it is tied."""
    layers: int | None = Field(default=None, ge=1)
    """Decoder layers."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of the residual stream."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Width of the feed-forward part."""
    attention_heads: int | None = Field(default=None, ge=1)
    """Query heads."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads."""
    head_dim: int | None = Field(default=None, ge=1)
    """Width of one head."""
    vocab_size: int | None = Field(default=None, ge=1)
    """Rows of the embedding."""
    tied_embeddings: bool | None = None
    """Whether input and output embedding are one tensor."""
    qkv_bias: bool | None = None
    """Whether the query, key and value projections have a bias."""
    qk_norm: bool | None = None
    """Whether queries and keys are normalized per head."""
    sliding_window: SlidingWindow | None = None
    """Attention over the latest tokens only."""
    experts: Experts | None = None
    """Mixture of experts."""
    latent_attention: LatentAttention | None = None
    """Multi-head latent attention."""
    state_space: StateSpace | None = None
    """Mamba-2 layers."""
    attention_layers: tuple[int, ...] | None = None
    """Layers of a hybrid that attend; None: every layer does."""
    kv_layers: int | None = Field(default=None, ge=1)
    """Layers that own a KV cache, where later ones share it (gemma3n)."""
    per_layer_input_dim: int | None = Field(default=None, ge=1)
    """Width of the embedding that each layer gets besides (gemma3n)."""
    altup_inputs: int | None = Field(default=None, ge=1)
    """Parallel residual streams (gemma3n)."""
    laurel_rank: int | None = Field(default=None, ge=1)
    """Rank of the learned residual (gemma3n)."""
    vision: Vision | None = None
    """The image encoder."""
    kv_cache_bytes_per_token_16bit: int | None = Field(default=None, ge=0)
    """Bytes of keys and values that one token adds at 16 bit, all layers seeing it."""
