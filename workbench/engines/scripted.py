"""The scripted engine: answers from a script, so that anything runs without weights.

``wb.load("scripted", engine="scripted", script=["Hello.", "Goodbye."])``
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from workbench.engines.base import Power, reply_limit
from workbench.engines.text import pieces
from workbench.errors import EngineError, InputError, did_you_mean
from workbench.messages import Message, Piece, Sampling
from workbench.planning import Plan

Script = str | Callable[[Sequence[Message]], str] | Sequence[str | Mapping[str, Any]]
_RULE_KEYS = ("exact", "regex", "say", "fail", "die")
_OPTIONS = ("script", "tokens", "tokens_per_second", "holds", "fails")
_MEMORY = "memory"
_BLOCK = 1 << 26
_BYTE_END = 256
_WORD = re.compile(r"\s*\S+|\s+$")


class ScriptedEngine:
    """Opens a script instead of files.

    Options of ``wb.load``:
        script: A reply; a function of the messages; or a list of replies, given in order and then
            again, and of rules ``{"exact": text, "regex": pattern, "say": reply, "fail": reason}``.
            A rule whose ``exact`` equals, or whose ``regex`` is found in, the last user turn comes
            before the replies in order; with ``fail`` it raises after what it says. Without a
            script the last user turn is repeated. With ``die`` the process ends by the signal of
            that name after what is said, or takes all memory that it gets (``"memory"``): to try
            isolation, with isolate=True.
        tokens: ``bytes`` (the ids are UTF-8 bytes) or ``words``.
        tokens_per_second: Speed, or None for no pause.
        holds: Bytes of memory to hold while it is loaded.
        fails: Why loading fails, to try what follows then.
    """

    name = "scripted"

    def open(self, plan: Plan) -> ScriptedSession:
        """Check the script and return a session.

        Raises:
            InputError: An unknown option or rule.
        """
        for name in plan.options:
            if name not in _OPTIONS:
                raise InputError(
                    f"The scripted engine has no option {name!r}.",
                    hint=did_you_mean(name, _OPTIONS),
                )
        if plan.options.get("fails"):
            raise EngineError(str(plan.options["fails"]))
        return ScriptedSession(plan)


class ScriptedSession:
    """Answers from the script."""

    powers = frozenset({Power.TOKENIZE, Power.RENDER, Power.COMPLETE})

    def __init__(self, plan: Plan) -> None:
        self.context = plan.context
        self._answer = _answers(plan.options.get("script"))
        self._words = _Words() if _token_kind(plan) == "words" else None
        speed = plan.options.get("tokens_per_second")
        self._pause = 1 / speed if speed else 0.0
        self._held = bytearray(b"x") * int(plan.options.get("holds") or 0)
        self.end = 0 if self._words else _BYTE_END

    @property
    def raw(self) -> Any:
        """The function that answers."""
        return self._answer

    def close(self) -> None:
        """Free what it holds."""
        self._held = bytearray()

    def tokenize(self, text: str) -> list[int]:
        """Return the UTF-8 bytes of ``text``, or one id per word."""
        return self._words.ids(text) if self._words else list(text.encode("utf-8", "replace"))

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of the ids."""
        return b"".join(map(self._bytes, ids))

    def _bytes(self, index: int) -> bytes:
        if self._words:
            return self._words.bytes_of(index)
        return bytes((index,)) if 0 <= index < _BYTE_END else b""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return one ``role: content`` line for each message."""
        lines = "".join(f"{message.role}: {message.content}\n" for message in messages)
        return f"{lines}assistant: " if add_generation_prompt else lines

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of the rendered prompt."""
        return self.tokenize(self.render(messages))

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Yield the script's reply in pieces."""
        return self._reply(self.prompt_ids(messages), messages, sampling)

    def complete(self, prompt: str | Sequence[int], sampling: Sampling) -> Iterator[Piece]:
        """Yield the script's reply to a raw prompt, taken as a user turn."""
        ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        text = self.detokenize(ids).decode("utf-8", "replace")
        return self._reply(ids, (Message("user", text),), sampling)

    def _reply(
        self, ids: list[int], messages: Sequence[Message], sampling: Sampling
    ) -> Iterator[Piece]:
        limit = reply_limit(len(ids), sampling, self.context)
        return pieces(
            self._tokens(messages),
            prompt_tokens=len(ids),
            limit=limit,
            ends=() if sampling.ignore_end else (self.end,),
            to_bytes=self._bytes,
            stop=sampling.stop,
            began=time.perf_counter(),
        )

    def _tokens(self, messages: Sequence[Message]) -> Iterator[int]:
        text, failure, death = self._answer(messages)
        due = time.monotonic()
        for token in self.tokenize(text):
            due += self._pause
            if self._pause:
                time.sleep(max(0.0, due - time.monotonic()))
            yield token
        if death is not None:
            _die(death)
        if failure is not None:
            raise EngineError(failure)
        yield self.end


