"""Prompt sets: JSON lines of conversations with the scorer that judges the reply."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import InputError, NotFoundError, did_you_mean
from workbench.evaluate.scorers import check_scorer
from workbench.messages import Message, as_messages
from workbench.paths import shipped

_KEYS = ("id", "skill", "lang", "messages", "scorer")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One item of a prompt set.

    Attributes:
        id: Its name, one of a kind within what is loaded.
        skill: What it asks for, for example ``sums``.
        lang: ISO 639-1 code of its language.
        messages: The conversation up to the user's last turn.
        scorer: ``{"type": "exact", "answer": ...}``, ``contains`` with ``answers``, ``regex`` with
            ``pattern`` (the whole stripped reply must match) or ``json`` with ``answer``.
    """

    id: str
    skill: str
    lang: str
    messages: tuple[Message, ...]
    scorer: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, as it stands in a prompt file."""
        return {
            "id": self.id,
            "skill": self.skill,
            "lang": self.lang,
            "messages": [message.as_dict() for message in self.messages],
            "scorer": dict(self.scorer),
        }

    @classmethod
    def of(cls, values: Any) -> Prompt:
        """Check one item and return it.

        Raises:
            InputError: A key is missing, unknown or of the wrong kind.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"It is a {type(values).__name__}, not an object.")
        for name in values:
            if name not in _KEYS:
                raise InputError(f"Unknown key {name!r}.", hint=did_you_mean(str(name), _KEYS))
        for name in _KEYS:
            if name not in values:
                raise InputError(f"The key {name!r} is missing.")
        for name in ("id", "skill", "lang"):
            if not isinstance(values[name], str) or not values[name]:
                raise InputError(f"{name} must be a non-empty string, not {values[name]!r}.")
        if not isinstance(values["messages"], list):
            raise InputError(f"messages must be a list, not {values['messages']!r}.")
        messages = as_messages(values["messages"])
        if messages[-1].role == "assistant":
            raise InputError("The conversation ends with the assistant: nothing is left to ask.")
        check_scorer(values["scorer"])
        return cls(
            id=values["id"],
            skill=values["skill"],
            lang=values["lang"],
            messages=messages,
            scorer=dict(values["scorer"]),
        )


def prompt_sets() -> dict[str, Path]:
    """Return the prompt sets that ship, by name: ``sums.en`` -> its file."""
    return {path.stem: path for path in sorted(shipped("data", "prompts").glob("*.*.jsonl"))}


def load_prompts(
    source: str | Path | Iterable[str | Path | Prompt] | None = None,
    *,
    skills: Iterable[str] | str | None = None,
    languages: Iterable[str] | str | None = None,
    limit: int | None = None,
) -> list[Prompt]:
    """Read prompt sets.

    Args:
        source: Names of sets that ship (``"sums.en"``, or ``"sums"`` for all its languages), paths
            of JSON lines files, prompts as they are, or a list of these; None takes all that ship.
        skills: Keep these skills only.
        languages: Keep these languages only.
        limit: Keep at most so many, taken in turn from each skill and language.

    Raises:
        NotFoundError: No set has this name and no such file exists.
        InputError: A line is not a prompt (the message names file and line), two prompts bear one
            id, a skill or language does not occur, or nothing is left.
    """
    prompts: list[Prompt] = []
    for item in _items(source):
        prompts += [item] if isinstance(item, Prompt) else _read_named(item)
    _refuse_repeated_ids(prompts)
    prompts = _kept(prompts, "skill", skills)
    prompts = _kept(prompts, "lang", languages)
    if limit is not None:
        if limit < 1:
            raise InputError(f"limit must be 1 or more, not {limit}.")
        prompts = _in_turn(prompts, limit)
    if not prompts:
        raise InputError("No prompt is left to ask.", hint="Name other sets, skills or languages.")
    return prompts


def _items(
    source: str | Path | Iterable[str | Path | Prompt] | None,
) -> Sequence[str | Path | Prompt]:
    if source is None:
        return list(prompt_sets().values())
    return [source] if isinstance(source, str | Path | Prompt) else list(source)


def _read_named(item: str | Path) -> list[Prompt]:
    known = prompt_sets()
    if isinstance(item, str):
        if item in known:
            return read_prompts(known[item])
        same_skill = [path for name, path in known.items() if name.split(".")[0] == item]
        if same_skill:
            return [prompt for path in same_skill for prompt in read_prompts(path)]
    path = Path(item).expanduser()
    if path.is_file():
        return read_prompts(path)
    raise NotFoundError(
        f"There is no prompt set {str(item)!r}, and no such file exists.",
        hint=did_you_mean(str(item), {*known, *(name.split(".")[0] for name in known)}),
    )


def read_prompts(path: Path) -> list[Prompt]:
    """Read one file of JSON lines; blank lines are skipped.

    Raises:
        InputError: A line is not JSON or not a prompt; the message names file and line.
    """
    prompts = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(Prompt.of(json.loads(line)))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(
                f"{path.name}, line {number}: not JSON ({error}).",
                hint='Each line is one object: {"id", "skill", "lang", "messages", "scorer"}.',
            ) from None
        except InputError as error:
            raise InputError(
                f"{path.name}, line {number}: {error.message}", hint=error.hint
            ) from None
    return prompts


def _refuse_repeated_ids(prompts: Sequence[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise InputError(
                f"Two prompts have the id {prompt.id!r}.", hint="Name each set or file once."
            )
        seen.add(prompt.id)


def _kept(prompts: list[Prompt], field: str, wanted: Iterable[str] | str | None) -> list[Prompt]:
    if wanted is None:
        return prompts
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    present = {str(getattr(prompt, field)) for prompt in prompts}
    for name in sorted(names - present):
        raise InputError(f"No prompt has the {field} {name!r}.", hint=did_you_mean(name, present))
    return [prompt for prompt in prompts if getattr(prompt, field) in names]


def _in_turn(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """Take prompts from each skill and language in turn, so that a few still cover all."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault((prompt.skill, prompt.lang), []).append(index)
    by_rank = sorted((rank, index) for group in groups.values() for rank, index in enumerate(group))
    return [prompts[index] for index in sorted(index for _, index in by_rank[:limit])]
