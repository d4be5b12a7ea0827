"""The cards that ship: what each says holds together, and the embedded one is as its files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from workbench.catalog import Card, catalog, locate, resolve
from workbench.catalog.card import DefaultSampling
from workbench.catalog.card_text import card_text
from workbench.messages import Sampling
from workbench.paths import shipped
from workbench.settings import parse_yaml

FILES = sorted(shipped("configs", "models").glob("*.yaml"))
CARDS = {path.stem: Card.read(path) for path in FILES}
WITH_FACTS = [card for card in CARDS.values() if card.remote is None]
JAPANESE = (
    "qwen2.5-7b-instruct", "qwen2.5-14b-instruct", "qwen2.5-32b-instruct",
    "qwen2.5-32b-instruct-awq", "qwq-32b", "qwen2.5-bakeneko-32b-instruct-awq", "calm3-22b-chat",
    "deepseek-r1-distill-qwen-32b-japanese",
    "elyza-japanese-llama-2-7b-instruct", "japanese-gpt2-small", "tiny-chat",
    "japanese-stablelm-3b-4e1t-instruct", "llama-3.1-swallow-8b-instruct-v0.3",
    "mistral-nemo-japanese-instruct-2408",
)  # fmt: skip


def test_all_models_have_a_card() -> None:
    assert len(FILES) == 87
    assert {card.id for card in catalog()} == set(CARDS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_card_is_named_and_begins_like_its_command(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    card = CARDS[path.stem]
    assert card.id == path.stem
    assert text.startswith(f'# wb.load("{card.id}")')
    stated = (card.display_name, card.family, card.languages, card.recommended_use, card.sources)
    assert all(stated)
    assert card.tasks or card.id == "japanese-gpt2-small"
    origins = [card.repository, card.path, card.remote, card.unverified_repository]
    assert sum(origin is not None for origin in origins) == 1
    if card.remote is None and card.path is None:
        assert all((card.source_level, card.parameter_check))
        assert all((card.architecture.classes, card.architecture.model_type))


@pytest.mark.parametrize("card", WITH_FACTS, ids=lambda card: card.id)
def test_the_cache_of_a_token_follows_from_the_heads(card: Card) -> None:
    facts = card.architecture
    assert facts.layers is not None
    caching = facts.kv_layers or len(facts.attention_layers or range(facts.layers))
    if facts.latent_attention is not None:
        latent = facts.latent_attention
        values = (latent.kv_lora_rank + latent.qk_rope_head_dim) * facts.layers
    elif card.tasks == ("embedding",) and facts.model_type == "bert":
        values = 0
    else:
        assert facts.kv_heads is not None
        assert facts.head_dim is not None
        values = 2 * facts.kv_heads * facts.head_dim * caching
    assert facts.kv_cache_bytes_per_token_16bit == 2 * values


@pytest.mark.parametrize("card", WITH_FACTS, ids=lambda card: card.id)
def test_the_parts_of_an_architecture_fit_the_whole(card: Card) -> None:
    facts = card.architecture
    assert facts.layers is not None
    if facts.parameters is not None:
        assert facts.active_parameters is not None
        assert facts.active_parameters <= facts.parameters
        assert (facts.active_parameters < facts.parameters) == (facts.experts is not None)
        assert (facts.input_embedding_parameters or 0) < facts.parameters
    if facts.tied_embeddings is not None:
        assert (facts.output_parameters == 0) == (
            facts.tied_embeddings or card.tasks == ("embedding",)
        )
    assert (facts.kv_heads or 1) <= (facts.attention_heads or 1)
    if facts.sliding_window is not None and facts.sliding_window.full_layers is not None:
        window = facts.sliding_window
        assert (window.sliding_layers or 0) + window.full_layers == facts.layers
    if facts.experts is not None:
        assert facts.experts.experts_per_token < facts.experts.experts
    assert all(0 <= layer < facts.layers for layer in facts.attention_layers or ())
    if facts.state_space is not None:
        space = facts.state_space
        assert space.inner_size == space.heads * space.head_dim
        taps = (space.conv_kernel - 1) * (space.inner_size + 2 * space.groups * space.state_size)
        assert space.layer_state_bytes_32bit == 4 * (space.state_size * space.inner_size + taps)
        assert facts.attention_layers


def test_layer_counts_that_only_a_pattern_states() -> None:
    def window(card_id: str) -> tuple[int | None, int | None]:
        found = CARDS[card_id].architecture.sliding_window
        assert found is not None
        return found.sliding_layers, found.full_layers

    assert window("gemma-2-9b-it") == (21, 21)
    assert window("gpt-oss-20b") == (12, 12)
    assert window("gpt-oss-120b") == (18, 18)
    assert window("gemma-3n-e4b-it") == (28, 7)
    assert window("gemma-3n-e2b-it") == (24, 6)
    assert window("phi-3-mini-4k-instruct") == (32, 0)
    assert CARDS["gemma-3n-e4b-it"].architecture.kv_layers == 20


def test_tasks_agree_with_what_a_model_has() -> None:
    for card in CARDS.values():
        if card.architecture.vision is not None:
            assert "vision" in card.tasks, card.id
        if card.thinking_sampling is not None:
            assert "reasoning" in card.tasks, card.id
        if {"embedding", "rerank"} & set(card.tasks):
            assert len(card.tasks) == 1, card.id
            assert card.template_family is None
            assert card.fallback is None or "rerank" in card.tasks, "vectors do not compare"
    assert "vision" in CARDS["gemma-3-4b-it"].tasks
    assert "vision" not in CARDS["gemma-3-1b-it"].tasks
    assert "code" in CARDS["qwen3-coder-30b-a3b-instruct"].tasks


def test_japanese_models_are_found_by_their_language() -> None:
    assert all("ja" in CARDS[name].languages for name in JAPANESE)


def test_fallbacks_exist_are_smaller_and_stay_local() -> None:
    shelf = catalog()
    for card in shelf:
        before = card
        for step in shelf.fallbacks(card):
            assert step.remote is None, "what is asked leaves the machine only by choice"
            sizes = before.architecture.parameters, step.architecture.parameters
            if sizes[0] and sizes[1]:
                assert sizes[1] <= sizes[0], (before.id, step.id)
            before = step
    assert [card.id for card in shelf.fallbacks("qwen2.5-32b-instruct")] == [
        "qwen2.5-14b-instruct",
        "qwen2.5-7b-instruct",
    ]


def test_an_unseen_repository_is_told_and_not_used() -> None:
    unseen = [card for card in CARDS.values() if card.unverified_repository]
    assert len(unseen) == 4
    assert all(card.repository is None and card.gguf is None for card in unseen)


def test_the_text_of_a_card_reads_back_as_the_card() -> None:
    for card in CARDS.values():
        assert Card.of(parse_yaml(card_text(card), source=card.id)) == card


def test_the_embedded_card_agrees_with_its_files() -> None:
    card = resolve("tiny-chat")
    files = locate(card)
    read = resolve(files.path)
    found = read.architecture.model_dump(exclude_none=True)
    stated = card.architecture.model_dump(exclude_none=True)
    assert {key: stated.get(key) for key in found} == found
    assert found.keys() >= {"layers", "hidden_size", "kv_heads", "head_dim", "vocab_size"}
    assert (card.context_length, card.dtype) == (read.context_length, read.dtype)
    with files.weights[0].open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    assert sum(math.prod(t["shape"]) for t in header.values()) == card.architecture.parameters


def test_recommended_sampling_is_there_to_be_handed_over_and_greedy_where_none_is_known() -> None:
    qwen = CARDS["qwen3-8b"]
    plain, thinking = qwen.recommended_sampling(), qwen.recommended_sampling(thinking=True)
    assert (plain.temperature, plain.top_p, plain.top_k) == (0.7, 0.8, 20)
    assert (thinking.temperature, thinking.top_p, thinking.top_k) == (0.6, 0.95, 20)
    assert Card(id="bare").recommended_sampling(thinking=True) == Sampling()
    cuts = Card(id="cuts", sampling=DefaultSampling(top_p=0.9)).recommended_sampling()
    assert (cuts.temperature, cuts.top_p) == (1.0, 0.9), "cuts mean nothing for greedy decoding"
    greedy = Card(id="greedy", sampling=DefaultSampling(temperature=0, max_tokens=9))
    assert greedy.recommended_sampling() == Sampling(max_tokens=9)
    assert all(card.recommended_sampling(thinking=True).max_tokens > 0 for card in CARDS.values())
