"""Say how stored weights are quantized: by config.json, by the tensors' names, by the file type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.catalog.card import StoredForm
from workbench.catalog.gguf_header import FILE_TYPES
from workbench.catalog.header_count import Counted, quantization
from workbench.errors import InputError

# quant_method of transformers to the words of StoredForm.
_METHODS = {
    "bitsandbytes": "bnb", "gptq": "gptq", "awq": "awq", "mxfp4": "mxfp4", "fp8": "fp8",
    "fbgemm_fp8": "fp8", "compressed-tensors": "compressed-tensors", "gguf": "gguf",
}  # fmt: skip
_SKIPPED = ("modules_to_not_convert", "ignore", "ignored_layers", "llm_int8_skip_modules")


def stored_gguf(counted: Sequence[Counted], metadata: Mapping[str, Any]) -> StoredForm | None:
    """Return the quantization of a GGUF file; None where no tensor is quantized."""
    if not any(each.method for each in counted):
        return None
    number = metadata.get("general.file_type")
    name = FILE_TYPES.get(number) if isinstance(number, int) else None
    return StoredForm(method="gguf", detail=name, bytes_per_parameter=_bytes_each(counted))


def stored_safetensors(
    counted: Sequence[Counted], config: Mapping[str, Any] | None
) -> StoredForm | None:
    """Return the quantization of safetensors; None where there is none.

    What config.json says under ``quantization_config`` comes first; what it leaves open, the
    tensors' names and shapes tell.
    """
    said = quantization(config or {})
    first = next((each for each in counted if each.method and each.method != "companion"), None)
    if not said and first is None:
        return None
    values: dict[str, Any] = {"method": first.method if first else "other"}
    if said:
        values = _said(said, first)
    if first is not None:
        values["bits"] = values.get("bits") or first.bits
        values["detail"] = values.get("detail") or first.kind
    values["bytes_per_parameter"] = _bytes_each(counted)
    known = {name: value for name, value in values.items() if value is not None}
    try:
        return StoredForm.of(known)
    except InputError:  # a hostile or unheard-of configuration: what the tensors say stays
        kept = {"method": known["method"], "bytes_per_parameter": known.get("bytes_per_parameter")}
        return StoredForm.of({name: value for name, value in kept.items() if value is not None})


def _bytes_each(counted: Sequence[Counted]) -> float | None:
    weights = [each.weights for each in counted if each.method not in (None, "companion")]
    total = sum(each.tensor.bytes for each in counted if each.method is not None)
    known = [count for count in weights if count is not None]
    return total / sum(known) if sum(known) and len(known) == len(weights) else None


def _said(said: Mapping[str, Any], first: Counted | None) -> dict[str, Any]:
    method = said.get("quant_method")
    if method == "bitsandbytes" or "load_in_4bit" in said or "load_in_8bit" in said:
        values = _bitsandbytes(said)
    elif isinstance(said.get("config_groups"), Mapping):
        values = _compressed(said)
    elif method is None and "group_size" in said and (first is None or first.method == "mlx"):
        values = {"method": "mlx", "detail": _text(said.get("mode"))}
    else:
        # auto-round and others keep the layout of gptq or awq: the tensors tell which.
        found = first.method if first and first.method in ("gptq", "awq") else "other"
        known = _METHODS.get(method) if isinstance(method, str) else None
        values = {"method": known or found}
        values["detail"] = None if known else _text(method)
    _fill(values, said)
    return values


def _fill(values: dict[str, Any], said: Mapping[str, Any]) -> None:
    bits = said.get("bits", said.get("w_bit"))
    symmetric = said.get("sym")
    given = {
        "bits": {"mxfp4": 4, "fp8": 8}.get(values["method"], bits),
        "group_size": said.get("group_size", said.get("q_group_size")),
        "zero_point": said.get("zero_point", None if symmetric is None else not symmetric),
        "block": _block(said.get("weight_block_size")),
        "not_quantized": next((_names(said[key]) for key in _SKIPPED if said.get(key)), None),
    }
    if values["method"] == "mxfp4":
        given["group_size"] = 32  # fixed by the OCP Microscaling specification
    for name, value in given.items():
        values.setdefault(name, value)


def _bitsandbytes(said: Mapping[str, Any]) -> dict[str, Any]:
    four = bool(said.get("load_in_4bit", said.get("_load_in_4bit")))
    values: dict[str, Any] = {"method": "bnb", "bits": 4 if four else 8}
    if four:
        double = ", double" if said.get("bnb_4bit_use_double_quant") is True else ""
        kind = _text(said.get("bnb_4bit_quant_type"))
        values["detail"] = kind and kind + double
    else:
        values["detail"] = "int8"
    return values


def _compressed(said: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "method": "compressed-tensors",
        "detail": _text(said.get("format")),
        "bits": None,
    }
    groups = [group for group in said["config_groups"].values() if isinstance(group, Mapping)]
    weights = [group["weights"] for group in groups if isinstance(group.get("weights"), Mapping)]
    if weights and all(each == weights[0] for each in weights):
        first = weights[0]
        values["bits"] = first.get("num_bits")
        values["group_size"] = first.get("group_size") or (
            -1 if first.get("strategy") == "channel" else None
        )
        values["block"] = _block(first.get("block_structure"))
        symmetric = first.get("symmetric")
        values["zero_point"] = None if symmetric is None else not symmetric
    return values


def _block(value: object) -> tuple[int, int] | None:
    whole = isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value)
    return (value[0], value[1]) if whole and isinstance(value, list) else None


def _text(value: object) -> str | None:
    return value[:80] if isinstance(value, str) else None


def _names(value: object) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) else None
