"""A vision model: images change what it says, and text turns stay what they are."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import SMALL, random_session, tokenizer

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import EngineError, InputError, UnsupportedError
from workbench.messages import Image, Message, Sampling

SIDE, PATCH = 28, 7
IMAGE_TOKENS = (SIDE // PATCH) ** 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASK = Sampling(max_tokens=8, ignore_end=True, top_logprobs=2)


def picture(seed: int) -> Image:
    from PIL import Image as pillow

    pixels = np.random.default_rng(seed).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    stream = io.BytesIO()
    pillow.fromarray(pixels).save(stream, "PNG")
    return Image.of(stream.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLaVA: a vision tower of two layers before a Llama of three."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    own = copy.deepcopy(tokenizer())
    own.add_special_tokens({"extra_special_tokens": ["<image>"]})
    own.chat_template = TEMPLATE
    image_id = own.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(**{**SMALL, "vocab_size": len(own)}),
        image_token_index=image_id,
        image_token_id=image_id,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    place = tmp_path_factory.mktemp("llava") / "llava"
    model.save_pretrained(str(place))
    LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=own,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(str(place))
    return place


@pytest.fixture
def seeing(folder: Path) -> Any:
    with wb.load(folder, engine="transformers", dtype="fp32", threads=1) as model:
        yield model


def turn(*images: Image) -> list[Message]:
    return [Message("user", "What is to be seen in this picture of the garden?", images=images)]


def test_an_image_changes_the_answer_and_counts_in_the_prompt(
    seeing: Model, shows: Callable[..., None]
) -> None:
    assert Power.IMAGES in seeing.powers
    plain, one, other = (
        seeing.ask(turn(*images), ASK) for images in ((), (picture(1),), (picture(2),))
    )
    assert len({reply.logprobs[0][0] for reply in (plain, one, other)}) == 3
    assert plain.usage is not None
    assert one.usage is not None
    assert one.usage.prompt_tokens == plain.usage.prompt_tokens + IMAGE_TOKENS
    assert one.usage.prompt_tokens == len(seeing.prompt_ids(turn(picture(1))))
    again = seeing.ask(turn(picture(1)), ASK)
    assert (again.token_ids, again.logprobs) == (one.token_ids, one.logprobs)
    shows(seeing, Power.IMAGES)


def test_answers_equal_those_of_generate(seeing: Model) -> None:
    import torch

    processor = seeing._session.processor
    from workbench.engines.transformers_images import opened

    content = [
        {"type": "image", "image": opened(picture(3))},
        {"type": "image", "image": opened(picture(4))},
        {"type": "text", "text": turn()[0].content},
    ]
    fed = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        whole = seeing.raw.generate(**fed, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    reply = seeing.ask(turn(picture(3), picture(4)), max_tokens=8, ignore_end=True)
    assert list(reply.token_ids) == whole[0, fed["input_ids"].shape[1] :].tolist()


def test_pictures_never_reuse_the_keys_of_others(seeing: Model) -> None:
    alone = {seed: seeing.ask(turn(picture(seed)), ASK).logprobs for seed in (5, 6)}
    text = seeing.ask(turn(), ASK).logprobs
    for seed in (6, 5, 5, 6):
        assert seeing.ask(turn(picture(seed)), ASK).logprobs == alone[seed]
        assert seeing._session.prefix.tokens == 0
        assert seeing.ask(turn(), ASK).logprobs[0][0] == pytest.approx(text[0][0], abs=1e-4)
        assert seeing._session.prefix.tokens > 16


def test_many_conversations_with_images_are_answered_one_by_one(seeing: Model) -> None:
    many = [turn(picture(7)), turn(), turn(picture(8))]
    singles = [seeing.ask(each, ASK).token_ids for each in many]
    assert [reply.token_ids for reply in seeing.ask_many(many, ASK)] == singles


def test_a_prompt_that_somebody_looks_at_meanwhile_changes_no_pictures(
    seeing: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = seeing.ask(turn(picture(1)), ASK)
    session = seeing._session
    original = session.prompt_ids_for

    def interrupted(*given: Any) -> list[int]:
        ids = original(*given)
        seeing.prompt_ids(turn(picture(2)))  # as a view of tokens in another thread does
        seeing.prompt_ids("And without a picture?")
        return ids

    monkeypatch.setattr(session, "prompt_ids_for", interrupted)
    found = seeing.ask(turn(picture(1)), ASK)
    assert found.token_ids == expected.token_ids
    assert found.logprobs[0][0] == pytest.approx(expected.logprobs[0][0], abs=1e-5)


def test_an_adapter_is_in_use_from_the_loading_on(
    seeing: Model, folder: Path, tmp_path: Path
) -> None:
    from test_transformers_adapters import write_adapter

    adapter = write_adapter(seeing.raw, tmp_path / "adapter", seed=1)
    base = seeing.ask(turn(picture(1)), ASK).logprobs[0][0]
    with wb.load(folder, engine="transformers", dtype="fp32", threads=1, adapter=adapter) as fresh:
        adapted = fresh.ask(turn(picture(1)), ASK).logprobs[0][0]
    seeing.use_adapter(adapter)
    assert adapted == pytest.approx(seeing.ask(turn(picture(1)), ASK).logprobs[0][0], abs=1e-4)
    assert abs(adapted - base) > 0.01


def test_code_beside_a_processor_is_refused_and_nobody_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    file = own / "processor_config.json"
    config = json.loads(file.read_text())
    named = {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}}
    file.write_text(json.dumps(config | named))
    (own / "own.py").write_text("raise SystemExit('it ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    with pytest.raises(EngineError, match="trust_remote_code"):
        wb.load(own, engine="transformers", dtype="fp32", threads=1)


def test_what_is_no_picture_is_refused(seeing: Model) -> None:
    broken = Image(b"\x89PNG broken")
    with pytest.raises(InputError, match="cannot be decoded"):
        seeing.ask(turn(broken), ASK)
    assert seeing.ask(turn(), ASK).text is not None


def test_models_that_do_not_see_refuse_images() -> None:
    assert Power.IMAGES not in random_session("llama").powers
    with (
        wb.load("tiny-chat", engine="transformers", dtype="fp32", threads=1) as model,
        pytest.raises(UnsupportedError, match="cannot see images"),
    ):
        model.ask(turn(picture(1)), ASK)
