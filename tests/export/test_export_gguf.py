"""Export: files that are the model, all or none, and what is left when a hop is broken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_models import TALK, Fake, Loaded

import workbench as wb
from workbench.catalog import ModelFiles, locate, resolve
from workbench.errors import DiskSpaceError, InputError, ParityError, UnsupportedError
from workbench.formats import ensure_gguf
from workbench.paths import sha256, sweep_partials
from workbench.receipts import receipts


def test_an_adapter_becomes_checked_files(
    adapter: Path, base: Path, tmp_path: Path, talks: list[list[dict[str, str]]]
) -> None:
    out = tmp_path / "export"
    export = wb.export_gguf(adapter, out, quantizations=["q4_k_m", "F16"], conversations=talks)
    assert list(export.files) == ["Q4_K_M", "F16"]
    assert sorted(path.name for path in out.iterdir()) == [
        "export.json",
        "merged",
        "parity.json",
        "random-lora-F16.gguf",
        "random-lora-Q4_K_M.gguf",
    ]
    assert [hop.form for hop in export.parity.hops] == ["merged", "F16", "Q4_K_M"]
    assert export.parity.ok
    assert export.weights.equal == export.weights.total > 40
    about = json.loads((out / "export.json").read_text())["files"]
    for form, path in export.files.items():
        assert about[form]["sha256"] == sha256(path) == export.sha256[form]
        assert about[form]["bytes"] == path.stat().st_size
    assert json.loads((out / "parity.json").read_text())["ok"] is True
    assert {name for name, _, _ in export.key_numbers()} >= {
        "mean KL, F16 to Q4_K_M",
        "smallest, Q4_K_M",
    }
    assert "within its limits" in export._repr_mimebundle_()["text/plain"]
    assert export.conclusion().startswith("All 3 hops keep their limits: adapter, merged, F16, Q4")
    with wb.load(export.files["Q4_K_M"], threads=1) as model:
        assert model.ask("What is 3 + 4?", max_tokens=8).token_ids
    assert receipts(what="export", where="here")[0].outcome == "done"
    assert export.merged == out / "merged"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the float file from the cache: these tests are about what comes after."""
    module = sys.modules["workbench.export.gguf"]

    def converted(files: ModelFiles, out: Path, **_: Any) -> Path:
        return Path(shutil.copy(ensure_gguf(files, "F16"), out))

    monkeypatch.setattr(module, "convert", converted)


@pytest.mark.usefixtures("quick")
def test_a_broken_hop_leaves_only_its_report(tmp_path: Path, fakes: Callable[..., Loaded]) -> None:
    fakes(**{"tiny-chat-Q8_0": Fake(2.0)})
    out = tmp_path / "export"
    with pytest.raises(
        ParityError, match=r"tiny-chat: the hop from F16 to Q8_0 is broken: .*limit"
    ):
        wb.export_gguf("tiny-chat", out, quantizations=["F16", "Q8_0"], conversations=TALK)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == ["export.failed.json"]
    report = json.loads((tmp_path / "export.failed.json").read_text())
    assert [(hop["form"], hop["broken"] is None) for hop in report["hops"]] == [
        ("F16", True),
        ("Q8_0", False),
    ]
    assert receipts(what="export", where="here")[0].outcome == "failed"
    fakes()
    export = wb.export_gguf("tiny-chat", out, quantizations=["Q8_0"], conversations=TALK)
    assert sorted(p.name for p in out.iterdir()) == [
        "export.json",
        "parity.json",
        "tiny-chat-Q8_0.gguf",
    ]
    assert [hop.form for hop in export.parity.hops] == ["F16", "Q8_0"]
    assert not (tmp_path / "export.failed.json").exists()


@pytest.mark.usefixtures("quick")
def test_a_model_without_an_adapter_is_held_against_its_files(
    tmp_path: Path, talks: list[list[dict[str, str]]]
) -> None:
    out = tmp_path / "export"
    export = wb.export_gguf("tiny-chat", out, quantizations=["Q8_0"], conversations=talks[:5])
    assert sorted(p.name for p in out.iterdir()) == [
        "export.json",
        "parity.json",
        "tiny-chat-Q8_0.gguf",
    ]
    assert [(hop.form, hop.against) for hop in export.parity.hops] == [
        ("F16", "source"),
        ("Q8_0", "F16"),
    ]
    assert export.parity.ok


EXPORT = """
import sys
import workbench as wb
wb.export_gguf("tiny-chat", sys.argv[1], quantizations=["F16", "Q4_K_M"])
"""


def test_a_killed_export_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "here" / "export"
    parent = subprocess.Popen([sys.executable, "-c", EXPORT, str(out)])
    children: list[psutil.Process] = []
    while not (children and list(out.parent.glob(".partial-*/*"))):
        assert parent.poll() is None
        children = psutil.Process(parent.pid).children(recursive=True)
        time.sleep(0.02)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert not out.exists()
    sweep_partials(out.parent)
    assert list(out.parent.iterdir()) == []


def test_bad_input(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Q4_K_M"):
        wb.export_gguf("tiny-chat", quantizations=["Q4_KM"])
    with pytest.raises(InputError, match="No quantization"):
        wb.export_gguf("tiny-chat", quantizations=[])
    file = ensure_gguf(locate(resolve("tiny-chat")), "F16")
    with pytest.raises(UnsupportedError, match="GGUF file already"):
        wb.export_gguf(file)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no export of ours"):
        wb.export_gguf("tiny-chat", mine)
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskSpaceError, match=r"Exporting tiny-chat needs .*nothing was written"):
        wb.export_gguf("tiny-chat", tmp_path / "full" / "export")
    assert not (tmp_path / "full").exists()
    assert (mine / "thesis.txt").read_text() == "years of work"
