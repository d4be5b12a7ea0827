"""The settings of a chat: what its sliders set, their limits, and the card's defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import InputError, did_you_mean
from workbench.figures import Table
from workbench.messages import Sampling

CANDIDATES = 5
"""Alternatives told with each token where ``probabilities`` is on."""
_MAX_TOKENS = 1024
_SEEDS = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One setting as a front end shows it.

    Attributes:
        name: Its name in ``Sampling``, or ``probabilities``.
        kind: ``slider``, ``integer``, ``seed`` (a number or null), ``switch``, ``choice`` (true,
            false, or null for as the model likes).
        text: What it does, in a few words.
        min: Least value.
        max: Largest value that a slider offers; a number typed in may be larger.
        step: Step of the slider.
    """

    name: str
    kind: str
    text: str
    min: float | None = None
    max: float | None = None
    step: float | None = None


_FIELDS = (
    Field(name="temperature", kind="slider", text="0 is greedy", min=0, max=2, step=0.05),
    Field(name="top_p", kind="slider", text="nucleus mass", min=0.01, max=1, step=0.01),
    Field(name="top_k", kind="integer", text="candidates kept, 0 all", min=0, max=200, step=1),
    Field(
        name="min_p", kind="slider", text="least share of the best token", min=0, max=1, step=0.01
    ),
    Field(name="repetition_penalty", kind="slider", text="1 is none", min=0.5, max=2, step=0.01),
    Field(name="max_tokens", kind="integer", text="most new tokens", min=1, step=1),
    Field(name="seed", kind="seed", text="empty: a fresh one each time", min=0, max=_SEEDS, step=1),
)
_THINK = Field(name="think", kind="choice", text="think before the answer")
_PROBABILITIES = Field(
    name="probabilities", kind="switch", text="keep each token's alternatives while answering"
)


class ChatSettings(Mapping[str, Any]):
    """The settings in force, read like a mapping, set by ``update``.

    Args:
        model: Whose card gives the defaults.
        sampling: Other defaults: all of them, or single ones over the card's.
        changed: Called after every change.

    Attributes:
        fields: What can be set.
        defaults: What ``reset`` goes back to.
    """

    def __init__(
        self,
        model: Model,
        sampling: Sampling | Mapping[str, Any] | None,
        *,
        changed: Callable[[], None],
    ) -> None:
        self._base = _base(model, sampling)
        self._changed = changed
        self.fields = _fields(model)
        self.defaults = {
            field.name: bool(self._base.top_logprobs)
            if field is _PROBABILITIES
            else getattr(self._base, field.name)
            for field in self.fields
        }
        self._values = dict(self.defaults)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def update(self, **changes: Any) -> None:
        """Set some; the others stay.

        Raises:
            InputError: An unknown name, or a value out of range; then nothing is set.
        """
        known = {field.name: field for field in self.fields}
        for name in changes:
            if name not in known:
                raise InputError(
                    f"{name!r} is not a setting of this chat.", hint=did_you_mean(name, known)
                )
        values = {name: _checked(known[name], value) for name, value in changes.items()}
        self._sampling({**self._values, **values})  # out of range is refused here
        self._values.update(values)
        self._changed()

    def reset(self) -> None:
        """Go back to the defaults: the card's, or those that the chat was made with."""
        self._values = dict(self.defaults)
        self._changed()

    def sampling(self, **changes: Any) -> Sampling:
        """Return the settings as ``Sampling``, with further changes by its names.

        Raises:
            InputError: A name is not a sampling setting, or a value is out of range.
        """
        return Sampling.of(self._sampling(self._values), **changes)

    def _sampling(self, values: Mapping[str, Any]) -> Sampling:
        given = {name: value for name, value in values.items() if name != _PROBABILITIES.name}
        if _PROBABILITIES.name in values:
            kept = self._base.top_logprobs or CANDIDATES
            given["top_logprobs"] = kept if values[_PROBABILITIES.name] else 0
        return dataclasses.replace(self._base, **given)

    def as_dict(self) -> dict[str, Any]:
        """Return the values as plain data."""
        return dict(self._values)

    def table(self) -> Table:
        """Return them beside the defaults."""
        rows = [
            {
                "setting": field.name,
                "value": self._values[field.name],
                "default": self.defaults[field.name],
                "meaning": field.text,
            }
            for field in self.fields
        ]
        return Table(rows, caption="Settings of the chat")

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


def _base(model: Model, sampling: Sampling | Mapping[str, Any] | None) -> Sampling:
    if isinstance(sampling, Sampling):
        return sampling
    card = model.card
    found = card.recommended_sampling(thinking=Power.THINKING in model.powers)
    said = (card.sampling, card.thinking_sampling)
    if not any(each is not None and each.max_tokens for each in said):
        room = max(1, (model.plan.context or _MAX_TOKENS * 2) // 2)
        found = dataclasses.replace(found, max_tokens=min(_MAX_TOKENS, room))
    return Sampling.of(found, **dict(sampling or {}))


def _fields(model: Model) -> tuple[Field, ...]:
    context = model.plan.context or None
    found = [
        dataclasses.replace(field, max=context) if field.name == "max_tokens" else field
        for field in _FIELDS
    ]
    if Power.THINKING in model.powers:
        found.append(_THINK)
    if Power.LOGPROBS in model.powers:
        found.append(_PROBABILITIES)
    return tuple(found)


def _checked(field: Field, value: Any) -> Any:
    """Return a value of the field's type; it may come from a front end."""
    refused = InputError(f"{field.name} cannot be {str(value)[:40]!r}.", hint=f"{field.text}.")
    if field.kind in ("switch", "choice"):
        if isinstance(value, bool) or (value is None and field.kind == "choice"):
            return value
        raise refused
    if value is None and field.kind == "seed":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise refused
    if field.kind == "slider":
        return float(value)
    if int(value) != value or value > _SEEDS:
        raise refused
    return int(value)
