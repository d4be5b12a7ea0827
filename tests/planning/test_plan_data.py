"""A plan is data: it prints, is stored, is read back the same, and refuses what is no plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.engines import plain
from workbench.errors import InputError, NotFoundError
from workbench.planning import Plan

CASES: list[tuple[str, dict[str, Any]]] = [
    ("tiny-chat", {}),
    ("tiny-chat", {"engine": "llama.cpp", "quantization": "Q8_0", "threads": 2, "n_batch": 64}),
    ("qwen2.5-32b-instruct", {"machine": "24GB-cuda", "batch": 2}),
    ("qwen2.5-32b-instruct", {"machine": "12GB-cuda+64GB-ram"}),
    ("gpt-oss-20b", {"machine": "12GB-cuda"}),
    ("llama-3.3-70b-instruct", {"machine": "2x24GB-cuda"}),
    ("kimi-k2-instruct", {"machine": "24GB-cuda"}),
    ("qwen2.5-7b-instruct", {"machine": "24GB-cuda", "task": "finetune"}),
]


@pytest.mark.parametrize(("model", "given"), CASES, ids=str)
def test_a_plan_is_stored_and_read_back(model: str, given: dict[str, Any], tmp_path: Path) -> None:
    made = wb.plan(model, **given)
    path = made.save(tmp_path / "plan.json")
    again = Plan.read(path)
    assert again == made
    assert Plan.of(json.loads(json.dumps(made.describe()))) == made
    assert plain.to_plan(json.loads(json.dumps(plain.from_plan(made)))) == made
    assert not list(tmp_path.glob(".partial*"))


def test_a_plan_of_a_folder_finds_its_card_again(tmp_path: Path) -> None:
    import shutil

    from workbench.paths import shipped

    folder = tmp_path / "my model"
    shutil.copytree(shipped("data", "tiny-chat"), folder, ignore=shutil.ignore_patterns("builder"))
    made = wb.plan(folder)
    again = Plan.read(made.save(tmp_path / "plan.json"))
    assert again == made
    assert again.files is not None
    assert again.files.path == folder
    shutil.rmtree(folder)
    with pytest.raises(NotFoundError):
        Plan.read(tmp_path / "plan.json")


def test_a_plan_prints_what_it_chose_and_why() -> None:
    made = wb.plan("qwen2.5-32b-instruct", machine="24GB-cuda")
    text = made._repr_mimebundle_()["text/plain"]
    rows = [(row["plan"], row["value"]) for row in made.table()]
    assert ("engine", made.engine) in rows
    assert ("machine", "24GB-cuda") in rows
    assert ("memory", "fits") in rows
    assert sum(name == "because" for name, _ in rows) == len(made.reasons) > 0
    assert sum(name == "considered" for name, _ in rows) == len(made.considered) > 0
    for word in ("GiB too much", "qwen2.5-32b-instruct", "Usable on 24GB-cuda"):
        assert word in text
    assert "None" not in text
    assert "{" not in text
    assert made._repr_mimebundle_()["text/html"].count("<tr") == len(rows) + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engin": "x"}, "no key 'engin'. Did you mean 'engine'"),
        ({"context": "many"}, "context is int, not 'many'"),
        ({"context": 0}, "1 or more"),
        ({"context": True}, "context is int, not True"),
        ({"tensor_parallel": 0}, "1 or more"),
        ({"needs": [{"place": "RAM"}]}, "no plan"),
        ({"estimate": {"label": "x"}}, "no estimate"),
        ({"options": 5}, "no plan"),
        ({"schema_version": 99}, "schema 99"),
    ],
)
def test_what_is_no_plan_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = wb.plan("tiny-chat").save(tmp_path / "plan.json")
    values = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps(values))
    with pytest.raises(InputError) as caught:
        Plan.read(path)
    assert words in str(caught.value)


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="There is no plan"):
        Plan.read(tmp_path / "missing.json")
    for text, words in (("{", "not valid JSON"), ("[]", "holds a list"), ("{}", "needs the key")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=words):
            Plan.read(tmp_path / "bad.json")


def test_a_stored_plan_is_followed(tmp_path: Path) -> None:
    made = wb.plan(
        "tiny-chat", engine="llama.cpp", quantization="F16", context=512, cache_type="q8_0",
        threads=1,
    )  # fmt: skip
    with wb.load(Plan.read(made.save(tmp_path / "plan.json"))) as model:
        assert model.raw.n_ctx() == 512
        assert model.raw.context_params.type_k == model.raw.context_params.type_v == 8  # q8_0
        assert model.raw.context_params.flash_attn_type == 1
        assert model.raw.context_params.n_threads == 1
        assert "7" in model.ask("What is 3 + 4?", max_tokens=12).text
    assert model.receipt is not None
    receipt = json.loads(model.receipt.read_text())
    assert receipt["plan"]["cache_type"] == "q8_0"
    kept = Plan.of({**receipt["plan"], "files": None, "card_path": None, "card": "tiny-chat"})
    assert (kept.cache_type, kept.context, kept.engine) == ("q8_0", 512, "llama.cpp")


def test_a_device_map_reaches_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    seen: dict[str, Any] = {}
    original = AutoModelForCausalLM.from_pretrained

    def spy(folder: str, **arguments: Any) -> Any:
        seen.update(arguments)
        return original(folder, **arguments)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    made = wb.plan("tiny-chat", engine="transformers", threads=1)
    with wb.load(dataclasses.replace(made, max_memory={"cpu": 2**30})) as model:
        assert "7" in model.ask("What is 3 + 4?", max_tokens=12).text
    assert seen["device_map"] == "auto"
    assert seen["max_memory"] == {"cpu": 2**30}
