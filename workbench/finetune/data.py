"""Training files: chats, prompts or instructions, read into messages or refused by line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError, NotFoundError, did_you_mean
from workbench.figures.table import Table
from workbench.messages import ROLES, Message
from workbench.paths import shipped

SHOWN = 5
_FORMS: dict[str, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "prompt": frozenset({"prompt", "completion"}),
    "instruction": frozenset({"instruction", "input", "output", "system"}),
}
_FREE = frozenset({"id", "metadata"})
_TURN_KEYS = frozenset({"role", "content"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One conversation of a training file.

    Attributes:
        line: Its line in the file, from 1.
        messages: The turns; the last one is the assistant's.
    """

    line: int
    messages: tuple[Message, ...]

    @property
    def question(self) -> tuple[Message, ...]:
        """The turns before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.messages[-1].content


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """A training file, read and checked; displays its first rows in a notebook.

    Attributes:
        path: The file.
        sha256: Hash of its bytes.
        examples: Its conversations, in order.
        forms: How many lines had which form: messages, prompt, instruction.
    """

    path: Path
    sha256: str
    examples: tuple[Example, ...]
    forms: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.examples)

    def summary(self) -> str:
        """Return one line: name, rows, forms, hash."""
        forms = ", ".join(f"{count} {form}" for form, count in self.forms.items())
        return f"{self.path.name}: {len(self)} rows ({forms}), sha256 {self.sha256[:12]}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        import html

        first = self.examples[:SHOWN]
        plain = [self.summary()]
        rows = []
        for example in first:
            turns = [f"{turn.role}: {turn.content}" for turn in example.messages]
            plain.append(f"{example.line:6}  " + " | ".join(turns))
            rows.append({"line": example.line, "conversation": "\n".join(turns)})
        return {
            "text/plain": "\n".join(plain),
            "text/html": f"<div>{html.escape(self.summary())}</div>{Table(rows).html()}",
        }


def data_file(dataset: str | Path) -> Path:
    """Return the file of a path, a path below the installation, or a bare name that ships.

    Raises:
        NotFoundError: There is no such file.
    """
    path = Path(dataset).expanduser()
    if path.is_file():
        return path
    folder = shipped("data", "finetune")
    for candidate in (folder.parent.parent / path, folder / f"{path}.jsonl"):
        if not path.is_absolute() and candidate.is_file():
            return candidate
    known = [file.stem for file in folder.glob("*.jsonl") if not file.stem.endswith(".eval")]
    raise NotFoundError(
        f"The training file {dataset} does not exist.",
        hint=f"Give JSON lines, or a name that ships. {did_you_mean(str(dataset), known)}",
    )


def evaluation_file(dataset: Path) -> Path | None:
    """Return ``<name>.eval.jsonl`` beside ``<name>.jsonl``, or None."""
    beside = dataset.with_name(f"{dataset.stem}.eval.jsonl")
    return beside if beside.is_file() else None


def read_data(path: Path) -> TrainingData:
    """Read a training file; one wrong line refuses the whole file.

    A line is ``{"messages": [...]}``, ``{"prompt": ..., "completion": ...}`` or
    ``{"instruction": ..., "input": ..., "output": ...}``; ``id`` and ``metadata`` are left alone.

    Raises:
        NotFoundError: The file does not exist.
        InputError: It is empty, not UTF-8, or lines are wrong: all are counted, the first shown.
    """
    if not path.is_file():
        raise NotFoundError(f"The training file {path} does not exist.", hint="Check its path.")
    raw = path.read_bytes()
    examples: list[Example] = []
    forms: Counter[str] = Counter()
    wrong: list[str] = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            form, messages = _conversation(_record(line, first=number == 1))
        except _LineError as error:
            wrong.append(f"line {number}: {error}")
            continue
        forms[form] += 1
        examples.append(Example(line=number, messages=messages))
    if wrong:
        raise _refusal(path, wrong, total=len(wrong) + len(examples))
    if not examples:
        raise InputError(
            f"The training file {path} is empty.", hint="Give at least one conversation per line."
        )
    return TrainingData(
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        examples=tuple(examples),
        forms=dict(forms),
    )


class _LineError(Exception):
    """What is wrong with one line."""


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known).rstrip(".")


def _refusal(path: Path, wrong: list[str], *, total: int) -> InputError:
    shown = "; ".join(wrong[:SHOWN])
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return InputError(
        f"{path}: {len(wrong)} of {total} lines are wrong: {shown}{more}.",
        hint="Nothing was trained; correct these lines and try again.",
    )


def _record(line: bytes, *, first: bool) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError:
        raise _LineError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise _LineError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise _LineError(f"a JSON {type(record).__name__}, not an object")
    return record


def _conversation(record: Mapping[str, Any]) -> tuple[str, tuple[Message, ...]]:
    """Return the form's name and the turns of one record."""
    form = next((name for name in _FORMS if name in record), None)
    if form is None:
        known = "messages, or prompt and completion, or instruction and output"
        raise _LineError(f"has none of {known}, only {', '.join(sorted(record)) or 'nothing'}")
    for key in record:
        if key not in _FORMS[form] | _FREE:
            raise _LineError(f"unknown key {key!r} ({_hint(key, _FORMS[form])})")
    turns = {"messages": _chat, "prompt": _prompt, "instruction": _instruction}[form](record)
    if not any(turn.role == "assistant" for turn in turns):
        raise _LineError("has no assistant turn")
    if turns[-1].role != "assistant":
        raise _LineError(f"ends with a {turns[-1].role} turn that nobody answers")
    return form, turns


def _chat(record: Mapping[str, Any]) -> tuple[Message, ...]:
    return _turns(record["messages"], "messages")


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise _LineError(f"{name} is a {type(value).__name__}, not a list of turns")
    if not value:
        raise _LineError(f"{name} is empty")
    return tuple(_turn(item, f"{name}[{index}]") for index, item in enumerate(value))


def _turn(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise _LineError(f"{where} is a {type(item).__name__}, not an object")
    for key in item:
        if key not in _TURN_KEYS:
            raise _LineError(f"{where} has the unknown key {key!r}")
    role = item.get("role")
    if role not in ROLES:
        hint = _hint(str(role), ROLES)
        raise _LineError(f"{where} has the unknown role {role!r} ({hint})")
    return Message(role, _text(item.get("content"), f"{where} ({role})"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _LineError(f"{where} is {value!r:.40}, not text")
    if not value.strip():
        raise _LineError(f"{where} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _LineError(f"{where} holds half of a surrogate pair, which is no text")
    return value


def _prompt(record: Mapping[str, Any]) -> tuple[Message, ...]:
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list) or isinstance(completion, list):
        before, after = _turns(prompt, "prompt"), _turns(completion, "completion")
        if any(turn.role == "assistant" for turn in before):
            raise _LineError("prompt has an assistant turn, which would be trained; use messages")
        return before + after
    return (
        Message("user", _text(prompt, "prompt")),
        Message("assistant", _text(completion, "completion")),
    )


def _instruction(record: Mapping[str, Any]) -> tuple[Message, ...]:
    question = _text(record.get("instruction"), "instruction")
    extra = record.get("input")
    if extra is not None and not isinstance(extra, str):
        raise _LineError(f"input is {extra!r:.40}, not text")
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    system = record.get("system")
    turns = [Message("system", _text(system, "system"))] if system else []
    turns.append(Message("user", question))
    turns.append(Message("assistant", _text(record.get("output"), "output")))
    return tuple(turns)
