"""Images in llama.cpp, with a random model that sees: read and placed as transformers does."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import open_model
from random_projector import (
    AROUND,
    GRID,
    IMAGE,
    PIXELS,
    POSITIONS,
    QWEN,
    SIZE,
    Seeing,
    random_qwen,
    random_seeing,
)

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import (
    ContextLengthError,
    EngineError,
    InputError,
    NotFoundError,
    UnsupportedError,
)
from workbench.messages import Reply

pytestmark = pytest.mark.slow
TILES = GRID * GRID + 1
"""Of a square picture: its parts, and the picture as a whole."""
OTHER = AROUND.replace("image", "thing")  # as long, so that the file stays whole
GAP, CLOSE = 0.05, 0.01
"""Natural log. llama.cpp's towers round some steps to 16 bits; the reference may do so too."""


def picture(*, red: int, kind: str = "PNG") -> bytes:
    from PIL import Image

    image = Image.new("RGB", (64, 64), (red, 40, 80))
    image.paste((0, 200, red), (8, 8, 40, 30))
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def noise(seed: int, width: int, height: int) -> bytes:
    """Return a picture of which no two parts are alike."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def asked(*images: bytes, text: str = "What is this?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text, "images": list(images)}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        return random_seeing(tmp_path_factory.mktemp("eyes"))


@pytest.fixture(scope="module")
def seeing(files: Seeing) -> Iterator[Model]:
    with wb.load(files.language, threads=1, context=512, projector=str(files.projector)) as model:
        yield model


SHORT: dict[str, Any] = {"max_tokens": 12, "ignore_end": True}


def test_a_reply_follows_the_picture(
    files: Seeing, seeing: Model, shows: Callable[..., None]
) -> None:
    reds = (5, 90, 250)
    blind = seeing.ask("What is this?", **SHORT).token_ids
    seen = {red: seeing.ask(asked(picture(red=red)), **SHORT) for red in reds}
    assert len({reply.token_ids for reply in seen.values()} | {blind}) == 4
    shows(seeing, Power.IMAGES)
    again = seeing.ask(asked(picture(red=5)), **SHORT)
    assert again.token_ids == seen[5].token_ids  # whatever was seen between
    ids = seeing.prompt_ids(asked(picture(red=5)))
    assert again.usage is not None
    assert again.usage.prompt_tokens == len(ids)
    assert ids.count(0) == TILES * POSITIONS
    assert seeing.ask("What is this?", **SHORT).token_ids == blind

    first = asked(picture(red=5))
    other = seeing.ask(asked(picture(red=5), text="Who is this?"), **SHORT)
    assert other.token_ids != seen[5].token_ids  # the text behind the picture counts
    both = asked(picture(red=5), picture(red=250))
    swapped = asked(picture(red=250), picture(red=5))
    assert seeing.prompt_ids(both) == seeing.prompt_ids(swapped)
    assert seeing.ask(both, **SHORT).token_ids != seeing.ask(swapped, **SHORT).token_ids

    turns = two_turns(picture(red=5), seen[5].text)
    later = seeing.ask(turns, **SHORT).token_ids
    turns[0] = asked(picture(red=250))[0]
    assert seeing.ask(turns, **SHORT).token_ids != later  # an old picture still counts
    hot = {**SHORT, "temperature": 1.0, "seed": 4, "top_logprobs": 2}
    one, two = (seeing.ask(first, **hot) for _ in range(2))
    assert one.token_ids == two.token_ids
    assert len(one.logprobs) == 12

    settings: dict[str, Any] = {"threads": 1, "context": 512, "projector": str(files.projector)}
    with wb.load(files.language, isolate=True, **settings) as there:
        assert there.prompt_ids(first) == ids
        for red in reds:
            assert there.ask(asked(picture(red=red)), **SHORT).token_ids == seen[red].token_ids
        assert there.ask(both, **SHORT).token_ids == seeing.ask(both, **SHORT).token_ids
        shows(there, Power.IMAGES)


def two_turns(image: bytes, answer: str) -> list[dict[str, Any]]:
    said = {"role": "assistant", "content": answer}
    return [*asked(image), said, {"role": "user", "content": "And?\n\nTell me."}]


def test_prompts_and_replies_are_those_of_transformers(files: Seeing, seeing: Model) -> None:
    """Greedy replies by the logit-gap rule, and then the candidates' probabilities themselves."""
    conversations = [
        asked(picture(red=5)),  # made larger
        asked(noise(1, GRID * SIZE, GRID * SIZE)),  # its tiles are the picture's own pixels
        asked(noise(2, GRID * SIZE, SIZE), text="And\n\nthis?"),  # one row of tiles
        asked(noise(3, SIZE, GRID * SIZE)),  # one column
        asked(noise(4, 300, 150), noise(5, 90, 120), text="Which?"),  # made smaller and larger
        two_turns(noise(6, GRID * SIZE, GRID * SIZE), "A cat."),
    ]
    with wb.load(files.source, engine="transformers", dtype="fp32", threads=1) as reference:
        (image,) = reference.tokenize(IMAGE)
        for each in conversations:
            wanted = [0 if token == image else token for token in reference.prompt_ids(each)]
            assert seeing.prompt_ids(each) == wanted
        close = {**SHORT, "top_logprobs": 8}
        found = [seeing.ask(each, **close) for each in conversations]
        for each, reply in zip(conversations, found, strict=True):
            shared_length(reference.ask(each, **close), reply, gap=GAP)
        round_as_llama_cpp(reference.raw.model.vision_model)
        for each, reply in zip(conversations, found, strict=True):
            expected = reference.ask(each, **close)
            count = shared_length(expected, reply, gap=CLOSE)
            assert count >= 4
            assert difference(expected, reply, count) < CLOSE


