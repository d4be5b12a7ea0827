"""The chat's front end on a page of its own: the test speaks for the kernel."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workbench.widgets import assets

START = """async ([esm, css]) => {
  document.head.append(Object.assign(document.createElement("style"), {textContent: css}));
  const root = document.createElement("div");
  document.body.append(root);
  const mod = await import(URL.createObjectURL(new Blob([esm], {type: "text/javascript"})));
  const listeners = new Map();
  window.sent = [];
  window.frames_drawn = 0;
  const model = {
    get: () => undefined, set() {}, save_changes() {},
    send: (message) => {
      if (window.gone) throw new Error("closed");
      window.sent.push(message);
    },
    on: (name, call) => listeners.set(name, call),
    off: (name) => listeners.delete(name),
  };
  window.feed = (messages) => { for (const each of messages) listeners.get("msg:custom")(each); };
  window.event = (name) => listeners.get(name)?.();
  window.end = mod.default.render({model, el: root});
}"""
_SLIDERS = [
    ("temperature", "slider", "0 is greedy", 0, 2, 0.05),
    ("top_p", "slider", "nucleus mass", 0.01, 1, 0.01),
    ("top_k", "integer", "candidates kept, 0 all", 0, 200, 1),
    ("repetition_penalty", "slider", "1 is none", 0.5, 2, 0.01),
    ("max_tokens", "integer", "most new tokens", 1, 8192, 1),
    ("seed", "seed", "empty: a fresh one each time", 0, 2**31 - 1, 1),
]
FIELDS = [
    *(
        dict(zip(("name", "kind", "text", "min", "max", "step"), row, strict=True))
        for row in _SLIDERS
    ),
    {"name": "think", "kind": "choice", "text": "think before the answer"},
    {"name": "probabilities", "kind": "switch", "text": "keep each token's alternatives"},
]
SETTINGS = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "repetition_penalty": 1.0,
    "max_tokens": 512,
    "seed": None,
    "think": None,
    "probabilities": False,
}
POWERS = ("complete", "images", "logprobs", "render", "score", "thinking", "tokenize", "tools")


class Stub:
    """Feeds messages with their numbers and reads what the front end sent."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.number = 0
        page.set_content("<!doctype html><title>chat</title>")
        page.evaluate(START, [assets.script("chat"), assets.style("chat")])

    def feed(self, *messages: dict[str, Any]) -> None:
        """Hand over messages as the kernel would send them."""
        numbered = []
        for message in messages:
            self.number += 1
            numbered.append({"seq": self.number, **message})
        self.page.evaluate("(all) => window.feed(all)", numbered)

    def state(self, *turns: dict[str, Any], **values: Any) -> None:
        """Hand over a whole state."""
        base = {
            "busy": None,
            "settings": SETTINGS,
            "defaults": SETTINGS,
            "fields": FIELDS,
            "system": "",
            "powers": list(POWERS),
            "label": "scripted",
            "title": "",
            "meter": {"used": 412, "context": 2048, "warning": None},
            "note": None,
        }
        self.feed({"type": "state", **base, "turns": list(turns), **values})

    def sent(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return what the front end sent, of one type or all."""
        found = self.page.evaluate("() => window.sent")
        return [each for each in found if kind in (None, each["type"])]

    def button(self, name: str) -> Any:
        """Return the button of that name, as a playwright locator."""
        return self.page.get_by_role("button", name=name, exact=True)

    def drawn(self) -> None:
        """Wait until what was fed is drawn."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )


def user(turn_id: str, text: str, **values: Any) -> dict[str, Any]:
    """Return a user's turn as the kernel describes it."""
    return {**_turn(turn_id, "user", text), **values}


def answer(turn_id: str, text: str = "", **values: Any) -> dict[str, Any]:
    """Return an answer as the kernel describes it; ``meta={...}`` adds to its figures."""
    meta = {
        "ttft": 0.183,
        "rate": 41.27,
        "prompt_tokens": 38,
        "completion_tokens": 174,
        "finish": "stop",
        "model": "",
        "error": None,
        **values.pop("meta", {}),
    }
    return {**_turn(turn_id, "assistant", text), "blocks": tree(text), "meta": meta, **values}


def _turn(turn_id: str, role: str, text: str) -> dict[str, Any]:
    return {
        "id": turn_id,
        "role": role,
        "text": text,
        "blocks": [],
        "thinking": None,
        "tools": [],
        "images": [],
        "siblings": [turn_id],
        "meta": None,
    }


def tree(text: str) -> list[Any]:
    """Return the Markdown tree of a text."""
    from workbench.chats.markdown import parse

    return json.loads(json.dumps(parse(text)))


def patches(pieces: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the patches of an answer that comes in pieces."""
    from workbench.chats.markdown_stream import MarkdownStream

    stream = MarkdownStream()
    for piece in pieces:
        yield dict(stream.add(piece))
    yield dict(stream.done())


def picture(page: Any, name: str, *, clip: str | None = ".wb-chat") -> None:
    """Keep a screenshot where ``WORKBENCH_PICTURES`` names a folder."""
    folder = os.environ.get("WORKBENCH_PICTURES")
    if folder:
        target = page.locator(clip).first if clip else page
        target.screenshot(path=str(Path(folder) / f"chat-{name}.png"))
