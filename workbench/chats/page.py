"""A dialogue as a Markdown page: facts first, then the branch on view, for reading and for keeping.

Each part of a turn stands between two HTML comments that carry a word which occurs in none of the
texts, so that no answer can be taken for a heading of the page.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, unquote

import yaml

from workbench.chats.dialogue import Dialogue
from workbench.chats.turn import Turn, plain
from workbench.errors import InputError
from workbench.messages import Message, Reply, as_messages

_KIND = "conversation"
_HEADINGS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_CODE = ("```json\n", "\n```")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n]*)$", re.MULTILINE)


def as_page(dialogue: Dialogue) -> bytes:
    """Return the page's bytes in UTF-8; what it leaves out is said in ``keeping.save``."""
    turns = dialogue.path()
    mark = _mark(dialogue, turns)
    others = len(dialogue) - len(turns)
    facts: dict[str, Any] = {
        "kind": _KIND,
        "mark": mark,
        "id": dialogue.id,
        "title": dialogue.title,
        "created": dialogue.created,
        "model": dialogue.model,
        "turns": len(turns),
        **({"turns_on_other_branches": others} if others else {}),
        "sampling": next((turn.sampling for turn in reversed(turns) if turn.sampling), {}),
        "made_by": dialogue.made_by,
    }
    head = yaml.safe_dump(plain(facts), allow_unicode=True, sort_keys=False, width=100)
    parts = [f"---\n{head}---\n\n# {_one_line(dialogue.title or 'Conversation')}\n"]
    if dialogue.system:
        parts.append(_part(mark, "system", f"### {_HEADINGS['system']}", dialogue.system))
    for turn in turns:
        parts += _turn(mark, turn)
    return "\n".join(parts).encode("utf-8", "backslashreplace")


def from_page(data: bytes, *, source: str) -> Dialogue:
    """Return the dialogue of a page: one branch, its texts, thinking, tool calls and errors.

    Args:
        data: The file's bytes.
        source: Its name, for errors.

    Raises:
        InputError: It is no such page.
    """
    text = data.decode("utf-8", "replace")
    if text.startswith("---\r\n"):  # an editor changed the ends of all lines
        text = text.replace("\r\n", "\n")
    facts = _facts(text, source)
    made_by = facts.get("made_by")
    found = Dialogue(
        title=str(facts.get("title") or ""),
        model=str(facts.get("model") or ""),
        made_by=made_by if isinstance(made_by, dict) else {},
    )
    found.id = str(facts.get("id") or found.id)
    found.created = str(facts.get("created") or found.created)
    for kind, name, body in _parts(text, str(facts["mark"])):
        try:
            _take(found, kind, name, body)
        except (ValueError, IndexError, InputError) as error:
            raise InputError(f"{source}: a part {kind!r} cannot be read: {error}") from None
    if len(found) != facts.get("turns"):
        raise InputError(
            f"{source} holds {len(found)} of its {facts.get('turns')} turns: it was cut or changed."
        )
    return found


def _turn(mark: str, turn: Turn) -> Iterator[str]:
    """Yield the parts of one turn."""
    about = f" ({turn.model})" if turn.model else ""
    heading = f"### {_HEADINGS[turn.role]}{_one_line(about)}"
    reply = turn.reply
    if reply is not None and reply.thinking:
        yield _part(mark, "thinking", f"{heading}\n\n#### Thinking", reply.thinking)
        heading = "#### Answer"
    notes = [f"{image.mime}, {len(image.data):,} bytes" for image in turn.message.images]
    below = [f"Picture, not in this file: {note}" for note in notes]
    if reply is not None and reply.usage is not None:
        below.append(reply.summary())
    call = quote(turn.message.tool_call_id or "", safe="")
    yield _part(mark, f"{turn.role} {call}".rstrip(), heading, turn.text, below=below)
    if turn.message.tool_calls:
        calls = [each.as_dict() for each in turn.message.tool_calls]
        body = json.dumps(calls, ensure_ascii=False, indent=1)
        yield _part(mark, "calls", "#### Tool calls", f"{_CODE[0]}{body}{_CODE[1]}")
    if turn.error:
        yield _part(mark, "error", "#### Failed", turn.error)


