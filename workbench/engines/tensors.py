"""What a model made of tensors consists of: its parts, the largest of them, and their bytes."""

from __future__ import annotations

import sys
from typing import Any

_LARGEST = 3  # parameters watched besides the model: a user may keep some without it


def is_tensors(raw: Any) -> bool:
    """Return whether an object is a module of PyTorch or of MLX."""
    kinds = [getattr(sys.modules.get(name), "Module", None) for name in ("torch.nn", "mlx.nn")]
    return isinstance(raw, tuple(kind for kind in kinds if kind is not None))


def parts_of(raw: Any) -> list[Any]:
    """Return a model and all its parts, so that whoever keeps a layer of it is seen too."""
    if raw is None or not is_tensors(raw):
        return [] if raw is None else [raw]
    modules = raw.modules()
    return [raw, *modules, *_parameters(raw)]


def _parameters(raw: Any) -> list[Any]:
    found = raw.parameters()
    return _leaves(found) if isinstance(found, dict) else list(found)


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for each in tree.values() for leaf in _leaves(each)]
    if isinstance(tree, list | tuple):
        return [leaf for each in tree for leaf in _leaves(each)]
    return [tree]


def watched_of(raw: Any) -> list[Any]:
    """Return what is watched: the model, and its largest parameters.

    Only a tree of tensors says itself what it holds: the shell of a native model may live on
    without its memory.
    """
    if not is_tensors(raw):
        return []
    largest = sorted(_parameters(raw), key=bytes_of, reverse=True)[:_LARGEST]
    return [raw, *(each for each in largest if type(each).__weakrefoffset__)]


def bytes_of(each: Any) -> int:
    """Return the bytes of a tensor, or of all parameters of a model."""
    if is_tensors(each):
        return sum(bytes_of(part) for part in _parameters(each))
    return int(getattr(each, "nbytes", 0))
