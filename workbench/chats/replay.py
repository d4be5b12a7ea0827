"""Ask every turn of a conversation again on another model, and show what differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench.chats.asking import heard
from workbench.chats.dialogue import Dialogue
from workbench.chats.difference import first_divergence
from workbench.chats.keeping import keep_always, load
from workbench.chats.origin import made_by
from workbench.chats.replayed import Replay, Replayed, TokenDivergence
from workbench.chats.tree import sent_of
from workbench.chats.turn import Turn, plain_sampling, sampling_of
from workbench.engines.base import Power
from workbench.errors import InputError, WorkbenchError, did_you_mean
from workbench.messages import Conversation, Message, Reply, Sampling, ToolCall
from workbench.progress import progress

if TYPE_CHECKING:
    from workbench.engines.model import Model

History = Literal["original", "own"]
_HISTORIES = ("original", "own")
_NO_CALL = "The new answer before it called no tool: there is no result to answer."


def replay(
    conversation: Any,
    model: Model,
    *,
    sampling: Sampling | None = None,
    history: History = "original",
    keep: bool = True,
    quiet: bool | None = None,
    **changes: Any,
) -> Replay:
    """Ask every turn of a conversation again on another model and return what differs.

    A turn that fails is kept with its reason. Ctrl-C ends it: what is done, and the answer begun,
    are returned.

    Args:
        conversation: A ``Dialogue``, what has one as ``.dialogue`` (a chat, a replay), the file of
            one, or a list of messages; of the branch on view. A question without an answer is
            asked too.
        model: The loaded model that answers now.
        sampling: Settings for all turns; None takes those kept with each answer, seed included,
            and greedy where none are kept.
        history: What comes before each question: ``original``, the old answers, so that each turn
            is compared under the same conditions; or ``own``, the answers given now.
        keep: Keep the new conversation in ``outputs/chats``.
        quiet: Show no progress; None asks ``WORKBENCH_QUIET``.
        changes: Single settings over those: ``max_tokens=``, ``temperature=``, ...

    Raises:
        InputError: It is no conversation, nothing is asked in it, or a setting is wrong.
        NotFoundError: There is no such file.
    """
    if history not in _HISTORIES:
        raise InputError(
            f"history is 'original' or 'own', not {history!r}.",
            hint=did_you_mean(str(history), _HISTORIES),
        )
    if isinstance(model, str):
        raise InputError(
            f"replay asks a loaded model, not the name {model!r}.", hint=f"wb.load({model!r})"
        )
    source = dialogue_of(conversation)
    steps = _steps(source)
    if not steps:
        raise InputError(f"The conversation {source.title!r} asks nothing.")
    settings = [_settings(step.old, sampling, model, changes) for step in steps]
    told = {"id": source.id, "title": source.title, "model": _labels(source)}
    maker = {**made_by(model), "replay_of": {**told, "history": history}}
    target = Dialogue(
        system=source.system, title=f"Replay of {source.title}", model=model.label, made_by=maker
    )
    talk = _Own(target) if history == "own" else _Original(target, source)
    file = keep_always(target) if keep else None
    done: list[Replayed] = []
    interrupted = False
    with progress("Replaying", total=len(steps), unit="turns", quiet=quiet) as bar:
        for step, chosen in zip(steps, settings, strict=True):
            row, interrupted = _ask(model, talk, step, chosen)
            done.append(row)
            if interrupted:
                break
            bar.advance(note=row.outcome)
    return Replay(
        turns=done,
        planned=len(steps),
        interrupted=interrupted,
        history=history,
        source=told,
        dialogue=target,
        file=file,
    )


def dialogue_of(conversation: Any) -> Dialogue:
    """Return the dialogue of what ``replay`` takes; errors as there."""
    found = conversation if isinstance(conversation, Dialogue) else None
    found = found or getattr(conversation, "dialogue", None)
    if isinstance(found, Dialogue):
        return found
    if isinstance(conversation, (str, Path)):
        return load(conversation)
    if not isinstance(conversation, Sequence):
        raise InputError(
            f"A {type(conversation).__name__} is no conversation.",
            hint="Give a dialogue, a chat, the file of one, or a list of messages.",
        )
    messages: Conversation = conversation
    return Dialogue.of(messages)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    """One thing to ask: the turns since the last answer, and the answer they got."""

    before: list[Turn]
    asked: list[Turn]
    old: Turn | None
    card: str

    @property
    def question(self) -> Turn:
        return self.asked[-1]


def _steps(source: Dialogue) -> list[_Step]:
    """Return what is asked: each answer's question, and each question without an answer."""
    path, steps = source.path(), list[_Step]()
    begun = 0
    for index, turn in enumerate(path):
        following = path[index + 1] if index + 1 < len(path) else None
        if turn.role == "assistant":
            begun = index + 1
            continue
        answered = following is not None and following.role == "assistant"
        if answered or following is None or turn.role == "user":  # all but the first of results
            old = following if answered else None
            made = (old.made_by if old is not None else {}) or source.made_by
            step = _Step(
                before=list(path[:begun]),
                asked=list(path[begun : index + 1]),
                old=old,
                card=str(made.get("card") or ""),
            )
            steps.append(step)
            begun = index + 1
    return steps


