"""Keep chosen receipts among those that ship, with nothing private in them."""

from __future__ import annotations

import json
from pathlib import Path

from workbench.errors import InputError, NotFoundError, nearest
from workbench.paths import checkout
from workbench.receipts.folder import read, write_text
from workbench.receipts.found import entries, receipts
from workbench.receipts.receipt import Receipt
from workbench.redact import redacted, suspicions


def keep(receipt: Receipt | str | Path, folder: Path | None = None) -> Path:
    """Copy a receipt to the receipts that ship, redacted once more, and return the new file.

    Args:
        receipt: A receipt, its file, or its id (the beginning is enough).
        folder: Where to; default is the checkout's ``data/receipts``.

    Raises:
        NotFoundError: There is no such receipt.
        InputError: Something in it still looks private, it is kept already, or there is no
            checkout to keep it in.
    """
    found = receipt if isinstance(receipt, Receipt) else find(receipt)
    clean = Receipt.of(redacted(found.model_dump(), public=True), source=f"receipt {found.id}")
    values = json.loads(clean.model_dump_json())
    private = suspicions({name: value for name, value in values.items() if name != "sha256"})
    if private:
        raise InputError(
            f"The receipt {found.id} is not kept, because this looks private: "
            f"{'; '.join(private)}.",
            hint="Measure again without it; receipts are never edited.",
        )
    return write_text(clean, folder or _default_folder())


def find(receipt: str | Path) -> Receipt:
    """Return the receipt of a file, or of an id of which the beginning is enough.

    Raises:
        NotFoundError: There is no such receipt.
        InputError: Several ids begin so, or the file is no receipt.
    """
    if isinstance(receipt, Path) or receipt.endswith(".json"):
        return read(Path(receipt))
    found = receipts(id=receipt)
    if not found:
        known = [entry.id for entry in entries()[0]]
        close = nearest(receipt, known)
        raise NotFoundError(
            f"There is no receipt {receipt!r}.",
            hint=f"Did you mean {close!r}?" if close else "workbench receipts lists them.",
        )
    if len(found) > 1:
        ids = ", ".join(each.id for each in found[:5])
        raise InputError(f"{len(found)} receipts begin so: {ids}.", hint="Write more of the id.")
    return found[0]


def _default_folder() -> Path:
    root = checkout()
    if root is None:
        raise InputError(
            "There is no checkout to keep receipts in.", hint="Give a folder: --to FOLDER."
        )
    return root / "data" / "receipts"
