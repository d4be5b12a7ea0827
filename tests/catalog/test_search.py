"""Search finds what a card says, refuses what it does not know, and fits a terminal."""

from __future__ import annotations

import html
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.catalog import Card, catalog
from workbench.catalog.architecture import Architecture
from workbench.catalog.card import GgufSource, ReadyForm, Remote, StoredForm
from workbench.catalog.found import Found, card_forms, on_disk
from workbench.catalog.languages import LANGUAGES, language_code
from workbench.catalog.search import search
from workbench.errors import InputError
from workbench.figures.table import width
from workbench.machine import machine
from workbench.receipts import Receipt, write


def card(name: str, parameters: float | None = None, **facts: Any) -> Card:
    count = None if parameters is None else int(parameters)
    return Card(id=name, architecture=Architecture(parameters=count), **facts)


CARDS = (
    card(
        "qwen2.5-7b-instruct",
        7_615_616_512,
        display_name="Qwen2.5 7B Instruct",
        family="qwen2.5",
        repository="Qwen/Qwen2.5-7B-Instruct",
        gguf=GgufSource(repository="bartowski/Qwen2.5-7B-Instruct-GGUF"),
        forms=(ReadyForm(kind="awq", repository="Qwen/Qwen2.5-7B-Instruct-AWQ"),),
        context_length=32768,
        licence="Apache-2.0",
        gated=False,
        languages=("en", "zh", "ja", "ko", "fr", "de", "es"),
        tasks=("chat",),
        template_family="chatml",
    ),
    card(
        "llama-3.1-8b-instruct",
        8_030_261_248,
        family="llama3",
        repository="meta-llama/Llama-3.1-8B-Instruct",
        context_length=131072,
        licence="llama3.1",
        gated=True,
        languages=("en", "de"),
        tasks=("chat",),
    ),
    card(
        "qwen3-coder-30b-a3b",
        30_532_122_624,
        family="qwen3",
        repository="Qwen/Qwen3-Coder-30B-A3B-Instruct",
        context_length=262144,
        licence="Apache-2.0",
        languages=("en", "zh"),
        tasks=("chat", "code"),
        recommended_use="Writing programs.",
    ),
    card(
        "some-awq",
        32_763_876_352,
        repository="x/some-AWQ",
        stored=StoredForm(method="awq"),
        licence="MIT",
        languages=("ja",),
        tasks=("chat", "vision"),
        notes="画像を読む日本語モデル。",
    ),
    card(
        "only-gguf",
        500_000_000,
        gguf=GgufSource(repository="x/only-GGUF"),
        context_length=512,
        licence="gemma",
    ),
    card("far-away", remote=Remote(url="https://example.org/v1", model="m"), tasks=("chat",)),
)


def ids(*words: str, **conditions: Any) -> list[str]:
    return list(search(CARDS, *words, **conditions).ids)


QWEN, LLAMA, CODER, AWQ, GGUF, REMOTE = (each.id for each in CARDS)
EVERY = sorted([QWEN, LLAMA, CODER, AWQ, GGUF, REMOTE])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", EVERY),
        ("qwen", [QWEN, CODER]),
        ("QWEN coder", [CODER]),
        ("coder QWEN", [CODER]),
        ("ｑｗｅｎ", [QWEN, CODER]),
        ("Qwen2.5 7B Instruct", [QWEN]),
        ("meta-llama", [LLAMA]),
        ("chatml", [QWEN]),
        ("programs", [CODER]),
        ("画像 日本語", [AWQ]),
        ("japanese", [QWEN, AWQ]),
        ("日本語", [QWEN, AWQ]),
        ("vision", [AWQ]),
        ("qwen nothing", []),
    ],
)
def test_all_words_must_stand_in_the_card(words: str, expected: list[str]) -> None:
    assert ids(words) == sorted(expected)
    assert ids(words.split()) == sorted(expected)  # type: ignore[arg-type]


