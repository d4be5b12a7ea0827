"""The prompt as each engine renders it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import workbench as wb
from workbench.engines.model import Model
from workbench.errors import InputError
from workbench.evaluate.template import CONVERSATIONS, compare_templates
from workbench.paths import shipped


def test_both_engines_render_the_embedded_model_alike(opened: Callable[..., Model]) -> None:
    found = compare_templates(opened("transformers", False), opened("llama.cpp", False))
    assert found.same, found
    assert found.compared == len(CONVERSATIONS)
    assert "4 of 4" in repr(found)


def changed(tmp_path: Path, before: str, after: str) -> Path:
    folder = tmp_path / "changed"
    shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=lambda *_: ["builder"])
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    assert before in text
    template.write_text(text.replace(before, after), encoding="utf-8")
    return folder


def test_the_first_difference_in_the_text_is_named(
    opened: Callable[..., Model], tmp_path: Path
) -> None:
    folder = changed(tmp_path, "+ '\\n' -", "+ ' ' -")
    with wb.load(folder, engine="transformers") as other:
        found = compare_templates(opened("llama.cpp", False), other)
    assert not found.same
    first = found.differences[0]
    assert (first.what, first.position) == ("text", len("<|im_start|>user"))
    assert "\\nHello!" in first.first
    assert " Hello!" in first.second
    assert "differs in text at character 16" in str(found.differences[0])
    assert "<li>" in found._repr_mimebundle_()["text/html"]


def test_a_refusal_by_one_engine_is_a_difference(
    opened: Callable[..., Model], tmp_path: Path
) -> None:
    folder = changed(
        tmp_path,
        "{%- for message in messages -%}",
        "{%- if messages|length > 1 -%}{{ raise_exception('one turn only') }}{%- endif -%}"
        "{%- for message in messages -%}",
    )
    with wb.load(folder, engine="transformers") as other:
        found = compare_templates(opened("llama.cpp", False), other)
    assert [(d.conversation, d.what) for d in found.differences] == [(1, "refusal"), (2, "refusal")]
    assert "one turn only" in found.differences[0].second


def test_different_ids_of_the_same_text_are_found(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = opened("transformers", False), opened("llama.cpp", False)
    original = two._session.prompt_ids
    monkeypatch.setattr(two._session, "prompt_ids", lambda messages: [0, *original(messages)])
    found = compare_templates(one, two, ["Hello!"])
    assert [(d.what, d.position) for d in found.differences] == [("ids", 0)]
    assert "1 b'<|im_start|>'" in found.differences[0].first
    assert "0 b'<|endoftext|>'" in found.differences[0].second


def test_a_wrong_conversation_is_the_callers_mistake(opened: Callable[..., Model]) -> None:
    with pytest.raises(InputError, match="empty"):
        compare_templates(opened("scripted", False), opened("scripted", False), [[]])
