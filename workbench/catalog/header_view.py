"""One view of a model's headers, of whatever kind its files are."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from workbench.catalog.architecture import Architecture
from workbench.catalog.card import StoredForm
from workbench.catalog.gguf_header import FILE_TYPES
from workbench.catalog.header_config import architecture_of_config
from workbench.catalog.header_count import Counted, count_gguf, count_safetensors
from workbench.catalog.header_facts import Facts
from workbench.catalog.header_metadata import architecture_of_metadata
from workbench.catalog.header_roles import embedding, output, role
from workbench.catalog.header_stored import stored_gguf, stored_safetensors
from workbench.catalog.header_tensor import Tensor
from workbench.figures import Table

Tied = Literal["once", "twice", "only under lm_head", "separate"]
_GENERATES = re.compile(r".*(ForCausalLM|ForConditionalGeneration|LMHeadModel)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a model's files say of themselves; it displays itself as a table.

    Attributes:
        kind: ``safetensors`` or ``gguf``.
        name: The model's folder, file or repository, for messages.
        tensors: Every tensor of every file.
        metadata: The first file's own: texts, and in GGUF also numbers and ``GgufArray``.
        config: config.json; None where there is none, as with GGUF.
        files: Names of the weight files, relative to ``folder``.
        folder: Where they lie; None for a remote model.
        revision: Commit of a remote model, where the hub says it.
        notes: What is odd, though no error.
        same_embeddings: Whether samples of both stored embeddings are equal; None: not compared.
    """

    kind: Literal["safetensors", "gguf"]
    name: str
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, Any]
    config: Mapping[str, Any] | None
    files: tuple[str, ...]
    folder: Path | None = None
    revision: str | None = None
    notes: tuple[str, ...] = ()
    same_embeddings: bool | None = None

    @functools.cached_property
    def counted(self) -> tuple[Counted, ...]:
        """Every tensor with the weights that it stands for."""
        if self.kind == "gguf":
            return count_gguf(self.tensors)
        return count_safetensors(self.tensors, self.config)

    @functools.cached_property
    def embeddings(self) -> tuple[Tensor | None, Tensor | None]:
        """The input embedding and the output matrix, None where not stored."""
        return embedding(self.tensors), output(self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def dtypes(self) -> dict[str, int]:
        """Bytes of every dtype, the largest first."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.dtype] += tensor.bytes
        return dict(sizes.most_common())

    @property
    def parameters(self) -> int | None:
        """Parameters, packed ones unpacked, tied ones once; None where a packing is not told."""
        counts = [each.weights for each in self.counted]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        return sum(known) - (self._weights(self.embeddings[1]) if self._twice else 0)

    @property
    def tied_embeddings(self) -> Tied | None:
        """How input and output embedding are stored, which config.json need not say right.

        ``once``: only under the input's name. ``twice``: both are there and are to be one (by
        config.json with equal shapes, or by equal bytes). None: neither is there.
        """
        inner, outer = self.embeddings
        if outer is None:
            return "once" if inner else None
        if inner is None:
            return "only under lm_head"
        return "twice" if self._twice else "separate"

    @property
    def stored(self) -> StoredForm | None:
        """How the weights are quantized; None where they are not."""
        if self.kind == "gguf":
            return stored_gguf(self.counted, self.metadata)
        return stored_safetensors(self.counted, self.config)

    @property
    def file_type(self) -> str | None:
        """The file type that a GGUF file names, for example ``Q4_K_M``."""
        number = self.metadata.get("general.file_type")
        return FILE_TYPES.get(number) if isinstance(number, int) else None

    @property
    def context_length(self) -> int | None:
        """Most tokens that the model was made for, as its files say."""
        if self.kind == "gguf":
            name = self.metadata.get("general.architecture")
            return Facts(self.metadata).number(f"{name}.context_length")
        whole = Facts(self.config or {})
        names = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
        inner = whole.inner("text_config", "llm_config", "language_config")
        return inner.number(*names) or whole.number(*names)

    def architecture(self) -> Architecture:
        """Return the facts of the model's architecture; what the files do not say stays None."""
        inner, outer = self.embeddings
        table = inner or outer
        rows = table.shape[0] if table and len(table.shape) == 2 else None
        facts = {
            "parameters": self.parameters or None,
            "vocab_size": rows,
            "tied_embeddings": self._is_tied(),
            "input_embedding_parameters": self._weights(inner or outer) or None,
            "output_parameters": None
            if table is None
            else (0 if self._is_tied() or not outer else self._weights(outer)),
        }
        if self.kind == "gguf":
            return architecture_of_metadata(self.metadata, self.counted, facts)
        return architecture_of_config(self.config or {}, self.counted, facts)

    def table(self) -> Table:
        """Return the tensors by what they are for and by dtype, with their bytes."""
        groups: dict[tuple[str, str], list[Counted]] = {}
        for each in self.counted:
            groups.setdefault((role(each.tensor.name), each.tensor.dtype), []).append(each)
        rows = [
            {
                "role": words,
                "dtype": dtype,
                "tensors": len(group),
                "parameters": sum(each.weights or 0 for each in group),
                "bytes": sum(each.tensor.bytes for each in group),
            }
            for (words, dtype), group in groups.items()
        ]
        rows.sort(key=lambda row: -int(str(row["bytes"])))
        count = "" if self.parameters is None else f", {self.parameters:,} parameters"
        many = f"{len(self.files)} files" if len(self.files) != 1 else "1 file"
        return Table(
            rows,
            columns={"role": "role", "dtype": "dtype", "tensors": "tensors",
                     "parameters": "parameters", "bytes": "bytes"},
            caption=f"{self.name}: {self.kind}, {many}, {self.weight_bytes:,} bytes{count}",
            formats={"parameters": ",d", "bytes": ",d"},
        )  # fmt: skip

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        return f"<Header of {self.name}: {self.kind}, {len(self.tensors)} tensors>"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        return self.table()._repr_mimebundle_(**options)

    @property
    def _said_tied(self) -> bool | None:
        if self.config is None:
            return None
        whole = Facts(self.config)
        said = whole.flag("tie_word_embeddings")
        inner = whole.inner("text_config", "llm_config", "language_config")
        return inner.flag("tie_word_embeddings") if said is None else said

    @property
    def _twice(self) -> bool:
        inner, outer = self.embeddings
        if inner is None or outer is None or inner.shape != outer.shape:
            return False
        if self.same_embeddings is not None:
            return self.same_embeddings and self._said_tied is not False
        return self._said_tied is True and inner.dtype == outer.dtype

    def _is_tied(self) -> bool | None:
        form = self.tied_embeddings
        if form in ("twice", "separate"):
            return form == "twice"
        if form is None or self._said_tied is not None:
            return self._said_tied
        classes = Facts(self.config or {}).words("architectures")
        generates = self.kind == "gguf" or any(_GENERATES.fullmatch(name) for name in classes)
        return True if generates else None

    def _weights(self, tensor: Tensor | None) -> int:
        found = (each.weights or 0 for each in self.counted if each.tensor is tensor)
        return next(found, 0)
