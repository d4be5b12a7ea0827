"""Read the header of a model on the hub by HTTP ranges, downloading none of its weights."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from workbench.catalog.gguf_header import GgufHeader, check_layout, parse_gguf
from workbench.catalog.header import join_gguf, join_safetensors
from workbench.catalog.header_parts import first_part, part_names
from workbench.catalog.header_source import MOST_CONFIG, MOST_JSON, parse_object, shown
from workbench.catalog.header_view import Header
from workbench.catalog.hub import endpoint as usual_endpoint
from workbench.catalog.hub import is_offline
from workbench.catalog.refusals import named, offline_error
from workbench.catalog.refusals import shown as shown_address
from workbench.catalog.safetensors_header import (
    INDEX,
    MOST_HEADER,
    SINGLE,
    SafetensorsHeader,
    parse_safetensors,
    shard_names,
)
from workbench.errors import (
    DownloadError,
    FormatError,
    InputError,
    MissingPackageError,
    NotFoundError,
    WorkbenchError,
)

MOST_GGUF = 64 << 20
_FIRST = 128 << 10
_THREADS = 8
_SILENCE_S = 30.0
_DEADLINE_S = 300.0
_SPLIT = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """A model on the hub, for ``read_header``.

    Attributes:
        repository: ``owner/name``.
        revision: Commit, branch or tag; None is the newest.
        file: One weight file, where the repository holds several models.
        endpoint: The hub's address; None is ``HF_ENDPOINT``, else the public hub.
        token: The key, never shown; None is the one that the user has logged in with.
    """

    repository: str
    revision: str | None = None
    file: str | None = None
    endpoint: str | None = None
    token: str | None = dataclasses.field(default=None, repr=False)


def read_remote_header(
    repository: str,
    *,
    revision: str | None = None,
    file: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Header:
    """Read what the files of a model on the hub say of themselves.

    Args:
        repository: ``owner/name``.
        revision: Commit, branch or tag; None is the newest.
        file: One weight file; of a split GGUF any part. None chooses: an index of shards, then
            ``model.safetensors``, then the only GGUF model.
        endpoint: The hub's address; None is ``HF_ENDPOINT``, else the public hub.
        token: The key; None is the one that the user has logged in with.

    Raises:
        NotFoundError: No such repository, revision or file, or it holds no weights.
        InputError: The name is no repository's, or it holds several models.
        DownloadError: We are offline, the hub refuses or cannot be reached.
        FormatError: A header is damaged, or longer than what is read of it.
    """
    hub = _Hub(repository, revision, (endpoint or usual_endpoint()).rstrip("/"), token)
    with hub.naming(file):
        names = hub.list()
        model = _read(hub, names, file)
    return dataclasses.replace(model, name=repository, revision=hub.commit)


def _read(hub: _Hub, names: Sequence[str], file: str | None) -> Header:
    chosen = _chosen(hub.repository, names, file)
    if chosen.endswith(".gguf"):
        parts, present = part_names(chosen), set(names)
        missing = [part for part in parts if part not in present]
        if missing:
            raise FormatError(f"{hub.repository} lacks {missing[0]}, one of {len(parts)} parts.")
        found = _together(parts, hub.gguf)
        sizes = {name: size for name, (_, size) in zip(parts, found, strict=True)}
        return join_gguf(
            {name: header for name, (header, _) in zip(parts, found, strict=True)}, sizes=sizes
        )
    folder = chosen.rpartition("/")[0]
    start = f"{folder}/" if folder else ""
    places: Mapping[str, str] | None = None
    files = [chosen]
    if chosen.endswith(".index.json"):
        index = parse_object(hub.whole(chosen, MOST_JSON), chosen)
        places = {tensor: start + shard for tensor, shard in shard_names(index, chosen).items()}
        files = sorted(set(places.values()))
        present = set(names)
        missing = [shard for shard in files if shard not in present]
        if missing:
            raise FormatError(f"{hub.repository} lacks {shown(missing[0])}, which {chosen} names.")
    read = dict(zip(files, _together(files, hub.safetensors), strict=True))
    config = f"{start}config.json"
    said = parse_object(hub.whole(config, MOST_CONFIG), config) if config in names else None
    return join_safetensors(hub.repository, read, places, said)


def _together(names: Sequence[str], read: Callable[[str], Found]) -> list[Found]:
    if len(names) == 1:
        return [read(names[0])]
    pool = ThreadPoolExecutor(max_workers=min(_THREADS, len(names)))
    try:
        return list(pool.map(read, names))
    finally:  # the first failure ends it: what has not begun is not begun
        pool.shutdown(wait=True, cancel_futures=True)


def _chosen(repository: str, names: Sequence[str], file: str | None) -> str:
    if file is not None:
        if file not in names:
            raise NotFoundError(f"The repository {repository} has no file {file!r}.")
        if not file.endswith((".gguf", ".safetensors", ".safetensors.index.json")):
            raise InputError(f"{file} is no weight file whose header is known.")
        return file
    for name in (INDEX, SINGLE):
        if name in names:
            return name
    top = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if len(top) == 1:
        return top[0]
    models = {first_part(name) for name in names if name.endswith(".gguf")}
    ggufs = sorted(name for name in models if "mmproj" not in name.lower())
    if len(ggufs) == 1 and not top:
        return ggufs[0]
    if not ggufs and not top:
        raise NotFoundError(f"{repository} holds no safetensors and no GGUF file.")
    listed = ", ".join(map(shown, sorted([*top, *ggufs])[:8]))
    raise InputError(
        f"{repository} holds {len(top) + len(ggufs)} models.", hint=f"Name one file: {listed}."
    )


class _Hub:
    """One repository on a hub at one commit."""

    def __init__(
        self, repository: str, revision: str | None, endpoint: str, token: str | None
    ) -> None:
        self.repository, self.revision, self.endpoint = repository, revision, endpoint
        self.commit: str | None = None
        self._token = token

    @contextmanager
    def naming(self, file: str | None) -> Iterator[None]:
        """Turn what goes wrong between us and the hub into one of our errors."""
        if importlib.util.find_spec("huggingface_hub") is None:
            raise MissingPackageError(
                "Reading from the hub needs huggingface_hub, which is not installed.",
                hint="pip install 'llm-workbench[torch]'",
            )
        if is_offline():
            raise offline_error(self.repository)
        from huggingface_hub.errors import HFValidationError

        try:
            yield
        except WorkbenchError:
            raise
        except HFValidationError:
            raise InputError(
                f"{self.repository!r} is not the name of a repository.",
                hint="Write it as owner/name.",
            ) from None
        except Exception as error:
            raise named(
                error,
                repository=self.repository,
                revision=self.revision,
                endpoint=shown_address(self.endpoint),
                file=file,
            ) from error

    def list(self) -> tuple[str, ...]:
        """Return the names of all files, and note the commit."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self.endpoint, token=self._token)
        found = api.model_info(self.repository, revision=self.revision, timeout=_SILENCE_S)
        self.commit = found.sha
        return tuple(sibling.rfilename for sibling in found.siblings or ())

    def _file(self, name: str, most: int) -> RemoteFile:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(
            self.repository,
            name,
            revision=self.commit or self.revision,
            endpoint=self.endpoint,
        )
        headers = _library().build_hf_headers(token=self._token)
        return RemoteFile(name, url, headers=headers, most=most)

    def whole(self, name: str, most: int) -> bytes:
        """Return a small file's bytes."""
        file = self._file(name, most)
        data = file.read(0, 0, most)
        if file.size is not None and file.size > len(data):
            raise FormatError(f"{name} has {file.size} bytes; at most {most} are read.")
        return data

    def safetensors(self, name: str) -> SafetensorsHeader:
        """Read the header of one safetensors file."""
        return parse_safetensors(self._file(name, MOST_HEADER + 8))

    def gguf(self, name: str) -> tuple[GgufHeader, int | None]:
        """Read the header of one GGUF file; return it with the file's size."""
        file = self._file(name, MOST_GGUF)
        header = parse_gguf(file)
        check_layout(header, name, file.size)
        return header, file.size


