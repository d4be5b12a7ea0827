"""Convert a safetensors folder to GGUF with llama.cpp's converter, checked (runs in a child)."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import FormatError
from workbench.formats.child import emit
from workbench.formats.patches import Patches, import_converter
from workbench.formats.pretokenizer import (
    candidates,
    check_rows,
    kind_of,
    normalizes,
    read_tokenizer,
)
from workbench.formats.probes import Comparison, Probes
from workbench.formats.sentencepieces import adds_blank, write_tokenizer_model
from workbench.formats.vocabulary import vocabulary

LARGEST_F16 = 65504.0
_PRE_KEY = b"tokenizer.ggml.pre"


def main(arguments: list[str]) -> None:
    """Convert: one JSON object with root, model, out, dtype, name and scratch (child side)."""
    given = json.loads(arguments[0])
    work = _Work(given)
    work.check_vocabulary_size()
    if given["dtype"] == "f16":
        check_range(work.model)
    work.settle_vocabulary()
    work.convert(work.out, vocab_only=False)
    work.check_result()
    emit("result", values={"pre_tokenizer": work.pre_tokenizer, "notes": work.notes})


class _Work:
    """One conversion, step by step."""

    def __init__(self, given: Mapping[str, str]) -> None:
        import transformers

        self.out, self.scratch = Path(given["out"]), Path(given["scratch"])
        self.model, self.dtype, self.name = Path(given["model"]), given["dtype"], given["name"]
        self.notes: list[str] = []
        self.pre_tokenizer: str | None = None
        self.reference = transformers.AutoTokenizer.from_pretrained(self.model)
        backend = getattr(self.reference, "backend_tokenizer", None)
        # what transformers made of tokenizer.json, which is not always what the file says
        self.tokenizer: dict[str, Any] = (
            read_tokenizer(self.model) if backend is None else json.loads(backend.to_str())
        )
        self.kind = kind_of(self.tokenizer)
        has_pieces = (self.model / "tokenizer.model").is_file()
        self.converter = import_converter(Path(given["root"]))
        self.patches = Patches(
            self.converter, byte_level=self.kind == "byte-level" and not has_pieces
        )
        self.patches.pre_tokenizer = candidates(self.tokenizer)[0]
        self.probes = Probes.of(
            self.reference,
            normalizes=normalizes(self.tokenizer),
            keeps_leading_blank=self.kind != "sentencepiece",
        )
        self.patches.add_bos = _begins_with_bos(self.reference)
        if self.kind == "sentencepiece":
            self.patches.add_blank = adds_blank(self.tokenizer)
            if not has_pieces:
                self._rebuild_pieces()

    def check_vocabulary_size(self) -> None:
        """Refuse a tokenizer with more tokens than the embedding has rows."""
        check_rows(self.model, self.reference.get_vocab().values(), name=self.name)

    def settle_vocabulary(self) -> None:
        """Find the form of the vocabulary that tokenizes as the source does, or refuse."""
        path = self.scratch / "vocabulary.gguf"
        self.convert(path, vocab_only=True)
        found = self._compare(path)
        if not found.equal and self.kind == "sentencepiece" and self.model != self.scratch:
            self._rebuild_pieces()
            self.convert(path, vocab_only=True)
            found = self._compare(path)
        if not found.equal and self.kind == "byte-level":
            found = self._search(path, found)
        if not found.equal:
            raise self._refusal(found)
        if found.made_differing:
            self.notes.append(
                f"{len(found.made_differing)} of {found.made} made strings are tokenized "
                f"differently, for example {found.made_differing[0]!r}."
            )
        if normalizes(self.tokenizer):
            self.notes.append(
                "The tokenizer normalizes Unicode, llama.cpp does not: text with decomposed "
                "accents gets other tokens."
            )
        strange = self._unlike_its_file()
        if strange is not None:
            self.notes.append(
                f"transformers reads tokenizer.json differently from what it says ({strange!r}); "
                "the GGUF agrees with transformers."
            )
        self._settle_ends(path)

    def _unlike_its_file(self) -> str | None:
        """Return a probe that transformers tokenizes otherwise than tokenizer.json says."""
        from tokenizers import Tokenizer

        path = self.model / "tokenizer.json"
        if not path.is_file():
            return None
        plain = Tokenizer.from_file(str(path))
        for text, ids in self.probes.picked:
            if list(plain.encode(text, add_special_tokens=False).ids) != ids:
                return text[:40]
        return None

    def _search(self, path: Path, first: Comparison) -> Comparison:
        """Try every pre-tokenizer on the vocabulary file and keep the best one."""
        best, best_name = first, ""
        for name in candidates(self.tokenizer):
            replace_pre_tokenizer(path, name)
            found = self._compare(path)
            if found.badness < best.badness or (found.equal and not best.equal):
                best, best_name = found, name
            if best.badness == 0:
                break
        if best_name:
            self.patches.pre_tokenizer, self.patches.forced = best_name, True
        return best

    def _settle_ends(self, path: Path) -> None:
        """Make the tokens that end a reply in the source end it in the GGUF too."""
        missing = self._missing_ends(path)
        if len(missing) == 1:
            self.patches.extra_end = missing[0]
        elif missing:
            self.notes.append(f"llama.cpp does not stop at the end tokens {missing}.")

    def _missing_ends(self, path: Path) -> list[int]:
        with vocabulary(path) as opened:
            return [
                token for token in end_tokens(self.model, self.reference) if not opened.ends(token)
            ]

    def convert(self, out: Path, *, vocab_only: bool) -> None:
        """Run the converter's own main function."""
        words = ["convert_hf_to_gguf.py", str(self.model), "--outfile", str(out)]
        words += ["--outtype", self.dtype, "--model-name", self.name]
        sys.argv = words + (["--vocab-only"] if vocab_only else [])
        try:
            self.converter.main()
        except SystemExit as error:
            if error.code:
                raise FormatError(
                    f"llama.cpp's converter does not take {self.name} "
                    f"({', '.join(_architectures(self.model))}).",
                    hint="Use the transformers engine for this model.",
                ) from None
        except Exception as error:
            import traceback

            traceback.print_exc()
            raise FormatError(
                f"llama.cpp's converter failed on {self.name}: {type(error).__name__}: {error}"
            ) from None

    def _rebuild_pieces(self) -> None:
        """Convert from a folder of links with a ``tokenizer.model`` made from tokenizer.json."""
        source = self.model
        for path in source.iterdir():
            if path.name not in ("tokenizer.model", "added_tokens.json"):
                (self.scratch / path.name).symlink_to(path.resolve())
        write_tokenizer_model(self.tokenizer, self.scratch / "tokenizer.model")
        added = self.tokenizer.get("added_tokens", [])
        plain = {entry["content"]: entry["id"] for entry in added if not entry.get("special")}
        (self.scratch / "added_tokens.json").write_text(json.dumps(plain))
        self.model = self.scratch
        self.notes.append("tokenizer.model was rebuilt from tokenizer.json.")

    def _compare(self, path: Path) -> Comparison:
        with vocabulary(path) as opened:
            self.pre_tokenizer = opened.metadata("tokenizer.ggml.pre")
            return self.probes.compare(opened.tokenize)

    def _refusal(self, found: Comparison) -> FormatError:
        differing = (*found.differing, *found.made_differing)
        why = "no pre-tokenizer of llama.cpp fits" if self.kind == "byte-level" else "it differs"
        if self._unlike_its_file() is not None:
            why = "transformers reads its tokenizer.json differently from what the file says"
        return FormatError(
            f"The tokenizer of {self.name} cannot be written to GGUF faithfully ({why}): "
            f"{len(differing)} of {found.texts + found.made} texts get other tokens, "
            f"for example {differing[0][:60]!r}.",
            hint="Use the transformers engine, or train with a pre-tokenizer that llama.cpp knows.",
        )

    def check_result(self) -> None:
        """Check tokenizer, chat template and end tokens in the finished file."""
        found = self._compare(self.out)
        if not found.equal:
            raise self._refusal(found)
        missing = self._missing_ends(self.out)
        template = self.reference.chat_template
        with vocabulary(self.out) as opened:
            written = opened.metadata("tokenizer.chat_template")
            stops = opened.ends(self.reference.eos_token_id or 0)
        if isinstance(template, str) and written != template:
            raise FormatError(f"The chat template of {self.name} was not written as it is.")
        if self.reference.eos_token_id is not None and not stops:
            raise FormatError(
                f"llama.cpp would not stop at {self.reference.eos_token!r}, the end token of "
                f"{self.name} (not ending: {missing})."
            )


