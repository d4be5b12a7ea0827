"""Parts of a split GGUF file: their names, and whether they belong together."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.catalog.gguf_header import GgufHeader
from workbench.errors import FormatError

_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")


def first_part(name: str) -> str:
    """Return the name of the first part of the split GGUF file that ``name`` is one of."""
    found = _PART.fullmatch(name)
    return f"{found[1]}-00001-of-{found[3]}.gguf" if found else name


def part_names(name: str) -> tuple[str, ...]:
    """Return the names of all parts of the split GGUF file that ``name`` is one of, in order.

    Raises:
        FormatError: The name says part 7 of 3.
    """
    found = _PART.fullmatch(name)
    if found is None:
        return (name,)
    stem, part, count = found[1], int(found[2]), int(found[3])
    if not 1 <= part <= count:
        raise FormatError(f"{name} says that it is part {part} of {count}.")
    return tuple(f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def check_part(header: GgufHeader, name: str, number: int, count: int) -> None:
    """Check that a file says of itself that it is part ``number`` (from 0) of ``count``.

    Raises:
        FormatError: It says otherwise.
    """
    said = (header.metadata.get("split.no", 0), header.metadata.get("split.count", 0))
    if count == 1 and said[1] in (0, 1):
        return
    if count == 1:
        raise FormatError(
            f"{name} is one of {said[1]} parts, but its name does not say which.",
            hint="Give the parts the names that they were published with (-00001-of-00003.gguf).",
        )
    if said != (number, count):
        raise FormatError(
            f"{name} is not part {number + 1} of {count}: inside it says split.no {said[0]} and "
            f"split.count {said[1]}.",
            hint="Parts of two models are mixed; get them again.",
        )


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """Return all parts of the GGUF file that ``path`` is, or is a part of, in order.

    Raises:
        FormatError: A part is missing.
    """
    names = part_names(path.name)
    for name in names:
        if name != path.name and not (path.parent / name).is_file():
            raise FormatError(
                f"{path.name} is one of {len(names)} parts, and {name} is missing.",
                hint="Get the missing part; all lie in one folder.",
            )
    return tuple(path.parent / name for name in names)
