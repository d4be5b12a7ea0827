"""The prompt as each engine renders it: text and ids compared, the first difference named."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, WorkbenchError
from workbench.messages import Conversation, as_messages

if TYPE_CHECKING:
    from workbench.engines.model import Model

_AROUND = 24

CONVERSATIONS: tuple[Conversation, ...] = (
    "Hello!",
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
    [
        {"role": "user", "content": "猫は英語で？"},
        {"role": "assistant", "content": "cat 🐈"},
        {"role": "user", "content": "  leading blanks\n\nand an empty line\t"},
    ],
    "<|im_start|>system\nwritten by a user<|im_end|> {{ messages }} <s></s>",
)
"""What is compared unless told otherwise: roles, two languages, blanks, special tokens in text."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptDifference:
    """The first place where two prompts differ.

    Attributes:
        conversation: Index of the conversation.
        what: ``text``, ``ids``, or ``refusal`` when only one engine renders it.
        position: Character or token at which they differ; 0 for a refusal.
        first: What the first engine has there, with a little around it.
        second: What the second engine has there.
    """

    conversation: int
    what: str
    position: int
    first: str
    second: str

    def __str__(self) -> str:
        unit = {"text": "character", "ids": "token"}.get(self.what)
        where = f" at {unit} {self.position}" if unit else ""
        return (
            f"conversation {self.conversation} differs in {self.what}{where}: "
            f"{self.first} against {self.second}"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TemplateCheck:
    """Whether two models get the same prompts; displays itself.

    Attributes:
        first: Label of the first model.
        second: Label of the second model.
        compared: Number of conversations.
        differences: The first difference of each conversation that has one.
    """

    first: str
    second: str
    compared: int
    differences: tuple[PromptDifference, ...]

    @property
    def same(self) -> bool:
        """Whether every prompt is the same, as text and as ids."""
        return not self.differences

    def __repr__(self) -> str:
        head = f"{self.first} and {self.second}: "
        if self.same:
            return f"{head}the same prompt in {self.compared} of {self.compared} conversations"
        agreeing = self.compared - len(self.differences)
        lines = [f"{head}the same prompt in {agreeing} of {self.compared} conversations"]
        return "\n".join(lines + [f"  {difference}" for difference in self.differences])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        head, *rest = repr(self).splitlines()
        items = "".join(f"<li>{html.escape(line.strip())}</li>" for line in rest)
        shown = f"<div>{html.escape(head)}{f'<ul>{items}</ul>' if items else ''}</div>"
        return {"text/plain": repr(self), "text/html": shown}


def compare_templates(
    first: Model, second: Model, conversations: Sequence[Conversation] = CONVERSATIONS
) -> TemplateCheck:
    """Render each conversation by both engines and compare text and ids.

    Args:
        first: A model with the power ``render``.
        second: Another one.
        conversations: What to render.

    Raises:
        UnsupportedError: A model has no chat template.
    """
    found = [
        difference
        for index, conversation in enumerate(conversations)
        if (difference := _first_difference(first, second, conversation, index)) is not None
    ]
    return TemplateCheck(
        first=first.label,
        second=second.label,
        compared=len(conversations),
        differences=tuple(found),
    )


def _first_difference(
    first: Model, second: Model, conversation: Conversation, index: int
) -> PromptDifference | None:
    texts = [_rendered(model, conversation) for model in (first, second)]
    refusals = [str(text) for text in texts if isinstance(text, WorkbenchError)]
    if len(refusals) == len(texts):
        return None  # a template may refuse a conversation, if both do
    if refusals:
        shown = [str(text) if isinstance(text, WorkbenchError) else "rendered" for text in texts]
        return PromptDifference(
            conversation=index, what="refusal", position=0, first=shown[0], second=shown[1]
        )
    one, two = (str(text) for text in texts)
    if one != two:
        at = _first_unequal(one, two)
        return PromptDifference(
            conversation=index,
            what="text",
            position=at,
            first=_near(one, at),
            second=_near(two, at),
        )
    ids, others = first.prompt_ids(conversation), second.prompt_ids(conversation)
    if ids == others:
        return None
    at = _first_unequal(ids, others)
    return PromptDifference(
        conversation=index,
        what="ids",
        position=at,
        first=_named(first, ids, at),
        second=_named(second, others, at),
    )


def _rendered(model: Model, conversation: Conversation) -> str | WorkbenchError:
    as_messages(conversation)  # a wrong conversation is the caller's mistake, not a difference
    try:
        return model.render(conversation)
    except InputError as error:
        return error


def _first_unequal(one: Sequence[Any], two: Sequence[Any]) -> int:
    pairs = zip(one, two, strict=False)
    unequal = (at for at, (left, right) in enumerate(pairs) if left != right)
    return next(unequal, min(len(one), len(two)))


def _near(text: str, at: int) -> str:
    return repr(text[max(0, at - _AROUND) : at + _AROUND])


def _named(model: Model, ids: Sequence[int], at: int) -> str:
    if at >= len(ids):
        return "the end"
    return f"{ids[at]} {model.detokenize(ids[at : at + 1])!r}"
