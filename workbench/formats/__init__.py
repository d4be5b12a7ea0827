"""Turn one form of a model into another: safetensors to GGUF, GGUF to quantized GGUF."""

from workbench.formats.gguf import convert, ensure_gguf, known_quantization, quantize

__all__ = ["convert", "ensure_gguf", "known_quantization", "quantize"]
