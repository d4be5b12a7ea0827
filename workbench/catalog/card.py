"""A card: what a model is, as one YAML file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import Field, field_validator

from workbench.settings import Settings


class Architecture(Settings):
    """Architecture facts; a value nobody sourced stays None."""

    model_type: str | None = None
    """``model_type`` of config.json, for example ``llama``."""
    parameters: int | None = Field(default=None, ge=1)
    """All parameters, tied ones counted once."""
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


class Card(Settings):
    """What a model is: where it comes from, its facts, what it is good for."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """The name a user writes."""
    display_name: str | None = None
    """The name shown in tables."""
    repository: str | None = None
    """Hub repository of the safetensors."""
    path: str | None = None
    """Local folder or file; ``~`` and environment variables expand; relative means shipped."""
    architecture: Architecture = Architecture()
    """Architecture facts."""
    context_length: int | None = Field(default=None, ge=1)
    """Most tokens the model was made for."""
    dtype: str | None = None
    """Dtype of the stored weights: fp32, bf16, fp16."""
    licence: str | None = None
    """SPDX identifier, or the licence's name."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes."""
    tasks: tuple[str, ...] = ()
    """chat, code, reasoning, vision, embedding, rerank."""
    n_gpu_layers: int = Field(default=-1, ge=-1)
    """llama.cpp layers on a GPU: -1 all, 0 none."""
    notes: str | None = None
    """Anything a user should know."""

    @field_validator("id")
    @classmethod
    def _no_path_in_id(cls, value: str) -> str:
        if re.search(r"\.(gguf|safetensors|bin)$", value):
            raise ValueError("a card id does not end like a file name")
        return value

    @property
    def source_is_local(self) -> bool:
        """Whether the card names a local folder or file."""
        return self.path is not None

    def expanded_path(self) -> Path | None:
        """Return the local path with ``~`` and variables expanded, or None."""
        if self.path is None:
            return None
        return Path(os.path.expandvars(self.path)).expanduser()
