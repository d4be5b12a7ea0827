"""Merge a LoRA adapter into its base model: one folder that any engine loads."""

from __future__ import annotations

import json
from pathlib import Path

from workbench.catalog import Card
from workbench.errors import EngineError, InputError, did_you_mean
from workbench.evaluate.agreement import held_out
from workbench.export.adapter import Adapter, read_adapter
from workbench.export.limits import limits
from workbench.formats.child import run_child
from workbench.formats.safetensors import read_stored
from workbench.paths import atomic_folder, outputs, require_space
from workbench.progress import progress
from workbench.receipts import Receipt, write

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_STORED = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
ABOUT = "merge.json"
_TALKS = 6  # conversations on which merged and unmerged are compared
_SIDE_FILES = 64_000_000


def merge(
    adapter: str | Path,
    out: str | Path | None = None,
    *,
    base: str | Path | Card | None = None,
    dtype: str | None = None,
) -> Path:
    """Merge a LoRA adapter into its base and return the folder of the merged model.

    The sum is made in float32 where memory allows and rounded once. The folder appears only when
    the merged model, loaded again, gives the same probabilities as the adapter on its base. It
    runs in a child process, so its memory is free afterwards.

    Args:
        adapter: Folder of a PEFT LoRA adapter (also rsLoRA, DoRA, trained embeddings).
        out: Folder to write; default is ``outputs/models/<adapter>-merged``.
        base: The base model; default is the one that the adapter names. It must not be quantized.
        dtype: ``fp32``, ``bf16`` or ``fp16``; default is what the base is stored in.

    Raises:
        InputError: No adapter, an unknown dtype, or ``out`` holds something else.
        UnsupportedError: The adapter cannot be merged, or the base is quantized.
        FormatError: A file is cut off, or the adapter does not fit the base.
        ParityError: The merged model differs from the adapter on its base; nothing is left.
        DiskSpaceError: There is no room; nothing was written.
    """
    found = read_adapter(adapter, base=base)
    final = Path(out).expanduser().resolve() if out else _default(found)
    stored = read_stored(found.base_files)
    chosen = dtype or _STORED[stored.float_name]
    if chosen not in _BYTES:
        raise InputError(f"There is no dtype {chosen!r}.", hint=did_you_mean(chosen, _BYTES))
    if final.exists() and not (final / ABOUT).is_file() and any(final.iterdir()):
        raise InputError(
            f"{final} exists and is no merged model of ours.",
            hint="Give another out=; it stays as is.",
        )
    # a third more: tied embeddings may become two
    needed = int(stored.parameters * _BYTES[chosen] * 1.3) + _SIDE_FILES
    require_space(final.parent, needed, purpose=f"Merging {found.folder.name}")
    with atomic_folder(final) as partial:
        figures = merge_into(found, partial, dtype=chosen, parameters=stored.parameters)
    write(
        Receipt(
            what="merge",
            model=found.base.id,
            parameters={"adapter": found.folder.name, "dtype": chosen},
            outcome="done",
            result=figures,
        )
    )
    return final


def merge_into(adapter: Adapter, folder: Path, *, dtype: str, parameters: int) -> dict[str, float]:
    """Write the merged model into ``folder`` and return how far it agrees with the adapter."""
    label = f"{adapter.folder.name} into {adapter.base.id}"
    given = {
        "adapter": str(adapter.folder),
        "base": str(adapter.base_files.path),
        "out": str(folder),
        "dtype": dtype,
        "parameters": parameters,
        "texts": [[turn.as_dict() for turn in turns] for turns in held_out(_TALKS)],
        "limit": limits()["merged"].mean_kl,
    }
    with progress(f"Merging {label} ({dtype})", unit="steps", even=False) as bar:
        results = run_child(
            "workbench.export.merger",
            [json.dumps(given)],
            doing=f"Merging {label}",
            on_event=lambda event: bar.update(done=event["done"], total=event["total"]),
            failure=EngineError,
        )
    about = {"adapter": adapter.folder.name, "base": adapter.base.id, "dtype": dtype}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return results[0]


def _default(adapter: Adapter) -> Path:
    return outputs("models", f"{adapter.folder.name}-merged")
