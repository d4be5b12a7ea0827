"""Every card's parameters by its own tensors beside those stated, and its bytes in five forms.

    python benchmarks/model_table.py [--check]

It writes docs/models.md; ``--check`` only says whether the file is current. Nothing is measured and
nothing is read but the cards: the figures are the rules of ``workbench/catalog/shapes`` and
``workbench/memory/weights.py``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workbench.catalog import Card, catalog
from workbench.catalog.shapes import ShapeList, shapes
from workbench.errors import UnsupportedError, WorkbenchError
from workbench.memory.weight_form import weight_form
from workbench.memory.weights import weigh

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
FORMS = ("bf16", "Q8_0", "Q4_K_M", "nf4", "int8")
GB = 1e9
HEAD = """\
# Parameters and bytes of every model

Made by `python benchmarks/model_table.py` from the cards alone; a test checks that it is current.

*Counted* is the sum of all tensors by the rules of the family (`workbench/catalog/shapes`), image
encoder and projector included, tied embeddings once; *difference* is against the count that the
card states from its sources. Bytes are those of the weights alone, in GB of 10^9 bytes, each of the
model's own parameters in that form, whether or not somebody publishes it so:

- **BF16**: two bytes for each parameter, as transformers loads it.
- **Q8_0**, **Q4_K_M**: the tensors of the main GGUF file by llama.cpp's own mix, made without an
  importance matrix; the image encoder's file (mmproj) and 1 to 10 MB of tokenizer come besides.
- **nf4**, **int8**: bitsandbytes under transformers. Embeddings, output matrix, norms and fused
  experts stay at 16 bit, so that a mixture of experts hardly shrinks.

A form in which a card's own files lie (AWQ, MXFP4, block fp8) is in the last column.

"""
COLUMNS = ("model", "family", "stated", "counted", "difference", *FORMS, "own files", "notes")


def page() -> str:
    """Return the whole page."""
    lines = [
        HEAD + "| " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---:|" * 8 + "---|---|",
    ]
    lines += [
        "| " + " | ".join(row(card)) + " |"
        for card in sorted(catalog(), key=lambda card: card.id)
        if card.architecture.model_type is not None
    ]
    return "\n".join(lines) + "\n"


def row(card: Card) -> list[str]:
    """Return the cells of a card."""
    facts = card.architecture
    stated = f"{facts.parameters:,}" if facts.parameters else "not sourced"
    start = [card.id, facts.model_type or "", stated]
    try:
        found = shapes(facts)
    except UnsupportedError as error:
        return [*start, *[""] * (len(COLUMNS) - 4), error.message]
    counted = found.parameters()
    difference = counted - facts.parameters if facts.parameters else None
    cells = [
        f"{counted:,}",
        "" if difference is None else f"{difference:+,}" if difference else "0",
    ]
    cells += [f"{weigh(found, weight_form(form)).bytes / GB:,.2f}" for form in FORMS]
    return [*start, *cells, own_files(card, found), notes(found, difference)]


def own_files(card: Card, found: ShapeList) -> str:
    """Return the form of the card's own files and its GB, or nothing where it is not quantized."""
    if card.stored is None:
        return ""
    name = card.stored.quantization or card.stored.detail or card.stored.method
    try:
        form = weight_form(None, dtype=card.dtype, stored=card.stored)
        return f"{name} {weigh(found, form).bytes / GB:,.2f}"
    except WorkbenchError:
        return f"{name}: not known"


def notes(found: ShapeList, difference: int | None) -> str:
    """Return what explains a difference, or what a reader must know of the count."""
    said = [note for note in found.notes if difference]
    buffers = sum(shape.count for shape in found if shape.role == "exp_probs_b")
    if buffers:
        said.append(f"{buffers:,} are balancing biases of experts, stored but not trained.")
    return " ".join(said)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    given = parser.parse_args()
    text = page()
    current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    if given.check:
        print("current" if current else f"{PAGE.name} is not current: run this without --check")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE} written, {text.count(chr(10))} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
