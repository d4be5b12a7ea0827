"""Embedding models and rerankers: equal to the plain computation, nothing cut off silently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import SMALL, random_model, tiny_chat, tokenizer

import workbench as wb
from workbench.catalog import Card
from workbench.engines import transformers_vectors
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import ContextLengthError, FormatError, InputError, UnsupportedError
from workbench.planning import Plan

TEXTS = [
    "The cat sleeps in the garden.",
    "猫は庭で眠っています。",
    "A",
    "One day, a quiet dog found a red ball in the old garden, and it was very happy there. " * 2,
    "What is 3 + 4?",
]
BERT: dict[str, Any] = {
    "vocab_size": 2816,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


def paired() -> Any:
    """The embedded model's tokenizer with marks around one text or two, as BERT wants."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(tiny_chat() / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        pair="<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def write(folder: Path, model: Any, own: Any) -> Path:
    model.save_pretrained(str(folder))
    own.save_pretrained(str(folder))
    return folder


def write_sentence_files(folder: Path, pooling: dict[str, Any], *more: str, **extra: Any) -> None:
    names = ["Transformer", "Pooling", *more]
    paths = ["", *[f"{at}_{name}" for at, name in enumerate(names) if at]]
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{name}"}
        for at, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, content in extra.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**BERT)).eval()
    return write(tmp_path_factory.mktemp("bert") / "bert", model, paired()), model


def opened(folder: Path, **settings: Any) -> Model:
    return wb.load(folder, engine="transformers", dtype="fp32", threads=1, **settings)


def states(model: Any, text: str, own: Any) -> np.ndarray[Any, Any]:
    """The last hidden states of one text, computed alone and without padding."""
    import torch

    with torch.inference_mode():
        return model(**own(text, return_tensors="pt")).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("pooling", "by_hand"),
    [
        ({"pooling_mode_cls_token": True}, lambda found: found[0]),
        ({"pooling_mode_mean_tokens": True}, lambda found: found.mean(0)),
        ({"pooling_mode_max_tokens": True}, lambda found: found.max(0)),
        ({"pooling_mode_lasttoken": True}, lambda found: found[-1]),
        ({"pooling_mode": "mean"}, lambda found: found.mean(0)),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            lambda found: np.concatenate([found[0], found.mean(0)]),
        ),
        (None, lambda found: found.mean(0)),
    ],
)
def test_vectors_are_pooled_by_the_models_own_files(
    bert: tuple[Path, Any],
    tmp_path: Path,
    pooling: dict[str, Any] | None,
    by_hand: Any,
    shows: Callable[..., None],
) -> None:
    _, plain = bert
    folder = write(tmp_path / "own", plain, paired())
    if pooling is not None:
        write_sentence_files(folder, pooling)
    expected = np.stack([by_hand(states(plain, text, paired())) for text in TEXTS])
    with opened(folder) as model:
        assert model.powers == {Power.EMBED, Power.TOKENIZE}
        found = model.embed(TEXTS, normalize=False)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-5)
        shows(model, Power.EMBED)
        np.testing.assert_allclose(
            model.embed(TEXTS[0])[0], found[0] / np.linalg.norm(found[0]), atol=1e-5
        )
        with pytest.raises(UnsupportedError, match="does not chat"):
            model.ask("Hello?")


def test_dense_layers_prompts_and_normalization_are_the_models_own(
    bert: tuple[Path, Any], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    _, plain = bert
    folder = write(tmp_path / "own", plain, paired())
    write_sentence_files(
        folder,
        {"pooling_mode_mean_tokens": True},
        "Dense",
        "Normalize",
        config_sentence_transformers={
            "prompts": {"query": "search: ", "document": ""},
            "default_prompt_name": "query",
        },
        sentence_bert_config={"max_seq_length": 50, "do_lower_case": True},
    )
    weight, bias = torch.randn(10, 48), torch.randn(10)
    dense = folder / "2_Dense"
    dense.mkdir()
    save_file({"linear.weight": weight, "linear.bias": bias}, dense / "model.safetensors")
    (dense / "config.json").write_text(
        json.dumps({"activation_function": "torch.nn.modules.activation.Tanh"})
    )
    mean = states(plain, "search: the cat sleeps.", paired()).mean(0)
    expected = np.tanh(mean @ weight.numpy().T + bias.numpy())
    with opened(folder) as model:
        found = model.embed("The Cat sleeps.", normalize=False)
        np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=2e-5)
        with pytest.raises(ContextLengthError, match="takes 50"):
            model.embed(["short", "word " * 80])


