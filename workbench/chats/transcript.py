"""A dialogue for reading: HTML that every viewer of a saved notebook shows, and plain text.

It needs no kernel, no script and no style sheet; nothing in it loads anything.
"""

from __future__ import annotations

import functools
import html
import json
from typing import Any

from workbench.chats.dialogue import Dialogue
from workbench.chats.markdown import clean, parse
from workbench.chats.markup import GAP, escaped, markup
from workbench.chats.turn import Turn
from workbench.errors import InputError
from workbench.messages import Image, ToolCall

LONGEST = 40_000
"""Characters of one text that a transcript shows; the dialogue's own file has all of them."""

_PLAIN_BUNDLE = 20_000
_SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool result"}
_ORIGIN = ("engine", "quantization", "dtype", "adapter")
_NOTHING = "Nothing has been said yet."


class Transcript:
    """A dialogue as it is now, which displays itself.

    Args:
        dialogue: What is shown, as of now.
        live_id: The live view that hides this copy while it is there.

    Attributes:
        text: It as plain text.
        html: It as HTML.
    """

    def __init__(self, dialogue: Dialogue, *, live_id: str | None = None) -> None:
        self.text = transcript_text(dialogue)
        self.html = transcript_html(dialogue, live_id=live_id)

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        text = self.text  # the notebook carries both: the lesser form does not double a long chat
        if len(text) > _PLAIN_BUNDLE:
            text = f"{text[:_PLAIN_BUNDLE]}\n[... the HTML form goes on]"
        return {"text/plain": text, "text/html": self.html}


def transcript_html(dialogue: Dialogue, *, live_id: str | None = None) -> str:
    """Return the branch on view as HTML that is safe and that sanitisers leave as it is.

    Args:
        dialogue: What is shown, as of now.
        live_id: Put into ``data-chat``, by which a live view hides its copy.

    Raises:
        MissingPackageError: markdown-it-py is not installed.
    """
    turns = dialogue.path()
    parts = [_head(dialogue)]
    if dialogue.system:
        parts.append(f"<div><b>System prompt</b></div><blockquote>{_text(dialogue.system)}")
        parts.append("</blockquote>")
    system, known = dialogue.system, dialogue.turns
    for turn in turns:
        if turn.role == "assistant" and turn.system != system:
            system = turn.system
            told = _text(system) if system else "<i>none</i>"
            parts.append(
                f"<div><b>System prompt from here</b></div><blockquote>{told}</blockquote>"
            )
        parts.append(_turn(turn, known))
    if not turns:
        parts.append(f"<div><i>{_NOTHING}</i></div>")
    parts.append(_elsewhere(len(known) - len(turns)))
    # The classes keep MathJax from what only looks like TeX: prices, code, an attack.
    mark = f' data-chat="{html.escape(live_id)}"' if live_id else ""
    classes = "wb-transcript tex2jax_ignore mathjax_ignore"
    return f'<div class="{classes}"{mark}>{"".join(parts)}</div>'


def transcript_text(dialogue: Dialogue) -> str:
    """Return the branch on view as plain text, safe to print in a terminal."""
    turns, known = dialogue.path(), dialogue.turns
    paragraphs = [f"System prompt:\n{clean(dialogue.system)}"] if dialogue.system else []
    for turn in turns:
        lines = [f"{_speaker(turn)}:"]
        if turn.reply is not None and turn.reply.thinking:
            lines += ["[thinking]", clean(turn.reply.thinking).strip(), "[/thinking]"]
        lines += [f"[{_picture(image)}]" for image in turn.message.images]
        lines += [clean(turn.text)] if turn.text else []
        lines += [f"[calls {clean(_call_line(call))}]" for call in turn.message.tool_calls]
        lines += [f"[{clean(note)}]" for note in _notes(turn, known)]
        paragraphs.append("\n".join(lines))
    if len(known) > len(turns):
        paragraphs.append(f"[{_others(len(known) - len(turns))}]")
    return "\n\n".join(paragraphs) or _NOTHING


