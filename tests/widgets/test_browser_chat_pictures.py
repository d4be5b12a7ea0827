"""Every state of the chat is drawn, fits its cell and is legible; the guide's pictures are these.

``WORKBENCH_PICTURES=docs/images pytest tests/widgets/test_browser_chat_pictures.py``
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from chat_stub import Stub, answer, patches, picture, tree, user

pytestmark = pytest.mark.browser
CACHE = '''The **KV cache** keeps keys and values of every past token, so each step computes one.

| engine | quantization | tokens/s | memory |
|:--|:--|--:|--:|
| transformers | bfloat16 | 31.4 | 1.92 GB |
| llama.cpp | `Q4_K_M` | 88.2 | 0.71 GB |

```python
def cache_bytes(layers: int, heads: int, width: int, tokens: int) -> int:
    """Keys and values, two bytes each."""
    return 2 * layers * heads * width * tokens * 2
```

日本語では「KVキャッシュ」と呼ばれ、**長い文脈**ほどメモリを使います。
詳しくは [arXiv](https://arxiv.org/abs/2211.05102) を見てください。
'''
SHORT = "1. *Prefill* reads the whole prompt once.\n2. *Decode* reads the cache for every new token"
LEGIBLE = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const seen = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  const chat = document.querySelector(".wb-chat");
  const walker = document.createTreeWalker(chat, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const owner = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !owner.checkVisibility()) continue;
    if (owner.closest(":disabled, [aria-disabled=true], style")) continue;
    const backs = [];
    for (let at = owner; at; at = at.parentElement) {
      backs.unshift(getComputedStyle(at).backgroundColor);
    }
    const back = seen(["white", ...backs]);
    const front = seen(["white", ...backs, getComputedStyle(owner).color]);
    const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) bad.push([owner.className, walker.currentNode.data.slice(0, 20), ratio]);
  }
  return bad;
}"""


