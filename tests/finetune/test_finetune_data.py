"""Training files: three forms become messages; a wrong line refuses the file, by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import InputError, NotFoundError
from workbench.finetune.data import data_file, evaluation_file, read_data

Write = Callable[..., Path]


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def turns(path: Path, index: int = 0) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in read_data(path).examples[index].messages]


def test_three_forms_become_the_same_messages(write: Write) -> None:
    path = write(
        chat("猫は?", "cat"),
        {"prompt": "猫は?", "completion": "cat", "id": 7},
        {"instruction": "猫は?", "input": "", "output": "cat", "metadata": {"page": 1}},
    )
    data = read_data(path)
    assert [turns(path, index) for index in range(3)] == [
        [("user", "猫は?"), ("assistant", "cat")]
    ] * 3
    assert data.forms == {"messages": 1, "prompt": 1, "instruction": 1}
    assert [example.line for example in data.examples] == [1, 2, 3]


def test_instruction_with_input_and_system(write: Write) -> None:
    path = write({"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be short."})
    assert turns(path) == [("system", "Be short."), ("user", "Add.\n\n1 2"), ("assistant", "3")]


def test_prompt_and_completion_as_turns(write: Write) -> None:
    path = write(
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        }
    )
    assert turns(path) == [("system", "s"), ("user", "q"), ("assistant", "a")]


def test_blank_lines_and_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n\n  \n')
    assert turns(path) == [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'messages': []}", "not JSON"),
        ('{"messages": [', "not JSON"),
        ("[1, 2]", "a JSON list, not an object"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "hello"}, "messages is a str"),
        (chat("only a question"), "has no assistant turn"),
        (chat("q", "a", "q2"), "ends with a user turn that nobody answers"),
        (chat("q", "  "), "messages[1] (assistant) is empty"),
        (
            {"messages": [{"role": "usr", "content": "q"}]},
            "unknown role 'usr' (Did you mean 'user'?",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0] (user) is 3, not text"),
        ({"messages": [{"role": "user", "text": "q"}]}, "unknown key 'text'"),
        ({"message": []}, "has none of messages"),
        ({**chat("q", "a"), "labels": 1}, "unknown key 'labels'"),
        ({"prompt": "q"}, "completion is None, not text"),
        ({"instruction": "q", "ouput": "a"}, "unknown key 'ouput' (Did you mean 'output'?"),
        (
            {
                "prompt": [*chat("q", "a")["messages"]],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            "prompt has an assistant turn",
        ),
        ('{"prompt": "q", "completion": "\\ud83d"}', "surrogate"),
    ],
)
def test_a_wrong_line_is_named(write: Write, line: Any, said: str) -> None:
    path = write(chat("q", "a"), line)
    with pytest.raises(InputError) as caught:
        read_data(path)
    assert f"{path}: 1 of 2 lines are wrong: line 2: " in str(caught.value)
    assert said in str(caught.value)
    assert "Nothing was trained" in str(caught.value)


def test_all_wrong_lines_are_counted_and_the_first_shown(write: Write) -> None:
    path = write(*["nonsense"] * 9, chat("q", "a"))
    with pytest.raises(InputError, match=r"9 of 10 lines .*line 5: .*; and 4 more") as caught:
        read_data(path)
    assert "line 6:" not in str(caught.value)


def test_not_utf8_and_empty_and_missing(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "é", "completion": "b"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match="line 1: not UTF-8"):
        read_data(path)
    with pytest.raises(InputError, match="is empty"):
        read_data(write("", name="empty.jsonl"))
    with pytest.raises(NotFoundError, match="does not exist"):
        data_file(tmp_path / "nowhere.jsonl")


def test_a_name_that_ships_and_its_evaluation_file() -> None:
    path = data_file("hashtags")
    assert path.name == "hashtags.jsonl"
    assert data_file("data/finetune/hashtags.jsonl").samefile(path)
    assert evaluation_file(path) == path.with_name("hashtags.eval.jsonl")
    with pytest.raises(NotFoundError, match="Did you mean 'hashtags'"):
        data_file("hashtag")


def test_the_shipped_files_are_whole_and_apart() -> None:
    path = data_file("hashtags")
    trained = {example.question for example in read_data(path).examples}
    held_out = {example.question for example in read_data(evaluation_file(path) or path).examples}
    assert len(held_out) >= 50
    assert not trained & held_out
