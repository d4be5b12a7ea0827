"""Tiny random models that embed and rerank, as folders and as GGUF files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.formats.child import run_child
from workbench.formats.converter import converter

_WORDS = "a b c d e the cat dog sat on mat is red blue house garden one two three water".split()  # noqa: SIM905
SETTINGS: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


def save_bert(folder: Path, *, pooling: str = "mean", **shape: int) -> Any:
    """Write a random BERT with a WordPiece tokenizer and return the model and its tokenizer.

    Args:
        folder: Where to.
        pooling: How the folder says that vectors are pooled.
        shape: Settings that are not those of ``SETTINGS``.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*special, *dict.fromkeys([*letters, *_WORDS]), *(f"##{each}" for each in letters)]
    words += [f"[unused{number}]" for number in range(128 - len(words))]
    ids = {word: index for index, word in enumerate(words)}
    plain = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    plain.normalizer, plain.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    plain.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    tokenizer = BertTokenizerFast(tokenizer_object=plain, vocab=ids)
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(words), **{**SETTINGS, **shape})).float().eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({f"pooling_mode_{pooling}_token{'s' * (pooling == 'mean')}": True})
    )
    return model, tokenizer


def save_reranker(folder: Path, **shape: int) -> Any:
    """Write a random RoBERTa that judges pairs, with the embedded tokenizer; return the model."""
    import torch
    from random_models import VOCABULARY, tokenizer
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    more = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1}
    config = RobertaConfig(
        vocab_size=VOCABULARY, type_vocab_size=1,
        **{**SETTINGS, **more, "max_position_embeddings": 131, **shape},
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).float().eval()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def bert_gguf(
    folder: Path, out: Path, *, pre_tokenizer: str = "jina-v2-en", more: Sequence[str] = ()
) -> Path:
    """Convert such a folder by llama.cpp's own converter."""
    given = {
        "root": str(converter().folder), "model": str(folder), "out": str(out),
        "pre": pre_tokenizer,
        "more": list(more),
    }  # fmt: skip
    run_child("random_bert", [json.dumps(given)], doing="Converting a random BERT")
    return out


def main(arguments: list[str]) -> None:
    """Run the converter (child side)."""
    import sys

    from workbench.formats.patches import Patches, import_converter

    given = json.loads(arguments[0])
    module = import_converter(Path(given["root"]))
    patches = Patches(module, byte_level=False)
    patches.pre_tokenizer = given["pre"]
    sys.argv = ["convert", given["model"], "--outfile", given["out"], "--outtype", "f32"]
    sys.argv += given["more"]
    module.main()
