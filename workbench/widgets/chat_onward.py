"""Continue an answer that was cut off: the model goes on from its own token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from workbench.chats.dialogue import Dialogue, Turn
from workbench.chats.turn import CUT_OFF
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.engines.thinking import Divider, Format, divided, format_of
from workbench.errors import InputError, UnsupportedError
from workbench.messages import Piece, Reply, Sampling
from workbench.widgets.chat_inspect import fed, mismatch, sent_for

_AGAIN = "Raise max_tokens and ask again."
_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 4


def onward(
    model: Model, dialogue: Dialogue, turn: Turn, sampling: Sampling
) -> tuple[Reply, Callable[[], Iterator[Piece]]]:
    """Return what the answer holds already, and what opens the stream of the rest.

    The prompt's ids and those of the answer so far go in as they were, so that a greedy answer
    goes on as if it had not been cut. Without its ids the text is tokenized anew.

    Raises:
        InputError: The turn is no answer, or came to its end by itself.
        UnsupportedError: The engine, or what the answer is held to, does not allow it.
    """
    reply = turn.reply
    if turn.role != "assistant" or reply is None:
        raise InputError(f"Turn {turn.id} is no answer that could go on.")
    if reply.finish_reason not in ("length", *CUT_OFF):
        raise InputError("This answer came to its end by itself.", hint="Ask for more.")
    if sampling.schema is not None or sampling.grammar is not None:
        raise UnsupportedError("An answer held to a schema begins anew each time.", hint=_AGAIN)
    missing = {Power.COMPLETE, Power.RENDER} - model.powers
    if missing:
        raise UnsupportedError(
            f"{model.label} cannot go on in the middle of an answer: its engine takes whole "
            "conversations only.",
            hint=_AGAIN,
        )
    messages = sent_for(dialogue, turn)
    if any(message.images for message in messages):
        raise UnsupportedError(
            "An answer about a picture cannot go on: its prompt is not token ids alone.",
            hint=_AGAIN,
        )
    form = format_of(model.template)
    inside = bool(reply.thinking) and not reply.text
    if inside and form is not None and form.harmony:
        raise UnsupportedError("This model cannot go on inside its thinking.", hint=_AGAIN)
    before = _whole_characters(model, reply)
    prompt = fed(model, messages, sampling)
    differs = mismatch(turn, len(prompt))
    if differs is not None:
        raise UnsupportedError(f"The prompt cannot be told exactly. {differs}", hint=_AGAIN)
    ids = prompt + _ids_of(model, before)
    plain = dataclasses.replace(sampling, tools=(), think=None)

    def start() -> Iterator[Piece]:
        pieces = model.complete(ids, plain)
        if form is None:
            return pieces
        divider = Divider(form, inside=inside, tools=bool(sampling.tools), number=len(ids))
        return divided(_with_marks(model, form, pieces), divider)

    return before, start


def _ids_of(model: Model, reply: Reply) -> list[int]:
    if reply.token_ids or not reply.text:
        return list(reply.token_ids)
    if reply.thinking or Power.TOKENIZE not in model.powers:
        raise UnsupportedError(
            f"The token ids of this answer are not known, and {model.label} cannot make them.",
            hint=_AGAIN,
        )
    return model.tokenize(reply.text)


def _whole_characters(model: Model, reply: Reply) -> Reply:
    """Return the reply without the tokens of a character that the cut went through."""
    if not reply.text.endswith(_BROKEN) or Power.TOKENIZE not in model.powers:
        return reply
    whole = _decoded(model, reply.token_ids)
    for count in range(1, min(_LONGEST_CHARACTER, len(reply.token_ids)) + 1):
        kept = reply.token_ids[:-count]
        text = _decoded(model, kept)
        lost = whole[len(text) :]
        if not text.endswith(_BROKEN) and whole.startswith(text) and reply.text.endswith(lost):
            aligned = len(reply.logprobs) == len(reply.token_ids)
            return dataclasses.replace(
                reply,
                text=reply.text.removesuffix(lost),
                token_ids=kept,
                logprobs=reply.logprobs[:-count] if aligned else (),
            )
    return reply


def _decoded(model: Model, ids: tuple[int, ...]) -> str:
    return model.detokenize(ids).decode("utf-8", "replace")


def _with_marks(model: Model, form: Format, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield pieces with the marks of thinking and calls, which a raw completion may hide."""
    found = {mark: model.tokenize(mark) for mark in form.marks} if form.marks else {}
    marks = {ids[0]: mark for mark, ids in found.items() if len(ids) == 1}
    try:
        for piece in pieces:
            mark = marks.get(piece.token_id) if piece.token_id is not None else None
            if mark is not None and mark not in piece.text:
                piece = dataclasses.replace(piece, text=piece.text + mark)
            yield piece
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
