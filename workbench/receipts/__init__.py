"""Receipts: one measured fact with its conditions, written once, as readable JSON."""

from workbench.receipts.content import known_sha256
from workbench.receipts.evidence import VERIFIED, Evidence, Verified, verified
from workbench.receipts.folder import Damaged, read, write
from workbench.receipts.found import Receipts, receipts
from workbench.receipts.keeping import find, keep
from workbench.receipts.receipt import SCHEMA, Receipt

__all__ = [
    "SCHEMA",
    "VERIFIED",
    "Damaged",
    "Evidence",
    "Receipt",
    "Receipts",
    "Verified",
    "find",
    "keep",
    "known_sha256",
    "read",
    "receipts",
    "verified",
    "write",
]
