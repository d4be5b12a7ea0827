"""Commands about runs: run, runs, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import app, show
from workbench.errors import InputError


@app.command()
def run(
    notebook: Annotated[str, typer.Argument(help="A shipped name, a path, or a run file.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="NAME VALUE (or NAME=VALUE); repeatable."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="YAML file of parameters.")
    ] = None,
) -> None:
    """Execute a notebook with parameters, or a run file of several, into run folders."""
    from workbench.runs import run_command

    given: dict[str, str] = {}
    for text in parameter or []:
        name, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"-p {text} has no value.", hint="Write -p NAME VALUE.")
        given[name] = value
    show(run_command(notebook, given, file=file))


@app.command()
def runs() -> None:
    """List the runs, newest first."""
    import workbench as wb

    show(wb.runs())


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Render a run's report.html again."""
    from workbench.runs import report as render

    print(render(folder))  # noqa: T201
