"""Keep dialogues: save and load them, and write every change to ``outputs/chats/``."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import os
import re
import secrets
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from workbench.chats.dialogue import Dialogue
from workbench.chats.jsonl import as_jsonl, from_jsonl
from workbench.chats.page import as_page, from_page
from workbench.errors import InputError, NotFoundError
from workbench.paths import atomic_file, outputs

_MARKDOWN = (".md", ".markdown")
_LONGEST_CARD = 60
_PATIENCE, _AGAIN = 5.0, 0.01
_Stamp = tuple[int, int, int]


def save(dialogue: Dialogue, path: str | Path) -> Path:
    """Write a dialogue as JSONL or Markdown, by the ending, whole or not at all.

    JSONL holds everything. Markdown is for reading: it holds the branch on view with its texts,
    thinking, tool calls and errors; other branches, pictures, token ids, probabilities and the
    figures of the answers stay behind.

    Raises:
        InputError: Another ending than ``.jsonl`` or ``.md``.
    """
    final = Path(path).expanduser().absolute()
    kind = final.suffix.lower()
    if kind not in (".jsonl", *_MARKDOWN):
        raise InputError(
            f"A conversation is saved as .jsonl or .md, not as {final.name!r}.",
            hint="JSONL holds everything, Markdown is for reading.",
        )
    data = as_jsonl(dialogue) if kind == ".jsonl" else as_page(dialogue)
    with atomic_file(final) as partial:
        partial.write_bytes(data)
    return final


def load(path: str | Path) -> Dialogue:
    """Read what ``save`` wrote.

    Raises:
        NotFoundError: There is no such file.
        InputError: It holds no dialogue, or is damaged; the message names file and line.
    """
    file = Path(path).expanduser()
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"There is no conversation {file}.", hint="wb.chats() lists those that are kept."
        ) from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from None
    if file.suffix.lower() in _MARKDOWN:
        return from_page(data, source=str(file))
    found = from_jsonl(data, source=str(file))
    _keeper_of(found).loaded = _digest(data)
    return found


def chats_folder() -> Path:
    """Return ``outputs/chats``, which may not be there yet."""
    return outputs("chats")


def keep(dialogue: Dialogue, folder: Path | None = None) -> Path:
    """Write the dialogue as it is now to its own file in ``outputs/chats`` and return the file.

    The file is ``<time>-<card>-<id>.jsonl``, the same each time. Where it holds turns that this
    dialogue does not (a conversation may be loaded twice, or in two kernels), both are kept: the
    dialogue goes on with an id and a file of its own, and a warning says so.
    """
    file, told = _keeper_of(dialogue).keep((folder or chats_folder()) / _name(dialogue))
    _warn(told, stacklevel=3)
    return file


def keep_always(
    dialogue: Dialogue, folder: Path | None = None, *, tell: Callable[[str], object] | None = None
) -> Path:
    """Keep the dialogue after each of its changes as ``keep`` does, and return its file as of now.

    What is kept survives a kill between two changes. A disk that is full does not end the talk:
    a warning says once that nothing is kept.

    Args:
        dialogue: What is kept, from its first turn on.
        folder: Another folder than ``outputs/chats``.
        tell: Takes the text of each warning too.
    """
    keeper = _keeper_of(dialogue)
    keeper.file = file = (folder or chats_folder()) / _name(dialogue)
    failed = False

    def write() -> None:
        nonlocal failed
        told = ""
        try:
            if len(dialogue):
                _, told = keeper.keep()
        except OSError as error:
            if not failed:
                failed = True
                told = f"The conversation is not kept in {file.parent}: {error.strerror}."
        if told and tell is not None:
            tell(told)
        _warn(told, stacklevel=5)

    dialogue.changed = write
    write()
    return keeper.file


def kept_file(dialogue: Dialogue) -> Path | None:
    """Return the file that a dialogue is always kept in; None where it is not."""
    return _keeper_of(dialogue).file


class _Keeper:
    """The file of one dialogue, which never takes the place of what others wrote there.

    Attributes:
        file: Where it is always kept, or None.
        loaded: Digest of the file that the dialogue was loaded from.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = weakref.ref(dialogue)  # the dialogue is what keeps its keeper alive
        self._lock = threading.Lock()
        self._written: dict[Path, tuple[_Stamp, bytes]] = {}
        self.file: Path | None = None
        self.loaded = b""

    def keep(self, file: Path | None = None) -> tuple[Path, str]:
        """Write the dialogue as it is now; return where, and what the user must know, or "".

        Args:
            file: Where; None for where it is always kept.

        Raises:
            OSError: It cannot be written.
        """
        dialogue = self._dialogue()
        assert dialogue is not None  # who calls holds it
        with self._lock:  # a later state is never overwritten by an earlier one
            place = file or self.file
            assert place is not None
            if self._put(dialogue, place):
                return place, ""
            own, told = self._part(dialogue, place)
            if place == self.file:
                self.file = own
            return own, told

    def _part(self, dialogue: Dialogue, file: Path) -> tuple[Path, str]:
        """Go on with an id and a file of its own; return it, and what the user must know."""
        origin, own, free = dialogue.id, file, False
        try:
            while not free:
                dialogue.id = f"{origin}-{secrets.token_hex(2)}"
                own = file.with_name(_name(dialogue))
                free = not own.exists() and self._put(dialogue, own)
        except OSError:
            dialogue.id = origin
            raise
        return own, (
            f"{file.name} holds turns that this copy of the conversation does not: it goes on in "
            f"another chat or kernel too, or this is an older copy. Both are kept: this one goes "
            f"on in {own.name}, with the id {dialogue.id}. wb.chats() lists both; go on with "
            "the one that you want."
        )

    def _put(self, dialogue: Dialogue, file: Path) -> bool:
        """Write the file; return False where it holds what the dialogue does not."""
        try:
            with _only_writer(file) as there:
                if there is not None and not self._wrote(there, file):
                    other = _read(there, file)
                    if other is None or not _holds(dialogue, other):
                        return other is not None and _holds(other, dialogue)  # nothing is new
                data = as_jsonl(dialogue)
                with atomic_file(file, new=there is None) as partial:
                    partial.write_bytes(data)
                    stamp = _stamp(partial.stat())
                self._written[file] = (stamp, _digest(data))
                return True
        except BlockingIOError:  # somebody is writing it and does not come to an end
            return False
        except FileExistsError:  # somebody made it in this moment
            return self._put(dialogue, file)

    def _wrote(self, there: IO[bytes], file: Path) -> bool:
        """Return whether the open file is as this dialogue wrote it last, or loaded it."""
        stamp, digest = self._written.get(file, (None, b""))
        if stamp == _stamp(os.fstat(there.fileno())):
            return True
        return _digest(there.read()) in (digest, self.loaded)


