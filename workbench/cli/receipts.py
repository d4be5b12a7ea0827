"""Commands about receipts: list them, show one, keep some to ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.options import app, show

group = typer.Typer(invoke_without_command=True, help="List what was measured, the newest last.")
app.add_typer(group, name="receipts")


@group.callback()
def receipts(
    context: typer.Context,
    what: Annotated[str | None, typer.Option(help="load, compare, finetune, export ...")] = None,
    model: Annotated[str | None, typer.Option(help="Card id.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine.")] = None,
    quantization: Annotated[str | None, typer.Option(help="Quantization.")] = None,
    outcome: Annotated[str | None, typer.Option(help="done or failed.")] = None,
    since: Annotated[str | None, typer.Option(help="2026-05-01, 12h, 7d ...")] = None,
    where: Annotated[str | None, typer.Option(help="here or elsewhere.")] = None,
    most: Annotated[int, typer.Option(help="Rows at most, the newest.", min=1)] = 50,
) -> None:
    """List what was measured, the newest last."""
    if context.invoked_subcommand is not None:
        return
    import workbench as wb

    conditions: dict[str, Any] = {
        "model": model,
        "engine": engine,
        "quantization": quantization,
        "outcome": outcome,
        "since": since,
        "where": where,
    }
    show(wb.receipts(what, **conditions).table(most=most))


@group.command("show")
def show_receipt(
    receipt: Annotated[str, typer.Argument(help="Id (its beginning is enough) or file.")],
) -> None:
    """Show everything a receipt says."""
    from workbench.receipts import find

    show(find(receipt))


@group.command("keep")
def keep_receipts(
    receipt: Annotated[list[str], typer.Argument(help="Ids (beginnings are enough) or files.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder; default is the checkout's data/receipts.")
    ] = None,
) -> None:
    """Copy receipts to those that ship, with nothing private in them."""
    from workbench.receipts import keep

    for each in receipt:
        print(keep(each, to))  # noqa: T201
