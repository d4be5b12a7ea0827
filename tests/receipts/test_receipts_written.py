"""Receipts are written whole and once, and read in every schema."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from receipt_left import PLAN, left

from workbench import paths
from workbench.errors import InputError
from workbench.machine import machine
from workbench.receipts import SCHEMA, Receipt, read, receipts, write
from workbench.receipts.folder import _problem, file_name

VERSION_1 = Path(__file__).parent / "20261121T121327426-load-9544ac014177.json"


# Writing


def test_engine_quantization_and_form_come_from_the_plan() -> None:
    receipt = left(plan={**PLAN, "quantization": "nf4", "files": "~/models/a"})
    assert (receipt.engine, receipt.quantization, receipt.form) == (
        *("transformers", "nf4", "safetensors"),
    )
    assert left(plan={**PLAN, "files": "~/.ollama/blobs/sha256-12"}).form == "gguf"
    assert left(engine="llama.cpp").engine == "llama.cpp"
    assert left().versions == machine().versions
    assert "versions" not in left().machine


def test_a_receipt_is_never_rewritten(folder: Path) -> None:
    receipt = left()
    path = write(receipt)
    before = path.read_bytes()
    with pytest.raises(InputError, match="never rewritten"):
        write(receipt.model_copy(update={"outcome": "failed"}))
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [path]


def test_a_new_file_does_not_replace_where_links_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    for expected in (None, FileExistsError):
        try:
            with paths.atomic_file(tmp_path / "a", new=True) as partial:
                partial.write_text(str(expected))
        except FileExistsError:
            assert expected is FileExistsError
        else:
            assert expected is None
    assert (tmp_path / "a").read_text() == "None"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_sort_by_time_and_stay_in_their_folder(folder: Path) -> None:
    zone = left(time="2026-03-01T10:00:00+09:00", id="../../up", what="a/b")
    assert file_name(zone) == "20260301T010000000-a-b-------up.json"
    assert write(zone).parent == folder


def test_a_killed_writer_leaves_whole_receipts_only(folder: Path) -> None:
    code = (
        "from workbench.receipts import Receipt, write\n"
        "facts = {'processor': 'x' * 200_000}\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    write(Receipt(what='load', model='m', outcome='done', machine=facts, versions={}))\n"
    )
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        already = len(list(folder.glob("[0-9]*.json")))
        while len(list(folder.glob("[0-9]*.json"))) < already + 3:
            assert child.poll() is None
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    found = receipts()
    assert len(found) >= 9
    assert found.damaged == ()
    assert {len(receipt.machine["processor"]) for receipt in found} == {200_000}


# Schemas


def test_version_1_is_read() -> None:
    old = json.loads(VERSION_1.read_text())
    assert old["schema_version"] == 1
    receipt = read(VERSION_1)
    assert receipt.schema_version == SCHEMA == 2
    assert (receipt.engine, receipt.quantization, receipt.form) == ("llama.cpp", "F16", "gguf")
    assert (receipt.revision, receipt.sha256) == (None, None)
    assert receipt.versions == old["machine"].pop("versions")
    assert receipt.machine == old["machine"]
    for name in ("id", "time", "what", "model", "plan", "parameters", "outcome", "result"):
        assert getattr(receipt, name) == old[name], name


def test_version_1_stands_among_the_others(folder: Path) -> None:
    write(left())
    (folder / VERSION_1.name).write_bytes(VERSION_1.read_bytes())
    assert [receipt.engine for receipt in receipts("load")] == ["transformers", "llama.cpp"]
    assert len(receipts(engine="llama.cpp")) == 1


def test_a_newer_schema_is_refused_alone_and_counted_among_others(folder: Path) -> None:
    path = write(left())
    write(left(1))
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    with pytest.raises(InputError, match=r"schema 3, this workbench reads up to 2.*Update"):
        read(path)
    found = receipts()
    assert len(found) == len(list(found)) == 1
    assert "Warning: 1 of a newer schema" in repr(found)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"schema_version": 2, "id": "a', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"[1]", "holds a list"),
        (b"{}", "schema_version is None"),
        (b'{"schema_version": true}', "schema_version is True"),
        (b'{"schema_version": "2"}', "schema_version is '2'"),
        (b'{"schema_version": 2}', "engine is missing"),
    ],
)
def test_a_damaged_file_hides_no_other(folder: Path, content: bytes, reason: str) -> None:
    write(left())
    (folder / "20260301T110000000-load-bad.json").write_bytes(content)
    (folder / ".partial-1-x").write_text("{")
    found = receipts(outcome="done")
    assert [receipt.id for receipt in found] == [found[0].id]
    (damaged,) = found.damaged
    assert reason in damaged.reason
    for shown in (repr(found), found._repr_mimebundle_()["text/html"]):
        assert "1 receipt, 1 damaged" in shown
        assert "20260301T110000000-load-bad.json" in shown
    with pytest.raises(InputError):
        read(damaged.path)


def mutants() -> list[dict[str, Any]]:
    whole = left(reason="r", revision="c").model_dump()
    bad: list[Any] = [None, 1, "", "x", [], {}, {"a": 1}, True, 1.5]
    return [
        *({**whole, name: value} for name in whole for value in bad if name != "schema_version"),
        *({key: whole[key] for key in whole if key != name} for name in whole),
        {**whole, "extra": 1},
    ]


def test_the_quick_check_is_as_strict_as_the_schema() -> None:
    seen = set()
    for values in mutants():
        if "schema_version" not in values:
            continue
        try:
            Receipt.model_validate(values)
            strict = values.keys() == Receipt.model_fields.keys()  # a file lacks no field
        except ValidationError:
            strict = False
        assert (_problem(values) is None) == strict, values
        seen.add(strict)
    assert seen == {True, False}
