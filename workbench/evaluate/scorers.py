"""Scorers: whether a reply is right, and why not; hostile replies and patterns cannot hang it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import InputError, did_you_mean

KEYS = {"exact": "answer", "contains": "answers", "regex": "pattern", "json": "answer"}
"""Scorer type -> the one key it needs."""
LONGEST = 20_000
"""Characters of a reply that are looked at by a pattern or a JSON parser; longer is wrong."""
PATIENCE = 2.0
"""Seconds that one pattern may take on one reply."""
_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)
# Matching cannot be interrupted from another thread, so it happens where it can be killed.
_MATCHER = """
import json, re, sys
print("ready", flush=True)
for line in sys.stdin:
    pattern, text = json.loads(line)
    print(int(re.fullmatch(pattern, text) is not None), flush=True)
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a reply is right, and the reason in a few words."""

    right: bool
    why: str


def check_scorer(scorer: Any) -> None:
    """Refuse a scorer that could not judge.

    Raises:
        InputError: An unknown type, a missing or an odd key, a pattern that does not compile.
    """
    if not isinstance(scorer, Mapping):
        raise InputError(f"scorer is a {type(scorer).__name__}, not an object with a type.")
    kind = scorer.get("type")
    if kind not in KEYS:
        raise InputError(f"There is no scorer {kind!r}.", hint=did_you_mean(str(kind), KEYS))
    key = KEYS[kind]
    for name in scorer:
        if name not in ("type", key):
            raise InputError(
                f"The scorer {kind!r} has no key {name!r}.", hint=did_you_mean(name, (key,))
            )
    if key not in scorer:
        raise InputError(f"The scorer {kind!r} needs {key!r}.")
    value = scorer[key]
    if kind == "contains":
        if not isinstance(value, list) or not value or not all(_is_text(item) for item in value):
            raise InputError(f"answers must be a list of non-empty strings, not {value!r}.")
    elif kind != "json" and not _is_text(value):
        raise InputError(f"{key} must be a non-empty string, not {value!r}.")
    if kind == "regex":
        try:
            re.compile(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"The pattern {value[:80]!r} is no regular expression: {error}."
            ) from None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def judge(replies: Sequence[str], scorers: Sequence[Mapping[str, Any]]) -> list[Judgement]:
    """Return for each reply whether its scorer finds it right.

    Args:
        replies: What the model said.
        scorers: One checked scorer a reply.
    """
    found = [_judge(reply.strip(), scorer) for reply, scorer in zip(replies, scorers, strict=True)]
    open_ones = [index for index, judgement in enumerate(found) if judgement is None]
    matches = _match([(scorers[i]["pattern"], replies[i].strip()) for i in open_ones])
    for index, matched in zip(open_ones, matches, strict=True):
        if matched is None:
            found[index] = Judgement(False, f"the pattern took more than {PATIENCE:g} s")
        else:
            found[index] = Judgement(matched, "matches" if matched else "does not match")
    return [judgement for judgement in found if judgement is not None]


def _judge(text: str, scorer: Mapping[str, Any]) -> Judgement | None:
    """Judge by all but patterns, for which None is returned."""
    kind = scorer["type"]
    if kind == "exact":
        right = text == scorer["answer"].strip()
        return Judgement(right, "equal" if right else f"expected {_short(scorer['answer'])}")
    if kind == "contains":
        for answer in scorer["answers"]:
            if answer in text:
                return Judgement(True, f"contains {_short(answer)}")
        return Judgement(False, f"lacks {', '.join(map(_short, scorer['answers'][:4]))}")
    if len(text) > LONGEST:
        return Judgement(False, f"longer than {LONGEST} characters")
    return None if kind == "regex" else _judge_json(text, scorer["answer"])


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _judge_json(text: str, answer: Any) -> Judgement:
    fence = _FENCE.search(text)
    try:
        value = json.loads(
            fence.group(1) if fence else text,
            object_pairs_hook=_without_repeats,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        return Judgement(False, "JSON nested too deeply")
    except ValueError as error:
        return Judgement(False, f"not JSON: {str(error)[:80]}")
    right = _same(value, answer)
    return Judgement(right, "equal" if right else "JSON of another value")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _same(value: Any, answer: Any) -> bool:
    """Compare as JSON does: true is not 1, 1.0 is 1, the order of keys is free."""
    if isinstance(value, dict) and isinstance(answer, Mapping):
        return value.keys() == answer.keys() and all(_same(value[k], answer[k]) for k in value)
    if isinstance(value, list) and isinstance(answer, list | tuple):
        return len(value) == len(answer) and all(map(_same, value, answer))
    if isinstance(value, bool) or isinstance(answer, bool):
        return value is answer
    return bool(value == answer)


def _match(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Match each pattern on its text in a child process; None where it took too long."""
    found: list[bool | None] = []
    while len(found) < len(pairs):
        found += _match_until_late(pairs[len(found) :])
    return found


def _match_until_late(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Match until one takes too long; that one is the last of the list, as None."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _MATCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_drain, args=(child.stdout, lines), daemon=True)
    reader.start()
    found: list[bool | None] = []
    try:
        lines.get(timeout=60)
        for pair in pairs:
            with contextlib.suppress(OSError):
                print(json.dumps(pair), file=child.stdin, flush=True)
            try:
                answer = lines.get(timeout=PATIENCE).strip()
            except queue.Empty:
                return [*found, None]
            if answer not in ("0", "1"):  # it died on this one (memory)
                return [*found, None]
            found.append(answer == "1")
        return found
    finally:
        child.kill()
        child.wait()
        reader.join()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _drain(stream: Any, lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")
