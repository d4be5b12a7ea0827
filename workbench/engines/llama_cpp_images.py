"""Images for llama.cpp: a projector (mmproj) turns them into positions between the prompt's tokens.

Drives the library's multimodal functions (mtmd) directly, with the GGUF's own chat template.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.catalog.header import check_gguf
from workbench.engines.llama_cpp_library import clear, last_words, log_callback
from workbench.engines.llama_cpp_vocabulary import Vocabulary
from workbench.errors import EngineError, InputError, NotFoundError, UnsupportedError
from workbench.messages import Image, Message

_TEXT = 0


class SeenPrompt(list[int]):
    """A prompt's ids with images among them: an image's positions hold the id 0.

    Attributes:
        chunks: The native list that is decoded instead of the ids.
        text: The ids of the text alone.
    """

    def __init__(self, ids: Sequence[int], chunks: Any, text: Sequence[int]) -> None:
        super().__init__(ids)
        self.chunks, self.text = chunks, list(text)


class Projector:
    """A loaded projector.

    Args:
        llama: The ``llama_cpp.Llama`` it belongs to.
        words: Its vocabulary and template.
        path: The mmproj GGUF.
        on_gpu: Whether it may run on the GPU.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is no projector.
        EngineError: llama.cpp refuses it, or it belongs to another model.
        UnsupportedError: It is one for sound.
    """

    def __init__(self, llama: Any, words: Vocabulary, path: Path, *, on_gpu: bool) -> None:
        from llama_cpp import mtmd_cpp

        self._m, self._llama, self._words = mtmd_cpp, llama, words
        _check_projector(path)
        log = log_callback()
        mtmd_cpp.mtmd_log_set(log, ctypes.c_void_p(0))
        mtmd_cpp.mtmd_helper_log_set(log, ctypes.c_void_p(0))
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu, settings.print_timings = on_gpu, False
        settings.n_threads = llama.n_threads
        settings.flash_attn_type = llama.context_params.flash_attn_type
        settings.warmup = False
        clear()
        self._context = mtmd_cpp.mtmd_init_from_file(str(path).encode(), llama.model, settings)
        if not self._context:
            said = last_words() or "it gives no reason"
            raise EngineError(f"llama.cpp cannot load the projector {path.name}: {said}.")
        if not mtmd_cpp.mtmd_support_vision(self._context):
            self.close()
            raise UnsupportedError(f"The projector {path.name} is not one for images.")
        self._marker = mtmd_cpp.mtmd_default_marker().decode()

    def close(self) -> None:
        """Free it, before the model is freed; safe to call twice."""
        context, self._context = self._context, None
        if context:
            self._m.mtmd_free(context)

    def prompt(self, messages: Sequence[Message]) -> SeenPrompt:
        """Return the prompt of a conversation with images.

        Raises:
            InputError: The template has no place for images, or an image cannot be read.
        """
        if any(self._marker in message.content for message in messages):
            raise InputError(f"A message holds {self._marker!r}, which marks an image's place.")
        images = [image for message in messages for image in message.images]
        text = self._rendered(messages, len(images)).encode("utf-8", "replace")
        bitmaps = []
        try:
            for number, image in enumerate(images, 1):
                bitmaps.append(self._bitmap(image, number))
            return self._tokenized(text, bitmaps)
        finally:
            for bitmap in bitmaps:
                self._m.mtmd_bitmap_free(bitmap)

    def _rendered(self, messages: Sequence[Message], count: int) -> str:
        """Render with a mark for each image, as parts of text or else within the text."""
        found = ""
        for in_parts in (True, False):
            turns = [self._turn(message, in_parts) for message in messages]
            try:
                found = self._words.render(turns, add_generation_prompt=True)
            except InputError:
                if not in_parts:
                    raise
                continue
            if found.count(self._marker) == count and "'type':" not in found:
                return found
        raise InputError("This model's chat template has no place for images.")

    def _turn(self, message: Message, in_parts: bool) -> dict[str, Any]:
        turn = {"role": message.role, "content": message.content}
        marks = [self._marker] * len(message.images)
        if in_parts:
            parts = [*marks, message.content]
            return {**turn, "content": [{"type": "text", "text": part} for part in parts if part]}
        return {**turn, "content": "".join([*marks, message.content])}

    def _bitmap(self, image: Image, number: int) -> Any:
        data = (ctypes.c_uint8 * len(image.data)).from_buffer_copy(image.data)
        found = self._m.mtmd_helper_bitmap_init_from_buf(
            self._context, data, len(image.data), False
        )
        if not found:
            raise InputError(
                f"llama.cpp cannot read image {number} ({image.mime}).",
                hint="It reads PNG, JPEG and GIF; save the image as one of them.",
            )
        return found

    def _tokenized(self, text: bytes, bitmaps: Sequence[Any]) -> SeenPrompt:
        module = self._m
        given = module.mtmd_input_text()
        given.text, given.text_len = text, len(text)
        given.add_special, given.parse_special = False, True
        chunks = module.mtmd_input_chunks_init()
        array = (module.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
        clear()
        code = module.mtmd_tokenize(self._context, chunks, ctypes.byref(given), array, len(bitmaps))
        if code != 0:
            module.mtmd_input_chunks_free(chunks)
            said = last_words() or f"code {code}"
            raise InputError(f"llama.cpp cannot place the images in the prompt: {said}.")
        ids, words = self._ids(chunks)
        if min(words, default=0) < 0:  # decoding them would end the process
            module.mtmd_input_chunks_free(chunks)
            raise InputError(
                "The model's vocabulary lacks tokens that its projector puts around images.",
                hint="The projector belongs to another model.",
            )
        found = SeenPrompt(ids, chunks, words)
        weakref.finalize(found, module.mtmd_input_chunks_free, chunks)
        return found

    def _ids(self, chunks: Any) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        words: list[int] = []
        for at in range(self._m.mtmd_input_chunks_size(chunks)):
            chunk = self._m.mtmd_input_chunks_get(chunks, at)
            if self._m.mtmd_input_chunk_get_type(chunk) != _TEXT:
                ids += [0] * int(self._m.mtmd_input_chunk_get_n_tokens(chunk))
                continue
            count = ctypes.c_size_t()
            pointer = self._m.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
            part = [pointer[index] for index in range(count.value)]
            ids, words = ids + part, words + part
        return ids, words

    def prefill(self, prompt: SeenPrompt) -> None:
        """Decode the prompt into the empty cache.

        Raises:
            EngineError: llama.cpp failed.
        """
        import llama_cpp

        behind = llama_cpp.llama_pos(0)
        code = self._m.mtmd_helper_eval_chunks(
            self._context, self._llama.ctx, prompt.chunks, 0, 0, self._llama.n_batch, True,
            ctypes.byref(behind),
        )  # fmt: skip
        if code != 0:
            said = last_words() or "no reason given"
            raise EngineError(f"llama.cpp failed while seeing (code {code}): {said}.")


def _check_projector(path: Path) -> None:
    if not path.is_file():
        raise NotFoundError(
            f"There is no projector {path}.", hint="Give the mmproj GGUF of this model."
        )
    metadata = check_gguf(path).metadata
    if metadata.get("general.architecture") != "clip":
        raise InputError(
            f"{path.name} is a GGUF of {metadata.get('general.architecture')}, not a projector.",
            hint="A projector's file name mostly has mmproj in it.",
        )
