"""Bad cards: each gets one sentence that names the file, the key and what was meant."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import pytest

from workbench.catalog import Card, Shelf, catalog, resolve
from workbench.catalog.folder import user_folder
from workbench.errors import InputError, NotFoundError

BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 10)
)
WRONG = {
    "top key": ("id: x\ntsks: [chat]", "unknown key 'tsks'. Did you mean 'tasks'?"),
    "inner key": (
        "id: x\narchitecture: {layrs: 3}",
        "unknown key 'architecture.layrs'. Did you mean 'layers'?",
    ),
    "two deep": (
        "id: x\narchitecture:\n  vision: {patchs: 3}",
        "unknown key 'architecture.vision.patchs'. Did you mean 'patch'?",
    ),
    "in a list": (
        "id: x\nforms: [{kind: awq, repositry: a/b}]",
        "unknown key 'forms.0.repositry'. Did you mean 'repository'?",
    ),
    "many": (
        "id: x\n" + "\n".join(f"{'k' * 200}{n}: 1" for n in range(50)),
        "And 45 more.",
    ),
    "wrong type": ("id: x\ncontext_length: long", "context_length = 'long'"),
    "a word that YAML reads": ("id: x\nlanguages: [no]", "a text needs quotes here"),
    "negative size": ("id: x\narchitecture: {layers: -3}", "architecture.layers = -3"),
    "a truth value": (
        "id: x\nn_gpu_layers: yes",
        "n_gpu_layers = True: Input should be a number",
    ),
    "no number": ("id: x\nsampling: {temperature: .inf}", "sampling.temperature = inf"),
    "unknown task": ("id: x\ntasks: [chta]", "tasks.0 = 'chta'"),
    "no id": ("licence: MIT", "id is missing"),
    "unsafe id": ("id: ../../etc", "id = '../../etc'"),
    "file-like id": ("id: x.gguf", "does not end like a file name"),
    "long id": (f"id: {'x' * 101}", "at most 100 characters"),
    "no mapping": ("[id, x]", "holds a list, not a mapping"),
    "no YAML": ("id: x: y", "not valid YAML"),
    "two documents": ("id: x\n---\nid: y", "not valid YAML"),
    "code": ("id: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "key twice": ("id: x\nlicence: MIT\nlicence: GPL", "line 3: the key 'licence' is given twice"),
    "bomb": (BOMB + "id: x", "expands to more than 100,000 values"),
    "bomb of merges": (MERGES + "id: x", "expands to more than 100,000 values"),
    "alias to itself": ("id: &a [*a]", "alias to itself"),
    "deep": ("id: " + "[" * 50_000, "more than 100 levels deep"),
    "deep by indentation": (
        "\n".join(" " * depth + "a:" for depth in range(400)),
        "more than 100 levels deep",
    ),
    "large": ("# " + "x" * 2_000_000, "larger than 1.0 MB"),
}


@pytest.fixture
def folder() -> Path:
    made = user_folder()
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG.keys())
def test_reading_a_bad_card_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        resolve(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 3000 + len(str(path))


def test_a_card_that_is_not_utf8_says_where(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("id: x\nnotes: 日本".encode("shift_jis"))
    with pytest.raises(InputError, match=r"mine\.yaml is not UTF-8: byte 13 is 0x93"):
        resolve(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbfid: x\n")
    assert resolve(path).id == "x"


@pytest.mark.parametrize("text", [WRONG[name][0] for name in ("inner key", "no YAML", "bomb")])
def test_one_bad_card_is_told_once_and_hides_no_other(folder: Path, text: str) -> None:
    (folder / "broken.yaml").write_text(text, encoding="utf-8")
    (folder / "good.yaml").write_text("id: good\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"broken\.yaml.*left out") as told:
        shelf = catalog()
    assert len(told) == 1
    assert {"good", "tiny-chat", "qwen3-8b"} <= {card.id for card in shelf}
    assert len(shelf) == 88
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        catalog()


def test_asking_for_a_bad_card_says_what_is_wrong_with_it(folder: Path) -> None:
    (folder / "mine.yaml").write_text("id: my-model\nlicense: MIT\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="Did you mean 'licence'"):
        shelf = catalog()
    with pytest.raises(InputError, match=r"mine\.yaml: unknown key 'license'"):
        shelf["my-model"]
    with pytest.raises(InputError, match=r"mine\.yaml: unknown key 'license'"):
        resolve("my-model")


def test_a_bad_card_of_a_shipped_name_leaves_the_shipped_one(folder: Path) -> None:
    (folder / "qwen3-8b.yaml").write_text("id: qwen3-8b\nlayers: 3\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="unknown key 'layers'"):
        shelf = catalog()
    assert shelf["qwen3-8b"].architecture.layers == 36
    assert shelf.origin("qwen3-8b") == "shipped"


def test_two_cards_with_one_id_are_both_left_out(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text("id: same\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"the id 'same': one\.yaml and two\.yaml"):
        shelf = catalog()
    assert "same" not in shelf
    with pytest.raises(InputError, match="Two cards"):
        shelf["same"]


def test_a_cycle_of_fallbacks_is_told_with_its_chain(folder: Path) -> None:
    for name, fallback in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        text = f"id: {name}\nfallback: {fallback}\n"
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.warns(UserWarning, match="lead back") as told:
        shelf = catalog()
    assert sum("a -> b -> c -> a" in str(warning.message) for warning in told) == 1
    assert not {"a", "b", "c"} & {card.id for card in shelf}
    with pytest.raises(InputError, match="b -> c -> a -> b"):
        shelf["b"]
    assert "d" in shelf, "it leads to the cycle and is not in it"
    with pytest.raises(InputError, match="lead back"):
        shelf.fallbacks("d")


def test_an_override_that_closes_a_cycle_gives_way_to_the_shipped_card(folder: Path) -> None:
    (folder / "mine.yaml").write_text(
        "extends: qwen2.5-7b-instruct\nfallback: qwen2.5-14b-instruct\n", encoding="utf-8"
    )
    with pytest.warns(UserWarning, match="lead back"):
        shelf = catalog()
    assert shelf.origin("qwen2.5-7b-instruct") == "shipped"
    assert len(shelf.fallbacks("qwen2.5-32b-instruct")) == 2


def test_a_fallback_to_no_card_names_the_nearest(folder: Path) -> None:
    (folder / "mine.yaml").write_text("id: mine\nfallback: qwen3-8bb\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"falls back to 'qwen3-8bb'.*Did you mean 'qwen3-8b'"):
        shelf = catalog()
    with pytest.raises(NotFoundError, match="falls back to 'qwen3-8bb'"):
        shelf["mine"]


def test_fallbacks_of_a_card_made_by_hand_never_run_in_circles() -> None:
    card = Card(id="x", fallback="x")
    with pytest.raises(InputError, match="x -> x"):
        catalog().fallbacks(card)
    with pytest.raises(NotFoundError, match="falls back to 'nothing-like-it'"):
        catalog().fallbacks(Card(id="x", fallback="nothing-like-it"))


def test_extending_no_card_names_the_nearest(folder: Path) -> None:
    (folder / "mine.yaml").write_text("id: mine\nextends: tiny-chatt\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"extends = 'tiny-chatt'.*Did you mean 'tiny-chat'"):
        catalog()


def test_a_bad_card_among_those_that_ship_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.yaml").write_text("id: x\nlayers: 3\n", encoding="utf-8")
    room = importlib.import_module("workbench.catalog.folder")
    monkeypatch.setattr(room, "shipped", lambda *_: tmp_path)
    with pytest.raises(InputError, match="unknown key 'layers'"):
        Shelf((tmp_path,))
