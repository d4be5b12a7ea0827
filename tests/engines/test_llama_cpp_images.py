"""Images in llama.cpp, with a random projector: read, placed in the prompt, or refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_models import open_model
from random_gguf import random_gguf
from random_projector import random_projector

import workbench as wb
from workbench.engines.base import Power
from workbench.engines.model import Model
from workbench.errors import (
    EngineError,
    InputError,
    NotFoundError,
    UnsupportedError,
)

pytestmark = pytest.mark.slow


def picture(*, red: int, kind: str = "PNG") -> bytes:
    from PIL import Image

    image = Image.new("RGB", (64, 64), (red, 40, 80))
    image.paste((0, 200, red), (8, 8, 40, 30))
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def asked(*images: bytes, text: str = "What is this?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text, "images": list(images)}]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("eyes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        return random_gguf("llama", folder), random_projector(folder)


@pytest.fixture(scope="module")
def seeing(files: tuple[Path, Path]) -> Iterator[Model]:
    language, projector = files
    with wb.load(language, threads=1, context=512, projector=str(projector)) as model:
        yield model


def test_a_projector_that_lacks_its_tokens_is_refused_and_not_fatal(seeing: Model) -> None:
    """The embedded tokenizer has no token for an image's borders: decoding them would abort."""
    assert Power.IMAGES in seeing.powers
    for red in (5, 250):
        with pytest.raises(InputError, match="vocabulary lacks tokens"):
            seeing.ask(asked(picture(red=red)))
    assert len(seeing.ask("Hi!", max_tokens=2, ignore_end=True).token_ids) == 2


def test_what_cannot_be_seen_is_one_error(seeing: Model) -> None:
    broken = picture(red=1)[:60]
    with pytest.raises(InputError, match="cannot read image 1"):
        seeing.ask(asked(broken))
    with pytest.raises(InputError, match="marks an image's place"):
        seeing.ask(asked(picture(red=1), text="<__media__>"))
    assert seeing.ask("Hi!", max_tokens=2).text is not None


def test_a_projector_that_is_none_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    language, projector = files
    with pytest.raises(NotFoundError, match="no projector"):
        wb.load(language, threads=1, context=512, projector=str(tmp_path / "none.gguf"))
    with pytest.raises(InputError, match="not a projector"):
        wb.load(language, threads=1, context=512, projector=str(language))
    with pytest.raises(EngineError, match="cannot load the projector"):
        open_model("llama.cpp", projector=str(projector))  # of another width
    with (
        wb.load(language, threads=1, context=512) as blind,
        pytest.raises(UnsupportedError, match="cannot see images"),
    ):
        blind.ask(asked(picture(red=1)))
