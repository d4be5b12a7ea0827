"""llama.cpp's own converter, taken once from the sdist of the installed llama-cpp-python."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import runpy
import sys
import tarfile
import tempfile
from pathlib import Path

from workbench.errors import FormatError, InputError, MissingPackageError, UnsupportedError
from workbench.formats.cache import locked
from workbench.formats.child import run_child
from workbench.paths import atomic_folder, cache, require_space, sha256
from workbench.progress import progress
from workbench.settings import environment

PACKAGE = "llama-cpp-python"
PINNED = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
"""sha256 of the source distribution, by version."""
ENTRY = "convert_hf_to_gguf.py"
_KEPT_FILES = ("LICENSE", ENTRY, "convert_lora_to_gguf.py")
_KEPT_FOLDERS = ("conversion/", "gguf-py/gguf/")
_SDIST_BYTES = 120_000_000
_SOURCE = "llama_cpp_source"
_OFFLINE = (
    "Where there is no network, set WORKBENCH_LLAMA_CPP_SOURCE to the sdist "
    f"({PACKAGE}-<version>.tar.gz, from a machine that has one) or to a llama.cpp source folder."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """Where the converter lies.

    Attributes:
        folder: Holds ``convert_hf_to_gguf.py``, ``conversion/`` and ``gguf-py/``.
        version: ``0.3.36`` of the sdist, or ``source-<digest>`` of a folder the user named.
    """

    folder: Path
    version: str


def installed_version() -> str:
    """Return the version of llama-cpp-python.

    Raises:
        MissingPackageError: It is not installed.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise MissingPackageError(
            "GGUF files are made with llama-cpp-python, which is not installed.",
            hint="pip install 'llm-workbench[llama]'",
        )
    return importlib.metadata.version(PACKAGE)


def converter_version() -> str:
    """Return the version the converter would have, without fetching it."""
    given = _given_source()
    if given is not None and given.is_dir():
        return _folder_version(_inside(given))
    return installed_version()


def converter() -> Converter:
    """Return the converter, fetching it on first use (one download of about 77 MB).

    Raises:
        MissingPackageError: llama-cpp-python or pip is not installed.
        UnsupportedError: No sha256 is pinned for the installed version.
        FormatError: The download is not the pinned file, or holds no converter.
        InputError: WORKBENCH_LLAMA_CPP_SOURCE names nothing usable.
        DiskSpaceError: The cache has no room for it.
    """
    given = _given_source()
    if given is not None and given.is_dir():
        folder = _inside(given)
        return Converter(folder=folder, version=_folder_version(folder))
    version = installed_version()
    folder = cache("llama.cpp", version)
    if not (folder / ENTRY).is_file():
        with locked(folder):
            if not (folder / ENTRY).is_file():
                _fetch(folder, version, sdist=given)
    return Converter(folder=folder, version=version)


def _given_source() -> Path | None:
    text = environment(_SOURCE)
    if text is None:
        return None
    path = Path(text).expanduser().resolve()
    if not path.exists():
        raise InputError(
            f"WORKBENCH_LLAMA_CPP_SOURCE names {path}, which does not exist.",
            hint="Name the sdist of llama-cpp-python or a llama.cpp source folder.",
        )
    return path


def _inside(folder: Path) -> Path:
    for candidate in (folder, folder / "vendor" / "llama.cpp"):
        if (candidate / ENTRY).is_file() and (candidate / "conversion").is_dir():
            return candidate
    raise InputError(
        f"{folder} (WORKBENCH_LLAMA_CPP_SOURCE) holds no converter: it lacks {ENTRY} or "
        "conversion/.",
        hint="Name a llama.cpp source folder of 2026, or an unpacked llama-cpp-python sdist.",
    )


def _folder_version(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([folder / ENTRY, *folder.glob("conversion/*.py")]):
        digest.update(path.read_bytes())
    return f"source-{digest.hexdigest()[:12]}"


def _fetch(folder: Path, version: str, *, sdist: Path | None) -> None:
    """Download or take ``sdist``, check it, and extract the converter into ``folder``."""
    if version not in PINNED:
        raise UnsupportedError(
            f"No checked source is known for {PACKAGE} {version} (known: {', '.join(PINNED)}).",
            hint="Install a known version, or set WORKBENCH_LLAMA_CPP_SOURCE to a llama.cpp "
            "source folder that you trust.",
        )
    require_space(folder, 2 * _SDIST_BYTES, purpose="Fetching llama.cpp's converter")
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".partial-{os.getpid()}-"
    ) as scratch:
        archive = sdist or _downloaded(version, Path(scratch))
        found = sha256(archive)
        if found != PINNED[version]:
            raise FormatError(
                f"{archive.name} has the sha256 {found}, not {PINNED[version]}.",
                hint=f"It is not the source of {PACKAGE} {version}; nothing of it was used.",
            )
        with atomic_folder(folder) as partial:
            _extract(archive, partial)
            about = {"package": PACKAGE, "version": version, "sha256": found}
            (partial / "source.json").write_text(json.dumps(about, indent=1) + "\n")


def _downloaded(version: str, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise MissingPackageError(
            "Fetching llama.cpp's converter needs pip, which is not in this environment.",
            hint=f"Install pip. {_OFFLINE}",
        )
    with progress(f"Fetching llama.cpp's converter (once, 77 MB, {PACKAGE} {version})"):
        try:
            run_child(__name__, [f"{PACKAGE}=={version}", str(folder)], doing="pip download")
        except FormatError as error:
            raise FormatError(
                f"The source of {PACKAGE} {version} could not be fetched. {error.message}",
                hint=_OFFLINE,
            ) from None
    archives = list(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise FormatError(f"pip left {len(archives)} archives, not one.", hint=_OFFLINE)
    return archives[0]


def main(arguments: list[str]) -> None:
    """Download the source distribution (child side): requirement and folder, by pip's own rules."""
    requirement, folder = arguments
    sys.argv = ["pip", "download", "--no-deps", "--no-input", "--quiet", "--no-color"]
    sys.argv += ["--disable-pip-version-check", "--no-binary", PACKAGE, "--dest", folder]
    sys.argv.append(requirement)
    runpy.run_module("pip", run_name="__main__")


def _extract(archive: Path, folder: Path) -> None:
    """Extract only the converter's files; a name that would leave ``folder`` is never made."""
    kept = 0
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            _, _, name = member.name.partition("/vendor/llama.cpp/")
            if not member.isfile() or ".." in Path(name).parts:
                continue
            if name in _KEPT_FILES or name.startswith(_KEPT_FOLDERS):
                stream = tar.extractfile(member)
                if stream is not None:
                    target = folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(stream.read())
                    kept += 1
    if not (folder / ENTRY).is_file() or not (folder / "gguf-py" / "gguf").is_dir():
        raise FormatError(
            f"{archive.name} holds no converter ({kept} of its files were found).",
            hint="Set WORKBENCH_LLAMA_CPP_SOURCE to a llama.cpp source folder.",
        )
