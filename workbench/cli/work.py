"""Commands that compare, profile, fine-tune, merge, export and check parity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import AdapterOption, Model, OutOption, app, show
from workbench.errors import InputError


@app.command()
def compare(
    model: Model = "tiny-chat",
    form: Annotated[
        list[str] | None,
        typer.Option("--form", help="engine:form, for example llama.cpp:Q4_K_M; repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Most prompts per prompt set.")] = None,
) -> None:
    """Measure one model in several forms, each in its own child process."""
    import workbench as wb

    settings: dict[str, Any] = {"forms": form} if form else {}
    show(wb.compare(model, limit=limit, **settings))


@app.command()
def profile(
    model: Model = "tiny-chat",
    form: Annotated[
        list[str] | None,
        typer.Option("--form", help="engine:form, for example llama.cpp:Q4_K_M; repeatable."),
    ] = None,
    context: Annotated[
        list[int] | None, typer.Option("--context", help="Tokens of context; repeatable.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of every form.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write every value as JSON.")] = None,
) -> None:
    """Measure memory by phase at several contexts, beside the estimate."""
    import workbench as wb

    contexts: dict[str, Any] = {"contexts": context} if context else {}
    found = wb.profile(model, forms=form or None, threads=threads, **contexts)
    show(found)
    if out is not None:
        print(found.save(out))  # noqa: T201


@app.command()
def finetune(
    dataset: Annotated[
        str | None, typer.Argument(help="JSON lines of chats to learn; default is the recipe's.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Card id or folder to start from; default is the recipe's.")
    ] = None,
    evaluation: Annotated[str | None, typer.Option(help="Held-out JSON lines, or none.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Preset, recipe.yaml, or an adapter's folder.")
    ] = None,
    out: OutOption = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint.")] = False,
) -> None:
    """Fine-tune a LoRA on the assistant's turns, with figures before and after."""
    import workbench as wb

    show(
        wb.finetune(
            model, dataset=dataset, evaluation=evaluation, recipe=recipe, out=out, resume=resume
        )
    )


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter.")],
    out: OutOption = None,
) -> None:
    """Merge an adapter into its base model."""
    import workbench as wb

    print(wb.merge(adapter, out))  # noqa: T201


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model, or the folder of an adapter.")],
    quantization: Annotated[
        list[str] | None, typer.Option("--quantization", help="F16, Q8_0, Q4_K_M; repeatable.")
    ] = None,
    out: OutOption = None,
) -> None:
    """Export to GGUF, each hop checked for parity."""
    import workbench as wb

    forms = tuple(quantization) if quantization else ("F16", "Q8_0", "Q4_K_M")
    show(wb.export_gguf(model, out, quantizations=forms))


@app.command()
def parity(
    model: Annotated[str | None, typer.Argument(help="The safetensors model, or the base.")] = None,
    adapter: AdapterOption = None,
    merged: Annotated[Path | None, typer.Option(help="Folder of the merged model.")] = None,
    gguf: Annotated[
        list[str] | None, typer.Option("--gguf", help="FORM=FILE, for example F16=a.gguf.")
    ] = None,
) -> None:
    """Hold the forms of one model against each other; exit code 1 when a hop is broken."""
    import workbench as wb

    ggufs: dict[str, str] = {}
    for text in gguf or []:
        form, sign, file = text.partition("=")
        if not sign:
            raise InputError(f"--gguf {text} names no file.", hint="Write --gguf FORM=FILE.")
        ggufs[form] = file
    found = wb.parity(model, adapter=adapter, merged=merged, ggufs=ggufs)
    show(found)
    found.require()
