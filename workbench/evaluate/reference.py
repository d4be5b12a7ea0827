"""What a reference model says about conversations, on disk for other processes to compare with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from workbench.errors import InputError
from workbench.messages import Conversation, Message, Reply, Sampling, as_messages
from workbench.paths import atomic_file, require_space, shipped
from workbench.progress import progress as show_progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Mask = Literal["all", "assistant"]
GREEDY_ITEMS = 12
"""Conversations whose next answer both forms write out greedily."""
GREEDY_TOKENS = 32
"""Most tokens of such an answer."""


class Scored(Protocol):
    """The part of a model that is needed here."""

    def render(self, conversation: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the conversation as the chat template renders it."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ...

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of the ids."""
        ...

    def prompt_ids(self, conversation: Sequence[Message]) -> list[int]:
        """Return the ids that the engine is fed for a conversation."""
        ...

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the log-softmax after each id but the last, float32 [n - 1, vocab]."""
        ...

    def ask(self, conversation: Sequence[Message], *, sampling: Sampling | None = None) -> Reply:
        """Return the whole reply."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a reference model said, on disk, to be compared with by other processes.

    Attributes:
        path: ``.npy`` file of log-probabilities, float32 or float16 [tokens, vocab].
        ids: Token ids of each conversation; n ids give n - 1 rows.
        keep: For each conversation, which of its n - 1 rows count.
        prompts: Prompt ids of each conversation without its last assistant turn.
        conversations: The conversations.
        answers: Greedy answers to the first of them: token ids and their texts.
    """

    path: Path
    ids: tuple[tuple[int, ...], ...]
    keep: tuple[tuple[bool, ...], ...]
    prompts: tuple[tuple[int, ...], ...]
    conversations: tuple[tuple[Message, ...], ...]
    answers: tuple[tuple[tuple[int, str], ...], ...]

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Open what ``write_reference`` wrote.

        Raises:
            InputError: The file or its ``.json`` beside it is missing.
        """
        about = path.with_suffix(".json")
        if not path.is_file() or not about.is_file():
            raise InputError(f"{path} is no reference: write it with write_reference first.")
        values = json.loads(about.read_text(encoding="utf-8"))
        return cls(
            path=path,
            ids=tuple(map(tuple, values["ids"])),
            keep=tuple(map(tuple, values["keep"])),
            prompts=tuple(map(tuple, values["prompts"])),
            conversations=tuple(as_messages(turns) for turns in values["conversations"]),
            answers=tuple(tuple((t, s) for t, s in answer) for answer in values["answers"]),
        )

    def rows(self) -> Iterator[NDArray[np.floating[Any]]]:
        """Yield the log-probabilities of each conversation, memory-mapped, [n - 1, vocab]."""
        import numpy as np

        stored = np.load(self.path, mmap_mode="r")
        start = 0
        for ids in self.ids:
            yield stored[start : start + len(ids) - 1]
            start += len(ids) - 1


