"""What OpenAI-compatible servers know beyond replies: ids, prompts, scores, vectors, relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from workbench.catalog.flavour import Flavour
from workbench.engines.http import Http
from workbench.errors import EngineError, InputError, UnsupportedError
from workbench.messages import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Server(Protocol):
    """What these functions ask of a session."""

    http: Http
    model: str
    flavour: str
    facts: Flavour
    label: str


def tokenize(server: Server, text: str, *, start: bool = False) -> list[int]:
    """Return the ids of a text; ``start`` adds the start token where the model wants one."""
    if server.flavour == "vllm":
        body = {"model": server.model, "prompt": text, "add_special_tokens": start}
    else:
        body = {"content": text, "add_special": start, "parse_special": True}
    return _ids(server, server.http.json("POST", "/tokenize", body, at_root=True))


def detokenize(server: Server, ids: Sequence[int]) -> bytes:
    """Return the bytes of ids; text with U+FFFD is believed only where it has the same ids.

    Raises:
        EngineError: The ids end within a character, which a server's text cannot show.
    """
    plain = [int(index) for index in ids]
    body: dict[str, Any] = {"tokens": plain}
    if server.flavour == "vllm":
        body["model"] = server.model
    found = server.http.json("POST", "/detokenize", body, at_root=True)
    text = found.get("prompt", found.get("content")) if isinstance(found, Mapping) else None
    if not isinstance(text, str):
        raise EngineError(f"{server.label} detokenizes to no text: {str(found)[:200]}")
    if "\ufffd" in text and tokenize(server, text) != plain:
        raise EngineError(
            f"{server.label} cannot tell the bytes of ids that end within a character.",
            hint="Give the ids of whole characters, or use an engine in this process.",
        )
    return text.encode("utf-8", "replace")


def render(
    server: Server, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """Return the prompt as the server's chat template renders it."""
    turns = [message.as_dict() for message in messages]
    if server.flavour == "vllm":  # it tells the ids of a prompt, not the text
        ids = _vllm_prompt(server, turns, (), add_generation_prompt)
        return detokenize(server, ids).decode("utf-8", "replace")
    return _template(server, turns, (), add_generation_prompt)


def prompt_ids(server: Server, messages: Sequence[Message], tools: Sequence[Any]) -> list[int]:
    """Return the ids of a prompt, as the server feeds them."""
    turns = [message.as_dict() for message in messages]
    if server.flavour == "vllm":
        return _vllm_prompt(server, turns, tools, True)
    return tokenize(server, _template(server, turns, tools, True), start=True)


def short_prompt(server: Server, think: bool | None) -> str:
    """Return the prompt that a vLLM server makes of a short question, wished to be thought over."""
    turns = [{"role": "user", "content": "?"}]
    wish = {} if think is None else {"chat_template_kwargs": {"enable_thinking": think}}
    ids = _vllm_prompt(server, turns, (), True, **wish)
    return detokenize(server, ids).decode("utf-8", "replace")


def _vllm_prompt(
    server: Server,
    turns: list[dict[str, Any]],
    tools: Sequence[Any],
    prompted: bool,
    **more: Any,
) -> list[int]:
    body: dict[str, Any] = {
        "model": server.model,
        "messages": turns,
        "add_generation_prompt": prompted,
        **more,
    }
    if tools:
        body["tools"] = [dict(tool) for tool in tools]
    return _ids(server, server.http.json("POST", "/tokenize", body, at_root=True))


def _template(
    server: Server, turns: list[dict[str, Any]], tools: Sequence[Any], prompted: bool
) -> str:
    body: dict[str, Any] = {"messages": turns, "add_generation_prompt": prompted}
    if tools:
        body["tools"] = [dict(tool) for tool in tools]
    found = server.http.json("POST", "/apply-template", body, at_root=True)
    prompt = found.get("prompt") if isinstance(found, Mapping) else None
    if not isinstance(prompt, str):
        raise EngineError(f"{server.label} renders no prompt: {str(found)[:200]}")
    return prompt


def _ids(server: Server, found: Any) -> list[int]:
    ids = found.get("tokens") if isinstance(found, Mapping) else None
    if not isinstance(ids, list) or not all(isinstance(index, int) for index in ids):
        raise EngineError(f"{server.label} tokenizes to no ids: {str(found)[:200]}")
    return ids


