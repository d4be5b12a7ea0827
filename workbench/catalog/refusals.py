"""What went wrong between us and a hub, as one clear error; keys and passwords never show."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from workbench.errors import (
    DiskSpaceError,
    DownloadError,
    InputError,
    NotFoundError,
    WorkbenchError,
)
from workbench.redact import redacted

_AGAIN = "What has arrived is kept; run it again to go on from there."
_TOKEN_HELP = "Log in (hf auth login) or set HF_TOKEN to a token that may read it."


def named(
    error: BaseException,
    *,
    repository: str,
    revision: str | None,
    endpoint: str,
    file: str | None = None,
) -> WorkbenchError:
    """Return the error that says what failed and what to do next.

    Args:
        error: As the library raised it, with its causes.
        repository: What was asked for.
        revision: Commit, branch or tag, or None for the newest.
        endpoint: Address of the hub.
        file: The file that was fetched, where it was one.
    """
    hub = shown(endpoint)
    for cause in _causes(error):
        found = (
            _status(cause, repository, revision, hub, file)
            or _disk(cause)
            or _network(cause, repository, hub)
        )
        if found is not None:
            return found
    return DownloadError(
        f"{repository} could not be fetched from {hub}: "
        f"{type(error).__name__}: {redacted(_first_line(error))}",
        hint=_AGAIN,
    )


def shown(url: str) -> str:
    """Return an address without user, password and query."""
    return re.sub(r"(?<=://)[^/@]*@", "", url).partition("?")[0].rstrip("/")


def full_disk(error: OSError, written: str) -> WorkbenchError:
    """Return the error for a disk that got full while ``written`` was being written."""
    return DiskSpaceError(
        f"The disk got full while {written} was written ({error.strerror}).",
        hint="Free some space and run it again; what has arrived is kept "
        "(workbench models prune --partial removes it).",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, WorkbenchError):
            return
        yield current
        current = current.__cause__ or current.__context__


def _status(
    error: BaseException, repository: str, revision: str | None, hub: str, file: str | None
) -> WorkbenchError | None:
    """Name an answer of the hub; its class comes from the header X-Error-Code."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    if not isinstance(error, errors.HfHubHTTPError) or response is None:
        return None
    status = response.status_code
    if isinstance(error, errors.GatedRepoError):
        return _gated(repository, hub, status)
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(
            f"The repository {repository} has no revision {revision!r}.",
            hint="Correct the card's revision, or leave it out for the newest commit.",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return NotFoundError(
            f"The repository {repository} has no file {file!r} at {revision or 'its newest'}.",
            hint=f"See {hub}/{repository}/tree/{revision or 'main'} for what it has.",
        )
    if status == 401 and "invalid credentials" in str(error).lower():
        return DownloadError(
            f"{hub} does not accept the token that is set (401).", hint=_TOKEN_HELP
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return NotFoundError(
            f"{hub} has no repository {repository}, or it is private ({status}).",
            hint=f"Check the name. {_TOKEN_HELP}",
        )
    return _busy_or_broken(error, repository, hub, status, response)


def _gated(repository: str, hub: str, status: int) -> WorkbenchError:
    return DownloadError(
        f"{repository} asks for its licence to be accepted first ({status}).",
        hint=f"Accept it at {hub}/{repository}, then log in (hf auth login) or set HF_TOKEN "
        "to a token of the same account.",
    )


def _busy_or_broken(
    error: BaseException, repository: str, hub: str, status: int, response: object
) -> WorkbenchError:
    if status == 403:
        return DownloadError(f"{hub} refuses to hand out {repository} (403).", hint=_TOKEN_HELP)
    if status == 429:
        pause = getattr(response, "headers", {}).get("Retry-After")
        wait = f" It asks to wait {pause} s." if pause else ""
        return DownloadError(
            f"{hub} has had too many requests from here (429).{wait}", hint=f"Wait. {_AGAIN}"
        )
    if status >= 500:
        return DownloadError(
            f"{hub} failed several times while {repository} was fetched ({status}).",
            hint=f"Try again later. {_AGAIN}",
        )
    return DownloadError(
        f"{hub} answered {status} for {repository}: {redacted(_first_line(error))}"
    )


def _disk(error: BaseException) -> WorkbenchError | None:
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full_disk(error, error.filename or "the download")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR) and error.filename:
        return InputError(
            f"The Hugging Face cache cannot be written: {error.filename} ({error.strerror}).",
            hint="Set HF_HOME to a folder that you may write.",
        )
    return None


def _network(error: BaseException, repository: str, hub: str) -> WorkbenchError | None:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "OfflineModeIsEnabled" in kinds:
        return offline_error(repository)
    if "ProxyError" in kinds:
        return DownloadError(
            f"The proxy does not let us reach {hub}: {redacted(_first_line(error))}",
            hint="Check HTTPS_PROXY and NO_PROXY.",
        )
    if "TimeoutException" in kinds:
        return DownloadError(
            f"{hub} did not answer in time while {repository} was fetched.", hint=_AGAIN
        )
    if "ConnectError" in kinds:
        return DownloadError(
            f"{hub} cannot be reached: {redacted(_first_line(error))}.",
            hint="Check the connection, HF_ENDPOINT and HTTPS_PROXY. " + _AGAIN,
        )
    if "TransportError" in kinds:
        return DownloadError(
            f"The connection to {hub} broke several times while {repository} was fetched.",
            hint=_AGAIN,
        )
    return None


def offline_error(what: str) -> WorkbenchError:
    """Return the error for something that only the hub has, while we may not ask it."""
    return DownloadError(
        f"{what} is not whole on this machine, and the workbench is set to stay offline.",
        hint="Unset WORKBENCH_OFFLINE and HF_HUB_OFFLINE, or give a local path.",
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
