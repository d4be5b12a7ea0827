"""What the commands share: the application, their options, and how a value is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="workbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Load, measure, compare, fine-tune and export open-weight language models.",
)

Model = Annotated[str, typer.Argument(help="A card id, a folder of safetensors or a .gguf file.")]
EngineOption = Annotated[str, typer.Option(help="A name of `workbench engines`, or auto.")]
QuantizationOption = Annotated[str, typer.Option(help="none, int8, nf4, Q4_K_M, ... or auto.")]
DtypeOption = Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")]
ContextOption = Annotated[int | None, typer.Option(help="Tokens of context to allocate.")]
AdapterOption = Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter.")]
OutOption = Annotated[Path | None, typer.Option(help="Where to write; default below outputs/.")]


def show(value: Any) -> None:
    """Print what a value says of itself in plain text."""
    bundle = getattr(value, "_repr_mimebundle_", None)
    print(bundle()["text/plain"] if bundle else value)  # noqa: T201