def score(server: Server, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the log-probability of each id but the first, by vLLM's ``prompt_logprobs``.

    Raises:
        InputError: There is no id, or one outside the vocabulary.
        ContextLengthError: They do not fit; the server wants room for one token more.
    """
    import numpy as np

    plain = _scorable(ids)
    if len(plain) == 1:
        return np.zeros(0, dtype=np.float32)
    rows = _prompt_rows(server, plain, told=0)
    try:
        found = [
            float(row[str(index)]["logprob"]) for row, index in zip(rows, plain[1:], strict=True)
        ]
    except (KeyError, TypeError, ValueError):
        raise EngineError(f"{server.label} tells no log-probabilities of a prompt.") from None
    return np.array(found, dtype=np.float32)


def log_probabilities(server: Server, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the log-softmax after each id but the last, where a vLLM was started to tell it.

    About 100 bytes of JSON for each id of the vocabulary and each place: for small models.

    Raises:
        UnsupportedError: The server tells only a few alternatives.
    """
    import numpy as np

    plain = _scorable(ids)
    if len(plain) == 1:
        return np.zeros((0, 0), dtype=np.float32)
    try:
        rows = _prompt_rows(server, plain, told=-1)
    except InputError as error:
        if "logprobs" not in error.message:
            raise
        raise UnsupportedError(
            f"{server.label} tells only the likeliest log-probabilities.",
            hint="score(ids) works; for whole rows start vLLM with --max-logprobs=-1.",
        ) from None
    try:
        table = np.full((len(rows), len(rows[0])), -np.inf, dtype=np.float32)
        for place, row in enumerate(rows):
            for index, told in row.items():
                table[place, int(index)] = told["logprob"]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise EngineError(f"{server.label} tells no log-probabilities of a prompt.") from None
    return table


def _scorable(ids: Sequence[int]) -> list[int]:
    plain = [int(index) for index in ids]
    if not plain:
        raise InputError("There are no token ids to score.", hint="Give at least one.")
    return plain


def _prompt_rows(server: Server, ids: list[int], *, told: int) -> list[Any]:
    """Return what vLLM tells of each id but the first: ``told`` alternatives and the id itself."""
    body = {
        "model": server.model,
        "prompt": ids,
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": told,
    }
    found = server.http.json("POST", "/completions", body)
    try:
        rows = found["choices"][0]["prompt_logprobs"][1:]
    except (KeyError, IndexError, TypeError):
        raise EngineError(f"{server.label} tells no log-probabilities of a prompt.") from None
    return list(rows)


def embed(server: Server, texts: Sequence[str], normalize: bool) -> NDArray[np.float32]:
    """Return one vector a text; without ``normalize`` as the server gives them."""
    import numpy as np

    body: dict[str, Any] = {
        "model": server.model,
        "input": list(texts),
        "encoding_format": "float",
    }
    if server.flavour == "vllm":
        body["use_activation"] = normalize
    elif server.flavour == "llama-server":
        body["embd_normalize"] = 2 if normalize else -1
    found = server.http.json("POST", "/embeddings", body)
    rows = found.get("data") if isinstance(found, Mapping) else None
    try:
        placed = sorted(rows or (), key=lambda row: int(row.get("index", 0)))
        vectors = np.array([row["embedding"] for row in placed], dtype=np.float32)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise EngineError(f"{server.label} answered no vectors: {str(found)[:200]}") from None
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise EngineError(f"{server.label} answered {len(vectors)} vectors for {len(texts)} texts.")
    if not normalize:
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.where(lengths == 0, np.float32(1), lengths)
    return scaled


def rerank(server: Server, query: str, documents: Sequence[str]) -> NDArray[np.float32]:
    """Return the relevance of each document, in their order."""
    import numpy as np

    body = {"model": server.model, "query": query, "documents": list(documents)}
    found = server.http.json("POST", "/rerank", body)
    rows = found.get("results", found.get("data")) if isinstance(found, Mapping) else found
    scores = np.full(len(documents), np.nan, dtype=np.float32)
    try:
        for row in rows or ():
            value = row["relevance_score"] if "relevance_score" in row else row["score"]
            scores[int(row["index"])] = float(value)
    except (KeyError, IndexError, TypeError, ValueError):
        raise EngineError(f"{server.label} answered no scores: {str(found)[:200]}") from None
    if np.isnan(scores).any():
        raise UnsupportedError(f"{server.label} scored only a part of the documents.")
    return scores
