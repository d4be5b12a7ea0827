"""The transformers engine: Hugging Face models on CPU, CUDA and MPS, decoded step by step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from workbench.engines.transformers_adapters import (
    kind_of_adapter,
    require_peft,
    require_safetensors,
)
from workbench.engines.transformers_bar import weights_shown
from workbench.engines.transformers_gguf import GgufFile, quiet_unpacking
from workbench.engines.transformers_images import ImageSession, is_vision_model
from workbench.engines.transformers_memory import (
    free_after,
    is_out_of_memory,
    load_error,
    refuse_disk,
)
from workbench.engines.transformers_packed import check_packed, packed_by, read_config
from workbench.engines.transformers_pooling import is_sentence_model, read_pooling
from workbench.engines.transformers_session import TransformersSession
from workbench.engines.transformers_vectors import (
    EmbeddingSession,
    JudgingSession,
    RerankingSession,
    VectorSession,
)
from workbench.errors import FormatError, UnsupportedError
from workbench.planning import Plan

_TALKATIVE = ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops")
_NO_NEWS = ("inputs will be cast", "from kernels-community")
_FOUR_BITS = {
    "nf4": ("nf4", False),
    "nf4-double": ("nf4", True),
    "fp4": ("fp4", False),
    "fp4-double": ("fp4", True),
}
"""Type of 4 bits, and whether the scales are quantized too (QLoRA, arXiv 2305.14314)."""
ON_LOAD = ("int8", *_FOUR_BITS)
"""Quantizations made while loading; others lie in the files."""
_CLASSES = {
    "chat": "AutoModelForCausalLM",
    "judge": "AutoModelForCausalLM",
    "embedding": "AutoModel",
    "images": "AutoModelForImageTextToText",
    "rerank": "AutoModelForSequenceClassification",
}
"""transformers' class by what the model is for."""
_OURS = ("prefix_reuse",)
"""Options that are the session's, not the library's."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class TransformersEngine:
    """Opens safetensors, and GGUF files where it is named, with transformers' own classes."""

    name = "transformers"

    def open(self, plan: Plan) -> TransformersSession | VectorSession:
        """Load the plan's model; weights are read from safetensors or GGUF, never from pickles.

        Raises:
            FormatError: The files lack weights that the architecture needs.
            UnsupportedError: transformers would not read the whole of a GGUF.
            MemoryShortError: Memory ran out; what was loaded until then is freed.
            MissingPackageError: The checkpoint is quantized by a method whose package is missing.
        """
        try:
            return self._opened(plan)
        except Exception as error:
            free_after(error)
            if is_out_of_memory(error):
                raise load_error(plan, error) from None
            raise

    def _opened(self, plan: Plan) -> TransformersSession | VectorSession:
        import torch

        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        if plan.files is not None and plan.files.kind == "gguf":
            return _opened_gguf(plan)
        packed = packed_by(_folder(plan))
        if packed is not None:
            check_packed(packed, plan.card.id, made=plan.quantization in ON_LOAD)
        kind = kind_of(plan, _folder(plan))
        _check_adapter(plan, kind)
        tokenizer = _load_tokenizer(plan)
        model = _load_model(plan, kind)
        if kind == "images":
            seeing = ImageSession(model.eval(), _load_processor(plan), plan)
            if plan.adapter is not None:
                seeing.use_adapter(plan.adapter)
            return seeing
        if kind in ("embedding", "rerank", "judge"):
            return _vectors(kind, model.eval(), tokenizer, plan)
        return _chat_session(model, tokenizer, plan)


def _opened_gguf(plan: Plan) -> TransformersSession:
    if {"embedding", "rerank"} & set(plan.card.tasks):
        raise UnsupportedError(
            f"The engine transformers gives no vectors from the GGUF of {plan.card.id}.",
            hint="Load it with engine='llama.cpp', or from its safetensors.",
        )
    file = GgufFile(plan)
    tokenizer = _load_tokenizer(plan, file)
    with quiet_unpacking():
        model = _load_model(plan, "chat", file)
    file.complete(model)
    return _chat_session(model, tokenizer, plan)


def _chat_session(model: Any, tokenizer: Any, plan: Plan) -> TransformersSession:
    if plan.adapter is None or kind_of_adapter(plan.adapter) == "LORA":
        session = TransformersSession(model.eval(), tokenizer, plan)
        if plan.adapter is not None:
            session.use_adapter(plan.adapter)
        return session
    return TransformersSession(_with_adapter(model, plan).eval(), tokenizer, plan)


def _check_adapter(plan: Plan, kind: str) -> None:
    """Refuse an adapter before anything is loaded where it would not be used.

    Raises:
        UnsupportedError: As it says.
    """
    if plan.adapter is None or kind in ("chat", "images"):
        return
    raise UnsupportedError(
        f"The engine transformers takes no adapter on {plan.card.id}, which does not chat.",
        hint="Merge it into the model (wb.merge), and load that.",
    )


