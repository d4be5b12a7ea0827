"""The one LoRA recipe: TRL's SFTTrainer and a PEFT LoRA, leaving adapter, loss curve and facts."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from workbench.errors import EngineError, InputError, did_you_mean
from workbench.finetune.job import Job
from workbench.finetune.mask import as_rows, quiet_libraries
from workbench.finetune.shown import Shown, training_shown
from workbench.finetune.workspace import Workspace
from workbench.machine.meter import Meter
from workbench.paths import require_space

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TRAINED = "trained"
_BYTES = 4 * (3 * 3 + 1)
"""Bytes on disk per trained weight: fp32, up to three checkpoints with Adam's two moments."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def train_lora(job: Job, work: Workspace, *, progress: bool = True) -> None:
    """Train the adapter of a job, going on from the last whole checkpoint if there is one.

    Leaves in the working folder: ``trained/`` with the adapter, ``training.jsonl`` with the loss
    curve, and the facts (losses, seconds, memory) under the name ``trained``.

    Raises:
        EngineError: The loss is no number any more, or memory ran out.
        InputError: ``target_modules`` names a layer that the model does not have.
    """
    steps = job.steps()
    with quiet_libraries(), cpu_threads(job.recipe.threads), Meter() as meter:
        # 1. model, adapter and rows; the labels must be those that were shown
        with meter.phase("load"):
            trainer = build_trainer(job, work, steps=steps)
            _check_labels(trainer, job)
        trainable, _ = trainer.model.get_nb_trainable_parameters()
        require_space(work.folder, trainable * _BYTES, purpose="Checkpoints and adapter")
        # 2. held-out loss of the base model: the adapter begins as a zero
        checkpoint = work.last_checkpoint() if work.resumed else None
        before = work.remembered("loss_before") or _held_out(trainer)
        if trainer.is_world_process_zero():
            work.remember("loss_before", before)
        # 3. train, then the held-out loss again
        quiet = None if progress and trainer.is_world_process_zero() else True
        with training_shown(job, quiet=quiet) as shown:
            memory = functools.partial(meter.in_use, job.device)
            journal = _journal(work, shown, checkpoint, before, memory)
            trainer.add_callback(journal)
            with meter.phase("train"), _memory_errors(job):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            after = _held_out(trainer)
        # 4. adapter and facts
        trainer.save_model(str(work.folder / TRAINED))
        if trainer.is_world_process_zero():
            work.remember(TRAINED, _facts(job, trainer, meter, journal, before, after))
        trainer.model = trainer.model_wrapped = None
        del trainer
        _free()


def build_trainer(job: Job, work: Workspace, *, steps: int) -> Any:
    """Return the SFTTrainer of a job: settings, plain or quantized base, LoRA, rows."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PrinterCallback
    from trl import SFTTrainer

    recipe = job.recipe
    settings = _settings(job, work, steps)  # first: ZeRO-3 cuts the weights while they are read
    model = AutoModelForCausalLM.from_pretrained(
        job.files.path,
        local_files_only=True,
        use_safetensors=True,
        **_loading(job),
    )
    check_targets(model, recipe.target_modules)
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=as_rows(job.data),
        eval_dataset=as_rows(job.evaluation) if job.evaluation else None,
        processing_class=job.tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules=_targets(recipe.target_modules),
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _settings(job: Job, work: Workspace, steps: int) -> Any:
    """Return TRL's settings of a job; nothing is left to a default that is known to surprise."""
    from trl import SFTConfig

    recipe = job.recipe
    every = recipe.evaluation_steps if job.evaluation else None
    settings = SFTConfig(
        output_dir=str(work.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_length=recipe.max_length,
        assistant_only_loss=recipe.assistant_only_loss,
        gradient_checkpointing=recipe.gradient_checkpointing,
        **({"optim": recipe.optimizer} if recipe.optimizer != "adamw" else {}),
        seed=recipe.seed,
        bf16=job.dtype == "bf16",
        fp16=job.dtype == "fp16",
        use_cpu=job.device == "cpu",
        dataloader_pin_memory=job.device == "cuda",
        logging_steps=recipe.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=job.checkpoint_every(steps),
        save_total_limit=2,
        eval_strategy="steps" if every else "no",
        eval_steps=every,
        report_to="none",
        disable_tqdm=True,
    )
    if settings.n_gpu > 1:  # one process takes one GPU; TRL refuses PyTorch's DataParallel
        settings._n_gpu = 1
    return settings


def _loading(job: Job) -> dict[str, Any]:
    """Return how the base is loaded: quantized by bitsandbytes or not, and straight to where."""
    import torch
    from transformers import BitsAndBytesConfig

    recipe = job.recipe
    loading: dict[str, Any] = {"dtype": getattr(torch, _DTYPES[job.dtype])}
    if recipe.quantization == "int8":
        loading["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif recipe.quantization == "nf4":
        loading["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=loading["dtype"],
        )
    if job.device == "cuda" and recipe.parallel == "ddp":
        loading["device_map"] = {"": int(os.environ.get("LOCAL_RANK", "0"))}
    elif recipe.quantization != "none":
        loading["device_map"] = {"": job.device}
    return loading


def _targets(target_modules: str | tuple[str, ...]) -> str | list[str]:
    if isinstance(target_modules, str):
        return target_modules if target_modules == "all-linear" else [target_modules]
    return list(target_modules)


def check_targets(model: Any, target_modules: str | tuple[str, ...]) -> None:
    """Raise InputError for a layer that the model lacks, and for the head, untrainable in TRL."""
    wanted = _targets(target_modules)
    if isinstance(wanted, str):
        return
    import torch

    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    } - {"lm_head"}
    for name in wanted:
        if name not in linear:
            raise InputError(
                f"target_modules names {name!r}, which no linear layer of this model is called.",
                hint=f"{did_you_mean(name, linear)} all-linear takes all of them.",
            )


def _check_labels(trainer: Any, job: Job) -> None:
    trained = trainer.train_dataset["labels"]
    if [list(row.labels) for row in job.view.rows] != [list(labels) for labels in trained]:
        raise EngineError(
            "TRL computes the loss on other tokens than those shown by supervised().",
            hint="Report this with the versions of trl and transformers.",
        )


def _held_out(trainer: Any) -> dict[str, Any]:
    """Return loss (nats per supervised token) and token accuracy on the held-out rows."""
    if trainer.eval_dataset is None:
        return {"loss": None, "token_accuracy": None}
    found = trainer.evaluate()
    return {"loss": found["eval_loss"], "token_accuracy": found.get("eval_mean_token_accuracy")}


def _facts(
    job: Job, trainer: Any, meter: Meter, journal: Any, before: Any, after: Any
) -> dict[str, Any]:
    trainable, total = trainer.accelerator.unwrap_model(trainer.model).get_nb_trainable_parameters()
    return {
        "steps": trainer.state.global_step,
        "resumed_from_step": journal.first_step or None,
        "seconds": journal.seconds,
        "tokens": journal.tokens,
        "tokens_per_second": journal.tokens / journal.seconds if journal.seconds else None,
        "trainable_parameters": trainable,
        "all_parameters": total,
        "held_out_before": before,
        "held_out_after": after,
        "processes": job.recipe.processes,
        "device": job.device,
        "memory": meter.as_rows(),
    }


@contextlib.contextmanager
def _memory_errors(job: Job) -> Iterator[None]:
    """Turn PyTorch's out-of-memory error into one that says which settings to change."""
    import torch

    recipe = job.recipe
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"Memory ran out in training {job.card.id} with batch_size = {recipe.batch_size}, "
            f"max_length = {recipe.max_length}, {recipe.method}: {str(error).splitlines()[0]}",
            hint="Halve batch_size and double gradient_accumulation, set gradient_checkpointing, "
            "or take method qlora.",
        ) from None


