"""What is said to a model: messages with their images and tool calls."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from workbench.errors import InputError, did_you_mean

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")


_IMAGE_KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]+);base64,(.+)", re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """A picture in a message, held as its encoded bytes.

    Attributes:
        data: The file's bytes: PNG, JPEG, GIF or WebP.
        mime: Its media type.
    """

    data: bytes
    mime: str = "image/png"

    @classmethod
    def of(cls, value: Image | bytes | str | Path) -> Image:
        """Return the image of a file, of encoded bytes, or of a ``data:`` URL.

        Raises:
            InputError: There is no such file, it is no image, or the address is a remote one.
        """
        if isinstance(value, Image):
            return value
        if isinstance(value, bytes):
            return cls(value, _image_kind(value, "these bytes"))
        text = str(value)
        found = _DATA_URL.fullmatch(text)
        if found:
            try:
                return cls(base64.b64decode(found[2], validate=True), found[1].lower())
            except binascii.Error:
                raise InputError("The data: URL of an image is not valid base64.") from None
        if re.match(r"[a-z]+://", text, re.IGNORECASE):
            raise InputError(
                f"The image {text[:80]} is a remote address, which is not fetched.",
                hint="Download it, and give the file.",
            )
        try:
            data = Path(text).expanduser().read_bytes()
        except OSError as error:
            raise InputError(f"The image {text[:80]} cannot be read: {error.strerror}.") from None
        return cls(data, _image_kind(data, text))

    def data_url(self) -> str:
        """Return the image as a ``data:`` URL."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"


def _image_kind(data: bytes, name: str) -> str:
    for magic, mime in _IMAGE_KINDS.items():
        if data.startswith(magic):
            return mime
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise InputError(f"{name} is no PNG, JPEG, GIF or WebP image.")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool that the model asks for; nothing is run by itself.

    Attributes:
        name: The tool.
        arguments: JSON text as the model wrote it; it may be broken.
        id: Names the call, for the message that answers it.
    """

    name: str
    arguments: str = "{}"
    id: str = ""

    def values(self) -> dict[str, Any]:
        """Return the arguments.

        Raises:
            InputError: The model wrote no JSON object.
        """
        try:
            found = json.loads(self.arguments)
        except json.JSONDecodeError as error:
            raise InputError(
                f"The arguments of the call {self.name} are no JSON: {error}."
            ) from None
        if not isinstance(found, dict):
            raise InputError(f"The arguments of the call {self.name} are no JSON object.")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the OpenAI form."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: The turn's text.
        images: Pictures, which come before the text.
        tool_calls: What an assistant's turn called.
        tool_call_id: Which call a tool's turn answers.
    """

    role: Role
    content: str
    images: tuple[Image, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the OpenAI form, ``{"role": ..., "content": ...}``, images as ``data:`` URLs."""
        content: Any = self.content
        if self.images:
            shown = [{"type": "image_url", "image_url": {"url": i.data_url()}} for i in self.images]
            content = [*shown, {"type": "text", "text": self.content}]
        found: dict[str, Any] = {"role": self.role, "content": content}
        if self.tool_calls:
            found["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        return found


MessageLike = Message | Mapping[str, Any]
Conversation = str | Sequence[MessageLike]


def as_messages(conversation: Conversation) -> tuple[Message, ...]:
    """Turn what a user wrote into messages: a string is one user turn.

    Raises:
        InputError: A turn has an unknown role, no text, or the list is empty.
    """
    if isinstance(conversation, str):
        return (Message("user", conversation),)
    messages = tuple(_as_message(turn, index) for index, turn in enumerate(conversation))
    if not messages:
        raise InputError("The conversation is empty.", hint="Give at least one user message.")
    return messages


def _as_message(turn: MessageLike, index: int) -> Message:
    if isinstance(turn, Message):
        return turn
    if not isinstance(turn, Mapping):
        raise InputError(
            f"Message {index} is a {type(turn).__name__}, not a mapping with role and content."
        )
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise InputError(
            f"Message {index} has the role {role!r}.", hint=did_you_mean(str(role), ROLES)
        )
    calls = tuple(_as_call(call, index) for call in turn.get("tool_calls") or ())
    images = [Image.of(image) for image in turn.get("images") or ()]
    if isinstance(content, Sequence) and not isinstance(content, str):
        content, shown = _from_parts(content, index)
        images += shown
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise InputError(f"Message {index} ({role}) has no text content: {content!r}.")
    answered = turn.get("tool_call_id")
    return Message(role, content, tuple(images), calls, str(answered) if answered else None)


def _from_parts(parts: Sequence[Any], index: int) -> tuple[str, list[Image]]:
    """Return text and images of a content in OpenAI's parts."""
    text: list[str] = []
    images: list[Image] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text.append(part["text"])
        elif kind == "image_url":
            url = part.get("image_url")
            images.append(Image.of(url.get("url", "") if isinstance(url, Mapping) else str(url)))
        elif kind == "image" and part.get("image") is not None:
            images.append(Image.of(part["image"]))
        else:
            raise InputError(
                f"Message {index} has a part that is neither text nor image: {str(part)[:80]}."
            )
    return "".join(text), images


def _as_call(call: Any, index: int) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(f"Message {index} has a tool call without a function name.")
    arguments = function.get("arguments", "{}")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name=function["name"], arguments=text, id=str(call.get("id") or ""))
