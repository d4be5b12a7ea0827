"""Engines that are servers of their own: started for a plan, spoken to over HTTP, ended whole."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.catalog import ModelFiles
from workbench.engines import openai_tokens
from workbench.engines.base import Power, Session, Stopped, never
from workbench.engines.http import Key
from workbench.engines.memory import Grown
from workbench.engines.openai_session import OpenAISession
from workbench.engines.server_adapters import LlamaServerAdapters, VllmAdapters, told
from workbench.engines.server_command import command_for, facts_of, slots_of
from workbench.engines.server_memory import Freed
from workbench.engines.server_process import PortTakenError, ServerProcess
from workbench.engines.server_template import template_of
from workbench.errors import ChildDiedError, EngineError, UnsupportedError, WorkbenchError
from workbench.messages import Message, Piece, Reply, Sampling
from workbench.planning import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PORTS = 3  # another program may take a free port before the server does
_ENDING_SECONDS = 30.0
_THINK = "<think>"
_NO_PARSER = (
    "It was started without a parser of tool calls, and its chat template shows none that is sure: "
    "name one by tool_parser=."
)
Result = TypeVar("Result")


class ServerEngine:
    """Starts the server that its facts describe."""

    name = ""

    def open(self, plan: Plan) -> Session:
        """Start the server, wait until it is ready, and return a session with it.

        Raises:
            MissingPackageError: It is not on this machine.
            UnsupportedError: It cannot do what an option asks for.
            EngineError: It ended while it loaded; the message gives the cause and its last words.
        """
        if plan.options.get("sleep") and plan.device != "cuda":
            raise UnsupportedError(
                f"{plan.engine} sleeps on a CUDA device only, not on {plan.device}.",
                hint="Leave sleep= out; close() gives all memory back.",
            )
        server = _started(plan)
        try:
            return ServerSession(server, plan)
        except BaseException:
            server.stop()
            raise


class VllmEngine(ServerEngine):
    """vLLM, in this environment or in another."""

    name = "vllm"


class SglangEngine(ServerEngine):
    """SGLang, in an environment of its own."""

    name = "sglang"


class TensorRtLlmEngine(ServerEngine):
    """TensorRT-LLM's ``trtllm-serve``."""

    name = "tensorrt-llm"


class LlamaServerEngine(ServerEngine):
    """llama.cpp's server: the binary, or the one inside the package xllamacpp."""

    name = "llama-server"

    def prepare(self, plan: Plan) -> Plan:
        """Return the plan with its GGUF file, converted and quantized once where needed."""
        if plan.files is None or plan.files.kind != "safetensors":
            return plan
        from workbench.formats.gguf import ensure_gguf

        path = ensure_gguf(plan.files, plan.quantization)
        files = ModelFiles(path=path, kind="gguf", weights=(path,))
        return dataclasses.replace(plan, files=files)


def _started(plan: Plan) -> ServerProcess:
    """Return the server when it answers; nothing of it is left when this fails."""
    for attempt in range(1, _PORTS + 1):
        server = ServerProcess(command_for(plan))
        try:
            server.wait_ready()
        except PortTakenError:
            server.stop()
            if attempt == _PORTS:
                raise
        except BaseException:
            server.stop()
            raise
        else:
            return server
    raise AssertionError("the last attempt returns or raises")


