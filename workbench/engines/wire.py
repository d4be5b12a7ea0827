"""Frames of plain data over a socket: what a parent and its child say to each other."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from workbench.errors import InputError

_HEAD = struct.Struct(">I")
_READ = 1 << 16
_AT_ONCE = 1 << 15
"""Bytes that a socket takes without waiting for its reader."""


class Wire:
    """Sends and receives frames: 4 bytes of length, then JSON.

    JSON carries nothing but plain data, so that no frame can make its reader run anything. Any
    thread may send; one at a time may receive. A reader that is interrupted loses no byte, and a
    frame that is begun is sent whole, whoever interrupts its sender.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        self._received = bytearray()
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)

    def send(self, frame: Any) -> None:
        """Send one frame.

        Raises:
            InputError: It holds something that is not plain data.
            OSError: The other end is gone.
        """
        try:
            data = json.dumps(frame, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise InputError(
                f"Only plain data passes between processes: {error}.",
                hint="Use numbers, strings, lists and dictionaries, or load with isolate=False.",
            ) from None
        whole = _HEAD.pack(len(data)) + data
        if len(whole) <= _AT_ONCE or threading.current_thread() is not threading.main_thread():
            self._send_all(whole)
            return
        with ThreadPoolExecutor(1, "frame") as sender:  # Ctrl-C would cut it off in this thread
            sender.submit(self._send_all, whole).result()

    def _send_all(self, data: bytes) -> None:
        with self._sending:
            self._socket.sendall(data)

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next frame.

        Args:
            timeout: Most seconds to wait for more bytes, or None.

        Raises:
            EOFError: The other end is gone.
            TimeoutError: Nothing came in time; what came so far is kept.
        """
        while True:
            frame = self._taken()
            if frame is not None:
                return json.loads(frame)
            if timeout is not None and not self._readable.poll(timeout * 1000):
                raise TimeoutError
            try:
                data = self._socket.recv(_READ)
            except ConnectionError:
                data = b""
            if not data:
                raise EOFError
            self._received += data

    def _taken(self) -> bytes | None:
        if len(self._received) < _HEAD.size:
            return None
        end = _HEAD.size + int(_HEAD.unpack_from(self._received)[0])
        if len(self._received) < end:
            return None
        frame = bytes(self._received[_HEAD.size : end])
        del self._received[:end]
        return frame

    def close(self) -> None:
        """Close the socket; the other end sees the end of the file."""
        self._socket.close()
