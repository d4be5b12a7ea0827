"""``workbench models add``: cards made from folders, files and a hub, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub

from workbench.catalog import Card, catalog, locate, resolve
from workbench.catalog.folder import user_folder
from workbench.catalog.side_files import front_matter, language_codes, sampling_of
from workbench.cli import main
from workbench.errors import DownloadError, InputError, NotFoundError
from workbench.paths import shipped

TINY = shipped("data", "tiny-chat")


def gguf(path: Path, *, template: bool = True) -> Path:
    import numpy
    from gguf import GGUFWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(32)
    writer.add_license("apache-2.0")
    writer.add_languages(["ja", "en"])
    if template:
        writer.add_chat_template("{{ messages }}")
    for name, shape in {
        "token_embd": (32, 64), "blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64),
        "blk.0.attn_v": (32, 64), "blk.0.attn_output": (64, 64), "blk.0.ffn_up": (96, 64),
        "blk.0.ffn_gate": (96, 64), "blk.0.ffn_down": (64, 96),
    }.items():  # fmt: skip
        writer.add_tensor(f"{name}.weight", numpy.zeros(shape, dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def copy_of_tiny(folder: Path, **files: str) -> Path:
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("builder"))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def test_a_folder_becomes_a_card_that_loads_and_says_what_the_files_say() -> None:
    shelf = catalog()
    card = shelf.add(TINY, card_id="mine", display_name="My own")
    assert shelf["mine"] == card
    path = user_folder() / "mine.yaml"
    assert shelf.file("mine") == path
    assert path.read_text(encoding="utf-8").startswith('# wb.load("mine")\nid: mine\n')
    again = catalog()["mine"]
    stated = catalog()["tiny-chat"]
    assert again.architecture.parameters == 4_655_872
    assert again.architecture.classes == ("LlamaForCausalLM",)
    assert (again.licence, again.languages) == (stated.licence, stated.languages)
    assert (again.tasks, again.display_name) == (("chat",), "My own")
    assert again.sampling is not None
    assert (again.sampling.temperature, again.sampling.max_tokens) == (0, 128)
    assert locate(again).weights == (TINY / "model.safetensors",)


def test_config_json_stands_for_its_folder() -> None:
    assert catalog().add(TINY / "config.json", card_id="mine").path == str(TINY)


def test_an_extending_card_is_added_whole(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("id: mine\nextends: tiny-chat\n", encoding="utf-8")
    catalog().add(tmp_path / "mine.yaml")
    card = catalog()["mine"]
    assert card.extends is None
    assert locate(card).path == TINY
    assert card.architecture == catalog()["tiny-chat"].architecture


def test_a_gguf_file_becomes_a_card(tmp_path: Path) -> None:
    path = gguf(tmp_path / "My Model-Q8.gguf")
    card = catalog().add(path)
    assert card.id == "my-model-q8"
    facts = card.architecture
    assert (facts.layers, facts.hidden_size, facts.kv_heads, facts.vocab_size) == (1, 64, 2, 32)
    assert facts.kv_cache_bytes_per_token_16bit == 2 * 2 * 16 * 2
    assert (card.context_length, card.licence) == (4096, "Apache-2.0")
    assert (card.languages, card.tasks) == (("ja", "en"), ("chat",))
    assert catalog()["my-model-q8"].expanded_path() == path


def test_a_model_without_a_template_does_not_chat(tmp_path: Path) -> None:
    assert resolve(gguf(tmp_path / "base.gguf", template=False)).tasks == ()
    folder = copy_of_tiny(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    assert resolve(folder).tasks == ()


def test_a_folder_with_a_projector_sees(tmp_path: Path) -> None:
    gguf(tmp_path / "m" / "sees.gguf")
    gguf(tmp_path / "m" / "mmproj-sees.gguf")
    card = resolve(tmp_path / "m")
    assert card.expanded_path() == tmp_path / "m" / "sees.gguf"
    assert card.expanded_projector() == tmp_path / "m" / "mmproj-sees.gguf"
    assert card.tasks == ("chat", "vision")


def test_a_taken_id_is_refused_unless_replaced() -> None:
    shelf = catalog()
    with pytest.raises(InputError, match="a card that ships"):
        shelf.add(TINY)
    shelf.add(TINY, card_id="mine")
    before = (user_folder() / "mine.yaml").read_bytes()
    for each in (shelf, catalog()):
        with pytest.raises(InputError, match=r"There is a card mine already.*--replace"):
            each.add(TINY, card_id="mine", display_name="other")
    assert (user_folder() / "mine.yaml").read_bytes() == before
    shelf.add(TINY, card_id="mine", display_name="other", replace=True)
    assert catalog()["mine"].display_name == "other"
    shelf.add(TINY, replace=True)
    assert catalog().origin("tiny-chat") == "user"


def test_replacing_writes_the_file_that_has_the_id() -> None:
    user_folder().mkdir(parents=True)
    (user_folder() / "other.yaml").write_text("id: mine\n", encoding="utf-8")
    catalog().add(TINY, card_id="mine", replace=True)
    assert [path.name for path in user_folder().iterdir()] == ["other.yaml"]
    (user_folder() / "list.json").write_text(
        json.dumps([{"model": "listed", "model_path": "x.gguf"}]), encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"list\.json, which is not written to"):
        catalog().add(TINY, card_id="listed", replace=True)


def test_the_files_of_a_card_speak_where_it_is_silent(tmp_path: Path) -> None:
    gguf(tmp_path / "x.gguf")
    entry = {"model": "m", "model_path": "x.gguf", "context_length": 99}
    (tmp_path / "m.json").write_text(json.dumps(entry), encoding="utf-8")
    for card in (resolve(tmp_path / "m.json"), catalog().add(tmp_path / "m.json"), resolve("m")):
        assert (card.id, card.context_length, card.display_name) == ("m", 99, "m")
        assert (card.architecture.layers, card.architecture.hidden_size) == (1, 64)
        assert card.languages == ("ja", "en")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert resolve(tmp_path / "m.json").architecture.layers is None


def test_cards_of_others_are_checked_before_they_are_copied(tmp_path: Path) -> None:
    entry = {"model": "m", "model_path": "x.gguf", "fallback_on_error": "tiny-chat"}
    (tmp_path / "m.json").write_text(json.dumps(entry), encoding="utf-8")
    card = catalog().add(tmp_path / "m.json")
    assert card.expanded_path() == tmp_path / "x.gguf"
    assert [step.id for step in catalog().fallbacks("m")] == ["tiny-chat"]
    for name, text, said in (
        ("a.yaml", "id: a\nfallback: tiny-chatt\n", "Did you mean 'tiny-chat'"),
        ("b.yaml", "id: b\nfallback: b\n", "b -> b"),
        ("c.yaml", "id: c\nlayers: 1\n", "unknown key 'layers'"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=said):
            catalog().add(tmp_path / name)
    assert [path.name for path in user_folder().iterdir()] == ["m.yaml"]


@pytest.mark.parametrize("source", ["./no/such", "/no/such", "no-such-model", "a/b/c", "~nobody/x"])
def test_what_is_no_model_is_refused(source: str) -> None:
    with pytest.raises(NotFoundError, match="no such path exists"):
        catalog().add(source)
    assert not user_folder().exists()


def test_an_unsafe_id_is_refused_and_nothing_written() -> None:
    with pytest.raises(InputError, match=r"id = '\.\./x'"):
        catalog().add(TINY, card_id="../x")
    assert not user_folder().exists()


def test_a_repository_is_read_by_its_headers_alone(fake_hub: FakeHub) -> None:
    files = {path.name: path.read_bytes() for path in TINY.iterdir() if path.is_file()}
    made = fake_hub.add("acme/Tiny-Chat-Ja", files)
    card = catalog().add("https://huggingface.co/acme/Tiny-Chat-Ja")
    assert card.id == "tiny-chat-ja"
    assert (card.repository, card.revision, card.path) == ("acme/Tiny-Chat-Ja", made.commit, None)
    assert card.architecture.parameters == 4_655_872
    assert (card.licence, card.languages, card.tasks) == ("Apache-2.0", ("en", "ja"), ("chat",))
    assert fake_hub.sent("model.safetensors") < len(files["model.safetensors"]) / 4
    assert catalog()["tiny-chat-ja"] == card


def test_a_repository_of_gguf_files_keeps_them_as_ready_files(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    small = gguf(tmp_path / "x.gguf").read_bytes()
    made = fake_hub.add(
        "acme/x-GGUF",
        {"x-Q8_0.gguf": small, "x-F16.gguf": small + bytes(64), "README.md": b"no front matter"},
    )
    card = catalog().add("acme/x-GGUF")
    assert card.gguf is not None
    assert (card.gguf.repository, card.gguf.revision) == ("acme/x-GGUF", made.commit)
    assert card.repository is None
    assert card.architecture.hidden_size == 64
    assert card.tasks == ("chat",)


def test_a_repository_that_is_not_there_or_not_reached(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFoundError):
        catalog().add("acme/nothing")
    fake_hub.add("acme/empty", {"README.md": b""})
    with pytest.raises(NotFoundError, match="no weights"):
        catalog().add("acme/empty")
    monkeypatch.setenv("WORKBENCH_OFFLINE", "1")
    with pytest.raises(DownloadError):
        catalog().add("acme/empty")
    assert not user_folder().exists()


@pytest.mark.parametrize(
    "head",
    [
        "license: [\n",
        "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, 12)),
        "language: " + "[" * 5000,
        "license: !!python/object/apply:os.getcwd []",
        "license: 3\nlanguage: {a: b}\npipeline_tag: [x]",
        "x: '" + "y" * 100_000 + "'",
    ],
)
def test_a_hostile_model_card_says_nothing_and_breaks_nothing(tmp_path: Path, head: str) -> None:
    folder = copy_of_tiny(
        tmp_path / "m",
        README__md=f"---\n{head}\n---\n",
        generation_config__json='{"temperature": "x", "top_p": NaN, "top_k": -1, "min_p": 5}',
    )
    card = resolve(folder)
    assert (card.licence, card.languages, card.sampling) == (None, (), None)
    assert card.tasks == ("chat",)


def test_a_config_that_is_wrong_is_named(tmp_path: Path) -> None:
    for text, said in (("[1]", "holds a list"), ("{", "not valid JSON"), ("[" * 99_999, "JSON")):
        folder = copy_of_tiny(tmp_path / said.split()[0], config__json=text)
        with pytest.raises(InputError, match=said):
            resolve(folder)


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [
        ({"do_sample": True, "temperature": 0.7, "top_k": 20}, {"temperature": 0.7, "top_k": 20}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"max_new_tokens": 9, "top_p": 0.9}, {"max_tokens": 9, "top_p": 0.9}),
        ({"repetition_penalty": 1.1, "min_p": 0}, {"repetition_penalty": 1.1, "min_p": 0}),
        ({"temperature": True, "top_p": None, "min_p": float("inf")}, {}),
    ],
)
def test_sampling_of_a_generation_config(
    generation: dict[str, Any], sampling: dict[str, float]
) -> None:
    assert sampling_of(generation) == sampling


def test_languages_and_licences_of_model_cards(tmp_path: Path) -> None:
    assert language_codes(["EN", "multilingual", False, "ja", "en", 3]) == ["en", "no", "ja"]
    assert language_codes("ja") == ["ja"]
    (tmp_path / "README.md").write_bytes(b"---\r\nlicense: mit\r\n---\r\ntext\r\n")
    assert front_matter(tmp_path / "README.md") == {"license": "mit"}
    named = "license: other\nlicense_name: my-licence"
    folder = copy_of_tiny(tmp_path / "m", README__md=f"---\n{named}\n---\n")
    assert resolve(folder).licence == "my-licence"
    folder = copy_of_tiny(
        tmp_path / "e", README__md="---\npipeline_tag: sentence-similarity\n---\n"
    )
    assert resolve(folder).tasks == ("embedding",)


def test_the_command_writes_and_shows_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["models", "add", str(TINY), "--id", "mine", "--display-name", "My own"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    path = user_folder() / "mine.yaml"
    assert printed == f"{path}\n\n{path.read_text(encoding='utf-8')}"
    assert Card.read(path).display_name == "My own"
    with pytest.raises(SystemExit) as ended:
        main(["models", "add", str(TINY), "--id", "mine"])
    assert ended.value.code == 1
    assert "--replace" in capsys.readouterr().err
