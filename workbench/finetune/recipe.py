"""The recipe: every setting of one fine-tuning, presets by size, and the file that repeats it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from workbench.catalog import Card, locate
from workbench.errors import InputError, NotFoundError, did_you_mean
from workbench.machine import machine
from workbench.paths import shipped
from workbench.settings import Settings, read_yaml

Method = Literal["lora", "qlora"]
Schedule = Literal["constant", "linear", "cosine"]
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
PRESETS = (("tiny", 0.2e9), ("up-to-3b", 5e9), ("7b-14b", 20e9), ("30b-70b", float("inf")))
"""Preset name and the number of parameters below which it is meant."""


class Source(Settings):
    """What a recipe was made of, checked when it is repeated."""

    dataset_sha256: str
    """Hash of the training file."""
    evaluation_sha256: str | None = None
    """Hash of the evaluation file."""
    model_sha256: str
    """Content hash of the base model: weights, configuration, tokenizer."""
    versions: dict[str, str] = {}
    """Package versions of the first run; other versions may give other last digits."""
    command: str = ""
    """What was called."""
    time: str = ""
    """UTC time of the first run, ISO 8601."""


class Recipe(Settings):
    """Settings of one fine-tuning: argument > file (presets in ``configs/finetune``) > default."""

    model: str = "tiny-chat"
    """Card id or folder of the base model."""
    dataset: str | None = None
    """Training file, JSON lines; a bare name means ``data/finetune/<name>.jsonl``."""
    evaluation: str | None = None
    """Held-out file; default is ``<dataset>.eval.jsonl`` beside the dataset, "none" for none."""
    out: str | None = None
    """Folder of the adapter; default is ``outputs/models/<model>-<dataset>``."""
    method: Method = "lora"
    """``lora``: base weights as they are; ``qlora``: quantized, a quarter of their memory."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Of the base weights while training: ``none`` with lora, ``nf4`` or ``int8`` with qlora."""
    rank: int = Field(default=16, ge=1, le=1024)
    """LoRA rank: width of the low-rank update; trainable weights grow in proportion."""
    alpha: float = Field(default=32, gt=0)
    """LoRA alpha: the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the LoRA input dropped at random while training, 0 to 1."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Linear layers that get a LoRA: ``all-linear`` (all but the output head), or their names."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training file; ``max_steps`` wins over it."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, or None to train for ``epochs``."""
    batch_size: int = Field(default=4, ge=1)
    """Rows per device and forward pass; memory grows in proportion."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimizer step; it sees batch_size times this times devices rows."""
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """Peak learning rate of AdamW."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = Field(default=0.03, ge=0)
    """Steps in which the learning rate rises; below 1 it is a share of all steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay of the LoRA weights."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    max_length: int = Field(default=1024, ge=8)
    """Tokens per row; what is beyond is cut off at the end."""
    drop_overlong: bool = False
    """Drop rows that lose all supervised tokens to ``max_length``; False makes them an error."""
    assistant_only_loss: bool = True
    """Loss on the assistant's tokens only; False trains on the prompts too."""
    seed: int = Field(default=0, ge=0)
    """Seed of the LoRA's start, the order of the rows and the dropout."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of base weights and computation; ``auto`` is bf16 on CUDA that has it, else fp32."""
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    """``paged_adamw_8bit`` (bitsandbytes, CUDA) keeps states in 8 bit and moves them to RAM."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, about a quarter more time."""
    logging_steps: int = Field(default=10, ge=1)
    """Optimizer steps between two points of the loss curve."""
    checkpoint_steps: float = Field(default=0.25, gt=0)
    """Steps between checkpoints to resume from; below 1 it is a share of all steps."""
    evaluation_steps: int | None = Field(default=None, ge=1)
    """Steps between two measurements of the held-out loss; None measures before and after only."""
    evaluation_items: int = Field(default=200, ge=0)
    """Most held-out rows whose answer is generated and compared, before and after."""
    evaluation_tokens: int = Field(default=64, ge=1)
    """Most new tokens of each generated answer."""
    skills: tuple[str, ...] | None = None
    """Prompt sets (names, files) for what else the model can do; None takes all that ship."""
    skill_items: int = Field(default=0, ge=0)
    """Most prompts of these sets, taken in turn from each skill; 0 does not measure it."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the training; None leaves PyTorch's choice, which recipe.yaml records."""
    processes: int = Field(default=1, ge=1)
    """Devices that train together; each sees ``batch_size`` rows. 1 trains in this process."""
    parallel: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    """How several devices share the work: the file of this name in ``configs/accelerate``."""
    source: Source | None = None
    """What a first run was made of, written by it; a repeat checks it."""

    @model_validator(mode="before")
    @classmethod
    def _quantization_of_method(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("method") == "qlora":
            return {"quantization": "nf4", **values}
        return values

    @model_validator(mode="after")
    def _method_and_quantization_agree(self) -> Recipe:
        if (self.method == "qlora") != (self.quantization != "none"):
            raise InputError(
                f"method {self.method!r} does not go with quantization {self.quantization!r}.",
                hint="lora takes none, qlora takes nf4 or int8.",
            )
        return self

    def as_yaml(self, origins: Mapping[str, str]) -> str:
        """Return the file that repeats this training, each value with where it came from."""
        lines = [
            "# wb.finetune(recipe='recipe.yaml')",
            "# or: workbench finetune --recipe recipe.yaml",
            "# Repeats this training; the files must be those whose hashes stand under source.",
        ]
        for name, value in self.model_dump(mode="json").items():
            text = yaml.safe_dump({name: value}, allow_unicode=True, sort_keys=False, width=1000)
            origin = origins.get(name) if name != "source" else None
            lines.append(f"{text.rstrip()}  # {origin}" if origin else text.rstrip())
        return "\n".join(lines) + "\n"


def preset_names() -> list[str]:
    """Return the names of the recipes that ship."""
    return sorted(path.stem for path in shipped("configs", "finetune").glob("*.yaml"))


def recipe_file(recipe: str | Path) -> Path:
    """Return the file of a preset's name, a recipe file, or a folder that has a ``recipe.yaml``.

    Raises:
        NotFoundError: There is no such preset and no such file.
    """
    path = Path(recipe).expanduser()
    if (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.is_file():
        return path
    if str(recipe) in preset_names():
        return shipped("configs", "finetune", f"{recipe}.yaml")
    raise NotFoundError(
        f"There is no recipe {str(recipe)!r}: no such file and no such preset.",
        hint=did_you_mean(str(recipe), preset_names()),
    )


def preset_of(card: Card) -> str:
    """Return the preset's name for a model's size: its parameters, else its bytes by two."""
    parameters = card.architecture.parameters
    if parameters is None:
        parameters = locate(card).weight_bytes() // (4 if card.dtype == "fp32" else 2)
    return next(name for name, limit in PRESETS if parameters < limit)


def resolve_recipe(
    recipe: str | Path | Recipe | None, changes: Mapping[str, Any], *, card: Card | None = None
) -> tuple[Recipe, dict[str, str]]:
    """Return the recipe with ``changes`` on top, and where each value came from.

    Args:
        recipe: A preset's name, a file, a recipe, or None for the preset of the card's size.
        changes: Values that win; None means "not given".
        card: The base model, where known before the recipe.

    Raises:
        NotFoundError: No such preset or file.
        InputError: An unknown key or a value that does not fit; the file stays unread otherwise.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if isinstance(recipe, Recipe):
        stored, source = recipe.model_dump(exclude_unset=True), "recipe"
    else:
        name = recipe if recipe is not None else (preset_of(card) if card else "tiny")
        path = recipe_file(name)
        stored, source = read_yaml(path), path.name
        Recipe.of(stored, source=str(path))
    if given.get("method") == "lora" and "quantization" not in given:
        stored = {**stored, "quantization": "none"}
    if "method" in given and given["method"] == "qlora" and "quantization" not in given:
        stored = {key: value for key, value in stored.items() if key != "quantization"}
    if stored.get("source"):  # a repeat does not replace what the first run left
        stored = {key: value for key, value in stored.items() if key != "out"}
    if {"model", "dataset", "evaluation"} & given.keys():
        stored = {key: value for key, value in stored.items() if key != "source"}
    resolved = Recipe.of({**stored, **given})
    origins = {
        key: "argument" if key in given else source if key in stored else "default"
        for key in Recipe.model_fields
    }
    return resolved, origins


def check_source(recipe: Recipe, found: Source) -> list[str]:
    """Return what differs harmlessly from the first run (package versions).

    Raises:
        InputError: A training file or the base model is not the one the recipe was made of.
    """
    first = recipe.source
    if first is None:
        return []
    for name, what in (
        ("model_sha256", f"The base model {recipe.model}"),
        ("dataset_sha256", f"The dataset {recipe.dataset}"),
        ("evaluation_sha256", f"The evaluation file {recipe.evaluation}"),
    ):
        was, now = getattr(first, name), getattr(found, name)
        if was != now:
            raise InputError(
                f"{what} is not the one this recipe was made of: its hash was "
                f"{str(was)[:12]}, it is {str(now)[:12]}.",
                hint="Give the first file again, or name it as an argument to train on it as new.",
            )
    return [
        f"{package} was {version}, is {found.versions.get(package, 'missing')}"
        for package, version in first.versions.items()
        if found.versions.get(package) != version
    ]


def source_of(
    *, dataset_sha256: str, evaluation_sha256: str | None, model_sha256: str, command: str
) -> Source:
    """Return what this run is made of, with the versions installed here."""
    return Source(
        dataset_sha256=dataset_sha256,
        evaluation_sha256=evaluation_sha256,
        model_sha256=model_sha256,
        versions={name: v for name, v in machine().versions.items() if name in _PACKAGES},
        command=command,
        time=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