def test_a_near_miss_is_suggested() -> None:
    found = search(CARDS, "qwne coder")
    assert len(found) == 0
    text = found._repr_mimebundle_()["text/plain"]
    assert "None of 6 cards" in text
    assert "'qwne'" in text
    assert "'qwen'" in text
    assert "coder" not in text
    assert "'qwen3'" in repr(search(CARDS, family="qwem3"))
    assert "'Apache-2.0'" in repr(search(CARDS, licence="Apach2"))


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"task": "code"}, [CODER]),
        ({"task": ["chat", "vision"]}, [AWQ]),
        ({"task": "Embedding"}, []),
        ({"language": "ja"}, [QWEN, AWQ]),
        ({"language": "Japanese"}, [QWEN, AWQ]),
        ({"language": "日本語"}, [QWEN, AWQ]),
        ({"language": "ja-JP"}, [QWEN, AWQ]),
        ({"language": ["English", "de"]}, [QWEN, LLAMA]),
        ({"size": "7B"}, [QWEN]),
        ({"size": "8b"}, [LLAMA]),
        ({"size": "30B"}, [CODER, AWQ]),
        ({"size": "40B"}, []),
        ({"size": "3B"}, []),
        ({"size": "500M"}, [GGUF]),
        ({"size": "0.5B"}, [GGUF]),
        ({"size": "33B"}, [AWQ]),
        ({"size": "<8B"}, [QWEN, GGUF]),
        ({"size": ">=30b"}, [CODER, AWQ]),
        ({"size": "> 0.5B"}, [QWEN, LLAMA, CODER, AWQ]),
        ({"size": ">=0.5B"}, [QWEN, LLAMA, CODER, AWQ, GGUF]),
        ({"size": "<=500M"}, [GGUF]),
        ({"size": "3B-14B"}, [QWEN, LLAMA]),
        ({"size": "7 - 9B"}, [QWEN, LLAMA]),
        ({"licence": "mit"}, [AWQ]),
        ({"licence": "apache"}, [QWEN, CODER]),
        ({"licence": "open"}, [QWEN, CODER, AWQ]),
        ({"gated": True}, [LLAMA]),
        ({"gated": False}, [QWEN]),
        ({"family": "qwen"}, [QWEN, CODER]),
        ({"family": "Qwen3"}, [CODER]),
        ({"engine": "transformers"}, [QWEN, LLAMA, CODER]),
        ({"engine": "scripted"}, EVERY),
        ({"where": lambda each: each.context_length == 512}, [GGUF]),
        ({"where": [lambda each: "chat" in each.tasks, lambda each: each.gated]}, [LLAMA]),
        ({"task": "chat", "language": "en", "size": ">10B"}, [CODER]),
    ],
)
def test_conditions(conditions: dict[str, Any], expected: list[str]) -> None:
    found = ids(**conditions)
    if conditions.get("engine") == "transformers":
        found = [each for each in found if each != AWQ]  # as far as its facts name no AWQ
    assert found == sorted(expected)


