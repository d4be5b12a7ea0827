"""An estimate as an object: totals, round trip, what it shows, and what it refuses."""

import json
import subprocess
import sys

import pytest

from workbench.catalog import catalog
from workbench.catalog.architecture import Architecture
from workbench.catalog.card import Card
from workbench.errors import InputError, NotFoundError, UnsupportedError
from workbench.memory import Estimate, Part, estimate, estimate_training

GIB = 2**30
SMALL = Estimate(
    label="a model",
    parts=(
        Part(name="weights", bytes=3 * GIB, rule="three"),
        Part(name="KV cache", bytes=GIB, rule="one", group="cache"),
        Part(name="slack", bytes=GIB // 2, rule="half", group="overhead", counter="reserved"),
        Part(name="context", bytes=GIB // 4, rule="a quarter", group="overhead", counter="process"),
        Part(name="embedding", bytes=GIB, rule="in RAM", place="host"),
    ),
    conditions={"context": 4096},
    notes=("A note.",),
)


def test_totals_are_what_each_measurement_sees() -> None:
    assert SMALL.total(what="allocated") == 4 * GIB
    assert SMALL.total(what="reserved") == 4.5 * GIB
    assert SMALL.total() == 4.75 * GIB
    assert SMALL.total("host") == GIB
    assert SMALL.weights == 4 * GIB
    assert SMALL.cache == GIB


def test_data_makes_the_same_estimate() -> None:
    banded = SMALL.with_band(4 * GIB, 6 * GIB, source="3 receipts")
    again = Estimate.of(json.loads(json.dumps(banded.describe())))
    assert again == banded
    with pytest.raises(InputError, match="no estimate"):
        Estimate.of({"label": "x"})


def test_it_says_that_nothing_was_measured_until_something_was() -> None:
    shown = SMALL._repr_mimebundle_()
    assert "not yet measured here" in shown["text/plain"]
    assert "not yet measured here" in shown["text/html"]
    assert "A note." in shown["text/html"]
    assert "<img" not in shown["text/html"]  # nbconvert's sanitiser would show it as text
    banded = SMALL.with_band(4 * GIB, 6 * GIB, source="3 receipts")
    assert "4.00 to 6.00 GiB by 3 receipts" in str(banded)
    assert "not yet measured" not in str(banded)


def test_the_figure_stacks_by_kind_and_place() -> None:
    figure = SMALL.figure()
    values = {series.name: dict(zip(series.x, series.y, strict=True)) for series in figure.series}
    assert values["weights"] == {"device": 3.0, "host": 1.0}
    assert values["overhead"]["device"] == 0.75


def test_a_part_cannot_be_negative() -> None:
    with pytest.raises(InputError, match="-1 bytes"):
        Part(name="x", bytes=-1, rule="")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"engine": "lama.cpp"}, "llama.cpp"),
        ({"engine": "ollama"}, "ollama"),
        ({"batch": 0}, "batch must be"),
        ({"batch": 1.5}, "batch must be"),
        ({"context": 0}, "context must be"),
        ({"context": 131073}, "131072"),
        ({"prompt": 0}, "prompt must be"),
        ({"engine": "llama.cpp", "cache_type": "q8"}, "q8_0"),
        ({"engine": "llama.cpp", "cache_type": "fp8"}, "no cache of type fp8"),
        (
            {"engine": "llama.cpp", "cache_type": "q8_0", "flash_attention": False},
            "flash attention",
        ),
        ({"device": "tpu"}, "device"),
        ({"dtype": "int8"}, "dtype"),
        ({"attention": "flsh"}, "flash"),
        ({"quantization": "Q4KM"}, "Q4"),
        ({"engine": "vllm", "device": "cpu"}, "CUDA"),
        ({"gpu_layers": -2}, "gpu_layers"),
        ({"images": 1}, "does not see images"),
        ({"tensor_parallel": 0}, "tensor_parallel"),
    ],
)
def test_bad_input_gets_one_clear_error(arguments: dict[str, object], said: str) -> None:
    with pytest.raises((InputError, UnsupportedError), match=said):
        estimate("llama-3.1-8b-instruct", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "lra"}, "lora"),
        ({"rank": 0}, "rank must be"),
        ({"targets": ("q_prj",)}, "q_proj"),
        ({"dropout": 1.0}, "dropout"),
        ({"optimizer": "adamw8bit"}, "adamw-8bit"),
        ({"devices": 4}, "sharding"),
        ({"sharding": "zero4", "devices": 4}, "zero"),
        ({"sequence": 200000}, "131072"),
        ({"offload": ["weights"]}, "offload"),
        ({"batch": True}, "batch must be"),
    ],
)
def test_bad_training_gets_one_clear_error(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        estimate_training("llama-3.1-8b-instruct", **arguments)  # type: ignore[arg-type]


def test_an_unknown_name_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="no card"):
        estimate("no-such-model-anywhere")


def test_an_unknown_family_is_estimated_and_said_to_be_uncertain() -> None:
    known = catalog()["llama-3.1-8b-instruct"].architecture
    found = estimate(known.changed(model_type="brand_new"), context=2048)
    same = estimate(known, context=2048)
    assert found.uncertain is not None
    assert "brand_new" in found.uncertain
    assert same.uncertain is None
    assert found.weights == pytest.approx(same.weights, rel=0.01)


def test_a_card_with_a_count_alone_gets_weights_by_count_and_no_cache() -> None:
    card = Card(id="counted", architecture=Architecture(parameters=10**9))
    found = estimate(card, engine="llama.cpp", quantization="Q8_0", context=1024)
    assert found.weights == round(10**9 * 8.5 / 8)
    assert found.cache == 0
    assert "KV cache is not counted" in str(found.uncertain)
    plain = estimate(card, engine="transformers", context=1024)
    assert plain.weights == 2 * 10**9
    assert "not counted" in str(plain.uncertain)
    with pytest.raises(UnsupportedError, match="size"):
        estimate(Card(id="nothing"), context=16)


def test_every_card_can_be_asked_by_every_engine() -> None:
    """Each gives figures or says in one sentence what is not known."""
    for card in catalog():
        for engine, form in (("transformers", "nf4"), ("llama.cpp", "Q4_K_M"), ("vllm", "none")):
            try:
                found = estimate(card, engine=engine, quantization=form, context=256)
            except UnsupportedError as error:
                assert "know" in error.message or "facts" in error.message  # noqa: PT017
                continue
            assert found.weights > 0
            assert found.total(None) > found.weights


def test_no_torch_is_imported_and_nothing_heavy() -> None:
    code = (
        "import sys; from workbench.memory import estimate, estimate_training; "
        "print(estimate('qwen3-8b', engine='llama.cpp', quantization='Q4_K_M')); "
        "estimate_training('qwen3-8b'); "
        "print([n for n in ('torch', 'transformers', 'pandas', 'plotly') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
