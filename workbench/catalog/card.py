"""A card: what a model is, as one YAML file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from workbench.catalog.architecture import Architecture
from workbench.errors import InputError
from workbench.figures import Table
from workbench.messages import Sampling
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
    revision: str | None = None
    """Commit of the GGUF repository; None takes the newest and notes which it was."""
    ollama: str | None = None
    """The model's name in Ollama's library, for example ``qwen2.5:7b-instruct``."""

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

    method: Literal[
        "awq", "gptq", "mxfp4", "fp8", "gguf", "onnx", "bnb", "compressed-tensors", "mlx", "other"
    ]
    """The method, as ``quantization_config`` names it."""
    detail: str | None = None
    """Which form of the method, as its files say: nf4, int8, pack-quantized, Q4_K_M."""
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
    quantization: str | None = None
    """Name of a GGUF quantization, for example ``Q4_0``."""
    version: str | None = None
    """Packing of the weights, as ``quantization_config`` names it, for example ``gemm``."""
    source: str | None = None
    """Where this is from, in words."""


class DefaultSampling(Settings):
    """Sampling that the model's makers recommend."""

    model_config = ConfigDict(allow_inf_nan=False)

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

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)
    """The name a user writes: letters, digits and ``._+-``; a card that extends needs none."""
    extends: str | None = None
    """A card whose values hold where this one gives none (user cards only)."""
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
    """Local folder or file; ``~`` and environment variables expand; relative means beside the
    card in a user card, and shipped in a shipped one."""
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
        """Return the local path with ``~`` and variables expanded, or None.

        Raises:
            InputError: It names an environment variable that is not set.
        """
        return None if self.path is None else expanded(self.path)

    def expanded_projector(self) -> Path | None:
        """Return the local projector with ``~`` and variables expanded, or None.

        Raises:
            InputError: It names an environment variable that is not set.
        """
        return None if self.projector is None else expanded(self.projector)

    def recommended_sampling(self, *, thinking: bool = False) -> Sampling:
        """Return the sampling that the model's makers recommend; greedy where they name none.

        Models answer greedily unless it is handed to them: ``model.ask(question,
        model.card.recommended_sampling())``. Cuts without a temperature are made at 1.

        Args:
            thinking: Take what is recommended while it thinks, where that differs.
        """
        given = dict(self.sampling.model_dump(exclude_none=True)) if self.sampling else {}
        if thinking and self.thinking_sampling:
            given |= self.thinking_sampling.model_dump(exclude_none=True)
        if given.keys() & {"top_p", "top_k", "min_p"}:
            given.setdefault("temperature", 1.0)
        return Sampling.of(**given)

    def given(self) -> dict[str, Any]:
        """Return what the card says as plain data, without the keys it leaves out."""
        return self.model_dump(mode="json", exclude_unset=True, exclude_none=True)

    def table(self) -> Table:
        """Return one row per key that the card gives; inner keys are joined by a dot."""
        rows = [{"key": key, "value": value} for key, value in _flat(self.given())]
        return Table(rows, caption=self.display_name or self.id)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def expanded(path: str) -> Path:
    """Return a path with ``~`` and environment variables expanded.

    Raises:
        InputError: It names an environment variable that is not set.
    """
    found = Path(os.path.expandvars(path)).expanduser()
    left = re.search(r"\$(?:\{(\w+)\}|(\w+))", str(found))
    if left and not found.exists():
        name = left.group(1) or left.group(2)
        raise InputError(
            f"The path {path} names the environment variable {name}, which is not set.",
            hint=f"Set {name}, or write the path out.",
        )
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += _flat(value, f"{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, item in enumerate(value, start=1):
                rows += _flat(item, f"{name}.{index}.")
        else:
            rows.append((name, value))
    return rows
