"""Import Jupyter's packages without the grammar of IRIs, which nothing here asks for.

``nbformat`` imports ``jsonschema``, and that the package ``rfc3987_syntax`` where it is installed,
which builds its parsers as it is imported: more than two seconds of computing, in every process.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

_NAME = "rfc3987_syntax"


@contextlib.contextmanager
def grammar_when_asked_for() -> Iterator[None]:
    """Let what is imported in the block build the grammar at the first IRI that it checks."""
    if {_NAME, "jsonschema"} & sys.modules.keys() or importlib.util.find_spec(_NAME) is None:
        yield
        return
    standing_in = ModuleType(_NAME)
    standing_in.is_valid_syntax = _is_valid_syntax  # type: ignore[attr-defined]
    sys.modules[_NAME] = standing_in
    try:
        yield
    finally:
        if sys.modules.get(_NAME) is standing_in:
            del sys.modules[_NAME]


def _is_valid_syntax(term: str, value: str) -> bool:
    return bool(importlib.import_module(_NAME).is_valid_syntax(term, value))
