"""A tiny random model that sees: as transformers loads it, as GGUF, and its projector (mmproj)."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from random_models import SMALL, tokenizer

from workbench.catalog import locate, resolve
from workbench.formats.child import run_child
from workbench.formats.converter import converter
from workbench.formats.gguf import convert

SIZE, PATCH, SCALE, GRID = 64, 16, 2, 2
"""Pixels of a tile and of a patch, patches merged along an edge, tiles along a picture's edge."""
POSITIONS = (SIZE // PATCH // SCALE) ** 2
"""Of one tile of a picture."""
IMAGE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"
QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PIXELS = 28
"""Along the edge of one position of Qwen2-VL."""
_TILES = tuple(f"<row_{at // GRID + 1}_col_{at % GRID + 1}>" for at in range(GRID * GRID))
_TOKENS = (IMAGE, "<end_of_utterance>", AROUND, WHOLE, "\n\n", *_TILES)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Seeing:
    """One random model of the Idefics3 kind (SmolVLM) in all its files.

    Attributes:
        source: Safetensors and processor, for transformers.
        language: Its language part as GGUF of 32 bits.
        projector: Its vision tower as GGUF of 32 bits.
    """

    source: Path
    language: Path
    projector: Path


def random_seeing(folder: Path) -> Seeing:
    """Return the model, written below the folder; the language part is as wide as others here."""
    save_seeing(folder / "seeing")
    return _converted(folder / "seeing")


def random_qwen(folder: Path) -> Seeing:
    """Return a random Qwen2-VL: its positions have two dimensions within a picture."""
    _save_qwen(folder / "qwen")
    return _converted(folder / "qwen")


def _converted(source: Path) -> Seeing:
    name = source.name
    language = source.with_name(f"{name}.gguf")
    convert(locate(resolve(source)), language, dtype="F32", name=name)
    projector = source.with_name(f"{name}-eye.gguf")
    given = {"root": str(converter().folder), "model": str(source), "out": str(projector)}
    run_child("random_projector", [json.dumps(given)], doing="Converting a random projector")
    return Seeing(source, language, projector)


def _save_qwen(source: Path) -> None:
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    words = copy.deepcopy(tokenizer())
    begin, end, pad, film = QWEN
    words.add_special_tokens({"extra_special_tokens": [*QWEN]})
    words.chat_template = TEMPLATE.replace(IMAGE, f"{begin}{pad}{end}")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    language = {**SMALL, "hidden_size": 64, "vocab_size": len(words), "rope_parameters": rope}
    vision = {
        "depth": 4, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2,
        "patch_size": PIXELS // 2, "spatial_merge_size": 2, "initializer_range": 0.2,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=language, vision_config=vision, tie_word_embeddings=False,
        image_token_id=words.convert_tokens_to_ids(pad),
        video_token_id=words.convert_tokens_to_ids(film),
        vision_start_token_id=words.convert_tokens_to_ids(begin),
        vision_end_token_id=words.convert_tokens_to_ids(end),
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).float().save_pretrained(source)
    words.save_pretrained(source)
    square = PIXELS * PIXELS
    Qwen2VLImageProcessorPil(min_pixels=8 * square, max_pixels=64 * square).save_pretrained(source)


def save_seeing(source: Path, **shape: Any) -> None:
    """Write the model for transformers; ``shape`` changes the settings of its language part."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    words = copy.deepcopy(tokenizer())
    words.add_special_tokens({"extra_special_tokens": list(_TOKENS)})
    words.chat_template = TEMPLATE
    own = {"vocab_size": len(words), "architectures": ["LlamaForCausalLM"]}
    language = {**SMALL, **own, **shape}
    vision = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": SIZE, "patch_size": PATCH,
        "initializer_range": 0.2,
    }  # fmt: skip
    config = Idefics3Config(
        text_config={"model_type": "llama", **language}, vision_config=vision,
        scale_factor=SCALE, image_token_id=words.convert_tokens_to_ids(IMAGE),
        pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(source)
    _processor(words).save_pretrained(source)


def _processor(words: Any) -> Any:
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    half = [0.5, 0.5, 0.5]
    eye = Idefics3ImageProcessorPil(
        image_mean=half, image_std=half,
        size={"longest_edge": GRID * SIZE}, max_image_size={"longest_edge": SIZE},
    )  # fmt: skip
    return Idefics3Processor(
        image_processor=eye, tokenizer=words, image_seq_len=POSITIONS, chat_template=TEMPLATE
    )


def main(arguments: list[str]) -> None:
    """Run the converter (child side)."""
    from workbench.formats.patches import import_converter

    given = json.loads(arguments[0])
    module = import_converter(Path(given["root"]))
    sys.argv = ["convert", given["model"], "--mmproj", "--outfile", given["out"]]
    sys.argv += ["--outtype", "f32", "--model-name", "eye"]
    module.main()
