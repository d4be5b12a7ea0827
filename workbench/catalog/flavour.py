"""How one kind of OpenAI-compatible server is asked, as ``configs/engines/openai.yaml`` tells."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from workbench.settings import Settings


class Flavour(Settings):
    """What one kind of OpenAI-compatible server can do, and how it wants to be asked."""

    url: str | None = None
    """Where it listens unless it is told otherwise."""
    owners: tuple[str, ...] = ()
    """What it calls the owner in its list of models; tells the kinds apart."""
    powers: tuple[str, ...] = ()
    """What its models can do, where the model itself allows it."""
    limit: str = "max_tokens"
    """Its name for the most new tokens."""
    settings: dict[str, str] = Field(default_factory=dict)
    """Names of the settings that OpenAI does not have: ours to its own. One that is not here is
    refused, unless it is at its neutral value."""
    all_candidates: int = 0
    """Its value of ``top_k`` that keeps all candidates."""
    with_penalty: dict[str, Any] = Field(default_factory=dict)
    """Sent beside a repetition penalty."""
    schema_form: Literal["json_schema", "json_object"] | None = None
    """How it takes a JSON schema."""
    grammar: Literal["grammar", "structured_outputs"] | None = None
    """How it takes a grammar."""
    think: Literal["chat_template_kwargs", "reasoning_effort"] | None = None
    """How it is told to think or not."""
    token_ids: str | None = None
    """The setting by which it tells the ids of what it sampled."""
    takes_ids: bool = False
    """Whether it completes token ids as well as text."""
    most_top_logprobs: int = 20
    """Most alternatives it tells with a token."""
    chat: dict[str, Any] = Field(default_factory=dict)
    """Sent with every chat; left out where an older server refuses it."""
    notes: str | None = None
    """What differs from other engines without a setting for it."""
