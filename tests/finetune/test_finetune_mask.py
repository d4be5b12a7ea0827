"""The mask view: exactly the assistant's contents and end tokens, by TRL's own labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import InputError, UnsupportedError
from workbench.finetune import Recipe, supervised
from workbench.finetune.job import prepare
from workbench.finetune.lora import build_trainer
from workbench.finetune.mask import IGNORED, quiet_libraries
from workbench.finetune.workspace import Workspace

Write = Callable[..., Path]
END = "<|im_end|>"
ROWS = [
    {"messages": [{"role": "user", "content": "Write hash tags: fox, sky."},
                  {"role": "assistant", "content": "#fox #sky"}]},
    {"messages": [{"role": "system", "content": "<b>Be</b> kind."},
                  {"role": "user", "content": "猫は英語で?"},
                  {"role": "assistant", "content": "cat"},
                  {"role": "user", "content": "And\nnow?"},
                  {"role": "assistant", "content": "🦊 fox"}]},
]  # fmt: skip


def test_supervised_is_the_assistants_content_with_its_end(write: Write, tokenizer: Any) -> None:
    view = supervised(write(*ROWS), tokenizer)
    assert [row.supervised for row in view.rows] == [
        (f"#fox #sky{END}",),
        (f"cat{END}", f"🦊 fox{END}"),
    ]
    for row in view.rows:
        kept = [label for label in row.labels if label != IGNORED]
        assert tokenizer.decode(kept) == "".join(row.supervised)
        assert "".join(text for text, _ in row.spans) == tokenizer.decode(list(row.token_ids))
    assert view.supervised_tokens == sum(
        label != IGNORED for row in view.rows for label in row.labels
    )


def test_the_shipped_set_masks_every_answer_and_nothing_else(tokenizer: Any) -> None:
    from workbench.finetune.data import data_file, read_data

    data = read_data(data_file("hashtags"))
    view = supervised(data, tokenizer)
    assert len(view) == len(data)
    for row, example in zip(view.rows, data.examples, strict=True):
        answers = [turn.content for turn in example.messages if turn.role == "assistant"]
        assert row.supervised == tuple(f"{answer}{END}" for answer in answers)


def test_it_shows_what_a_real_trainer_computes(write: Write, tmp_path: Path) -> None:
    path = write(*ROWS, *ROWS)
    recipe = Recipe(dataset=str(path), evaluation="none", out=str(tmp_path / "out"), max_steps=1)
    job = prepare(recipe, {})
    with quiet_libraries():
        trainer = build_trainer(job, Workspace(tmp_path / "work", resumed=False), steps=1)
    assert trainer.train_dataset["labels"] == [list(row.labels) for row in job.view.rows]
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch["labels"][batch["labels"] != IGNORED].tolist()) == {
        label for row in job.view.rows for label in row.labels if label != IGNORED
    }


def test_all_tokens_without_assistant_only_loss(write: Write, tokenizer: Any) -> None:
    view = supervised(write(*ROWS), tokenizer, assistant_only_loss=False)
    assert view.supervised_tokens == view.tokens


def test_html_is_escaped_and_survives_a_sanitiser(write: Write, tokenizer: Any) -> None:
    bundle = supervised(write(*ROWS), tokenizer)._repr_mimebundle_()
    page = bundle["text/html"]
    assert f"<b>#fox #sky{END}</b>".replace(END, "&lt;|im_end|&gt;") in page
    assert "&lt;b&gt;Be&lt;/b&gt; kind." in page
    assert set(re.findall(r"</?(\w+)", page)) <= {"b", "div", "i", "pre"}
    assert f"⟦#fox #sky{END}⟧" in bundle["text/plain"]


def test_rows_that_lose_their_answer_are_an_error_or_dropped(write: Write, tokenizer: Any) -> None:
    long = {"prompt": "word " * 60, "completion": "late"}
    path = write(ROWS[0], long)
    with pytest.raises(InputError, match=r"1 of 2 rows have no supervised token .*lines 2"):
        supervised(path, tokenizer, max_length=32)
    view = supervised(path, tokenizer, max_length=32, drop_overlong=True)
    assert (len(view), view.dropped) == (1, (2,))
    with pytest.raises(InputError, match="1 of 1 rows"):
        supervised(write(long, name="b.jsonl"), tokenizer, max_length=32, drop_overlong=True)


def test_an_answer_that_is_cut_is_counted(write: Write, tokenizer: Any) -> None:
    path = write(ROWS[0], {"prompt": "go", "completion": "word " * 60})
    assert supervised(path, tokenizer, max_length=32).truncated == 1
    assert supervised(path, tokenizer, max_length=512).truncated == 0
    length = len(supervised(path, tokenizer, max_length=512).rows[0].token_ids)
    exact = supervised(write(ROWS[0], name="one.jsonl"), tokenizer, max_length=length)
    assert exact.truncated == 0


def template(tokenizer: Any, old: str, new: str) -> Any:
    import copy

    changed = copy.deepcopy(tokenizer)
    assert old in changed.chat_template
    changed.chat_template = changed.chat_template.replace(old, new)
    return changed


def test_a_template_that_never_learns_to_stop_is_refused(write: Write, tokenizer: Any) -> None:
    odd = template(
        tokenizer,
        "{{- message['content'] + '<|im_end|>' -}}\n{%- endgeneration -%}",
        "{{- message['content'] -}}{%- endgeneration -%}{{- '<|im_end|>' -}}",
    )
    with pytest.raises(UnsupportedError, match="would not learn to stop"):
        supervised(write(*ROWS), odd)


def test_a_template_without_marks_is_refused(write: Write, tokenizer: Any) -> None:
    odd = template(tokenizer, "{%- generation -%}", "")
    odd = template(odd, "{%- endgeneration -%}", "")
    with pytest.raises(UnsupportedError, match="does not mark the assistant's part"):
        supervised(write(*ROWS), odd)
    odd.chat_template = None
    with pytest.raises(UnsupportedError, match="has no chat template"):
        supervised(write(*ROWS), odd)
