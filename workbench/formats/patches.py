"""What llama.cpp's converter needs to read checkpoints saved by transformers 5 rightly."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.formats.child import emit

_BYTE_LEVEL_TOO = ("GemmaModel", "Gemma2Model", "Phi3MiniModel", "PhiMoeModel")
"""Classes that insist on tokenizer.model although the tokenizer is a byte-level BPE."""


def import_converter(folder: Path) -> Any:
    """Return the module ``convert_hf_to_gguf`` of ``folder`` with its own gguf library."""
    sys.path[:0] = [str(folder), str(folder / "gguf-py")]
    return importlib.import_module("convert_hf_to_gguf")


class Patches:
    """The changes, made once; what they decide can be set between two conversions.

    Attributes:
        pre_tokenizer: Name to write where the converter knows none, or to force.
        forced: Use ``pre_tokenizer`` also where the converter has a name of its own.
        recognised: Name the converter found by itself in the last conversion, or None.
        extra_end: Token to write as end of turn, or None.
        add_blank: Whether a blank is put before a text; None leaves it as it is.
        add_bos: Whether the source's tokenizer begins a text with BOS; None leaves it as it is.
    """

    def __init__(self, converter: Any, *, byte_level: bool) -> None:
        self.pre_tokenizer = "gpt-2"
        self.forced = False
        self.recognised: str | None = None
        self.extra_end: int | None = None
        self.add_blank: bool | None = None
        self.add_bos: bool | None = None
        base = sys.modules["conversion.base"]
        self._pre_tokenizer(base.TextModel)
        self._configuration(base.ModelBase)
        self._model_class(converter, byte_level=byte_level)
        self._no_foreign_code()
        self._progress()

    def _pre_tokenizer(self, text_model: Any) -> None:
        known = text_model.get_vocab_base_pre

        def name(model: Any, tokenizer: Any) -> str:
            try:
                self.recognised = str(known(model, tokenizer))
            except NotImplementedError:
                self.recognised = None
            if self.recognised is None or self.forced:
                return self.pre_tokenizer
            return self.recognised

        text_model.get_vocab_base_pre = name

    def _configuration(self, model_base: Any) -> None:
        read = model_base.load_hparams

        def load(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
            values: dict[str, Any] = read(folder, is_mistral_format)
            return values if is_mistral_format else older_keys(values)

        model_base.load_hparams = staticmethod(load)

    def _model_class(self, converter: Any, *, byte_level: bool) -> None:
        find = converter.get_model_class

        def chosen(architecture: str, mmproj: bool = False) -> Any:
            model = find(architecture, mmproj=mmproj)
            if model.supports_mtp_export:
                model.no_mtp = True  # drafting layers fail an assertion without a flag
            original: Callable[[Any], None] = model.set_vocab
            if byte_level and model.__name__ in _BYTE_LEVEL_TOO:
                original = _as_byte_level

            def set_vocab(instance: Any) -> None:
                original(instance)
                self._correct(instance.gguf_writer)

            if not getattr(model, "_corrected", False):
                model.set_vocab, model._corrected = set_vocab, True
            return model

        converter.get_model_class = chosen

    def _correct(self, writer: Any) -> None:
        if self.add_blank is not None:
            writer.add_add_space_prefix(self.add_blank)
        if self.add_bos is not None:
            writer.add_add_bos_token(self.add_bos)
        if self.extra_end is not None:
            writer.add_eot_token_id(self.extra_end)

    def _no_foreign_code(self) -> None:
        """Keep the converter from running Python files that lie beside the weights."""
        import transformers

        for loader in (transformers.AutoTokenizer, transformers.AutoConfig):
            load = loader.from_pretrained

            def trusted(*arguments: Any, _load: Any = load, **options: Any) -> Any:
                return _load(*arguments, **{**options, "trust_remote_code": False})

            loader.from_pretrained = trusted

    def _progress(self) -> None:
        importlib.import_module("tqdm").tqdm = _Events  # type: ignore[attr-defined]


def _as_byte_level(instance: Any) -> None:
    instance._set_vocab_gpt2()


def older_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with the keys that transformers 5 moved or renamed."""
    config = dict(values)
    rope = config.get("rope_parameters")
    rope = rope if isinstance(rope, Mapping) else {}
    partial = rope.get("partial_rotary_factor")
    moved = {
        "n_ctx": config.get("n_positions"),
        "rotary_pct": partial,
        "partial_rotary_factor": partial,
        "rope_theta": rope.get("rope_theta"),
    }
    for key, value in moved.items():
        if value is not None and config.get(key) is None:
            config[key] = value
    return config


class _Events:
    """Takes the place of the converter's progress bar and reports to the parent."""

    def __init__(self, *_: Any, total: float | None = None, **__: Any) -> None:
        self._done, self._total = 0, total

    def update(self, amount: int) -> None:
        self._done += amount
        emit("progress", done=self._done, total=self._total)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None