def _part(mark: str, kind: str, heading: str, text: str, *, below: Sequence[str] = ()) -> str:
    """Return a text between two marks; what stands outside them is only for reading."""
    notes = "".join(f"\n*{_one_line(line)}*\n" for line in below)
    end = f"<!-- {mark} end -->\n{_left_open(text)}"
    return f"{heading}\n\n<!-- {mark} {kind} -->\n{text}\n{end}{notes}"


def _parts(text: str, mark: str) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and text of each part."""
    pattern = rf"^<!-- {mark} (\w+)(?: (\S+))? -->\n(.*?)\n<!-- {mark} end -->$"
    for found in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        yield found[1], unquote(found[2] or ""), found[3]


def _take(dialogue: Dialogue, kind: str, name: str, body: str) -> None:
    """Add one part to the dialogue; thinking comes before its answer, calls and error after it."""
    last = dialogue.path()[-1] if len(dialogue) else None
    if kind == "system":
        dialogue.system = body
    elif kind in ("user", "tool"):
        (message,) = as_messages([{"role": kind, "content": body, "tool_call_id": name or None}])
        dialogue.add(message)
    elif kind == "thinking":
        dialogue.add(Message("assistant", ""), reply=Reply(text="", thinking=body))
    elif kind == "assistant":
        if last is not None and last.role == "assistant" and last.reply is not None:
            dialogue.finish(last.id, dataclasses.replace(last.reply, text=body))
        else:
            dialogue.add(Message("assistant", body))
    elif kind in ("calls", "error") and last is not None and last.reply is not None:
        if kind == "error":
            dialogue.finish(last.id, last.reply, error=body)
            return
        calls = json.loads(body.removeprefix(_CODE[0]).removesuffix(_CODE[1]))
        said = as_messages([{"role": "assistant", "content": "", "tool_calls": calls}])
        dialogue.finish(last.id, dataclasses.replace(last.reply, tool_calls=said[0].tool_calls))
    else:
        raise InputError("It is of no known kind, or stands in no place for it.")


def _facts(text: str, source: str) -> dict[str, Any]:
    """Return the page's first block."""
    block = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        facts = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: the first block is no YAML: {error}.") from None
    if not isinstance(facts, dict) or facts.get("kind") != _KIND:
        raise InputError(
            f"{source} is no conversation: its first block does not say so.",
            hint="dialogue.save(path) writes such pages.",
        )
    if not re.fullmatch(r"[0-9a-f]{8,}", str(facts.get("mark"))):
        raise InputError(f"{source}: the first block lacks the mark of its parts.")
    return facts


def _mark(dialogue: Dialogue, turns: Sequence[Turn]) -> str:
    """Return a word that is in none of the texts."""
    texts = [dialogue.title, dialogue.system, *(str(turn.as_dict()) for turn in turns)]
    mark = dialogue.id if re.fullmatch(r"[0-9a-f]{8}", dialogue.id) else secrets.token_hex(4)
    while any(mark in text for text in texts):
        mark = secrets.token_hex(6)
    return mark


def _left_open(text: str) -> str:
    """Return what closes a block of code that the text leaves open: it would swallow the rest."""
    fence = ""
    for found in _FENCE.finditer(text):
        ticks, rest = found[1], found[2]
        if not fence:
            fence = ticks if not (ticks[0] == "`" and "`" in rest) else ""
        elif ticks.startswith(fence) and not rest.strip():
            fence = ""
    return f"{fence}\n" if fence else ""


def _one_line(text: str) -> str:
    """Return a text for a heading or a note, without what Markdown or HTML would take as markup."""
    line = " ".join(text.split())
    line = re.sub(r"([\\`*_<>\[\]#|~])", r"\\\1", line)
    return f" {line}" if text.startswith(" ") else line
