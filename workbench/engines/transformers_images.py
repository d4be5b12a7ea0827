"""Vision models of transformers: messages with images go through the model's own processor."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.engines.base import Power
from workbench.engines.choice import Choice
from workbench.engines.transformers_session import TransformersSession
from workbench.engines.transformers_template import for_template
from workbench.errors import InputError, UnsupportedError
from workbench.messages import Image, Message, Piece, Sampling
from workbench.planning import Plan

_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def is_vision_model(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder holds a model that sees, and the files that prepare its images."""
    return bool(config.get("vision_config")) and any(
        (folder / name).is_file() for name in _PROCESSORS
    )


class SeenPrompt(list[int]):
    """A prompt's ids with what its images became, so that the two cannot be confused.

    Attributes:
        seen: What the processor made of the images, by the model's own names.
    """

    seen: Mapping[str, Any]


class ImageSession(TransformersSession):
    """A model that sees; turns without images run as in any other model.

    A prompt with images leaves no KV cache behind: the same ids may stand for other pictures.
    """

    def __init__(self, model: Any, processor: Any, plan: Plan) -> None:
        tokenizer = processor.tokenizer
        self.processor = processor
        if getattr(processor, "chat_template", None) and not tokenizer.chat_template:
            tokenizer.chat_template = processor.chat_template
        super().__init__(model, tokenizer, plan)
        self.powers = (self.powers | {Power.IMAGES}) - {Power.BATCH}

    def close(self) -> None:
        """Drop the model and its processor."""
        self.processor = None
        super().close()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Yield the reply to a conversation in pieces."""
        began = time.perf_counter()
        ids = self.prompt_ids_for(messages, sampling)
        return self.divided(self._reply(ids, sampling, began, self.shown), ids, sampling)

    def _templated(
        self, messages: Sequence[Message], prompted: bool, *, tokenize: bool, **wishes: Any
    ) -> Any:
        """Return the prompt by the processor, which puts each image's tokens in its place."""
        from jinja2 import TemplateError

        try:
            with self._tokenizer_lock:
                found = self.processor.apply_chat_template(
                    [_with_parts(message) for message in messages],
                    add_generation_prompt=prompted,
                    tokenize=tokenize,
                    **({"return_dict": True, "return_tensors": "pt"} if tokenize else {}),
                    **wishes,
                )
        except TemplateError as error:
            raise InputError(f"The chat template refuses this conversation: {error}.") from error
        if not tokenize:
            return found
        ids: list[int] = found["input_ids"][0].tolist()
        if any(message.images for message in messages):
            seen = {name: value for name, value in found.items() if name not in _PLAIN}
            if not seen:
                raise UnsupportedError(
                    "This model's processor made nothing of the images.",
                    hint="Its processor_config.json may be missing or damaged.",
                )
            ids = SeenPrompt(ids)
            ids.seen = seen
        return {"input_ids": ids}

    def _tokens(self, ids: list[int], sampling: Sampling) -> Iterator[int]:
        if not isinstance(ids, SeenPrompt):
            return super()._tokens(ids, sampling)
        return self._tokens_seeing(ids, sampling, ids.seen)

    def _tokens_seeing(
        self, ids: list[int], sampling: Sampling, seen: Mapping[str, Any]
    ) -> Iterator[int]:
        """Yield sampled ids after a prompt with images."""
        import torch

        self.prefix.drop()
        choose = Choice(sampling, ids, self.device)
        feed = torch.tensor([ids], device=self.device)
        more = {name: self._moved(value) for name, value in seen.items()}
        cache: Any = None
        try:
            while True:
                logits, cache = self.step(feed, cache, **more)
                more = {}
                with torch.inference_mode():
                    token = choose(logits[0, -1])
                if sampling.top_logprobs:
                    self._last = (logits[0, -1], token, sampling.top_logprobs)
                yield token
                feed = torch.tensor([[token]], device=self.device)
        finally:
            self._last = None

    def _moved(self, value: Any) -> Any:
        """Return a tensor on the model's device, pictures in the model's dtype."""
        if not hasattr(value, "to"):
            return value
        found = value.to(self.device)
        return found.to(self._model.dtype) if found.is_floating_point() else found


_PLAIN = ("input_ids", "attention_mask")


def _with_parts(message: Message) -> dict[str, Any]:
    """Return a message in parts, as processors want it: images first, then the text."""
    found = for_template(message)
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": opened(image)} for image in message.images
    ]
    found["content"] = [*parts, {"type": "text", "text": message.content}]
    return found


def opened(image: Image) -> Any:
    """Return the picture as an RGB image of Pillow.

    Raises:
        InputError: The bytes are no picture, or one of too many pixels.
    """
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    try:
        with pillow.open(io.BytesIO(image.data)) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise InputError(
                    f"An image has {picture.width} x {picture.height} pixels, more than "
                    f"{_MOST_PIXELS:,}.",
                    hint="Make it smaller.",
                )
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"An image cannot be decoded: {error}.") from None


_MOST_PIXELS = 64_000_000