def test_an_engine_that_converts_loads_safetensors_but_not_awq() -> None:
    found = ids(engine="llama.cpp")
    assert {QWEN, LLAMA, CODER, GGUF} <= set(found)
    assert AWQ not in found
    assert REMOTE not in found


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"task": "vison"}, "'vision'"),
        ({"language": "Japanees"}, "'Japanese'"),
        ({"language": "xx"}, "a code such as ja"),
        ({"engine": "lama.cpp"}, "'llama.cpp'"),
        ({"verified": "her"}, "'here'"),
        ({"sort": "sise"}, "'size'"),
        ({"size": "big"}, "<8B"),
        ({"size": "7"}, "7B"),
        ({"size": "14B-3B"}, "smaller one first"),
        ({"size": ""}, "7B"),
        ({"fits": True}, "fits on this machine"),
        ({"fits": False}, "fits on this machine"),
    ],
)
def test_what_is_not_known_is_refused(conditions: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        search(CARDS, **conditions)


def test_fits_asks_the_shelf() -> None:
    shelf = catalog()
    with pytest.raises(InputError):
        shelf.search(fits=True)
    verdicts = {"tiny-chat": True, "qwen2.5-7b-instruct": False}
    shelf.fits = lambda each: verdicts.get(each.id)
    assert shelf.search(fits=True).ids == ("tiny-chat",)
    assert shelf.search(fits=False).ids == ("qwen2.5-7b-instruct",)
    assert len(shelf.search()) == len(shelf)


def test_orders_put_what_is_unknown_last() -> None:
    assert ids(sort="size") == [GGUF, QWEN, LLAMA, CODER, AWQ, REMOTE]
    assert ids(sort="context")[:4] == [GGUF, QWEN, LLAMA, CODER]
    assert search(CARDS).sorted("size")[:2].ids == (GGUF, QWEN)


def test_verified_comes_from_receipts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.import_module("workbench.receipts.found"), "shipped_folder", lambda: None
    )
    facts = machine().describe()

    def leave(model: str, outcome: str, **described: Any) -> None:
        values = {"what": "load", "model": model, "outcome": outcome, "plan": {"engine": "e"}}
        write(Receipt.of({**values, "machine": {**facts, **described}}))

    leave(QWEN, "done")
    leave(LLAMA, "done", processor="Another CPU")
    leave(AWQ, "failed")
    assert ids(verified="here") == [QWEN]
    assert ids(verified="elsewhere") == [LLAMA]
    assert ids(verified="failed") == [AWQ]
    assert ids(verified=True) == sorted([QWEN, LLAMA])
    assert ids(verified=["failed", "here"]) == sorted([QWEN, AWQ])
    assert ids(verified=False) == ids(verified=["failed", "pending"])
    assert ids(verified=True, engine="llama.cpp") == []  # another engine than was measured
    rows = {row["id"]: row["verified"] for row in search(CARDS).table()}
    assert rows[QWEN] == "here"
    assert rows[GGUF] == "pending"


def test_forms() -> None:
    assert card_forms(CARDS[0]) == ("safetensors", "GGUF", "AWQ")
    assert card_forms(CARDS[3]) == ("AWQ",)
    assert card_forms(CARDS[4]) == ("GGUF",)
    assert card_forms(CARDS[5]) == ("remote",)
    assert card_forms(Card(id="a", path="~/a.gguf")) == ("GGUF",)


def test_what_lies_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LM_STUDIO_MODELS", str(tmp_path / "studio"))
    assert [on_disk(each) for each in CARDS] == [False] * 6
    snapshot = tmp_path / "hub" / "models--meta-llama--Llama-3.1-8B-Instruct" / "snapshots" / "c"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert not on_disk(CARDS[1])
    (snapshot / "model.safetensors").symlink_to(tmp_path / "gone")
    assert not on_disk(CARDS[1])
    (tmp_path / "gone").write_bytes(b"x")
    assert on_disk(CARDS[1])
    studio = tmp_path / "studio" / "bartowski" / "Qwen2.5-7B-Instruct-GGUF"
    studio.mkdir(parents=True)
    (studio / "a.gguf").write_bytes(b"x")
    assert on_disk(CARDS[0])
    assert on_disk(Card(id="tiny-chat", path="data/tiny-chat"))
    assert not on_disk(Card(id="none", path="/nowhere/model"))


# Showing


def test_the_text_fits_100_columns_and_no_id_is_cut() -> None:
    shelf = catalog()
    text = shelf.search().text()
    assert max(width(line) for line in text.splitlines()) <= 100
    for each in shelf:
        assert re.search(rf"^{re.escape(each.id)}(\s|$)", text, re.MULTILINE), each.id
    assert shelf.search().text(columns=400).count("\n") == len(shelf) + 2


