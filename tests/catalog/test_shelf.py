"""The shelf: users' cards over shipped ones, and one model found by id, repository or path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workbench.catalog import Shelf, catalog, locate, resolve
from workbench.catalog.folder import user_folder
from workbench.errors import InputError, NotFoundError
from workbench.paths import shipped


def put(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_an_extending_card_changes_only_what_it_gives() -> None:
    put(
        user_folder(),
        "mine.yaml",
        "extends: qwen3-8b\ncontext_length: 4096\narchitecture: {layers: 2}\n"
        "thinking_sampling: null\ntasks: [chat]\n",
    )
    before = Shelf((shipped("configs", "models"),))["qwen3-8b"]
    shelf = catalog()
    card = shelf["qwen3-8b"]
    assert (card.context_length, card.tasks) == (4096, ("chat",))
    assert card.thinking_sampling is None
    assert card.sampling == before.sampling
    assert card.architecture == before.architecture.changed(layers=2)
    assert card.repository == before.repository
    assert len(shelf) == 87
    assert shelf.origin("qwen3-8b") == "user"
    assert shelf.file("qwen3-8b").name == "mine.yaml"


def test_an_extending_card_with_an_id_of_its_own_is_a_further_card() -> None:
    put(user_folder(), "mine.yaml", "id: my-tiny\nextends: tiny-chat\nnotes: mine\n")
    shelf = catalog()
    assert shelf["my-tiny"].path == shelf["tiny-chat"].path == "data/tiny-chat"
    assert locate(shelf["my-tiny"]).path == shipped("data", "tiny-chat")
    assert shelf["my-tiny"].notes == "mine"


def test_a_card_without_extends_replaces_wholly() -> None:
    put(user_folder(), "mine.yaml", "id: qwen3-8b\nrepository: me/qwen\n")
    card = catalog()["qwen3-8b"]
    assert card.repository == "me/qwen"
    assert card.architecture.layers is None
    assert card.sampling is None


def test_folders_of_the_environment_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(user_folder(), "mine.yaml", "extends: tiny-chat\nnotes: first\nlicence: MIT\n")
    put(tmp_path / "one", "mine.yaml", "extends: tiny-chat\nnotes: second\n")
    put(tmp_path / "two", "more.yml", "id: more\n")
    both = os.pathsep.join([str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "none")])
    monkeypatch.setenv("WORKBENCH_CARDS", both)
    with pytest.warns(UserWarning, match=r"none does not exist.*WORKBENCH_CARDS"):
        shelf = catalog()
    assert (shelf["tiny-chat"].notes, shelf["tiny-chat"].licence) == ("second", "MIT")
    assert "more" in shelf


def test_a_card_file_given_by_path_is_read_as_in_its_folder(tmp_path: Path) -> None:
    path = put(tmp_path, "mine.yaml", "extends: qwen3-8b\npath: x.gguf\n")
    card = resolve(path)
    assert (card.id, card.repository) == ("qwen3-8b", "Qwen/Qwen3-8B")
    assert card.expanded_path() == tmp_path / "x.gguf"


def test_a_pipe_or_folder_among_the_cards_blocks_nothing() -> None:
    put(user_folder(), "good.yaml", "id: good\n")
    os.mkfifo(user_folder() / "pipe.json")
    (user_folder() / "folder.yaml").mkdir()
    (user_folder() / "gone.yaml").symlink_to(user_folder() / "nowhere")
    with pytest.warns(UserWarning, match=r"gone\.yaml does not exist"):
        assert "good" in catalog()
    with pytest.raises(InputError, match="is no file"):
        resolve(user_folder() / "pipe.json")


def test_the_table_says_where_a_card_came_from() -> None:
    put(user_folder(), "mine.yaml", "id: mine\nrepository: me/mine\n")
    rows = {row["id"]: row for row in catalog().table()}
    assert rows["mine"]["card"] == "user"
    assert rows["tiny-chat"]["card"] == "shipped"
    assert rows["gemini-2.0-flash"]["source"].startswith("https://")
    assert rows["gemma-3-1b-it-qat-q4_0"]["source"].endswith("(unverified)")


def test_a_relative_path_of_a_users_card_lies_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    put(user_folder(), "a.yaml", "id: a\npath: files/x.gguf\nprojector: mm.gguf\n")
    put(user_folder(), "b.yaml", "id: b\npath: ~/x.gguf\n")
    put(user_folder(), "c.yaml", "id: c\npath: $MODELS/x.gguf\n")
    shelf = catalog()
    folder = user_folder().resolve()
    assert shelf["a"].expanded_path() == folder / "files" / "x.gguf"
    assert shelf["a"].expanded_projector() == folder / "mm.gguf"
    assert shelf["b"].expanded_path() == Path.home() / "x.gguf"
    monkeypatch.delenv("MODELS", raising=False)
    with pytest.raises(InputError, match="MODELS, which is not set"):
        shelf["c"].expanded_path()
    monkeypatch.setenv("MODELS", "/somewhere")
    assert shelf["c"].expanded_path() == Path("/somewhere/x.gguf")


def test_a_model_is_found_by_its_repository() -> None:
    assert resolve("qwen/qwen3-8b").id == "qwen3-8b"


def test_a_wrong_name_names_the_nearest() -> None:
    with pytest.raises(NotFoundError, match=r"Did you mean 'qwen2\.5-7b-instruct'\?"):
        resolve("qwen2.5-7b-instrct")
    with pytest.raises(NotFoundError, match=r"Did you mean 'Qwen/Qwen3-8B'\? .*models add"):
        resolve("Qwen/Qwen3-8")
    with pytest.raises(NotFoundError, match="path /no/such/model"):
        resolve("/no/such/model")
    with pytest.raises(InputError, match="is empty"):
        resolve("")


def test_a_card_shows_all_it_says() -> None:
    text = catalog()["kimi-k2-instruct"]._repr_mimebundle_()["text/plain"]
    assert "architecture.latent_attention.kv_lora_rank" in text
    assert "1,026,408,209,408" in text


def test_in_named_folders_no_card_may_be_wrong(tmp_path: Path) -> None:
    put(tmp_path, "mine.yaml", "id: mine\nfallback: mine\n")
    with pytest.raises(InputError, match="mine -> mine"):
        Shelf((tmp_path,))


def test_hidden_and_other_files_are_no_cards() -> None:
    put(user_folder(), ".partial-1-x.yaml", "nonsense: [")
    put(user_folder(), "notes.txt", "nonsense: [")
    assert len(catalog()) == 87
