"""What one fine-tuning needs, checked before a weight is loaded."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from workbench.catalog import Card, ModelFiles, locate, resolve
from workbench.errors import InputError, MissingPackageError, UnsupportedError
from workbench.finetune.data import TrainingData, data_file, evaluation_file, read_data
from workbench.finetune.mask import MaskView, supervised, tokenizer_of
from workbench.finetune.recipe import Recipe, check_source, resolve_recipe, source_of
from workbench.machine import default_device
from workbench.paths import checkout, outputs

NO_EVALUATION = "none"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fine-tuning, ready to start.

    Attributes:
        recipe: The settings, every value resolved.
        origins: Where each value came from: argument, a file's name, default.
        card: The base model.
        files: Its files.
        data: The training rows.
        evaluation: The held-out rows, or None.
        tokenizer: The model's tokenizer.
        view: What the loss is computed on.
        out: Folder that the adapter gets.
        device: ``cuda``, ``mps`` or ``cpu``.
        dtype: Of base weights and computation: ``fp32``, ``bf16`` or ``fp16``.
        notes: What the user should know about the choices.
    """

    recipe: Recipe
    origins: dict[str, str]
    card: Card
    files: ModelFiles
    data: TrainingData
    evaluation: TrainingData | None
    tokenizer: Any = dataclasses.field(repr=False)
    view: MaskView = dataclasses.field(repr=False)
    out: Path
    device: str
    dtype: str
    notes: tuple[str, ...] = ()

    def steps(self) -> int:
        """Return the optimizer steps of the whole training."""
        recipe = self.recipe
        if recipe.max_steps is not None:
            return recipe.max_steps
        batches = math.ceil(len(self.view) / (recipe.batch_size * recipe.processes))
        per_epoch = math.ceil(batches / recipe.gradient_accumulation)
        return max(1, math.ceil(recipe.epochs * per_epoch))

    def checkpoint_every(self, steps: int) -> int:
        """Return the steps between checkpoints, a multiple of the logging steps.

        A resumed training then logs the same averages as one that was never interrupted.
        """
        every = self.recipe.checkpoint_steps
        wanted = math.ceil(every * steps) if every < 1 else round(every)
        return max(1, math.ceil(wanted / self.recipe.logging_steps)) * self.recipe.logging_steps


def prepare(
    recipe: str | Path | Recipe | None,
    changes: dict[str, Any],
    *,
    command: str = "",
    reuse_source: bool = False,
) -> Job:
    """Return the job of a recipe with ``changes`` on top.

    Args:
        recipe: A preset's name, a file, a recipe, or None for the preset of the model's size.
        changes: Settings that win over it; None means "not given".
        command: What was called, for the recipe that repeats it.
        reuse_source: Keep what the recipe says it was made of: this process is a part of that run.

    Raises:
        InputError: A wrong setting, dataset line or output folder.
        NotFoundError: No such model, recipe or dataset.
        UnsupportedError: The model cannot be trained this way.
        MissingPackageError: A package that the training needs is not installed.
    """
    check_packages(changes.get("method"))
    named = changes.get("model")
    card = resolve(named) if named is not None else None
    resolved, origins = resolve_recipe(recipe, _plain(changes), card=card)
    card = card or resolve(resolved.model)
    check_packages(resolved.method)
    files = locate(card)
    data, evaluation = _data(resolved)
    out = _out(resolved, card, data)
    tokenizer = tokenizer_of(files)
    view = _view(data, tokenizer, resolved)
    if evaluation is not None:
        _view(evaluation, tokenizer, resolved)
    device = default_device()
    dtype = _dtype(resolved, device)
    source = source_of(
        dataset_sha256=data.sha256,
        evaluation_sha256=evaluation.sha256 if evaluation else None,
        model_sha256=files.content_hash(),
        command=command,
    )
    notes = [*_remarks(data, evaluation, view), *check_source(resolved, source)]
    return Job(
        recipe=resolved.changed(
            model=resolved.model if resolved.model == card.id else _home(resolved.model),
            dataset=_portable(data.path),
            evaluation=_portable(evaluation.path) if evaluation else NO_EVALUATION,
            out=str(out),
            dtype=dtype,
            threads=resolved.threads or _threads(),
            source=resolved.source if reuse_source else source,
        ),
        origins=origins,
        card=card,
        files=files,
        data=data,
        evaluation=evaluation,
        tokenizer=tokenizer,
        view=view,
        out=out,
        device=device,
        dtype=dtype,
        notes=tuple(notes),
    )