def test_wide_characters_are_counted_as_two() -> None:
    wide = card("wide", 1e9, licence="日本語の長い長い利用許諾契約書" * 3, repository="a/b")
    named = card("a-name-that-is-longer-than-the-column-for-it", 1e9, licence="日本語")
    text = Found([wide, named]).text()
    lines = text.splitlines()
    assert max(map(width, lines)) <= 100
    assert "日本語の" in text
    ends = {width(line[: line.index("pending")]) for line in lines if "pending" in line}
    assert len(ends) == 1


def test_cells() -> None:
    text = search(CARDS).text(400)
    assert re.search(r"qwen2\.5-7b-instruct\s+7\.6B\s+32k\s+chat", text)
    assert re.search(r"qwen3-coder-30b-a3b\s+30\.5B\s+256k\s+code, chat", text)
    assert re.search(r"only-gguf\s+500M\s+512\s+–", text)
    assert re.search(r"far-away\s+–\s+–\s+chat", text)
    narrow = next(line for line in search(CARDS).text().splitlines() if QWEN in line)
    assert re.search(r"en(, zh)? \+[56]", narrow)
    tera = search([card("k", 1_026_408_209_408, context_length=1_048_576)]).text()
    assert re.search(r"1\.0T\s+1M", tera)


def test_the_page_has_everything_and_escapes_it() -> None:
    sly = card("sly", 1e9, licence="<script>alert(1)</script>", languages=tuple(LANGUAGES))
    page = search([sly])._repr_mimebundle_()["text/html"]
    assert "<script>" not in page
    assert html.escape("<script>alert(1)</script>") in page
    assert ", ".join(LANGUAGES) in page
    assert "<style" not in page
    none = search([sly], "<b>")._repr_mimebundle_()["text/html"]
    assert "<b>" not in none


def test_found_is_a_sequence() -> None:
    found = search(CARDS, "qwen")
    assert [each.id for each in found] == list(found.ids)
    assert found[0] in CARDS
    assert isinstance(found[:1], Found)
    assert len(search([])) == 0
    assert repr(search([])) == "No cards."


def test_language_codes() -> None:
    assert language_code("pt_BR") == "pt"
    assert language_code("ＪＡＰＡＮＥＳＥ") == "ja"
    assert language_code("haw", known=frozenset({"haw"})) == "haw"
    names = [name.casefold() for each in LANGUAGES.values() for name in each]
    assert len(names) == len(set(names))


def test_every_card_that_ships_names_known_languages() -> None:
    for each in catalog():
        assert set(each.languages) <= set(LANGUAGES), each.id


# The command line


def models(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", "models", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_words_search_and_a_command_is_a_command() -> None:
    found = models("tiny", "chat", "--language", "日本語", "--task", "chat")
    assert found.returncode == 0, found.stderr
    assert re.match(r"\d+ of \d+ cards", found.stdout)
    assert "qwen3-0.6b" not in found.stdout
    assert "tiny-chat" in found.stdout
    again = models("--language", "ja", "--task", "chat", "tiny", "chat")
    assert again.stdout == found.stdout
    assert "tiny-chat" not in models("search", "show").stdout  # here it is a word
    shown = models("show", "tiny-chat")
    assert "architecture" in shown.stdout
    assert models("--task", "vison").stderr.strip().endswith("Did you mean 'vision'?")
    assert models("--nonsense").returncode == 2


def test_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, json; from workbench import cli\n"
        "try: cli.main(['models'])\n"
        "except SystemExit: pass\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    heavy = {"torch", "transformers", "huggingface_hub", "numpy", "pandas", "plotly", "IPython"}
    assert not loaded & {*heavy, "matplotlib", "llama_cpp", "psutil"}


def test_a_word_of_prose_is_no_part_of_another() -> None:
    """A coder is no encoder, and yet DeepCoder is one."""
    named = Card(id="deepcoder")
    told = Card(id="a", notes="A coder for every day.")
    other = Card(id="b", notes="An encoder of text.")
    assert set(search([named, told, other], "coder").ids) == {"deepcoder", "a"}
