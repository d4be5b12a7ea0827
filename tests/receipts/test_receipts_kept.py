"""What leaves this machine in a receipt: nothing private; and the command."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from receipt_left import left

from workbench import paths
from workbench.errors import InputError, NotFoundError
from workbench.receipts import find, keep, read, write
from workbench.redact import redacted, suspicions

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
