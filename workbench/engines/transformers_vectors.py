"""Embedding models and rerankers of transformers: texts go in, vectors or scores come out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from workbench.engines.base import Power
from workbench.engines.transformers_memory import (
    empty_caches,
    free_after,
    is_out_of_memory,
    reply_error,
)
from workbench.engines.transformers_pooling import Dense, Pooling, pooled
from workbench.engines.transformers_session import input_device
from workbench.engines.vocabulary import TokenBytes
from workbench.errors import ContextLengthError, InputError, UnsupportedError
from workbench.messages import Message, Piece, Sampling
from workbench.planning import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROWS_AT_ONCE = 16
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""What Qwen3-Reranker is told where nothing else is asked (its model card)."""
_JUDGE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


class VectorSession:
    """What models that do not chat share: tokens, batches of similar lengths, and closing.

    Attributes:
        powers: What this model can do.
        context: Most tokens of one text, the special ones included.
    """

    word = "embeds"

    def __init__(
        self, model: Any, tokenizer: Any, plan: Plan, *, power: Power, longest: int | None
    ) -> None:
        self._model, self.tokenizer, self._plan = model, tokenizer, plan
        self.powers = frozenset({Power.TOKENIZE, power})
        self.context = _context(model.config, tokenizer, plan, longest)
        self._bytes = TokenBytes(tokenizer)
        self._lock = threading.RLock()  # fast tokenizers refuse two callers at once

    @property
    def raw(self) -> Any:
        """The ``PreTrainedModel``."""
        return self._model

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Piece]:
        """Refuse: there is nothing that speaks.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(f"{self._plan.card.id} {self.word} texts; it does not chat.")

    def close(self) -> None:
        """Drop the model and empty the device's cache."""
        if self._model is not None:
            self._model = self.tokenizer = None
            empty_caches()

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; special tokens written in it are parsed, none is added."""
        with self._lock:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """Return the exact bytes of the ids, special tokens included."""
        return self._bytes.joined(ids)

    def _encoded(self, texts: Sequence[Any], name: str) -> list[dict[str, list[int]]]:
        """Return ids and segments of each text or pair; nothing is cut off silently."""
        found = []
        for index, text in enumerate(texts):
            pair = text if isinstance(text, tuple) else (text,)
            with self._lock:
                row = {key: list(ids) for key, ids in self.tokenizer(*pair).items()}
            length = len(row["input_ids"])
            if length == 0:
                raise InputError(f"{name} {index} is empty.")
            if length > self.context:
                raise ContextLengthError(
                    f"{name} {index} has {length} tokens, {self._plan.card.id} takes "
                    f"{self.context}.",
                    hint="Cut it into parts.",
                )
            found.append(row)
        return found

    def _batches(self, rows: list[dict[str, list[int]]], at_once: int) -> Iterator[Any]:
        """Yield places and padded tensors, similar lengths together."""
        import torch

        order = sorted(range(len(rows)), key=lambda at: len(rows[at]["input_ids"]))
        padding = self.tokenizer.pad_token_id
        fill = {"input_ids": 0 if padding is None else padding}
        for start in range(0, len(order), at_once):
            places = order[start : start + at_once]
            width = max(len(rows[at]["input_ids"]) for at in places)
            feed = {
                key: torch.tensor(
                    [
                        rows[at][key] + [fill.get(key, 0)] * (width - len(rows[at][key]))
                        for at in places
                    ],
                    device=input_device(self._model),
                )
                for key in rows[places[0]]
            }
            yield places, feed

    def _run(self, rows: list[dict[str, list[int]]], at_once: int = ROWS_AT_ONCE) -> Iterator[Any]:
        """Yield places, the model's output and the mask of each batch.

        Raises:
            EngineError: Memory ran out even with one text at a time.
        """
        import torch

        for places, feed in self._batches(rows, at_once):
            try:
                with torch.inference_mode():
                    found = self._forward(feed)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                free_after(error)
                if len(places) == 1:
                    tokens = len(rows[places[0]]["input_ids"])
                    raise reply_error(self._plan, tokens, error) from None
                again = [rows[at] for at in places]
                for inner, part in self._run(again, max(1, len(places) // 2)):
                    yield [places[at] for at in inner], part
                continue
            yield places, found

    def _forward(self, feed: dict[str, Any]) -> Any:
        """Return the result of one padded batch, fp32, first axis the rows."""
        raise NotImplementedError


class EmbeddingSession(VectorSession):
    """Makes one vector of a text, pooled as the model's own files say."""

    def __init__(self, model: Any, tokenizer: Any, plan: Plan, pooling: Pooling) -> None:
        super().__init__(model, tokenizer, plan, power=Power.EMBED, longest=pooling.longest)
        self._pooling = pooling
        self._dense = [Dense(folder, input_device(model)) for folder in pooling.dense]

    def embed(self, texts: Sequence[str], normalize: bool) -> NDArray[np.float32]:
        """Return one vector a text, float32, shape [texts, width], pooled as the model wants.

        A model whose own layers normalize does so in any case.

        Raises:
            ContextLengthError: A text is longer than the model takes.
        """
        import numpy as np

        own = self._pooling
        plain = [text.lower() if own.lower else text for text in texts]
        rows = self._encoded([own.prompt + text for text in plain], "Text")
        vectors: list[Any] = [None] * len(rows)
        for places, found in self._run(rows):
            for at, vector in zip(places, found.cpu().numpy(), strict=True):
                vectors[at] = vector
        result: NDArray[np.float32] = np.stack(vectors).astype(np.float32)
        if normalize or own.normalized:
            lengths = np.linalg.norm(result, axis=-1, keepdims=True)
            result = result / np.maximum(lengths, np.float32(1e-12))
        return result

    def _forward(self, feed: dict[str, Any]) -> Any:
        found = self._model(**feed)
        vectors = pooled(found.last_hidden_state, feed["attention_mask"], self._pooling.ways)
        for layer in self._dense:
            vectors = layer(vectors)
        return vectors


