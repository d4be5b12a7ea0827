"""An engine with every power, whose answers say what reached it: for tests of the way there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engines import registry
from workbench.engines.base import Power, Stopped, never
from workbench.messages import Likelihood, Message, Piece, Reply, Sampling, ToolCall, Usage
from workbench.planning import Plan

NAME = "every power"


def register() -> bool:
    """Make the engine known in this process."""
    registry._CLASSES[NAME] = "engine_powers:PowersEngine"
    return True


class PowersEngine:
    name = NAME

    def open(self, plan: Plan) -> PowersSession:
        return PowersSession(plan)


class PowersSession:
    """Tells what it was asked, in as many forms as a session has."""

    def __init__(self, plan: Plan) -> None:
        self.powers = frozenset(Power)
        self.context = plan.context
        self.template = "{{ messages }} 猫"
        self.adapter: Path | None = None
        self.awake = True
        self.together = threading.Barrier(int(plan.options.get("together", 1)))

    def close(self) -> None:
        pass

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        asked = messages[-1]
        if asked.content == "together":
            self.together.wait(60)  # only if all streams run at once
        if asked.content == "for ever":
            while True:
                time.sleep(0.005)
                yield Piece(text="x", token_id=1)
        told = {
            "adapter": self.adapter and str(self.adapter),
            "images": [len(image.data) for image in asked.images],
            "schema": sampling.schema,
            "tools": list(sampling.tools),
            "awake": self.awake,
        }
        yield Piece(thinking="hm")
        yield Piece(
            text=json.dumps(told),
            token_id=5,
            logprob=-0.25,
            top=(Likelihood(token_id=5, text="{", logprob=-0.25),),
        )
        yield Piece(tool_call=ToolCall(id="1", name="add", arguments='{"a": 1}'))
        usage = Usage(prompt_tokens=3, completion_tokens=1)
        yield Piece(finish_reason="tool_calls", usage=usage)

    def complete(self, prompt: Any, sampling: Sampling) -> Iterator[Piece]:
        for index, part in enumerate(str(prompt).split(",")):
            time.sleep(0.002)
            yield Piece(text=f"{part},", token_id=index)
        yield Piece(finish_reason="stop")

    def ask_many(
        self, many: Sequence[Sequence[Message]], sampling: Sampling, stopped: Stopped = never
    ) -> list[Reply]:
        if many[0][-1].content == "for ever":
            while not stopped():
                time.sleep(0.005)
            return [Reply(text="so far", finish_reason="cancelled") for _ in many]
        return [Reply.joined(self.stream(turns, sampling)) for turns in many]

    def embed(self, texts: Sequence[str], normalize: bool) -> Any:
        return np.array([[len(text), float(normalize)] for text in texts], np.float32)

    def rerank(self, query: str, documents: Sequence[str]) -> Any:
        return np.array([document.count(query) for document in documents], np.float32)

    def use_adapter(self, folder: Path | None) -> None:
        self.adapter = folder
        self.powers = frozenset(Power) if folder is None else frozenset(Power) - {Power.RERANK}

    def sleep(self) -> None:
        self.awake = False

    def wake(self) -> None:
        self.awake = True
