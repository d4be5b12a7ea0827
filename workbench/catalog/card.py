"""A card: what a model is, as one YAML file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from workbench.catalog.architecture import Architecture
from workbench.settings import Settings

Task = Literal["chat", "code", "reasoning", "vision", "embedding", "rerank"]


class GgufSource(Settings):
    """Where ready GGUF files of the model lie."""

    repository: str
    """Hub repository of the GGUF files."""
    pattern: str = "*{quantization}*.gguf"
    """File pattern in which ``{quantization}`` stands for its name."""
    files: dict[str, str] = {}
    """Quantization to its own file pattern, where the common one does not hold."""

    def file_pattern(self, quantization: str) -> str:
        """Return the pattern of the files of one quantization."""
        return self.files.get(quantization) or self.pattern.replace("{quantization}", quantization)


class ReadyForm(Settings):
    """A form of the model that somebody already quantized."""

    kind: Literal["awq", "gptq", "mxfp4", "fp8", "mlx", "bnb", "onnx"]
    """How it is quantized."""
    repository: str
    """Hub repository."""
    bits: int | None = Field(default=None, ge=1, le=16)
    """Bits per quantized weight."""


class StoredForm(Settings):
    """How the weights of ``repository`` itself are quantized."""

    method: Literal["awq", "gptq", "mxfp4", "fp8", "gguf", "onnx", "bnb", "compressed-tensors"]
    """The method, as ``quantization_config`` names it."""
    bits: int | None = Field(default=None, ge=1, le=16)
    """Bits per quantized weight."""
    group_size: int | None = Field(default=None, ge=-1)
    """Weights that share a scale, -1 a whole row; None not sourced."""
    zero_point: bool | None = None
    """Whether groups have a zero point."""
    block: tuple[int, int] | None = None
    """Rows and columns that share a scale (block fp8)."""
    applies_to: str | None = None
    """Which tensors, where not all linear ones."""
    not_quantized: tuple[str, ...] = ()
    """Tensors kept at 16 bit, by part of their name."""
    bytes_per_parameter: float | None = Field(default=None, gt=0)
    """Bytes of one quantized weight with its share of the scales."""


class DefaultSampling(Settings):
    """Sampling that the model's makers recommend."""

    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus mass."""
    top_k: int | None = Field(default=None, ge=0)
    """Candidates kept, 0 all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability relative to the best token."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """1 is none."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most new tokens."""


class Remote(Settings):
    """A model that runs at somebody's OpenAI-compatible service."""

    url: str = Field(pattern=r"^https?://")
    """Base URL, up to and without ``/chat/completions``."""
    model: str
    """The service's name of the model."""
    key_variable: str | None = None
    """Environment variable that holds the key; the key itself is never in a card."""


class Card(Settings):
    """What a model is: where it comes from, its facts, what it is good for."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """The name a user writes."""
    display_name: str | None = None
    """The name shown in tables."""
    family: str | None = None
    """The line of models it belongs to, for example ``qwen2.5``."""
    repository: str | None = None
    """Hub repository of the safetensors."""
    revision: str | None = None
    """Commit of the repository; None takes the newest and notes which it was."""
    unverified_repository: str | None = None
    """A repository name that nobody has seen; it is told, never downloaded from."""
    gguf: GgufSource | None = None
    """Ready GGUF files."""
    forms: tuple[ReadyForm, ...] = ()
    """Ready forms quantized otherwise."""
    stored: StoredForm | None = None
    """How the weights of ``repository`` are quantized; None: they are not."""
    remote: Remote | None = None
    """A service that runs the model, instead of files."""
    path: str | None = None
    """Local folder or file; ``~`` and environment variables expand; relative means shipped."""
    projector: str | None = None
    """Local multimodal projector (mmproj) of a GGUF that sees, expanded like ``path``."""
    architecture: Architecture = Architecture()
    """Architecture facts."""
    context_length: int | None = Field(default=None, ge=1)
    """Most tokens the model was made for."""
    dtype: Literal["fp32", "bf16", "fp16", "fp8"] | None = None
    """Dtype of the stored weights, or of computing where they are quantized."""
    licence: str | None = None
    """SPDX identifier, or the licence's name."""
    gated: bool | None = None
    """Whether the hub asks for an accepted licence; None not sourced."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes of the languages it is good at."""
    tasks: tuple[Task, ...] = ()
    """What it can do."""
    recommended_use: str | None = None
    """What it is good for, in a sentence."""
    sampling: DefaultSampling | None = None
    """Recommended sampling."""
    thinking_sampling: DefaultSampling | None = None
    """Recommended sampling while it thinks, where it differs."""
    template_family: str | None = None
    """Name of the chat template's family, as llama.cpp names it."""
    n_gpu_layers: int = Field(default=-1, ge=-1)
    """llama.cpp layers on a GPU: -1 all, 0 none."""
    fallback: str | None = None
    """Card to load where this one cannot be."""
    sources: tuple[str, ...] = ()
    """Where the facts are from."""
    source_level: str | None = None
    """How close the sources are to the model's own configuration."""
    parameter_check: str | None = None
    """How the parameter count was checked."""
    unsourced: tuple[str, ...] = ()
    """Facts that were looked for and not found."""
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
        return _expanded(self.path)

    def expanded_projector(self) -> Path | None:
        """Return the local projector with ``~`` and variables expanded, or None."""
        return _expanded(self.projector)


def _expanded(path: str | None) -> Path | None:
    return None if path is None else Path(os.path.expandvars(path)).expanduser()
