"""Which files of a repository make one form of a model; works on names alone."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from workbench.catalog.card import GgufSource
from workbench.errors import InputError, NotFoundError, UnsupportedError

_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.\w+)$")
_QUANTIZATION = re.compile(
    r"(?<![A-Za-z0-9])(BF16|FP?16|FP?32|MXFP4(?:_MOE)?|I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_BESIDE_WEIGHTS = (
    "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.spm", "*.vocab",
)  # fmt: skip
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json", "*.tiktoken",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Sentence-transformers keeps each step after the encoder in a numbered folder.
_STEP = re.compile(r"^\d+_\w+$")
_PREFERRED = (
    "Q4_K_M", "Q5_K_M", "Q4_K_S", "Q5_K_S", "Q6_K", "Q8_0", "Q4_0", "IQ4_XS", "MXFP4",
    "F16", "BF16",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SplitPart:
    """One part of a file that was split into several.

    Attributes:
        stem: Name before the numbers.
        names: Names of all parts, in order.
    """

    stem: str
    names: tuple[str, ...]


def split_part(name: str) -> SplitPart | None:
    """Return the parts of ``model-00001-of-00003.gguf``, or None for a name without numbers."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return None
    stem, count, end = match["stem"], int(match["count"]), match["end"]
    names = tuple(f"{stem}-{number:05}-of-{count:05}{end}" for number in range(1, count + 1))
    return SplitPart(stem=stem, names=names)


def quantization_of(name: str) -> str | None:
    """Return the quantization that a GGUF file's name states, for example ``Q4_K_M``."""
    for text in (PurePosixPath(name).name, name):
        found = _QUANTIZATION.findall(text)
        if found:
            return re.sub(r"^FP", "F", found[-1].upper())
    return None


def without_copies(names: Iterable[str]) -> list[str]:
    """Leave out ``consolidated*.safetensors``, a second copy of the same weights."""
    weights = [name for name in names if name.endswith(".safetensors")]
    own = [name for name in weights if not PurePosixPath(name).name.startswith("consolidated")]
    return own or weights


def pickle_error(name: str) -> UnsupportedError:
    """Return the error that refuses a pickle."""
    return UnsupportedError(
        f"{name} is a pickle: loading it can run any code, so it is refused.",
        hint="Use the safetensors form of this model, or convert it where you trust the file.",
    )


def safetensors_wanted(names: Iterable[str], *, where: str = "The folder") -> list[str]:
    """Return the names that loading from safetensors needs: weights, settings, tokenizer.

    Never pickles, ONNX, other frameworks' weights, code, or the folder ``original/``.

    Args:
        names: All names.
        where: What has them, for errors.

    Raises:
        UnsupportedError: The weights are pickles only.
        NotFoundError: There are no weights.
    """
    names = list(names)
    usable = [name for name in names if _is_usable(name)]
    weights = without_copies(usable)
    if not any("/" not in name for name in weights):
        pickles = [name for name in names if _matches(name, PICKLES)]
        if pickles:
            raise pickle_error(pickles[0])
        raise NotFoundError(f"{where} has no .safetensors file.")
    beside = [name for name in usable if _matches(name, _BESIDE_WEIGHTS)]
    return sorted({*weights, *beside})


def safetensors_missing(names: Iterable[str], *, shards: Iterable[str] = ()) -> list[str]:
    """Return what a folder with these names lacks to be loaded, or an empty list.

    Args:
        names: Names in the folder.
        shards: Files that its index names.
    """
    here = set(names)
    missing = [name for name in shards if name not in here]
    weights = [name for name in here if name.endswith(".safetensors") and "/" not in name]
    for name in weights:
        part = split_part(name)
        missing += [other for other in (part.names if part else ()) if other not in here]
    if not weights and not missing:
        missing.append("model.safetensors")
    if "config.json" not in here:
        missing.append("config.json")
    if not any(_matches(name, _TOKENIZERS) for name in here):
        missing.append("tokenizer.json")
    return sorted(set(missing))


def gguf_wanted(
    names: Iterable[str], source: GgufSource, quantization: str | None, *, whole: bool = False
) -> list[str]:
    """Return the GGUF file of one quantization, all parts of it where it is split.

    Args:
        names: Names in the repository or folder.
        source: The card's pattern and its own patterns of single quantizations.
        quantization: Its name, or None for Q4_K_M, else the nearest to it that is there.
        whole: Leave out split files of which a part is missing.

    Raises:
        NotFoundError: No file has this quantization.
        InputError: Several have it, and the card does not say which is meant.
    """
    models = _models(names, whole=whole)
    fitting = _fitting(models, source, quantization)
    if not fitting:
        found = sorted({kind for stem in models if (kind := quantization_of(stem))})
        raise NotFoundError(
            f"{source.repository} has no GGUF file"
            + (f" of the quantization {quantization}." if quantization else "."),
            hint=f"It has {', '.join(found)}." if found else None,
        )
    if quantization is None:
        kinds = {quantization_of(stem): stem for stem in reversed(_plain_first(fitting))}
        return list(models[next((kinds[kind] for kind in _PREFERRED if kind in kinds), fitting[0])])
    if len(fitting) > 1:
        raise InputError(
            f"{source.repository} has {len(fitting)} GGUF files for {quantization}: "
            f"{', '.join(models[stem][0] for stem in fitting[:6])}.",
            hint="Name one of them in the card, under gguf.files.",
        )
    return list(models[fitting[0]])


def _models(names: Iterable[str], *, whole: bool) -> Mapping[str, tuple[str, ...]]:
    """Return the files of each GGUF model by its name without part numbers."""
    here = {
        name
        for name in names
        if name.lower().endswith(".gguf")
        and not re.search(r"mmproj|imatrix", PurePosixPath(name).name, re.IGNORECASE)
    }
    models: dict[str, tuple[str, ...]] = {}
    for name in sorted(here):
        part = split_part(name)
        if part is None:
            models[name] = (name,)
        elif not whole or here.issuperset(part.names):
            models[part.stem] = part.names
    return models


def _fitting(
    models: Mapping[str, tuple[str, ...]], source: GgufSource, quantization: str | None
) -> list[str]:
    if quantization is None:
        patterns = [source.pattern.replace("{quantization}", "*"), *source.files.values()]
        return [stem for stem in models if any(_fits(models[stem], each) for each in patterns)]
    pattern = source.file_pattern(quantization)
    fitting = [stem for stem in models if _fits(models[stem], pattern)]
    if quantization in source.files:
        return fitting
    # The pattern of F16 also fits BF16, and that of Q4_K also Q4_K_M.
    wanted = re.sub(r"^FP", "F", quantization.upper())
    named = [stem for stem in fitting if quantization_of(stem) in (wanted, None)]
    plain = [stem for stem in named if not _is_variant(stem)]
    return plain or named


def _fits(parts: tuple[str, ...], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for name in parts)


def _plain_first(stems: list[str]) -> list[str]:
    return sorted(stems, key=_is_variant)


def _is_variant(stem: str) -> bool:
    """Whether the name marks a quantization made with a recipe of its own (``UD-Q4_K_XL``)."""
    return re.search(r"(?<![A-Za-z0-9])UD-", stem) is not None


def _is_usable(name: str) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.name.startswith("."):
        return False
    return len(path.parts) == 1 or (len(path.parts) == 2 and bool(_STEP.match(path.parts[0])))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(PurePosixPath(name).name, pattern) for pattern in patterns)
