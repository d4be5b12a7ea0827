"""LoRA adapters for llama.cpp: a PEFT folder is converted once, a GGUF is taken as it is."""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import re
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.catalog import Card, find_local, resolve
from workbench.catalog.header import check_gguf
from workbench.engines.llama_cpp_library import clear, last_words
from workbench.errors import FormatError, InputError, UnsupportedError, WorkbenchError
from workbench.formats.cache import locked
from workbench.formats.child import emit, run_child
from workbench.formats.converter import converter, converter_version
from workbench.formats.safetensors import header
from workbench.paths import atomic_file, cache, shipped
from workbench.progress import progress

REVISION = 1
"""Raised when this code writes other bytes from the same adapter."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ENTRY = "convert_lora_to_gguf.py"
_KNOWN = re.compile(r"\.(lora_[AB]\.weight|lora_embedding_[AB])$")
_MERGE = "Merge it (wb.merge) and load the merged model."


class Adapters:
    """The adapters of a loaded model, each read once, at most one in use.

    Args:
        module: The ``llama_cpp`` module.
        llama: The ``llama_cpp.Llama``.
        card: The model, whose safetensors a PEFT adapter is converted with.
        architecture: The GGUF's ``general.architecture``.
    """

    def __init__(self, module: Any, llama: Any, card: Card, architecture: str) -> None:
        self._c, self._llama, self._card = module, llama, card
        self._architecture = architecture
        self._loaded: dict[tuple[Path, int, int], Any] = {}

    def use(self, adapter: Path | None) -> None:
        """Answer with this adapter from now on, or with the base model.

        Raises:
            InputError: It is no adapter, or one for another architecture.
            UnsupportedError: llama.cpp has no form for it.
            FormatError: It is damaged, or does not fit the model.
        """
        wanted = [] if adapter is None else [self._native(lora_file(adapter, self._card))]
        pointers = (self._c.llama_adapter_lora_p_ctypes * max(1, len(wanted)))(*wanted)
        scales = (ctypes.c_float * max(1, len(wanted)))(*[1.0] * len(wanted))
        if self._c.llama_set_adapters_lora(self._llama.ctx, pointers, len(wanted), scales) != 0:
            raise FormatError(f"llama.cpp does not take the adapter {adapter}: {last_words()}.")

    def _native(self, path: Path) -> Any:
        facts = path.stat()
        key = (path, facts.st_size, facts.st_mtime_ns)  # it may have been trained again
        if key not in self._loaded:
            _check_lora(path, self._architecture)
            clear()
            found = self._c.llama_adapter_lora_init(self._llama.model, str(path).encode())
            if not found:
                said = last_words() or "it gives no reason"
                raise FormatError(
                    f"llama.cpp does not take the adapter {path.name}: {said}.",
                    hint="It belongs to another model.",
                )
            self._loaded[key] = found
        return self._loaded[key]

    def close(self) -> None:
        """Free them, before the model is freed."""
        if self._loaded:
            self.use(None)
        for found in self._loaded.values():
            self._c.llama_adapter_lora_free(found)
        self._loaded.clear()


def _check_lora(path: Path, architecture: str) -> None:
    metadata = check_gguf(path).metadata
    kind, sort = metadata.get("general.type"), metadata.get("adapter.type")
    if kind != "adapter" or sort != "lora":
        raise InputError(
            f"{path.name} is a GGUF file, but no LoRA adapter ({kind or 'model'}).",
            hint="Give a LoRA in GGUF, or the folder that the fine-tuning left.",
        )
    made_for = metadata.get("general.architecture")
    if made_for != architecture:
        raise InputError(
            f"The adapter {path.name} is for the architecture {made_for}, not {architecture}."
        )


def lora_file(adapter: Path, card: Card) -> Path:
    """Return a LoRA adapter as a GGUF file; a PEFT folder is converted once and kept by content.

    Args:
        adapter: A GGUF file, or a folder with ``adapter_config.json``.
        card: The base model.

    Raises:
        InputError: It is no adapter.
        UnsupportedError: llama.cpp has no form for it: DoRA, whole modules, biases.
        FormatError: Its files are damaged, or the converter failed.
        NotFoundError: The configuration of the base model is not here.
    """
    if adapter.suffix == ".gguf" and adapter.is_file():
        return adapter
    config = _read_config(adapter)
    _check_kind(adapter, config)
    digest = hashlib.sha256(f"{converter_version()}-{REVISION}".encode())
    for name in (CONFIG, WEIGHTS):
        digest.update((adapter / name).read_bytes())
    target = cache("gguf", f"lora-{digest.hexdigest()[:24]}") / "lora.gguf"
    if not target.is_file():
        with locked(target.parent):
            if not target.is_file():
                _convert(adapter, config, card, target)
    return target


def _read_config(adapter: Path) -> dict[str, Any]:
    if not (adapter / CONFIG).is_file():
        raise InputError(
            f"{adapter} is not a LoRA adapter: it has no {CONFIG}.",
            hint="Give a LoRA in GGUF, or the folder that the fine-tuning left.",
        )
    try:
        found: dict[str, Any] = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{adapter / CONFIG} is not valid JSON: {error}.") from None
    return found


def _check_kind(adapter: Path, config: Mapping[str, Any]) -> None:
    """Refuse what the converter would drop or refuse."""
    what = str(config.get("peft_type", "LORA"))
    lacking = (
        (what != "LORA", f"of the kind {what}"),
        (bool(config.get("use_dora")), "a DoRA"),
        (config.get("bias", "none") != "none", "with biases"),
        (bool(config.get("alora_invocation_tokens")), "an activated LoRA"),
        (bool(config.get("fan_in_fan_out")), "of transposed layers"),
    )
    said = next((text for holds, text in lacking if holds), None)
    if said is None and not (adapter / WEIGHTS).is_file():
        raise UnsupportedError(
            f"The adapter {adapter.name} has no {WEIGHTS}.", hint="Save it again with safetensors."
        )
    if said is None:
        other = [name for name in header(adapter / WEIGHTS) if not _KNOWN.search(name)]
        said = f"with more than LoRA weights ({other[0]})" if other else None
    if said is not None:
        raise UnsupportedError(
            f"The adapter {adapter.name} is {said}, which llama.cpp has no form for.", hint=_MERGE
        )


def _convert(adapter: Path, config: Mapping[str, Any], card: Card, target: Path) -> None:
    source = converter()
    if not (source.folder / _ENTRY).is_file():
        raise UnsupportedError(
            f"The llama.cpp source in {source.folder} has no {_ENTRY}.", hint=_MERGE
        )
    base = _base_folder(card, config, adapter)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        progress(f"Converting the adapter {adapter.name} to GGUF (about 10 s)"),
        atomic_file(target) as partial,
        tempfile.TemporaryDirectory(prefix="workbench-lora-") as scratch,
    ):
        given = {
            "root": str(source.folder), "adapter": str(adapter), "base": str(base),
            "out": str(partial), "scratch": scratch,
        }  # fmt: skip
        run_child(__name__, [json.dumps(given)], doing=f"Converting the adapter {adapter.name}")
        _require(partial, adapter)
    about = {"source": adapter.name, "what": "LoRA adapter"}
    with atomic_file(target.parent / "about.json") as partial:
        partial.write_text(json.dumps(about), encoding="utf-8")


def _require(written: Path, adapter: Path) -> None:
    found = {tensor.name.rpartition(".lora_")[0] for tensor in check_gguf(written).tensors}
    wanted = {_KNOWN.sub("", name) for name in header(adapter / WEIGHTS)}
    if len(found) < len(wanted):
        raise FormatError(
            f"llama.cpp's converter wrote {len(found)} of {len(wanted)} modules of {adapter.name}.",
            hint=_MERGE,
        )


def _base_folder(card: Card, config: Mapping[str, Any], adapter: Path) -> Path:
    """Return the folder with the base's config.json: the card's safetensors, or what PEFT names."""
    files = find_local(card, form="safetensors")
    if files is not None and files.kind == "safetensors":
        return files.path
    named = str(config.get("base_model_name_or_path") or "")
    if named.startswith("data/"):
        return shipped(*Path(named).parts)
    if (Path(named) / "config.json").is_file():
        return Path(named)
    try:
        files = find_local(resolve(named), form="safetensors") if named else None
    except WorkbenchError:
        files = None
    if files is None or files.kind != "safetensors":
        raise UnsupportedError(
            f"The adapter {adapter.name} cannot be converted: the config.json of its base "
            f"{named or card.id} is not on this machine.",
            hint="Load the base from its safetensors once, or give the adapter as GGUF.",
        )
    return files.path


def main(arguments: list[str]) -> None:
    """Convert one adapter by llama.cpp's own script (child side)."""
    from workbench.formats.patches import Patches, import_converter

    given = json.loads(arguments[0])
    plain = write_plain(Path(given["adapter"]), Path(given["scratch"]))
    Patches(import_converter(Path(given["root"])), byte_level=False)
    sys.argv = [_ENTRY, str(plain), "--base", given["base"], "--outfile", given["out"]]
    sys.argv += ["--outtype", "f32"]
    try:
        runpy.run_path(str(Path(given["root"]) / _ENTRY), run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise FormatError(f"{_ENTRY} does not take the adapter.", hint=_MERGE) from None
    emit("result", values={})


def write_plain(adapter: Path, folder: Path) -> Path:
    """Write an equal adapter whose modules all scale by ``lora_alpha / rank of the tensor``.

    A GGUF has one alpha, and llama.cpp divides it by each tensor's rank. rsLoRA, alpha patterns and
    rank patterns scale otherwise; the converter does not look at them. Their true scale is put
    into the B matrices here.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    weights = load_file(adapter / WEIGHTS)
    alpha = float(config.get("lora_alpha", 8))
    made = {}
    for name, tensor in weights.items():
        found = _KNOWN.search(name)
        if found is None or not re.search(r"_B(\.weight)?$", name):
            made[name] = tensor.contiguous()
            continue
        rank = tensor.shape[1]
        module = name[: found.start()].removeprefix("base_model.model.")
        factor = _scale(config, module) / (alpha / rank)
        made[name] = (tensor.float() * factor).contiguous() if factor != 1 else tensor.contiguous()
    save_file(made, folder / WEIGHTS)
    drop = ("use_rslora", "alpha_pattern", "rank_pattern")
    plain = {key: value for key, value in config.items() if key not in drop}
    (folder / CONFIG).write_text(json.dumps({**plain, "lora_alpha": alpha}), encoding="utf-8")
    return folder


def _scale(config: Mapping[str, Any], module: str) -> float:
    """Return what PEFT multiplies a module's update by: alpha / r, or alpha / sqrt(r) (rsLoRA)."""
    rank = float(_by_pattern(config.get("rank_pattern"), module, config.get("r", 8)))
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """Return the value of the first pattern that ends a module's name, as PEFT matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
