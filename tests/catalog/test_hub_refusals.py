"""What a hub refuses, whom we ask, and what nobody gets to know."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_hub import FakeHub
from small_repository import CARD, NAME, SHARD, WANTED, files

from workbench.catalog import Card
from workbench.catalog.hub import listing
from workbench.catalog.source import locate
from workbench.errors import (
    DownloadError,
    InputError,
    NotFoundError,
    UnsupportedError,
)


def transfer() -> ModuleType:
    return importlib.import_module("workbench.catalog.transfer")


@pytest.mark.parametrize(
    ("status", "headers", "error", "said"),
    [
        (401, {"X-Error-Code": "RepoNotFound"}, NotFoundError, "no repository owner/small"),
        (404, {"X-Error-Code": "RepoNotFound"}, NotFoundError, "no repository owner/small"),
        (404, {"X-Error-Code": "RevisionNotFound"}, NotFoundError, "no revision"),
        (403, {"X-Error-Code": "GatedRepo"}, DownloadError, "licence"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, DownloadError,
         "does not accept the token"),
        (403, {}, DownloadError, "403"),
        (429, {"Retry-After": "86400"}, DownloadError, "86400 s"),
        (503, {}, DownloadError, "503"),
        (418, {}, DownloadError, "418"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["/api/models", "HEAD"])
def test_refusals_are_told_apart(
    fake_hub: FakeHub, status: int, headers: dict[str, str], error: type, said: str, where: str
) -> None:
    fake_hub.add(NAME, files())
    fake_hub.fail(status, where=where, **headers)
    with pytest.raises(error, match=said) as caught:
        locate(CARD)
    assert "Traceback" not in str(caught.value)


def test_a_missing_revision_and_a_missing_file_are_told_apart(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, files())
    with pytest.raises(NotFoundError, match="no revision 'v9'"):
        locate(CARD.changed(revision="v9"))
    fake_hub.fail(404, where=f"HEAD /{NAME}/resolve", **{"X-Error-Code": "EntryNotFound"})
    with pytest.raises(NotFoundError, match="no file"):
        locate(CARD)


def test_a_gated_repository_names_its_licence_page(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.add(NAME, files(), gated=True)
    for token in ("", "hf_" + "a" * 30):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(DownloadError) as caught:
            locate(CARD)
        assert f"{fake_hub.url}/{NAME}" in str(caught.value)
        assert "hf_aaa" not in str(caught.value)


def test_a_busy_hub_is_waited_for(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, files())
    fake_hub.fail(429, times=2, where="/api/models", **{"Retry-After": "0"})
    fake_hub.fail(503, times=2, where="HEAD")
    fake_hub.fail(500, times=2, where=f"network GET /{NAME}")
    assert locate(CARD).source == "hub"


def test_the_wait_that_a_hub_asks_for_is_kept_and_bounded(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(transfer().time, "sleep", slept.append)
    fake_hub.add(NAME, files())
    fake_hub.fail(429, where="/api/models", **{"Retry-After": "50"})
    with pytest.raises(DownloadError, match="429"):
        listing(NAME)
    assert [pause for pause in slept if pause >= 1] == [50.0, 50.0]
    fake_hub.faults.clear()
    slept.clear()
    fake_hub.fail(429, times=1, where="/api/models", RateLimit='"api";r=0;t=55')
    listing(NAME)
    assert 55.0 in slept


def test_the_token_reaches_the_hub_and_no_other(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "hf_" + "s" * 30
    monkeypatch.setenv("HF_TOKEN", secret)
    fake_hub.add(NAME, files())
    fake_hub.cut(after=1000, where=SHARD)
    locate(CARD)
    at_hub = [each for each in fake_hub.requests if each.server == "hub"]
    at_network = [each for each in fake_hub.requests if each.server == "network"]
    assert at_network
    assert {each.token for each in at_hub} == {f"Bearer {secret}"}
    assert {each.token for each in at_network} == {None}
    said = capfd.readouterr()
    assert secret not in said.out + said.err
    assert "signature=secret" not in said.out + said.err


def test_a_stored_login_is_used(fake_hub: FakeHub, stores: Path) -> None:
    stores.mkdir(exist_ok=True)
    (stores / "token").write_text("hf_stored")
    fake_hub.add(NAME, files())
    locate(CARD)
    assert fake_hub.requests[0].token == "Bearer hf_stored"


def test_nothing_is_told_about_the_user(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, files())
    locate(CARD)
    agents = {each.headers["user-agent"] for each in fake_hub.requests if each.server == "hub"}
    assert all(agent.startswith("llm-workbench/") for agent in agents)
    assert not any("torch/" in agent or "agent/" in agent for agent in agents)
    assert not any("telemetry" in each.path or "harness" in each.path for each in fake_hub.requests)


def test_a_proxy_is_used_and_left_out_where_the_environment_says_so(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import close_session

    fake_hub.add(NAME, files())
    monkeypatch.setenv("HTTP_PROXY", fake_hub.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    close_session()
    assert listing(NAME).commit == fake_hub.repositories[NAME].commit
    assert fake_hub.requests[-1].path.startswith("http://hub.invalid/api/models/")
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    close_session()
    with pytest.raises(DownloadError) as caught:
        listing(NAME)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    assert listing(NAME).files["config.json"].size == 2


def test_a_hub_that_is_not_there(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://user:secret@127.0.0.1:9/")
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9 cannot be reached") as caught:
        locate(CARD)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["WORKBENCH_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nobody_and_names_what_is_missing(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = fake_hub.add(NAME, files())
    monkeypatch.setenv(name, "1")
    with pytest.raises(DownloadError, match="owner/small"):
        locate(CARD)
    assert not fake_hub.requests
    monkeypatch.delenv(name)
    locate(CARD)
    monkeypatch.setenv(name, "1")
    assert locate(CARD).revision == made.commit


def test_names_from_the_hub_stay_inside_the_cache(fake_hub: FakeHub, stores: Path) -> None:
    fake_hub.add(NAME, files(**{"../../escape.json": b"{}", "/absolute.json": b"{}"}))
    found = locate(CARD)
    assert {path.name for path in found.path.iterdir()} == WANTED
    assert not list(stores.rglob("escape.json"))

    def forged(handler: Any, line: str) -> bool:
        if "HEAD" not in line or "config.json" not in line:
            return False
        handler._send(200, b"{}", {"ETag": '"../../../x"', "X-Repo-Commit": "c" * 40})
        return True

    other = "owner/forged"
    fake_hub.add(other, files())
    fake_hub.faults.append(forged)
    with pytest.raises(DownloadError, match="ETag"):
        locate(Card(id="forged", repository=other))
    with pytest.raises(InputError, match="not the name of a repository"):
        locate(Card(id="bad", repository="a/../b"))


def test_pickles_are_refused_before_they_are_downloaded(fake_hub: FakeHub) -> None:
    fake_hub.add(NAME, {"config.json": b"{}", "pytorch_model.bin": b"\x80"})
    with pytest.raises(UnsupportedError, match="pickle"):
        locate(CARD)
    assert not fake_hub.downloads("pytorch_model.bin")
