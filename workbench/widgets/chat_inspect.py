"""Look into an answer: the exact prompt with its token ids, and the probability of each token."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from workbench.chats.dialogue import Dialogue, Turn
from workbench.chats.turn import sampling_of
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import InputError, UnsupportedError
from workbench.figures import Table
from workbench.messages import Likelihood, Message, Sampling
from workbench.widgets.chat_settings import CANDIDATES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LEAST = -1000.0
_PER_LINE, _OTHERS = 12, 3
_SHARE_OF_MEMORY = 0.25
"""Share of the free memory that a table of log-probabilities may take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt as the model gets it; displays itself line by line, as tokens and their ids.

    Attributes:
        text: As the chat template renders it.
        pieces: Token ids, each with the text it stands for.
        note: What is not exact about it, or None.
    """

    text: str
    pieces: tuple[tuple[int, str], ...]
    note: str | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids."""
        return tuple(token for token, _ in self.pieces)

    def as_dict(self) -> dict[str, Any]:
        """Return it for a front end."""
        return {"text": self.text, "pieces": [list(each) for each in self.pieces]} | _noted(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        rows = [
            {
                "tokens": " ".join(repr(text) for _, text in line),
                "ids": " ".join(str(token) for token, _ in line),
            }
            for line in _lines(self.pieces)
        ]
        caption = self.note or f"{len(self.pieces)} tokens, in the lines of the prompt"
        return Table(rows, caption=caption)._repr_mimebundle_()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token:
    """One token of an answer.

    Attributes:
        token_id: Its id, None where the engine does not tell.
        text: The text it stands for.
        logprob: Natural log of its probability.
        top: The likeliest tokens at its place, the best first.
    """

    token_id: int | None
    text: str
    logprob: float
    top: tuple[Likelihood, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it for a front end."""
        top = [
            {"text": each.text, "id": each.token_id, "logprob": _sendable(each.logprob)}
            for each in self.top
        ]
        logprob = _sendable(self.logprob)
        return {"id": self.token_id, "text": self.text, "logprob": logprob, "top": top}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probabilities:
    """The tokens of an answer with their probabilities; displays itself as a table.

    Attributes:
        tokens: In order, thinking and marks included.
        note: Where they are from, or what is missing.
    """

    tokens: tuple[Token, ...]
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it for a front end."""
        return {"tokens": [token.as_dict() for token in self.tokens]} | _noted(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        rows = [
            {
                "token": repr(token.text),
                "id": token.token_id,
                "p": math.exp(token.logprob),
                "log p": token.logprob,
                "likeliest others": ", ".join(
                    f"{each.text!r} {_percent(each.logprob)}" for each in _others(token)
                ),
            }
            for token in self.tokens
        ]
        table = Table(
            rows,
            caption=self.note or f"{len(rows)} tokens",
            formats={"p": ".1%", "log p": ".3f"},
        )
        return table._repr_mimebundle_()


def _lines(pieces: Sequence[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Yield the tokens of each line of a prompt, at most so many together."""
    line: list[tuple[int, str]] = []
    for piece in pieces:
        line.append(piece)
        if piece[1].endswith("\n") or len(line) == _PER_LINE:
            yield line
            line = []
    if line:
        yield line


def _others(token: Token) -> list[Likelihood]:
    """Return the likeliest tokens that were not chosen, the best first."""
    known = token.token_id is not None
    return [
        each
        for each in token.top
        if (each.token_id != token.token_id if known else each.text != token.text)
    ][:_OTHERS]


def _percent(logprob: float) -> str:
    return f"{math.exp(logprob):.1%}"


def _sendable(logprob: float) -> float:
    """Return a number that JSON has; impossible tokens have a log-probability of -infinity."""
    return max(float(logprob), _LEAST) if logprob == logprob else _LEAST


def _noted(of: Prompt | Probabilities) -> dict[str, Any]:
    return {"note": of.note}


def fed(model: Model, messages: Sequence[Message], sampling: Sampling) -> list[int]:
    """Return the token ids that ``stream`` feeds, tools and the wish to think included.

    Raises:
        UnsupportedError: The engine cannot render a prompt.
    """
    exact = getattr(model._session, "prompt_ids_for", None)
    if exact is not None and (sampling.tools or sampling.think is not None):
        return [int(index) for index in exact(messages, sampling)]
    return model.prompt_ids(list(messages))


def sent_for(dialogue: Dialogue, turn: Turn | None) -> list[Message]:
    """Return the messages that a turn was answered on, or those that would be sent now.

    Raises:
        InputError: There is none.
    """
    if turn is None:
        messages = dialogue.messages()
    elif turn.role == "assistant" and turn.parent is not None:
        messages = dialogue.messages(until=turn.parent, system=turn.system)
    else:
        messages = dialogue.messages(until=turn.id)
    if not messages:
        raise InputError("Nothing has been said yet.", hint="Ask something first.")
    return messages


def prompt_of(model: Model, dialogue: Dialogue, turn: Turn | None, sampling: Sampling) -> Prompt:
    """Return the exact prompt of an answer, or the one that would be sent now.

    Args:
        model: Renders it.
        dialogue: Holds the turns.
        turn: The answer, or the question; None for the branch on view.
        sampling: The settings in force, where the turn holds none.

    Raises:
        UnsupportedError: The engine cannot render a prompt.
        InputError: Nothing was said.
    """
    messages = sent_for(dialogue, turn)
    if turn is not None and turn.sampling:
        sampling = sampling_of(turn.sampling)
    ids = fed(model, messages, sampling)
    texts = [_text_of(model, (index,)) for index in ids]
    whole = _text_of(model, ids) if texts[0] is not None else model.render(messages)
    pieces = tuple((index, text or "") for index, text in zip(ids, texts, strict=True))
    return Prompt(text=whole or "", pieces=pieces, note=mismatch(turn, len(ids)))


def mismatch(turn: Turn | None, count: int) -> str | None:
    """Return what to say where a prompt has not as many tokens as the engine counted then."""
    usage = turn.reply.usage if turn is not None and turn.reply is not None else None
    if usage is None or usage.prompt_tokens == count:
        return None
    return (
        f"The engine counted {usage.prompt_tokens} prompt tokens, this rendering has {count}: "
        "tools, thinking or pictures are fed in a way that it does not tell, or the model is "
        "another one by now."
    )


def _text_of(model: Model, ids: Sequence[int]) -> str | None:
    if Power.TOKENIZE not in model.powers:
        return None
    return model.detokenize(list(ids)).decode("utf-8", "replace")


def probabilities_of(
    model: Model, dialogue: Dialogue, turn: Turn, *, vocabulary: int | None = None
) -> Probabilities:
    """Return the probability of each token of an answer, with the likeliest alternatives.

    They are those that the engine told while it answered, where it was asked to; else the model
    scores its own answer now.

    Raises:
        UnsupportedError: The engine tells neither.
        InputError: The turn is no answer, or holds no tokens.
    """
    reply = turn.reply
    if turn.role != "assistant" or reply is None:
        raise InputError(f"Turn {turn.id} is no finished answer.")
    if reply.logprobs:
        return Probabilities(tokens=_told(model, reply.token_ids, reply.logprobs))
    if not reply.token_ids:
        raise UnsupportedError(
            f"{turn.model or model.label} did not tell the token ids of this answer.",
            hint="Switch on probabilities in the settings and ask again, where the engine can.",
        )
    if Power.SCORE not in model.powers:
        raise UnsupportedError(
            f"{model.label} cannot score an answer afterwards.",
            hint="Switch on probabilities in the settings and ask again."
            if Power.LOGPROBS in model.powers
            else "transformers and llama.cpp can.",
        )
    return _scored(model, dialogue, turn, list(reply.token_ids), vocabulary)


def _told(
    model: Model,
    ids: Sequence[int],
    logprobs: Sequence[tuple[float, tuple[Likelihood, ...]]],
) -> tuple[Token, ...]:
    """Return tokens of what the engine told; their texts by id, or by the candidate they equal."""
    known = len(ids) == len(logprobs)
    able = not model.closed and Power.TOKENIZE in model.powers
    tokens = []
    for index, (logprob, top) in enumerate(logprobs):
        token_id = ids[index] if known else None
        same = next(
            (e for e in top if (e.token_id == token_id if known else e.logprob == logprob)), None
        )
        if same is not None:
            text: str | None = same.text
        else:
            text = _text_of(model, (token_id,)) if able and token_id is not None else None
        tokens.append(Token(token_id=token_id, text=text or "", logprob=logprob, top=top))
    return tuple(tokens)


def _scored(
    model: Model, dialogue: Dialogue, turn: Turn, ids: list[int], vocabulary: int | None
) -> Probabilities:
    messages = sent_for(dialogue, turn)
    if any(message.images for message in messages):
        raise UnsupportedError(
            "An answer about a picture cannot be scored afterwards: its prompt is not ids alone.",
            hint="Switch on probabilities in the settings and ask again, where the engine can.",
        )
    prompt = fed(model, messages, sampling_of(turn.sampling))
    note = mismatch(turn, len(prompt))
    whole, first = prompt + ids, len(prompt)
    rows = vocabulary or model.card.architecture.vocab_size or 300_000
    if len(whole) * rows * 4 > _SHARE_OF_MEMORY * _free_memory():
        scores = model.score(whole)[first - 1 :]
        said = "The table of all alternatives does not fit into memory; these are the scores alone."
        tokens = [
            Token(token_id=token, text=_text_of(model, (token,)) or "", logprob=float(score))
            for token, score in zip(ids, scores, strict=True)
        ]
        return Probabilities(tokens=tuple(tokens), note=note or said)
    table = model.log_probabilities(whole)[first - 1 :]
    return Probabilities(tokens=_best(model, ids, table), note=note or "Scored by the model now.")


def _best(model: Model, ids: Sequence[int], table: NDArray[np.float32]) -> tuple[Token, ...]:
    import numpy as np

    count = min(CANDIDATES, table.shape[1])
    found = np.argpartition(-table, count - 1, axis=1)[:, :count]
    texts: dict[int, str] = {}

    def text_of(token: int) -> str:
        if token not in texts:
            texts[token] = _text_of(model, (token,)) or ""
        return texts[token]

    tokens = []
    for token, row, best in zip(ids, table, found, strict=True):
        ordered = best[np.argsort(-row[best], kind="stable")]
        top = tuple(
            Likelihood(token_id=int(each), text=text_of(int(each)), logprob=float(row[each]))
            for each in ordered
        )
        tokens.append(
            Token(token_id=token, text=text_of(token), logprob=float(row[token]), top=top)
        )
    return tuple(tokens)


def _free_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().available)
