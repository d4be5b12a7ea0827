"""Receipts: written whole, read in every schema, found, shown, kept, and what they prove."""

from __future__ import annotations

import datetime as dt
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from workbench import paths
from workbench.catalog import Card
from workbench.catalog.card import GgufSource
from workbench.errors import InputError, NotFoundError
from workbench.machine import machine
from workbench.receipts import (
    SCHEMA,
    Evidence,
    Receipt,
    find,
    keep,
    known_sha256,
    read,
    receipts,
    verified,
    write,
)
from workbench.receipts.folder import _problem, file_name
from workbench.redact import redacted, suspicions

VERSION_1 = Path(__file__).parent / "receipts" / "20261121T121327426-load-9544ac014177.json"
PLAN = {"engine": "transformers", "quantization": "none", "context": 2048, "device": "cpu"}
OTHER = {"processor": "Another CPU", "ram_bytes": 64 * 2**30, "devices": [], "python": "3.12.1"}


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty folder of shipped receipts, and return that of this machine."""
    ships = home / "ships"
    ships.mkdir()
    monkeypatch.setattr(
        importlib.import_module("workbench.receipts.found"), "shipped_folder", lambda: ships
    )
    return home / "outputs" / "receipts"


def left(minute: int = 0, **values: Any) -> Receipt:
    """Return a receipt of a load, written at a minute of one hour."""
    return Receipt.of(
        {
            "what": "load",
            "model": "tiny-chat",
            "outcome": "done",
            "plan": PLAN,
            "time": f"2026-03-01T10:{minute:02d}:00.000+00:00",
            **values,
        }
    )


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


# Finding


def test_conditions(folder: Path) -> None:
    write(left(1, id="one"))
    write(left(2, id="two", what="compare", outcome="failed", reason="out of memory"))
    write(left(3, id="three", model="other", plan={**PLAN, "quantization": "nf4"}))
    write(left(4, id="four", revision="abc", machine=OTHER))

    def ids(*what: str, **conditions: Any) -> list[str]:
        return [receipt.id for receipt in receipts(*what, **conditions)]

    assert ids() == ["one", "two", "three", "four"]
    assert ids("load") == ["one", "three", "four"]
    assert ids(model="other") == ids(quantization="nf4") == ["three"]
    assert ids(outcome="failed") == ["two"]
    assert ids(engine="llama.cpp") == []
    assert ids(where="here") == ["one", "two", "three"]
    assert ids(where="elsewhere") == ids(revision="abc") == ["four"]
    assert ids(since="2026-03-01T10:03") == ids(since="2026-03-01T19:03+09:00") == ["three", "four"]
    assert ids(since=dt.datetime(2026, 3, 1, 10, 2)) == ["two", "three", "four"]
    assert ids(since=dt.date(2026, 3, 2)) == []
    assert ids(id="t") == ["two", "three"]
    assert receipts().latest().id == "four"  # type: ignore[union-attr]
    assert receipts(model="none").latest() is None
    assert [receipt.id for receipt in receipts()[1:3]] == ["two", "three"]


def test_since_may_say_how_long_ago(folder: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    for hours in (1, 30, 24 * 10):
        write(left(id=f"h{hours}", time=(now - dt.timedelta(hours=hours)).isoformat()))
    assert [each.id for each in receipts(since="2h")] == ["h1"]
    assert [each.id for each in receipts(since="7d")] == ["h30", "h1"]
    assert len(receipts(since=dt.timedelta(weeks=2))) == 3


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"outcome": "don"}, "done"),
        ({"where": "her"}, "here"),
        ({"since": "yesterday"}, "7d"),
        ({"since": "999999999w"}, "7d"),
    ],
)
def test_conditions_that_cannot_be(folder: Path, conditions: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        receipts(**conditions)


def test_shipped_receipts_are_elsewhere_and_a_kept_one_counts_once(
    folder: Path, home: Path
) -> None:
    mine = write(left(id="mine"))
    keep(mine, home / "ships")
    write(left(1, id="shipped"), folder=home / "ships")
    assert {each.id for each in receipts(where="here")} == {"mine"}
    assert {each.id for each in receipts(where="elsewhere")} == {"shipped"}
    assert len(receipts()) == 2


# Showing


def test_the_table_tells_outcomes_and_where(folder: Path) -> None:
    write(left(1, result={"load_seconds": 1.25, "weight_bytes": 15_200_000_000}))
    write(left(2, outcome="failed", reason="CUDA <out> of memory", machine=OTHER))
    bundle = receipts()._repr_mimebundle_()
    lines = bundle["text/plain"].splitlines()
    assert lines[0] == "2 receipts"
    assert "load 1.25 s, weight 15.2 GB" in lines[-2]
    assert " here " in lines[-2]
    assert " elsewhere " in lines[-1]
    assert "CUDA <out> of memory" in lines[-1]
    assert '<tr class="failed">' in bundle["text/html"]
    assert "CUDA &lt;out&gt; of memory" in bundle["text/html"]
    assert "<style" not in bundle["text/html"]


def test_a_long_table_shows_the_newest(folder: Path) -> None:
    for minute in range(12):
        write(left(minute, id=f"r{minute:02d}"))
    text = str(receipts().table(most=5))
    assert text.startswith("The latest 5 of 12 receipts")
    assert "r07" in text
    assert "r06" not in text


def test_an_empty_table_says_so(folder: Path) -> None:
    assert repr(receipts()) == "0 receipts: no rows"


def test_to_frame(folder: Path) -> None:
    write(left(1, result={"speed": {"decode": 12.5}}))
    write(left(2, outcome="failed", reason="no"))
    frame = receipts().to_frame()
    assert list(frame["result.speed.decode"].dropna()) == [12.5]
    assert list(frame["where"]) == ["here", "here"]
    assert frame["time"].is_monotonic_increasing
    assert str(frame["time"].dtype).startswith("datetime64")
    assert list(receipts(model="none").to_frame().columns)[:2] == ["schema_version", "id"]


def test_a_receipt_shows_every_value() -> None:
    text = left(result={"speed": {"decode": 12.5}})._repr_mimebundle_()["text/plain"]
    assert "result.speed.decode" in text
    assert "plan.context" in text


# What they prove

CARD = Card(id="tiny-chat")


def test_nothing_is_pending_and_each_place_counts(folder: Path) -> None:
    assert verified(CARD) == "pending"
    write(left(1, outcome="failed", reason="no"))
    assert verified(CARD) == "failed"
    write(left(2, machine=OTHER))
    assert verified(CARD) == "elsewhere"
    write(left(3))
    assert verified(CARD) == "here"
    assert verified(Card(id="other")) == "pending"


def test_shipped_evidence_is_elsewhere_though_measured_on_such_a_machine(
    folder: Path, home: Path
) -> None:
    write(left(), folder=home / "ships")
    assert verified(CARD) == "elsewhere"


def test_a_place_is_processor_memory_and_devices(folder: Path) -> None:
    facts = machine().describe()
    nearly = {**facts, "ram_bytes": int(facts["ram_bytes"] * 0.98), "cores": 1, "system": "other"}
    write(left(1, machine=nearly))
    for number, changed in enumerate(
        (
            {"processor": "Another CPU"},
            {"ram_bytes": facts["ram_bytes"] * 2},
            {"devices": [{"kind": "cuda", "name": "Another GPU", "total_bytes": 1}]},
        )
    ):
        write(left(2 + number, machine={**facts, **changed}))
    assert [receipt.time[14:16] for receipt in receipts(where="here")] == ["01"]


def test_engine_and_quantization_must_match(folder: Path) -> None:
    write(left(plan={**PLAN, "quantization": "nf4"}))
    assert verified(CARD, engine="transformers", quantization="nf4") == "here"
    assert verified(CARD, engine="llama.cpp") == "pending"
    assert verified(CARD, quantization="int8") == "pending"


def test_only_loads_comparisons_and_verifications_prove(folder: Path) -> None:
    for minute, what in enumerate(("finetune", "export", "merge", "parity")):
        write(left(minute, what=what))
    write(left(10, plan={**PLAN, "engine": "scripted"}))
    assert verified(CARD) == "pending"
    write(left(11, what="compare"))
    assert verified(CARD) == "here"


def test_another_revision_proves_nothing(folder: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    pinned = Card(id="tiny-chat", revision=commit)
    write(left(1))
    write(left(2, revision="f" * 40))
    assert verified(CARD) == "here"
    assert verified(pinned) == "pending"
    write(left(3, revision=commit))
    assert verified(pinned) == "here"
    assert verified(pinned, revision=commit[:7]) == "here"
    assert verified(pinned, revision=commit[:6]) == "pending"
    assert verified(CARD, revision="e" * 40) == "pending"


def test_gguf_files_have_a_revision_of_their_own(folder: Path) -> None:
    source = GgufSource(repository="a/b", revision="b" * 40)
    card = Card(id="tiny-chat", revision="a" * 40, gguf=source)
    plan = {**PLAN, "engine": "llama.cpp", "files": "~/x.gguf"}
    write(left(1, plan=plan, revision="a" * 40))
    assert verified(card) == "pending"
    write(left(2, plan=plan, revision="b" * 40))
    assert verified(card) == "here"


def test_a_later_failure_outweighs_under_the_same_conditions_only(folder: Path) -> None:
    write(left(10))
    failed = {"outcome": "failed", "reason": "no"}
    write(left(1, **failed))  # earlier
    write(left(11, **failed, versions={**machine().versions, "torch": "9.9"}))
    write(left(12, **failed, machine=OTHER))
    write(left(13, **failed, plan={**PLAN, "context": 131_072}))
    write(left(14, **failed, plan={**PLAN, "adapter": "~/adapter"}))
    write(left(15, **failed, plan={**PLAN, "quantization": "nf4"}))
    assert verified(CARD) == "here"
    assert verified(CARD, quantization="nf4") == "failed"
    write(left(20, **failed))
    assert verified(CARD) == "failed"
    write(left(21))
    assert verified(CARD) == "here"


def test_an_outweighed_success_leaves_that_of_another_machine(folder: Path) -> None:
    write(left(1, machine=OTHER))
    write(left(2))
    write(left(3, outcome="failed", reason="no"))
    assert verified(CARD) == "elsewhere"


def test_a_broken_adapter_does_not_speak_against_the_card(folder: Path) -> None:
    write(left(1, outcome="failed", reason="no", plan={**PLAN, "adapter": "~/adapter"}))
    assert verified(CARD) == "pending"


def test_evidence_is_gathered_once_for_many_cards(folder: Path) -> None:
    write(left(1))
    evidence = Evidence.gather()
    write(left(2, model="late"))
    assert evidence.verified(CARD) == "here"
    assert evidence.verified(Card(id="late")) == "pending"


def test_the_sha256_is_taken_from_the_name_that_a_store_gave(tmp_path: Path) -> None:
    digest, other = "ab" * 32, "cd" * 32
    for name in (digest, other, f"sha256-{digest}"):
        (tmp_path / name).write_bytes(b"x")
    for name, target in (("a.gguf", digest), ("b.gguf", other)):
        (tmp_path / name).symlink_to(tmp_path / target)
    (tmp_path / "plain.gguf").write_bytes(b"x")
    links = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    assert known_sha256(links[:1]) == known_sha256([tmp_path / f"sha256-{digest}"]) == digest
    assert known_sha256(links) == known_sha256(links[::-1]) != digest
    assert known_sha256([tmp_path / "plain.gguf"]) is None
    assert known_sha256([links[0], tmp_path / "plain.gguf"]) is None
    assert known_sha256([]) is None


# Keeping

SECRETS = {
    "hugging face": "hf_" + "aB3" * 10,
    "openai": "sk-" + "aB3" * 12,
    "bearer": "Bearer abc.def-1234567890",
    "aws id": "AKIA" + "ABCDEFGH12345678",
    "aws secret": "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "assigned": "--api-key=0123456789abcdef01",
    "gitlab": "glpat-" + "a1B2" * 6,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123",
    "home": "/home/bob/models/a.gguf",
    "mac home": "/Users/carol/x",
    "host": "gpu-box-7.lab is up",
    "other host": "http://gpu-box-9:8000/v1 and https://llm.corp/v1",
    "private address": "http://192.168.1.20:8000/v1",
    "e-mail": "ask bob.smith@example.org",
    "password in address": "https://bob:pa55word@example.org/x",
}
PRIVATE = (
    *("aB3aB3", "abc.def-1234567890", "ABCDEFGH12345678", "wJalr", "0123456789abcdef01", "a1B2"),
    *("eyJhbGci", "bob", "carol", "gpu-box", "llm.corp", "192.168", "pa55word"),
)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "gpu-box-7.lab")


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("name", SECRETS)
def test_nothing_private_is_written_or_kept(folder: Path, home: Path, name: str) -> None:
    secret = SECRETS[name]
    written = write(left(reason=f"it said: {secret}, then more", parameters={"deep": [secret]}))
    kept = keep(written, home / "kept")
    for path in (written, kept):
        text = path.read_text()
        assert not [part for part in PRIVATE if part in text], text
        assert "then more" in text


@pytest.mark.usefixtures("host")
def test_keeping_redacts_what_an_older_workbench_wrote(folder: Path, home: Path) -> None:
    path = write(left())
    values = json.loads(path.read_text())
    values["parameters"] = dict(SECRETS)
    path.write_text(json.dumps(values))
    text = keep(path, home / "kept").read_text()
    assert not [part for part in PRIVATE if part in text], text


def test_keeping_refuses_what_still_looks_like_a_secret(folder: Path, home: Path) -> None:
    secret = "Zm9vYmFyMTIzNDU2Nzg5MEFCQ0RFRkdISUpLTE1O"
    written = write(left(parameters={"note": f"use {secret}"}))
    with pytest.raises(InputError, match=r"parameters\.note: a long random word") as raised:
        keep(written, home / "kept")
    assert secret not in str(raised.value)
    assert not (home / "kept").exists()


def test_plain_receipts_are_kept_unchanged(folder: Path, home: Path) -> None:
    receipt = left(
        revision="0123456789abcdef0123456789abcdef01234567",
        sha256="ab" * 32,
        result={"text": "猫 is cat; Qwen2VLForConditionalGeneration", "eos_token": "<|im_end|>"},
        parameters={"url": "https://huggingface.co/Qwen/Qwen2.5-7B-Instruct", "max_tokens": 64},
    )
    path = keep(write(receipt), home / "kept")
    assert read(path) == receipt
    with pytest.raises(InputError, match="never rewritten"):
        keep(receipt, home / "kept")


def test_keeping_by_the_beginning_of_an_id(folder: Path, home: Path) -> None:
    write(left(1, id="abc1"))
    write(left(2, id="abd2"))
    assert read(keep("abc", home / "kept")).id == "abc1"
    with pytest.raises(InputError, match="abc1, abd2"):
        find("ab")
    with pytest.raises(NotFoundError, match="abd2"):
        find("abx2")
    with pytest.raises(NotFoundError):
        find(home / "none.json")


def test_code_and_replies_keep_their_addresses() -> None:
    text = "mail me@example.org at http://host:80 with api_key = 'abcdef123456'"
    assert redacted(text) == text
    assert redacted(text, public=True) == (
        "mail <e-mail> at http://<host>:80 with api_key = '<redacted>'"
    )


def test_public_addresses_and_versions_stay() -> None:
    text = (
        "https://api.example.com/v1 http://localhost:8000 http://127.0.0.1:1 12.4.1.0 "
        "user@2.5 hf://Qwen/Qwen3 eos_token: <|im_end|> per token: 0.001234567890"
    )
    assert redacted(text, public=True) == text
    assert suspicions({"text": text, "hash": "ab" * 32, "max_tokens": 5}) == []


def test_fields_for_secrets_are_suspicious() -> None:
    assert suspicions({"hf_token": ["a"], "api_key": "<redacted>"}) == [
        "hf_token: a field for a secret"
    ]


# The command line


def workbench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", "receipts", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command_lists_shows_and_keeps(home: Path) -> None:
    write(left(id="abcdef"))
    listed = workbench("--model", "tiny-chat", "--where", "here")
    assert listed.returncode == 0, listed.stderr
    assert "1 receipt" in listed.stdout
    assert "abcdef" in listed.stdout
    assert "plan.context" in workbench("show", "abc").stdout
    kept = workbench("keep", "abc", "--to", str(home / "kept"))
    assert read(Path(kept.stdout.strip())).id == "abcdef"
    wrong = workbench("--outcome", "don")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "done" in wrong.stderr


def test_every_receipt_that_ships_can_be_read_and_is_clean() -> None:
    for path in paths.shipped("data", "receipts").glob("*.json"):
        values = read(path).model_dump(exclude={"sha256"})
        assert suspicions(values) == [], path
