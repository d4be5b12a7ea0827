"""One file from a hub into the Hugging Face cache: resumed, retried within bounds, verified.

huggingface_hub 2 starts a file anew after a killed process; here what has arrived stays as
``blobs/<etag>.incomplete`` and the rest is asked for by ``Range``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from workbench.catalog.refusals import full_disk
from workbench.errors import DownloadError, FormatError
from workbench.progress import Bar

Result = TypeVar("Result")
TRIES = 4
LONGEST_WAIT = 120.0
"""Seconds that we wait in all for a hub that asks to come again later."""
FIRST_PAUSE = 1.0
_BUSY = (408, 429, 500, 502, 503, 504)
_CHUNK = 1 << 20
_BLOB_NAME = re.compile(r"[0-9A-Za-z._-]{1,128}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a repository as the hub lists it.

    Attributes:
        name: Path within the repository.
        size: Bytes.
        sha256: Of its content where it is kept by LFS, else None.
        git_hash: Its git object id, where the hub tells it.
    """

    name: str
    size: int
    sha256: str | None
    git_hash: str | None

    @property
    def blob(self) -> str | None:
        """Name of its blob in the cache."""
        return self.sha256 or self.git_hash


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """What is done of a whole download, on one bar that counts megabytes."""

    bar: Bar
    before: int = 0

    def show(self, done: int) -> None:
        """Show ``done`` bytes of this file on top of those before it."""
        self.bar.update(done=round((self.before + done) / 1e6, 1))


def http_errors() -> Any:
    """Return the module of the HTTP client that huggingface_hub is built on (httpx2 or httpx)."""
    from huggingface_hub import get_session

    modules = [kind.__module__.partition(".")[0] for kind in type(get_session()).__mro__]
    return importlib.import_module(next(name for name in modules if name.startswith("httpx")))


def patiently(
    action: Callable[[], Result], *, bar: Bar | None = None, reconnect: bool = True
) -> Result:
    """Run ``action`` again while a hub is busy, with growing pauses or those it asks for.

    Args:
        action: What to do.
        bar: Where a pause is told.
        reconnect: Also try again after a broken connection, not only after a busy answer.

    Raises:
        Exception: The last failure, once the tries or ``LONGEST_WAIT`` are used up.
    """
    waited = 0.0
    for number in range(TRIES):
        try:
            return action()
        except Exception as error:
            pause = _pause(error, number, reconnect)
            if pause is None or number == TRIES - 1 or waited + pause > LONGEST_WAIT:
                raise
            if bar is not None:
                bar.update(note=f"the hub is busy, waiting {pause:.0f} s")
            time.sleep(pause)
            waited += pause
    raise AssertionError("the loop returns or raises")


def _pause(error: Exception, number: int, reconnect: bool) -> float | None:
    """Return the seconds to wait before another try, or None where it would not help."""
    http = http_errors()
    response = getattr(error, "response", None)
    if response is not None:
        if response.status_code not in _BUSY:
            return None
        return _asked_pause(response.headers) or FIRST_PAUSE * 2**number
    if not reconnect or isinstance(error, http.ProxyError):
        return None
    if isinstance(error, http.ConnectError):  # refused at once: a second try is enough
        return FIRST_PAUSE if number == 0 else None
    return FIRST_PAUSE * 2**number if isinstance(error, http.TransportError) else None


def _asked_pause(headers: Any) -> float | None:
    """Return the seconds that a busy hub asks for: Retry-After, or the end of its rate limit."""
    asked = str(headers.get("Retry-After", "")).strip()
    if asked.isdigit():
        return float(asked)
    limit = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", str(headers.get("RateLimit", "")))
    return float(limit[1]) if limit else None


