"""Agreement: its arithmetic by hand, against torch, by file and in memory, and its masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from workbench.errors import DiskSpaceError, InputError
from workbench.evaluate.agreement import (
    Reference,
    agreement,
    compare_references,
    compare_to_reference,
    divergences,
    held_out,
    write_reference,
)
from workbench.messages import Message, Reply

TALK = [
    [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}],
    [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}],
]


class Letters:
    """A model over the letters a to f: bracketed turns, fixed log-probabilities by last letter."""

    def __init__(self, table: np.ndarray, *, answer: str = "cd", shift: int = 0) -> None:
        self.table, self.answer, self.shift = table.astype(np.float32), answer, shift

    def render(self, conversation: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        text = "".join(f"{'e' if m.role == 'user' else 'f'}{m.content}" for m in conversation)
        return text + ("f" if add_generation_prompt else "")

    def tokenize(self, text: str) -> list[int]:
        return [ord(c) - 97 for c in text]

    def detokenize(self, ids: Sequence[int]) -> bytes:
        return "".join(chr(97 + i) for i in ids).encode()

    def prompt_ids(self, conversation: Sequence[Message]) -> list[int]:
        return [i + self.shift for i in self.tokenize(self.render(conversation))]

    def log_probabilities(self, ids: Sequence[int]) -> np.ndarray:
        return self.table[list(ids[:-1])]

    def ask(self, conversation: Sequence[Message], *, sampling: object = None) -> Reply:
        return Reply(text=self.answer, token_ids=tuple(self.tokenize(self.answer)))


def table(seed: int, width: int = 6) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(6, width))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_divergence_by_hand() -> None:
    expected = np.log(np.array([[0.5, 0.5], [0.25, 0.75]]))
    found = np.log(np.array([[0.25, 0.75], [0.25, 0.75]]))
    by_hand = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert divergences(expected, found) == pytest.approx([by_hand, 0.0], abs=1e-15)
    # The direction is KL(reference || candidate): the other one gives another number.
    assert divergences(found, expected)[0] == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    )


def test_impossible_tokens() -> None:
    expected = np.array([[0.0, -math.inf]])
    assert divergences(expected, np.log(np.array([[0.5, 0.5]])))[0] == pytest.approx(math.log(2))
    assert divergences(np.log(np.array([[0.5, 0.5]])), expected)[0] == math.inf


def test_divergence_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    a, b = table(1, 50), table(2, 50)
    theirs = torch.nn.functional.kl_div(
        torch.tensor(b), torch.tensor(a), log_target=True, reduction="none"
    ).sum(-1)
    assert divergences(a, b) == pytest.approx(theirs.numpy(), rel=1e-12)


def test_figures_by_hand() -> None:
    a, b = table(3), table(4)
    found = agreement(Letters(a), Letters(b, answer="cf"), TALK)
    before = [ord(c) - 97 for c in "eabfc" + "ebf"]
    after = [ord(c) - 97 for c in "abfcd" + "bfa"]
    kl = divergences(
        a.astype(np.float32).astype(float)[before], b.astype(np.float32).astype(float)[before]
    )
    assert found.tokens == 8
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-12)
    assert found.p99_kl == pytest.approx(np.quantile(kl, 0.99), rel=1e-12)
    assert found.max_kl == pytest.approx(kl.max(), rel=1e-12)
    assert found.top1 == np.mean(a[before].argmax(-1) == b[before].argmax(-1))
    assert found.reference_perplexity == pytest.approx(math.exp(-a[before, after].mean()), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(-b[before, after].mean()), rel=1e-6)
    assert found.perplexity_ratio == pytest.approx(found.perplexity / found.reference_perplexity)
    assert str(found.first_divergence) == "item 0, token 1: 'd' / 'f'"
    assert (found.answers, found.answers_equal) == (2, 0)


def test_a_model_agrees_with_itself() -> None:
    found = agreement(Letters(table(3)), Letters(table(3)), TALK)
    assert (found.mean_kl, found.top1, found.perplexity_ratio) == (0.0, 1.0, 1.0)
    assert found.prompt_ids_equal
    assert found.first_divergence is None


def test_shorter_answer_and_other_prompt_are_seen() -> None:
    found = agreement(Letters(table(3)), Letters(table(3), answer="c", shift=1), TALK)
    assert not found.prompt_ids_equal
    assert found.prompts_equal == 0
    assert str(found.first_divergence) == "item 0, token 1: 'd' / '<end>'"


def test_only_the_assistants_tokens() -> None:
    a, b = table(3), table(4)
    found = agreement(Letters(a), Letters(b), TALK, mask="assistant")
    before = [ord(c) - 97 for c in "fc" + "f"]  # the rows that predict c, d and a
    assert found.tokens == 3
    assert found.mean_kl == pytest.approx(
        divergences(
            a.astype(np.float32).astype(float)[before], b.astype(np.float32).astype(float)[before]
        ).mean()
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-12), ("float16", 2e-3)])
def test_by_file(tmp_path: Path, dtype: str, tolerance: float) -> None:
    a, b = Letters(table(3)), Letters(table(4), answer="cf")
    direct = agreement(a, b, TALK)
    written = write_reference(a, TALK, tmp_path / "a.npy", dtype=dtype)  # type: ignore[arg-type]
    assert np.load(tmp_path / "a.npy", mmap_mode="r").shape == (8, 6)
    for found in (
        compare_to_reference(b, tmp_path / "a.npy"),
        compare_references(written, write_reference(b, TALK, tmp_path / "b.npy", like=written)),
    ):
        assert found.mean_kl == pytest.approx(direct.mean_kl, rel=tolerance)
        assert found.perplexity == pytest.approx(direct.perplexity, rel=1e-12)
        assert found.first_divergence == direct.first_divergence
        assert found.tokens == direct.tokens
    assert Reference.read(tmp_path / "a.npy") == written


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="vocabularies differ: 6 and 7"):
        agreement(Letters(table(3)), Letters(table(3, 7)), TALK)
    with pytest.raises(InputError, match="at least two tokens"):
        write_reference(Letters(table(3)), [], tmp_path / "a.npy")
    with pytest.raises(InputError, match="no reference"):
        Reference.read(tmp_path / "none.npy")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(DiskSpaceError, match="nothing was written"):
        write_reference(Letters(table(3)), TALK, tmp_path / "a.npy")
    assert list(tmp_path.glob("*.npy")) == []


def test_held_out_conversations_have_answers() -> None:
    conversations = held_out()
    assert len(conversations) >= 50
    assert all(turns[-1].role == "assistant" for turns in conversations)
    assert held_out(3) == conversations[:3]
