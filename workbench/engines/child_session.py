"""A session whose model lives in a child process; every power passes through."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.engines import plain
from workbench.engines.base import Ending, Power, Stopped, never
from workbench.engines.child import Child
from workbench.engines.memory import Grown
from workbench.errors import WorkbenchError
from workbench.messages import Message, Piece, Reply, Sampling
from workbench.planning import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def open_in_child(plan: Plan, *, memory_limit: int | None = None) -> ChildSession:
    """Start a child process and open the plan in it.

    Args:
        plan: What to open.
        memory_limit: Most bytes of data that the child may hold, or None.

    Raises:
        WorkbenchError: What opening raised there.
        ChildDiedError: The child died while loading.
    """
    child = Child(memory_limit=memory_limit, changes=plan.changes)
    try:
        opened = child.request("open", plan=plain.from_plan(plan))
    except BaseException:
        child.close()
        raise
    return ChildSession(child, opened)


class ChildSession:
    """Speaks to the session in the child.

    Attributes:
        powers: What the model there can do.
        context: Tokens that prompt and reply may take together, None where it is not told.
        template: The model's chat template, "" where the engine does not tell.
        grown: What loading added to the child's memory.
    """

    def __init__(self, child: Child, opened: dict[str, Any]) -> None:
        self._child = child
        self._array_file = threading.Lock()  # one file carries all arrays
        self.grown = Grown(**opened["grown"])
        self._take(opened)

    def _take(self, state: dict[str, Any]) -> None:
        self.powers = frozenset(Power(name) for name in state["powers"])
        self.context: int | None = state["context"]
        self.template: str = state["template"]

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def close(self) -> None:
        """End the child and with it all its memory."""
        self._child.close()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Yield the reply as the child sends it."""
        return self._pieces("stream", sampling, messages=plain.from_messages(messages))

    def complete(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Piece]:
        """Continue a raw prompt."""
        given = prompt if isinstance(prompt, str) else [int(index) for index in prompt]
        return self._pieces("complete", sampling, prompt=given)

    def _pieces(self, operation: str, sampling: Sampling, **arguments: Any) -> Iterator[Piece]:
        number = self._child.start(operation, sampling=plain.from_sampling(sampling), **arguments)
        over = False
        try:
            while not over:
                frame = self._child.answer(number)
                if "piece" in frame:
                    text, token = frame["piece"]
                    yield Piece(text=text, token_id=token)
                else:
                    piece = plain.to_piece(frame["full"])
                    over = piece.finish_reason is not None
                    yield piece
        except WorkbenchError:  # the child sent it, or is gone: nothing goes on there
            over = True
            raise
        finally:
            if over:
                self._child.forget(number)
            else:
                self._child.cancel(number)

    def ask_many(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        stopped: Stopped = never,
    ) -> list[Reply]:
        """Answer several conversations at once.

        Raises:
            Interrupted: Ctrl-C was pressed; it has what the child had answered.
        """
        ending = Ending(stopped)
        replies = self._child.request(
            "ask_many",
            stopped=stopped,
            interrupt=ending.interrupt,
            conversations=[plain.from_messages(messages) for messages in conversations],
            sampling=plain.from_sampling(sampling),
        )
        return ending.ended([plain.to_reply(reply) for reply in replies])

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``."""
        ids: list[int] = self._child.request("tokenize", text=text)
        return ids

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids."""
        encoded = self._child.request("detokenize", ids=[int(index) for index in ids])
        return base64.b64decode(encoded)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as text."""
        return str(
            self._child.request(
                "render",
                messages=plain.from_messages(messages),
                add_generation_prompt=add_generation_prompt,
            )
        )

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids."""
        ids: list[int] = self._child.request("prompt_ids", messages=plain.from_messages(messages))
        return ids

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return log p of each id but the first, float32, shape [n - 1]."""
        return self._array("score", [int(index) for index in ids])

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the log-softmax after each id but the last, float32, shape [n - 1, vocab]."""
        return self._array("log_probabilities", [int(index) for index in ids])

    def embed(self, texts: Sequence[str], normalize: bool) -> NDArray[np.float32]:
        """Return one vector a text, float32, shape [texts, width]."""
        return self._array("embed", list(texts), bool(normalize))

    def rerank(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """Return the relevance of each document to the query, float32, shape [documents]."""
        return self._array("rerank", query, list(documents))

    def _array(self, operation: str, *arguments: Any) -> NDArray[np.float32]:
        with self._array_file:
            found: NDArray[np.float32] = self._child.request(operation, arguments=arguments)
        return found

    # What changes the session

    def use_adapter(self, folder: Path | None) -> None:
        """Answer with this LoRA adapter from now on, or with the base model."""
        self._take(
            self._child.request("use_adapter", folder=None if folder is None else str(folder))
        )

    def sleep(self) -> None:
        """Give the device's memory back; the child stays."""
        self._take(self._child.request("sleep"))

    def wake(self) -> None:
        """Take the memory again."""
        self._take(self._child.request("wake"))