class RerankingSession(VectorSession):
    """Scores pairs with a classification head: the probability of relevance, in [0, 1]."""

    word = "reranks"

    def __init__(self, model: Any, tokenizer: Any, plan: Plan) -> None:
        super().__init__(model, tokenizer, plan, power=Power.RERANK, longest=None)
        labels = int(getattr(model.config, "num_labels", 1))
        if labels > 2:
            raise UnsupportedError(
                f"{plan.card.id} tells {labels} classes apart: it is no reranker, which has one."
            )

    def rerank(self, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
        """Return the relevance of each document to the query, float32, shape [documents].

        Raises:
            ContextLengthError: Query and document together are longer than the model takes.
        """
        import numpy as np

        rows = self._encoded(self._pairs(query, documents), "Document")
        scores = np.zeros(len(rows), np.float32)
        padded = self._model.config.get_text_config().pad_token_id is not None
        for places, found in self._run(rows, ROWS_AT_ONCE if padded else 1):
            scores[places] = found.cpu().numpy()
        return scores

    def _pairs(self, query: str, documents: Sequence[str]) -> list[Any]:
        return [(query, document) for document in documents]

    def _forward(self, feed: dict[str, Any]) -> Any:
        import torch

        logits = self._model(**feed).logits.float()
        return torch.sigmoid(logits[:, 0]) if logits.shape[-1] == 1 else logits.softmax(-1)[:, 1]


class JudgingSession(RerankingSession):
    """Scores pairs by a causal model's yes or no, as Qwen3-Reranker: p(yes) of the two."""

    def __init__(self, model: Any, tokenizer: Any, plan: Plan) -> None:
        super().__init__(model, tokenizer, plan)
        self._words = [self._one("no"), self._one("yes")]

    def _one(self, word: str) -> int:
        ids = self.tokenize(word)
        if len(ids) != 1:
            raise UnsupportedError(
                f"{self._plan.card.id} is no reranker that answers yes or no: {word!r} is "
                f"{len(ids)} tokens of its vocabulary."
            )
        return ids[0]

    def _pairs(self, query: str, documents: Sequence[str]) -> list[Any]:
        return [
            _JUDGE.format(instruction=INSTRUCTION, query=query, document=document)
            for document in documents
        ]

    def _forward(self, feed: dict[str, Any]) -> Any:
        import torch

        found = self._model.base_model(
            input_ids=feed["input_ids"], attention_mask=feed["attention_mask"], use_cache=False
        )
        mask = feed["attention_mask"]
        last = mask.shape[-1] - 1 - mask.flip(-1).argmax(-1)
        states = found.last_hidden_state[torch.arange(len(mask), device=mask.device), last]
        logits = self._model.get_output_embeddings()(states).float()
        return logits[:, self._words].softmax(-1)[:, 1]


def _context(config: Any, tokenizer: Any, plan: Plan, longest: int | None) -> int:
    """Return the most tokens: of the plan, of the model's positions, of its own files."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions and getattr(text, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        positions -= int(getattr(text, "pad_token_id", 1) or 0) + 1  # they count from behind it
    limits = (plan.context, positions, longest)
    return min(int(limit) for limit in limits if limit)
