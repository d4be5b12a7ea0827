"""llama.cpp users' JSON entries, read as cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.catalog import catalog, resolve
from workbench.catalog.folder import user_folder
from workbench.errors import InputError

ENTRY: dict[str, Any] = {
    "model": "my-qwen-7b-q4",
    "display_name": "My Qwen 7B",
    "provider": "llama_cpp",
    "context_length": 8192,
    "model_path": "models/qwen.gguf",
    "n_gpu_layers": 20,
    "fallback_on_error": "gemini-2.0-flash",
    "supports_images": False,
    "parameters": {"temperature": 0.2, "top_p": 0.9, "max_tokens": 512},
}
REMOTE = {"model": "gpt-x", "provider": "openai"}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_an_entry_keeps_every_value(tmp_path: Path) -> None:
    card = resolve(str(write(tmp_path / "models.json", ENTRY)))
    assert (card.id, card.display_name) == ("my-qwen-7b-q4", "My Qwen 7B")
    assert card.expanded_path() == tmp_path / "models" / "qwen.gguf"
    assert (card.context_length, card.n_gpu_layers) == (8192, 20)
    assert card.fallback == "gemini-2.0-flash"
    assert card.tasks == ("chat",)
    assert card.sampling is not None
    assert card.sampling.model_dump(exclude_none=True) == {
        "temperature": 0.2,
        "top_p": 0.9,
        "max_tokens": 512,
    }
    (remote,) = catalog().fallbacks(card)
    assert remote.remote is not None
    assert remote.remote.key_variable == "GEMINI_API_KEY"


def test_paths_with_home_and_variables_expand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELS", "/somewhere")
    for given, meant in (
        ("~/x.gguf", Path.home() / "x.gguf"),
        ("${MODELS}/x.gguf", Path("/somewhere/x.gguf")),
        ("/abs/x.gguf", Path("/abs/x.gguf")),
        ("x.gguf", tmp_path / "x.gguf"),
    ):
        card = resolve(write(tmp_path / "m.json", {**ENTRY, "model_path": given}))
        assert card.expanded_path() == meant


def test_a_list_in_the_users_folder_gives_a_card_each() -> None:
    entries = [ENTRY, {**ENTRY, "model": "org/Model V2.gguf", "supports_images": True}, REMOTE]
    write(user_folder() / "models.json", entries)
    shelf = catalog()
    assert {"my-qwen-7b-q4", "org-Model-V2", "gpt-x"} <= {card.id for card in shelf}
    assert shelf["org-Model-V2"].tasks == ("chat", "vision")
    assert shelf["org-Model-V2"].display_name == "My Qwen 7B"
    assert shelf.origin("gpt-x") == "user"


def test_services_become_remote_cards(tmp_path: Path) -> None:
    def remote(**entry: Any) -> Any:
        return resolve(write(tmp_path / "m.json", {"model": "m-1", **entry})).remote

    openai = remote(provider="openai")
    assert (openai.url, openai.key_variable) == ("https://api.openai.com/v1", "OPENAI_API_KEY")
    gemini = remote(provider="gemini", key_variable="MY_KEY")
    assert gemini.url == "https://generativelanguage.googleapis.com/v1beta/openai"
    assert (gemini.model, gemini.key_variable) == ("m-1", "MY_KEY")
    own = remote(provider="openai", base_url="http://127.0.0.1:8000/v1")
    assert (own.url, own.key_variable) == ("http://127.0.0.1:8000/v1", None), "no key goes there"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({**ENTRY, "n_gpu_layer": 3}, "unknown key 'n_gpu_layer'. Did you mean 'n_gpu_layers'?"),
        (
            {**ENTRY, "parameters": {"temprature": 1}},
            "unknown key 'parameters.temprature'. Did you mean 'temperature'?",
        ),
        ({**ENTRY, "context_length": -1}, "context_length = -1"),
        ({**ENTRY, "provider": "ollama"}, "provider = 'ollama'"),
        ({**ENTRY, "fallback_on_error": True}, "names no model"),
        ({"model": "x"}, "has no model_path"),
        ({"model": "", "model_path": "x"}, "model = ''"),
        ({**ENTRY, "base_url": "http://x"}, "base_url is for a service"),
        ({**REMOTE, "model_path": "x.gguf"}, "model_path does not fit the provider 'openai'"),
        ({**REMOTE, "n_gpu_layers": 3}, "n_gpu_layers does not fit the provider 'openai'"),
        ({**REMOTE, "base_url": "ftp://x"}, "remote.url"),
        ([], "names no model"),
        ([1], "1 is no object"),
        ([ENTRY, {**ENTRY, "model": "b"}], "holds 2 models: my-qwen-7b-q4, b"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"model": "a", "model": "b"}', "the key 'model' is given twice"),
    ],
)
def test_bad_entries_say_what_is_wrong(tmp_path: Path, value: Any, said: str) -> None:
    path = write(tmp_path / "models.json", value)
    with pytest.raises(InputError) as caught:
        resolve(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_key_in_a_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = write(tmp_path / "m.json", {**REMOTE, "api_key": "sk-very-secret"})
    with pytest.raises(InputError, match="unknown key 'api_key'") as caught:
        resolve(path)
    assert "sk-very-secret" not in str(caught.value)


def test_a_bad_entry_leaves_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    write(user_folder() / "models.json", [ENTRY, {**ENTRY, "model": "bad", "layers": 3}])
    with pytest.warns(UserWarning, match=r"models\.json.*'bad'.*unknown key 'layers'"):
        shelf = catalog()
    assert "my-qwen-7b-q4" in shelf
    with pytest.raises(InputError, match="unknown key 'layers'"):
        shelf["bad"]
