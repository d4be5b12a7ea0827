"""A chat's listener and a session of given pieces, for the tests of the chat."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.messages import Message, Piece, Sampling
from workbench.widgets.chat import Chat


class Listener:
    """Hears what a front end would."""

    seen = True

    def __init__(self, chat: Chat) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.heard = threading.Condition()
        chat._talk.listener = self

    def tell(self, kind: str, **values: Any) -> None:
        with self.heard:
            self.told.append((kind, values))
            self.heard.notify_all()

    def update(self) -> None:
        pass

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [values for name, values in self.told if name == kind]

    def wait(self, kind: str, count: int = 1) -> dict[str, Any]:
        with self.heard:
            assert self.heard.wait_for(lambda: len(self.of(kind)) >= count, 30)
            return self.of(kind)[count - 1]


class Session:
    """Says the pieces that it is given; ``gate`` holds it up before each."""

    def __init__(self, pieces: Sequence[Piece], *powers: Power) -> None:
        self.pieces, self.powers = pieces, frozenset(powers)
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[tuple[Sequence[Message], Sampling]] = []
        self.ended = threading.Event()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        self.asked.append((messages, sampling))
        try:
            for piece in self.pieces:
                self.gate.wait(30)
                yield piece
        finally:
            self.ended.set()

    def close(self) -> None:
        self.gate.set()


def scripted(script: Any, **options: Any) -> Model:
    return wb.load("scripted", engine="scripted", script=script, **{"tokens": "words"} | options)


def model_of(session: Session) -> Model:
    like = scripted("")
    return Model(session, like.plan, loading=like.loading)
