"""Every error the workbench raises on purpose: what failed, with which value, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkbenchError(Exception):
    """Base of all errors raised on purpose; the command line prints it without a trace.

    Args:
        message: What failed and with which value, one or two sentences.
        hint: What the user can do next; appended to the message.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message} {hint}" if hint else message)


class InputError(WorkbenchError):
    """An argument, parameter or file given by the user is wrong."""


class NotFoundError(InputError):
    """A model, notebook, file or setting with this name does not exist."""


class UnsupportedError(WorkbenchError):
    """The engine, format or loaded model cannot do what was asked."""


class MissingPackageError(WorkbenchError):
    """A package that this step needs is not installed."""


class FormatError(WorkbenchError):
    """A model file is corrupt, truncated or of a format that is refused."""


class ContextLengthError(InputError):
    """The prompt does not fit into the context the model was loaded with."""


class EngineError(WorkbenchError):
    """An engine failed while loading or generating."""


class ChildDiedError(EngineError):
    """The child process that held a model ended unexpectedly."""


class DownloadError(WorkbenchError):
    """A model could not be fetched: the hub refuses, is not reached, or sent something else."""


class MemoryShortError(WorkbenchError):
    """A model does not fit into the memory that is free; nothing was loaded.

    Args:
        message: What does not fit, and by how much.
        hint: What would make it fit.
        needed: Bytes needed of the memory that is short.
        free: Bytes free of it.
        changes: The smallest changes that would make it fit, in sentences.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        needed: int = 0,
        free: int = 0,
        changes: tuple[str, ...] = (),
    ) -> None:
        self.needed, self.free, self.changes = needed, free, changes
        super().__init__(message, hint=hint)


class DiskSpaceError(WorkbenchError):
    """There is not enough free disk space; nothing was written."""


class ParityError(WorkbenchError):
    """Two forms of one model disagree by more than the stated limit."""


class RunError(WorkbenchError):
    """A notebook run failed; the run folder says where."""


class LostRunError(RunError):
    """A run says it is running, but its process is gone."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to ``name``, or None when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint sentence naming the nearest known name, else all known names."""
    names = sorted(known)
    close = nearest(name, names)
    if close is not None:
        return f"Did you mean {close!r}?"
    return f"Known: {', '.join(names)}." if names else "None are known."