def _remarks(data: TrainingData, evaluation: TrainingData | None, view: MaskView) -> list[str]:
    """Return what the user should know about the rows."""
    remarks = [view.summary()] if view.truncated or view.dropped else []
    trained = {example.question for example in data.examples}
    known = sum(example.question in trained for example in evaluation.examples) if evaluation else 0
    if evaluation and known:
        remarks.append(f"{known} of {len(evaluation)} held-out questions are also trained")
    return remarks


def check_packages(method: str | None) -> None:
    """Raise MissingPackageError when a package that this method needs is not installed."""
    import importlib.util

    needed = ["torch", "transformers", "trl", "peft", "datasets", "accelerate"]
    if method == "qlora":
        needed.append("bitsandbytes")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"Fine-tuning needs {', '.join(missing)}, which {_are(missing)} not installed.",
            hint="pip install -c constraints.txt 'llm-workbench[torch]'",
        )


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _plain(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: str(item) if isinstance(item, Path) else item for name, item in changes.items()}


def _data(recipe: Recipe) -> tuple[TrainingData, TrainingData | None]:
    if recipe.dataset is None:
        raise InputError(
            "The recipe names no dataset.", hint="Give dataset=, a file of JSON lines."
        )
    data = read_data(data_file(recipe.dataset))
    if recipe.evaluation == NO_EVALUATION:
        return data, None
    path = data_file(recipe.evaluation) if recipe.evaluation else evaluation_file(data.path)
    if path is None:
        return data, None
    evaluation = read_data(path)
    if evaluation.sha256 == data.sha256:
        raise InputError(
            f"The evaluation file {path} is the training file: its numbers would say nothing.",
            hint='Give rows that are not trained, or evaluation="none".',
        )
    return data, evaluation


def _view(data: TrainingData, tokenizer: Any, recipe: Recipe) -> MaskView:
    return supervised(
        data,
        tokenizer,
        max_length=recipe.max_length,
        assistant_only_loss=recipe.assistant_only_loss,
        drop_overlong=recipe.drop_overlong,
    )


def _out(recipe: Recipe, card: Card, data: TrainingData) -> Path:
    """Return the adapter's folder; one that holds something else is refused."""
    if recipe.out is None:
        return outputs("models", f"{card.id}-{data.path.stem}")
    out = Path(os.path.expandvars(recipe.out)).expanduser().absolute()
    if out.is_file() or (
        out.is_dir() and any(out.iterdir()) and not (out / "adapter_config.json").is_file()
    ):
        raise InputError(
            f"The output {out} exists and is no adapter.", hint="Give another out=; it stays as is."
        )
    return out


def _dtype(recipe: Recipe, device: str) -> str:
    if recipe.dtype == "auto":
        if device != "cuda":
            return "fp32"
        import torch

        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if recipe.dtype == "fp16" and device == "cpu":
        raise UnsupportedError(
            "Training in fp16 does not work on a CPU.", hint="Give dtype fp32 or bf16."
        )
    return recipe.dtype


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())


def _portable(path: str | Path) -> str:
    """Return a file below the checkout as relative to it, others as ``_home`` does."""
    absolute = Path(path).expanduser().absolute()
    root = checkout()
    if root is not None and absolute.is_relative_to(root):
        return str(absolute.relative_to(root))
    return _home(absolute)


def _home(path: str | Path) -> str:
    """Return an existing path as absolute, below the home folder with ``~``; all else as it is."""
    absolute, home = Path(path).expanduser().absolute(), Path.home()
    if not absolute.exists():
        return str(path)
    return f"~/{absolute.relative_to(home)}" if absolute.is_relative_to(home) else str(absolute)
