"""A few LoRA steps on the embedded model: what changes, what is left, what repeats and resumes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import DiskSpaceError, EngineError, InputError
from workbench.finetune import Training, finetune, lora
from workbench.finetune.data import data_file, evaluation_file
from workbench.finetune.job import prepare
from workbench.finetune.mask import quiet_libraries
from workbench.finetune.recipe import Recipe
from workbench.finetune.workspace import Workspace, workspace, workspace_folder
from workbench.receipts import receipts

Write = Callable[..., Path]
STEPS = 10
SKILLS = ["greetings", "json", "story", "sums", "who", "words"]
SHORT: dict[str, Any] = {
    "recipe": "tiny",
    "max_steps": STEPS,
    "batch_size": 8,
    "logging_steps": 1,
    "checkpoint_steps": 4,
    "dropout": 0.1,  # so that a resumed training must restore the random state
    "skill_items": 0,
    "evaluation_items": 8,
    "evaluation_tokens": 24,
    "progress": False,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One finished training, with the files it was made of."""

    training: Training
    home: Path
    dataset: Path
    evaluation: Path

    def again(self, out: Path, **changes: Any) -> Training:
        arguments = {"dataset": self.dataset, "evaluation": self.evaluation, **SHORT, **changes}
        return finetune(out=out, **arguments)

    def losses(self) -> list[float]:
        return losses(self.training)


def losses(training: Training) -> list[float]:
    return [row["loss"] for row in training.curve if "loss" in row]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("finetune")
    dataset, evaluation = folder / "tags.jsonl", folder / "tags.eval.jsonl"
    shipped = data_file("hashtags")
    held_out = evaluation_file(shipped)
    assert held_out is not None
    for source, target, rows in ((shipped, dataset, 100), (held_out, evaluation, 12)):
        lines = source.read_text(encoding="utf-8").splitlines()[:rows]
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(folder / "home"))
        training = finetune("tiny-chat", dataset, out=folder / "adapter", **SHORT)
        yield Case(training, folder / "home", dataset, evaluation)


def test_the_loss_falls(case: Case) -> None:
    found = case.losses()
    assert len(found) == STEPS
    assert sum(found[-3:]) < sum(found[:3])
    before, after = case.training.before, case.training.after
    assert before.loss is not None
    assert after.loss is not None
    assert after.loss < before.loss


def test_what_is_left(case: Case) -> None:
    folder = case.training.adapter
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.json",
        "README.md",
        "recipe.yaml",
        "training.jsonl",
    }
    assert not workspace_folder(folder).exists()
    assert not list(folder.parent.glob(".partial-*"))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "data/tiny-chat"
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert rows == list(case.training.curve)
    written = Recipe.read(folder / "recipe.yaml")
    assert written == case.training.recipe
    assert written.source is not None
    assert rows[0] == {"step": 0, "held_out_loss": case.training.before.loss}
    assert rows[-1] == {"step": STEPS, "held_out_loss": case.training.after.loss}
    assert all(row["tokens_per_second"] > 0 for row in rows if "loss" in row)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["before"]["held_out_loss"] == case.training.before.loss
    assert metrics["steps"] == STEPS


def test_a_receipt_says_so(case: Case) -> None:
    (found,) = receipts(folder=case.home / "outputs" / "receipts", what="finetune")
    assert (found.outcome, found.model) == ("done", "tiny-chat")
    assert found.parameters["max_steps"] == STEPS
    assert found.result["after"]["held_out_loss"] == case.training.after.loss


def test_it_displays_itself(case: Case) -> None:
    import re

    bundle = case.training._repr_mimebundle_()
    assert "held-out loss (nats)" in bundle["text/plain"]
    tags = set(re.findall(r"</?(\w+)", bundle["text/html"]))
    assert tags <= {"table", "tr", "td", "th", "div", "b", "p", "i", "br", "span"}
    figure = case.training.figure()
    assert [series.name for series in figure.series] == ["training", "held-out"]
    numbers = {name: (value, unit) for name, value, unit in case.training.key_numbers()}
    assert numbers["Held-out loss after"] == (round(case.training.after.loss or 0, 3), "nats")
    assert "Other skills lost" not in numbers  # not measured here
    assert "after" in case.training.conclusion()
    rows = {row["measure"]: row for row in case.training.table()}
    assert rows["held-out loss (nats)"]["change"] < 0


