"""Fine-tune a LoRA: measure, train, measure again, leave an adapter and the recipe to repeat it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.finetune.estimated import beside_peak
from workbench.finetune.job import Job, prepare
from workbench.finetune.launch import train_launched
from workbench.finetune.lora import ADAPTER_FILES, TRAINED, cpu_threads, read_log, train_lora
from workbench.finetune.mask import quiet_libraries
from workbench.finetune.measure import Measured, measure
from workbench.finetune.recipe import Recipe
from workbench.finetune.result import Training, before_and_after
from workbench.finetune.workspace import LOG, Workspace, workspace
from workbench.paths import atomic_folder
from workbench.receipts import Receipt, write


def finetune(
    model: str | Path | None = None,
    dataset: str | Path | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    evaluation: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **changes: Any,
) -> Training:
    """Fine-tune a LoRA on the assistant's turns of a dataset.

    Args:
        model: Card id or folder of safetensors; default is the recipe's, ``tiny-chat``.
        dataset: JSON lines of chats, a name that ships, or None for the recipe's.
        recipe: A preset's name (``tiny``, ``up-to-3b``, ``7b-14b``, ``30b-70b``), a file, the
            folder of an adapter to train again, or None for the model's size.
        evaluation: Held-out JSON lines; default is ``<dataset>.eval.jsonl``, "none" for none.
        out: Folder of the adapter; default is ``outputs/models/<model>-<dataset>``.
        resume: Go on with a training that was interrupted; False begins anew.
        progress: Show bars.
        changes: Settings of the recipe that win over it: ``rank=8``, ``max_steps=100`` ...

    Returns:
        The adapter's folder, the figures before and after, the loss curve.

    Raises:
        InputError: A wrong setting, dataset line or output folder; nothing was trained.
        NotFoundError: No such model, recipe or dataset.
        UnsupportedError: The model cannot be trained, or its template cannot mark the answers.
        MissingPackageError: A package that the training needs is not installed.
        EngineError: The training diverged or memory ran out.
    """
    given = {**changes, "model": model, "dataset": dataset, "evaluation": evaluation, "out": out}
    job = prepare(recipe, given, command=called("wb.finetune", given, recipe=recipe))
    return _run(job, resume=resume, progress=progress)


def _run(job: Job, *, resume: bool, progress: bool) -> Training:
    """Measure, train, measure again; only the whole adapter gets the final name."""
    try:
        with (
            workspace(job.out, job.recipe, job.origins, resume=resume) as work,
            quiet_libraries(),
            cpu_threads(job.recipe.threads),
        ):
            # 1. before; a resumed training has it already
            kept = work.remembered("before")
            before = Measured.from_dict(kept) if kept else measure(job, progress=progress)
            work.remember("before", before.as_dict())
            # 2. train; leaves adapter, loss curve and facts in the working folder
            if work.remembered(TRAINED) is None:
                if job.recipe.processes > 1:
                    train_launched(job, work, progress=progress)
                else:
                    train_lora(job, work, progress=progress)
            # 3. after, on the adapter as it was saved; then it gets its name
            training = _finish(job, work, before, progress=progress)
            work.remove()
    except WorkbenchError as error:
        write(_receipt(job, outcome="failed", reason=str(error)))
        raise
    found = beside_peak(job, training.metrics["memory"])
    write(_receipt(job, outcome="done", result={**training.metrics, **found}))
    return training


def _finish(job: Job, work: Workspace, before: Measured, *, progress: bool) -> Training:
    facts = work.remembered(TRAINED) or {}
    with atomic_folder(job.out) as folder:
        for name in ADAPTER_FILES:
            shutil.copyfile(work.folder / TRAINED / name, folder / name)
        _name_base(folder / "adapter_config.json", job)
        after = measure(job, adapter=folder, progress=progress)
        before = _with_loss(before, facts["held_out_before"])
        after = _with_loss(after, facts["held_out_after"])
        shutil.copyfile(work.log, folder / LOG)
        metrics = _metrics(job, facts, before, after)
        text = json.dumps(metrics, indent=1, ensure_ascii=False) + "\n"
        (folder / "metrics.json").write_text(text, encoding="utf-8")
        (folder / "recipe.yaml").write_text(job.recipe.as_yaml(job.origins), encoding="utf-8")
        training = Training(
            adapter=job.out,
            recipe=job.recipe,
            before=before,
            after=after,
            curve=tuple(read_log(folder / LOG)),
            metrics=metrics,
            view=job.view,
            notes=job.notes,
        )
        (folder / "README.md").write_text(_readme(job, training), encoding="utf-8")
    return training


def _name_base(config: Path, job: Job) -> None:
    """Name the base model by what finds it again, not by this machine's path."""
    values = json.loads(config.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = job.card.repository or job.card.path or job.card.id
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _with_loss(measured: Measured, held_out: dict[str, Any]) -> Measured:
    return Measured(
        loss=held_out["loss"],
        token_accuracy=held_out["token_accuracy"],
        answers=measured.answers,
        skills=measured.skills,
    )


def _metrics(job: Job, facts: dict[str, Any], before: Measured, after: Measured) -> dict[str, Any]:
    view = job.view
    return {
        "rows": len(view),
        "row_tokens": view.tokens,
        "supervised_tokens": view.supervised_tokens,
        "rows_cut": view.truncated,
        "rows_dropped": len(view.dropped),
        **{name: value for name, value in facts.items() if not name.startswith("held_out")},
        "before": before.numbers(),
        "after": after.numbers(),
    }


def _receipt(job: Job, **outcome: Any) -> Receipt:
    return Receipt.of(
        {
            "what": "finetune",
            "model": job.card.id,
            "plan": {
                "engine": "transformers",
                "quantization": job.recipe.quantization,
                "dtype": job.dtype,
                "device": job.device,
                "files": str(job.files.path),
            },
            "parameters": job.recipe.model_dump(mode="json"),
            **outcome,
        }
    )


def _readme(job: Job, training: Training) -> str:
    rows = before_and_after(training.before, training.after)
    table = "\n".join(
        f"| {row['measure']} | {row['before']:.4g} | {row['after']:.4g} | {row['change']:+.4g} |"
        for row in rows
    )
    name = job.out.name
    return f"""# {name}

A LoRA adapter (PEFT) for `{job.card.id}`, trained on `{job.data.path.name}`.
{training.summary()}.

| measure | before | after | change |
|---|---|---|---|
{table}

| file | holds |
|---|---|
| `adapter_model.safetensors`, `adapter_config.json` | the adapter, as PEFT loads it |
| `recipe.yaml` | every setting; `wb.finetune(recipe="{name}")` repeats the training |
| `training.jsonl` | the loss curve |
| `metrics.json` | the figures above, time, speed and memory |

```python
model = wb.load("{job.recipe.model}", adapter="{name}")
```
"""


def called(function: str, given: dict[str, Any], **more: Any) -> str:
    """Return the call as text, with the arguments that were given."""
    shown = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in {**given, **more}.items()
        if value is not None and not isinstance(value, Recipe)
    }
    return f"{function}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
