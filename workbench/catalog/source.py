"""A card resolved to files: on this machine where it can be, else downloaded from the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from workbench.catalog.card import Card, GgufSource, ReadyForm
from workbench.catalog.files import (
    Kind,
    ModelFiles,
    Source,
    files_at,
    gguf_files,
    safetensors_files,
)
from workbench.catalog.header import check_gguf
from workbench.catalog.stores import (
    cached_gguf,
    cached_safetensors,
    in_lm_studio,
    in_ollama,
    safetensors_in_lm_studio,
    stored_quantization,
)
from workbench.catalog.wanted import gguf_wanted, safetensors_wanted
from workbench.errors import InputError, NotFoundError, UnsupportedError, did_you_mean
from workbench.paths import shipped

__all__ = [
    "Kind",
    "ModelFiles",
    "Source",
    "check_gguf_head",
    "fetch",
    "find_local",
    "form_of",
    "kind_to_fetch",
    "locate",
    "stored_quantization",
]
_READY = get_args(ReadyForm.model_fields["kind"].annotation)


def locate(
    card: Card,
    *,
    form: str | None = None,
    quantization: str | None = None,
    download: bool = True,
    quiet: bool | None = None,
) -> ModelFiles:
    """Return the files of a card; what no store on this machine has is downloaded once.

    Looked at in order: the card's path, the Hugging Face cache, Ollama, LM Studio, the hub.

    Args:
        card: What the model is.
        form: ``safetensors``, ``gguf`` or a ready form of the card (``awq``, ``mlx``, ...); None
            takes what is here, else the safetensors, else the GGUF.
        quantization: Which GGUF, for example ``Q4_K_M``; None takes one that is here, else Q4_K_M.
        download: Whether the hub may be asked.
        quiet: Show no progress; None asks ``WORKBENCH_QUIET``.

    Raises:
        NotFoundError: The path, repository, revision or file does not exist.
        InputError: An unknown form, or a cache folder that cannot be written.
        UnsupportedError: The weights are pickles, or the card names a service and no files.
        FormatError: A file is damaged, or not what the hub announced.
        DiskSpaceError: It does not fit on the disk.
        DownloadError: The hub is not reached, or refuses.
    """
    found = find_local(card, form=form, quantization=quantization)
    if found is not None:
        return found
    if not download:
        raise NotFoundError(
            f"The model {card.id} is not on this machine"
            + (f" as {quantization or form}." if quantization or form else "."),
            hint="Let it be downloaded, or give a local path.",
        )
    return fetch(card, form=form, quantization=quantization, quiet=quiet)


def find_local(
    card: Card, *, form: str | None = None, quantization: str | None = None
) -> ModelFiles | None:
    """Return the files of a card that are on this machine, or None; the network is not touched.

    Args:
        card: What the model is.
        form: As in ``locate``.
        quantization: As in ``locate``.

    Raises:
        NotFoundError: The card's path does not exist or holds no weights.
        UnsupportedError: The weights at the card's path are pickles.
        FormatError: A file at the card's path is not what its name says.
    """
    _check_form(form)
    if card.path is not None:
        files = _at_path(card)
        if _is_form(files, form, quantization):
            return files
    if quantization is None and form != "gguf":
        for repository, revision in _safetensors_sources(card, form):
            files_or_none = cached_safetensors(repository, revision)
            files_or_none = files_or_none or safetensors_in_lm_studio(repository)
            if files_or_none is not None:
                return files_or_none
    source = _gguf_source(card)
    if source is None or form not in (None, "gguf"):
        return None
    return (
        cached_gguf(source, quantization, source.revision)
        or in_ollama(source, quantization)
        or in_lm_studio(source, quantization)
    )


def fetch(
    card: Card,
    *,
    form: str | None = None,
    quantization: str | None = None,
    quiet: bool | None = None,
) -> ModelFiles:
    """Download the files of a card into the Hugging Face cache and return them.

    Args:
        card: What the model is.
        form: As in ``locate``.
        quantization: As in ``locate``.
        quiet: As in ``locate``.

    Raises:
        WorkbenchError: As in ``locate``.
    """
    from workbench.catalog.hub import download

    _check_form(form)
    source = _gguf_source(card)
    wants_gguf = form == "gguf" or (form is None and quantization is not None)
    repositories = [] if wants_gguf else _safetensors_sources(card, form)
    if repositories:
        repository, revision = repositories[0]

        def choose(names: Sequence[str]) -> list[str]:
            return safetensors_wanted(names, where=repository)

        snapshot = download(repository, choose, revision=revision, quiet=quiet)
        files = safetensors_files(snapshot.folder)
    elif source is not None and form in (None, "gguf"):

        def choose_gguf(names: Sequence[str]) -> list[str]:
            return gguf_wanted(names, source, quantization)

        snapshot = download(source.repository, choose_gguf, revision=source.revision, quiet=quiet)
        names = gguf_wanted(snapshot.names(), source, quantization, whole=True)
        files = gguf_files(snapshot.folder / names[0])
    else:
        raise _no_source(card, form or ("gguf" if quantization else None))
    if files is None:
        raise NotFoundError(f"{snapshot.repository} holds no .safetensors file.")
    return dataclasses.replace(
        files, source="hub", repository=snapshot.repository, revision=snapshot.revision
    )


def form_of(card: Card, repository: str) -> str | None:
    """Return which form of a card a repository holds: ``gguf``, ``awq``, ...; None for no form."""
    source = _gguf_source(card)
    if source is not None and source.repository == repository:
        return "gguf"
    if repository == card.repository:
        return "safetensors"
    return next((ready.kind for ready in card.forms if ready.repository == repository), None)


def kind_to_fetch(card: Card, kinds: Iterable[str] = ("safetensors", "gguf")) -> Kind | None:
    """Return the first kind of files, in the order given, that a card can be downloaded as."""
    for kind in kinds:
        if kind == "gguf" and _gguf_source(card) is not None:
            return "gguf"
        if kind == "safetensors" and _safetensors_sources(card, None):
            return "safetensors"
    return None


def check_gguf_head(path: Path) -> None:
    """Check that a GGUF file is whole, by its header and its length.

    Raises:
        FormatError: It is damaged, cut off or no GGUF.
    """
    check_gguf(path)


def _at_path(card: Card) -> ModelFiles:
    path = card.expanded_path()
    assert path is not None
    if not path.is_absolute():
        path = shipped(*path.parts)
    if not path.exists():
        raise NotFoundError(
            f"The model folder {path} of card {card.id} does not exist.",
            hint="Correct the card's path, or download the model there.",
        )
    return files_at(path)


def _is_form(files: ModelFiles, form: str | None, quantization: str | None) -> bool:
    if form is not None and files.kind != ("gguf" if form == "gguf" else "safetensors"):
        return False
    if quantization is None:
        return True
    return files.kind == "gguf" and stored_quantization(files.path) == quantization.upper()


def _safetensors_sources(card: Card, form: str | None) -> list[tuple[str, str | None]]:
    """Return repository and revision of the safetensors, or of a ready form."""
    if form in (None, "safetensors"):
        is_gguf = card.stored is not None and card.stored.method == "gguf"
        return [(card.repository, card.revision)] if card.repository and not is_gguf else []
    return [(ready.repository, None) for ready in card.forms if ready.kind == form]


def _gguf_source(card: Card) -> GgufSource | None:
    if card.gguf is not None:
        return card.gguf
    if card.repository and card.stored is not None and card.stored.method == "gguf":
        return GgufSource(repository=card.repository, revision=card.revision)
    return None


def _check_form(form: str | None) -> None:
    known = ("safetensors", "gguf", *_READY)
    if form is not None and form not in known:
        raise InputError(f"There is no form named {form!r}.", hint=did_you_mean(form, known))
    if form == "onnx":
        raise UnsupportedError("No engine of the workbench loads ONNX files.")


def _no_source(card: Card, form: str | None) -> NotFoundError | UnsupportedError:
    if card.remote is not None:
        return UnsupportedError(
            f"The card {card.id} names a service ({card.remote.model}), which has no files here.",
            hint="Load it with the engine of its service.",
        )
    if card.unverified_repository is not None and card.repository is None:
        return NotFoundError(
            f"The card {card.id} names the repository {card.unverified_repository}, which nobody "
            "has verified to exist; nothing is downloaded from it.",
            hint="Look at it, then write it into a card of your own as repository.",
        )
    if form is not None and (card.repository or card.gguf):
        return NotFoundError(
            f"The card {card.id} names no repository with {form} files.",
            hint="Choose another form, or add its repository to the card.",
        )
    return NotFoundError(
        f"The card {card.id} names no local files.", hint="Give a local path to the model."
    )
