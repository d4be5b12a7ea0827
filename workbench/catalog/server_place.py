"""Where a server engine is on this machine: an interpreter or a binary, found unstarted."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.catalog.capabilities import EngineFacts, ServerFacts
from workbench.errors import MissingPackageError
from workbench.paths import checkout
from workbench.settings import ENVIRONMENT_PREFIX, environment


def program_of(
    engine: str, server: ServerFacts, options: Mapping[str, Any] | None = None
) -> tuple[str, tuple[str, ...]]:
    """Return the interpreter or binary of a server, and the words of its command.

    Looked for in this order: the option ``python`` or ``program``, the environment variable, this
    interpreter, the environments of the checkout, the search path, the package that carries it.

    Raises:
        MissingPackageError: It is nowhere to be found, or what is named cannot be started.
    """
    variable = ENVIRONMENT_PREFIX + server.named_by.upper()
    option = "python" if server.module else "program"
    given = (options or {}).get(option) or environment(server.named_by)
    if given:
        path = shutil.which(str(Path(str(given)).expanduser()))
        if path is None:
            raise MissingPackageError(
                f"{given} is no program that can be started.",
                hint=f"It was named by {option}= or by {variable}.",
            )
        return path, server.command
    if server.module and importlib.util.find_spec(server.module) is not None:
        return sys.executable, server.command
    root = checkout()
    for folder in server.environments if root is not None else ():
        path = shutil.which(str(Path(str(root)) / folder / "bin" / "python"))
        if path is not None:
            return path, server.command
    found = shutil.which(server.program) if server.program else None
    if found:
        return found, server.command
    if server.instead and importlib.util.find_spec(server.instead) is not None:
        return sys.executable, server.instead_command
    what = "the interpreter of its environment" if server.module else "its binary"
    raise MissingPackageError(
        f"The {engine} server is not on this machine.",
        hint=f"Install it, or name {what}: {variable}=PATH.",
    )


def missing_of(facts: EngineFacts) -> tuple[str, ...]:
    """Return what an engine lacks on this machine: modules, or the server itself."""
    missing = [name for name in facts.packages if importlib.util.find_spec(name) is None]
    if facts.server is not None:
        try:
            program_of(facts.name, facts.server)
        except MissingPackageError:
            missing.append(facts.server.module or facts.server.program or facts.name)
    return tuple(missing)