def _journal(
    work: Workspace,
    shown: Shown,
    checkpoint: Path | None,
    before: dict[str, Any],
    memory: Callable[[], int],
) -> Any:
    """Return the callback that keeps the loss curve, and shows it as it grows."""
    from transformers import TrainerCallback

    class Journal(TrainerCallback):  # type: ignore[misc]
        """Appends what the trainer reports to the log; rows after the checkpoint are redone."""

        def __init__(self) -> None:
            step = int(checkpoint.name.rsplit("-", 1)[-1]) if checkpoint else 0
            self.rows = [row for row in read_log(work.log) if row["step"] <= step] or _start(before)
            losses = [row for row in self.rows if "loss" in row]
            self._seconds = losses[-1]["seconds"] if losses else 0.0
            self._tokens = losses[-1]["tokens"] if losses else 0
            self.seconds, self.tokens = self._seconds, self._tokens
            self.first_step = step
            shown.step(step)
            for row in self.rows:
                shown.row(row)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._began = time.perf_counter()
            if state.is_world_process_zero:
                lines = (json.dumps(row) + "\n" for row in self.rows)
                work.log.write_text("".join(lines), encoding="utf-8")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            shown.step(state.global_step)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            if "loss" in logs:
                self._keep(state, self._loss_row(state, logs))
                _check_loss(logs["loss"], state.global_step)
            elif "eval_loss" in logs:
                self._keep(state, {"step": state.global_step, "held_out_loss": logs["eval_loss"]})

        def _loss_row(self, state: Any, logs: dict[str, Any]) -> dict[str, Any]:
            seconds = self._seconds + time.perf_counter() - self._began
            tokens = self._tokens + int(logs.get("num_tokens", 0))
            span, new = seconds - self.seconds, tokens - self.tokens
            self.seconds, self.tokens = seconds, tokens
            return {
                "step": state.global_step,
                "epoch": logs.get("epoch"),
                "loss": logs["loss"],
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": logs.get("grad_norm"),
                "token_accuracy": logs.get("mean_token_accuracy"),
                "tokens": tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(new / span, 1) if span > 0 else None,
                "memory_bytes": memory(),
            }

        def _keep(self, state: Any, row: dict[str, Any]) -> None:
            self.rows.append(row)
            shown.row(row)
            if state.is_world_process_zero:
                with work.log.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row) + "\n")

    return Journal()


def _start(before: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the curve's rows before the first step."""
    return [] if before["loss"] is None else [{"step": 0, "held_out_loss": before["loss"]}]


def _check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise EngineError(
            f"The loss is {loss} at step {step}: the training has diverged.",
            hint="Lower learning_rate, raise warmup, or use fp32 or bf16 instead of fp16.",
        )


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a loss curve; a last line that was cut off by a kill is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use so many CPU threads within the block; None leaves its choice."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