def _head(dialogue: Dialogue) -> str:
    made = [str(dialogue.made_by.get(name) or "none") for name in _ORIGIN]
    label = dialogue.model.split(" · ")
    facts = [dialogue.model, *(fact for fact in made if fact != "none" and fact not in label)]
    told = " · ".join(escaped(clean(fact)) for fact in dict.fromkeys(facts) if fact)
    title = escaped(clean(dialogue.title))
    line = " · ".join(part for part in (f"<b>{title}</b>" if title else "", told) if part)
    return f"<div>{line}</div>{GAP}" if line else ""


def _turn(turn: Turn, known: dict[str, Turn]) -> str:
    """Return one turn: who, what was thought, said, called, and the figures."""
    parts = [f"<div><b>{_speaker(turn)}</b></div>"]
    if turn.reply is not None and turn.reply.thinking.strip():
        thought = _text(turn.reply.thinking)
        parts.append(f"<div><i>Thinking</i></div><blockquote>{thought}</blockquote>")
    parts += [f"<div><i>[{escaped(_picture(image))}]</i></div>" for image in turn.message.images]
    if turn.role == "tool":
        parts.append(f"<pre>{escaped(_shortened(clean(turn.text)))}</pre>")
    elif turn.role == "user":
        parts.append(f"<blockquote>{_text(turn.text)}</blockquote>")
    else:
        parts.append(f"<div>{_text(turn.text)}</div>")
    parts += [_call(call) for call in turn.message.tool_calls]
    parts += [f"<div><i>{escaped(clean(note))}</i></div>" for note in _notes(turn, known)]
    return "".join(parts) + GAP


def _speaker(turn: Turn) -> str:
    return _SPEAKERS.get(turn.role, turn.role)


@functools.lru_cache(maxsize=512)  # a live chat's copy is made anew after each of its turns
def _text(text: str) -> str:
    return markup(parse(_shortened(text)))


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n\n[... {len(text) - LONGEST:,} more characters are not shown here]"


def _picture(image: Image) -> str:
    kind = image.mime.removeprefix("image/").upper()
    return f"picture, {kind}, {len(image.data) / 1000:.1f} kB, not kept in this copy"


def _call_line(call: ToolCall) -> str:
    return f"{call.name}({_shortened(call.arguments)})"


def _call(call: ToolCall) -> str:
    try:
        arguments = json.dumps(call.values(), indent=2, ensure_ascii=False)
    except (InputError, RecursionError):
        arguments = call.arguments
    shown = escaped(_shortened(clean(arguments)))
    return f"<div><i>Calls</i> <code>{escaped(clean(call.name))}</code></div><pre>{shown}</pre>"


def _notes(turn: Turn, known: dict[str, Turn]) -> list[str]:
    """Return what stands under a turn: figures, failure, other versions of it."""
    notes: list[str] = []
    if turn.reply is not None and turn.role == "assistant":
        figured = turn.reply.usage is not None or turn.reply.timings is not None
        if figured or turn.reply.model or turn.reply.finish_reason != "stop":
            summary = turn.reply.summary()
            named = turn.model and not turn.reply.model
            notes.append(f"{turn.model} · {summary}" if named else summary)
    if turn.error and not (turn.reply is not None and turn.reply.error == turn.error):
        notes.append(f"Failed: {turn.error}")
    if turn.open:
        notes.append("This answer is not finished.")
    versions = [each.id for each in known.values() if each.parent == turn.parent]
    if len(versions) > 1 and turn.id in versions:
        notes.append(f"version {versions.index(turn.id) + 1} of {len(versions)}")
    return notes


def _others(count: int) -> str:
    turns = "1 turn" if count == 1 else f"{count} turns"
    return f"{turns} on other branches of this conversation not shown here"


def _elsewhere(count: int) -> str:
    return f"<div><i>{_others(count)}</i></div>" if count > 0 else ""
