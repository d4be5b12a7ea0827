"""Commands about the catalog: models, and beneath it search, show and what others add."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workbench.cli.options import app, show


class _SearchFirst(TyperGroup):
    """A group whose words are a search, unless the first one names a command of the group."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``search`` in front where no command is named."""
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["search", *args]
        return super().parse_args(ctx, args)


group = typer.Typer(
    cls=_SearchFirst,
    help="Search the cards: workbench models WORDS (short for: workbench models search WORDS).",
)
app.add_typer(group, name="models")


@group.command()
def search(
    words: Annotated[
        list[str] | None, typer.Argument(help="All must be in the card; none lists every card.")
    ] = None,
) -> None:
    """List the cards of the catalog that match."""
    import workbench as wb

    show(wb.catalog())


@group.command("show")
def show_card(card_id: Annotated[str, typer.Argument(help="A card id, or a path.")]) -> None:
    """Show everything a card says."""
    from workbench.catalog import resolve

    show(resolve(card_id))
