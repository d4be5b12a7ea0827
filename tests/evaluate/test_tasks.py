"""Prompt sets and task accuracy, with a model whose replies are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from workbench.engines.base import Power
from workbench.errors import ChildDiedError, EngineError, InputError, NotFoundError
from workbench.evaluate.tasks import (
    BATCH,
    Prompt,
    TaskResults,
    evaluate_tasks,
    load_prompts,
    prompt_sets,
)
from workbench.messages import Message, Reply, Sampling, Timings, Usage


def line(**changes: Any) -> str:
    values = {
        "id": "a",
        "skill": "sums",
        "lang": "en",
        "messages": [{"role": "user", "content": "3 + 4?"}],
        "scorer": {"type": "exact", "answer": "7"},
        **changes,
    }
    return json.dumps({name: value for name, value in values.items() if value is not None})


def written(folder: Path, *lines: str) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_sets_that_ship_load_and_are_judged_right_by_their_own_answers() -> None:
    prompts = load_prompts()
    assert len(prompts) == 240
    assert {prompt.lang for prompt in prompts} == {"en", "ja"}
    assert "heldout_text" not in prompt_sets()
    exact = [prompt for prompt in prompts if prompt.scorer["type"] == "exact"]
    model = Known({prompt.messages[-1].content: prompt.scorer["answer"] for prompt in exact})
    assert evaluate_tasks(model, exact, progress=False).right == len(exact) > 100


def test_names_skills_languages_and_a_limit_choose() -> None:
    assert [len(load_prompts(name)) for name in ("sums.en", "sums")] == [20, 40]
    both = load_prompts(["sums.en", "words.ja"])
    assert {(prompt.skill, prompt.lang) for prompt in both} == {("sums", "en"), ("words", "ja")}
    japanese = load_prompts(skills="story", languages=["ja"])
    assert {(prompt.skill, prompt.lang) for prompt in japanese} == {("story", "ja")}
    few = load_prompts(limit=24)
    assert len(few) == 24
    assert len({(prompt.skill, prompt.lang) for prompt in few}) == 12
    with pytest.raises(InputError, match="Did you mean 'story'"):
        load_prompts(skills="storry")
    with pytest.raises(InputError, match="limit"):
        load_prompts(limit=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", "mine.jsonl, line 3: not JSON"),
        ("[1]", "line 3: It is a list"),
        (line(id="b", scorer={"type": "contain", "answers": ["7"]}), "Did you mean 'contains'"),
        (line(id="b", skill=None), "line 3: The key 'skill' is missing"),
        (line(id="b", scores={}), "line 3: Unknown key 'scores'. Did you mean 'scorer'"),
        (line(id="b", messages=[]), "line 3: The conversation is empty"),
        (line(id="b", messages="hi"), "line 3: messages must be a list"),
        (line(id="b", messages=[{"role": "usr", "content": "x"}]), "Did you mean 'user'"),
        (line(id="b", messages=[{"role": "assistant", "content": "x"}]), "nothing is left to ask"),
        (line(id=7), "line 3: id must be a non-empty string, not 7"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, bad: str, message: str) -> None:
    path = written(tmp_path, line(), "", bad)
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(path)
    assert "mine.jsonl, line 3" in str(caught.value)


def test_what_does_not_exist_or_stands_twice_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'sums'"):
        load_prompts("summs")
    with pytest.raises(InputError, match="Two prompts have the id 'a'"):
        load_prompts(written(tmp_path, line(), line()))
    with pytest.raises(InputError, match="No prompt is left"):
        load_prompts(written(tmp_path, ""))
    (path := tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(InputError, match=r"bytes.jsonl, line 1"):
        load_prompts(path)


class Known:
    """Answers from a dictionary; counts what it was asked."""

    powers: frozenset[Power] = frozenset()

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def ask(self, conversation: Sequence[Message], *, sampling: Sampling | None = None) -> Reply:
        question = conversation[-1].content
        self.asked.append(question)
        answer = self.answers[question]
        if answer == "ENGINE":
            raise EngineError("The engine broke on this one.")
        if answer == "DIES":
            raise ChildDiedError("The child process ended.")
        return Reply(
            text=answer,
            usage=Usage(prompt_tokens=5, completion_tokens=2),
            timings=Timings(ttft=0.1, total=0.2),
        )

    def ask_many(
        self, conversations: Sequence[Sequence[Message]], *, sampling: Sampling | None = None
    ) -> list[Reply]:
        raise AssertionError("not a power of this model")


class Batching(Known):
    powers = frozenset({Power.BATCH})
    batches: list[int]

    def ask_many(
        self, conversations: Sequence[Sequence[Message]], *, sampling: Sampling | None = None
    ) -> list[Reply]:
        self.batches = [*getattr(self, "batches", []), len(conversations)]
        return [self.ask(conversation, sampling=sampling) for conversation in conversations]


def items(**answers: str) -> list[Prompt]:
    return [
        Prompt(
            id=name,
            skill="sums" if name < "c" else "words",
            lang="en",
            messages=(Message("user", name),),
            scorer={"type": "exact", "answer": answer},
        )
        for name, answer in answers.items()
    ]


def test_accuracy_by_skill_with_its_interval() -> None:
    prompts = items(a="1", b="2", c="3", d="4")
    results = evaluate_tasks(
        Known({"a": "1", "b": "x", "c": "3", "d": "4"}), prompts, progress=False
    )
    assert results.right == 3
    assert results.accuracy().estimate == 0.75
    assert results.accuracy(skill="words").estimate == 1.0
    assert results.accuracy(skill="sums").low == pytest.approx(0.0945, abs=1e-4)
    assert [row.id for row in results.wrong()] == ["b"]
    assert results.wrong()[0].why == "expected '2'"
    assert results.rows[0].completion_tokens == 2
    assert results.table()[-1]["count"] == 4
    assert "75.0%" in results._repr_mimebundle_()["text/plain"]
    with pytest.raises(InputError, match="skill 'songs'"):
        results.accuracy(skill="songs")


def test_an_engine_error_stays_a_failed_row_and_the_others_go_on() -> None:
    model = Known({"a": "1", "b": "ENGINE", "c": "3"})
    results = evaluate_tasks(model, items(a="1", b="2", c="3"), progress=False)
    assert [row.right for row in results.rows] == [True, False, True]
    assert results.rows[1].error == "The engine broke on this one."
    assert results.failed == 1
    assert results.accuracy().estimate == pytest.approx(2 / 3)


def test_one_bad_prompt_of_a_batch_is_one_failed_row() -> None:
    prompts = items(**{f"q{n:03}": str(n) for n in range(2 * BATCH + 5)})
    answers = {prompt.id: prompt.scorer["answer"] for prompt in prompts}
    model = Batching(answers | {"q060": "ENGINE"})
    results = evaluate_tasks(model, prompts, progress=False)
    assert model.batches == [BATCH, BATCH, 5]
    assert [row.id for row in results.rows if row.error] == ["q060"]
    assert results.right == len(prompts) - 1
    assert evaluate_tasks(model, prompts, progress=False, batched=False).right == len(prompts) - 1
    assert len(model.batches) == 3


class PartlyFailing(Batching):
    """Fails for single conversations of a batch, as the contract of BATCH has it."""

    def ask_many(
        self, conversations: Sequence[Sequence[Message]], *, sampling: Sampling | None = None
    ) -> list[Reply]:
        replies = super().ask_many(conversations, sampling=sampling)
        return [Reply(text="", finish_reason="error", error="Too long."), *replies[1:]]


def test_a_reply_that_failed_inside_a_batch_is_a_failed_row() -> None:
    model = PartlyFailing({"a": "1", "b": "2"})
    results = evaluate_tasks(model, items(a="", b="2"), progress=False)
    assert [(row.right, row.error) for row in results.rows] == [(False, "Too long."), (True, None)]


def test_nothing_is_asked_of_an_engine_that_is_gone() -> None:
    model = Known({"a": "1", "b": "DIES", "c": "3", "d": "4"})
    results = evaluate_tasks(model, items(a="1", b="2", c="3", d="4"), progress=False)
    assert model.asked == ["a", "b"]
    assert [row.error for row in results.rows] == [None, *["The child process ended."] * 3]


def test_results_are_the_same_after_a_journey_through_json() -> None:
    results = evaluate_tasks(
        Known({"a": "1", "b": "ENGINE"}),
        items(a="1", b="2"),
        sampling=Sampling(max_tokens=5),
        progress=False,
    )
    back = TaskResults.from_dict(json.loads(json.dumps(results.as_dict())))
    assert back.rows == results.rows
    assert back.sampling["max_tokens"] == 5
    assert Prompt.of(json.loads(json.dumps(items(a="1")[0].as_dict()))) == items(a="1")[0]
    with pytest.raises(InputError, match="no prompt"):
        evaluate_tasks(Known({}), [], progress=False)
