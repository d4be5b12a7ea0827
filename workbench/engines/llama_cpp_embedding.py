"""Embedding and reranking models in llama.cpp: pooled as the GGUF says, several texts at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from workbench.engines.base import Power
from workbench.engines.llama_cpp_library import last_words
from workbench.engines.llama_cpp_vocabulary import Vocabulary
from workbench.errors import ContextLengthError, EngineError, InputError, UnsupportedError
from workbench.messages import Message, Piece, Sampling
from workbench.planning import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

_NONE, _MEAN, _LAST, _RANK = 0, 1, 3, 4
_MOST_AT_ONCE = 32
_SMALLEST_BATCH = 512


def pooling_of(metadata: Mapping[str, Any], plan: Plan) -> int | None:
    """Return llama.cpp's number of the pooling a model wants, None for one that writes text.

    The file's own ``pooling_type`` decides. Where it has none, a model is pooled by its mean when
    its card says that it embeds, when it attends both ways, or with the option ``embedding=True``.

    Args:
        metadata: The GGUF's metadata.
        plan: What was planned.
    """
    architecture = metadata.get("general.architecture", "")
    said = metadata.get(f"{architecture}.pooling_type")
    wanted = plan.options.get("embedding")
    if wanted is False:
        return None
    given = plan.options.get("pooling_type")
    if isinstance(given, int) and given > _NONE:
        return given
    if isinstance(said, int) and said > _NONE:
        return said
    if any(name in metadata for name in (f"{architecture}.classifier.output_labels",)):
        return _RANK
    if "rerank" in plan.card.tasks:
        return _RANK
    both_ways = metadata.get(f"{architecture}.attention.causal") is False
    if wanted or both_ways or "embedding" in plan.card.tasks:
        return _MEAN
    return None


def batch_arguments(pooling: int, plan: Plan) -> dict[str, Any]:
    """Return the arguments of ``llama_cpp.Llama`` for a model that is pooled.

    A text lies in one batch: attention that looks both ways, and means, need all of it at once.
    """
    whole = max(plan.context, 1) if pooling != _LAST else max(plan.context, _SMALLEST_BATCH)
    given = {"n_batch": whole, "n_ubatch": whole, **plan.options}
    return {
        "embedding": True,
        "pooling_type": pooling,
        "n_batch": given["n_batch"],
        "n_ubatch": given["n_ubatch"],
    }


class LlamaCppEmbedder:
    """A loaded GGUF that gives vectors or relevances, and no text.

    Args:
        llama: The ``llama_cpp.Llama``, opened with embeddings.
        module: The ``llama_cpp`` module.
        plan: What was planned.
    """

    def __init__(self, llama: Any, module: Any, plan: Plan) -> None:
        self._llama, self._c, self._plan = llama, module, plan
        self.words = Vocabulary(llama, module)
        self.pooling = int(module.llama_pooling_type(llama.ctx))
        self._room = min(plan.context, int(llama.n_batch), int(module.llama_n_ubatch(llama.ctx)))
        ranks = self.pooling == _RANK
        self.width = int(
            module.llama_model_n_cls_out(llama.model)
            if ranks
            else module.llama_model_n_embd_out(llama.model)
        )
        self.powers = frozenset({Power.TOKENIZE, Power.RERANK if ranks else Power.EMBED})

    @property
    def raw(self) -> Any:
        """The ``llama_cpp.Llama``."""
        return self._llama

    def close(self) -> None:
        """Free the context and the model."""
        if self._llama is not None:
            self._llama.close()
            self._llama = None

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Refuse: such a model writes no text.

        Raises:
            UnsupportedError: Always.
        """
        what = "reranks" if self.pooling == _RANK else "embeds"
        raise UnsupportedError(
            f"{self._plan.card.id} {what} texts, it does not write any.",
            hint="Use model.rerank(query, documents)." if what == "reranks" else
            "Use model.embed(texts).",
        )  # fmt: skip

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""
        return self.words.tokenize(text)

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""
        return b"".join(self.words.bytes_of(int(index), special=True) for index in ids)

    def embed(self, texts: Sequence[str], normalize: bool) -> NDArray[np.float32]:
        """Return one vector a text, float32, shape [texts, width], pooled as the file says."""
        import numpy as np

        rows = [self.words.tokenize(text, own=True) for text in texts]
        found = self._pooled(rows)
        if normalize:
            lengths = np.linalg.norm(found, axis=-1, keepdims=True)
            found = found / np.maximum(lengths, np.finfo(np.float32).tiny)
        return found

    def rerank(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """Return the relevance of each document to the query, float32, shape [documents]."""
        return self._pooled([self._pair(query, text) for text in documents])[:, 0].copy()

    def _pair(self, query: str, document: str) -> list[int]:
        """Return the ids of a query and a document, in the form that llama-server gives them."""
        module, native = self._c, self.words.native
        template = module.llama_model_chat_template(self._llama.model, b"rerank")
        if template:
            text = template.decode("utf-8", "replace")
            said = {"query": query, "document": document}  # may hold the marks themselves
            text = re.sub(r"\{(query|document)\}", lambda mark: said[mark[1]], text)
            return self.words.tokenize(text)
        end = module.llama_vocab_eos(native)
        end = module.llama_vocab_sep(native) if end < 0 else end
        ends = [end] if module.llama_vocab_get_add_eos(native) else []
        begins = [module.llama_vocab_bos(native)] if module.llama_vocab_get_add_bos(native) else []
        separates = (
            [module.llama_vocab_sep(native)] if module.llama_vocab_get_add_sep(native) else []
        )
        first, second = self.words.tokenize(query), self.words.tokenize(document)
        return [*begins, *first, *ends, *separates, *second, *ends]

    def _pooled(self, rows: Sequence[list[int]]) -> NDArray[np.float32]:
        """Return what the model pools of each row of ids, float32, shape [rows, width]."""
        import numpy as np

        for number, ids in enumerate(rows, 1):
            if not ids:
                raise InputError(f"Text {number} is empty.")
            if len(ids) > self._room:
                raise ContextLengthError(
                    f"Text {number} has {len(ids)} tokens, the model takes {self._room} at once.",
                    hint="Shorten it, or load the model with a larger context=.",
                )
        found = np.empty((len(rows), self.width), np.float32)
        batch = self._c.llama_batch_init(self._room, 0, 1)
        try:
            for start, end in self._groups(rows):
                self._run(batch, rows[start:end])
                for at in range(start, end):
                    pointer = self._c.llama_get_embeddings_seq(self._llama.ctx, at - start)
                    if not pointer:
                        raise EngineError("llama.cpp gave no embedding for this model.")
                    found[at] = np.ctypeslib.as_array(pointer, (self.width,))
        finally:
            self._c.llama_batch_free(batch)
        if not math.isfinite(float(np.abs(found).sum())):
            raise EngineError("The model's output is not a number (NaN or infinite).")
        return found

    def _groups(self, rows: Sequence[list[int]]) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows that fit into one batch together."""
        most = min(_MOST_AT_ONCE, int(self._c.llama_n_seq_max(self._llama.ctx)))
        start, held = 0, 0
        for at, ids in enumerate(rows):
            if at > start and (held + len(ids) > self._room or at - start == most):
                yield start, at
                start, held = at, 0
            held += len(ids)
        yield start, len(rows)

    def _run(self, batch: Any, rows: Sequence[list[int]]) -> None:
        batch.n_tokens = 0
        for sequence, ids in enumerate(rows):
            for position, token in enumerate(ids):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, position
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = 1
                batch.n_tokens = at + 1
        memory = self._c.llama_get_memory(self._llama.ctx)
        if memory is not None:
            self._c.llama_memory_clear(memory, False)
        run = self._c.llama_encode if memory is None else self._c.llama_decode
        code = run(self._llama.ctx, batch)
        if code != 0:
            said = last_words() or "no reason given"
            raise EngineError(f"llama.cpp failed while embedding (code {code}): {said}.")
