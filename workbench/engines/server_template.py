"""What a model's chat template says of the parsers that its server wants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from workbench.catalog.capabilities import Shows
from workbench.planning import Plan


def template_of(plan: Plan) -> str:
    """Return the chat templates that lie beside a plan's safetensors, "" where there are none."""
    files = plan.files
    if files is None or files.kind != "safetensors":
        return ""
    folder = files.path if files.path.is_dir() else files.path.parent
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text("utf-8", "replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _texts(folder / name)
        if found:
            return found
    return ""


def _texts(path: Path) -> str:
    """Return the template in a JSON file, or its several by name in one text."""
    try:
        found = json.loads(path.read_text("utf-8"))["chat_template"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    rows = found if isinstance(found, list) else [found]
    texts = [row.get("template") if isinstance(row, dict) else row for row in rows]
    return "\n".join(text for text in texts if isinstance(text, str))


def tool_parser_of(template: str, known: Mapping[str, Shows]) -> str | None:
    """Return the server's parser of the tool calls that a template shows, None where none is sure.

    Args:
        template: The chat template.
        known: By the parser's name what it is known by, as the engine's data say.
    """
    for name, shows in known.items():
        if all(part in template for part in shows.has) and not any(
            part in template for part in shows.has_not
        ):
            return name
    return None