def shared_length(expected: Reply, found: Reply, *, gap: float) -> int:
    """Return how many tokens agree; where they part the reference must have been in doubt."""
    pairs = zip(expected.token_ids, found.token_ids, strict=True)
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
    if place is None:
        return len(expected.token_ids)
    top = {each.token_id: each.logprob for each in expected.logprobs[place][1]}
    best, chosen = max(top.values()), top.get(found.token_ids[place])
    assert chosen is not None, (place, expected.token_ids, found.token_ids)
    assert best - chosen < gap, (place, best, chosen)
    return place


def difference(expected: Reply, found: Reply, count: int) -> float:
    """Return the largest difference of what both say of a candidate, natural log."""
    largest = 0.0
    for (_, one), (_, other) in zip(expected.logprobs[:count], found.logprobs, strict=False):
        known = {each.token_id: each.logprob for each in other}
        both = [abs(each.logprob - known[each.token_id]) for each in one if each.token_id in known]
        assert len(both) >= len(one) - 1
        largest = max(largest, *both)
    return largest


def round_as_llama_cpp(tower: Any) -> None:
    """Let a vision tower of torch round where ggml does: patches before the first sum, and GELU."""
    import torch

    class Rounded(torch.nn.Module):
        def forward(self, values: Any) -> Any:
            found = torch.nn.functional.gelu(values.half().float(), approximate="tanh")
            return found.half().float()

    for layer in tower.encoder.layers:
        layer.mlp.activation_fn = Rounded()
    first = tower.embeddings.patch_embedding
    first.weight.data = first.weight.data.half().float()
    first.register_forward_pre_hook(lambda _, given: (given[0].half().float(),))


def test_positions_in_two_dimensions_are_those_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2-VL: what follows a picture stands behind its longer edge, not behind all its tokens."""
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    files = random_qwen(tmp_path)
    source = str(files.source)
    plain = Qwen2VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    pad = AutoTokenizer.from_pretrained(source).convert_tokens_to_ids(QWEN[2])
    eye = Qwen2VLImageProcessorPil.from_pretrained(source)
    with wb.load(files.language, threads=1, context=512, projector=str(files.projector)) as model:
        for seed, (wide, high) in enumerate(((4, 3), (3, 5))):
            data = noise(seed, wide * PIXELS, high * PIXELS)
            ids = model.prompt_ids(asked(data))
            assert ids.count(0) == wide * high
            found = model.ask(asked(data), **SHORT, top_logprobs=1)
            seen = eye(images=[Image.open(io.BytesIO(data))], return_tensors="pt")
            fed = torch.tensor([[token or pad for token in ids] + list(found.token_ids)])
            with torch.inference_mode():
                logits = plain(input_ids=fed, mm_token_type_ids=(fed == pad).int(), **seen).logits
            rows = torch.log_softmax(logits[0, len(ids) - 1 : -1], -1)
            chosen = rows.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
            assert (rows.max(-1).values - chosen).max() < GAP
            told = torch.tensor([each for each, _ in found.logprobs])
            assert (told - chosen).abs().max() < GAP


def test_other_kinds_of_files_are_seen_alike(seeing: Model) -> None:
    one = seeing.ask(asked(picture(red=90)), **SHORT).token_ids
    assert seeing.ask(asked(picture(red=90, kind="GIF")), **SHORT).token_ids == one
    long = seeing.stream(asked(picture(red=90)), max_tokens=100, ignore_end=True)
    shown = [next(long).token_id for _ in range(5)]
    long.close()
    assert tuple(shown) == one[:5]
    with pytest.raises(ContextLengthError):
        seeing.ask(asked(*[picture(red=1)] * 20), **SHORT)
    assert seeing.ask(asked(picture(red=90)), **SHORT).token_ids == one


def test_a_projector_that_lacks_its_tokens_is_refused_and_not_fatal(
    files: Seeing, tmp_path: Path
) -> None:
    """A vocabulary without the tokens of an image's borders: decoding them would abort."""
    other = tmp_path / "other.gguf"
    other.write_bytes(files.language.read_bytes().replace(AROUND.encode(), OTHER.encode()))
    with wb.load(other, threads=1, context=512, projector=str(files.projector)) as model:
        assert Power.IMAGES in model.powers
        for red in (5, 250):
            with pytest.raises(InputError, match="vocabulary lacks tokens"):
                model.ask(asked(picture(red=red)))
        assert len(model.ask("Hi!", max_tokens=2, ignore_end=True).token_ids) == 2


def test_what_cannot_be_seen_is_one_error(seeing: Model) -> None:
    broken = picture(red=1)[:60]
    with pytest.raises(InputError, match="cannot read image 1"):
        seeing.ask(asked(broken))
    with pytest.raises(InputError, match="marks an image's place"):
        seeing.ask(asked(picture(red=1), text="<__media__>"))
    assert seeing.ask("Hi!", max_tokens=2).text is not None


def test_a_projector_that_is_none_is_refused(files: Seeing, tmp_path: Path) -> None:
    language = files.language
    with pytest.raises(NotFoundError, match="no projector"):
        wb.load(language, threads=1, context=512, projector=str(tmp_path / "none.gguf"))
    with pytest.raises(InputError, match="not a projector"):
        wb.load(language, threads=1, context=512, projector=str(language))
    with pytest.raises(EngineError, match="cannot load the projector"):
        open_model("llama.cpp", projector=str(files.projector))  # of another width
    with (
        wb.load(language, threads=1, context=512) as blind,
        pytest.raises(UnsupportedError, match="cannot see images"),
    ):
        blind.ask(asked(picture(red=1)))