class Transfer:
    """Fetches one file into its blob; nothing appears under the blob's name before it is verified.

    Args:
        file: What the hub lists.
        url: Address of the file at the pinned commit.
        folder: The repository's folder in the cache.
        endpoint: Address of the hub; the token goes to no other.
    """

    def __init__(self, file: RemoteFile, *, url: str, folder: Path, endpoint: str) -> None:
        self.file, self.url, self.folder, self.endpoint = file, url, folder, endpoint

    def run(self, meter: Meter) -> bool:
        """Fetch the file; return False for one that only the Xet client should fetch."""
        metadata = patiently(self._metadata, bar=meter.bar)
        if metadata.xet_file_data is not None and _has_xet():
            return False
        etag = metadata.etag or ""
        if not _BLOB_NAME.fullmatch(etag) or etag.startswith("."):
            raise DownloadError(
                f"The answer for {self.file.name} has no ETag: this is no Hugging Face hub.",
                hint="Check HF_ENDPOINT, and the proxy if there is one.",
            )
        blob = self.folder / "blobs" / etag
        lock = self.folder.parent / ".locks" / self.folder.name / f"{etag}.lock"
        blob.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_library().WeakFileLock(lock, timeout=0.5))
            except TimeoutError:
                meter.bar.update(note=f"{self.file.name}: another process fetches it")
                stack.enter_context(_library().WeakFileLock(lock))
            if not blob.exists():
                self._receive(blob, meter)
        return True

    def _metadata(self) -> Any:
        from huggingface_hub import get_hf_file_metadata

        headers = _library().build_hf_headers(**our_name())
        return get_hf_file_metadata(self.url, headers=headers, endpoint=self.endpoint)

    def _receive(self, blob: Path, meter: Meter) -> None:
        partial = blob.with_name(f"{blob.name}.incomplete")
        resumed = partial.exists()
        meter.bar.update(note=self.file.name)
        self._fill(partial, meter)
        if not self._is_right(partial, blob.name):
            partial.unlink()
            if resumed:  # the part that lay here may have been the wrong one
                self._fill(partial, meter)
            if not resumed or not self._is_right(partial, blob.name):
                partial.unlink(missing_ok=True)
                raise FormatError(
                    f"{self.file.name} arrived with another content than the hub announced "
                    f"(its hash is not {blob.name[:12]}...); it was removed.",
                    hint="Run it again; if it fails again, the hub or a proxy changes the file.",
                )
        partial.replace(blob)

    def _fill(self, partial: Path, meter: Meter) -> None:
        """Append to ``partial`` until it has its size; a broken connection is taken up again."""
        failures, http = 0, http_errors()
        while True:
            here = partial.stat().st_size if partial.exists() else 0
            if here == self.file.size and partial.exists():
                return
            if here > self.file.size:
                partial.unlink()
                continue
            try:
                patiently(lambda: self._stream(partial, meter), bar=meter.bar, reconnect=False)
                problem: Exception | None = None
            except http.TransportError as error:
                problem = error
            grown = (partial.stat().st_size if partial.exists() else 0) > here
            failures = 0 if grown else failures + 1
            if failures >= TRIES:
                raise problem or DownloadError(
                    f"The connection ended {TRIES} times before {self.file.name} was whole.",
                    hint="What has arrived is kept; run it again to go on from there.",
                )
            if problem is not None:
                time.sleep(FIRST_PAUSE)

    def _stream(self, partial: Path, meter: Meter) -> None:
        """Ask once for what is missing and append what comes."""
        from huggingface_hub import get_session

        # A signed address of a content network expires, so each try asks the hub for a new one.
        location = self._metadata().location
        headers = _library().build_hf_headers(**our_name()) | {"Accept-Encoding": "identity"}
        if not self._is_hub(location):
            headers.pop("authorization", None)
        here = partial.stat().st_size if partial.exists() else 0
        if here:
            headers["Range"] = f"bytes={here}-"
        with get_session().stream(
            "GET", location, headers=headers, timeout=_timeout(), follow_redirects=True
        ) as response:
            if response.status_code == 416:  # what lies here is not a beginning of this file
                partial.unlink(missing_ok=True)
                return
            _library().hf_raise_for_status(response)
            if response.status_code != 206 or not _begins_at(response, here):
                here = 0
            with _written(partial, here, self.file.name) as stream:
                for chunk in response.iter_bytes():  # by chunk size, a break would lose a chunk
                    stream.write(chunk)
                    here += len(chunk)
                    meter.show(here)

    def _is_right(self, partial: Path, etag: str) -> bool:
        if self.file.sha256 is not None:
            return _digest(partial, hashlib.sha256()) == self.file.sha256
        if self.file.git_hash != etag or len(etag) != 40:
            return True  # a mirror with tags of its own: the size is all there is to check
        start = hashlib.sha1(b"blob %d\0" % partial.stat().st_size, usedforsecurity=False)
        return _digest(partial, start) == etag

    def _is_hub(self, url: str) -> bool:
        return _origin(url) in (_origin(self.endpoint), _origin("https://huggingface.co"))


def our_name() -> dict[str, Any]:
    """Return how we name ourselves to a hub."""
    from workbench import __version__

    return {"library_name": "llm-workbench", "library_version": __version__}


def _library() -> Any:
    return importlib.import_module("huggingface_hub.utils")


def _has_xet() -> bool:
    import importlib.util

    from huggingface_hub import constants

    return not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet") is not None


def _timeout() -> float:
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _begins_at(response: Any, here: int) -> bool:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == here


@contextlib.contextmanager
def _written(partial: Path, here: int, name: str) -> Iterator[Any]:
    """Open ``partial`` to go on at byte ``here``; a full disk is named as such."""
    try:
        with partial.open("ab") as stream:
            if stream.tell() > here:
                stream.truncate(here)
            yield stream
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(error, name) from error
        raise


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or {"http": 80, "https": 443}.get(parts.scheme),
    )
