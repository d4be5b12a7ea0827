"""Parity: the chain's order, its limits, the hop that it names; on fakes and on real files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_models import TALK, Fake, Loaded

import workbench as wb
from workbench.catalog import locate, resolve
from workbench.catalog.header import check_gguf
from workbench.errors import ChildDiedError, InputError, ParityError
from workbench.evaluate.agreement import Agreement
from workbench.export.limits import limit_of, limits
from workbench.export.parity import Parity
from workbench.formats import ensure_gguf, known_quantization, quantize
from workbench.receipts import receipts


def files(*forms: str) -> dict[str, Path]:
    return {form: Path(f"{form}.gguf") for form in forms}


def test_the_chain(fakes: Callable[..., Loaded], adapter: Path, base: Path) -> None:
    seen = fakes()
    found = wb.parity(
        adapter=adapter, merged=base, ggufs=files("Q4_K_M", "F16", "Q8_0"), conversations=TALK
    )
    assert [(hop.form, hop.against) for hop in found.hops] == [
        ("merged", "adapter"),
        ("F16", "merged"),
        ("Q4_K_M", "F16"),
        ("Q8_0", "F16"),
    ]
    assert found.ok
    found.require()
    assert [load["engine"] for load in seen] == ["transformers"] * 2 + ["llama.cpp"] * 3
    assert all(load["isolate"] for load in seen)
    assert {load.get("dtype") for load in seen[:2]} == {"fp32"}
    assert found.hops[0].agreement is not None
    assert found.hops[0].agreement.tokens == 4
    text = found._repr_mimebundle_()["text/plain"]
    assert "within its limits" in text
    assert receipts(what="parity", where="here")[0].outcome == "done"


@pytest.mark.parametrize(
    ("form", "model", "said"),
    [
        ("F16", Fake(0.05), r"from source to F16 is broken: mean KL \S+ nats, limit 0.0001"),
        ("Q8_0", Fake(2.0), r"from F16 to Q8_0 is broken: mean KL"),
        ("Q8_0", Fake(shift=1), r"from F16 to Q8_0 is broken: prompt token ids differ in 1 of 1"),
    ],
)
def test_the_broken_hop_is_named(
    fakes: Callable[..., Loaded], base: Path, form: str, model: Fake, said: str
) -> None:
    fakes(**{form: model})
    found = wb.parity(base, ggufs=files("F16", "Q8_0"), conversations=TALK)
    with pytest.raises(ParityError, match=said):
        found.require()
    assert found.broken is not None
    assert found.broken.form == form
    assert found.as_dict()["ok"] is False
    receipt = receipts(what="parity", where="here")[0]
    assert receipt.outcome == "failed"
    assert form in str(receipt.reason)


def test_a_form_that_dies_is_kept_with_its_reason(fakes: Callable[..., Loaded], base: Path) -> None:
    fakes(F16=ChildDiedError("The process was ended by SIGABRT."))
    found = wb.parity(base, ggufs=files("F16", "Q8_0"), conversations=TALK)
    assert [hop.broken for hop in found.hops] == [
        "The process was ended by SIGABRT.",
        "F16 could not be measured.",
    ]
    assert "SIGABRT" in found._repr_mimebundle_()["text/plain"]
    with pytest.raises(ParityError, match="from source to F16 is broken: The process"):
        found.require()


def test_nothing_to_compare(base: Path) -> None:
    with pytest.raises(InputError, match="at least two forms"):
        wb.parity(base)


def agreement(**changes: Any) -> Agreement:
    values = {
        "tokens": 100, "prompts": 2, "prompts_equal": 2, "top1": 1.0, "mean_kl": 0.0,
        "p99_kl": 0.0, "max_kl": 0.0, "reference_perplexity": 2.0, "perplexity": 2.0,
    }  # fmt: skip
    return Agreement(**{**values, **changes})


def test_limits() -> None:
    limit = limit_of("F16")
    assert limit.broken(agreement(mean_kl=limit.mean_kl, top1=limit.top1)) is None
    assert "mean KL 0.0002" in str(limit.broken(agreement(mean_kl=2e-4)))
    assert "mean KL nan" in str(limit.broken(agreement(mean_kl=float("nan"))))
    assert "top-1 agreement 98.00%, limit 99.5%" in str(limit.broken(agreement(top1=0.98)))
    assert "perplexity ratio 1.0050" in str(limit.broken(agreement(perplexity=2.01)))
    assert "perplexity ratio 0.9950" in str(limit.broken(agreement(perplexity=1.99)))
    experts = limit_of("F16", moe=True)
    assert experts.broken(agreement(mean_kl=2e-4, top1=0.98)) is None
    assert limit_of("Q4_K_M", moe=True) == limit_of("Q4_K_M")
    with pytest.raises(InputError, match="Q4_K_M"):
        limit_of("Q4_KM")
    assert all(known_quantization(name) == name for name in limits() if name != "merged")


def test_every_quantization_has_a_limit() -> None:
    from workbench.catalog.capabilities import engine_facts

    assert set(engine_facts()["llama.cpp"].quantizations) <= set(limits())


def damaged(source: Path, target: Path) -> Path:
    """Copy a float GGUF file and swap the halves of one weight matrix."""
    header = check_gguf(source)
    tensor = next(t for t in header.tensors if t.name == "blk.2.ffn_up.weight")
    data = bytearray(source.read_bytes())
    start, size = header.data_start + tensor.offset, tensor.size or 0
    middle = start + size // 2
    data[start : start + size] = data[middle : start + size] + data[start:middle]
    target.write_bytes(data)
    return target


def test_one_damaged_tensor_and_fewer_bits_are_found(
    base: Path, tmp_path: Path, talks: list[list[dict[str, str]]]
) -> None:
    whole = ensure_gguf(locate(resolve("tiny-chat")), "F16")
    same = Path(shutil.copy(whole, tmp_path / "same.gguf"))
    found: Parity = wb.parity(
        ggufs={
            "F16": whole,
            "F32": same,
            "BF16": damaged(whole, tmp_path / "bad.gguf"),
            "Q8_0": quantize(whole, tmp_path / "coarse.gguf", "Q2_K"),
        },
        conversations=talks,
    )
    assert [(hop.form, hop.against, hop.broken is None) for hop in found.hops] == [
        ("F32", "F16", True),
        ("BF16", "F16", False),
        ("Q8_0", "F16", False),
    ]
    good, bad, coarse = (hop.agreement for hop in found.hops)
    assert good is not None
    assert bad is not None
    assert coarse is not None
    assert (good.mean_kl, good.top1, good.first_divergence) == (0.0, 1.0, None)
    assert bad.mean_kl > 0.01
    assert json.loads(json.dumps(found.as_dict()))["hops"][1]["broken"].startswith("mean KL")
