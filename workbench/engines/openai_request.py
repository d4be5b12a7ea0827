"""Write a request in the words of an OpenAI-compatible server; nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workbench.catalog.flavour import Flavour
from workbench.errors import UnsupportedError
from workbench.messages import Message, Sampling

_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_end": False}
_RANDOM_SEED = 2**32 - 1
"""With this seed, also written -1, servers draw a seed of their own."""


def chat_body(
    server: str,
    facts: Flavour,
    *,
    model: str,
    messages: Sequence[Message],
    sampling: Sampling,
) -> dict[str, Any]:
    """Return the body of a streamed chat completion.

    Raises:
        UnsupportedError: The server has no such setting.
    """
    body = {
        "model": model,
        "messages": [message.as_dict() for message in messages],
        **facts.chat,
        **_common(server, facts, sampling),
    }
    body[facts.limit] = sampling.max_tokens
    if sampling.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if sampling.tools:
        body["tools"] = [dict(tool) for tool in sampling.tools]
    body |= _thinking(server, facts, sampling.think)
    return body


def completion_body(
    server: str,
    facts: Flavour,
    *,
    model: str,
    prompt: str | Sequence[int],
    sampling: Sampling,
) -> dict[str, Any]:
    """Return the body of a streamed completion of a raw prompt.

    Raises:
        UnsupportedError: The server has no such setting, or takes no token ids.
    """
    if not isinstance(prompt, str) and not facts.takes_ids:
        raise UnsupportedError(
            f"{server} completes text, not token ids.", hint="Give the prompt as text."
        )
    if sampling.tools or sampling.think is not None:
        name = "tools" if sampling.tools else "think"
        raise UnsupportedError(f"A raw prompt has no {name}.", hint="Ask with messages instead.")
    body = {
        "model": model,
        "prompt": prompt if isinstance(prompt, str) else [int(index) for index in prompt],
        "max_tokens": sampling.max_tokens,
        **_common(server, facts, sampling),
    }
    if sampling.top_logprobs:
        body["logprobs"] = sampling.top_logprobs
    return body


def _common(server: str, facts: Flavour, sampling: Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed % _RANDOM_SEED
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_logprobs > facts.most_top_logprobs:
        raise UnsupportedError(
            f"{server} tells at most {facts.most_top_logprobs} alternatives with a token, "
            f"not top_logprobs={sampling.top_logprobs}."
        )
    body |= dict(_further(server, facts, sampling))
    body |= _constraint(server, facts, sampling)
    if facts.token_ids is not None:
        body[facts.token_ids] = True
    return body


def _further(server: str, facts: Flavour, sampling: Sampling) -> Iterator[tuple[str, Any]]:
    """Yield the settings that OpenAI does not have.

    Neutral values are sent too: servers have defaults of their own, which change even greedy text.
    """
    for name, neutral in _NEUTRAL.items():
        value = getattr(sampling, name)
        if name in facts.settings:
            off = name == "top_k" and value == 0
            yield facts.settings[name], facts.all_candidates if off else value
        elif value != neutral:
            raise UnsupportedError(
                f"{server} has no setting {name}; it would ignore {name}={value!r}.",
                hint=f"Leave it at {neutral!r}, or pass what the server knows by extra=.",
            )
    if sampling.repetition_penalty != 1:
        yield from facts.with_penalty.items()


def _constraint(server: str, facts: Flavour, sampling: Sampling) -> dict[str, Any]:
    if sampling.schema is not None:
        schema = dict(sampling.schema)
        if facts.schema_form is None:
            raise UnsupportedError(f"{server} takes no JSON schema.")
        if facts.schema_form == "json_object":
            return {"response_format": {"type": "json_object", "schema": schema}}
        named = {"name": "reply", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if sampling.grammar is None:
        return {}
    if facts.grammar is None:
        raise UnsupportedError(f"{server} takes no grammar.")
    if facts.grammar == "structured_outputs":
        return {"structured_outputs": {"grammar": sampling.grammar}}
    return {facts.grammar: sampling.grammar}


def _thinking(server: str, facts: Flavour, think: bool | None) -> Mapping[str, Any]:
    if think is None:
        return {}
    if facts.think == "chat_template_kwargs":
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if facts.think == "reasoning_effort":
        return {"reasoning_effort": "medium" if think else "none"}
    raise UnsupportedError(
        f"{server} has no setting think; it would ignore think={think}.",
        hint="Leave it out, or pass what the server knows by extra=.",
    )
