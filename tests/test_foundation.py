"""The lowest rooms: whole files or none, checked values, one order of precedence, clear errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench import paths
from workbench.catalog import Card, Shelf, locate, resolve
from workbench.errors import (
    DiskSpaceError,
    FormatError,
    InputError,
    NotFoundError,
    UnsupportedError,
)
from workbench.messages import Message, Piece, Reply, Sampling, Timings, Usage, as_messages
from workbench.planning import plan
from workbench.receipts import Receipt, read, receipts, write
from workbench.settings import Settings


class Example(Settings):
    """Settings for the tests."""

    learning_rate: float = 1e-3
    """Step size."""
    rank: int = 8
    """LoRA rank."""


def test_atomic_file_keeps_the_old_on_failure(tmp_path: Path) -> None:
    final = tmp_path / "a.txt"
    final.write_text("old")
    with pytest.raises(RuntimeError), paths.atomic_file(final) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_atomic_folder_replaces_only_when_whole(tmp_path: Path) -> None:
    final = tmp_path / "folder"
    with paths.atomic_folder(final) as partial:
        (partial / "one").write_text("1")
    with pytest.raises(RuntimeError), paths.atomic_folder(final) as partial:
        (partial / "two").write_text("2")
        raise RuntimeError
    assert [p.name for p in final.iterdir()] == ["one"]
    with paths.atomic_folder(final) as partial:
        (partial / "three").write_text("3")
    assert [p.name for p in final.iterdir()] == ["three"]
    assert list(tmp_path.iterdir()) == [final]


def test_a_killed_writer_leaves_no_final_name_and_is_swept(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from workbench.paths import atomic_file\n"
        "with atomic_file(Path(sys.argv[1]) / 'final') as partial:\n"
        "    partial.write_text('half'); print('half', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert paths.sweep_partials(tmp_path) == []  # its writer lives
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "final").exists()
    assert len(paths.sweep_partials(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_no_space_is_said_before_the_first_byte(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(DiskSpaceError, match="nothing was written"):
        paths.require_space(tmp_path / "not" / "yet", free + 10**9, purpose="The export")
    paths.require_space(tmp_path, 1, purpose="The export")


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(InputError, match="learning_rate"):
        Example.of({"learning_rat": 1.0})
    with pytest.raises(InputError, match=r"rank.*'eight'"):
        Example.of({"rank": "eight"})
    assert Example.of({"rank": 4}).changed(rank=None, learning_rate=0.5).rank == 4


def test_settings_file_errors_name_the_file(tmp_path: Path) -> None:
    bad = tmp_path / "recipe.yaml"
    bad.write_text("rank: [1")
    with pytest.raises(InputError, match=r"recipe\.yaml is not valid YAML"):
        Example.read(bad)
    bad.write_text("- 1\n")
    with pytest.raises(InputError, match="list"):
        Example.read(bad)
    with pytest.raises(NotFoundError):
        Example.read(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("conversation", "word"),
    [([], "empty"), ([{"role": "usr", "content": "x"}], "user"), ([{"role": "user"}], "no text")],
)
def test_bad_conversations(conversation: list[dict[str, str]], word: str) -> None:
    with pytest.raises(InputError, match=word):
        as_messages(conversation)


def test_a_string_is_one_user_turn() -> None:
    assert as_messages("hi") == (Message("user", "hi"),)


@pytest.mark.parametrize(
    "change", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"stop": ("",)}]
)
def test_sampling_out_of_range(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        Sampling.of(**change)


def test_unknown_sampling_names_the_nearest() -> None:
    with pytest.raises(InputError, match="temperature"):
        Sampling.of(temprature=1.0)


def test_reply_joins_pieces_and_escapes() -> None:
    usage = Usage(prompt_tokens=10, completion_tokens=3)
    timings = Timings.measured(ttft=0.5, total=1.5, usage=usage)
    pieces = [
        Piece(text="<b>", token_id=1),
        Piece(text="猫", token_id=2),
        Piece(token_id=3, finish_reason="length", usage=usage, timings=timings),
    ]
    reply = Reply.joined(pieces, model="m")
    assert (reply.text, reply.token_ids, reply.finish_reason) == ("<b>猫", (1, 2, 3), "length")
    assert timings.prefill_tokens_per_second == 20
    assert timings.decode_tokens_per_second == 2
    bundle = reply._repr_mimebundle_()
    assert "&lt;b&gt;猫" in bundle["text/html"]
    assert "<b>" not in bundle["text/html"]
    assert "TTFT 500 ms" in bundle["text/plain"]


def test_unknown_card_names_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="tiny-chat"):
        resolve("tiny-chta")


def test_missing_folder_is_not_taken_for_a_card(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        resolve(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"config\.json"):
        resolve(tmp_path)


def test_two_cards_with_one_id(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("id: same\n")
    with pytest.raises(InputError, match="same"):
        Shelf((tmp_path,))


def test_card_with_unknown_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("id: a\ncontext_lenght: 5\n")
    with pytest.raises(InputError, match="context_length"):
        Shelf((tmp_path,))


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UnsupportedError, match="pickle"):
        locate(resolve(tmp_path))
    with pytest.raises(UnsupportedError, match="pickle"):
        locate(resolve(tmp_path / "pytorch_model.bin"))


def safetensors(path: Path, *, cut: int = 0) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(16)
    path.write_bytes(data[: len(data) - cut])
    return path


def test_every_truncation_of_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    whole = safetensors(tmp_path / "model.safetensors")
    size = whole.stat().st_size
    assert locate(resolve(tmp_path)).weight_bytes() == size
    for cut in range(1, size + 1):
        safetensors(whole, cut=cut)
        with pytest.raises(FormatError, match="not a whole safetensors file"):
            locate(resolve(tmp_path))


def test_plan_refuses_what_cannot_be() -> None:
    with pytest.raises(InputError, match="transformers"):
        plan("tiny-chat", engine="transfomers")
    with pytest.raises(UnsupportedError, match=r"llama\.cpp can"):
        plan("tiny-chat", engine="transformers", quantization="Q4_K_M")
    with pytest.raises(InputError, match="nf4"):
        plan("tiny-chat", engine="transformers", quantization="nf44")
    with pytest.raises(InputError, match="more than tiny-chat"):
        plan("tiny-chat", context=4096)


def test_plan_says_why() -> None:
    chosen = plan("tiny-chat", engine="llama.cpp")
    assert (chosen.quantization, chosen.context) == ("F16", 2048)
    assert any("16 bits" in reason for reason in chosen.reasons)


def test_receipts_are_written_once_read_back_and_redacted(home: Path) -> None:
    written = Receipt(
        what="load",
        model="tiny-chat",
        outcome="failed",
        reason=f"no file {Path.home()}/models/x with hf_{'a' * 30}",
    )
    path = write(written)
    text = path.read_text()
    assert str(Path.home()) + "/models" not in text
    assert "hf_aaaa" not in text
    (found,) = receipts(what="load", where="here")
    assert found.id == written.id
    assert found.machine["cores"] >= 1
    assert len(receipts(outcome="done", where="here")) == 0
    path.write_text(text.replace('"schema_version": 2', '"schema_version": 99'))
    with pytest.raises(InputError, match="99"):
        read(path)


def test_home_follows_the_environment(home: Path) -> None:
    assert paths.home() == home
    assert paths.outputs("runs", "x") == home / "outputs" / "runs" / "x"


def test_card_paths_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", str(tmp_path))
    assert Card(id="a", path="$MODELS/a").expanded_path() == tmp_path / "a"


def test_sweep_leaves_living_writers(tmp_path: Path) -> None:
    mine = tmp_path / f".partial-{os.getpid()}-x"
    mine.write_text("")
    time.sleep(0)
    assert paths.sweep_partials(tmp_path) == []
