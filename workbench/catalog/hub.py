"""The hub: lists a repository, checks the disk, and downloads into the Hugging Face cache."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from workbench.catalog.refusals import named, offline_error, shown
from workbench.catalog.stores import Snapshot, hub_cache, repository_folder
from workbench.catalog.transfer import Meter, RemoteFile, Transfer, our_name, patiently
from workbench.errors import FormatError, InputError, MissingPackageError, WorkbenchError
from workbench.paths import require_space, sha256
from workbench.progress import Bar, progress
from workbench.settings import environment

_TRUE = {"1", "ON", "YES", "TRUE"}


def endpoint() -> str:
    """Return the address of the hub: HF_ENDPOINT, else https://huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Whether WORKBENCH_OFFLINE, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the network."""
    given = (
        environment("offline"),
        *map(os.environ.get, ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")),
    )
    return any(value is not None and value.upper() in _TRUE for value in given)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a repository holds at one commit.

    Attributes:
        repository: Its name.
        commit: The commit, 40 hexadecimal digits.
        files: All files, by name.
    """

    repository: str
    commit: str
    files: dict[str, RemoteFile]


def listing(repository: str, revision: str | None = None) -> Listing:
    """Ask the hub what a repository holds, with sizes and hashes.

    Raises:
        NotFoundError: No such repository or revision.
        DownloadError: We are offline, the hub refuses or cannot be reached.
        InputError: The name is no repository's.
    """
    with _session(repository, revision):
        from huggingface_hub import HfApi, constants

        api = HfApi(endpoint=endpoint(), **our_name())
        found = patiently(
            lambda: api.model_info(
                repository,
                revision=revision,
                files_metadata=True,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )
        )
    files = {
        sibling.rfilename: RemoteFile(
            name=sibling.rfilename,
            size=(sibling.lfs.size if sibling.lfs else sibling.size) or 0,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            git_hash=sibling.blob_id,
        )
        for sibling in found.siblings or ()
    }
    return Listing(repository=repository, commit=str(found.sha), files=files)


def download(
    repository: str,
    choose: Callable[[Sequence[str]], Sequence[str]],
    *,
    revision: str | None = None,
    quiet: bool | None = None,
) -> Snapshot:
    """Bring files of a repository into the Hugging Face cache; what is there is not fetched again.

    Args:
        repository: Name on the hub, ``owner/name``.
        choose: Picks the names to fetch from all names.
        revision: Commit, branch or tag; None is the newest commit.
        quiet: Show no progress; None asks ``WORKBENCH_QUIET``.

    Raises:
        NotFoundError: No such repository, revision or file.
        DownloadError: We are offline, the hub refuses, breaks off or cannot be reached.
        DiskSpaceError: It does not fit on the disk.
        FormatError: A file arrived with another content than announced; it was removed.
        InputError: The cache cannot be written.
    """
    found = listing(repository, revision)
    wanted = [found.files[name] for name in choose(list(found.files))]
    folder = repository_folder(repository)
    with _session(repository, revision):
        missing = [file for file in wanted if not _is_here(folder, found.commit, file)]
        need = sum(file.size - _arrived(folder, file) for file in missing)
        require_space(folder, need, purpose=f"Downloading {repository}")
        megabytes = sum(file.size for file in missing) / 1e6
        with _bar(repository, megabytes, quiet, idle=not missing) as bar:
            left = _transfer_all(found, missing, folder, bar)
            _finish(found, wanted, left, bar)
        if revision != found.commit:
            _remember(folder, revision or "main", found.commit)
    snapshot = folder / "snapshots" / found.commit
    return Snapshot(repository=repository, revision=found.commit, folder=snapshot)


@contextlib.contextmanager
def _bar(repository: str, megabytes: float, quiet: bool | None, *, idle: bool) -> Iterator[Bar]:
    title = f"Downloading {repository}"
    with progress(
        title, total=round(megabytes, 1), unit="MB", quiet=True if idle else quiet
    ) as bar:
        yield bar


def _transfer_all(
    found: Listing, missing: list[RemoteFile], folder: Path, bar: Bar
) -> list[RemoteFile]:
    """Fetch what plain HTTP can; return what is left to the Xet client of the library."""
    from huggingface_hub import hf_hub_url

    before, left = 0, []
    for file in missing:
        url = hf_hub_url(found.repository, file.name, revision=found.commit, endpoint=endpoint())
        transfer = Transfer(file, url=url, folder=folder, endpoint=endpoint())
        try:
            fetched = transfer.run(Meter(bar=bar, before=before))
        except WorkbenchError:
            raise
        except Exception as error:
            raise _named(error, found.repository, found.commit, file.name) from error
        if fetched:
            before += file.size
            bar.update(done=round(before / 1e6, 1))
        else:
            left.append(file)
    return left


def _finish(found: Listing, wanted: list[RemoteFile], left: list[RemoteFile], bar: Bar) -> None:
    """Let the library link the blobs into the snapshot, and fetch what Xet serves."""
    from huggingface_hub import snapshot_download

    snapshot_download(
        found.repository,
        revision=found.commit,
        cache_dir=hub_cache(),
        endpoint=endpoint(),
        allow_patterns=[glob.escape(file.name) for file in wanted],
        max_workers=4,
        tqdm_class=_counting(bar),
        **our_name(),
    )
    snapshot = repository_folder(found.repository) / "snapshots" / found.commit
    for file in left:
        path = snapshot / file.name
        if file.sha256 is not None and sha256(path) != file.sha256:
            _remove(path)
            raise FormatError(
                f"{file.name} arrived with another content than the hub announced; it was removed.",
                hint="Run it again.",
            )


def _is_here(folder: Path, commit: str, file: RemoteFile) -> bool:
    """Whether the cache has the file; a blob of another length than announced is removed."""
    linked = folder / "snapshots" / commit / file.name
    blob = folder / "blobs" / file.blob if file.blob else linked
    for path in (linked, blob):
        if path.exists():
            if path.stat().st_size == file.size:
                return True
            _remove(path)
    return False


def _remove(path: Path) -> None:
    """Remove a file of the cache with what it links to inside the cache."""
    target = path.resolve()
    path.unlink(missing_ok=True)
    if target.is_relative_to(hub_cache().resolve()):
        target.unlink(missing_ok=True)


def _arrived(folder: Path, file: RemoteFile) -> int:
    partial = folder / "blobs" / f"{file.blob}.incomplete"
    return min(file.size, partial.stat().st_size) if partial.exists() else 0


def _remember(folder: Path, revision: str, commit: str) -> None:
    """Note which commit a branch is, so that other programs find the snapshot offline."""
    path = folder / "refs" / revision
    if ".." in Path(revision).parts or Path(revision).is_absolute():
        return
    with contextlib.suppress(OSError):  # a cache that is only read serves all the same
        if path.is_file() and path.read_text(encoding="utf-8") == commit:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = folder / f".ref-{os.getpid()}"  # not within refs/, where every file is a branch
        partial.write_text(commit, encoding="utf-8")
        partial.replace(path)


@contextlib.contextmanager
def _session(repository: str, revision: str | None) -> Iterator[None]:
    """Allow the network to the block, keep the library quiet, and name what goes wrong."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingPackageError(
            "Downloading needs huggingface_hub, which is not installed.",
            hint="pip install 'llm-workbench[torch]'",
        )
    if is_offline():
        raise offline_error(repository)
    _without_telemetry()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings show signed addresses, and repeat what we raise
    try:
        yield
    except (WorkbenchError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _named(error, repository, revision, None) from error
    finally:
        logger.setLevel(level)


def _named(
    error: Exception, repository: str, revision: str | None, file: str | None
) -> WorkbenchError:
    from huggingface_hub.errors import HFValidationError

    if isinstance(error, HFValidationError):
        return InputError(
            f"{repository!r} is not the name of a repository.", hint="Write it as owner/name."
        )
    return named(
        error, repository=repository, revision=revision, endpoint=shown(endpoint()), file=file
    )


def _without_telemetry() -> None:
    """Switch the library's telemetry off, unless the user has said what it should be."""
    if os.environ.get("HF_HUB_DISABLE_TELEMETRY") is None:
        from huggingface_hub import constants

        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        constants.HF_HUB_DISABLE_TELEMETRY = True


def _counting(bar: Bar) -> Any:
    """Return a class that the library takes for its bar, and that counts bytes on ours."""
    base: Any = importlib.import_module("tqdm").tqdm
    lock, start, arrived = threading.Lock(), bar.done, [0.0]

    class Counting(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            self._is_counted = str(settings.get("desc", "")).startswith("Reconstruct")
            settings.pop("name", None)
            super().__init__(*arguments, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if self._is_counted:
                with lock:
                    arrived[0] += (n or 0) / 1e6
                    bar.update(done=round(start + arrived[0], 1))
            return None

    return Counting
