"""The llama.cpp engine: any GGUF through llama-cpp-python, converted once from safetensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from workbench.catalog.header import check_gguf
from workbench.engines.base import Session
from workbench.engines.llama_cpp_adapter import lora_file
from workbench.engines.llama_cpp_embedding import LlamaCppEmbedder, batch_arguments, pooling_of
from workbench.engines.llama_cpp_library import clear, close_at_exit, last_words, library
from workbench.engines.llama_cpp_memory import experts_in_ram
from workbench.engines.llama_cpp_options import OwnOptions, check_options, load_arguments
from workbench.engines.llama_cpp_session import LlamaCppSession
from workbench.engines.llama_cpp_trial import try_out
from workbench.errors import EngineError, UnsupportedError, WorkbenchError
from workbench.planning import Plan

_ALL_F32 = 0


class LlamaCppEngine:
    """Opens GGUF files with ``llama_cpp.Llama``."""

    name = "llama.cpp"

    def prepare(self, plan: Plan) -> Plan:
        """Return the plan with its GGUF file, converted and quantized once where needed."""
        check_options(library(), plan.options)
        if plan.gpu_layers and not library().llama_supports_gpu_offload():
            reason = "On the CPU, because this llama-cpp-python was built without a GPU."
            plan = dataclasses.replace(
                plan,
                device="cpu",
                gpu_layers=0,
                experts_on_cpu=0,
                flash_attention=None if plan.cache_type == "f16" else True,
                reasons=(*plan.reasons, reason),
            )
        if plan.files is not None and plan.files.kind == "safetensors":
            from workbench.catalog import ModelFiles
            from workbench.formats.gguf import ensure_gguf

            path = ensure_gguf(plan.files, plan.quantization)
            files = ModelFiles(path=path, kind="gguf", weights=(path,))
            plan = dataclasses.replace(plan, files=files)
        if plan.adapter is not None:  # converted here, where its progress is seen
            lora_file(plan.adapter, plan.card)
        return plan

    def open(self, plan: Plan) -> Session:
        """Load the plan's GGUF file.

        Raises:
            FormatError: The file is cut off or corrupt.
            EngineError: llama.cpp refuses it; the message carries its last words.
        """
        plan = self.prepare(plan)
        if plan.files is None:
            raise UnsupportedError(f"The card {plan.card.id} names no file that llama.cpp loads.")
        header = check_gguf(plan.files.path)
        module = library()
        pooling = pooling_of(header.metadata, plan)
        if pooling is not None:
            if plan.adapter is not None:
                raise UnsupportedError(
                    f"The engine llama.cpp takes no adapter on {plan.card.id}, which does not chat."
                )
            llama = load(module, plan, exact=False, **batch_arguments(pooling, plan))
            embedder = LlamaCppEmbedder(llama, module, plan)
            close_at_exit(embedder)
            return embedder
        llama = load(module, plan, exact=header.metadata.get("general.file_type") == _ALL_F32)
        try:
            session = LlamaCppSession(llama, module, plan, own=OwnOptions.of(plan))
        except BaseException:
            llama.close()
            raise
        close_at_exit(session)
        if plan.adapter is not None:
            try:
                session.use_adapter(plan.adapter)
            except BaseException:
                session.close()
                raise
        return session


def load(module: Any, plan: Plan, *, exact: bool, **more: Any) -> Any:
    """Return the ``llama_cpp.Llama`` of a plan.

    Raises:
        EngineError: llama.cpp refuses the file; the message carries its last words.
    """
    arguments = load_arguments(module, plan, exact=exact)
    path = plan.files.path if plan.files else Path()
    half = module.GGML_TYPE_F16
    types = (int(arguments.get("type_k", half)), int(arguments.get("type_v", half)))
    try_out(
        path,
        version=module.__version__,
        cache_types=types,
        flash=bool(arguments.get("flash_attn", False)),
    )
    clear()
    try:
        with experts_in_ram(module, plan.experts_on_cpu):
            return module.Llama(str(path), verbose=False, **{**arguments, **more})
    except WorkbenchError:
        raise
    except Exception as error:
        said = last_words()
        raise EngineError(f"llama.cpp cannot load {plan.card.id}: {said or error}.") from error