def _settings(
    old: Turn | None, sampling: Sampling | None, model: Model, changes: dict[str, Any]
) -> Sampling:
    """Return the settings of one answer; candidates are not asked of a model that tells none."""
    kept = sampling_of(old.sampling) if old is not None and old.sampling else None
    chosen = Sampling.of(sampling or kept, **changes)
    if chosen.top_logprobs and Power.LOGPROBS not in model.powers:
        chosen = dataclasses.replace(chosen, top_logprobs=0)  # it changes no token
    return chosen


class _Original:
    """Each question after the old answers; the new answer is a sibling of the old one."""

    def __init__(self, target: Dialogue, source: Dialogue) -> None:
        self.target = target
        self._ids: dict[str, str] = {}
        self._said: dict[str, Message | None] = {}
        parent: str | None = None
        for turn in source.path():
            facts = {
                "reply": turn.reply,
                "sampling": turn.sampling,
                "model": turn.model,
                "made_by": turn.made_by or (source.made_by if turn.role == "assistant" else {}),
                "system": turn.system,
                "error": "It was never answered." if turn.open else turn.error,
                "time": turn.time,
            }
            parent = self._ids[turn.id] = target.add(turn.message, parent=parent, **facts).id

    def place(self, step: _Step) -> str:
        """Return the turn that the new answer follows."""
        return self._ids[step.question.id]

    def messages(self, step: _Step, place: str) -> list[Message]:
        """Return what is sent; a question that had no answer goes with the new one."""
        turns = [*step.before, *step.asked]
        sent = {id(message) for message in sent_of(turns)}
        found: list[Message] = []
        for turn in turns:
            answer = self._said.get(turn.id)
            if id(turn.message) in sent and not (turn.id in self._said and answer is None):
                found.append(turn.message)
            if answer is not None:
                found.append(answer)
        return _under(self.target.system if step.old is None else step.old.system, found)

    def heard(self, step: _Step, turn: Turn) -> None:
        """Take what was answered."""
        if step.old is None:
            self._said[step.question.id] = None if turn.silent else turn.message


class _Own:
    """Each question after the answers that were given now."""

    def __init__(self, target: Dialogue) -> None:
        self.target = target
        self._calls: tuple[ToolCall, ...] = ()

    def place(self, step: _Step) -> str:
        """Add what is asked, and return the turn that the new answer follows."""
        results = [turn for turn in step.asked if turn.role == "tool"]
        if len(results) > len(self._calls):
            raise InputError(_NO_CALL)
        calls = iter(self._calls)
        for turn in step.asked:
            message = turn.message
            if turn.role == "tool":
                message = dataclasses.replace(message, tool_call_id=next(calls).id)
            place = self.target.add(message).id
        return place

    def messages(self, step: _Step, place: str) -> list[Message]:
        """Return what is sent, under the system prompt that was in force then."""
        found = sent_of(self.target.line(place))
        return _under(self.target.system if step.old is None else step.old.system, found)

    def heard(self, step: _Step, turn: Turn) -> None:
        """Take what was answered."""
        self._calls = turn.message.tool_calls


def _under(system: str, messages: list[Message]) -> list[Message]:
    return [Message("system", system), *messages] if system else messages


def _ask(
    model: Model, talk: _Original | _Own, step: _Step, sampling: Sampling
) -> tuple[Replayed, bool]:
    """Ask one turn; return its row, and whether somebody interrupted it."""
    old = step.old
    row = Replayed(
        turn=step.question.id,
        question=step.question.text,
        old=old.reply if old is not None else None,
        old_error=(old.error or "") if old is not None else "",
        sampling=plain_sampling(sampling),
    )
    try:
        place = talk.place(step)
    except InputError as refusal:
        return dataclasses.replace(row, error=str(refusal)), False
    turn = talk.target.answer(place, sampling=sampling)
    came = heard(model, talk.messages(step, place), sampling)
    talk.heard(step, talk.target.finish(turn.id, came.reply, error=came.error))
    tokens = _token_divergence(model, row.old, came.reply, card=step.card)
    row = dataclasses.replace(row, new=came.reply, error=came.error, tokens=tokens)
    return row, came.interrupted


def _token_divergence(
    model: Model, old: Reply | None, new: Reply | None, *, card: str
) -> TokenDivergence | None:
    """Return the first token at which two replies part, where one tokenizer made both.

    It did where the card is the same, or where the old ids make the old text here too.
    """
    if old is None or new is None or not (old.token_ids and new.token_ids and old.text):
        return None
    if Power.TOKENIZE not in model.powers:
        return None
    try:
        if card != model.card.id:
            decoded = model.detokenize(old.token_ids).decode("utf-8", "replace")
            if old.text not in decoded:
                return None
        at = first_divergence(old.token_ids, new.token_ids)
        if at is None:
            return None
        return TokenDivergence(position=at, old=_token(model, old, at), new=_token(model, new, at))
    except WorkbenchError:  # ids of a larger vocabulary
        return None


def _token(model: Model, reply: Reply, at: int) -> str:
    """Return a token's text; "" where the reply had ended."""
    one = reply.token_ids[at : at + 1]
    return model.detokenize(one).decode("utf-8", "replace") if one else ""


def _labels(dialogue: Dialogue) -> str:
    """Return the labels of the models that answered on the branch on view."""
    found = [turn.model for turn in dialogue.path() if turn.role == "assistant" and turn.model]
    return ", ".join(dict.fromkeys(found)) or dialogue.model
