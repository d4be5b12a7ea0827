"""vLLM on the CPU for the tests: where it is, and one server that they share."""

from __future__ import annotations

import functools

import pytest

import workbench as wb
from workbench.catalog.capabilities import engine_facts
from workbench.catalog.server_place import program_of
from workbench.engines.model import Model
from workbench.errors import MissingPackageError

CONTEXT = 512


def need_vllm() -> None:
    """Skip where there is no vLLM: neither WORKBENCH_VLLM_PYTHON nor .venv-vllm (make vllm)."""
    server = engine_facts()["vllm"].server
    assert server is not None
    try:
        program_of("vllm", server)
    except MissingPackageError as error:
        pytest.skip(f"{error} Or run: make vllm")


@functools.cache
def vllm_model() -> Model:
    """Return the embedded model in the one server of this test session; close it at the end."""
    return wb.load(
        "tiny-chat",
        engine="vllm",
        dtype="fp32",
        context=CONTEXT,
        threads=1,
        parallel=16,
        lora=True,
    )