def _begins_with_bos(tokenizer: Any) -> bool | None:
    """Return whether plain text gets a BOS token, None where there is none or it is unclear."""
    if tokenizer.bos_token_id is None:
        return None
    return bool(tokenizer.encode("a")[:1] == [tokenizer.bos_token_id])


def _architectures(folder: Path) -> list[str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [str(name) for name in config.get("architectures") or ["unknown architecture"]]


def end_tokens(folder: Path, tokenizer: Any) -> list[int]:
    """Return the ids that end a reply: of generation_config.json and the tokenizer's own."""
    path = folder / "generation_config.json"
    listed = (
        json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else []
    )
    ends = [listed] if isinstance(listed, int) else list(listed or [])
    return sorted({*ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})


def replace_pre_tokenizer(path: Path, name: str) -> None:
    """Write another pre-tokenizer name into a GGUF file that holds a vocabulary only."""
    data = path.read_bytes()
    at = data.index(_PRE_KEY) + len(_PRE_KEY) + 4  # the key, then its value's type
    (length,) = struct.unpack_from("<Q", data, at)
    value = struct.pack("<Q", len(name)) + name.encode()
    path.write_bytes(data[:at] + value + data[at + 8 + length :])


def check_range(folder: Path) -> None:
    """Refuse weights beyond the range of float16, which would silently become infinite.

    Raises:
        FormatError: Naming the first tensor and its largest value.
    """
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                tensor = tensors.get_tensor(name)
                if not tensor.is_floating_point() or tensor.numel() == 0:
                    continue
                largest = float(tensor.abs().max())
                if not largest <= LARGEST_F16:
                    raise FormatError(
                        f"{name} holds {largest:g}, more than float16 can ({LARGEST_F16:g}).",
                        hint='Convert with dtype="BF16" or "F32".',
                    )


def safe_name(name: str, tokenizer: Mapping[str, Any]) -> str:
    """Return ``name`` without what llama.cpp takes for a Phi-3 vocabulary where there is none."""
    if "</s>" in tokenizer.get("model", {}).get("vocab", {}):
        return name
    return re.sub(r"(?i)phi-?3", "phi_3", name)