def _library() -> Any:
    return importlib.import_module("huggingface_hub.utils")


class RemoteFile:
    """The first bytes of a file behind a URL, fetched in growing ranges and kept.

    Args:
        name: What errors call it.
        url: Where it lies; redirects are followed.
        headers: Sent with each request, the key among them.
        most: Bytes from the file's start that may be read at all.
    """

    def __init__(self, name: str, url: str, *, headers: Mapping[str, str], most: int) -> None:
        self.name = name
        self.size: int | None = None
        self._url, self._headers, self._most = url, dict(headers), most
        self._data = bytearray()
        self._until = time.monotonic() + _DEADLINE_S

    def read(self, start: int, least: int, most: int) -> bytes:
        """Return bytes from ``start``: ``least`` of them, fewer only where the file ends.

        Raises:
            FormatError: They lie behind the bound, or the server sends something else.
        """
        if start + least > self._most:
            raise FormatError(
                f"{self.name} has a header of more than {self._most} bytes, which is not read.",
                hint="Download the file and read it here.",
            )
        wanted = min(start + max(least, min(most, _FIRST)), self._most)
        if wanted > len(self._data) and not self._is_complete():
            grown = max(wanted, 2 * len(self._data), _FIRST)
            self._fetch(min(grown, self._most))
        return bytes(memoryview(self._data)[start : start + max(least, most)])

    def _is_complete(self) -> bool:
        return self.size is not None and len(self._data) >= self.size

    def _fetch(self, end: int) -> None:
        """Ask for the bytes up to ``end``; a server that sends the whole file is cut off there."""
        from huggingface_hub import get_session

        have = len(self._data)
        headers = {
            **self._headers,
            "Range": f"bytes={have}-{end - 1}",
            "Accept-Encoding": "identity",  # compressed, the counted bytes would not be the file's
        }
        with get_session().stream(
            "GET", self._url, headers=headers, timeout=_SILENCE_S
        ) as response:
            if response.status_code == 416 and self._no_more(response):
                return
            if response.status_code >= 400:
                response.close()  # the headers say why; the body may be endless
                _library().hf_raise_for_status(response)
            skip = self._begins(response, have)
            for block in response.iter_raw():
                used = memoryview(block)[skip:]
                skip = max(skip - len(block), 0)
                self._data += used[: end - len(self._data)]
                if len(self._data) >= end:
                    break
                if time.monotonic() > self._until:
                    raise DownloadError(
                        f"The header of {self.name} has not arrived in {_DEADLINE_S:.0f} s.",
                        hint="Try again, or download the file.",
                    )
        whole = self.size if self.size is not None else end
        if len(self._data) < min(end, whole):
            if self.size is not None:
                raise DownloadError(f"The hub broke off while sending {self.name}.")
            self.size = len(self._data)

    def _no_more(self, response: Any) -> bool:
        """Note the size that an answer "range not satisfiable" tells; an empty file has 0."""
        total = str(response.headers.get("Content-Range", "")).rpartition("/")[2]
        self.size = int(total) if total.isascii() and total.isdigit() else len(self._data)
        return self.size == len(self._data)

    def _begins(self, response: Any, have: int) -> int:
        """Return how many bytes to leave out of an answer that should begin at byte ``have``."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise FormatError(f"The server sends {self.name} compressed, which is not read.")
        if response.status_code == 200:  # it ignores ranges and sends the file from its start
            length = str(response.headers.get("Content-Length", ""))
            self.size = int(length) if length.isascii() and length.isdigit() else self.size
            return have
        found = _SPLIT.fullmatch(str(response.headers.get("Content-Range", "")))
        if response.status_code != 206 or found is None or int(found[1]) != have:
            raise FormatError(
                f"The server answered {response.status_code} with other bytes of {self.name} "
                "than were asked for."
            )
        if found[3] != "*":
            size = int(found[3])
            if self.size is not None and size != self.size:
                raise FormatError(f"{self.name} changed while it was read.", hint="Read it again.")
            self.size = size
        return 0
