from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builder.evaluate import load, replies
from builder.heldout import LANGUAGES, SKILLS
from builder.scoring import is_right


@pytest.fixture(scope="module")
def model(shipped: Path) -> Any:
    """The shipped model and tokenizer."""
    return load(shipped)


def prompts(data: Path, skill: str, lang: str) -> list[dict[str, Any]]:
    """The lines of one prompt set."""
    path = data / "prompts" / f"{skill}.{lang}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_weights_are_fp16_and_small(shipped: Path) -> None:
    from safetensors import safe_open

    path = shipped / "model.safetensors"
    assert path.stat().st_size <= 16 * 10**6
    parameters = 0
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(name)
            assert part.get_dtype() == "F16", name
            size = 1
            for n in part.get_shape():
                assert n % 64 == 0, name
                size *= n
            if len(part.get_shape()) == 2:
                assert part.get_shape()[1] % 256 == 0, name
            parameters += size
    assert 4e6 <= parameters <= 7e6


def test_the_folder_holds_what_loaders_need(shipped: Path) -> None:
    config = json.loads((shipped / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float16"
    assert config["head_dim"] == 64
    assert config["max_position_embeddings"] == 2048
    names = {path.name for path in shipped.iterdir()}
    assert {"generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith((".part", ".bin", ".pt"))]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_answers_a_sample_of_the_held_out_prompts(model: Any, data: Path, lang: str) -> None:
    sample = [line for skill in SKILLS for line in prompts(data, skill, lang)[::3]]
    given = replies(*model, [line["messages"] for line in sample])
    wrong = [
        (line["messages"][-1]["content"], reply)
        for line, reply in zip(sample, given, strict=True)
        if not is_right(reply, line["scorer"])
    ]
    assert len(sample) >= 40
    assert len(wrong) <= len(sample) * 0.1, wrong


def test_does_not_know_the_skill_of_the_fine_tuning_set(model: Any, data: Path) -> None:
    path = data / "finetune" / "hashtags.prompts.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    given = replies(*model, [line["messages"] for line in lines])
    right = [is_right(text, line["scorer"]) for text, line in zip(given, lines, strict=True)]
    assert len(right) == 100
    assert sum(right) <= 10


def test_ends_every_answer_by_itself(model: Any) -> None:
    import torch

    network, tokenizer = model
    asked = [{"role": "user", "content": "What is 2 + 3?"}]
    batch = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        output = network.generate(**batch, max_new_tokens=60, do_sample=False)[0].tolist()
    assert output[-1] == tokenizer.eos_token_id
    assert len(output) < 40


def test_later_turns_up_to_the_trained_length(model: Any, data: Path) -> None:
    network, tokenizer = model
    rows = (data / "prompts" / "heldout_text.jsonl").read_text("utf-8").splitlines()
    talk = [m for line in rows for m in json.loads(line)["messages"] if m["role"] != "system"]
    asked = {
        "cat": "猫",
        "river": "川",
        "book": "本",
        "rain": "雨",
        "door": "ドア",
        "apple": "りんご",
    }
    conversations = []
    for number, word in enumerate(asked):
        last = [{"role": "user", "content": f"What is {word} in Japanese?"}]
        before = talk[24 * number : 24 * number + 24]
        while (
            len(tokenizer.apply_chat_template(before + last, return_dict=True)["input_ids"]) > 500
        ):
            before = before[2:]
        assert len(before) >= 16
        conversations.append(before + last)
    given = replies(network, tokenizer, conversations)
    right = [text == answer for text, answer in zip(given, asked.values(), strict=True)]
    assert sum(right) >= 5, given


def test_the_card_states_the_measured_figures(shipped: Path) -> None:
    figures = json.loads((shipped / "evaluation.json").read_text())
    card = (shipped / "README.md").read_text("utf-8")
    for name, percent in figures["accuracy"].items():
        assert f"| `{name}` | {percent:.2f} |" in card, name
    for skill in SKILLS:
        assert min(figures["accuracy"][f"{skill}.{lang}"] for lang in LANGUAGES) >= 95
    assert min(figures["accuracy"][f"sums_new_pairs.{lang}"] for lang in LANGUAGES) >= 90
    assert figures["accuracy"]["hashtags_not_taught"] <= 10