def gradient(width: int = 220, height: int = 130) -> str:
    """Return a small picture as a data: address."""
    rows = b"".join(
        b"\0"
        + bytes(
            part
            for x in range(width)
            for part in (70 + 150 * x // width, 120 + 90 * y // height, 210 - 100 * x // width)
        )
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    whole = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + whole).decode()


def empty(stub: Stub) -> str:
    stub.state(meter={"used": 0, "context": 32768, "warning": None})
    return "Ask something"


def finished(stub: Stub) -> str:
    stub.state(user("1", "What is a KV cache, and what does it cost?"), answer("2", CACHE))
    return "88.2"


def streaming(stub: Stub) -> str:
    stub.state(user("1", "What happens in the two phases?"))
    stub.feed(
        {"type": "turn", "turn": {**answer("2"), "meta": None}},
        {"type": "busy", "id": "2", "blocking": False, "subshell": True},
        *({"type": "delta", "id": "2", "part": "answer", "patch": patch}
          for patch in list(patches(list(SHORT)))[:-1] if patch),
    )  # fmt: skip
    return "every new token"


def settings(stub: Stub) -> str:
    stub.state(user("1", "Say hello."), answer("2", "Hello!"), system="Answer in one sentence.")
    stub.feed({"type": "settings", "settings": {"temperature": 1.1, "top_p": 0.9, "top_k": 40,
              "repetition_penalty": 1.0, "max_tokens": 512, "seed": 7, "think": None,
              "probabilities": False}})  # fmt: skip
    stub.page.get_by_role("button", name="Settings").click()
    return "temperature"


def branches(stub: Stub) -> str:
    stub.state(
        user("3", "Explain LoRA to a chemist.", siblings=["1", "3"]),
        answer("5", "A small change bound to a large, fixed structure.", siblings=["4", "5", "6"]),
    )
    stub.page.get_by_role("button", name="Edit and ask again").click()
    return "2 / 3"


PROMPT = [(1, "<|user|>"), (198, "\n"), (3923, "What"), (374, " is"), (279, " the"),
          (6864, " capital"), (315, " of"), (6457, " Japan"), (30, "?"), (2, "<|end|>"),
          (198, "\n"), (3, "<|assistant|>"), (198, "\n")]  # fmt: skip
ODDS = [("The", 0.93), (" capital", 0.98), (" of", 0.999), (" Japan", 0.997), (" is", 0.96),
        (" Tokyo", 0.91), (".", 0.7), (" It", 0.55), (" is", 0.62), (" a", 0.3), (" large", 0.07),
        (" and", 0.24), (" busy", 0.41), (" city", 0.88), (".", 0.95)]  # fmt: skip


def prompt(stub: Stub) -> str:
    said = "The capital of Japan is Tokyo. It is a large and busy city."
    stub.state(user("1", "What is the capital of Japan?"), answer("2", said))
    stub.page.get_by_role("button", name="Exact prompt and token ids").click()
    text = "".join(piece for _, piece in PROMPT)
    stub.feed({"type": "prompt", "id": "2", "text": text, "pieces": PROMPT, "note": None})
    return "6864"


def probabilities(stub: Stub) -> str:
    prompt(stub)
    stub.page.get_by_role("button", name="Token probabilities").click()
    others = ((" very", 0.5), (" big", 0.25), (" modern", 0.1), ("東京", 0.05))
    tokens = []
    for index, (text, odds) in enumerate(ODDS):
        told = {"id": 300 + index, "text": text, "logprob": math.log(odds)}
        rest = [
            {"id": 900 + number, "text": other, "logprob": math.log((1 - odds) * share)}
            for number, (other, share) in enumerate(others)
        ]
        tokens.append({**told, "top": [told, *rest]})
    stub.feed({"type": "probabilities", "id": "2", "tokens": tokens, "note": None})
    return "rank 4"


def thinking(stub: Stub) -> str:
    thought = tree("17 × 20 = 340 and 17 × 3 = 51, so the product is 391.")
    stub.state(
        user("1", "What is 17 × 23?"),
        answer("2", "17 × 23 = **391**.", thinking=thought),
        user("3", "And 18 × 23?"),
        answer("4", "18 × 23 = **414**.", thinking=thought),
    )
    stub.page.locator("summary:visible").first.click()
    return "so the product is 391"


def tools(stub: Stub) -> str:
    call = {"name": "weather", "id": "c1", "arguments": '{"city": "Kyoto", "days": 2}'}
    stub.state(
        user("1", "Will it rain in Kyoto? Answer as JSON."),
        answer("2", "", tools=[call], meta={"finish": "tool_calls"}),
        {**user("3", '{"rain": 0.80}'), "role": "tool"},
        answer("4", '{"rain": true, "probability": 0.80, "advice": "傘を持ってください"}'),
    )
    return "傘を持ってください"


def image(stub: Stub) -> str:
    stub.state(
        user("1", "What is in this picture?", images=[{"url": gradient(), "name": "one.png"}]),
        answer("2", "A smooth gradient from teal to dusty rose.", meta={"finish": "length"}),
        meter={"used": 1810, "context": 2048, "warning": "1,810 of 2,048 tokens are taken."},
    )
    data = base64.b64decode(gradient(90, 64).split(",")[1])
    stub.page.locator("input[type=file]").set_input_files(
        [{"name": "two.png", "mimeType": "image/png", "buffer": data}]
    )
    stub.page.locator(".wb-attached").wait_for()
    return "teal"


def error(stub: Stub) -> str:
    failed = {"finish": "error", "error": "CUDA out of memory. Load it with a smaller context."}
    stub.state(
        user("1", "Write something long."),
        answer("2", "Once upon a time", meta={**failed, "ttft": None, "rate": None}),
    )
    stub.feed({"type": "error", "message": "top_p cannot be 7.", "hint": "It is 0.01 to 1."})
    return "CUDA out of memory"


STATES: list[Callable[[Stub], str]] = [
    empty, finished, streaming, settings, branches, prompt, probabilities, thinking, tools, image,
    error,
]  # fmt: skip


def check(stub: Stub, words: str) -> None:
    stub.drawn()
    assert words in stub.page.locator(".wb-chat").inner_text()
    assert stub.page.evaluate(LEGIBLE) == [], "WCAG AA asks for a contrast of 4.5"
    out = "() => document.documentElement.scrollWidth - innerWidth"
    assert stub.page.evaluate(out) <= 0


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_state_is_drawn_and_legible(page: Any, state: Callable[[Stub], str]) -> None:
    page.set_viewport_size({"width": 860, "height": 900})
    stub = Stub(page)
    words = state(stub)
    check(stub, words)
    picture(page, state.__name__)
    page.set_viewport_size({"width": 360, "height": 900})
    check(stub, words)
    if state is finished:
        picture(page, "narrow")
    page.emulate_media(color_scheme="dark")
    check(stub, words)
    page.set_viewport_size({"width": 860, "height": 900})
    if state is finished:
        picture(page, "dark")
    assert page.said == []
    assert page.asked == []
