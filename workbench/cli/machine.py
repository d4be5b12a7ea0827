"""Commands about this computer: machine, doctor, engines."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli.options import app, show


@app.command()
def machine(
    description: Annotated[
        str | None,
        typer.Argument(help="Another one: 24GB-cuda, 16GB-mac, cpu-32GB, or a YAML or JSON file."),
    ] = None,
) -> None:
    """Show this computer, or one that is described: processor, memory, devices, versions."""
    import workbench as wb

    show(wb.machine(description))


@app.command()
def doctor(
    engine: Annotated[
        list[str] | None, typer.Option("--engine", help="Only this engine; repeatable.")
    ] = None,
    quantization: Annotated[
        list[str] | None, typer.Option("--quantization", help="Only this one; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only import the engines.")] = False,
    timeout: Annotated[float, typer.Option(help="Most seconds for one step.")] = 180.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
) -> None:
    """Run the embedded model in every engine and quantization; exit code 1 when one is broken."""
    import workbench as wb

    found = wb.doctor(engine, quantization, quick=quick, timeout=timeout, threads=threads)
    show(found)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def engines() -> None:
    """Show every engine, and whether its packages are installed."""
    import workbench as wb

    show(wb.engines())