class _Words:
    """Ids of words, given out as they are first seen; id 0 is the end."""

    def __init__(self) -> None:
        self._texts = [b""]
        self._known: dict[bytes, int] = {}

    def ids(self, text: str) -> list[int]:
        return [self._id(word.encode("utf-8", "replace")) for word in _WORD.findall(text)]

    def _id(self, word: bytes) -> int:
        found = self._known.get(word)
        if found is None:
            found = self._known[word] = len(self._texts)
            self._texts.append(word)
        return found

    def bytes_of(self, index: int) -> bytes:
        return self._texts[index] if 0 <= index < len(self._texts) else b""


def _token_kind(plan: Plan) -> str:
    kind = plan.options.get("tokens", "bytes")
    if kind not in ("bytes", "words"):
        raise InputError(
            f"tokens must be 'bytes' or 'words', not {kind!r}.", hint="Leave it out for bytes."
        )
    return str(kind)


_Answer = Callable[[Sequence[Message]], tuple[str, str | None, str | None]]


def _answers(script: Script | None) -> _Answer:
    """Return the function that answers: what to say, why to fail and how to die after it."""
    if script is None:
        return lambda messages: (_last_user_turn(messages), None, None)
    if isinstance(script, str):
        return lambda messages: (script, None, None)
    if callable(script):
        return lambda messages: (str(script(messages)), None, None)
    rules = [_checked_rule(item) for item in script if not isinstance(item, str)]
    replies = [item for item in script if isinstance(item, str)]
    position = 0

    def answer(messages: Sequence[Message]) -> tuple[str, str | None, str | None]:
        nonlocal position
        asked = _last_user_turn(messages)
        for rule in rules:
            if _applies(rule, asked):
                said = rule.get("say", "")
                text = str(said(messages)) if callable(said) else str(said)
                return text, rule.get("fail"), rule.get("die")
        if not replies:
            raise EngineError(f"The script has no answer to {asked[:80]!r}.")
        position += 1
        return replies[(position - 1) % len(replies)], None, None

    return answer


def _last_user_turn(messages: Sequence[Message]) -> str:
    turns = [message.content for message in messages if message.role == "user"]
    return turns[-1] if turns else messages[-1].content


def _checked_rule(rule: Any) -> Mapping[str, Any]:
    if not isinstance(rule, Mapping):
        raise InputError(f"A script holds replies and rules, not a {type(rule).__name__}.")
    for key in rule:
        if key not in _RULE_KEYS:
            raise InputError(
                f"A rule of the script has the unknown key {key!r}.",
                hint=did_you_mean(str(key), _RULE_KEYS),
            )
    ends = (_MEMORY, *signal.Signals.__members__)
    if rule.get("die") is not None and rule["die"] not in ends:
        raise InputError(
            f"A rule of the script cannot die of {rule['die']!r}.",
            hint=did_you_mean(str(rule["die"]), ends),
        )
    return rule


def _die(how: str) -> None:
    if how == _MEMORY:
        taken = []
        while True:
            taken.append(bytearray(b"x") * _BLOCK)
    os.kill(os.getpid(), signal.Signals[how])


def _applies(rule: Mapping[str, Any], asked: str) -> bool:
    if "exact" in rule and asked.strip() != str(rule["exact"]).strip():
        return False
    return "regex" not in rule or re.search(str(rule["regex"]), asked) is not None
