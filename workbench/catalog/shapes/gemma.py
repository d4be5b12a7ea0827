"""The tensors of Gemma 3n: parallel residual streams, per-layer embeddings, learned residuals."""

from __future__ import annotations

from workbench.catalog.architecture import Architecture
from workbench.catalog.shapes.decoder import Traits, attention, ends, feed_forward
from workbench.catalog.shapes.shape import Builder, Kind, needed

PER_LAYER_ROWS = 262_144
"""Rows of the per-layer embedding: the text tokens, without those of images and sound."""


def gemma3n(facts: Architecture) -> Builder:
    """Return the tensors of the language part.

    The checkpoint holds keys and values for every layer, though the last ones share earlier ones.

    Raises:
        UnsupportedError: A size it needs is not known.
    """
    built, kind = Builder(), facts.model_type
    hidden = needed(facts.hidden_size, "hidden_size", kind)
    layers = needed(facts.layers, "layers", kind)
    width = needed(facts.intermediate_size, "intermediate_size", kind)
    streams = needed(facts.altup_inputs, "altup_inputs", kind)
    inner = needed(facts.per_layer_input_dim, "per_layer_input_dim", kind)
    ends(built, facts, hidden, norm_bias=False, head_bias=False)
    built.add("per_layer_token_embd", None, "embedding", PER_LAYER_ROWS, layers * inner)
    built.linear("per_layer_model_proj", None, layers * inner, hidden)
    built.norm("per_layer_proj_norm", None, inner)
    for stream in range(streams - 1):
        built.linear(f"altup_proj.{stream}", None, hidden, hidden)
        # transformers' quantizers leave the model's last matrix alone, and it is this one.
        kind_of_last: Kind = "other" if stream == streams - 2 else "linear"
        built.add(f"altup_unembd_proj.{stream}", None, kind_of_last, hidden, hidden)
    traits = Traits(qk_norm=True)
    for layer in range(layers):
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            built.norm(norm, layer, hidden)
        attention(built, facts, traits, layer, hidden)
        feed_forward(built, traits, layer, hidden, width)
        _streams(built, layer, hidden, streams)
        built.linear("inp_gate", layer, inner, hidden)
        built.linear("proj", layer, hidden, inner)
        built.norm("post_norm", layer, hidden)
        rank = needed(facts.laurel_rank, "laurel_rank", kind)
        built.linear("laurel_l", layer, rank, hidden)
        built.linear("laurel_r", layer, hidden, rank)
        built.norm("laurel_post_norm", layer, hidden)
    return built


def _streams(built: Builder, layer: int, hidden: int, streams: int) -> None:
    """Add what mixes the parallel streams (AltUp, arXiv 2301.13310)."""
    built.linear("altup_correct_coef", layer, streams, streams)
    built.linear("altup_predict_coef", layer, streams * streams, streams)
    built.linear("altup_router", layer, streams, hidden)
    built.add("altup_correct_scale", layer, "norm", hidden)
    built.norm("altup_router_norm", layer, hidden)
