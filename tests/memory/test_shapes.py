"""The tensors of a model: against stated parameters, transformers, files, and for unknown ones."""

from collections import Counter
from pathlib import Path

import oracle_quantize
import oracle_transformers
import pytest

from workbench.catalog import Card, catalog, resolve
from workbench.catalog.architecture import Architecture, Experts
from workbench.catalog.header import read_header
from workbench.catalog.shapes import (
    FAMILIES,
    known_or_guessed,
    shapes,
    shapes_by_facts,
    shapes_of_header,
)
from workbench.errors import UnsupportedError
from workbench.memory.gguf_mix import mixed

NOT_SOURCED = {"gemma-3n-e2b-it"}  # its feed-forward width
MIXTRAL = Architecture(
    model_type="mixtral", layers=32, hidden_size=4096, intermediate_size=14336, attention_heads=32,
    kv_heads=8, head_dim=128, vocab_size=32000, tied_embeddings=False, output_parameters=131072000,
    experts=Experts(experts=8, experts_per_token=2, intermediate_size=14336),
)  # fmt: skip


def cards() -> list[Card]:
    return [card for card in catalog() if card.architecture.model_type]


def one_of_each_family() -> dict[str, Architecture]:
    """Return an architecture for each kind of tensor list in the catalog, and Mixtral."""
    found = {"mixtral": MIXTRAL}
    for card in cards():
        facts = card.architecture
        kind = f"{facts.model_type}{'-moe' * bool(facts.experts)}{'-ssm' * bool(facts.state_space)}"
        if card.id not in NOT_SOURCED:
            found.setdefault(kind, facts)
    return found


def shortened(facts: Architecture, layers: int = 3) -> Architecture:
    """Return the same architecture with a few layers, of a hybrid one attending."""
    attends = (1,) if facts.attention_layers else None
    changes = {"layers": layers, "attention_layers": attends, "parameters": None, "kv_layers": None}
    return facts.model_copy(update=changes)


def test_every_card_adds_up_to_its_stated_parameters():
    wrong = {}
    for card in cards():
        if card.id in NOT_SOURCED:
            continue
        found = shapes(card.architecture)
        if not found.exact or found.source != "architecture":
            wrong[card.id] = found.notes
    assert wrong == {}
    assert len(cards()) > 80


def test_what_the_stated_count_leaves_out_is_said():
    found = shapes(catalog()["gemma-3n-e4b-it"].architecture)
    assert found.parameters() - 6_866_692_848 == 15 * 256
    assert "key norms" in found.notes[-1]


@pytest.mark.parametrize("kind", [k for k in one_of_each_family() if not k.startswith("tiny")])
def test_a_family_has_the_tensors_that_transformers_makes(kind: str):
    pytest.importorskip("bitsandbytes")
    facts = shortened(one_of_each_family()[kind])
    model = oracle_transformers.build(facts)
    found = shapes(facts)
    buffers = sum(shape.count for shape in found if shape.role == "exp_probs_b")
    assert found.parameters() - buffers == oracle_transformers.count(model)
    matrices, parameters = oracle_transformers.four_bit(model)
    linear = [shape for shape in found if shape.kind == "linear"]
    assert sum(shape.count for shape in linear) == parameters
    assert matrices > 0


def test_an_unknown_family_is_refused_and_the_nearest_named():
    with pytest.raises(UnsupportedError, match=r"'qwen33'.*Did you mean"):
        shapes(Architecture(model_type="qwen33", layers=2, hidden_size=64))
    assert "qwen3" in FAMILIES


def test_a_missing_size_is_named():
    with pytest.raises(UnsupportedError, match="intermediate_size"):
        shapes(catalog()["gemma-3n-e2b-it"].architecture)


@pytest.mark.parametrize("card", ["qwen2.5-7b-instruct", "gemma-3-12b-it", "phi-4"])
def test_a_guess_by_sizes_comes_near_and_says_that_it_guesses(card: str):
    facts = catalog()[card].architecture.changed(model_type="new_thing")
    guessed, known = known_or_guessed(facts), shapes(catalog()[card].architecture)
    assert not guessed.exact
    assert "guessed" in guessed.notes[0]
    assert guessed.parameters() == known.parameters() == facts.parameters
    for kind in ("Q4_K_M", "Q2_K"):
        sizes = [oracle_quantize.total(mixed(each, kind)) for each in (guessed, known)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.06)


def test_a_guess_without_parameters_is_llamas():
    facts = catalog()["llama-3.1-8b-instruct"].architecture
    unknown = facts.model_copy(update={"model_type": "new_thing", "parameters": None})
    assert shapes_by_facts(unknown).parameters() == facts.parameters


def test_a_guess_that_cannot_be_is_refused():
    facts = catalog()["llama-3.1-8b-instruct"].architecture
    with pytest.raises(UnsupportedError, match="hold more than its 1,000"):
        shapes_by_facts(facts.model_copy(update={"model_type": "x", "parameters": 1000}))


def test_a_folder_tells_its_tensors():
    found = shapes_of_header(read_header(resolve("tiny-chat").expanded_path() or Path()))
    assert found.parameters() == 4_655_872
    assert found.source == "header"
    assert found.tied


@pytest.mark.parametrize("card", ["kimi-k2-instruct", "gemma-3n-e4b-it", "granite-4.0-h-tiny"])
def test_a_gguf_file_tells_its_tensors(card: str, tmp_path: Path):
    facts = catalog()[card].architecture
    mix = mixed(shapes(facts), "F16")
    path = oracle_quantize.write_sparse(tmp_path / "model.gguf", facts, mix)
    found = shapes_of_header(read_header(path))
    want = Counter((s.role, s.layer, s.shape, s.kind == "expert", s.kind == "bias") for s, _ in mix)
    got = Counter((s.role, s.layer, s.shape, s.kind == "expert", s.kind == "bias") for s in found)
    assert got == want
    assert {s.name: kind for s, kind in mixed(found, "Q4_K_M")} == {
        s.name: kind for s, kind in mixed(shapes(facts), "Q4_K_M")
    }


def test_safetensors_of_an_unknown_family_are_read_by_name(tmp_path: Path):
    torch = pytest.importorskip("torch")
    import json

    from safetensors.torch import save_file

    tensors = {
        "model.embed_tokens.weight": (100, 64),
        "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "model.layers.0.self_attn.q_proj.bias": (64,),
        "model.layers.0.mlp.experts.0.w1.weight": (32, 64),
        "model.layers.0.mlp.experts.1.w1.weight": (32, 64),
        "model.layers.0.mlp.gate.weight": (2, 64),
        "model.layers.0.input_layernorm.weight": (64,),
        "vision_tower.layers.0.attn.weight": (8, 8),
        "lm_head.weight": (100, 64),
    }
    values = {n: torch.full(s, float(len(n))) for n, s in tensors.items()}
    save_file(values, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new_thing"}))
    found = shapes_of_header(read_header(tmp_path))
    assert {(s.role, s.layer, s.shape, s.kind, s.part) for s in found} == {
        ("token_embd", None, (100, 64), "embedding", "text"),
        ("attn_q", 0, (64, 64), "linear", "text"),
        ("attn_q", 0, (64,), "bias", "text"),
        ("ffn_gate_exps", 0, (2, 32, 64), "expert", "text"),
        ("ffn_gate_inp", 0, (2, 64), "other", "text"),
        ("input_layernorm", 0, (64,), "norm", "text"),
        ("attn", 0, (8, 8), "linear", "vision"),
        ("output", None, (100, 64), "output", "text"),
    }