class ServerSession(OpenAISession):
    """A session with a server that lives and ends with it.

    Attributes:
        server: The process, with its log.
        grown: What its processes held when it was ready.
        lacks: Why it cannot do what its engine could.
    """

    def __init__(self, server: ServerProcess, plan: Plan) -> None:
        _, facts = facts_of(plan.engine)
        self.server = server
        self._asked = False  # by ``ask_many``, whose requests begin one after another
        key = server.command.key
        with self._watched():
            super().__init__(
                f"{server.command.url}/v1",
                plan.card.id,
                key=Key(key) if key else None,
                context=plan.context,
                flavour=facts.flavour,
                concurrent=slots_of(plan),
                label=f"the {plan.engine} server of {plan.card.id}",
            )
            self._adapters = _adapters(self, plan)
        self.lacks: dict[Power, str] = {}
        self._settle_powers(plan)
        self._divides = (  # what the server does not: a thought that the prompt begins
            plan.engine == "vllm"
            and self.chats
            and not _given(server.command.words, "--reasoning-parser")
            and _THINK in template_of(plan)
        )
        self._opens: dict[bool | None, bool] = {}
        held = server.held()
        self.grown = Grown(
            host_bytes=held.rss_bytes,
            device_bytes=held.device_bytes,
            counter="" if held.device_bytes is None else "NVML, by process",
        )

    def _settle_powers(self, plan: Plan) -> None:
        """Add and take away what the plan's options and the model's files decide."""
        if self._adapters is not None:
            self.powers |= {Power.ADAPTERS}
        if plan.options.get("sleep"):
            self.powers |= {Power.SLEEP}
        if plan.engine != "llama-server":  # it tells by itself what it sees
            self.add_powers(plan.card.tasks)
        for option, power in (("embedding", Power.EMBED), ("reranking", Power.RERANK)):
            if plan.options.get(option):
                self.powers = frozenset({Power.TOKENIZE, power})
        self._has_template = not _lacks_template(plan)
        if not self._has_template:
            self.powers -= {Power.RENDER, Power.TOOLS, Power.THINKING}
        words = self.server.command.words
        if plan.engine == "vllm" and self.chats and not _given(words, "--tool-call-parser"):
            self.powers -= {Power.TOOLS}
            self.lacks[Power.TOOLS] = _NO_PARSER

    @property
    def pid(self) -> int:
        """Process id of the root of the server's tree."""
        return self.server.pid

    @property
    def freed(self) -> Freed | None:
        """What ending the server gave back, None while it runs."""
        return self.server.freed

    def close(self) -> None:
        """Hang up and end the server with its whole tree; safe to call twice."""
        try:
            super().close()
        finally:
            self.server.stop()

    # What may find the server dead

    @contextlib.contextmanager
    def _watched(self, *, began: bool = False) -> Iterator[None]:
        """Turn an error of a server that died into the one that says how it died.

        Args:
            began: Whether this goes on with a request that was begun before.

        Raises:
            ChildDiedError: The server is gone; cause and last words are in the message.
        """
        if not self.server.alive:
            asked = began or self._asked
            raise self.server.death(f"while it {'answered' if asked else 'was not asked'}")
        try:
            yield
        except EngineError as error:
            if self.server.alive and self.server.answers():
                raise
            if not self.server.dies(_ENDING_SECONDS):
                self.server.stop()
            raise self.server.death("while it answered") from error

    def _guarded(self, work: Callable[[], Result]) -> Result:
        with self._watched():
            return work()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Yield the reply in pieces; closing the iterator hangs up, from any thread.

        Raises:
            UnsupportedError: The model has no chat template; the server would take one of its own.
        """
        if not self._has_template:
            raise UnsupportedError(
                "This GGUF has no chat template.",
                hint="Use model.complete(text), which needs none.",
            )
        return _Watched(self, super().stream(messages, sampling))

    def _opens_thought(self, think: bool | None) -> bool:
        """Whether the template begins a thought in the prompt, asked once for each wish."""
        if not self._divides:
            return False
        if think not in self._opens:
            try:
                prompt = self._guarded(lambda: openai_tokens.short_prompt(self, think))
            except ChildDiedError:
                raise
            except WorkbenchError:  # a template that wants another beginning
                return False
            self._opens[think] = prompt.rstrip().endswith(_THINK)
        return self._opens[think]

    def complete(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Piece]:
        """Continue a raw prompt."""
        return _Watched(self, super().complete(prompt, sampling))

    def ask_many(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        stopped: Stopped = never,
    ) -> list[Reply]:
        """Return one reply for each conversation, several asked at a time.

        Raises:
            ChildDiedError: The server is gone.
        """
        with self._watched():
            self._asked = True
            try:
                replies = super().ask_many(conversations, sampling, stopped)
            finally:
                self._asked = False
        if any(reply.finish_reason == "error" for reply in replies) and not self.server.alive:
            raise self.server.death("while it answered")
        return replies

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``."""
        return self._guarded(lambda: super(ServerSession, self).tokenize(text))

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of the ids."""
        return self._guarded(lambda: super(ServerSession, self).detokenize(ids))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt as the server's chat template renders it."""
        return self._guarded(
            lambda: super(ServerSession, self).render(
                messages, add_generation_prompt=add_generation_prompt
            )
        )

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt's token ids."""
        return self._guarded(lambda: super(ServerSession, self).prompt_ids(messages))

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return log p(ids[i] | ids[:i]) for i = 1 .. n-1."""
        return self._guarded(lambda: super(ServerSession, self).score(ids))

    def embed(self, texts: Sequence[str], normalize: bool) -> NDArray[np.float32]:
        """Return one vector a text."""
        return self._guarded(lambda: super(ServerSession, self).embed(texts, normalize))

    def rerank(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """Return the relevance of each document to the query."""
        return self._guarded(lambda: super(ServerSession, self).rerank(query, documents))

    # Adapters and sleep

    def use_adapter(self, folder: Path | None) -> None:
        """Answer with this LoRA adapter from now on, or with the base model."""
        adapters = self._adapters
        if adapters is None:
            raise UnsupportedError(
                f"{self.label} was started without adapters.", hint="Load it with lora=True."
            )
        self._guarded(lambda: adapters.use(folder))

    def sleep(self) -> None:
        """Move the weights to the host and drop the KV cache."""
        self._guarded(lambda: told(self.http, "/sleep?level=1", at_root=True))

    def wake(self) -> None:
        """Take the device's memory again."""
        self._guarded(lambda: told(self.http, "/wake_up", at_root=True))


def _adapters(session: ServerSession, plan: Plan) -> VllmAdapters | LlamaServerAdapters | None:
    if plan.engine == "llama-server":
        return LlamaServerAdapters(session, plan)
    if plan.engine == "vllm" and (
        plan.adapter is not None or plan.options.get("adapters") or plan.options.get("lora")
    ):
        return VllmAdapters(session, plan)
    return None


def _given(words: Sequence[str], flag: str) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in words)


def _lacks_template(plan: Plan) -> bool:
    """Whether a GGUF has no chat template and none is given: the server would take ChatML."""
    if plan.files is None or plan.files.kind != "gguf":
        return False
    if any("chat-template" in str(word) for word in plan.options.get("arguments", ())):
        return False
    from workbench.catalog.header import read_header

    return "tokenizer.chat_template" not in read_header(plan.files.path).metadata


@dataclasses.dataclass(slots=True)
class _Watched:
    """A stream whose errors tell how the server died; closed from any thread."""

    session: ServerSession
    inner: Any
    began: bool = False

    def __iter__(self) -> _Watched:
        return self

    def __next__(self) -> Piece:
        with self.session._watched(began=self.began):
            self.began = True
            piece: Piece = next(self.inner)
        return piece

    def close(self) -> None:
        """Hang up."""
        self.inner.close()
