"""Read server-sent events from bytes as they arrive over a network."""

from __future__ import annotations

import dataclasses

from workbench.errors import EngineError

MOST_BYTES = 64 * 1024 * 1024
"""A single event larger than this is no reply of a model."""
_MARK = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        data: Its ``data`` lines, joined by line feeds.
        kind: ``message``, or the name in its ``event`` line; ``error`` for an ``error`` line, as
            older llama-servers send.
    """

    data: str
    kind: str = "message"


class EventParser:
    """Takes bytes however the network cut them and gives whole events.

    Lines end in LF, CR or CRLF; comments (``: ping``) and unknown fields are passed over; text is
    decoded line by line, so a character is never broken. Format: the HTML standard, section 9.2
    (https://html.spec.whatwg.org/multipage/server-sent-events.html).
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []  # of a line that is not ended yet
        self._after_return = False
        self._begun = False
        self._data: list[str] = []
        self._size = 0
        self._kind = "message"

    def feed(self, received: bytes) -> list[Event]:
        """Return the events that are complete with these bytes.

        Raises:
            EngineError: An event is too large.
        """
        received = self._unmarked(received)
        if self._after_return and received:  # the other half of a CRLF
            received = received.removeprefix(b"\n")
            self._after_return = False
        self._size += len(received)
        if self._size > MOST_BYTES:
            raise EngineError(f"The server sent an event of more than {MOST_BYTES / 1e6:.0f} MB.")
        self._parts.append(received)
        if b"\n" not in received and b"\r" not in received:
            return []
        self._after_return = received.endswith(b"\r")
        *lines, left = _lines(b"".join(self._parts))
        self._parts = [left]
        found = [event for line in lines if (event := self._line(line)) is not None]
        if found:
            self._size = len(left)
        return found

    def finish(self) -> list[Event]:
        """Return what is left when no more bytes come: a last event without its empty line."""
        found = [self._line(line) for line in (b"".join(self._parts), b"")]
        self._parts = []
        return [event for event in found if event is not None]

    def _unmarked(self, received: bytes) -> bytes:
        """Return the bytes without the byte order mark that a stream may begin with."""
        if self._begun:
            return received
        whole = b"".join([*self._parts, received])
        self._parts = []
        if len(whole) < len(_MARK) and _MARK.startswith(whole):
            self._parts = [whole]
            return b""
        self._begun = True
        return whole.removeprefix(_MARK)

    def _line(self, line: bytes) -> Event | None:
        if not line:
            data, kind = self._data, self._kind
            self._data, self._kind = [], "message"
            return Event("\n".join(data), kind) if data else None
        field, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if field == b"data":
            self._data.append(text)
        elif field == b"event":
            self._kind = text
        elif field == b"error":
            self._data.append(text)
            self._kind = "error"
        return None


def _lines(data: bytes) -> list[bytes]:
    """Return the lines, the last of them the one that is not ended yet, perhaps empty."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.split(b"\n")
