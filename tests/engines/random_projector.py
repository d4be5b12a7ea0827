"""A tiny random vision tower as a projector (mmproj) in GGUF, by llama.cpp's own converter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from random_models import SMALL, tokenizer

from workbench.formats.child import run_child
from workbench.formats.converter import converter

SIZE, PATCH, SCALE = 64, 16, 2


def random_projector(folder: Path) -> Path:
    """Return a projector that fits the random llama of ``random_models``."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    torch.manual_seed(0)
    vision = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": SIZE, "patch_size": PATCH,
        "initializer_range": 0.2,
    }  # fmt: skip
    config = Idefics3Config(
        text_config={"model_type": "llama", **SMALL}, vision_config=vision,
        scale_factor=SCALE, image_token_id=2815, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    source = folder / "eye-source"
    Idefics3ForConditionalGeneration(config).float().save_pretrained(source)
    tokenizer().save_pretrained(source)
    half = [0.5, 0.5, 0.5]
    edge = {"longest_edge": SIZE}
    seen = {"image_mean": half, "image_std": half, "size": edge, "max_image_size": edge}
    kind = {"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": False}
    (source / "preprocessor_config.json").write_text(json.dumps({**seen, **kind}))
    given = {"root": str(converter().folder), "model": str(source), "out": str(folder / "eye.gguf")}
    run_child("random_projector", [json.dumps(given)], doing="Converting a random projector")
    return folder / "eye.gguf"


def main(arguments: list[str]) -> None:
    """Run the converter (child side)."""
    from workbench.formats.patches import import_converter

    given = json.loads(arguments[0])
    module = import_converter(Path(given["root"]))
    sys.argv = ["convert", given["model"], "--mmproj", "--outfile", given["out"]]
    sys.argv += ["--outtype", "f32", "--model-name", "eye"]
    module.main()
