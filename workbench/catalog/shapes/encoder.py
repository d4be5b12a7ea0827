"""The tensors of BERT: post-norm layers, three embeddings, a pooler."""

from __future__ import annotations

from workbench.catalog.architecture import Architecture
from workbench.catalog.shapes.decoder import Traits, attention, feed_forward, vocabulary_of
from workbench.catalog.shapes.shape import Builder, needed

POSITIONS, TOKEN_TYPES = 512, 2
_TRAITS = Traits(
    norm_bias=True,
    qkv_bias=True,
    output_bias=True,
    feed_forward="plain",
    feed_forward_bias=True,
)


def bert(facts: Architecture) -> Builder:
    """Return the tensors of a BERT encoder with its pooler (arXiv 1810.04805).

    Raises:
        UnsupportedError: A size it needs is not known.
    """
    built, kind = Builder(), facts.model_type
    hidden = needed(facts.hidden_size, "hidden_size", kind)
    built.add("token_embd", None, "embedding", vocabulary_of(facts), hidden)
    built.add("position_embd", None, "embedding", POSITIONS, hidden)
    built.add("token_types", None, "embedding", TOKEN_TYPES, hidden)
    built.norm("token_embd_norm", None, hidden, bias=True)
    width = needed(facts.intermediate_size, "intermediate_size", kind)
    for layer in range(needed(facts.layers, "layers", kind)):
        attention(built, facts, _TRAITS, layer, hidden)
        built.norm("attn_output_norm", layer, hidden, bias=True)
        feed_forward(built, _TRAITS, layer, hidden, width)
        built.norm("layer_output_norm", layer, hidden, bias=True)
    built.linear("pooler", None, hidden, hidden, bias=True)
    return built
