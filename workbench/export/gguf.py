"""Export a model or adapter to GGUF: merge, convert, quantize, check every hop, then publish."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog import Card, ModelFiles, locate, resolve
from workbench.errors import InputError, ParityError, UnsupportedError
from workbench.export.adapter import Adapter, is_adapter, read_adapter
from workbench.export.limits import limit_of
from workbench.export.merge import merge_into
from workbench.export.parity import FLOATS, Parity, parity
from workbench.figures import Table
from workbench.formats import convert, known_quantization, quantize
from workbench.formats.gguf import file_bytes
from workbench.formats.safetensors import read_stored
from workbench.formats.weights import SameWeights, compare_weights
from workbench.messages import Conversation
from workbench.paths import (
    atomic_file,
    atomic_folder,
    outputs,
    require_space,
    sha256,
    sweep_partials,
)
from workbench.receipts import Receipt, write

MERGED, PARITY, ABOUT = "merged", "parity.json", "export.json"
_STORED = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What an export left; displays itself as a table of files.

    Attributes:
        folder: Holds everything.
        files: Form to GGUF file, in the order asked for.
        sha256: Form to the hex digest of its file.
        parity: The chain of hops, all within their limits.
        weights: How many tensors of the float file are the source's, bit by bit.
        merged: Folder of the merged model, or None when no adapter was exported.
    """

    folder: Path
    files: Mapping[str, Path]
    sha256: Mapping[str, str]
    parity: Parity
    weights: SameWeights
    merged: Path | None = None

    def table(self) -> Table:
        """Return one row for each file."""
        hops = {hop.form: hop for hop in self.parity.hops}
        rows = []
        for name, path in self.files.items():
            found = hops[name].agreement if name in hops else None
            rows.append(
                {
                    "form": name,
                    "file": path.name,
                    "MB": path.stat().st_size / 1e6,
                    "mean_kl": found.mean_kl if found else None,
                    "top1": found.top1 if found else None,
                    "sha256": self.sha256[name],
                }
            )
        return Table(
            rows,
            columns={
                "form": "form",
                "file": "file",
                "MB": "MB",
                "mean_kl": "mean KL (nats)",
                "top1": "top-1",
                "sha256": "sha256",
            },
            caption=f"{self.parity.model}: {len(self.files)} files, every hop within its limits",
            formats={"MB": ".2f", "mean_kl": ".2e", "top1": ".2%"},
        )

    def key_numbers(self) -> Iterator[tuple[str, float, str]]:
        """Yield name, value and unit of the figures that matter."""
        for hop in self.parity.hops:
            if hop.agreement is not None:
                yield f"mean KL, {hop.against} to {hop.form}", hop.agreement.mean_kl, "nats"
        last = self.parity.hops[-1]
        if last.agreement is not None:
            yield f"top-1, {last.form}", round(100 * last.agreement.top1, 2), "%"
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        smallest = min(sizes, key=lambda name: sizes[name])
        yield f"smallest, {smallest}", round(sizes[smallest] / 1e6, 3), "MB"

    def conclusion(self) -> str:
        """Return the result in two sentences."""
        chain = [self.parity.hops[0].against, *(hop.form for hop in self.parity.hops)]
        ids = all(hop.agreement and hop.agreement.prompt_ids_equal for hop in self.parity.hops)
        return (
            f"All {len(self.parity.hops)} hops keep their limits: {', '.join(chain)}. "
            f"The prompt token ids are {'equal' if ids else 'not equal'} in all of them."
        )

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        bundle: dict[str, str] = self.table()._repr_mimebundle_(**options)
        return bundle


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is to be done, checked before the first byte."""

    name: str
    adapter: Adapter | None
    files: ModelFiles
    forms: tuple[str, ...]
    floating: str
    parameters: int
    dtype: str

    def space(self) -> int:
        """Return the bytes to have free."""
        needed = sum(file_bytes(self.parameters, form) for form in {*self.forms, self.floating})
        merged = int(self.parameters * _BYTES[self.dtype] * 1.3) if self.adapter else 0
        return needed + merged


def export_gguf(
    model: str | Path | Card,
    out: str | Path | None = None,
    *,
    quantizations: Sequence[str] = ("F16", "Q8_0", "Q4_K_M"),
    base: str | Path | Card | None = None,
    name: str | None = None,
    conversations: Sequence[Conversation] | None = None,
) -> Export:
    """Export a safetensors model, or an adapter merged into its base, to GGUF files.

    Every hop is checked: adapter to merged model, merged model to the float GGUF, that to each
    quantization. The folder appears only when all are within the limits of ``configs/parity.yaml``.

    Args:
        model: A card id, a folder of safetensors, or the folder of an adapter.
        out: Folder to write; default is ``outputs/models/<name>-gguf``.
        quantizations: GGUF forms to write; quantized ones are made from the first float among
            them, else from a float file as the weights are stored, which is not kept.
        base: The base model of an adapter; default is the one that it names.
        name: Beginning of the file names; default is the folder's name.
        conversations: What parity is measured on; default are the held-out conversations.

    Returns:
        The files with their sizes, digests and parity.

    Raises:
        ParityError: A hop is outside its limit, named with the figure and the limit; the measured
            chain is left in ``<out>.failed.json``, and nothing else.
        DiskSpaceError: There is no room; nothing was written.
        InputError: An unknown model or quantization.
        UnsupportedError: The model has no safetensors, or cannot be merged or converted.
        FormatError: A file is cut off, or the tokenizer cannot be written faithfully.
    """
    job = _job(model, quantizations, base=base, name=name)
    final = Path(out).expanduser().resolve() if out else outputs("models", f"{job.name}-gguf")
    if final.exists() and not (final / ABOUT).is_file() and any(final.iterdir()):
        raise InputError(
            f"{final} exists and is no export of ours.", hint="Give another out=; it stays as is."
        )
    require_space(final.parent, job.space(), purpose=f"Exporting {job.name}")
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep_partials(final.parent)
    failed = final.with_name(f"{final.name}.failed.json")
    try:
        with atomic_folder(final) as partial:
            result = _export(job, partial, failed=failed, conversations=conversations)
    except ParityError as error:
        write(_receipt(job, outcome="failed", reason=str(error)))
        raise
    failed.unlink(missing_ok=True)
    result = dataclasses.replace(
        result,
        folder=final,
        files={form: final / path.name for form, path in result.files.items()},
        merged=final / MERGED if result.merged else None,
    )
    write(_receipt(job, outcome="done", result=_about(result)))
    return result


def _job(
    model: str | Path | Card,
    quantizations: Sequence[str],
    *,
    base: str | Path | Card | None,
    name: str | None,
) -> _Job:
    """Check everything that can be checked before the first byte is written."""
    given = [quantizations] if isinstance(quantizations, str) else list(quantizations)
    forms = tuple(dict.fromkeys(known_quantization(form) for form in given))
    if not forms:
        raise InputError("No quantization was given.", hint='For example ("F16", "Q4_K_M").')
    for form in forms:
        limit_of(form)
    adapter = read_adapter(str(model), base=base) if is_adapter(model) else None
    card = adapter.base if adapter else resolve(model)
    files = adapter.base_files if adapter else locate(card)
    if files.kind != "safetensors":
        raise UnsupportedError(
            f"{card.id} is a GGUF file already.", hint="Export from the safetensors of the model."
        )
    stored = read_stored(files)
    floats = [form for form in forms if form in FLOATS]
    return _Job(
        name=name or (adapter.folder.name if adapter else files.path.name),
        adapter=adapter,
        files=files,
        forms=forms,
        floating=floats[0] if floats else stored.float_name,
        parameters=stored.parameters,
        dtype=_STORED[stored.float_name],
    )


def _export(
    job: _Job, folder: Path, *, failed: Path, conversations: Sequence[Conversation] | None
) -> Export:
    """Write everything into ``folder`` and check it; raise where a hop is broken."""
    # 1. one safetensors model
    source, merged = job.files, None
    if job.adapter is not None:
        merged = folder / MERGED
        merged.mkdir()
        merge_into(job.adapter, merged, dtype=job.dtype, parameters=job.parameters)
        source = locate(resolve(merged))

    # 2. the float file, and from it all others
    paths = {form: folder / f"{job.name}-{form}.gguf" for form in (job.floating, *job.forms)}
    for form in dict.fromkeys(form for form in paths if form in FLOATS):
        convert(source, paths[form], dtype=form, name=job.name)  # type: ignore[arg-type]
    weights = _check_weights(job, paths[job.floating], source)
    for form in job.forms:
        if form not in FLOATS:
            quantize(paths[job.floating], paths[form], form, name=job.name)

    # 3. every hop
    found = parity(
        job.adapter.base if job.adapter else job.files.path,
        adapter=job.adapter.folder if job.adapter else None,
        merged=merged,
        ggufs=paths,
        conversations=conversations,
    )
    found = dataclasses.replace(found, model=job.name)
    text = json.dumps(found.as_dict(), indent=1, ensure_ascii=False) + "\n"
    if not found.ok:
        with atomic_file(failed) as partial:
            partial.write_text(text, encoding="utf-8")
        found.require()
    (folder / PARITY).write_text(text, encoding="utf-8")

    # 4. what is kept
    if job.floating not in job.forms:
        paths.pop(job.floating).unlink()
    files = {form: paths[form] for form in job.forms}
    digests = {form: sha256(path) for form, path in files.items()}
    result = Export(
        folder=folder, files=files, sha256=digests, parity=found, weights=weights, merged=merged
    )
    (folder / ABOUT).write_text(json.dumps(_about(result), indent=1) + "\n", encoding="utf-8")
    return result


def _check_weights(job: _Job, path: Path, source: ModelFiles) -> SameWeights:
    """Hold the float file's tensors against the source's before anything is measured on it."""
    found = compare_weights(path, source)
    if not found.ok:
        raise ParityError(
            f"{job.name}: the conversion to {job.floating} is broken: {len(found.differing)} of "
            f"{found.total} tensors are not the source's, the first is {found.differing[0]}; "
            "limit none.",
            hint="Convert again; if it stays, use the transformers engine for this model.",
        )
    return found


def _about(result: Export) -> dict[str, Any]:
    return {
        "model": result.parity.model,
        "tensors_equal_to_the_source": f"{result.weights.equal} of {result.weights.total}",
        "files": {
            form: {
                "file": path.name,
                "bytes": path.stat().st_size,
                "sha256": result.sha256[form],
            }
            for form, path in result.files.items()
        },
    }


def _receipt(job: _Job, **outcome: Any) -> Receipt:
    return Receipt.of(
        {
            "what": "export",
            "model": job.adapter.base.id if job.adapter else job.name,
            "parameters": {
                "adapter": job.adapter.folder.name if job.adapter else None,
                "quantizations": list(job.forms),
            },
            **outcome,
        }
    )