_keepers: weakref.WeakKeyDictionary[Dialogue, _Keeper] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def _keeper_of(dialogue: Dialogue) -> _Keeper:
    with _making:
        return _keepers.setdefault(dialogue, _Keeper(dialogue))


@contextlib.contextmanager
def _only_writer(file: Path) -> Iterator[IO[bytes] | None]:
    """Open the file that is there, and let nobody else write it meanwhile; None for no file.

    The lock is on the file itself, so that none is left behind: the system takes it back from a
    process that dies. Whoever waited for it may find that the file was exchanged, and looks again.

    Raises:
        BlockingIOError: Somebody holds it for too long.
    """
    while True:
        with contextlib.ExitStack() as held:
            handle: IO[bytes] | None = None
            with contextlib.suppress(FileNotFoundError):
                handle = held.enter_context(file.open("rb"))
            if handle is None or _locked(handle, file):
                yield handle
                return


def _locked(handle: IO[bytes], file: Path) -> bool:
    """Lock an open file; return whether it still is the one of that name."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(_AGAIN)
        except OSError:  # a file system without locks: looking must do
            break
    try:
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _read(there: IO[bytes], file: Path) -> Dialogue | None:
    """Return the dialogue of an open file; None where it is damaged."""
    there.seek(0)
    try:
        return from_jsonl(there.read(), source=str(file))
    except InputError:
        return None


def _holds(dialogue: Dialogue, other: Dialogue) -> bool:
    """Return whether nothing of the other is missing in the dialogue, but for what is on view."""
    turns = dialogue.turns
    named = (dialogue.system, dialogue.title) == (other.system, other.title)
    return named and all(turns.get(turn.id) == turn for turn in other)


def _stamp(of: os.stat_result) -> _Stamp:
    return of.st_ino, of.st_size, of.st_mtime_ns


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _warn(text: str, *, stacklevel: int) -> None:
    if text:
        warnings.warn(text, UserWarning, stacklevel=stacklevel)


def _name(dialogue: Dialogue) -> str:
    """Return the file's name; what a file of others says is not trusted to be one."""
    try:
        began = datetime.datetime.fromisoformat(dialogue.created).astimezone()
    except ValueError:
        began = datetime.datetime.now().astimezone()
    card = str(dialogue.made_by.get("card") or "chat")
    parts = (f"{began:%Y%m%d-%H%M%S}", _word(card)[:_LONGEST_CARD], _word(dialogue.id))
    return f"{'-'.join(parts)}.jsonl"


def _word(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-.") or "chat"