def held_out(limit: int | None = None) -> list[tuple[Message, ...]]:
    """Return the conversations of ``data/prompts/heldout_text.jsonl``, the first ``limit``."""
    path = shipped("data", "prompts", "heldout_text.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [as_messages(json.loads(line)["messages"]) for line in lines[:limit] if line.strip()]


def conversation_ids(model: Scored, messages: Sequence[Message]) -> list[int]:
    """Return the ids of a whole conversation, its assistant turns included."""
    return model.tokenize(model.render(messages, add_generation_prompt=False))


def rows_kept(
    model: Scored, messages: Sequence[Message], ids: Sequence[int], mask: Mask
) -> list[bool]:
    """Return which of the n - 1 rows count: all, or those that predict an assistant's token.

    Raises:
        InputError: The template does not render a conversation as the beginning of a longer one,
            so the assistant's tokens cannot be told.
    """
    if mask == "all":
        return [True] * (len(ids) - 1)
    kept = [False] * (len(ids) - 1)
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = model.tokenize(model.render(messages[:index], add_generation_prompt=True))
        after = model.tokenize(model.render(messages[: index + 1], add_generation_prompt=False))
        if list(ids[: len(before)]) != before or list(ids[: len(after)]) != after:
            raise InputError(
                "The chat template changes earlier turns when a conversation goes on.",
                hint='Use mask="all".',
            )
        kept[len(before) - 1 : len(after) - 1] = [True] * (len(after) - len(before))
    return kept


def _all_ids(model: Scored, turns: Sequence[Sequence[Message]]) -> list[list[int]]:
    return [conversation_ids(model, messages) for messages in turns]


def _all_kept(
    model: Scored, turns: Sequence[Sequence[Message]], ids: Sequence[Sequence[int]], mask: Mask
) -> list[list[bool]]:
    return [rows_kept(model, m, i, mask) for m, i in zip(turns, ids, strict=True)]


def write_reference(
    model: Scored,
    conversations: Sequence[Conversation],
    path: Path,
    *,
    mask: Mask = "all",
    dtype: Literal["float32", "float16"] = "float32",
    answers: int = GREEDY_ITEMS,
    like: Reference | None = None,
) -> Reference:
    """Write what ``model`` says about the conversations, one after another.

    Args:
        model: The reference; needs render, tokenize, log_probabilities and ask.
        conversations: Whole conversations, the assistant's turns included.
        path: The ``.npy`` file to write; a ``.json`` of the same name lies beside it.
        mask: ``all`` tokens of the rendered conversations count, or the ``assistant``'s only.
        dtype: float16 halves the file and adds an error of about 5e-4 nats.
        answers: Conversations to answer greedily.
        like: Score the token ids of this reference, so that the two can be compared; prompts and
            answers are still the model's own.

    Raises:
        InputError: There is no conversation, or one is shorter than two tokens.
        DiskSpaceError: There is no room; nothing was written.
    """
    import numpy as np

    turns = [as_messages(conversation) for conversation in conversations]
    ids = [list(each) for each in like.ids] if like else _all_ids(model, turns)
    if not ids or min(map(len, ids)) < 2:
        raise InputError("Agreement needs conversations of at least two tokens.")
    first = model.log_probabilities(ids[0])
    shape = (sum(len(each) - 1 for each in ids), first.shape[1])
    needed = shape[0] * shape[1] * np.dtype(dtype).itemsize
    require_space(path.parent, needed, purpose="The reference's log-probabilities")
    with atomic_file(path) as partial:
        opened: Any = np.lib.format.open_memmap
        stored = opened(partial, mode="w+", dtype=dtype, shape=shape)
        start = 0
        with show_progress("Reference", total=len(ids), unit="conversations") as bar:
            for number, each in enumerate(ids):
                logs = first if number == 0 else model.log_probabilities(each)
                stored[start : start + len(logs)] = logs
                start += len(logs)
                bar.advance()
        stored.flush()
        del stored
    about = {
        "ids": ids,
        "keep": like.keep if like else _all_kept(model, turns, ids, mask),
        "prompts": [model.prompt_ids(question_of(messages)) for messages in turns],
        "conversations": [[message.as_dict() for message in messages] for messages in turns],
        "answers": [greedy_answer(model, question_of(messages)) for messages in turns[:answers]],
    }
    with atomic_file(path.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    return Reference.read(path)


def question_of(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the conversation up to its last user turn, where it ends with an answer."""
    last = len(messages)
    while last > 1 and messages[last - 1].role == "assistant":
        last -= 1
    return messages[:last]


def greedy_answer(model: Scored, messages: Sequence[Message]) -> list[tuple[int, str]]:
    """Return the greedy answer as (id, text) pairs; characters stand in where ids are unknown."""
    reply = model.ask(messages, sampling=Sampling(max_tokens=GREEDY_TOKENS))
    if not reply.token_ids:
        return [(ord(character), character) for character in reply.text]
    return [
        (token, model.detokenize([token]).decode("utf-8", errors="replace"))
        for token in reply.token_ids
    ]