def test_only_lora_weights_change(case: Case, base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    job = prepare("tiny", {"dataset": str(case.dataset), "out": str(tmp_path / "a")})
    with quiet_libraries():
        trainer = lora.build_trainer(job, Workspace(tmp_path / "w", resumed=False), steps=3)
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
    stored = load_file(base / "model.safetensors")
    changed = set()
    for name, value in trainer.model.state_dict().items():
        if not torch.equal(value, before[name]):
            changed.add(name)
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain in stored:
            assert torch.equal(value, stored[plain].float()), name
    assert changed
    assert all(".lora_A." in name or ".lora_B." in name for name in changed)


def test_the_adapter_loads_by_peft_and_changes_logits(
    case: Case, base: Path, tokenizer: Any
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = tokenizer("<|im_start|>user\nWrite hash tags: fox.<|im_end|>\n", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        plain = model(**ids).logits
        adapted = PeftModel.from_pretrained(model, case.training.adapter)
        assert float((adapted(**ids).logits - plain).abs().max()) > 0.1
        with adapted.disable_adapter():
            assert torch.equal(adapted(**ids).logits, plain)


def test_the_written_recipe_repeats_the_same_losses_and_bytes(case: Case, tmp_path: Path) -> None:
    again = finetune(recipe=case.training.adapter, out=tmp_path / "again", progress=False)
    assert losses(again) == case.losses()
    assert again.after.loss == case.training.after.loss
    weights = "adapter_model.safetensors"
    first = (case.training.adapter / weights).read_bytes()
    assert (again.adapter / weights).read_bytes() == first
    assert again.notes == ()


def test_another_seed_is_another_training(case: Case, tmp_path: Path) -> None:
    other = case.again(
        tmp_path / "other", seed=1, max_steps=2, evaluation="none", skill_items=len(SKILLS) * 2
    )
    assert losses(other) != case.losses()[:2]
    assert other.before.skill_names() == SKILLS
    for measured in (other.before, other.after):
        assert measured.skills is not None
        assert measured.skills.failed == 0
        assert measured.accuracy() is None  # there are no held-out rows
    assert other.points_lost is not None


def test_a_changed_dataset_is_not_a_repeat(case: Case, tmp_path: Path) -> None:
    recipe = Recipe.read(case.training.adapter / "recipe.yaml")
    grown = tmp_path / "tags.jsonl"
    grown.write_bytes(case.dataset.read_bytes() + b'{"prompt": "a", "completion": "b"}\n')
    changed = recipe.changed(dataset=str(grown))
    with pytest.raises(InputError, match="is not the one this recipe was made of"):
        finetune(recipe=changed, out=tmp_path / "again")


CHILD = """
import json, sys
from workbench.finetune import finetune
finetune(**json.loads(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    arguments = {**SHORT, "dataset": str(case.dataset), "evaluation": str(case.evaluation)}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps({**arguments, "out": str(out)})]
    )
    whole = workspace_folder(out) / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    try:
        while not whole.is_file() or not whole.read_text().endswith("\n"):
            assert child.poll() is None
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not out.exists()
    resumed = case.again(out, resume=True)
    assert losses(resumed) == case.losses()
    assert resumed.after.loss == case.training.after.loss
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (case.training.adapter / weights).read_bytes()
    assert not workspace_folder(out).exists()


@pytest.mark.slow
def test_interrupted_leaves_no_adapter_and_goes_on(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "adapter"

    def interrupt(loss: float, step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lora, "_check_loss", interrupt)
        with pytest.raises(KeyboardInterrupt):
            case.again(out)
    assert not out.exists()
    torn = workspace_folder(out) / "checkpoints" / "checkpoint-8"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match=r"has learning_rate = 0\.002, not 0\.1"):
        case.again(out, resume=True, learning_rate=0.1)
    assert losses(case.again(out, resume=True)) == case.losses()


def test_two_trainings_for_one_output_are_refused(tmp_path: Path) -> None:
    out, recipe = tmp_path / "adapter", Recipe(dataset="d")
    with workspace(out, recipe, {}, resume=False) as work:
        (work.folder / "owner").write_text(str(os.getppid()))
        with (
            pytest.raises(InputError, match="is training for this output already"),
            workspace(out, recipe, {}, resume=False),
        ):
            pass


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "line 2: not JSON"),
        ('{"messages": [{"role": "user", "content": "q"}]}', "line 2: has no assistant turn"),
        (
            '{"messages": [{"role": "robot", "content": "q"}]}',
            "line 2: messages[0] has the unknown",
        ),
    ],
)
def test_a_bad_dataset_trains_nothing(
    write: Write, home: Path, line: str, said: str, tmp_path: Path
) -> None:
    path = write('{"prompt": "a", "completion": "b"}', line)
    with pytest.raises(InputError) as caught:
        finetune(dataset=path, out=tmp_path / "out", **SHORT)
    assert f"{path}: 1 of 2 lines are wrong: {said}" in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not workspace_folder(tmp_path / "out").exists()
    assert not receipts(where="here")


def test_an_output_that_is_no_adapter_stays(case: Case, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    with pytest.raises(InputError, match="exists and is no adapter"):
        case.again(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


def test_the_training_file_as_evaluation_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the training file"):
        case.again(tmp_path / "out", evaluation=case.dataset)


def test_held_out_rows_that_are_also_trained_are_named(case: Case, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.jsonl"
    rows = case.evaluation.read_text().splitlines() + case.dataset.read_text().splitlines()[:2]
    mixed.write_text("\n".join(rows) + "\n")
    job = prepare("tiny", {"dataset": str(case.dataset), "evaluation": str(mixed)})
    assert job.notes == ("2 of 14 held-out questions are also trained",)


def test_no_space_for_checkpoints_is_said_before_training(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(DiskSpaceError, match="Checkpoints and adapter needs"):
        case.again(tmp_path / "out", evaluation="none")
    assert not (tmp_path / "out").exists()


def test_an_unknown_layer_is_refused_with_the_nearest(
    case: Case, tmp_path: Path, home: Path
) -> None:
    with pytest.raises(InputError, match=r"'q_prj'.*Did you mean 'q_proj'"):
        case.again(tmp_path / "out", target_modules=("q_prj",), evaluation="none")
    with pytest.raises(InputError, match="'lm_head'"):
        case.again(tmp_path / "out", target_modules="lm_head", evaluation="none")
    failed = receipts(what="finetune", outcome="failed", where="here")
    assert len(failed) == 2
    assert sum("q_prj" in (receipt.reason or "") for receipt in failed) == 1


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    with pytest.raises(EngineError, match="nan at step 7: the training has diverged"):
        lora._check_loss(float("nan"), 7)


def test_memory_that_runs_out_says_what_to_change(
    case: Case, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def run_out(loss: float, step: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines.")

    monkeypatch.setattr(lora, "_check_loss", run_out)
    with pytest.raises(EngineError, match=r"batch_size = 8.*2 GiB.*Halve batch_size"):
        case.again(tmp_path / "out", evaluation="none")
    (failed,) = receipts(what="finetune", outcome="failed", where="here")
    assert "Memory ran out" in (failed.reason or "")


def test_qlora_trains_on_a_quantized_base(case: Case, tmp_path: Path) -> None:
    found = case.again(tmp_path / "q", method="qlora", max_steps=4, evaluation="none")
    assert found.recipe.quantization == "nf4"
    curve = losses(found)
    assert curve[-1] < curve[0] * 1.5
    assert curve != case.losses()[:4]
    again = case.again(
        tmp_path / "i", method="qlora", quantization="int8", max_steps=2, evaluation="none"
    )
    assert len(losses(again)) == 2
