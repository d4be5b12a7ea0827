"""What receipts prove of a model: here, elsewhere, pending or failed."""

from __future__ import annotations

from pathlib import Path

from receipt_left import CARD, OTHER, PLAN, left

from workbench.catalog import Card
from workbench.catalog.card import GgufSource
from workbench.machine import machine
from workbench.receipts import Evidence, known_sha256, receipts, verified, write


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