def _load_tokenizer(plan: Plan, file: GgufFile | None = None) -> Any:
    from transformers import AutoTokenizer

    if file is not None:
        tokenizer = AutoTokenizer.from_pretrained(
            str(file.path.parent),
            gguf_file=file.path.name,
            local_files_only=True,
            trust_remote_code=False,
        )
        file.correct(tokenizer)
        return tokenizer
    return AutoTokenizer.from_pretrained(
        str(_folder(plan)),
        local_files_only=True,
        trust_remote_code=_is_trusted(plan),
    )


def _load_processor(plan: Plan) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(
        str(_folder(plan)), local_files_only=True, trust_remote_code=_is_trusted(plan)
    )


def _is_trusted(plan: Plan) -> bool:
    """Return whether the user allows the model's own code; None would have the library ask."""
    return bool(plan.options.get("trust_remote_code", False))


def _load_model(plan: Plan, kind: str, file: GgufFile | None = None) -> Any:
    import torch
    import transformers

    arguments: dict[str, Any] = {"trust_remote_code": False, **plan.options}
    for name in _OURS:
        arguments.pop(name, None)
    if file is not None:
        arguments |= file.arguments()
    elif plan.quantization in ON_LOAD:
        arguments["quantization_config"] = _quantization(plan)
    if plan.max_memory:
        arguments.setdefault("device_map", "auto")
        arguments.setdefault("max_memory", _max_memory(plan))
    elif plan.quantization != "none" or plan.device != "cpu":
        arguments.setdefault("device_map", {"": plan.device})
    refuse_disk(arguments.get("device_map"), plan.card.id)
    folder = file.path.parent if file is not None else _folder(plan)
    with weights_shown():
        model, loading = getattr(transformers, _CLASSES[kind]).from_pretrained(
            str(folder),
            dtype=getattr(torch, _DTYPES[plan.dtype or "fp32"]),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **arguments,
        )
    refuse_disk(getattr(model, "hf_device_map", None), plan.card.id)
    missing = sorted(
        key
        for key in loading.get("missing_keys") or ()
        if kind != "embedding" or not key.startswith("pooler.")  # unused, and often not saved
    )
    if missing:
        raise FormatError(
            f"{plan.card.id} lacks {len(missing)} weights that its architecture needs, "
            f"the first is {missing[0]}; they would be random.",
            hint="Download the model again.",
        )
    return model


def kind_of(plan: Plan, folder: Path) -> str:
    """Return what the model is for: the card's task comes first, then its own files.

    A reranker without a classification head answers yes or no: it is a ``judge``.
    """
    config = read_config(folder)
    classes = [str(name) for name in config.get("architectures") or ()]
    headed = any(name.endswith("ForSequenceClassification") for name in classes)
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in classes)
    tasks = plan.card.tasks
    if "rerank" in tasks or (headed and "embedding" not in tasks):
        return "rerank" if headed or not causal else "judge"
    if "embedding" in tasks or is_sentence_model(folder):
        return "embedding"
    if is_vision_model(folder, config):
        return "images"
    bare = bool(classes) and all(name.endswith("Model") for name in classes)
    return "embedding" if bare and not causal else "chat"


def _vectors(kind: str, model: Any, tokenizer: Any, plan: Plan) -> VectorSession:
    if kind == "rerank":
        return RerankingSession(model, tokenizer, plan)
    if kind == "judge":
        return JudgingSession(model, tokenizer, plan)
    folder = _folder(plan)
    classes = [str(name) for name in read_config(folder).get("architectures") or ()]
    causal = any(name.endswith("ForCausalLM") for name in classes)
    return EmbeddingSession(model, tokenizer, plan, read_pooling(folder, causal=causal))


def _max_memory(plan: Plan) -> dict[int | str, int]:
    """Return the most bytes of weights by device, GPUs by their number."""
    return {
        int(place) if place.isdigit() else place: size for place, size in plan.max_memory.items()
    }


def _folder(plan: Plan) -> Path:
    if plan.files is None or plan.files.kind != "safetensors":
        raise UnsupportedError(
            f"The engine transformers loads safetensors, which {plan.card.id} does not have here."
        )
    return plan.files.path


def _quantization(plan: Plan) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_is_news)
    if plan.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if plan.quantization in _FOUR_BITS:
        kind, double = _FOUR_BITS[plan.quantization]
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=getattr(torch, _DTYPES[plan.dtype or "bf16"]),
        )
    raise UnsupportedError(f"The engine transformers cannot do {plan.quantization!r}.")


def _is_news(record: logging.LogRecord) -> bool:
    """Refuse what bitsandbytes says per layer and token, or of an extra that nobody asked for."""
    return not any(words in str(record.msg) for words in _NO_NEWS)


def _with_adapter(model: Any, plan: Plan) -> Any:
    assert plan.adapter is not None
    require_peft()
    require_safetensors(plan.adapter)
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(plan.adapter), is_trainable=False)