def test_a_decoder_embeds_with_its_last_token(tmp_path: Path) -> None:
    import torch

    plain, own = random_model("qwen3"), paired()
    own.model_input_names = ["input_ids", "attention_mask"]
    folder = write(tmp_path / "Qwen3-Embedding", plain, own)
    write_sentence_files(folder, {"pooling_mode_lasttoken": True}, "Normalize")
    with opened(folder) as model:
        found = model.embed(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = own(text, return_tensors="pt")["input_ids"]
        assert ids[0, -1] == 2  # the end token that the tokenizer appends
        with torch.inference_mode():
            last = plain.model(input_ids=ids).last_hidden_state[0, -1].numpy()
        np.testing.assert_allclose(vector, last / np.linalg.norm(last), atol=2e-5)


def test_many_texts_of_all_lengths_keep_their_order(bert: tuple[Path, Any]) -> None:
    folder, _ = bert
    many = [f"{'the cat and ' * (number * 7 % 11)}number {number}" for number in range(40)]
    with opened(folder) as model:
        whole = model.embed(many)
        single = np.concatenate([model.embed(text) for text in many])
    np.testing.assert_allclose(whole, single, atol=2e-5)


def test_memory_that_runs_out_makes_batches_smaller(
    bert: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = bert
    with opened(folder) as model:
        expected = model.embed(TEXTS)
        forward, sizes = type(model._session)._forward, []

        def small_only(self: Any, feed: Any) -> Any:
            sizes.append(len(feed["input_ids"]))
            if sizes[-1] > 1:
                raise MemoryError
            return forward(self, feed)

        monkeypatch.setattr(transformers_vectors.EmbeddingSession, "_forward", small_only)
        np.testing.assert_allclose(model.embed(TEXTS), expected, atol=2e-5)
        assert sizes[0] == 5
        assert sizes.count(1) == 5


def test_an_adapter_is_refused_and_not_ignored(bert: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UnsupportedError, match="takes no adapter"):
        wb.load(bert[0], engine="transformers", dtype="fp32", threads=1, adapter=tmp_path)


def test_unknown_layers_and_paths_outside_are_refused(
    bert: tuple[Path, Any], tmp_path: Path
) -> None:
    _, plain = bert
    folder = write(tmp_path / "own", plain, paired())
    write_sentence_files(folder, {"pooling_mode_cls_token": True}, "Surprise")
    with pytest.raises(UnsupportedError, match="Surprise"):
        opened(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[2] |= {"type": "x.Dense", "path": "../../elsewhere"}
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(FormatError, match="outside the model's folder"):
        opened(folder)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_classification_head_reranks(
    tmp_path: Path, labels: int, shows: Callable[..., None]
) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    plain = BertForSequenceClassification(BertConfig(**BERT, num_labels=labels)).eval()
    torch.nn.init.normal_(plain.classifier.weight, std=0.5)
    folder = write(tmp_path / "reranker", plain, paired())
    query = "Where does the cat sleep?"
    with opened(folder) as model:
        assert model.powers == {Power.RERANK, Power.TOKENIZE}
        found = model.rerank(query, TEXTS)
        shows(model, Power.RERANK)
        with pytest.raises(ContextLengthError, match="Document 1 has"):
            model.rerank(query, ["short", "word " * 200])
        with pytest.raises(InputError, match="no text"):
            model.rerank(query, [])
    for text, score in zip(TEXTS, found, strict=True):
        with torch.inference_mode():
            logits = plain(**paired()(query, text, return_tensors="pt")).logits[0]
        expected = logits.sigmoid()[0] if labels == 1 else logits.softmax(-1)[1]
        assert score == pytest.approx(float(expected), abs=1e-5)
    assert found.dtype == np.float32
    assert len(set(np.round(found, 4))) > 1


def test_a_causal_reranker_answers_yes_or_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    plain, own = random_model("qwen3"), tokenizer()
    words = list(range(300, 400))[:2]
    folder = write(tmp_path / "judge", plain, own)
    card = Card.of({"id": "judge", "path": str(folder), "tasks": ["rerank"]})
    monkeypatch.setattr(
        transformers_vectors.JudgingSession,
        "_one",
        lambda self, word: words[("no", "yes").index(word)],
    )
    query = "Where does the cat sleep?"
    with wb.load(card, engine="transformers", quantization="none", dtype="fp32") as model:
        assert model.powers == {Power.RERANK, Power.TOKENIZE}
        found = model.rerank(query, TEXTS)
    for text, score in zip(TEXTS, found, strict=True):
        prompt = transformers_vectors._JUDGE.format(
            instruction=transformers_vectors.INSTRUCTION, query=query, document=text
        )
        ids = torch.tensor([own(prompt)["input_ids"]])
        with torch.inference_mode():
            logits = plain(input_ids=ids).logits[0, -1, words]
        assert score == pytest.approx(float(logits.softmax(-1)[1]), abs=1e-5)


def test_a_vocabulary_without_yes_and_no_is_no_judge() -> None:
    model = random_model("qwen3")
    plan = Plan(
        card=Card(id="chatty"), engine="transformers", context=SMALL["max_position_embeddings"]
    )
    session = transformers_vectors.JudgingSession.__new__(transformers_vectors.JudgingSession)
    transformers_vectors.RerankingSession.__init__(session, model, tokenizer(), plan)
    with pytest.raises(UnsupportedError, match="is 6 tokens of its"):
        session._one("yesnoyes")
